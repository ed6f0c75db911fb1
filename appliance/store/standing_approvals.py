"""Standing approvals: how often each was used, and whether it was withdrawn.

A row is known by the hash of the approval's compact form. Uses are counted by one conditional statement inside the
transaction that the use is for, so that however many renewals come at once, in however many processes, no use is
counted beyond the bound (A-107). Rows stay: whoever looks later finds what stood behind a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, insert, or_, select, update

from appliance.store.schema import standing_approvals as table
from appliance.store.statements import plain
from appliance.store.transaction import Tx

LIVE, WITHDRAWN = "live", "withdrawn"

_c = table.c
_ADD = insert(table)
_GET = select(table).where(_c.s256 == bindparam("s256"))
_BY_JTI = select(table).where(_c.owner_id == bindparam("owner"), _c.jti == bindparam("jti"))
_OF_OWNER = select(table).where(_c.owner_id == bindparam("owner")).order_by(_c.created_at, _c.s256)
_OF_AGENT = select(table).where(_c.agent_id == bindparam("agent")).order_by(_c.created_at, _c.s256)
_USE = plain(
    update(table)
    .where(
        _c.s256 == bindparam("key"),
        _c.state == bindparam("is"),
        _c.expires_at > bindparam("at"),
        or_(_c.max_uses.is_(None), _c.uses < _c.max_uses),
    )
    .values(uses=_c.uses + bindparam("more"), used_at=bindparam("at")),
    "more", "at", "key", "is", "at",
)  # fmt: skip
_WITHDRAW = (
    update(table)
    .where(_c.s256 == bindparam("key"), _c.state == LIVE)
    .values(state=WITHDRAWN, withdrawn_at=bindparam("at"))
)
_LIVE_OF = select(table).where(_c.owner_id == bindparam("owner"), _c.state == LIVE).order_by(_c.created_at, _c.s256)
_LIVE_FOR = select(table).where(_c.agent_id == bindparam("agent"), _c.state == LIVE).order_by(_c.created_at, _c.s256)


@dataclass(frozen=True, slots=True)
class StandingRow:
    """One standing approval; `state` is live or withdrawn, `token` its compact form, `kid` the key that signed it."""

    s256: str
    owner_id: str
    agent_id: str
    jti: str
    kid: str
    token: str
    state: str
    uses: int
    max_uses: int | None
    expires_at: datetime
    created_at: datetime
    used_at: datetime | None = None
    withdrawn_at: datetime | None = None


def add(tx: Tx, row: StandingRow) -> None:
    """Insert; Conflict if it is known, or its owner has used the jti for another one."""
    tx.execute(
        _ADD,
        {
            "s256": row.s256,
            "owner_id": row.owner_id,
            "agent_id": row.agent_id,
            "jti": row.jti,
            "kid": row.kid,
            "token": row.token,
            "state": row.state,
            "uses": row.uses,
            "max_uses": row.max_uses,
            "expires_at": row.expires_at,
            "created_at": row.created_at,
            "used_at": row.used_at,
            "withdrawn_at": row.withdrawn_at,
        },
    )


def get(tx: Tx, s256: str) -> StandingRow | None:
    """The standing approval with this hash."""
    row = tx.one(_GET, {"s256": s256})
    return None if row is None else StandingRow(*row)


def by_jti(tx: Tx, owner_id: str, jti: str) -> StandingRow | None:
    """The standing approval that an owner gave this jti."""
    row = tx.one(_BY_JTI, {"owner": owner_id, "jti": jti})
    return None if row is None else StandingRow(*row)


def of_owner(tx: Tx, owner_id: str) -> list[StandingRow]:
    """An owner's standing approvals, oldest first."""
    return [StandingRow(*row) for row in tx.all(_OF_OWNER, {"owner": owner_id})]


def of_agent(tx: Tx, agent_id: str) -> list[StandingRow]:
    """An agent's standing approvals, oldest first."""
    return [StandingRow(*row) for row in tx.all(_OF_AGENT, {"agent": agent_id})]


def live_of_owner(tx: Tx, owner_id: str) -> list[StandingRow]:
    """Those of an owner that nobody has withdrawn; some may be over."""
    return [StandingRow(*row) for row in tx.all(_LIVE_OF, {"owner": owner_id})]


def live_for_agent(tx: Tx, agent_id: str) -> list[StandingRow]:
    """Those for an agent that nobody has withdrawn; some may be over."""
    return [StandingRow(*row) for row in tx.all(_LIVE_FOR, {"agent": agent_id})]


def use(tx: Tx, s256: str) -> bool:
    """Count one use; False if it is unknown, withdrawn, over, or used as often as it may be."""
    return tx.change(_USE, (1, tx.micros, s256, LIVE, tx.micros)) == 1


def withdraw(tx: Tx, s256: str) -> bool:
    """Withdraw for good; False if it is unknown or withdrawn already."""
    return tx.execute(_WITHDRAW, {"key": s256, "at": tx.now}).rowcount == 1
