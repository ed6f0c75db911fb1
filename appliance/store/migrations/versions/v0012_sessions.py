"""Live sessions and the changes that their NAS are asked for; what a NAS understands, and its secret before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_OPEN = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.add_column("nas", sa.Column("coa_port", sa.Integer(), nullable=True))
    op.add_column("nas", sa.Column("profile", sa.Text(), nullable=True))
    op.add_column("nas", sa.Column("old_secret_sealed", sa.LargeBinary(), nullable=True))
    op.add_column("nas", sa.Column("old_secret_until", sa.BigInteger(), nullable=True))
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("nas", sa.Text(), nullable=False),
        sa.Column("nas_address", sa.Text(), nullable=False),
        sa.Column("port", sa.Text(), nullable=False),
        sa.Column("mac", sa.Text(), nullable=False),
        sa.Column("mac_key", sa.Text(), nullable=False),
        sa.Column("acct_session", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("department", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("txn", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("vlan", sa.Text(), nullable=False),
        sa.Column("granted", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("policy_revision", sa.Integer(), nullable=False),
        sa.Column("octets_in", sa.BigInteger(), nullable=False),
        sa.Column("octets_out", sa.BigInteger(), nullable=False),
        sa.Column("began_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("sessions_open", "sessions", ["nas_address", "mac_key"], unique=False, sqlite_where=_OPEN)
    op.create_index("sessions_live_owner", "sessions", ["owner_id"], unique=False, sqlite_where=_OPEN)
    op.create_index("sessions_live_agent", "sessions", ["agent_id"], unique=False, sqlite_where=_OPEN)
    op.create_index("sessions_acct", "sessions", ["nas_address", "acct_session"], unique=False)
    op.create_index("sessions_ended", "sessions", ["ended_at"], unique=False)
    op.create_table(
        "session_changes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("want", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("session_changes_session", "session_changes", ["session_id"], unique=False)
    op.create_index(
        "session_changes_due",
        "session_changes",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting'"),
    )
