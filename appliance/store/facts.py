"""The rows that access decisions rest on, of one moment: live certificates, owners, agents, the newest policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, or_, select

from appliance.store import directory_sources, nas, policies
from appliance.store.schema import agents, certificates, owners
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
_ALIVE = select(owners.c.id).limit(1)


@dataclass(frozen=True, slots=True)
class FactRows:
    """What facts() found; rows are mappings by column name."""

    certificates: Iterable[Mapping[str, Any]]
    owners: Iterable[Mapping[str, Any]]
    agents: Iterable[Mapping[str, Any]]
    policy: policies.PolicyRow | None
    confirmed: Mapping[str, datetime]
    """When each source of owners was last read whole."""
    sites: Mapping[str, str]
    """Of each NAS that has one, by its name."""


def read(tx: Tx) -> FactRows:
    """Everything that decisions need, of one moment."""
    return FactRows(
        [
            row._mapping
            for row in tx.all(_CERTIFICATES, {"now": tx.now, "agents": AGENTS, "devices": DEVICES, "ldevid": LDEVID})
        ],
        [row._mapping for row in tx.all(_OWNERS)],
        [row._mapping for row in tx.all(_AGENTS)],
        policies.newest(tx),
        directory_sources.confirmed(tx),
        nas.sites(tx),
    )


def touch(tx: Tx) -> None:
    """Read one row, to learn that the store still answers."""
    tx.one(_ALIVE)
