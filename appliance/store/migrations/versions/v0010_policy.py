"""What richer policies and a decision log that is searched need: a NAS's site, a credential's tier, repeated rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nas", sa.Column("site", sa.Text(), nullable=True))
    op.add_column("certificates", sa.Column("tier", sa.Text(), nullable=True))
    op.add_column("decisions", sa.Column("times", sa.Integer(), nullable=True))
    op.create_index(
        "decisions_agent", "decisions", ["agent_id"], unique=False, sqlite_where=sa.text("agent_id IS NOT NULL")
    )
    op.create_index("decisions_mac", "decisions", ["mac"], unique=False, sqlite_where=sa.text("mac IS NOT NULL"))
