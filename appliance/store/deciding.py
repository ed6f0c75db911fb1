"""What a decision about an agent's request rests on: one statement for the request, one for each of its approvers.

Each has exactly one row, whatever is missing. A statement costs more than what it looks up, so a dozen lookups in two
statements are an eighth of a decision cheaper than a dozen statements.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, exists, func, literal_column, or_, select

from appliance.store import agents as agent_rows
from appliance.store import certificates as certificate_rows
from appliance.store.agents import Agent
from appliance.store.columns import from_micros
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
from appliance.store.statements import plain
from appliance.store.transaction import Tx

_one = select(literal_column("1").label("one")).subquery()
_c = certificates.c
_others = agents.alias("others")
_NONCE, _AGENT = tuple(nonces.c), tuple(agents.c)
_AGENT_AT, _FLAGS_AT = len(_NONCE), len(_NONCE) + len(_AGENT)

_request = select(
    *(one.label(f"nonce_{one.name}") for one in _NONCE),
    *(one.label(f"agent_{one.name}") for one in _AGENT),
    exists().where(requests.c.rqh == bindparam("rqh")).label("is_known"),
    or_(
        exists().where(owner_keys.c.jkt == bindparam("jkt")),
        exists().where(owner_clients.c.jkt == bindparam("jkt")),
        exists().where(owner_gateways.c.jkt == bindparam("jkt")),
    ).label("is_owners"),
    exists().where(_c.spki_sha256 == bindparam("spki"), _c.issuer_role != bindparam("agents")).label("is_certified"),
    or_(
        exists().where(
            _c.spki_sha256 == bindparam("spki"),
            _c.issuer_role == bindparam("agents"),
            _c.agent_id.is_distinct_from(bindparam("sub")),
            _c.state != bindparam("revoked"),
            _c.not_after > bindparam("at"),
        ),
        exists().where(
            _others.c.jkt == bindparam("jkt"),
            _others.c.identifier != bindparam("sub"),
            _others.c.state != bindparam("reserved"),
        ),
    ).label("is_agents"),
).select_from(
    _one.outerjoin(nonces, nonces.c.nonce == bindparam("nonce")).outerjoin(
        agents, agents.c.identifier == bindparam("sub")
    )
)
_REQUEST = plain(
    _request,
    "rqh", "jkt", "jkt", "jkt", "spki", "agents", "spki", "agents", "sub", "revoked", "at", "jkt", "sub", "reserved",
    "nonce", "sub",
)  # fmt: skip
_approver = select(
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
    select(func.group_concat(owner_proxies.c.proxy_id, bindparam("space")))
    .where(owner_proxies.c.owner_id == owner_keys.c.owner_id)
    .scalar_subquery()
    .label("proxies"),
    exists().where(_others.c.jkt == bindparam("kid"), _others.c.state != bindparam("reserved")).label("is_agent"),
).select_from(
    _one.outerjoin(owner_keys, owner_keys.c.jkt == bindparam("kid")).outerjoin(
        owners, owners.c.identifier == owner_keys.c.owner_id
    )
)
_APPROVER = plain(_approver, "space", "kid", "reserved", "kid")


class RequestRow(NamedTuple):
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


class ApproverRow(NamedTuple):
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
    agents, revoked, reserved = "agents", certificate_rows.REVOKED, agent_rows.RESERVED
    values = (
        rqh, jkt, jkt, jkt, spki_sha256, agents, spki_sha256, agents, sub, revoked, tx.micros, jkt, sub, reserved,
        nonce, sub,
    )  # fmt: skip
    row = tx.row(_REQUEST, values)
    if row is None:
        raise LookupError("an outer join from one row has one row")
    found, agent = row[:_AGENT_AT], row[_AGENT_AT:_FLAGS_AT]
    is_known, is_owners, is_certified, is_agents = row[_FLAGS_AT:]
    return RequestRow(
        None if found[0] is None else _nonce(*found),
        None if agent[0] is None else _agent(*agent),
        bool(is_known),
        bool(is_owners),
        bool(is_certified),
        bool(is_agents),
    )


def _nonce(
    nonce: str, jkt: str, purpose: str, agent_id: str, proxy_id: str, expires_at: int, spent_at: int | None
) -> Nonce:
    spent = None if spent_at is None else from_micros(spent_at)
    return Nonce(nonce, jkt, purpose, agent_id, proxy_id, from_micros(expires_at), spent)


def _agent(
    id: str,
    identifier: str,
    owner_id: str | None,
    proxy_id: str,
    jkt: str,
    agent_class: str | None,
    state: str,
    created_at: int,
    updated_at: int,
) -> Agent:
    made, changed = from_micros(created_at), from_micros(updated_at)
    return Agent(id, identifier, owner_id, proxy_id, jkt, agent_class or "", state, made, changed)


def approver(tx: Tx, kid: str) -> tuple[ApproverRow | None, bool]:
    """The owner who has this key (None: nobody), and whether it is some agent's."""
    row = tx.row(_APPROVER, (" ", kid, agent_rows.RESERVED, kid))
    if row is None:
        raise LookupError("an outer join from one row has one row")
    owner_id, state, kind, spki, key_state, protection, not_before, not_after, rp_id, origin, proxies, is_agent = row
    if owner_id is None:
        return None, bool(is_agent)
    found = ApproverRow(
        owner_id,
        state,
        kind,
        spki,
        key_state,
        protection,
        None if not_before is None else from_micros(not_before),
        None if not_after is None else from_micros(not_after),
        rp_id,
        origin,
        None if proxies is None else frozenset(proxies.split(" ")),
    )
    return found, bool(is_agent)
