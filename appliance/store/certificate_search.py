"""Certificates by what people know of them, newest first, page by page; quick over a million rows.

What an index answers exactly (serial number, key, agent, proxy, owner) is asked of it. Everything else is looked for
among the newest rows first, where most pages fill; only then an index gives the ids of all that match, sorted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Select, and_, bindparam, func, literal_column, select, text
from sqlalchemy.sql.elements import ColumnElement

from appliance.store import schema
from appliance.store.columns import Time
from appliance.store.statements import Row
from appliance.store.transaction import Tx

_t = schema.certificates
_c = _t.c
_owners = schema.owners
_NEWEST = 20_000
_COLUMNS = (
    _c.id,
    _c.serial,
    _c.issuer_role,
    _c.profile,
    _c.subject_id,
    _c.agent_id,
    _c.owner_id,
    _owners.c.department,
    _c.proxy_id,
    _c.state,
    _c.not_before,
    _c.not_after,
    _c.created_at,
    _c.revoked_at,
    _c.revocation_reason,
    _c.cert_sha256,
    _c.spki_sha256,
)
_NOW = bindparam("now", type_=Time())
_ROLES = ("root", "devices", "agents", "infrastructure")
_CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "agent": _c.agent_id == bindparam("agent"),
    "owner": _c.owner_id == bindparam("owner"),
    "proxy": _c.proxy_id == bindparam("proxy"),
    "serial": _c.serial == bindparam("serial"),
    "key": _c.spki_sha256 == bindparam("key"),
    "department": _c.owner_id.in_(
        select(_owners.c.identifier).where(_owners.c.department == bindparam("department")).scalar_subquery()
    ),
    "expires_before": _c.not_after < bindparam("expires_before", type_=Time()),
    "expires_after": _c.not_after >= bindparam("expires_after", type_=Time()),
    "revoked": _c.revoked_at.is_not(None),
    # a literal, so that the index over pending rows fits
    "pending": _c.state == literal_column("'pending'"),
    "expired": and_(_c.not_after < _NOW, _c.revoked_at.is_(None), _c.state != literal_column("'pending'")),
    "live": and_(_c.not_after >= _NOW, _c.revoked_at.is_(None), _c.state != literal_column("'pending'")),
}
# The index over revoked rows begins with their issuer; the one over owners' rows must not be asked for it.
_BY_ISSUER = _c.issuer_role.in_([literal_column(f"'{role}'") for role in _ROLES])
STATES = ("live", "revoked", "expired", "pending")
_EXACT = frozenset({"agent", "owner", "proxy", "serial", "key"})
_LAST = select(func.max(_c.id))


def search(tx: Tx, values: Mapping[str, Any], *, state: str = "", before: int = 0, count: int) -> list[Row]:
    """Rows that match every one of `values`, newest first, ids below `before` if that is not 0.

    `values`: agent, owner, proxy (identifiers), serial (as stored), key (SHA-256 of the SPKI, hex), department,
    expires_before, expires_after (moments). `state` is one of STATES. Rows have an id and the owner's department now.
    """
    names = frozenset((*values, state) if state else values)
    before = before or (tx.scalar(_LAST) or 0) + 1
    given = {**values, "before": before, "count": count}
    if state in ("expired", "live"):
        given["now"] = tx.now
    if not names & _EXACT:
        rows = tx.all(_among_newest(names), {**given, "down_to": before - _NEWEST})
        if len(rows) == count or before <= _NEWEST:
            return rows
    return tx.all(_everywhere(names), given)


@cache
def _among_newest(names: frozenset[str]) -> Select[Any]:
    conditions = [_CONDITIONS[name] for name in sorted(names)]
    walked = select(_c.id.label("found")).where(_c.id < bindparam("before"), _c.id >= bindparam("down_to"), *conditions)
    inner = walked.order_by(_c.id.desc()).limit(bindparam("count")).subquery()
    return _of(inner.c.found)


@cache
def _everywhere(names: frozenset[str]) -> Select[Any]:
    conditions = [_CONDITIONS[name] for name in sorted(names)]
    if "revoked" in names and not names & (_EXACT | {"department"}):
        conditions.append(_BY_ISSUER)
    inner = (
        select(_c.id.label("found"))
        .where(_c.id < bindparam("before"), *conditions)
        # the plus keeps the database from walking the whole table backwards for the sake of the order
        .order_by(text("+certificates.id DESC"))
        .limit(bindparam("count"))
        .subquery()
    )
    return _of(inner.c.found)


def _of(found: ColumnElement[Any]) -> Select[Any]:
    return (
        select(*_COLUMNS)
        .select_from(_t.outerjoin(_owners, _owners.c.identifier == _c.owner_id))
        .where(_c.id.in_(select(found)))
        .order_by(_c.id.desc())
    )
