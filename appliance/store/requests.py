"""Agent requests whose decision was yes: one row per request hash, from the moment its approval is spent.

A row is `pending` until its credential is finished, then `issued` with the answer that the agent gets, as often as it
asks. After a crash a pending one is finished when the proxy hands it in again, with fresh evidence. `agent_id`,
`owner_id` and `proxy_id` are identifiers.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, select, update

from appliance.errors import Conflict
from appliance.store.columns import to_micros
from appliance.store.schema import requests as table
from appliance.store.statements import plain
from appliance.store.transaction import Tx
from est.json_text import encoder_of

PENDING, ISSUED = "pending", "issued"

_c = table.c
_encode = encoder_of()
_ADD = plain(
    insert(table), "rqh", "txn", "agent_id", "owner_id", "proxy_id", "state", "result", "request", "approval",
    "evidence", "ear", "created_at", "updated_at",
)  # fmt: skip
_GET = select(table).where(_c.rqh == bindparam("rqh"))
_TAKE = (
    update(table)
    .where(_c.rqh == bindparam("key"), _c.state == PENDING, _c.updated_at == bindparam("was"))
    .values(evidence=bindparam("new_evidence"), ear=bindparam("new_ear"), updated_at=bindparam("at"))
)
_END = plain(
    update(table)
    .where(_c.rqh == bindparam("key"), _c.state == bindparam("was"))
    .values(state=bindparam("is"), result=bindparam("new_result"), updated_at=bindparam("at")),
    "is", "new_result", "at", "key", "was",
)  # fmt: skip
_ISSUED_TO = (
    select(table)
    .where(_c.agent_id == bindparam("agent"), _c.state == ISSUED)
    .order_by(_c.updated_at.desc(), _c.rqh)
    .limit(8)
)
_OF_AGENT = select(table).where(_c.agent_id == bindparam("agent")).order_by(_c.created_at, _c.rqh)


class Request(NamedTuple):
    """One request. `approval` holds the approvals' compact forms, separated by spaces; the first one counts."""

    rqh: str
    txn: str
    agent_id: str
    owner_id: str | None
    proxy_id: str
    state: str
    result: dict[str, Any] | None
    request: str
    approval: str
    evidence: str
    ear: str
    created_at: datetime
    updated_at: datetime


def add(tx: Tx, request: Request) -> None:
    """Insert; Conflict if the request hash is known."""
    tx.insert(
        _ADD,
        (
            request.rqh,
            request.txn,
            request.agent_id,
            request.owner_id,
            request.proxy_id,
            request.state,
            None if request.result is None else _encode(request.result),
            request.request,
            request.approval,
            request.evidence,
            request.ear,
            to_micros(request.created_at),
            to_micros(request.updated_at),
        ),
    )


def get(tx: Tx, rqh: str) -> Request | None:
    """The request with this hash."""
    row = tx.one(_GET, {"rqh": rqh})
    return None if row is None else Request(*row)


def take(tx: Tx, request: Request, *, evidence: str, ear: str) -> None:
    """Make an unfinished request one's own, with its new evidence; Conflict if it moved on meanwhile."""
    values = {"key": request.rqh, "was": request.updated_at, "at": tx.now, "new_evidence": evidence, "new_ear": ear}
    if tx.execute(_TAKE, values).rowcount != 1:
        raise Conflict("the request is being worked on, or finished")


def finish(tx: Tx, rqh: str, result: dict[str, Any]) -> None:
    """Give a pending request its result; Conflict if it has one."""
    if tx.change(_END, (ISSUED, _encode(result), tx.micros, rqh, PENDING)) != 1:
        raise Conflict("the request is finished already")


def issued_to(tx: Tx, agent_id: str) -> list[Request]:
    """The last few of an agent's requests that were answered with a credential, newest first."""
    return [Request(*row) for row in tx.all(_ISSUED_TO, {"agent": agent_id})]


def of_agent(tx: Tx, agent_id: str) -> list[Request]:
    """An agent's requests, oldest first."""
    return [Request(*row) for row in tx.all(_OF_AGENT, {"agent": agent_id})]
