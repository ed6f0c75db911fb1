"""Snapshot: everything a decision reads, in memory and immutable (design decision D-7).

Outbox events replace it; nobody changes it. Its age is the time since the store last said that it is whole, so a store
that stopped talking makes it stale and the site's written rule applies. Lookups are by (issuer key, serial number).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from appliance.access.packed import Credentials, Key
from appliance.access.spread import Spread
from appliance.store import directory_sources, nas, policies, proxies
from appliance.store.columns import from_micros
from appliance.store.facts import AGENTS, DEVICES, LDEVID, FactRows
from appliance.store.owners import LOCAL
from appliance.store.transaction import OutboxRow
from radius import Credential, OwnerFact, Policy, load_policy

AT_ONCE = 256


class AgentFact(NamedTuple):
    """What the store says about an agent or a proxy: its state, and the class that an administrator gave an agent."""

    state: str = "unknown"
    agent_class: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`owners` and `agents` by identifier, `checked_at` monotonic seconds."""

    credentials: Credentials = field(default_factory=Credentials)
    """By issuer key identifier, hex, and serial number."""
    owners: Spread[str, OwnerFact] = field(default_factory=Spread)
    agents: Spread[str, AgentFact] = field(default_factory=Spread)
    policy: Policy | None = None
    sites: Mapping[str, str] = field(default_factory=dict)
    """Of each NAS that has one, by its name."""
    checked_at: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each owner comes from, by identifier."""
    confirmed: Mapping[str, datetime] = field(default_factory=dict)
    """When each source was last read whole."""
    generation: int = 1
    """Another number after each change."""

    def credential(self, aki: str, serial: int) -> Credential | None:
        return self.credentials.find(aki, serial)


def credential_of(row: Mapping[str, Any]) -> tuple[Key, Credential]:
    """A certificate row or a `certificate` event's body as what decide() wants."""
    kind = row["profile"]
    if kind == "agent":
        kind = "dual" if row.get("owner_id") else "single"
    credential = Credential(
        kind=kind,
        agent_id=row.get("subject_id") or row.get("agent_id") or "",
        owner_id=row.get("owner_id"),
        serial=int(row["serial"], 16),
        issuer_role=row.get("issuer_role") or "",
        state=row["state"],
        not_before=_time(row["not_before"]),
        not_after=_time(row["not_after"]),
        model=row.get("model") or "",
        txn=row.get("txn") or "",
        tier=row.get("tier") or "",
    )
    return (row["issuer_aki"], credential.serial), credential


def agent_of(row: Mapping[str, Any]) -> AgentFact:
    """An agent row or an `agent` event's body as what decide() wants."""
    return AgentFact(row["state"], row.get("agent_class") or row.get("class") or "")


def owner_of(row: Mapping[str, Any]) -> OwnerFact:
    """An owner row or an `owner` event's body as what decide() wants."""
    department = row.get("department") or ""
    departments = (department, *(row.get("more_departments") or ())) if department else ()
    return OwnerFact(row["identifier"], row["state"], departments, row["kind"])


def gathered(rows: FactRows, checked_at: float) -> Snapshot:
    """The snapshot of what the store said. It uses the rows up, a few at a time: whoever else runs gets its turn."""
    policy = rows.policy
    credentials = Credentials()
    owners: Spread[str, OwnerFact] = Spread()
    agents: Spread[str, AgentFact] = Spread()
    sources: dict[str, str] = {}
    for row in rows.certificates:
        credentials.put(*credential_of(row))
    for row in _used_up(rows.owners):
        owners.put(row["identifier"], owner_of(row))
        sources[row["identifier"]] = row["source"]
    for row in _used_up(rows.agents):
        agents.put(row["identifier"], agent_of(row))
    return Snapshot(
        credentials=credentials,
        owners=owners,
        agents=agents,
        policy=None if policy is None else load_policy(policy.text, revision=policy.revision),
        checked_at=checked_at,
        sources=sources,
        confirmed=rows.confirmed,
        sites=rows.sites,
    )


def _used_up(rows: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    while rows:
        yield from rows[-AT_ONCE:]
        del rows[-AT_ONCE:]


def let_go(snapshot: Snapshot) -> Iterator[None]:
    """Take a snapshot apart that nothing rests on any more, a few entries at a time."""
    yield from snapshot.owners.take_apart()
    yield from snapshot.agents.take_apart()


def _time(value: Any) -> datetime:
    return value if isinstance(value, datetime) else from_micros(int(value))


def with_events(snapshot: Snapshot, events: Iterable[OutboxRow]) -> Snapshot:
    """The snapshot after these events; the same object when none of them matters to decisions."""
    credentials: dict[Key, Credential] = {}
    owners: dict[str, OwnerFact] = {}
    agents: dict[str, AgentFact] = {}
    sites: dict[str, str] | None = None
    policy = snapshot.policy
    sources: dict[str, str] | None = None
    confirmed = snapshot.confirmed
    for event in events:
        if event.topic == "certificate":
            role, profile = event.body["issuer_role"], event.body["profile"]
            if role != AGENTS and (role, profile) != (DEVICES, LDEVID):
                continue
            key, credential = credential_of(event.body)
            credentials[key] = credential
        elif event.topic == "owner":
            owners[event.body["identifier"]] = owner_of(event.body)
            source = event.body.get("source", LOCAL)
            if snapshot.sources.get(event.body["identifier"]) != source:
                sources = dict(snapshot.sources) if sources is None else sources
                sources[event.body["identifier"]] = source
        elif event.topic == directory_sources.TOPIC:
            confirmed = {**confirmed, event.key: from_micros(event.body["confirmed_at"])}
        elif event.topic == "agent":
            agents[event.body["identifier"]] = agent_of(event.body)
        elif event.topic == proxies.TOPIC:
            agents[event.key] = agent_of(event.body)
        elif event.topic == nas.TOPIC:
            sites = dict(snapshot.sites) if sites is None else sites
            sites[event.key] = event.body.get("site") or ""
        elif event.topic == policies.TOPIC:
            policy = load_policy(event.body["text"], revision=event.body["revision"])
    if (
        not credentials
        and not owners
        and not agents
        and sites is None
        and policy is snapshot.policy
        and confirmed is snapshot.confirmed
    ):
        return snapshot
    return Snapshot(
        credentials=snapshot.credentials.with_changes(credentials) if credentials else snapshot.credentials,
        owners=snapshot.owners.with_changes(owners) if owners else snapshot.owners,
        agents=snapshot.agents.with_changes(agents) if agents else snapshot.agents,
        policy=policy,
        checked_at=snapshot.checked_at,
        sources=snapshot.sources if sources is None else sources,
        confirmed=confirmed,
        sites=snapshot.sites if sites is None else sites,
        generation=snapshot.generation + 1,
    )


def aged(snapshot: Snapshot, checked_at: float) -> Snapshot:
    """The same facts, known to be whole at `checked_at` (monotonic seconds)."""
    return replace(snapshot, checked_at=checked_at)
