"""The rows that access decisions rest on, of one moment: live certificates, owners, agents, proxies, policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, bindparam, or_, select

from appliance.store import directory_sources, nas, policies
from appliance.store.schema import agents, certificates, owners, proxies
from appliance.store.transaction import Tx

AGENTS = "agents"
DEVICES = "devices"
LDEVID = "ldevid"
"""Ports are decided for agents' certificates, and for the LDevIDs of proxies where the policy says so; others fail in
TLS."""
_CERTIFICATES = select(
    certificates.c.issuer_role,
    certificates.c.issuer_aki,
    certificates.c.serial,
    certificates.c.profile,
    certificates.c.subject_id,
    certificates.c.owner_id,
    certificates.c.state,
    certificates.c.not_before,
    certificates.c.not_after,
    certificates.c.model,
    certificates.c.txn,
    certificates.c.tier,
).where(
    certificates.c.not_after > bindparam("now"),
    or_(
        certificates.c.issuer_role == bindparam("agents"),
        and_(certificates.c.issuer_role == bindparam("devices"), certificates.c.profile == bindparam("ldevid")),
    ),
)
_OWNERS = select(
    owners.c.id,
    owners.c.identifier,
    owners.c.state,
    owners.c.kind,
    owners.c.department,
    owners.c.more_departments,
    owners.c.source,
)
_AGENTS = select(agents.c.identifier, agents.c.state, agents.c["class"].label("agent_class"))
_PROXIES = select(proxies.c.identifier, proxies.c.state)
_AT_ONCE = 500
_ALIVE = select(owners.c.id).limit(1)


@dataclass(frozen=True, slots=True)
class FactRows:
    """What facts() found; rows are mappings by column name."""

    certificates: list[Mapping[str, Any]]
    owners: list[Mapping[str, Any]]
    agents: list[Mapping[str, Any]]
    """Agents, and the proxies, whose identifiers are never an agent's."""
    policy: policies.PolicyRow | None
    confirmed: Mapping[str, datetime]
    """When each source of owners was last read whole."""
    sites: Mapping[str, str]
    """Of each NAS that has one, by its name."""


def read(tx: Tx) -> FactRows:
    """Everything that decisions need, of one moment."""
    return FactRows(
        _every(tx, _CERTIFICATES, {"now": tx.now, "agents": AGENTS, "devices": DEVICES, "ldevid": LDEVID}),
        _every(tx, _OWNERS, {}),
        _every(tx, _AGENTS, {}) + _every(tx, _PROXIES, {}),
        policies.newest(tx),
        directory_sources.confirmed(tx),
        nas.sites(tx),
    )


def _every(tx: Tx, statement: Select[Any], values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All rows, a few at a time: a hundred thousand at once would hold up every other thread while they are freed."""
    found: list[Mapping[str, Any]] = []
    for some in tx.some(statement, values, count=_AT_ONCE):
        found.extend(row._mapping for row in some)
    return found


def touch(tx: Tx) -> None:
    """Read one row, to learn that the store still answers."""
    tx.one(_ALIVE)
