"""Agents: an identifier is reserved with a nonce, registered by the first approval that is spent, and then for ever.

`owner_id` and `proxy_id` are identifiers (URIs). An agent's owner never changes, and an identifier that was registered
is never given to another principal (A-108); a reservation that nobody used may be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, literal_column, select, update

from appliance.errors import Conflict
from appliance.store.columns import to_micros
from appliance.store.schema import agents as table
from appliance.store.statements import plain
from appliance.store.transaction import Tx

RESERVED, REGISTERED, SUSPENDED, REVOKED = "reserved", "registered", "suspended", "revoked"
TOPIC = "agent"

_c = table.c
_ADD = insert(table)
_BY_IDENTIFIER = select(table).where(_c.identifier == bindparam("identifier"))
_BY_JKT = select(table).where(_c.jkt == bindparam("jkt")).order_by(_c.created_at, _c.id)
_OPEN = (
    select(table)
    .where(_c.jkt == bindparam("jkt"), _c.proxy_id == bindparam("proxy"), _c.state != REVOKED)
    .order_by(_c.created_at, _c.id)
)
_RESERVED = select(func.count()).select_from(table).where(_c.proxy_id == bindparam("proxy"), _c.state == RESERVED)
_TOUCH = update(table).where(_c.identifier == bindparam("key"), _c.state == RESERVED).values(updated_at=bindparam("at"))
_FORGET = delete(table).where(
    _c.proxy_id == bindparam("proxy"), _c.state == RESERVED, _c.updated_at < bindparam("before")
)
_class_now = func.coalesce(_c["class"], literal_column("''"))
_REGISTER = plain(
    update(table)
    .where(
        _c.identifier == bindparam("key"),
        _c.state == bindparam("was"),
        _c.proxy_id == bindparam("proxy"),
        _class_now == bindparam("class_was"),
    )
    .values(owner_id=bindparam("owner"), jkt=bindparam("new_jkt"), state=bindparam("is"), updated_at=bindparam("at")),
    "owner", "new_jkt", "is", "at", "key", "was", "proxy", "class_was",
)  # fmt: skip
_REVOKE = (
    update(table)
    .where(_c.identifier == bindparam("key"), _c.state != REVOKED)
    .values(state=REVOKED, updated_at=bindparam("at"))
)
_MOVE = (
    update(table)
    .where(_c.identifier == bindparam("key"), _c.state == bindparam("was"))
    .values(state=bindparam("new_state"), updated_at=bindparam("at"))
)
_CLASSIFY = (
    update(table)
    .where(_c.identifier == bindparam("key"), _c.state != REVOKED, _class_now == bindparam("was"))
    .values({"class": bindparam("new_class"), "updated_at": bindparam("at")})
)
_PAGE = select(table).where(_c.identifier > bindparam("after")).order_by(_c.identifier).limit(bindparam("count"))
_OF_OWNER = select(table).where(_c.owner_id == bindparam("owner")).order_by(_c.created_at, _c.id)
_OF_PROXY = (
    select(table)
    .where(_c.proxy_id == bindparam("proxy"), _c.state.in_((REGISTERED, SUSPENDED)))
    .order_by(_c.created_at, _c.id)
)


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent. `state` is reserved, registered, suspended or revoked; `jkt` the thumbprint of its newest key."""

    id: str
    identifier: str
    owner_id: str | None
    proxy_id: str
    jkt: str
    agent_class: str
    state: str
    created_at: datetime
    updated_at: datetime


def add(tx: Tx, agent: Agent) -> None:
    """Insert; whoever decides on access hears of registered ones only. Conflict if the identifier is taken."""
    tx.execute(_ADD, _values(agent))
    if agent.state != RESERVED:
        _emit(tx, agent)


def by_identifier(tx: Tx, identifier: str) -> Agent | None:
    """The agent with this identifier."""
    return _maybe(tx.one(_BY_IDENTIFIER, {"identifier": identifier}))


def by_jkt(tx: Tx, jkt: str) -> list[Agent]:
    """Agents whose newest key has this thumbprint, oldest first."""
    return [_read(row) for row in tx.all(_BY_JKT, {"jkt": jkt})]


def open_for(tx: Tx, proxy_id: str, jkt: str) -> Agent | None:
    """The reserved or registered agent with this key behind this proxy."""
    return _maybe(tx.one(_OPEN, {"proxy": proxy_id, "jkt": jkt}))


def reserved(tx: Tx, proxy_id: str) -> int:
    """How many identifiers a proxy has reserved and not used."""
    return int(tx.scalar(_RESERVED, {"proxy": proxy_id}))


def touch(tx: Tx, agent: Agent) -> None:
    """Keep a reservation from being forgotten."""
    tx.execute(_TOUCH, {"key": agent.identifier, "at": tx.now})


def forget(tx: Tx, proxy_id: str, *, before: datetime) -> int:
    """Drop a proxy's reservations that nobody used since `before`; returns how many."""
    return tx.execute(_FORGET, {"proxy": proxy_id, "before": before}).rowcount


def register(tx: Tx, agent: Agent, *, owner_id: str | None, jkt: str) -> Agent:
    """Fix the owner of a reserved agent, or the newest key of a registered one, and tell the outbox.

    Conflict if the agent changed meanwhile, or is another owner's.
    """
    if agent.state == REVOKED or (agent.state == REGISTERED and agent.owner_id != owner_id):
        raise Conflict("the agent is revoked or registered to another owner")
    # the class too: how many had to approve was asked of the one that `agent` shows
    values = (owner_id, jkt, REGISTERED, tx.micros, agent.identifier, agent.state, agent.proxy_id, agent.agent_class)
    if tx.change(_REGISTER, values) != 1:
        raise Conflict("the agent's record has changed meanwhile")
    registered = Agent(
        agent.id,
        agent.identifier,
        owner_id,
        agent.proxy_id,
        jkt,
        agent.agent_class,
        REGISTERED,
        agent.created_at,
        tx.now,
    )
    if agent.state != REGISTERED:
        _emit(tx, registered)
    return registered


def revoke(tx: Tx, agent: Agent) -> Agent:
    """Revoke for good and tell the outbox; Conflict if it is revoked already."""
    if tx.execute(_REVOKE, {"key": agent.identifier, "at": tx.now}).rowcount != 1:
        raise Conflict("the agent is revoked already")
    revoked = replace(agent, state=REVOKED, updated_at=tx.now)
    _emit(tx, revoked)
    return revoked


def move(tx: Tx, agent: Agent, state: str) -> Agent:
    """Move from the state that `agent` shows to another and tell the outbox; Conflict if it is not there any more."""
    values = {"key": agent.identifier, "was": agent.state, "new_state": state, "at": tx.now}
    if tx.execute(_MOVE, values).rowcount != 1:
        raise Conflict(f"the agent is not {agent.state} any more")
    moved = replace(agent, state=state, updated_at=tx.now)
    _emit(tx, moved)
    return moved


def classify(tx: Tx, agent: Agent, agent_class: str) -> Agent:
    """Give another class to an agent, or none, and tell the outbox as add() does; Conflict if it is revoked."""
    values = {"key": agent.identifier, "was": agent.agent_class, "new_class": agent_class, "at": tx.now}
    if agent.state == REVOKED or tx.execute(_CLASSIFY, values).rowcount != 1:
        raise Conflict("the agent is revoked, or its class has changed meanwhile")
    changed = replace(agent, agent_class=agent_class, updated_at=tx.now)
    if agent.state != RESERVED:
        _emit(tx, changed)
    return changed


def page(tx: Tx, *, after: str = "", count: int = 1000) -> list[Agent]:
    """Agents in the order of their identifiers, those behind `after`."""
    return [_read(row) for row in tx.all(_PAGE, {"after": after, "count": count})]


def of_owner(tx: Tx, owner_id: str) -> list[Agent]:
    """An owner's agents, oldest first."""
    return [_read(row) for row in tx.all(_OF_OWNER, {"owner": owner_id})]


def registered_behind(tx: Tx, proxy_id: str) -> list[Agent]:
    """The registered agents behind a proxy, also suspended ones, oldest first."""
    return [_read(row) for row in tx.all(_OF_PROXY, {"proxy": proxy_id})]


def _values(agent: Agent) -> dict[str, Any]:
    return {
        "id": agent.id,
        "identifier": agent.identifier,
        "owner_id": agent.owner_id,
        "proxy_id": agent.proxy_id,
        "jkt": agent.jkt,
        "class": agent.agent_class,
        "state": agent.state,
        "created_at": agent.created_at,
        "updated_at": agent.updated_at,
    }


def _emit(tx: Tx, agent: Agent) -> None:
    body = _values(agent) | {"created_at": to_micros(agent.created_at), "updated_at": to_micros(agent.updated_at)}
    tx.emit(TOPIC, agent.identifier, body)


def _maybe(row: Any) -> Agent | None:
    return None if row is None else _read(row)


def _read(row: Any) -> Agent:
    return Agent(
        row.id,
        row.identifier,
        row.owner_id,
        row.proxy_id,
        row.jkt,
        row.class_ or "",
        row.state,
        row.created_at,
        row.updated_at,
    )
