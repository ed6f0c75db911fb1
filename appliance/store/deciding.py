"""What a decision about an agent's request rests on: one statement for the request, one for each of its approvers.

Each has exactly one row, whatever is missing. A statement costs more than what it looks up, so a dozen lookups in two
statements are an eighth of a decision cheaper than a dozen statements.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, exists, func, literal, or_, select

from appliance.store import agents as agent_rows
from appliance.store import certificates as certificate_rows
from appliance.store.agents import Agent
from appliance.store.nonces import Nonce
from appliance.store.schema import (
    agents,
    certificates,
    nonces,
    owner_clients,
    owner_gateways,
    owner_keys,
    owner_proxies,
    owners,
    requests,
)
from appliance.store.transaction import Tx

_one = select(literal(1).label("one")).subquery()
_c = certificates.c
_others = agents.alias("others")
_NONCE, _AGENT = tuple(nonces.c), tuple(agents.c)

_REQUEST = select(
    *(one.label(f"nonce_{one.name}") for one in _NONCE),
    *(one.label(f"agent_{one.name}") for one in _AGENT),
    exists().where(requests.c.rqh == bindparam("rqh")).label("is_known"),
    or_(
        exists().where(owner_keys.c.jkt == bindparam("jkt")),
        exists().where(owner_clients.c.jkt == bindparam("jkt")),
        exists().where(owner_gateways.c.jkt == bindparam("jkt")),
    ).label("is_owners"),
    exists().where(_c.spki_sha256 == bindparam("spki"), _c.issuer_role != "agents").label("is_certified"),
    or_(
        exists().where(
            _c.spki_sha256 == bindparam("spki"),
            _c.issuer_role == "agents",
            _c.agent_id.is_distinct_from(bindparam("sub")),
            _c.state != certificate_rows.REVOKED,
            _c.not_after > bindparam("at", type_=_c.not_after.type),
        ),
        exists().where(
            _others.c.jkt == bindparam("jkt"),
            _others.c.identifier != bindparam("sub"),
            _others.c.state != agent_rows.RESERVED,
        ),
    ).label("is_agents"),
).select_from(
    _one.outerjoin(nonces, nonces.c.nonce == bindparam("nonce")).outerjoin(
        agents, agents.c.identifier == bindparam("sub")
    )
)
_APPROVER = select(
    owners.c.identifier,
    owners.c.state,
    owners.c.kind,
    owner_keys.c.spki,
    owner_keys.c.state.label("key_state"),
    owner_keys.c.protection,
    owner_keys.c.not_before,
    owner_keys.c.not_after,
    owner_keys.c.rp_id,
    owner_keys.c.origin,
    select(func.group_concat(owner_proxies.c.proxy_id, " "))
    .where(owner_proxies.c.owner_id == owner_keys.c.owner_id)
    .scalar_subquery()
    .label("proxies"),
    exists().where(_others.c.jkt == bindparam("kid"), _others.c.state != agent_rows.RESERVED).label("is_agent"),
).select_from(
    _one.outerjoin(owner_keys, owner_keys.c.jkt == bindparam("kid")).outerjoin(
        owners, owners.c.identifier == owner_keys.c.owner_id
    )
)


@dataclass(frozen=True, slots=True)
class RequestRow:
    """Nonce and agent of a request (None: no such row), whether it was decided before, and who else has its key.

    Of agents, a reservation does not count: anybody can make one for anybody's key.
    """

    nonce: Nonce | None
    agent: Agent | None
    is_known: bool
    is_owners: bool
    is_certified: bool
    """The key is in a certificate of a device or server."""
    is_agents: bool
    """Another agent has the key, or a live certificate with it."""


@dataclass(frozen=True, slots=True)
class ApproverRow:
    """The owner who has a key, with this key alone; `proxies` None = no row of the matrix restricts the owner."""

    owner_id: str
    state: str
    kind: str
    spki: bytes
    key_state: str
    protection: str
    not_before: datetime | None
    not_after: datetime | None
    rp_id: str | None
    origin: str | None
    proxies: frozenset[str] | None


def request(tx: Tx, *, rqh: str, nonce: str, sub: str, jkt: str, spki_sha256: bytes) -> RequestRow:
    """What the store knows about a request and its key."""
    row = tx.one(_REQUEST, {"rqh": rqh, "nonce": nonce, "sub": sub, "jkt": jkt, "spki": spki_sha256, "at": tx.now})
    if row is None:
        raise LookupError("an outer join from one row has one row")
    at, end = len(_NONCE), len(_NONCE) + len(_AGENT)
    return RequestRow(
        None if row[0] is None else Nonce(*row[:at]),
        None if row[at] is None else _agent(*row[at:end]),
        *row[end:],
    )


def _agent(
    id: str, identifier: str, owner_id: str | None, proxy_id: str, jkt: str, agent_class: str | None, *rest: Any
) -> Agent:
    return Agent(id, identifier, owner_id, proxy_id, jkt, agent_class or "", *rest)


def approver(tx: Tx, kid: str) -> tuple[ApproverRow | None, bool]:
    """The owner who has this key (None: nobody), and whether it is some agent's."""
    row = tx.one(_APPROVER, {"kid": kid})
    if row is None:
        raise LookupError("an outer join from one row has one row")
    if row.identifier is None:
        return None, row.is_agent
    proxies = None if row.proxies is None else frozenset(row.proxies.split(" "))
    return ApproverRow(*row[:10], proxies), row.is_agent  # type: ignore[call-arg]
