"""Live sessions at the ports, and the changes that their NAS were asked for.

`assumed`: we sent the Access-Accept and have heard nothing else. `open`: the NAS accounts for it. `stale`: it did, and
fell silent. `ended`: over, and kept for a while.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, insert, or_, select, update

from appliance.store.columns import Json, Time
from appliance.store.schema import session_changes as changes_table
from appliance.store.schema import sessions as table
from appliance.store.statements import Plain, plain
from appliance.store.transaction import Tx
from est.json_text import encoder_of

ASSUMED, OPEN, STALE, ENDED = "assumed", "open", "stale", "ended"
WAITING, DONE, FAILED = "waiting", "done", "failed"

_encode = encoder_of()
_LIVE = table.c.ended_at.is_(None)
_COLUMNS = tuple(column.name for column in table.c)
_INSERT = plain(insert(table), *_COLUMNS)
_SAVE = plain(
    update(table)
    .where(table.c.id == bindparam("key"))
    .values({name: bindparam(f"new_{name}") for name in _COLUMNS[1:]}),
    *(f"new_{name}" for name in _COLUMNS[1:]), "key",
)  # fmt: skip
_values = attrgetter(*_COLUMNS)
_KEPT_AS = tuple((at, column.type) for at, column in enumerate(table.c) if isinstance(column.type, Time | Json))
"""Columns that the database keeps in another form."""
_BY_ID = select(table).where(table.c.id == bindparam("key"))
_AT = (
    select(table)
    .where(_LIVE, table.c.nas_address == bindparam("address"), table.c.mac_key == bindparam("mac"))
    .order_by(table.c.began_at.desc(), table.c.id)
)
_OF_NAS = select(table).where(_LIVE, table.c.nas_address == bindparam("address"))
_BY_ACCT = (
    select(table)
    .where(table.c.nas_address == bindparam("address"), table.c.acct_session == bindparam("acct"))
    .order_by(table.c.began_at.desc())
    .limit(1)
)
_PAGE = select(table).where(_LIVE, table.c.id > bindparam("after")).order_by(table.c.id).limit(bindparam("count"))

# The names come as JSON, since an IN list would be another statement for every number of them; and left to itself,
# SQLite goes through every live session.
_OF_OWNERS, _OF_AGENTS = (
    Plain(
        f"SELECT {', '.join(_COLUMNS)} FROM sessions INDEXED BY {index}"  # noqa: S608 - names of ours
        f" WHERE ended_at IS NULL AND {column} IN (SELECT value FROM json_each(?))"
    )
    for column, index in (("owner_id", "sessions_live_owner"), ("agent_id", "sessions_live_agent"))
)
_MARK_STALE = (
    update(table)
    .where(_LIVE, table.c.state == OPEN, table.c.updated_at < bindparam("before", type_=table.c.updated_at.type))
    .values(state=STALE)
)
_GIVE_UP = (
    update(table)
    .where(_LIVE, table.c.state == ASSUMED, table.c.updated_at < bindparam("before", type_=table.c.updated_at.type))
    .values(state=ENDED, ended_at=bindparam("now", type_=table.c.updated_at.type), cause="never-accounted")
)
_STATIONS = select(table.c.nas_address, table.c.mac_key).where(_LIVE)
_HEARD = (
    select(table.c.nas_address, table.c.mac_key, func.max(table.c.updated_at), func.max(table.c.ended_at.is_(None)))
    .where(or_(_LIVE, table.c.ended_at >= bindparam("since", type_=table.c.updated_at.type)))
    .group_by(table.c.nas_address, table.c.mac_key)
)
_PRUNE = delete(table).where(table.c.ended_at < bindparam("before"))
_PRUNE_CHANGES = delete(changes_table).where(
    changes_table.c.state != WAITING, changes_table.c.updated_at < bindparam("before")
)
_ADD_CHANGE = insert(changes_table)
_WAITING_FOR = (
    select(changes_table)
    .where(changes_table.c.session_id == bindparam("session"), changes_table.c.state == WAITING)
    .limit(1)
)
_DUE = (
    select(changes_table)
    .where(changes_table.c.state == WAITING, changes_table.c.due_at <= bindparam("now"))
    .order_by(changes_table.c.due_at, changes_table.c.id)
    .limit(bindparam("count"))
)
_NEXT_DUE = (
    select(changes_table.c.due_at).where(changes_table.c.state == WAITING).order_by(changes_table.c.due_at).limit(1)
)
_CHANGES_OF = (
    select(changes_table).where(changes_table.c.session_id == bindparam("session")).order_by(changes_table.c.id)
)
_SAVE_CHANGE = (
    update(changes_table)
    .where(changes_table.c.id == bindparam("key"))
    .values(
        want=bindparam("new_want"),
        why=bindparam("new_why"),
        state=bindparam("new_state"),
        attempts=bindparam("new_attempts"),
        result=bindparam("new_result"),
        due_at=bindparam("new_due", type_=changes_table.c.due_at.type),
        updated_at=bindparam("at", type_=changes_table.c.updated_at.type),
    )
)


@dataclass(frozen=True, slots=True)
class Session:
    """One session. `request` is what was decided upon, `granted` the reply attributes that were given, as text."""

    id: str
    state: str
    nas: str
    nas_address: str
    port: str
    mac: str
    mac_key: str
    acct_session: str
    agent_id: str
    owner_id: str
    department: str
    serial: str
    txn: str
    verdict: str
    vlan: str
    granted: str
    request: Mapping[str, Any]
    policy_revision: int
    octets_in: int
    octets_out: int
    began_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None
    cause: str = ""

    @property
    def is_live(self) -> bool:
        return self.ended_at is None


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a NAS is asked to do about a session: `want` as in radius.nas_profiles, `why` a reason code."""

    id: int
    session_id: str
    want: str
    why: str
    state: str
    attempts: int
    result: str
    created_at: datetime
    due_at: datetime
    updated_at: datetime


def add(tx: Tx, session: Session) -> None:
    """Insert."""
    tx.insert(_INSERT, tuple(_stored(session)))


def save(tx: Tx, session: Session) -> None:
    """Write every column of a session that is there."""
    key, *others = _stored(session)
    tx.change(_SAVE, (*others, key))


def _stored(session: Session) -> list[Any]:
    values = list(_values(session))
    for at, kind in _KEPT_AS:
        values[at] = kind.stored(values[at])
    return values


def _read_stored(row: tuple[Any, ...]) -> Session:
    values = list(row)
    for at, kind in _KEPT_AS:
        values[at] = kind.read(values[at])
    return Session(*values)


def get(tx: Tx, session_id: str) -> Session | None:
    """The session with this id."""
    row = tx.one(_BY_ID, {"key": session_id})
    return None if row is None else _read(row)


def live_at(tx: Tx, nas_address: str, mac_key: str) -> list[Session]:
    """Live sessions of a station at a NAS, newest first."""
    return [_read(row) for row in tx.all(_AT, {"address": nas_address, "mac": mac_key})]


def live_of_nas(tx: Tx, nas_address: str) -> list[Session]:
    """Live sessions of a NAS."""
    return [_read(row) for row in tx.all(_OF_NAS, {"address": nas_address})]


def by_acct(tx: Tx, nas_address: str, acct_session: str) -> Session | None:
    """The newest session that a NAS calls by this Acct-Session-Id, also an ended one."""
    row = tx.one(_BY_ACCT, {"address": nas_address, "acct": acct_session})
    return None if row is None else _read(row)


def page(tx: Tx, *, after: str = "", count: int = 1000) -> list[Session]:
    """Live sessions in the order of their ids, those behind `after`."""
    return [_read(row) for row in tx.all(_PAGE, {"after": after, "count": count})]


def of_parties(tx: Tx, owners: Collection[str], agents: Collection[str]) -> list[Session]:
    """Live sessions of any of these."""
    found: dict[str, Session] = {}
    for statement, names in ((_OF_OWNERS, owners), (_OF_AGENTS, agents)):
        if names:
            found |= {row[0]: _read_stored(row) for row in tx.rows(statement, (_encode(list(names)),))}
    return list(found.values())


def search(
    tx: Tx,
    *,
    session_id: str = "",
    owner: str = "",
    agent: str = "",
    nas: str = "",
    mac_key: str = "",
    vlan: str = "",
    ended: bool = False,
    limit: int = 1000,
) -> list[Session]:
    """Sessions by what they show, newest first; empty texts do not restrict, `ended` takes those that are over too."""
    wanted = {"id": session_id, "owner_id": owner, "agent_id": agent, "nas": nas, "mac_key": mac_key, "vlan": vlan}
    found = {name: value for name, value in wanted.items() if value}
    conditions = [table.c[name] == bindparam(f"is_{name}") for name in found]
    if not ended:
        conditions.append(_LIVE)
    statement = select(table).where(and_(True, *conditions)).order_by(table.c.began_at.desc(), table.c.id)
    rows = tx.all(
        statement.limit(bindparam("limit")), {f"is_{name}": value for name, value in found.items()} | {"limit": limit}
    )
    return [_read(row) for row in rows]


def mark_stale(tx: Tx, before: datetime) -> int:
    """Open sessions that were not heard of since `before` become stale; answers how many."""
    return tx.execute(_MARK_STALE, {"before": before}).rowcount


def give_up(tx: Tx, before: datetime) -> int:
    """Sessions that only an accept told of, before then, are taken to be over; answers how many."""
    return tx.execute(_GIVE_UP, {"before": before, "now": tx.now}).rowcount


def heard(tx: Tx, since: datetime) -> dict[tuple[str, str], tuple[datetime, bool]]:
    """Stations with a session that is live or ended `since`: when they were last heard of, whether one is live."""
    return {(row[0], row[1]): (row[2], bool(row[3])) for row in tx.all(_HEARD, {"since": since})}


def live_stations(tx: Tx) -> set[tuple[str, str]]:
    """NAS address and MAC address, or port, of every live session."""
    return {(row[0], row[1]) for row in tx.all(_STATIONS)}


def prune(tx: Tx, before: datetime) -> int:
    """Forget sessions and changes that ended before; answers how many sessions."""
    tx.execute(_PRUNE_CHANGES, {"before": before})
    return tx.execute(_PRUNE, {"before": before}).rowcount


def order_change(tx: Tx, session_id: str, want: str, why: str) -> tuple[Change, bool]:
    """(the change that waits now, whether it is asked for just now).

    One that waits already is replaced by another, because only the newest decision counts.
    """
    row = tx.one(_WAITING_FOR, {"session": session_id})
    if row is not None:
        waiting = _read_change(row)
        if (waiting.want, waiting.why) == (want, why):
            return waiting, False
        renewed = replace(waiting, want=want, why=why, attempts=0, due_at=tx.now)
        save_change(tx, renewed)
        return renewed, True
    values = {"session_id": session_id, "want": want, "why": why, "state": WAITING, "attempts": 0, "result": ""}
    values |= {"created_at": tx.now, "due_at": tx.now, "updated_at": tx.now}
    number = tx.execute(_ADD_CHANGE, values).lastrowid or 0
    return Change(number, session_id, want, why, WAITING, 0, "", tx.now, tx.now, tx.now), True


def waiting_for(tx: Tx, session_id: str) -> Change | None:
    """The change that waits for a session."""
    row = tx.one(_WAITING_FOR, {"session": session_id})
    return None if row is None else _read_change(row)


def due(tx: Tx, count: int) -> list[Change]:
    """Changes whose time has come."""
    return [_read_change(row) for row in tx.all(_DUE, {"now": tx.now, "count": count})]


def standing(tx: Tx, change: Change) -> Change | None:
    """The change as it stands now; None if it is gone."""
    return next((one for one in changes_of(tx, change.session_id) if one.id == change.id), None)


def still_due(tx: Tx, change: Change) -> Change | None:
    """The change as it stands now; None once it is settled or put off."""
    found = standing(tx, change)
    return found if found is not None and found.state == WAITING and found.due_at <= tx.now else None


def next_due(tx: Tx) -> datetime | None:
    """When the next waiting change is due."""
    found: datetime | None = tx.scalar(_NEXT_DUE)
    return found


def changes_of(tx: Tx, session_id: str) -> list[Change]:
    """Everything asked for a session, oldest first."""
    return [_read_change(row) for row in tx.all(_CHANGES_OF, {"session": session_id})]


def save_change(tx: Tx, change: Change) -> None:
    """Write a change that is there."""
    tx.execute(
        _SAVE_CHANGE,
        {
            "key": change.id,
            "new_want": change.want,
            "new_why": change.why,
            "new_state": change.state,
            "new_attempts": change.attempts,
            "new_result": change.result,
            "new_due": change.due_at,
            "at": tx.now,
        },
    )


def _read(row: Any) -> Session:
    return Session(*row)


def _read_change(row: Any) -> Change:
    return Change(*row)
