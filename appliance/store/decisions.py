"""The decision log: one row per conversation, or per many alike; written in batches off the decision path.

Ids grow with time and never come again, not even when the log was emptied, so pages go by id. A search that no index
answers walks a bounded number of rows per page and says where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, case, delete, func, insert, select
from sqlalchemy.sql.elements import ColumnElement

from appliance.store import meta
from appliance.store.columns import Time
from appliance.store.schema import decisions as table
from appliance.store.statements import plain
from appliance.store.transaction import Tx

WALK = 200_000
PRUNED_AT_ONCE = 5_000
_c = table.c
COLUMNS = (
    "time", "verdict", "vlan", "reason", "nas", "port", "mac", "session", "agent_id", "owner_id", "department",
    "serial", "policy_revision", "trace", "times",
)  # fmt: skip
_INSERT = plain(insert(table), *COLUMNS)
_INSERT_AT = plain(insert(table), "id", *COLUMNS)
_LAST_ID = "decisions_last_id"
"""Where the row with the highest id was deleted, that id: SQLite would give it, or after the last row 1, again."""
_NEWEST = select(table).order_by(_c.id.desc()).limit(bindparam("limit"))
_ONE = select(table).where(_c.id == bindparam("key"))
_LAST = select(func.max(_c.id))
_PAGE = (
    select(table)
    .where(_c.id > bindparam("after"), _c.time >= bindparam("since", type_=Time()))
    .order_by(_c.id)
    .limit(bindparam("count"))
)
_ADDRESS = func.json_extract(_c.trace, "$.address")
_ACCEPTED_IDS = (
    select(func.max(_c.id).label("newest"))
    .where(_c.time >= bindparam("since", type_=Time()), _c.verdict != "reject")
    .group_by(_ADDRESS, _c.mac, case((_c.mac.is_(None), _c.port)))
    .order_by(func.max(_c.id).desc())
    .limit(bindparam("count"))
)
_ACCEPTED = select(table).where(_c.id.in_(_ACCEPTED_IDS.scalar_subquery())).order_by(_c.id)
_OLD = select(_c.id).where(_c.time < bindparam("before", type_=Time())).order_by(_c.time).limit(bindparam("count"))
_SURPLUS = select(_c.id).where(_c.id <= bindparam("last")).order_by(_c.id).limit(bindparam("count"))
_PRUNE_OLD = delete(table).where(_c.id.in_(_OLD.scalar_subquery()))
_PRUNE_SURPLUS = delete(table).where(_c.id.in_(_SURPLUS.scalar_subquery()))
_CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    # the second half lets the index fit, which leaves rows without an agent or a MAC address out
    "agent": (_c.agent_id == bindparam("agent")) & _c.agent_id.is_not(None),
    "mac": (_c.mac == bindparam("mac")) & _c.mac.is_not(None),
    "owner": _c.owner_id == bindparam("owner"),
    "nas": _c.nas == bindparam("nas"),
    "verdict": _c.verdict == bindparam("verdict"),
    "reason": _c.reason == bindparam("reason"),
    "since": _c.time >= bindparam("since", type_=Time()),
    "until": _c.time < bindparam("until", type_=Time()),
}
FILTERS = tuple(_CONDITIONS)
_INDEXED = frozenset({"agent", "mac"})


def add(tx: Tx, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows in stored form, each a value for every one of COLUMNS: time in microseconds, trace as JSON text."""
    if rows and (given := _given(tx)) > _newest(tx):
        tx.insert(_INSERT_AT, (given + 1, *rows[0]))
        rows = rows[1:]
    tx.insert_many(_INSERT, rows)


def newest(tx: Tx, *, limit: int) -> list[dict[str, Any]]:
    """The newest rows, oldest of them first."""
    return [dict(row._mapping) for row in tx.all(_NEWEST, {"limit": limit})][::-1]


def one(tx: Tx, key: int) -> dict[str, Any] | None:
    """One row by its id."""
    row = tx.one(_ONE, {"key": key})
    return None if row is None else dict(row._mapping)


def last(tx: Tx) -> int:
    """The newest id that was ever given, 0 before the first row."""
    return max(_newest(tx), _given(tx))


def _newest(tx: Tx) -> int:
    return int(tx.scalar(_LAST) or 0)


def _given(tx: Tx) -> int:
    return int(meta.get(tx, _LAST_ID) or 0)


def search(
    tx: Tx, values: Mapping[str, Any], *, before: int = 0, after: int = 0, count: int
) -> tuple[list[dict[str, Any]], int | None]:
    """(the newest rows that match every one of `values`, oldest of them first; where the next page begins or None).

    `values` are out of FILTERS; ids are below `before` if that is not 0, and above `after`.
    """
    names = frozenset(values)
    top = before or last(tx) + 1
    down_to = after + 1 if names & _INDEXED else max(after + 1, top - WALK)
    given = {**values, "before": top, "down_to": down_to, "count": count}
    rows = [dict(row._mapping) for row in tx.all(_search(names), given)][::-1]
    if len(rows) == count:
        return rows, rows[0]["id"]
    return rows, down_to if down_to > after + 1 else None


@cache
def _search(names: frozenset[str]) -> Select[Any]:
    conditions = [_CONDITIONS[name] for name in sorted(names)]
    within = select(table).where(_c.id < bindparam("before"), _c.id >= bindparam("down_to"), *conditions)
    return within.order_by(_c.id.desc()).limit(bindparam("count"))


def page(tx: Tx, *, after: int, since: datetime, count: int) -> list[dict[str, Any]]:
    """Rows not older than `since` with ids above `after`, in the order of their ids."""
    return [dict(row._mapping) for row in tx.all(_PAGE, {"after": after, "since": since, "count": count})]


def accepted(tx: Tx, *, since: datetime, count: int) -> list[dict[str, Any]]:
    """Of each station at its NAS the newest row that let it in, of the `count` latest stations, oldest first."""
    return [dict(row._mapping) for row in tx.all(_ACCEPTED, {"since": since, "count": count})]


def first_since(tx: Tx, since: datetime) -> int:
    """An id below every row that is not older than `since`, so that page() need not walk what is."""
    return int(tx.scalar(_FIRST_SINCE, {"since": since}) or 1) - 1


def behind(tx: Tx, time: datetime) -> int:
    """The newest id that is not newer than a moment; 0 = every row is."""
    return int(tx.scalar(_BEHIND, {"time": time}) or 0)


_BEHIND = select(func.max(_c.id)).where(_c.time <= bindparam("time", type_=Time()))
_FIRST_SINCE = select(func.min(_c.id)).where(_c.time >= bindparam("since", type_=Time()))


def prune(tx: Tx, before: datetime, *, keep_rows: int) -> int:
    """Delete some of what is older, or of what there is too much of; answers how many: 0 when nothing is left to do."""
    known = last(tx)
    count = tx.execute(_PRUNE_OLD, {"before": before, "count": PRUNED_AT_ONCE}).rowcount
    count += tx.execute(_PRUNE_SURPLUS, {"last": known - keep_rows, "count": PRUNED_AT_ONCE}).rowcount
    if count and _newest(tx) < known:
        meta.put(tx, _LAST_ID, str(known))
    return count
