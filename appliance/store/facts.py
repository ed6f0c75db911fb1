"""The rows that access decisions rest on, of one moment: live certificates, owners, agents, the newest policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select

from appliance.store import directory_sources, policies
from appliance.store.schema import agents, certificates, owners
from appliance.store.transaction import Tx

AGENTS = "agents"
"""The one CA whose certificates a port can be decided for; others fail in TLS, and are many."""
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
).where(certificates.c.not_after > bindparam("now"), certificates.c.issuer_role == bindparam("role"))
_OWNERS = select(
    owners.c.id,
    owners.c.identifier,
    owners.c.state,
    owners.c.kind,
    owners.c.department,
    owners.c.more_departments,
    owners.c.source,
)
_AGENTS = select(agents.c.identifier, agents.c.state)
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


def read(tx: Tx) -> FactRows:
    """Everything that decisions need, of one moment."""
    return FactRows(
        [row._mapping for row in tx.all(_CERTIFICATES, {"now": tx.now, "role": AGENTS})],
        [row._mapping for row in tx.all(_OWNERS)],
        [row._mapping for row in tx.all(_AGENTS)],
        policies.newest(tx),
        directory_sources.confirmed(tx),
    )


def touch(tx: Tx) -> None:
    """Read one row, to learn that the store still answers."""
    tx.one(_ALIVE)
