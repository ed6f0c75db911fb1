"""The current CRL of each issuing CA: its number, which only grows, and what it was made of.

The list itself lies in a file; here stand its digest and the query for its entries, which another process runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert

from appliance.errors import Conflict
from appliance.store import schema
from appliance.store.columns import to_micros
from appliance.store.statements import Row
from appliance.store.transaction import Tx

_c = schema.crls.c
_cert = schema.certificates.c
_COLUMNS = ("number", "this_update", "next_update", "entries", "revoked", "sha256")
_GET = select(schema.crls).where(_c.role == bindparam("role"))
_INSERT = insert(schema.crls).values(role=bindparam("role"), **{name: bindparam(name) for name in _COLUMNS})
_PUT = _INSERT.on_conflict_do_update(
    index_elements=["role"],
    set_={name: _INSERT.excluded[name] for name in _COLUMNS},
    where=_c.number < _INSERT.excluded.number,
)
_RAISE = _INSERT.on_conflict_do_update(
    index_elements=["role"],
    set_={name: _INSERT.excluded[name] for name in ("number", "sha256")},
    where=_c.number < _INSERT.excluded.number,
)
# the role stands first in the index; the key tells its generations apart
_REVOKED = (
    _cert.issuer_role == bindparam("role"),
    _cert.issuer_aki == bindparam("aki"),
    _cert.revoked_at.is_not(None),
)
_COUNT = select(func.count()).where(*_REVOKED)
_ALL_ENTRIES = (
    select(_cert.serial, _cert.revoked_at, _cert.revocation_reason)
    # A certificate leaves after one list that was made beyond its expiry (RFC 5280, section 3.3).
    .where(*_REVOKED, or_(_cert.not_after > bindparam("since"), _cert.revoked_at >= bindparam("since")))
    .order_by(_cert.revoked_at)
)
_ENTRIES = _ALL_ENTRIES.limit(bindparam("count"))
_ENTRIES_TEXT = str(_ALL_ENTRIES.compile(dialect=sqlite.dialect(paramstyle="named")))


@dataclass(frozen=True, slots=True)
class Crl:
    """One finished list: `revoked` = revocations known when it was made, `sha256` = digest of its DER."""

    number: int
    this_update: datetime
    next_update: datetime
    entries: int
    revoked: int
    sha256: bytes


def get(tx: Tx, role: str) -> Row | None:
    """The row of one issuing CA by its label (the role, for the first of a role), or None before its first CRL."""
    return tx.one(_GET, {"role": role})


def put(tx: Tx, role: str, crl: Crl) -> None:
    """Replace the CRL of a role; Conflict unless its number is higher than the stored one."""
    values = {name: getattr(crl, name) for name in _COLUMNS}
    if tx.execute(_PUT, {"role": role, **values}).rowcount != 1:
        raise Conflict("a CRL with this number or a higher one is stored")


def raise_number(tx: Tx, role: str, number: int) -> None:
    """Let the next list be numbered above this; a list with a lower number is no longer the current one."""
    values = {"number": number, "this_update": tx.now, "next_update": tx.now, "entries": 0, "revoked": 0, "sha256": b""}
    tx.execute(_RAISE, {"role": role, **values})


def revoked(tx: Tx, role: str, issuer_aki: bytes) -> int:
    """How many certificates of an issuing key were ever revoked; grows with every revocation."""
    return int(tx.scalar(_COUNT, {"role": role, "aki": issuer_aki}))


def entries(tx: Tx, role: str, issuer_aki: bytes, since: datetime, *, count: int) -> list[Row]:
    """The first entries, oldest revocation first: serial, revoked_at, revocation_reason.

    Certificates that expired before `since`, and were not revoked after it, are left out.
    """
    return tx.all(_ENTRIES, {"role": role, "aki": issuer_aki, "since": since, "count": count})


def entries_query(role: str, since: datetime) -> tuple[str, Mapping[str, Any]]:
    """entries() without a limit as SQL text and values, for a process of its own, which adds the key's octets as `aki`.

    Rows there are as stored: a serial number is its octets, a time microseconds.
    """
    return _ENTRIES_TEXT, {"role": role, "since": to_micros(since)}
