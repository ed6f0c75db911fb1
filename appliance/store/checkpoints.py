"""Signed checkpoints of the audit log: how many entries it had, the signed token, and the peaks of its Merkle tree."""

from __future__ import annotations

from sqlalchemy import bindparam, insert, select

from appliance.store import schema
from appliance.store.statements import Row
from appliance.store.transaction import Tx

_c = schema.audit_checkpoints.c
_ADD = insert(schema.audit_checkpoints)
_NEWEST = select(schema.audit_checkpoints).order_by(_c.size.desc()).limit(1)
_PAGE = (
    select(_c.size, _c.time, _c.token).where(_c.size > bindparam("after")).order_by(_c.size).limit(bindparam("count"))
)


def add(tx: Tx, *, size: int, token: str, peaks: bytes) -> None:
    """Keep one; Conflict if there is one of this size."""
    tx.execute(_ADD, {"size": size, "time": tx.now, "token": token, "peaks": peaks})


def newest(tx: Tx) -> Row | None:
    """The one of the longest log: size, time, token, peaks."""
    return tx.one(_NEWEST)


def page(tx: Tx, *, after: int = 0, count: int = 1000) -> list[Row]:
    """Up to `count` above `after`, shortest log first: size, time, token."""
    return tx.all(_PAGE, {"after": after, "count": count})
