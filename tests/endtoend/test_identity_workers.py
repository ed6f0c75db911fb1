"""The identity server in several processes: one port, one database, one truth."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campus import UNLIMITED, Answer, Campus, Client, new_ask

WORKERS = (*UNLIMITED, "identity.workers=2", "web.identity_port=0")


@pytest.fixture
def campus(own_campus: Callable[[], Campus]) -> Campus:
    found = own_campus()
    found.start(*WORKERS)
    return found


def at_workers(campus: Campus) -> Client:
    return campus.client("identity", campus.state / "ldevid.pem", campus.state / "ldevid.key.pem")


def workers_of(campus: Campus) -> list[int]:
    """Process ids of the appliance's children that are workers."""
    assert campus.process is not None
    children = Path(f"/proc/{campus.process.popen.pid}/task/{campus.process.popen.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"identity_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def until(wanted: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def explained(campus: Campus, serial: str) -> str:
    return str(campus.ask("policy.explain", serial=serial, issuer="agents")["agent"])


@pytest.mark.lab
def test_what_one_process_does_the_others_know(campus: Campus) -> None:
    client = at_workers(campus)
    ask = new_ask(campus, client, campus.owner())
    answer = ask.submit(client)
    assert answer.status == 201
    assert new_ask(campus, client, campus.owner()).submit(campus.as_proxy()).status == 201
    # the decision on a login is made by the appliance itself, of what the worker issued
    until(lambda: explained(campus, answer.json["serial"]) == ask.sub)
    campus.ask("proxies.suspend", proxy=campus.proxy_id)
    until(lambda: new_nonce(client).reason == "proxy-not-active")
    campus.ask("proxies.resume", proxy=campus.proxy_id)
    until(lambda: new_nonce(client).status == 200)
    assert campus.ask("audit.verify")["ok"]


def new_nonce(client: Client) -> Answer:
    return client.send(
        "POST", "/v1/agents/nonce", b'{"jkt": "' + b"A" * 43 + b'", "purpose": "issue"}', "application/json"
    )


@pytest.mark.lab
def test_a_worker_that_is_killed_is_replaced_and_one_that_is_left_alone_ends(campus: Campus) -> None:
    old = workers_of(campus)
    assert len(old) == 2
    os.kill(old[0], signal.SIGKILL)
    until(lambda: len(set(workers_of(campus)) - set(old)) == 1)
    client = at_workers(campus)
    assert new_ask(campus, client, campus.owner()).submit(client).status == 201
    left = workers_of(campus)
    campus.kill()
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in left))
    port = campus.listeners["identity"].rpartition(":")[2]
    campus.start(*UNLIMITED, "identity.workers=2", f"web.identity_port={port}")
    assert campus.listeners["identity"].endswith(f":{port}")


@pytest.mark.lab
def test_workers_serve_nothing_but_agents_and_owners(campus: Campus) -> None:
    client = at_workers(campus)
    assert client.send("GET", "/.well-known/est/cacerts").status == 404
    assert client.send("GET", "/v1/trust").json["identity_port"] == int(campus.listeners["identity"].rpartition(":")[2])


@pytest.mark.lab
def test_a_proxy_finds_the_workers(campus: Campus) -> None:
    campus.start_proxy()
    agent = campus.client("agent")
    nonce = b'{"jkt": "' + b"A" * 43 + b'", "purpose": "issue"}'
    assert agent.send("POST", "/v1/nonce", nonce, "application/json").status == 200
    assert connected(int(campus.listeners["identity"].rpartition(":")[2]))


def connected(port: int) -> bool:
    """Whether somebody has a connection to this loopback port (Linux' table: state 01 is ESTABLISHED)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[2] == f"0100007F:{port:04X}" and row[3] == "01" for row in rows)
