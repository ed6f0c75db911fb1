"""CRLs lie in files beside the database; indexes for CRLs and for searching certificates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("certificates_revoked", "certificates")
    op.create_index(
        "certificates_revoked",
        "certificates",
        ["issuer_role", "revoked_at", "not_after", "serial", "revocation_reason"],
        sqlite_where=sa.text("revoked_at IS NOT NULL"),
    )
    op.drop_index("certificates_owner", "certificates")
    op.create_index(
        "certificates_owner",
        "certificates",
        ["owner_id", "not_after", "revoked_at"],
        sqlite_where=sa.text("owner_id IS NOT NULL"),
    )
    op.create_index("certificates_pending", "certificates", ["state"], sqlite_where=sa.text("state = 'pending'"))
    op.create_index("certificates_expiry", "certificates", ["not_after"])
    # The numbers stay: they must never go back. No list has this digest, so each is made anew at the next start.
    op.add_column("crls", sa.Column("entries", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("crls", sa.Column("revoked", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("crls", sa.Column("sha256", sa.Text(), nullable=False, server_default=""))
    op.drop_column("crls", "der")
