"""Rollovers of CAs; the index of revocations tells the generations of a CA apart."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rollovers",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ca", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("made", sa.Text(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.drop_index("certificates_revoked", "certificates")
    op.create_index(
        "certificates_revoked",
        "certificates",
        ["issuer_role", "revoked_at", "not_after", "serial", "revocation_reason", "issuer_aki"],
        sqlite_where=sa.text("revoked_at IS NOT NULL"),
    )
