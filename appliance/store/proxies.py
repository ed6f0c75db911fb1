"""Identity proxies that are in: one row per /proxy/<uuid4>, never deleted, never given to another device (A-108)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, select, update

from appliance.errors import Conflict
from appliance.store.columns import Octets, Serial, to_micros
from appliance.store.schema import certificates
from appliance.store.schema import proxies as table
from appliance.store.statements import Plain, plain
from appliance.store.transaction import Tx

ACTIVE = "active"
SUSPENDED = "suspended"
REVOKED = "revoked"
TOPIC = "proxy"

_INSERT = insert(table)
_BY_ID = select(table).where(table.c.id == bindparam("id"))
_BY_IDENTIFIER = select(table).where(table.c.identifier == bindparam("identifier"))
_ALL = select(table).order_by(table.c.created_at.desc(), table.c.id).limit(bindparam("limit"))
_BEFORE = Plain(
    "SELECT (SELECT der FROM certificates WHERE proxy_id = ? AND csr_sha256 = ? AND profile = 'ldevid' "
    "AND state = 'issued' AND created_at > ? AND not_after > ?), "
    "EXISTS (SELECT 1 FROM certificates WHERE spki_sha256 = ? AND subject_id IS NOT ?)"
)
_STANDING = plain(
    select(certificates.c.state, certificates.c.cert_sha256, certificates.c.profile, table.c.state)
    .join_from(certificates, table, table.c.id == certificates.c.proxy_id, isouter=True)
    .where(certificates.c.serial == bindparam("serial"), certificates.c.issuer_aki == bindparam("aki")),
    "serial", "aki",
)  # fmt: skip
_REVOKE = (
    update(table)
    .where(table.c.id == bindparam("key"), table.c.state != REVOKED)
    .values(state=REVOKED, updated_at=bindparam("updated_at"))
)
_MOVE = (
    update(table)
    .where(table.c.id == bindparam("key"), table.c.state == bindparam("was"))
    .values(state=bindparam("new_state"), updated_at=bindparam("at"))
)


@dataclass(frozen=True, slots=True)
class ProxyRow:
    """One proxy. `method` is brski or est, `state` active, suspended or revoked, `label` that of EST, "" = none."""

    id: str
    identifier: str
    pledge_id: str | None
    method: str
    name: str
    state: str
    created_at: datetime
    updated_at: datetime
    label: str = ""

    @property
    def is_active(self) -> bool:
        return self.state == ACTIVE

    @property
    def is_revoked(self) -> bool:
        return self.state == REVOKED


def add(tx: Tx, row: ProxyRow) -> None:
    """Insert and tell the outbox; raises Conflict when the identifier is taken."""
    tx.execute(
        _INSERT,
        {
            "id": row.id,
            "identifier": row.identifier,
            "pledge_id": row.pledge_id,
            "method": row.method,
            "name": row.name,
            "state": row.state,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
            "label": row.label or None,
        },
    )
    tx.emit(TOPIC, row.identifier, {"id": row.id, "state": row.state})


def get(tx: Tx, identifier: str) -> ProxyRow | None:
    """The proxy with this id (the UUID, not the URI)."""
    return _maybe(tx.one(_BY_ID, {"id": identifier}))


def by_identifier(tx: Tx, identifier: str) -> ProxyRow | None:
    """The proxy with this URI."""
    return _maybe(tx.one(_BY_IDENTIFIER, {"identifier": identifier}))


def every(tx: Tx, *, limit: int = 1000) -> list[ProxyRow]:
    """Proxies, newest first."""
    return [_read(row) for row in tx.all(_ALL, {"limit": limit})]


class Before(NamedTuple):
    """What was issued for a request and its key before: the live LDevID of this proxy, DER, for the same request, and
    whether a certificate was ever begun for the key of another subject."""

    der: bytes | None
    is_key_of_another: int


def before(
    tx: Tx, *, proxy_id: str, csr_sha256: str | None, since: datetime, spki_sha256: bytes, identifier: str
) -> Before:
    """What was issued before; `csr_sha256` None finds no LDevID, `since` is when one counts from."""
    asked = None if csr_sha256 is None else bytes.fromhex(csr_sha256)
    values = (proxy_id, asked, to_micros(since), tx.micros, spki_sha256, identifier)
    row = tx.row(_BEFORE, values)
    assert row is not None  # it has no FROM
    return Before(*row)


class LdevidStanding(NamedTuple):
    """How a certificate and the proxy that it names stand now; None: there is no such proxy."""

    state: str
    cert_sha256: str | None
    profile: str
    proxy_state: str | None


def standing(tx: Tx, issuer_aki: str, serial: str) -> LdevidStanding | None:
    """How a certificate stands; `issuer_aki` and `serial` are as rows show them."""
    row = tx.row(_STANDING, (Serial.stored(serial), bytes.fromhex(issuer_aki)))
    if row is None:
        return None
    state, digest, profile, proxy_state = row
    return LdevidStanding(state, Octets.read(digest), profile, proxy_state)


def revoke(tx: Tx, row: ProxyRow) -> None:
    """Revoke for good and tell the outbox; raises Conflict when it is revoked already."""
    if tx.execute(_REVOKE, {"key": row.id, "updated_at": tx.now}).rowcount != 1:
        raise Conflict("the proxy is revoked already")
    tx.emit(TOPIC, row.identifier, {"id": row.id, "state": REVOKED})


def move(tx: Tx, row: ProxyRow, state: str) -> None:
    """Move from the state that `row` shows to another and tell the outbox; Conflict if it is not there any more."""
    if tx.execute(_MOVE, {"key": row.id, "was": row.state, "new_state": state, "at": tx.now}).rowcount != 1:
        raise Conflict(f"the proxy is not {row.state} any more")
    tx.emit(TOPIC, row.identifier, {"id": row.id, "state": state})


def _maybe(row: Any) -> ProxyRow | None:
    return None if row is None else _read(row)


def _read(row: Any) -> ProxyRow:
    return ProxyRow(
        id=row.id,
        identifier=row.identifier,
        pledge_id=row.pledge_id,
        method=row.method,
        name=row.name or "",
        state=row.state,
        created_at=row.created_at,
        updated_at=row.updated_at,
        label=row.label or "",
    )
