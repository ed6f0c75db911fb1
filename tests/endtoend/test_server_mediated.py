"""The server asks the owner, with every part in a process of its own: from `agent request` to a credential that logs
in, and over kill -9 between any two steps."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import approval, jws
from appliance.binding import challenge as challenges
from appliance.binding.challenge import BindingChallenge
from appliance.clock import SystemClock
from appliance.owner.client_key import ClientKeyFiles, client_keygen
from lab.story import Process
from tests.campus import (
    ORIGIN,
    UNLIMITED,
    Answer,
    Ask,
    Campus,
    Client,
    Crowd,
    OwnerHost,
    environment,
    lookalike,
    new_ask,
    random_id,
)
from tests.endtoend.test_network_side import log_in_with
from tests.support import stretched

PATH = "/v1/owners/self/challenges"
NO_ANSWER = (OSError, http.client.HTTPException)
POLICY = 'version = 1\n[[rule]]\ndecision = "{decision}"\nprofiles = ["x509", "wit"]\nlongest_seconds = 28800\n'


@dataclass
class Desk:
    """One owner with a client key, at one campus."""

    campus: Campus
    owner: OwnerHost
    files: ClientKeyFiles

    @classmethod
    def register(cls, campus: Campus, ref: str = "alice") -> Desk:
        folder = campus.folder / "clients" / ref
        files = client_keygen(folder, ref=ref, audience=ORIGIN, now=SystemClock().now())
        campus.ask("owners.add_client_key", ref=ref, statement=files.statement_file.read_text().strip())
        return cls(campus, campus.owner(ref), files)

    def client(self, listener: str = "device") -> Client:
        return self.campus.client(listener, self.files.certificate_file, self.files.key_file)

    def asked(self) -> BindingChallenge:
        client = self.client()
        try:
            (row,) = client.send("GET", PATH, headers={"Prefer": "wait=5"}).json["challenges"]
        finally:
            client.close()
        key = self.campus.certificates_of("agents")[0].public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return challenges.unseal(row["challenge"], key)

    def yes(self, ask: Ask, asked: BindingChallenge) -> str:
        now = int(time.time())
        return approval.seal(
            self.owner.signer, ask.request, iss=self.owner.identifier, iat=now, exp=now + 600, jti=random_id(),
            nonce=asked.nonce, proxy=asked.proxy,
        )  # fmt: skip

    def answer(self, asked: BindingChallenge, token: str) -> Answer:
        client = self.client()
        try:
            body = json.dumps({"approval": token}).encode()
            return client.send("POST", f"{PATH}/{asked.jti}", body, "application/json")
        finally:
            client.close()

    def respond(self, decision: str = "approve", *more: str) -> Process:
        """`appliance owner respond` with a policy."""
        policy, root = self.campus.folder / f"{decision}.toml", self.campus.folder / "root.pem"
        policy.write_text(POLICY.format(decision=decision))
        root.write_bytes(self.campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
        found = self.campus.cast.start("respond", [*self.command(), "--policy", policy, *more])
        found.wait_for("ready", 120)
        return found

    def command(self) -> list[str | Path]:
        return [
            sys.executable, "-m", "appliance", "-o", "json", "owner", "respond", "--owner", self.owner.identifier,
            "--key", self.owner.key_file, "--client", self.files.key_file.parent,
            "--server", f"https://{self.campus.listeners['device']}", "--root", self.campus.folder / "root.pem",
        ]  # fmt: skip


def agent_command(campus: Campus, name: str) -> list[str | Path]:
    """An agent with a key, registered beforehand, that asks for its credential."""
    key = campus.folder / f"{name}.key.pem"
    made = campus.cli("agent", "keygen", "--out", key)
    assert made.status == 0, made.err
    campus.ask("agents.add", owner="alice", proxy=campus.proxy_id, jkt=made.json["jkt"])
    return [
        sys.executable, "-m", "appliance", "-o", "json", "agent", "request", "--socket", campus.state / "agent.sock",
        "--out", campus.folder / name, "--owner", campus.owner("alice").identifier, "--model", "server-mediated",
        "--key", key, "--wait-seconds", "60",
    ]  # fmt: skip


def run_agent(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment(), timeout=240, check=False
    )


@pytest.mark.lab
@pytest.mark.req("A-60", "A-61", "A-62", "A-93")
def test_from_the_agents_command_to_a_login_with_every_part_in_its_own_process(
    own_campus: Callable[[], Campus],
) -> None:
    campus = own_campus()
    campus.start(*UNLIMITED)
    campus.start_proxy()
    desk = Desk.register(campus)
    responder = desk.respond()
    done = run_agent(agent_command(campus, "notes"))
    assert done.returncode == 0, (done.stderr, campus.log("respond"))
    assert "the server asks the owner; code " in done.stderr
    outcome = log_in_with(campus.folder / "notes", campus.listeners["radius"])
    assert (outcome.code, outcome.vlan) == ("accept", "20"), outcome
    serial = json.loads(done.stdout)["serial"]
    agent = campus.ask("agents.show", agent=json.loads(done.stdout)["agent_id"])
    (credential,) = agent["credentials"]
    assert (credential["serial"].lstrip("0"), credential["model"]) == (serial.lstrip("0"), "server-mediated")
    assert responder.wait_for("challenge-answered", 60)["decision"] == "approve"
    begun = time.monotonic()  # a long poll hangs at the appliance now, and does not keep it from stopping
    assert campus.stop() == 0
    assert time.monotonic() - begun < stretched(8)


@pytest.mark.lab
@pytest.mark.req("A-93")
def test_a_person_types_the_code_to_say_no_and_the_agent_hears_why(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    campus.start(*UNLIMITED)
    campus.start_proxy()
    desk = Desk.register(campus)
    (campus.folder / "root.pem").write_bytes(campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
    agent = subprocess.Popen(
        [str(word) for word in agent_command(campus, "notes")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert agent.stderr is not None
        line = agent.stderr.readline()
        code = line.strip().rpartition(" ")[2]
        shown = subprocess.run(
            [str(word) for word in (*desk.command(), "--once")],
            input=f"deny {code}\n", capture_output=True, text=True, env=environment(), timeout=240, check=False,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        for words in (f"short code         {code}", "server-mediated: the server has asked you", campus.proxy_id):
            assert words in shown.stderr
        _, err = agent.communicate(timeout=240)
    finally:
        agent.kill()
        agent.wait()
    assert agent.returncode == 1
    assert "approval-denied" in err
    assert not (campus.folder / "notes" / "chain.pem").exists()


@pytest.fixture
def parked(own_campus: Callable[[], Campus]) -> Iterator[tuple[Campus, Desk, Callable[..., Ask]]]:
    """A campus, an owner's desk, and agents that are registered to that owner."""
    campus = own_campus()
    campus.start(*UNLIMITED)
    desk = Desk.register(campus)

    def make() -> Ask:
        key = ec.generate_private_key(ec.SECP256R1())
        campus.ask("agents.add", owner="alice", proxy=campus.proxy_id, jkt=jws.jkt(key.public_key()))
        client = campus.as_proxy()
        try:
            exp = int(time.time()) + 900
            made = new_ask(campus, client, desk.owner, key=key, model="server-mediated", exp=exp)
        finally:
            client.close()
        return Ask(made.key, made.sub, made.token, made.csr_der, (), made.proxy_id, made.proxy_key)

    yield campus, desk, make


def submit(campus: Campus, ask: Ask) -> Answer:
    client = campus.as_proxy()
    try:
        return ask.submit(client)
    finally:
        client.close()


def revive(campus: Campus, *, is_dead: bool = False, failpoint: str = "") -> None:
    if is_dead:
        assert campus.process is not None
        campus.process.popen.wait(60)
    else:
        campus.kill()
    campus.start(*UNLIMITED, failpoint=failpoint)


@pytest.mark.lab
@pytest.mark.req("A-60", "A-98", "A-100")
def test_kill_9_at_and_between_all_steps_loses_nothing_and_issues_once(
    parked: tuple[Campus, Desk, Callable[..., Ask]],
) -> None:
    campus, desk, make = parked
    ask = make()
    revive(campus, failpoint="challenge-parked")
    with pytest.raises(NO_ANSWER):
        submit(campus, ask)
    revive(campus, is_dead=True)
    assert submit(campus, ask).status == 202  # parked before the death, and not twice
    revive(campus, failpoint="challenge-answered")
    asked = desk.asked()
    token = desk.yes(ask, asked)
    with pytest.raises(NO_ANSWER):
        desk.answer(asked, token)
    revive(campus, is_dead=True)
    assert desk.answer(asked, token).json["decision"] == "approve"  # the same answer, for the lost reply
    assert desk.answer(asked, desk.yes(ask, asked)).reason == "challenge-over"
    for failpoint in ("issue-pending:4", "issue-signed:4"):  # every start signs for its three OCSP signers first
        revive(campus, failpoint=failpoint)
        with pytest.raises(NO_ANSWER):
            submit(campus, ask)
        revive(campus, is_dead=True)
    answer = submit(campus, ask)
    assert answer.status == 201, answer.body
    revive(campus)
    assert submit(campus, ask).reason == "approval-spent"
    assert desk.answer(asked, desk.yes(ask, asked)).reason == "challenge-over"
    live = [one for one in campus.ask("agents.show", agent=ask.sub)["credentials"] if one["state"] == "issued"]
    assert [one["serial"] for one in live] == [answer.json["serial"]]


@pytest.mark.lab
@pytest.mark.req("A-100")
def test_sixty_four_clients_answer_one_challenge_at_once_and_one_credential_comes_of_it(
    parked: tuple[Campus, Desk, Callable[..., Ask]],
) -> None:
    campus, desk, make = parked
    ask = make()
    assert submit(campus, ask).status == 202
    asked = desk.asked()
    said: list[Answer] = []
    got: list[Answer] = []
    Crowd(64, [desk.yes(ask, asked) for _ in range(64)], lambda token: said.append(desk.answer(asked, token))).join()
    assert sorted(one.status for one in said) == [200] + [409] * 63, [one.body for one in said if one.status != 409]
    Crowd(64, range(64), lambda _: got.append(submit(campus, ask))).join()
    assert sorted(one.status for one in got).count(201) == 1, [(one.status, one.body) for one in got]
    assert {one.status for one in got} <= {201, 202, 409}
    leaf = x509.load_pem_x509_certificates(next(one for one in got if one.status == 201).json["certificate"].encode())
    live: list[Any] = campus.ask("agents.show", agent=ask.sub)["credentials"]
    assert [int(one["serial"], 16) for one in live] == [leaf[0].serial_number]


@pytest.mark.lab
@pytest.mark.req("A-62", "A-99")
def test_the_owners_tool_believes_only_the_campus_and_the_campus_only_registered_tools(
    parked: tuple[Campus, Desk, Callable[..., Ask]],
) -> None:
    campus, desk, make = parked
    assert submit(campus, make()).status == 202
    root, false_root = campus.folder / "root.pem", campus.folder / "false-root.pem"
    root.write_bytes(campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
    policy = campus.folder / "yes.toml"
    policy.write_text(POLICY.format(decision="approve"))
    forged, _ = lookalike(campus.certificates_of("registrar")[0], campus.certificates_of("root")[0])
    false_root.write_bytes(forged[1].public_bytes(Encoding.PEM))  # the root's name and numbers, another key
    stranger = client_keygen(campus.folder / "stranger", ref="alice", audience=ORIGIN, now=SystemClock().now())
    once = ("--policy", str(policy), "--once", "--wait", "0")
    for wrong, reason in (
        (("--root", str(false_root)), "identity-server-unreachable"),
        (("--server", f"https://localhost.localdomain:{campus.listeners['device'].rpartition(':')[2]}"), "unreachable"),
        (("--server", f"https://{campus.listeners['decision']}"), "identity-server-"),
        (("--client", str(stranger.key_file.parent)), "owner-client-unknown"),
    ):
        done = run_agent([*desk.command(), *once, *wrong])
        assert done.returncode == 1, done.stdout
        assert reason in done.stderr and "Traceback" not in done.stderr, done.stderr
    client = desk.client()
    assert len(client.send("GET", PATH).json["challenges"]) == 1  # nobody answered
    client.close()
    done = run_agent([*desk.command(), *once])
    assert done.returncode == 0 and '"decision": "approve"' in done.stdout, (done.stdout, done.stderr)
