"""Requests that wait for their owner's answer, each with the one challenge that was made for it.

A challenge is answered and spent by one conditional statement each, so that of any number of answers, in any number of
processes, one counts. `owner_id`, `agent_id` and `proxy_id` are identifiers. The states are those of
`appliance/identity/challenge_states.py`; that a waiting one is over is said by `expires_at` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select, update

from appliance.store.schema import challenges as table
from appliance.store.transaction import Tx

WAITING, APPROVED, DENIED, SPENT, SUPERSEDED = "waiting", "approved", "denied", "spent", "superseded"
TOPIC = "challenge"

_c = table.c
_ADD = insert(table)
_GET = select(table).where(_c.id == bindparam("id"))
_BY_RQH = select(table).where(_c.rqh == bindparam("rqh"))
_OPEN = (_c.owner_id == bindparam("owner"), _c.state == WAITING, _c.expires_at > bindparam("at"))
_WAITING = select(table).where(*_OPEN).order_by(_c.created_at, _c.id).limit(bindparam("count"))
_COUNT = select(func.count()).select_from(table).where(*_OPEN)
_LAST_DENIAL = select(func.max(_c.updated_at)).where(_c.agent_id == bindparam("agent"), _c.state == DENIED)
_ANSWER = (
    update(table)
    .where(_c.id == bindparam("key"), _c.state == WAITING, _c.expires_at > bindparam("at"))
    .values(state=bindparam("new_state"), answer=bindparam("new_answer"), updated_at=bindparam("at"))
)
_SPEND = (
    update(table)
    .where(_c.rqh == bindparam("key"), _c.state == APPROVED)
    .values(state=SPENT, updated_at=bindparam("at"))
)
_SUPERSEDE = (
    update(table)
    .where(_c.agent_id == bindparam("agent"), _c.state == WAITING)
    .values(state=SUPERSEDED, updated_at=bindparam("at"))
)
_FORGET = delete(table).where(_c.expires_at < bindparam("before"))


@dataclass(frozen=True, slots=True)
class Challenge:
    """One parked request: the agent's signed bytes and CSR, the signed challenge, and the owner's signed answer."""

    id: str
    rqh: str
    txn: str
    owner_id: str
    agent_id: str
    proxy_id: str
    nonce: str
    state: str
    request: str
    csr: bytes | None
    challenge: str
    answer: str | None
    created_at: datetime
    expires_at: datetime
    updated_at: datetime


def add(tx: Tx, challenge: Challenge) -> None:
    """Insert and tell the outbox; Conflict if the request has a challenge."""
    tx.execute(
        _ADD,
        {
            "id": challenge.id,
            "rqh": challenge.rqh,
            "txn": challenge.txn,
            "owner_id": challenge.owner_id,
            "agent_id": challenge.agent_id,
            "proxy_id": challenge.proxy_id,
            "nonce": challenge.nonce,
            "state": challenge.state,
            "request": challenge.request,
            "csr": challenge.csr,
            "challenge": challenge.challenge,
            "answer": challenge.answer,
            "created_at": challenge.created_at,
            "expires_at": challenge.expires_at,
            "updated_at": challenge.updated_at,
        },
    )
    tx.emit(TOPIC, challenge.id, {"owner_id": challenge.owner_id})


def get(tx: Tx, challenge_id: str) -> Challenge | None:
    """The challenge with this id."""
    row = tx.one(_GET, {"id": challenge_id})
    return None if row is None else Challenge(*row)


def by_rqh(tx: Tx, rqh: str) -> Challenge | None:
    """The challenge that was made for a request."""
    row = tx.one(_BY_RQH, {"rqh": rqh})
    return None if row is None else Challenge(*row)


def waiting(tx: Tx, owner_id: str, *, count: int) -> list[Challenge]:
    """What waits for an owner's answer, oldest first."""
    return [Challenge(*row) for row in tx.all(_WAITING, {"owner": owner_id, "at": tx.now, "count": count})]


def count_waiting(tx: Tx, owner_id: str) -> int:
    """How much waits for an owner's answer."""
    row = tx.one(_COUNT, {"owner": owner_id, "at": tx.now})
    return 0 if row is None else int(row[0])


def last_denial(tx: Tx, agent_id: str) -> datetime | None:
    """When an owner last said no to this agent."""
    row = tx.one(_LAST_DENIAL, {"agent": agent_id})
    return None if row is None else row[0]


def answer(tx: Tx, challenge_id: str, *, state: str, token: str) -> bool:
    """Keep the owner's answer; False if the challenge does not wait any more."""
    values = {"key": challenge_id, "at": tx.now, "new_state": state, "new_answer": token}
    return tx.execute(_ANSWER, values).rowcount == 1


def spend(tx: Tx, rqh: str) -> bool:
    """Spend an approved challenge; False if it is not approved, or spent already."""
    return tx.execute(_SPEND, {"key": rqh, "at": tx.now}).rowcount == 1


def supersede(tx: Tx, agent_id: str) -> None:
    """Withdraw what still waits for this agent, because it asks for something else now."""
    tx.execute(_SUPERSEDE, {"agent": agent_id, "at": tx.now})


def forget(tx: Tx, *, before: datetime) -> None:
    """Drop what expired before this time."""
    tx.execute(_FORGET, {"before": before})
