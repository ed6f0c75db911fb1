"""Serial numbers, key identifiers and digests of certificates as octets, half the room of their hex text.

The table is written anew; the room of the old one is free for what comes, the file itself does not shrink.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_OCTETS = ("issuer_aki", "serial", "tbs_sha256", "cert_sha256", "spki_sha256", "csr_sha256")
_INDEXES: tuple[tuple[str, list[str], str | None], ...] = (
    ("certificates_agent", ["agent_id"], "agent_id IS NOT NULL"),
    ("certificates_owner", ["owner_id", "not_after", "revoked_at"], "owner_id IS NOT NULL"),
    ("certificates_proxy", ["proxy_id", "csr_sha256"], None),
    ("certificates_spki", ["spki_sha256"], None),
    (
        "certificates_revoked",
        ["issuer_role", "revoked_at", "not_after", "serial", "revocation_reason", "issuer_aki"],
        "revoked_at IS NOT NULL",
    ),
    ("certificates_pending", ["state"], "state = 'pending'"),
    ("certificates_expiry", ["not_after"], None),
)


def upgrade() -> None:
    connection = op.get_bind()
    driver = connection.connection.driver_connection
    driver.create_function("octets", 1, _octets, deterministic=True)  # type: ignore[union-attr]
    for name, _, _ in _INDEXES:
        op.drop_index(name, "certificates")
    op.rename_table("certificates", "certificates_as_text")
    made = op.create_table(
        "certificates",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("issuer_role", sa.Text(), nullable=False),
        sa.Column("issuer_aki", sa.LargeBinary(), nullable=False),
        sa.Column("serial", sa.LargeBinary(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("owner_id", sa.Text(), nullable=True),
        sa.Column("proxy_id", sa.Text(), nullable=True),
        sa.Column("pledge_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("tbs_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("cert_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("der", sa.LargeBinary(), nullable=True),
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("csr_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("not_before", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("txn", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("revocation_reason", sa.Text(), nullable=True),
        sa.Column("tier", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("serial", "issuer_aki"),
    )
    names = [column.name for column in made.columns]
    old = sa.table("certificates_as_text", *(sa.column(name) for name in names))
    read = [sa.func.octets(old.c[name]) if name in _OCTETS else old.c[name] for name in names]
    op.execute(sa.insert(made).from_select(names, sa.select(*read).order_by(old.c.id)))
    op.drop_table("certificates_as_text")
    for name, columns, where in _INDEXES:
        op.create_index(
            name, "certificates", columns, unique=False, sqlite_where=None if where is None else sa.text(where)
        )


def _octets(text: str | None) -> bytes | None:
    if text is None:
        return None
    return bytes.fromhex(text if len(text) % 2 == 0 else f"0{text}")
