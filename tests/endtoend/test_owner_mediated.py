"""The owner's gateway with every part in a process of its own: one to one, beside, over kill -9, with false keys."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import composite, evidence, jws
from appliance.binding.composite import Composite
from appliance.clock import SystemClock
from appliance.owner.client_key import ClientKeyFiles, client_keygen, gateway_keygen
from appliance.owner.gateway.queue import Queue
from est.signer import KeySigner
from lab.demo import free_port
from lab.story import Cast, Process
from tests.campus import (
    ORIGIN,
    UNLIMITED,
    Answer,
    Ask,
    Campus,
    Client,
    Crowd,
    environment,
    new_ask,
    run_here,
    tls_context,
)
from tests.endtoend.test_network_side import log_in_with
from tests.endtoend.test_server_mediated import run_agent

NO_ANSWER = (OSError, http.client.HTTPException)
YES = 'version = 1\n[[rule]]\nname = "all"\ndecision = "approve"\n'
LIMITS = "".join(f"{who}{what} = 100000\n" for who in ("", "proxy_", "agent_") for what in ("rate", "burst"))


@dataclass
class Site:
    """An owner's gateway beside a campus; not running until start()."""

    campus: Campus
    policy: str = YES
    limits: str = LIMITS
    port: int = field(default_factory=free_port)
    process: Process | None = None

    def __post_init__(self) -> None:
        self.folder = self.campus.folder / "gateway"
        self.folder.mkdir()
        now = SystemClock().now()
        self.client: ClientKeyFiles = client_keygen(self.folder / "client", ref="alice", audience=ORIGIN, now=now)
        self.server: ClientKeyFiles = gateway_keygen(self.folder / "server", ref="alice", audience=ORIGIN, now=now)
        self.owner = self.campus.owner("alice")
        ask = self.campus.ask
        ask("owners.add_client_key", ref="alice", statement=self.client.statement_file.read_text().strip())
        ask("owners.add_gateway", ref="alice", url=f"https://127.0.0.1:{self.port}",
            statement=self.server.statement_file.read_text().strip())  # fmt: skip
        (self.folder / "root.pem").write_bytes(self.campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
        (self.folder / "answers.toml").write_text(self.policy)

    @property
    def config(self) -> Path:
        path = self.folder / "gateway.toml"
        rules = f'policy = "answers.toml"\npolicy_key = "{self.owner.key_file}"\n' if self.policy else ""
        path.write_text(
            f'version = 1\nlisten = "127.0.0.1:{self.port}"\nkey = "server"\n[limits]\n{self.limits}\n[[domain]]\n'
            f'name = "campus"\nserver = "https://{self.campus.listeners["device"]}"\nroot = "root.pem"\n'
            f'client = "client"\nowner = "{self.owner.identifier}"\n{rules}'
        )
        return path

    def start(self, failpoint: str = "") -> None:
        cast = Cast(self.campus.logs, environment(**({"APPLIANCE_FAILPOINT": failpoint} if failpoint else {})))
        self.process = cast.start(
            "gateway",
            [
                sys.executable, "-m", "appliance", "-o", "json", "owner", "gateway", "run", "--config", self.config,
                "--state", self.folder / "state",
            ],
        )  # fmt: skip
        self.campus.cast._members.append(self.process)
        self.process.wait_for("ready", 120)

    def died(self) -> None:
        assert self.process is not None
        self.process.popen.wait(60)

    def hand_in(self, ask: Ask, **changed: Any) -> Answer:
        """What the proxy would do, with fresh evidence, over its own TLS connection to the gateway."""
        client = Client(
            f"127.0.0.1:{self.port}",
            tls_context(self.campus.state / "ldevid.pem", self.campus.state / "ldevid.key.pem"),
            timeout=240,
        )
        try:
            body = composite.write(replace(Composite(ask.token, ask.csr_der, (), self.evidence(ask)), **changed))
            return client.send("POST", "/v1/gateway/enroll", body, composite.MEDIA_TYPE)
        finally:
            client.close()

    def evidence(self, ask: Ask) -> str:
        request, now = ask.request, int(SystemClock().now().timestamp())
        return evidence.seal(
            KeySigner(self.campus.ldevid_key), iss=self.campus.proxy_id, iat=now, exp=now + 200, nonce=request.nonce,
            rqh=request.rqh, jkt=request.jkt, ueid=b"\x01" + bytes(16), dbgstat="disabled",
            agent={"executable": "/usr/bin/agent", "uid": 1000},
        )  # fmt: skip

    def ask(self) -> Ask:
        client = self.campus.as_proxy()
        try:
            return new_ask(self.campus, client, self.owner, model="owner-mediated")
        finally:
            client.close()

    def until_ready(self, ask: Ask) -> Answer:
        """The answer after the gateway has reached the identity server."""
        for _ in range(100):
            answer = self.hand_in(ask)
            if answer.reason != "gateway-not-ready":
                return answer
            threading.Event().wait(0.1)
        raise AssertionError("the gateway never reached the server")


def agent_command(campus: Campus, name: str, *more: str | Path) -> list[str | Path]:
    return [
        sys.executable, "-m", "appliance", "-o", "json", "agent", "request", "--socket", campus.state / "agent.sock",
        "--out", campus.folder / name, "--owner", campus.owner("alice").identifier, "--model", "owner-mediated",
        "--wait-seconds", "40", *more,
    ]  # fmt: skip


@pytest.fixture
def site(own_campus: Callable[[], Campus]) -> Iterator[Site]:
    campus = own_campus()
    campus.start(*UNLIMITED)
    yield Site(campus)


@pytest.mark.lab
@pytest.mark.req("A-50", "A-99", "A-31")
def test_from_the_agents_command_through_the_gateway_to_a_login(site: Site) -> None:
    campus = site.campus
    campus.start_proxy()
    site.start()
    done = run_agent(agent_command(campus, "notes"))
    assert done.returncode == 0, (done.stderr, campus.log("gateway"))
    outcome = log_in_with(campus.folder / "notes", campus.listeners["radius"])
    assert (outcome.code, outcome.vlan) == ("accept", "20"), outcome
    agent = campus.ask("agents.show", agent=json.loads(done.stdout)["agent_id"])
    assert [one["model"] for one in agent["credentials"]] == ["owner-mediated"]
    again = run_agent(agent_command(campus, "mail"))  # over the connections that were kept
    assert again.returncode == 0, again.stderr
    command = agent_command(campus, "lost", "--wait-seconds", "1")
    campus.kill()
    refused = run_agent(command)
    assert refused.returncode == 1 and "identity-server-away" in refused.stderr, refused.stderr
    shown = run_here("owner", "gateway", "queue", "log", "--state", site.folder / "state", "-o", "json")
    assert [(row["decision"], row["rule"]) for row in shown.json] == [("approved", "all")] * 2
    assert site.process is not None
    site.process.popen.terminate()
    assert site.process.finish(60) == 0


@pytest.mark.lab
@pytest.mark.req("A-51")
def test_one_to_one_in_the_proxys_process_with_keys_of_its_own(site: Site) -> None:
    campus = site.campus
    record = campus.state / "proxy.json"
    known = json.loads(record.read_text())
    record.write_text(json.dumps({**known, "port": int(campus.listeners["device"].rpartition(":")[2])}))
    process = campus.cast.start(
        "proxy",
        [
            sys.executable, "-m", "appliance", "proxy", "run", "--state", campus.state, "-o", "json",
            "--set", "proxy.allow_root_agents=true", "--set", f"proxy.registrar_url=https://{campus.listeners['device']}",
            "--gateway", site.config,
        ],
    )  # fmt: skip
    process.wait_for("gateway-ready", 120)
    process.wait_for("ready", 120)
    done = run_agent(agent_command(campus, "notes"))
    assert done.returncode == 0, (done.stderr, campus.log("proxy"))
    issued = next(
        entry for entry in campus.ask("audit.list", limit=200) if entry["event"] == "dual-identity-issued"
    )  # fmt: skip
    assert (issued["actor"]["kind"], issued["actor"]["identifier"]) == ("owner", site.owner.identifier)
    keys = {
        jws.jkt(campus.ldevid_key.public_key()), site.client.jkt, site.server.jkt,
        jws.jkt(site.owner.signer.public_key()),
    }  # fmt: skip
    assert len(keys) == 4
    process.popen.terminate()
    assert process.finish(60) == 0


@pytest.mark.lab
@pytest.mark.req("A-97", "A-98", "A-100")
def test_a_gateway_killed_at_every_point_loses_nothing_and_approves_once(site: Site) -> None:
    ask = site.ask()
    for failpoint in ("gateway-queued", "gateway-signed", "gateway-decided", "gateway-submitted", "gateway-finished"):
        site.start(failpoint)
        with pytest.raises(NO_ANSWER):
            for _ in range(40):
                site.until_ready(ask)
        site.died()
    site.start()
    answer = site.until_ready(ask)
    assert answer.status in (200, 201), answer.body
    leaf = x509.load_pem_x509_certificates(answer.json["certificate"].encode())[0]
    live = [one for one in site.campus.ask("agents.show", agent=ask.sub)["credentials"] if one["state"] == "issued"]
    assert [int(one["serial"], 16) for one in live] == [leaf.serial_number]
    queue = Queue.open(site.folder / "state")
    assert len(queue.decisions()) == 1
    entry = queue.get(ask.request.rqh)
    queue.close()
    assert entry is not None and entry.approval is not None
    (row,) = site.campus.ask("agents.show", agent=ask.sub)["requests"]
    assert row["approvals_s256"] == [jws.s256(entry.approval)]


@pytest.mark.lab
@pytest.mark.req("A-98", "A-100")
def test_sixty_four_callers_over_a_kill_get_one_credential(site: Site) -> None:
    ask = site.ask()
    site.start("gateway-submitted")
    got: list[Answer] = []

    def call(_: int) -> None:
        try:
            got.append(site.until_ready(ask))
        except NO_ANSWER:
            pass

    Crowd(64, range(64), call).join()
    site.died()
    site.start()
    Crowd(64, range(64), call).join()
    assert {one.status for one in got} <= {200, 201, 202}, {(one.status, one.reason) for one in got}
    serials = {one.json["serial"] for one in got if one.status in (200, 201)}
    assert len(serials) == 1
    live = [one for one in site.campus.ask("agents.show", agent=ask.sub)["credentials"] if one["state"] == "issued"]
    assert {one["serial"] for one in live} == serials


@pytest.mark.lab
@pytest.mark.req("A-99")
def test_what_answers_with_another_key_hears_no_request(site: Site) -> None:
    campus = site.campus
    now = SystemClock().now()
    other = gateway_keygen(site.folder / "other", ref="alice", audience=ORIGIN, now=now)
    site.server.key_file.parent.rename(site.folder / "true")
    other.key_file.parent.rename(site.folder / "server")
    campus.start_proxy()
    site.start()
    done = run_agent(agent_command(campus, "notes", "--wait-seconds", "1"))
    assert done.returncode == 1 and "owner-gateway-away" in done.stderr, done.stderr
    assert "because=server-untrusted" in campus.log("proxy")
    queue = Queue.open(site.folder / "state")
    assert queue.every() == []
    queue.close()


@pytest.mark.lab
@pytest.mark.req("A-90", "A-92", "A-93")
def test_the_owner_reads_and_decides_beside_the_running_gateway(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    campus.start(*UNLIMITED)
    site = Site(campus, policy="")
    site.start()
    first = site.ask()
    assert site.until_ready(first).status == 202

    def queue(verb: str, *words: str | Path) -> Any:
        return run_here("owner", "gateway", "queue", verb, "--state", site.folder / "state", "-o", "json", *words)

    (row,) = queue("list").json
    assert (row["request"], row["agent"], row["state"]) == (first.request.rqh, first.sub, "asked")
    shown = queue("show", row["code"]).json
    assert (shown["proxy"], shown["uid"], shown["ttl_seconds"]) == (campus.proxy_id, 1000, 3600)
    key = ("--key", site.owner.key_file)
    wrong = queue("approve", row["code"], *key, "--code", "AAAA-AAAA")
    assert wrong.status == 1 and "short-code-mismatch" in wrong.err
    assert queue("approve", "AAAA-AAAA", *key, "--code", "AAAA-AAAA").status == 1
    assert queue("deny", *key, "--code", row["code"], "--", row["request"][:12]).json["state"] == "denied"
    again = queue("approve", row["code"], *key, "--code", row["code"])
    assert again.status == 1 and "gateway-request-over" in again.err
    assert site.hand_in(first).reason == "approval-denied"
    assert site.hand_in(site.ask()).reason == "gateway-agent-muted"
    assert queue("list").json == [] and len(queue("list", "--all").json) == 1
    assert [(one["decider"], one["decision"]) for one in queue("log").json] == [
        ("person", "denied"),
        ("policy", "asked"),
    ]


@pytest.mark.lab
@pytest.mark.req("A-97")
def test_an_owners_second_gateway_is_tried_when_the_first_is_away(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    campus.start(*UNLIMITED)
    dead = gateway_keygen(campus.folder / "dead", ref="alice", audience=ORIGIN, now=SystemClock().now())
    campus.ask(
        "owners.add_gateway", ref="alice", url=f"https://127.0.0.1:{free_port()}",
        statement=dead.statement_file.read_text().strip(),
    )  # fmt: skip
    site = Site(campus)
    site.start()
    campus.start_proxy()
    done = run_agent(agent_command(campus, "notes"))
    assert done.returncode == 0, done.stderr
    assert "owner gateway away" in campus.log("proxy")


@pytest.mark.lab
@pytest.mark.req("A-50")
def test_an_owner_without_a_gateway_is_told_apart_from_one_that_is_away(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    campus.start(*UNLIMITED)
    campus.start_proxy()
    done = run_agent(agent_command(campus, "notes", "--wait-seconds", "1"))
    assert done.returncode == 1 and "owner-gateway-missing" in done.stderr
    Site(campus)
    done = run_agent(agent_command(campus, "notes", "--wait-seconds", "1"))
    assert done.returncode == 1 and "owner-gateway-away" in done.stderr


@pytest.mark.lab
@pytest.mark.req("A-52")
def test_a_second_gateway_on_the_same_folder_does_not_start(site: Site) -> None:
    site.start()
    command = [
        sys.executable, "-m", "appliance", "owner", "gateway", "run", "--config",
        str(site.config).replace("gateway.toml", "second.toml"), "--state", str(site.folder / "state"),
    ]  # fmt: skip
    (site.folder / "second.toml").write_text(site.config.read_text().replace(f":{site.port}", ":0"))
    done = run_agent(command)
    assert done.returncode == 1 and "gateway-queue-unusable" in done.stderr, done.stderr
