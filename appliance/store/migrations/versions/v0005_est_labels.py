"""A proxy belongs to the EST label under which it enrolled; those that are there enrolled without one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("proxies", sa.Column("label", sa.Text(), nullable=True))
