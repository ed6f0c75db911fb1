"""NAS (RADIUS clients) and RADIUS servers (callers of the decision port)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from appliance.store.schema import certificates, radius_servers
from appliance.store.schema import nas as table
from appliance.store.statements import Row
from appliance.store.transaction import Tx

TOPIC = "nas"
SERVER_TOPIC = "radius-server"
DEFAULT_PROFILE = "generic-disconnect"
DEFAULT_COA_PORT = 3799
PROFILE = "nas"
"""Profile of the certificates that NAS show over RadSec."""
SITE = "radius-site"
"""Profile of the certificates of RADIUS servers on other machines."""

_INSERT = insert(table)
_ALL = select(table).order_by(table.c.name)
_CHANGE = (
    update(table)
    .where(table.c.name == bindparam("key"))
    .values(coa_port=bindparam("new_port"), profile=bindparam("new_profile"))
)
_ROTATE = (
    update(table)
    .where(table.c.name == bindparam("key"))
    .values(
        secret_sealed=bindparam("new_secret"),
        old_secret_sealed=bindparam("old_secret"),
        old_secret_until=bindparam("until", type_=table.c.old_secret_until.type),
    )
)
_DELETE = delete(table).where(table.c.name == bindparam("key"))
_ADD_SERVER = insert(radius_servers)
_DROP_SERVER = delete(radius_servers).where(radius_servers.c.name == bindparam("key"))
_END_OLDER = (
    update(radius_servers)
    .where(
        radius_servers.c.name == bindparam("key"),
        radius_servers.c.token_sha256 == bindparam("newer", type_=radius_servers.c.token_sha256.type),
        radius_servers.c.older_sha256.is_not(None),
    )
    .values(older_sha256=None)
)
_SERVERS = select(radius_servers).order_by(radius_servers.c.name)
_OF_ONE = (
    select(certificates)
    .where(
        certificates.c.profile == PROFILE,
        certificates.c.subject_id.like(bindparam("named")),
        certificates.c.state != "revoked",
        certificates.c.not_after > bindparam("at"),
    )
    .order_by(certificates.c.id)
)
_LIVE = (
    select(certificates.c.serial, certificates.c.subject_id)
    .where(
        certificates.c.profile == bindparam("kind"),
        certificates.c.state == "issued",
        certificates.c.not_after > bindparam("at"),
    )
    .order_by(certificates.c.id)
)
_ISSUED_FOR = select(certificates.c.der).where(
    certificates.c.profile == bindparam("kind"),
    certificates.c.csr_sha256 == bindparam("asked"),
    certificates.c.state == "issued",
)


@dataclass(frozen=True, slots=True)
class NasRow:
    """One NAS or network of them; `address` is an address or a prefix, secrets are sealed.

    `coa_port` and `profile` say where and how live sessions are changed. The old secret counts until its time.
    """

    id: str
    name: str
    address: str
    secret_sealed: bytes
    created_at: datetime
    site: str = ""
    coa_port: int = 3799
    profile: str = DEFAULT_PROFILE
    old_secret_sealed: bytes | None = None
    old_secret_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class RadiusServerRow:
    """One RADIUS server that may ask for decisions; `older_sha256` is of the token before, while that counts too."""

    name: str
    token_sha256: str
    older_sha256: str | None = None


def add(tx: Tx, row: NasRow) -> None:
    """Insert and tell the outbox; raises Conflict when the name is taken."""
    tx.execute(
        _INSERT,
        {
            "id": row.id,
            "name": row.name,
            "address": row.address,
            "secret_sealed": row.secret_sealed,
            "created_at": row.created_at,
            "site": row.site or None,
            "coa_port": row.coa_port,
            "profile": row.profile,
            "old_secret_sealed": row.old_secret_sealed,
            "old_secret_until": row.old_secret_until,
        },
    )
    tx.emit(TOPIC, row.name, {"state": "added", "site": row.site})


def every(tx: Tx) -> list[NasRow]:
    """All, by name."""
    return [
        NasRow(
            row.id, row.name, row.address, row.secret_sealed, row.created_at, row.site or "",
            row.coa_port or DEFAULT_COA_PORT, row.profile or DEFAULT_PROFILE,
            row.old_secret_sealed, row.old_secret_until,
        )
        for row in tx.all(_ALL)
    ]  # fmt: skip


def change(tx: Tx, row: NasRow) -> bool:
    """Write port and profile and tell the outbox; answers whether there was one."""
    found = tx.execute(_CHANGE, {"key": row.name, "new_port": row.coa_port, "new_profile": row.profile}).rowcount == 1
    if found:
        tx.emit(TOPIC, row.name, {"state": "changed", "site": row.site})
    return found


def sites(tx: Tx) -> dict[str, str]:
    """The site of each NAS that has one, by the NAS's name."""
    return {row.name: row.site for row in tx.all(_ALL) if row.site}


def rotate(tx: Tx, row: NasRow, *, sealed: bytes, old: bytes | None, until: datetime | None) -> bool:
    """Write a new secret beside the one before; answers whether there was such a NAS."""
    values = {"key": row.name, "new_secret": sealed, "old_secret": old, "until": until}
    found = tx.execute(_ROTATE, values).rowcount == 1
    if found:
        tx.emit(TOPIC, row.name, {"state": "secret-rotated", "site": row.site})
    return found


def remove(tx: Tx, name: str) -> bool:
    """Delete and tell the outbox; answers whether there was one."""
    found = tx.execute(_DELETE, {"key": name}).rowcount == 1
    if found:
        tx.emit(TOPIC, name, {"state": "removed"})
    return found


def put_server(tx: Tx, id_: str, name: str, token_sha256: bytes) -> str | None:
    """Insert a RADIUS server, or give one a new token; answers the digest of the older one that counts until it serves.

    There are two at the most: one that never served, as far as is known, is dead as soon as its successor is made.
    """
    before = next((row for row in servers(tx) if row.name == name), None)
    older = None if before is None else before.older_sha256 or before.token_sha256
    tx.execute(_DROP_SERVER, {"key": name})
    values: dict[str, Any] = {"id": id_, "name": name, "token_sha256": token_sha256, "created_at": tx.now}
    tx.execute(_ADD_SERVER, values | {"older_sha256": older})
    tx.emit(SERVER_TOPIC, name, {"token_sha256": token_sha256.hex(), "older_sha256": older or ""})
    return older


def end_older(tx: Tx, name: str, token_sha256: bytes) -> bool:
    """The newest token serves, so the one before it counts no more; False where this is not the newest, or the only."""
    found = tx.execute(_END_OLDER, {"key": name, "newer": token_sha256}).rowcount == 1
    if found:
        tx.emit(SERVER_TOPIC, name, {"token_sha256": token_sha256.hex(), "older_sha256": ""})
    return found


def servers(tx: Tx) -> list[RadiusServerRow]:
    """RADIUS servers that have a token."""
    return [RadiusServerRow(row.name, row.token_sha256, row.older_sha256) for row in tx.all(_SERVERS)]


def live_certificates(tx: Tx) -> list[str]:
    """Serial numbers, hex, of the certificates that NAS may show now."""
    return [row.serial for row in live_rows(tx, profile=PROFILE)]


def live_rows(tx: Tx, *, profile: str) -> list[Row]:
    """serial and subject_id of the certificates of a profile that are issued and not expired."""
    return tx.all(_LIVE, {"kind": profile, "at": tx.now})


def issued_for(tx: Tx, *, profile: str, csr_sha256: str) -> bytes | None:
    """The certificate that was issued for this very request, DER."""
    found: bytes | None = tx.scalar(_ISSUED_FOR, {"kind": profile, "asked": csr_sha256})
    return found


def certificates_of(tx: Tx, id_: str) -> list[Row]:
    """Certificate rows of one NAS that are neither revoked nor expired."""
    return tx.all(_OF_ONE, {"named": f"%/nas/{id_}", "at": tx.now})
