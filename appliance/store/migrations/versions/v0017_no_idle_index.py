"""Nobody looks for requests by their proxy, and each entry of that index was one more page of an issuance's commit."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("requests_proxy", table_name="requests")
