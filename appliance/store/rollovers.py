"""Rollovers of CAs, one row each: what was made, and how far the change is. The states are in appliance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update

from appliance.errors import Conflict
from appliance.store import schema
from appliance.store.statements import Row
from appliance.store.transaction import Tx

_t = schema.rollovers
_c = _t.c
_ALL = select(_t).order_by(_c.id)
_INSERT = insert(_t)
_LAST = select(func.max(_c.id))
_MOVE = (
    update(_t)
    .where(_c.id == bindparam("row_id"), _c.state == bindparam("was"))
    .values(state=bindparam("is"), changed_at=bindparam("at"), published_at=bindparam("published"))
)
_FILL = (
    update(_t)
    .where(_c.id == bindparam("row_id"), _c.state == bindparam("was"))
    .values(made=bindparam("what"), changed_at=bindparam("at"))
)
_cert = schema.certificates.c
_newer = schema.certificates.alias("newer")
_IN_FORCE = (_cert.state != "revoked", _cert.not_after > bindparam("now"))
_NEWER_IN_FORCE = (_newer.c.state == "issued", _newer.c.not_after > bindparam("now"))
# Whoever has a newer one does not need the old one, though it is still in force. The columns are those with an index,
# where there are many rows.
_LIVE = {
    role: select(func.count()).where(
        _cert.issuer_aki == bindparam("aki"),
        *_IN_FORCE,
        _cert.profile.not_in(("ocsp-signer", "unknown", "registrar", "radius", "https")),
        ~select(_newer.c.id)
        .where(
            _newer.c[column] == _cert[column],
            _newer.c.issuer_role == role,
            _newer.c.issuer_aki != bindparam("aki"),
            *_NEWER_IN_FORCE,
        )
        .exists(),
    )
    for role, column in (("agents", "agent_id"), ("devices", "proxy_id"), ("infrastructure", "subject_id"))
}
_BEFORE = select(func.count(func.distinct(_cert.proxy_id))).where(
    _cert.profile == "ldevid",
    *_IN_FORCE,
    _cert.created_at < bindparam("since"),
    ~select(_newer.c.id)
    .where(
        _newer.c.proxy_id == _cert.proxy_id,
        _newer.c.profile == "ldevid",
        _newer.c.created_at >= bindparam("since"),
        *_NEWER_IN_FORCE,
    )
    .exists(),
)


@dataclass(frozen=True, slots=True)
class RolloverRow:
    """`ca` is `root`, a role, or `renewal`; `label` names the new key; `made` are PEM certificates, by what they are.

    `made` is empty while the root has not signed. `published_at` stays when the change is taken back.
    """

    id: int
    ca: str
    label: str
    state: str
    made: Mapping[str, Any]
    started_at: datetime
    changed_at: datetime
    published_at: datetime | None


def every(tx: Tx) -> list[RolloverRow]:
    """All of them, oldest first."""
    return [_read(row) for row in tx.all(_ALL)]


def add(tx: Tx, *, ca: str, label: str, state: str, made: Mapping[str, Any]) -> int:
    """A new rollover; its id."""
    row_id = int(tx.scalar(_LAST, {}) or 0) + 1
    values = {"id": row_id, "ca": ca, "label": label, "state": state, "made": dict(made)}
    tx.execute(_INSERT, {**values, "started_at": tx.now, "changed_at": tx.now, "published_at": None})
    return row_id


def move(tx: Tx, row: RolloverRow, state: str, *, published_at: datetime | None) -> None:
    """From the state that the row shows to another; Conflict if it is not in it any more."""
    values = {"row_id": row.id, "was": row.state, "is": state, "at": tx.now, "published": published_at}
    if tx.execute(_MOVE, values).rowcount != 1:
        raise Conflict("the rollover has moved meanwhile")


def fill(tx: Tx, row: RolloverRow, made: Mapping[str, Any]) -> None:
    """What the root has signed; Conflict if the rollover has moved."""
    values = {"row_id": row.id, "was": row.state, "what": dict(made), "at": tx.now}
    if tx.execute(_FILL, values).rowcount != 1:
        raise Conflict("the rollover has moved meanwhile")


def live_under(tx: Tx, role: str, issuer_aki: bytes) -> int:
    """How many certificates in force of an issuing CA are the last ones that their holders have.

    Those of our own servers and of OCSP signers are left out.
    """
    return int(tx.scalar(_LIVE[role], {"aki": issuer_aki, "now": tx.now}))


def proxies_before(tx: Tx, since: datetime) -> int:
    """How many proxies have an LDevID in force and none since a moment: they have not asked for cacerts since."""
    return int(tx.scalar(_BEFORE, {"now": tx.now, "since": since}))


def _read(row: Row) -> RolloverRow:
    return RolloverRow(
        row.id, row.ca, row.label, row.state, row.made or {}, row.started_at, row.changed_at, row.published_at
    )
