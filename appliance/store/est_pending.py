"""EST requests that wait for a person: one per proxy, label and operation (RFC 7030, section 4.2.3; E-134, E-135)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from appliance.store.schema import est_pending as table
from appliance.store.transaction import Tx

PENDING, APPROVED, DENIED, ISSUED = "pending", "approved", "denied", "issued"

_INSERT = insert(table)
_OF = select(table).where(
    table.c.proxy_id == bindparam("proxy_id"),
    table.c.label == bindparam("label"),
    table.c.operation == bindparam("operation"),
)
_BY_ID = select(table).where(table.c.id == bindparam("id"))
_ALL = select(table).order_by(table.c.created_at.desc(), table.c.id).limit(bindparam("limit"))
_DELETE = delete(table).where(table.c.id == bindparam("id"))
_MOVE = (
    update(table)
    .where(table.c.id == bindparam("key"), table.c.state == bindparam("was"))
    .values(state=bindparam("becomes"), reason=bindparam("why"), updated_at=bindparam("moment"))
)


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """One request of `requester`. `asked_sha256` is over its key and names, `state` one of the four above."""

    id: str
    proxy_id: str
    identifier: str
    label: str
    operation: str
    asked_sha256: str
    key_sha256: str
    subject: str
    requester: str
    state: str
    reason: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime


_COLUMNS = tuple(one.name for one in fields(PendingRequest))


def put(tx: Tx, row: PendingRequest) -> None:
    """Insert; what the same proxy asked before under this label and operation is forgotten."""
    before = of(tx, row.proxy_id, row.label, row.operation)
    if before is not None:
        tx.execute(_DELETE, {"id": before.id})
    tx.execute(_INSERT, {name: getattr(row, name) for name in _COLUMNS})


def of(tx: Tx, proxy_id: str, label: str, operation: str) -> PendingRequest | None:
    """What this proxy asked last under this label and operation."""
    return _maybe(tx.one(_OF, {"proxy_id": proxy_id, "label": label, "operation": operation}))


def get(tx: Tx, identifier: str) -> PendingRequest | None:
    """The request with this id."""
    return _maybe(tx.one(_BY_ID, {"id": identifier}))


def every(tx: Tx, *, limit: int = 1000) -> list[PendingRequest]:
    """Requests, newest first."""
    return [_read(row) for row in tx.all(_ALL, {"limit": limit})]


def move(tx: Tx, row: PendingRequest, state: str, *, reason: str = "") -> bool:
    """Change the state, if it still is the one of `row`."""
    values = {"key": row.id, "was": row.state, "becomes": state, "why": reason, "moment": tx.now}
    return tx.execute(_MOVE, values).rowcount == 1


def _maybe(row: Any) -> PendingRequest | None:
    return None if row is None else _read(row)


def _read(row: Any) -> PendingRequest:
    return PendingRequest(**{name: getattr(row, name) for name in _COLUMNS})
