"""The token that a RADIUS server serves with counts until its successor serves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("radius_servers", sa.Column("older_sha256", sa.Text(), nullable=True))
