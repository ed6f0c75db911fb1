"""What the registrar needs for administrators: expected devices, who knocked, vouchers fetched ahead, judgements.

Strangers move from the pledges to a list of their own, listed serials from the manufacturers' options to theirs, and
what was forgiven becomes an override that can be withdrawn. Where a manufacturer had no TLS anchors for its MASA, its
own anchors and the machine's store were mixed: it keeps that, said explicitly from now on.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("pledges", sa.Column("history", sa.Text(), nullable=True))
    op.add_column("pledges", sa.Column("history_override", sa.Text(), nullable=True))
    op.create_table(
        "listed_devices",
        sa.Column("manufacturer_id", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("idevid_issuer", sa.Text(), nullable=True),
        sa.Column("delivered_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("manufacturer_id", "serial"),
    )
    op.create_table(
        "knocks",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("maker", sa.Text(), nullable=False),
        sa.Column("manufacturer_id", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("first_seen", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    op.create_index("knocks_last_seen", "knocks", ["last_seen"], unique=False)
    op.create_index("knocks_address", "knocks", ["address"], unique=False)
    op.create_table(
        "vouchers_ahead",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("manufacturer_id", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("idevid_issuer", sa.Text(), nullable=False),
        sa.Column("masa_url", sa.Text(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("rvr", sa.LargeBinary(), nullable=False),
        sa.Column("voucher", sa.LargeBinary(), nullable=True),
        sa.Column("history", sa.LargeBinary(), nullable=True),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("handed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("vouchers_ahead_device", "vouchers_ahead", ["idevid_issuer", "serial"], unique=False)
    connection = op.get_bind()
    _move_strangers(connection)
    _move_serials(connection)
    _keep_overrides(connection)


def _move_strangers(connection: sa.Connection) -> None:
    rows = connection.execute(
        sa.text(
            "SELECT id, serial, idevid_sha256, timeline, created_at, updated_at FROM pledges"
            " WHERE idevid_issuer LIKE 'unverified:%'"
        )
    ).all()
    for row in rows:
        steps = json.loads(row.timeline or "{}").get("steps", [])
        code = str(steps[-1].get("code", "")) if steps else ""
        detail, _, maker = code.partition(": ")
        connection.execute(
            sa.text(
                "INSERT INTO knocks VALUES"
                " (:fingerprint, :serial, :maker, NULL, '', 'manufacturer-unknown', :detail, 1, :first, :last)"
            ),
            {
                "fingerprint": row.idevid_sha256 or row.id,
                "serial": row.serial,
                "maker": maker,
                "detail": detail,
                "first": row.created_at,
                "last": row.updated_at,
            },
        )
    connection.execute(sa.text("DELETE FROM pledges WHERE idevid_issuer LIKE 'unverified:%'"))


def _move_serials(connection: sa.Connection) -> None:
    rows = connection.execute(
        sa.text("SELECT id, anchors_pem, masa_tls_anchors_pem, options, created_at FROM manufacturers")
    ).all()
    for row in rows:
        options = json.loads(row.options or "{}")
        for serial in dict.fromkeys(options.pop("serials", ())):
            connection.execute(
                sa.text("INSERT INTO listed_devices VALUES (:maker, :serial, NULL, NULL, NULL, :at)"),
                {"maker": row.id, "serial": serial, "at": row.created_at},
            )
        anchors = row.masa_tls_anchors_pem
        if not anchors:
            options["masa_trust"], anchors = "both", row.anchors_pem
        connection.execute(
            sa.text("UPDATE manufacturers SET options = :options, masa_tls_anchors_pem = :anchors WHERE id = :id"),
            {"options": json.dumps(options, separators=(",", ":")), "anchors": anchors, "id": row.id},
        )


def _keep_overrides(connection: sa.Connection) -> None:
    """Nobody knows any more what exactly was forgiven, so everything is: `keys` has the one word that says so."""
    said = {"by": "", "at": "", "reason": "forgiven before overrides were kept", "keys": ["*"]}
    connection.execute(
        sa.text("UPDATE pledges SET history_override = :said WHERE audit_verdict = 'forgiven'"),
        {"said": json.dumps(said, separators=(",", ":"))},
    )
