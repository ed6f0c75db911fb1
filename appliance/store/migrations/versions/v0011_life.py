"""Standing approvals with their counts; requests are found by their agent; owners' keys may be passkeys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "standing_approvals",
        sa.Column("s256", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("jti", sa.Text(), nullable=False),
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.Column("withdrawn_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("s256"),
        sa.UniqueConstraint("owner_id", "jti"),
    )
    op.create_index("standing_approvals_agent", "standing_approvals", ["agent_id", "state"], unique=False)
    for name in ("rp_id", "origin", "credential"):
        op.add_column("owner_keys", sa.Column(name, sa.Text(), nullable=True))
    for name in ("sign_count", "counted_iat"):
        op.add_column("owner_keys", sa.Column(name, sa.BigInteger(), nullable=True))
    op.create_index("requests_agent", "requests", ["agent_id"], unique=False)
