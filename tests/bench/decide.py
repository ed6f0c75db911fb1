"""d1: one access decision over HTTPS as FreeRADIUS' rlm_rest asks for it, with a whole campus in memory."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import shutil
import sys
import uuid
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from appliance.binding import dual_identity
from appliance.store import Tx, certificates, nas
from appliance.store.agents import REGISTERED, Agent
from appliance.store.agents import add as add_agent
from appliance.store.owners import ACTIVE, Owner
from appliance.store.owners import add as add_owner
from est.chains import ski_of
from radius.hook import AKI, EXTENSION_PREFIX, NAS_ADDRESS, NAS_NAME, SAN, SERIAL, TLS_VERSION
from tests.bench import wire
from tests.bench.campus import ORIGIN, Campus, start, stop
from tests.bench.measure import Bench, cpu_seconds, percentile
from tests.bench.plan import Plan

CONNECTIONS = 8
DEPARTMENTS = [f"Department {at}" for at in range(50)]
LIFE = timedelta(hours=8)
COMMON_NAME = f"{EXTENSION_PREFIX}Common-Name"
OWNER_ID = EXTENSION_PREFIX + dual_identity.oids()[1].dotted_string
OF_THE_SWITCH: dict[str, str | int] = {
    "NAS-IP-Address": "192.0.2.10",
    "NAS-Port": 17,
    "Service-Type": "Framed-User",
    "Called-Station-Id": "02-00-00-00-00-FF:campus",
    "NAS-Identifier": "lab-switch",
    NAS_NAME: "lab-switch",
    NAS_ADDRESS: "192.0.2.10",
    TLS_VERSION: "TLS 1.3",
}
POSTED = {*OF_THE_SWITCH, "User-Name", "NAS-Port-Id", "Calling-Station-Id", "Acct-Session-Id",
          SERIAL, COMMON_NAME, AKI, SAN, OWNER_ID}  # fmt: skip
"""The attributes of a login that reach the decision port; a test with a real FreeRADIUS finds the same."""


class Population:
    """Owners in fifty departments with their agents and credentials, written as issuance would have written them."""

    def __init__(self, agents: int, owners: int, token: str) -> None:
        self.token = token
        self.vlan_of: dict[int, int] = {}
        self.name_of: dict[int, str] = {}
        self.owner_of: dict[int, str] = {}
        self._agents = agents
        self._owners = owners

    def write(self, tx: Tx, aki: bytes) -> None:
        """Everything in one transaction."""
        nas.put_server(tx, str(uuid.uuid4()), "freeradius", hashlib.sha256(self.token.encode()).digest())
        names = []
        for at in range(self._owners):
            identifier = f"{ORIGIN}/owner/{uuid.uuid4()}"
            department = DEPARTMENTS[at % len(DEPARTMENTS)]
            add_owner(tx, Owner(str(uuid.uuid4()), identifier, f"owner-{at}", f"Owner {at}", "person", department,
                                ACTIVE, tx.now, tx.now))  # fmt: skip
            names.append(identifier)
        for at in range(self._agents):
            agent, serial = f"{ORIGIN}/agent/{uuid.uuid4()}", secrets.randbits(126) + 1
            owner = at % self._owners
            add_agent(tx, Agent(str(uuid.uuid4()), agent, names[owner], f"{ORIGIN}/proxy/p", secrets.token_urlsafe(32),
                                "", REGISTERED, tx.now, tx.now))  # fmt: skip
            columns = {"profile": "agent", "subject_id": agent, "agent_id": agent, "owner_id": names[owner],
                       "model": "agent-mediated", "txn": str(uuid.uuid4())}  # fmt: skip
            row = certificates.Pending(
                "agents", aki, serial, secrets.token_bytes(32), secrets.token_bytes(32), tx.now, tx.now + LIFE, columns
            )
            certificates.issue(tx, certificates.add(tx, row), b"\x30\x00", secrets.token_bytes(32))
            self.vlan_of[serial] = 100 + owner % len(DEPARTMENTS)
            self.name_of[serial] = agent
            self.owner_of[serial] = names[owner]

    def call(self, serial: int, aki: str) -> bytes:
        """What rlm_rest posts for a login with this certificate."""
        values = {
            "User-Name": self.name_of[serial],
            "NAS-Port-Id": "ge-0/0/17",
            "Calling-Station-Id": "-".join(["02", *(f"{octet:02X}" for octet in serial.to_bytes(16, "big")[-5:])]),
            "Acct-Session-Id": secrets.token_hex(8),
            SERIAL: f"{serial:032x}",
            COMMON_NAME: self.name_of[serial].rpartition("/")[2],
            AKI: ":".join(aki[at : at + 2] for at in range(0, len(aki), 2)).upper(),
            SAN: f"URI:{self.name_of[serial]}",
            OWNER_ID: "0x" + dual_identity.write_owner_id(self.owner_of[serial]).hex(),
        }
        values = {**OF_THE_SWITCH, **values}
        body = {name: {"type": "string", "value": [value]} for name, value in values.items()}
        return wire.request(
            "POST", "/v1/decide", json.dumps(body).encode(), "application/json", Authorization=f"Bearer {self.token}"
        )


def policy() -> str:
    """A VLAN for each department."""
    lines = ["version = 1", "[vlans]", *(f"v{at} = {100 + at}" for at in range(len(DEPARTMENTS))), "guest = 99"]
    lines += ["[defaults]", 'unmapped = "guest"', 'stale = "reject"', 'guest_vlan = "guest"']
    for at, department in enumerate(DEPARTMENTS):
        lines += ["[[rule]]", f'name = "r{at}"', f'department = "{department}"', f'vlan = "v{at}"']
    return "\n".join(lines) + "\n"


def run(plan: Plan, folder: Path) -> list[Bench]:
    """d1, if it is wanted."""
    if not plan.wants("d1"):
        return []
    population = Population(plan.agents, plan.owners, secrets.token_urlsafe(32))
    campus = Campus(
        folder / "d1",
        core=plan.server_core,
        program=plan.program,
        fill=lambda campus, tx: population.write(tx, ski_of(campus.ca("agents")) or b""),
    )
    aki = (ski_of(campus.ca("agents")) or b"").hex()
    reference, ready = start(
        [sys.executable, "-m", "tests.bench.references", "aiohttp"], plan.server_core, folder / "d1" / "reference.log"
    )
    try:
        campus.operation("policy.publish", text=policy())
        return [_decide(campus, plan, population, aki, ready)]
    finally:
        stop(reference)
        campus.stop()
        if not plan.keep:
            shutil.rmtree(folder / "d1")


def _decide(campus: Campus, plan: Plan, population: Population, aki: str, ready: dict[str, Any]) -> Bench:
    bench = Bench(
        "d1", f"access decision over HTTPS, {plan.agents} agents, {plan.owners} owners", "P", 3.0, at_least=False
    )
    plain = [wire.Connection(("127.0.0.1", ready["port"]), None) for _ in range(CONNECTIONS)]
    ours = [wire.Connection(campus.address("decision"), campus.anonymous) for _ in range(CONNECTIONS)]
    get, serials = wire.request("GET", "/"), list(population.vlan_of)
    each = max(1, 4 * plan.operations // CONNECTIONS)
    alone: list[float] = []
    asked = 0
    for at in range(plan.repetitions + 1):
        count = each if at else max(1, plan.warm_up // CONNECTIONS)
        before = cpu_seconds(ready["pid"])
        wire.exchange_all(plain, [[get] * count] * CONNECTIONS)
        reference = (cpu_seconds(ready["pid"]) - before) / (count * CONNECTIONS) * 1e6
        chosen = [random.choices(serials, k=count) for _ in ours]
        calls = [[population.call(serial, aki) for serial in mine] for mine in chosen]
        before = cpu_seconds(campus.pid)
        answers = wire.exchange_all(ours, calls)
        cpu = (cpu_seconds(campus.pid) - before) / (count * CONNECTIONS) * 1e6
        _check(population, [s for mine in chosen for s in mine], [a for mine in answers for a in mine])
        lonely = random.choices(serials, k=count)
        single = [ours[0].exchange(population.call(serial, aki)) for serial in lonely]
        _check(population, lonely, single)
        asked += count * CONNECTIONS + count
        if at:
            alone += [one.seconds for one in single]
            bench.add(cpu=cpu, reference=reference, operations=count * CONNECTIONS)
    for connection in (*plain, *ours):
        connection.close()
    logged = campus.operation("access.log", limit=1)  # writes out what is queued
    assert logged
    assert campus.rows("SELECT count(*) FROM decisions") == asked
    bench.notes["p50_ms"] = round(percentile(alone, 0.5) * 1000, 2)
    bench.notes["p99_ms"] = round(percentile(alone, 0.99) * 1000, 2)
    bench.notes["books"] = "checked"
    return bench


def _check(population: Population, serials: Sequence[int], answers: Sequence[wire.Answer]) -> None:
    """Every answer has the VLAN of its owner's department."""
    for serial, answer in zip(serials, answers, strict=True):
        assert answer.status == 200, answer
        found = json.loads(answer.body)["reply:Tunnel-Private-Group-Id"]["value"][0]
        assert found == str(population.vlan_of[serial]), (found, population.vlan_of[serial])
