"""Requests that wait for approvers' answers: a row for each approver, with the challenge that was made for it.

A request has as many rows as approvers are asked, numbered by `seat`. Each is answered and spent by one conditional
statement, so that of any number of answers, in any number of processes, one counts. `owner_id` is the approver;
`owner_id`, `agent_id` and `proxy_id` are identifiers. The states are those of `appliance/identity/challenge_states.py`;
that a waiting one is over is said by `expires_at` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select, update

from appliance.store.schema import challenges as table
from appliance.store.transaction import Tx

WAITING, APPROVED, DENIED, SPENT, SUPERSEDED = "waiting", "approved", "denied", "spent", "superseded"
NOT_NEEDED = "not-needed"
TOPIC = "challenge"

_c = table.c
_ADD = insert(table)
_GET = select(table).where(_c.id == bindparam("id"))
_BY_RQH = select(table).where(_c.rqh == bindparam("rqh")).order_by(_c.seat)
_OPEN = (_c.owner_id == bindparam("owner"), _c.state == WAITING, _c.expires_at > bindparam("at"))
_WAITING = select(table).where(*_OPEN).order_by(_c.created_at, _c.id).limit(bindparam("count"))
_COUNT = select(func.count()).select_from(table).where(*_OPEN)
_LAST_DENIAL = select(func.max(_c.updated_at)).where(
    _c.agent_id == bindparam("agent"), _c.owner_id == bindparam("owner"), _c.state == DENIED
)
_ANSWER = (
    update(table)
    .where(_c.id == bindparam("key"), _c.state == WAITING, _c.expires_at > bindparam("at"))
    .values(state=bindparam("new_state"), answer=bindparam("new_answer"), updated_at=bindparam("at"))
)
_SPEND = (
    update(table).where(_c.id == bindparam("key"), _c.state == APPROVED).values(state=SPENT, updated_at=bindparam("at"))
)
_REPLACE = (
    update(table)
    .where(_c.id == bindparam("key"), _c.state == APPROVED, _c.challenge.is_(None))
    .values(id=bindparam("new_id"), answer=bindparam("new_answer"), updated_at=bindparam("at"))
)
_SUPERSEDE = (
    update(table)
    .where(_c.agent_id == bindparam("agent"), _c.state == WAITING)
    .values(state=SUPERSEDED, updated_at=bindparam("at"))
)
_CLOSE = (
    update(table)
    .where(_c.rqh == bindparam("key"), _c.state == WAITING, _c.expires_at > bindparam("at"))
    .values(state=NOT_NEEDED, updated_at=bindparam("at"))
)
_FORGET = delete(table).where(_c.expires_at < bindparam("before"))


@dataclass(frozen=True, slots=True)
class Challenge:
    """One approver about one parked request: the agent's signed bytes and CSR, the signed challenge, the signed answer.

    An approval that came with the request is an answer to no challenge, whose `nonce` is the request's own.
    """

    id: str
    rqh: str
    seat: int
    txn: str
    owner_id: str
    agent_id: str
    proxy_id: str
    nonce: str
    state: str
    request: str
    csr: bytes | None
    challenge: str | None
    answer: str | None
    created_at: datetime
    expires_at: datetime
    updated_at: datetime


def add(tx: Tx, challenge: Challenge) -> None:
    """Insert and tell the outbox; Conflict if the seat is taken."""
    tx.execute(
        _ADD,
        {
            "id": challenge.id,
            "rqh": challenge.rqh,
            "seat": challenge.seat,
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


def by_rqh(tx: Tx, rqh: str) -> list[Challenge]:
    """The challenges that were made for a request, in the order of their seats."""
    return [Challenge(*row) for row in tx.all(_BY_RQH, {"rqh": rqh})]


def waiting(tx: Tx, owner_id: str, *, count: int) -> list[Challenge]:
    """What waits for an owner's answer, oldest first."""
    return [Challenge(*row) for row in tx.all(_WAITING, {"owner": owner_id, "at": tx.now, "count": count})]


def count_waiting(tx: Tx, owner_id: str) -> int:
    """How much waits for an owner's answer."""
    row = tx.one(_COUNT, {"owner": owner_id, "at": tx.now})
    return 0 if row is None else int(row[0])


def last_denial(tx: Tx, agent_id: str, owner_id: str) -> datetime | None:
    """When this owner last said no to this agent."""
    row = tx.one(_LAST_DENIAL, {"agent": agent_id, "owner": owner_id})
    return None if row is None else row[0]


def answer(tx: Tx, challenge_id: str, *, state: str, token: str) -> bool:
    """Keep the owner's answer; False if the challenge does not wait any more."""
    values = {"key": challenge_id, "at": tx.now, "new_state": state, "new_answer": token}
    return tx.execute(_ANSWER, values).rowcount == 1


def spend(tx: Tx, challenge_id: str) -> bool:
    """Spend an approved challenge; False if it is not approved, or spent already."""
    return tx.execute(_SPEND, {"key": challenge_id, "at": tx.now}).rowcount == 1


def replace_brought(tx: Tx, challenge_id: str, *, new_id: str, token: str) -> bool:
    """Put another approval in the place of one that came along; False if it was spent or replaced.

    The row's new name keeps whoever read the old approval from spending this one.
    """
    values = {"key": challenge_id, "at": tx.now, "new_id": new_id, "new_answer": token}
    return tx.execute(_REPLACE, values).rowcount == 1


def close(tx: Tx, rqh: str) -> None:
    """Ask nobody any more about a request that the others' answers have settled."""
    tx.execute(_CLOSE, {"key": rqh, "at": tx.now})


def supersede(tx: Tx, agent_id: str) -> None:
    """Withdraw what still waits for this agent, because it asks for something else now."""
    tx.execute(_SUPERSEDE, {"agent": agent_id, "at": tx.now})


def forget(tx: Tx, *, before: datetime) -> None:
    """Drop what expired before this time."""
    tx.execute(_FORGET, {"before": before})
