"""`agent run` with every part in a process of its own: renewed without a person, over restarts of its servers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from appliance.clock import SystemClock
from appliance.owner.client_key import client_keygen
from lab.stage import free_port
from lab.story import Process
from tests.campus import ORIGIN, UNLIMITED, Campus
from tests.endtoend.test_network_side import log_in_with, request_credential
from tests.support import stretched

WIT_SECONDS = 9  # a renewal must be over before a third of it is


def serial_of(folder: Path) -> int:
    leaf = x509.load_pem_x509_certificates((folder / "chain.pem").read_bytes())[0]
    key = load_pem_private_key((folder / "current" / "agent.key.pem").read_bytes(), None)
    assert leaf.public_key() == key.public_key()
    return leaf.serial_number


def renewals(process: Process) -> int:
    return sum(event["event"] == "credential-renewed" for event in process.events)


def wait_for_renewals(process: Process, count: int, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while renewals(process) < count:
        assert process.popen.poll() is None and time.monotonic() < deadline, (process.events, process.tail())
        time.sleep(0.05)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.req("A-3", "A-106", "A-107", "A-113", "A-21")
def test_from_one_standing_approval_to_logins_after_renewals_and_restarts(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    port, life = free_port(), stretched(WIT_SECONDS) / 1.5 if "PYTEST_XDIST_WORKER" in os.environ else WIT_SECONDS
    settings = (*UNLIMITED, f"web.device_port={port}", f"identity.wit_minutes={life / 60}")
    campus.start(*settings)
    campus.start_proxy()
    owner = campus.owner()
    files = client_keygen(campus.folder / "client", ref="alice", audience=ORIGIN, now=SystemClock().now())
    campus.ask("owners.add_client_key", ref="alice", statement=files.statement_file.read_text().strip())
    root = campus.folder / "root.pem"
    root.write_bytes(campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
    mine = ("--client", files.key_file.parent, "--server", f"https://{campus.listeners['device']}", "--root", root)

    agent = request_credential(campus, campus.folder / "agent")
    first = x509.load_pem_x509_certificates((agent / "chain.pem").read_bytes())[0].serial_number
    told = campus.cli("owner", "issued", *mine)
    assert told.status == 0, told.err
    (issued,) = told.json["credentials"]
    seen = issued["platform"]
    assert (int(issued["serial"], 16), seen["uid"]) == (first, os.getuid())

    standing = campus.folder / "standing.jws"
    server_id = campus.client().send("GET", "/v1/trust").json["server_id"]
    signed = campus.cli(
        "owner", "standing-sign", "--owner", owner.identifier, "--key", owner.key_file, "--agent", issued["agent"],
        "--server-id", server_id, "--proxy", issued["proxy"], "--ueid", seen["ueid"],
        "--executable", seen["executable_sha256"], "--uid", str(seen["uid"]), "--out", standing, "--yes",
    )  # fmt: skip
    assert signed.status == 0, signed.err
    assert campus.cli("owner", "standing-submit", standing, *mine).status == 0

    mark = campus.folder / "renewed"
    process = campus.cast.start(
        "agent-run",
        [
            sys.executable, "-m", "appliance", "-o", "json", "agent", "run", "--socket", campus.state / "agent.sock",
            "--out", agent, "--standing", signed.json["s256"],
            "--on-renewed", f"{sys.executable} -c \"open('{mark}', 'a').write('.')\"",
        ],
    )  # fmt: skip
    wait_for_renewals(process, 1)
    assert serial_of(agent) != first

    campus.kill()
    time.sleep(life * 0.8)
    campus.start(*settings)
    wait_for_renewals(process, 2)
    assert campus.proxy_process is not None
    campus.proxy_process.stop()
    campus.start_proxy()
    wait_for_renewals(process, 3)

    process.popen.send_signal(signal.SIGTERM)
    assert process.finish(60) == 0, process.tail()
    assert mark.read_text().count(".") == renewals(process)
    outcome = log_in_with(agent, campus.listeners["radius"])
    assert outcome.code == "accept", outcome
    row = campus.ask("owners.standing", ref="alice")[0]
    assert row["uses"] == renewals(process) and row["state"] == "live"
    assert len(campus.cli("owner", "issued", *mine).json["credentials"]) == renewals(process) + 1

    # withdrawn: nothing is renewed any more, and the owner sees it
    assert campus.cli("owner", "standing-withdraw", row["s256"], *mine).json["state"] == "withdrawn"
    again = campus.cli("owner", "standing-list", *mine).json
    assert [one["state"] for one in again] == ["withdrawn"]
