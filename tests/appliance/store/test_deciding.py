"""What a decision rests on: each fact alone makes its own field, and what is missing makes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.store import Store, Tx, agents, certificates, deciding, nonces, owners, requests
from appliance.store.agents import Agent
from appliance.store.deciding import ApproverRow, RequestRow
from appliance.store.nonces import Nonce
from tests.stores import open_store
from tests.support import NOW, FixedClock

SUB, OTHER, PROXY, OWNER = "spiffe://c.example/agent/1", "spiffe://c.example/agent/2", "proxy", "owner"
JKT, SPKI = "the-agents-key", b"s" * 32
NOTHING = RequestRow(None, None, False, False, False, False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'a.db'}", FixedClock())
    yield opened
    opened.close()


def ask(store: Store) -> RequestRow:
    return store.read_sync(
        lambda tx: deciding.request(tx, rqh="rqh", nonce="nonce", sub=SUB, jkt=JKT, spki_sha256=SPKI)
    )


def agent(identifier: str, state: str, jkt: str = JKT) -> Agent:
    owner = None if state == agents.RESERVED else OWNER
    return Agent(identifier, identifier, owner, PROXY, jkt, "", state, NOW, NOW)


def certificate(
    role: str = "agents", agent_id: str | None = None, hours: float = 1, spki: bytes = SPKI
) -> Callable[[Tx], Any]:
    row = {"profile": "x", "agent_id": agent_id}
    ends = NOW + timedelta(hours=hours)
    pending = certificates.Pending(role, b"\xaa" * 20, 1, b"t" * 32, spki, NOW - timedelta(days=1), ends, row)
    return lambda tx: certificates.add(tx, pending)


def owner_key(jkt: str = JKT, **changed: Any) -> Callable[[Tx], Any]:
    values = {"jkt": jkt, "owner_id": OWNER, "spki": b"spki", "protection": "tpm", "state": "active"}
    values |= {"not_before": NOW, "not_after": None, "statement_sha256": "00", "created_at": NOW}
    return lambda tx: owners.add_key(tx, owners.Key(**(values | changed)))


def owner(state: str = "active") -> Callable[[Tx], Any]:
    row = owners.Owner("1", OWNER, "alice", "Alice", "person", "R&D", state, NOW, NOW)
    return lambda tx: owners.add(tx, row)


def test_of_an_unknown_request_nothing_is_known(store: Store) -> None:
    assert ask(store) == NOTHING


def test_nonce_and_agent_come_as_their_own_repositories_read_them(store: Store) -> None:
    nonce = Nonce("nonce", JKT, "issue", SUB, PROXY, NOW + timedelta(hours=1), NOW)
    mine = agent(SUB, agents.REGISTERED)

    def write(tx: Tx) -> None:
        nonces.add(tx, nonce)
        nonces.add(tx, Nonce("another", JKT, "issue", OTHER, PROXY, NOW))
        agents.add(tx, mine)

    store.write_sync(write)
    assert ask(store) == RequestRow(nonce, mine, False, False, False, False)


def test_a_request_that_was_decided_before_is_known(store: Store) -> None:
    row = requests.Request("rqh", "t", SUB, OWNER, PROXY, requests.PENDING, None, "r", "a", "e", "x", NOW, NOW)
    store.write_sync(lambda tx: requests.add(tx, row))
    assert ask(store).is_known


@pytest.mark.parametrize(
    ("fact", "field"),
    [
        (owner_key(), "is_owners"),
        (owner_key(state="revoked"), "is_owners"),
        (certificate("devices"), "is_certified"),
        (certificate("devices", hours=-1), "is_certified"),
        (certificate(agent_id=OTHER), "is_agents"),
        (certificate(), "is_agents"),
        (lambda tx: agents.add(tx, agent(OTHER, agents.REGISTERED)), "is_agents"),
        (lambda tx: agents.add(tx, agent(OTHER, agents.REVOKED)), "is_agents"),
    ],
)
def test_each_way_of_having_the_key_is_told(store: Store, fact: Callable[[Tx], Any], field: str) -> None:
    store.write_sync(fact)
    found = ask(store)
    assert {name for name in ("is_owners", "is_certified", "is_agents") if getattr(found, name)} == {field}


@pytest.mark.parametrize(
    "fact",
    [
        certificate(agent_id=SUB),
        certificate(agent_id=OTHER, hours=-1),
        certificate(agent_id=OTHER, spki=b"x" * 32),
        owner_key("another"),
        lambda tx: agents.add(tx, agent(OTHER, agents.RESERVED)),
        lambda tx: agents.add(tx, agent(OTHER, agents.REGISTERED, "another")),
    ],
)
def test_what_is_ones_own_over_or_only_reserved_does_not_count(store: Store, fact: Callable[[Tx], Any]) -> None:
    store.write_sync(fact)
    assert ask(store) == NOTHING


def test_a_revoked_certificate_of_another_agent_does_not_count(store: Store) -> None:
    store.write_sync(certificate(agent_id=OTHER))
    store.write_sync(lambda tx: certificates.revoke(tx, b"\xaa" * 20, 1, "unspecified"))
    assert ask(store) == NOTHING


def approver(store: Store) -> tuple[ApproverRow | None, bool]:
    return store.read_sync(lambda tx: deciding.approver(tx, "kid"))


def test_a_key_that_nobody_has_approves_nothing(store: Store) -> None:
    assert approver(store) == (None, False)
    store.write_sync(owner_key("kid"))  # an owner who is not there
    assert approver(store) == (None, False)


def test_an_approver_is_the_owner_with_this_key_alone(store: Store) -> None:
    for fact in (owner("suspended"), owner_key("other"), owner_key("kid", state="retired", not_after=NOW)):
        store.write_sync(fact)
    found, is_agent = approver(store)
    assert found == ApproverRow(OWNER, "suspended", "person", b"spki", "retired", "tpm", NOW, NOW, None, None, None)
    assert not is_agent


def test_an_approver_comes_with_the_proxies_that_may_submit(store: Store) -> None:
    for fact in (owner(), owner_key("kid")):
        store.write_sync(fact)
    for name in ("spiffe://c.example/proxy/1", "spiffe://c.example/proxy/2"):
        store.write_sync(lambda tx, name=name: owners.allow_proxy(tx, OWNER, name))
    found, _ = approver(store)
    assert found is not None
    assert found.proxies == {"spiffe://c.example/proxy/1", "spiffe://c.example/proxy/2"}


@pytest.mark.parametrize(("state", "is_agent"), [(agents.RESERVED, False), (agents.REGISTERED, True)])
def test_an_approver_that_is_an_agent_is_told_unless_only_reserved(store: Store, state: str, is_agent: bool) -> None:
    store.write_sync(lambda tx: agents.add(tx, agent(OTHER, state, "kid")))
    assert approver(store) == (None, is_agent)
