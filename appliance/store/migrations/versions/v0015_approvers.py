"""Several questions about one request, one for each approver; and who approved beside an agent's own owner."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_INDEXES: tuple[tuple[str, list[str]], ...] = (
    ("challenges_owner", ["owner_id", "state"]),
    ("challenges_agent", ["agent_id", "state"]),
    ("challenges_expiry", ["expires_at"]),
)


def upgrade() -> None:
    # a request had one challenge; that constraint goes only with the table
    for name, _ in _INDEXES:
        op.drop_index(name, "challenges")
    op.rename_table("challenges", "challenges_of_one")
    made = op.create_table(
        "challenges",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("rqh", sa.Text(), nullable=False),
        sa.Column("seat", sa.Integer(), nullable=False),
        sa.Column("txn", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("proxy_id", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("csr", sa.LargeBinary(), nullable=True),
        sa.Column("challenge", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("rqh", "seat"),
    )
    names = [column.name for column in made.columns]
    old = sa.table("challenges_of_one", *(sa.column(name) for name in names))
    read = [sa.literal(0) if name == "seat" else old.c[name] for name in names]
    op.execute(sa.insert(made).from_select(names, sa.select(*read)))
    op.drop_table("challenges_of_one")
    for name, columns in _INDEXES:
        op.create_index(name, "challenges", columns, unique=False)
    op.create_table(
        "further_approvals",
        sa.Column("certificate_id", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("certificate_id", "owner_id"),
    )
    op.create_index("further_approvals_owner", "further_approvals", ["owner_id"], unique=False)
