"""The rows that access decisions rest on, of one moment: live certificates, owners, agents, proxies, policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

    certificates: Iterator[Mapping[str, Any]]
    """To be read to the end inside the transaction, before anything else is asked: too many for one moment."""
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
        _each(tx, _CERTIFICATES, {"now": tx.now, "agents": AGENTS, "devices": DEVICES, "ldevid": LDEVID}),
        _every(tx, _OWNERS, {}),
        _every(tx, _AGENTS, {}) + _every(tx, _PROXIES, {}),
        policies.newest(tx),
        directory_sources.confirmed(tx),
        nas.sites(tx),
    )


def _every(tx: Tx, statement: Select[Any], values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All rows, a few at a time: a hundred thousand at once would hold up every other thread while they are freed."""
    return list(_each(tx, statement, values))


def _each(tx: Tx, statement: Select[Any], values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for some in tx.some(statement, values, count=_AT_ONCE):
        for row in some:
            yield row._mapping


def touch(tx: Tx) -> None:
    """Read one row, to learn that the store still answers."""
    tx.one(_ALIVE)
