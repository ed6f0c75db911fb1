"""Indexes hold the rows that are looked for: every index entry of a new certificate is a page more in its commit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_PARTIAL = {
    "certificates_agent": (["agent_id"], "agent_id IS NOT NULL"),
    "certificates_owner": (["owner_id"], "owner_id IS NOT NULL"),
    "certificates_revoked": (["issuer_role", "revoked_at"], "revoked_at IS NOT NULL"),
}


def upgrade() -> None:
    for name, (columns, where) in _PARTIAL.items():
        op.drop_index(name, "certificates")
        op.create_index(name, "certificates", columns, unique=False, sqlite_where=sa.text(where))
    op.drop_index("audit_event", "audit")  # nobody asks by event alone
