"""The owner's gateway before a real identity server: what it takes in, what it signs, what it lets nobody do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from appliance.binding import composite, jws
from appliance.binding.composite import Composite
from appliance.clock import Clock
from appliance.owner.answer_policy import AnswerPolicy, read_answer_policy
from appliance.owner.client import OwnerClient, Server, ServerReply
from appliance.owner.errors import GatewayRequestOver, ShortCodeMismatch
from appliance.owner.gateway.config import DomainConfig, GatewayLimits
from appliance.owner.gateway.deciding import Rules, by_person, card_of
from appliance.owner.gateway.domains import Domain, Proxies
from appliance.owner.gateway.queue import Queue
from appliance.owner.gateway.routes import ENROLL_PATH, ROUTES, endpoints
from appliance.owner.gateway.service import GatewayService
from appliance.owner.gateway.states import QueueState
from appliance.owner.review import render
from appliance.web.app import build_app
from appliance.web.peer import Peer
from est.exchange import Call
from est.signer import KeySigner
from tests.appliance.identity.campus import ORIGIN, SERVER_ID, Ask, Campus, OwnerHost, Proxy, new_key
from tests.appliance.identity.test_enroll import credentials
from tests.appliance.identity.test_owner_mediated import Gateway, asked, private

YES = 'version = 1\n[[rule]]\nname = "all"\ndecision = "approve"\n'
MANY = GatewayLimits(
    rate=1000, burst=100_000, proxy_rate=1000, proxy_burst=100_000, agent_rate=1000, agent_burst=100_000,
    queue_per_program=1000,
)  # fmt: skip


class Wire(OwnerClient):
    """The owner's client key at the identity server of this test, without sockets; `cut` loses what comes back."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.submitted_bodies: list[bytes] = []
        self.cut = 0

    async def submit(self, body: bytes) -> ServerReply:
        self.submitted_bodies.append(body)
        status, value = await self.gateway.call("POST", "/v1/agents/enroll", body, composite.MEDIA_TYPE)
        if self.cut:
            self.cut -= 1
            raise asyncio.CancelledError  # the gateway dies here
        return ServerReply(status, value)

    async def submitted(self, rqh: str) -> ServerReply:
        return ServerReply(*await self.gateway.call("GET", f"/v1/agents/requests/{rqh}"))


@dataclass
class Site:
    """One owner's gateway, in this process."""

    campus: Campus
    owner: OwnerHost
    wire: Wire
    folder: Path
    policy: AnswerPolicy | None
    limits: GatewayLimits
    org: tuple[str, ...] = ()
    proxies: frozenset[str] | None = None

    def start(self) -> None:
        config = DomainConfig(
            "campus", "https://ids", self.folder, self.folder, self.owner.identifier, self.proxies, self.org,
            self.policy, None,
        )  # fmt: skip
        domain = Domain(config, self.wire, self.owner.signer)
        agents_key = self.campus.ca.issuing("agents").certificate.public_key()
        domain.server = Server(SERVER_ID, agents_key, ORIGIN, self.campus.ca.issuing("devices").certificate)  # type: ignore[arg-type]
        clock: Clock = self.campus.clock
        self.queue = Queue.open(self.folder, create=True)
        rules = Rules(self.queue, {"campus": domain}, clock)
        self.service = GatewayService(self.queue, Proxies([domain], clock), rules, self.limits, clock)
        self.app = build_app("gateway", endpoints(self.service), routes=ROUTES)
        self.running = asyncio.create_task(rules.run())

    async def restart(self) -> None:
        await self.stop()
        self.start()

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        self.queue.close()

    async def hand_in(self, ask: Ask, peer: Peer | None = None, **changed: Any) -> tuple[int, dict[str, Any], str]:
        body = composite.write(replace(ask.composite(), **changed))
        return await self.send(body, peer or ask.proxy.peer)

    async def send(self, body: bytes, peer: Peer) -> tuple[int, dict[str, Any], str]:
        reply = await self.app.handle(Call("POST", ENROLL_PATH, composite.MEDIA_TYPE, body=body), peer)
        return reply.status, json.loads(reply.body), reply.headers.get("retry-after", "")

    def decide(self, ask: Ask, *, deny: bool = False, org: tuple[str, ...] = (), code: str | None = None) -> QueueState:
        entry = self.queue.get(ask.request.rqh)
        assert entry is not None
        return by_person(self.queue, entry, self.owner.signer, self.campus.clock, deny=deny, code=code, org=org)


Story = Callable[[Site, Proxy], Awaitable[None]]


def play(folder: Path, story: Story, *, rules: str = "", limits: GatewayLimits = MANY, **more: Any) -> None:
    async def run() -> None:
        campus = Campus.create(folder)
        try:
            proxy, owner = await campus.proxy(), await campus.owner()
            gateway = await Gateway.register(owner, folder / "clients")
            policy = read_answer_policy(rules) if rules else None
            site = Site(campus, owner, Wire(gateway), folder / "gateway", policy, limits, **more)
            site.start()
            try:
                await story(site, proxy)
            finally:
                await site.stop()
        finally:
            campus.close()

    asyncio.run(run())


@pytest.mark.req("A-50", "A-31", "A-65")
def test_rules_sign_what_fits_and_the_answer_comes_with_the_same_call(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        ask = await asked(proxy, site.owner)
        status, answer, _ = await site.hand_in(ask)
        assert (status, answer["sub"]) == (201, ask.sub), answer
        again = await site.hand_in(ask)
        assert again[:2] == (200, answer)  # from the file; the server is not asked
        assert len(site.wire.submitted_bodies) == 1
        sent = composite.read(site.wire.submitted_bodies[0])
        assert sent.org == ("member 0815",) and len(sent.approvals) == 1
        (made,) = site.queue.decisions()
        assert (made["rule"], made["why"], made["decider"]) == ("all", "all fits", "policy")
        assert made["approval_s256"] == jws.s256(sent.approvals[0])

    play(tmp_path, story, rules=YES, org=("member 0815",))


@pytest.mark.req("A-50", "A-90", "A-92")
def test_a_person_sees_the_bytes_types_the_code_and_only_then_anything_reaches_the_server(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        ask = await asked(proxy, site.owner, label="notes://agent")
        for _ in range(3):
            status, told, retry = await site.hand_in(ask)
            assert (status, retry, told["rqh"]) == (202, "5", ask.request.rqh)
        assert site.wire.submitted_bodies == [] and await credentials(site.campus, ask.sub) == []
        entry = site.queue.get(ask.request.rqh)
        assert entry is not None and entry.state is QueueState.ASKED
        card = card_of(entry, site.campus.clock)
        text = render(card)
        for words in (ask.sub, proxy.identifier, "owner-mediated", '"notes[:]//agent"', card.short_code):
            assert words in text
        with pytest.raises(ShortCodeMismatch):
            site.decide(ask, code="AAAA-AAAA")
        site.campus.clock.advance(400)  # the owner was away; the evidence of then is too old now
        assert site.decide(ask, code=card.short_code) is QueueState.APPROVED
        with pytest.raises(GatewayRequestOver):
            site.decide(ask, deny=True)
        assert (await site.hand_in(ask))[0] == 201

    play(tmp_path, story)


@pytest.mark.req("A-93", "A-98")
def test_a_no_is_final_for_the_request_and_mutes_the_program_for_a_while(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        ask = await asked(proxy, site.owner)
        assert (await site.hand_in(ask))[0] == 202
        assert site.decide(ask, deny=True) is QueueState.DENIED
        assert (await site.hand_in(ask))[1]["reason"] == "approval-denied"
        # another key and another identifier are the same program all the same
        other = await asked(proxy, site.owner)
        status, told, _ = await site.hand_in(other)
        assert (status, told["reason"]) == (403, "gateway-agent-muted")
        elsewhere = await asked(proxy, site.owner)
        seen = proxy.evidence(elsewhere.token, agent={"executable": "/usr/bin/other", "uid": 1001})
        assert (await site.hand_in(elsewhere, evidence=seen))[0] == 202
        await site.restart()  # and a restart forgets no no
        assert (await site.hand_in(other))[1]["reason"] == "gateway-agent-muted"
        site.campus.clock.advance(901)
        assert (await site.hand_in(await asked(proxy, site.owner)))[0] == 202
        assert site.wire.submitted_bodies == []

    play(tmp_path, story)


@pytest.mark.req("A-97", "A-98")
def test_rules_leave_to_the_person_or_deny_as_the_file_says_and_say_why(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        short, long = await asked(proxy, site.owner, ttl=600), await asked(proxy, site.owner, ttl=7200)
        assert (await site.hand_in(short))[0] == 201
        assert (await site.hand_in(long))[0] == 202
        entry = site.queue.get(long.request.rqh)
        assert entry is not None and entry.state is QueueState.ASKED
        assert site.queue.decisions()[0]["why"] == "no rule fits"
        third = await asked(proxy, site.owner, ttl=600)
        assert (await site.hand_in(third))[0] == 202
        assert site.queue.decisions()[0]["why"] == "no rule fits; the rate of short is used up"
        await site.restart()  # rates are counted from the file
        assert (await site.hand_in(await asked(proxy, site.owner, ttl=600)))[0] == 202
        site.policy = read_answer_policy('version = 1\notherwise = "deny"\n')
        await site.restart()
        refused = await asked(proxy, site.owner)
        assert (await site.hand_in(refused))[1]["reason"] == "approval-denied"

    rules = 'version = 1\n[[rule]]\nname = "short"\ndecision = "approve"\nlongest_seconds = 600\nper_hour = 1\n'
    play(tmp_path, story, rules=rules)


@pytest.mark.req("A-97", "A-100")
def test_a_gateway_that_dies_after_the_server_issued_hands_out_the_same_credential_afterwards(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        ask = await asked(proxy, site.owner)
        site.wire.cut = 1
        with pytest.raises(asyncio.CancelledError):
            await site.hand_in(ask)
        await site.restart()
        status, answer, _ = await site.hand_in(ask)
        assert status == 201
        leaf = x509.load_pem_x509_certificates(answer["certificate"].encode())[0]
        live = [row for row in await credentials(site.campus, ask.sub) if row.state == "issued"]
        assert [int(row.serial, 16) for row in live] == [leaf.serial_number]
        first, second = (composite.read(body).approvals for body in site.wire.submitted_bodies)
        assert first == second  # nothing was signed twice
        assert len(site.queue.decisions()) == 1

    play(tmp_path, story, rules=YES)


@pytest.mark.req("A-97")
def test_an_expired_request_is_told_so_and_a_newer_one_takes_an_older_ones_place(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        key = new_key()
        first = await asked(proxy, site.owner, key=key)
        assert (await site.hand_in(first))[0] == 202
        second = await asked(proxy, site.owner, key=key)
        assert (await site.hand_in(second))[0] == 202
        assert (await site.hand_in(first))[1]["reason"] == "gateway-request-over"
        with pytest.raises(GatewayRequestOver):
            site.decide(first)
        site.campus.clock.advance(3590)
        assert site.decide(second) is QueueState.APPROVED
        site.campus.clock.advance(3700)
        assert (await site.hand_in(second))[1]["reason"] == "request-expired"
        assert site.wire.submitted_bodies == []

    play(tmp_path, story)


Attack = Callable[[Site, Proxy], Awaitable[tuple[int, dict[str, Any], str]]]
ATTACKS: list[tuple[str, Attack]] = []


def refused_with(reason: str) -> Callable[[Attack], Attack]:
    def note(attack: Attack) -> Attack:
        ATTACKS.append((reason, attack))
        return attack

    return note


@refused_with("certificate-required")
async def nobody_in_particular(site: Site, proxy: Proxy) -> Any:
    return await site.hand_in(await asked(proxy, site.owner), Peer("192.0.2.66", 9))


@refused_with("gateway-proxy-unknown")
async def a_proxy_of_another_domain(site: Site, proxy: Proxy) -> Any:
    name = "spiffe://other.example/proxy/" + PROXY_UUID
    certificate = await site.campus.certificate(new_key(), identifier=name, life=timedelta(days=1))
    return await site.hand_in(await asked(proxy, site.owner), site.campus.peer(certificate))


@refused_with("gateway-proxy-unknown")
async def an_agent_that_calls_itself_a_proxy(site: Site, proxy: Proxy) -> Any:
    name = f"{ORIGIN}/proxy/{PROXY_UUID}"
    certificate = await site.campus.certificate(new_key(), role="agents", identifier=name, life=timedelta(hours=1))
    return await site.hand_in(await asked(proxy, site.owner), site.campus.peer(certificate, "agents"))


@refused_with("gateway-proxy-unknown")
async def the_owners_own_client_key(site: Site, proxy: Proxy) -> Any:
    return await site.hand_in(await asked(proxy, site.owner), site.wire.gateway.peer)


@refused_with("approval-not-expected")
async def a_renewal_that_was_approved_beforehand(site: Site, proxy: Proxy) -> Any:
    renewal = {"purpose": "renew", "prev": "a.b.c", "standing": ("A" * 43,)}
    return await site.hand_in(await asked(proxy, site.owner, **renewal), proxy.peer)


@refused_with("approval-not-expected")
async def an_approval_comes_along(site: Site, proxy: Proxy) -> Any:
    ask = await asked(proxy, site.owner)
    return await site.hand_in(ask, approvals=ask.approved().approvals)


@refused_with("org-material-not-expected")
async def material_from_the_proxy(site: Site, proxy: Proxy) -> Any:
    return await site.hand_in(await asked(proxy, site.owner), org=("member of the board",))


@refused_with("model-not-offered")
async def a_request_of_another_model(site: Site, proxy: Proxy) -> Any:
    return await site.hand_in(await proxy.ask(site.owner))


@refused_with("owner-mismatch")
async def another_owners_request(site: Site, proxy: Proxy) -> Any:
    return await site.hand_in(await asked(proxy, await site.campus.owner("bob", "HR")))


@refused_with("request-wrong-audience")
async def a_request_for_another_server(site: Site, proxy: Proxy) -> Any:
    return await site.hand_in(await asked(proxy, site.owner, aud="https://ids.evil.example/v1"))


@refused_with("signature-invalid")
async def a_request_changed_on_the_way(site: Site, proxy: Proxy) -> Any:
    ask = await asked(proxy, site.owner)
    head, _, signature = ask.token.split(".")
    claims = {**jws.read_object(jws.read(ask.token).payload, "payload"), "ttl": 86_400}
    forged = f"{head}.{jws.base64url(json.dumps(claims).encode())}.{signature}"
    return await site.send(composite.write(Composite(forged, ask.csr_der, (), proxy.evidence(ask.token))), proxy.peer)


@refused_with("signature-invalid")
async def evidence_by_another_key(site: Site, proxy: Proxy) -> Any:
    ask = await asked(proxy, site.owner)
    return await site.hand_in(ask, evidence=proxy.evidence(ask.token, new_key()))


@refused_with("evidence-for-other-request")
async def evidence_of_another_request(site: Site, proxy: Proxy) -> Any:
    ask, other = await asked(proxy, site.owner), await asked(proxy, site.owner)
    seen = proxy.evidence(other.token, nonce=ask.request.nonce, jkt=ask.request.jkt)
    return await site.hand_in(ask, evidence=seen)


@refused_with("evidence-missing")
async def no_evidence(site: Site, proxy: Proxy) -> Any:
    return await site.hand_in(await asked(proxy, site.owner), evidence=None)


@refused_with("csr-mismatch")
async def another_csr(site: Site, proxy: Proxy) -> Any:
    other = await asked(proxy, site.owner)
    return await site.hand_in(await asked(proxy, site.owner), csr_der=other.csr_der)


@refused_with("claim-malformed")
async def a_label_that_turns_the_line_around(site: Site, proxy: Proxy) -> Any:
    return await site.send(await labelled(site, proxy, "safe \u202eegap\u200b"), proxy.peer)


@refused_with("claim-malformed")
async def a_label_with_another_line_of_the_card(site: Site, proxy: Proxy) -> Any:
    return await site.send(await labelled(site, proxy, "x\nproxy   spiffe://campus.example/proxy/trusted"), proxy.peer)


@refused_with("claim-malformed")
async def a_label_as_long_as_a_letter(site: Site, proxy: Proxy) -> Any:
    return await site.send(await labelled(site, proxy, "please approve quickly, " * 9), proxy.peer)


async def labelled(site: Site, proxy: Proxy, label: str) -> bytes:
    """A composite request whose agent wrote what no honest tool would write."""
    key = new_key()
    ask = await asked(proxy, site.owner, key=key)
    claims = {**jws.read_object(jws.read(ask.token).payload, "payload"), "label": label}
    signer = KeySigner(key)
    token = jws.seal(
        claims, typ="agent-request+jwt", signer=signer, header={"jwk": jws.jwk(key.public_key(), algorithm=True)}
    )
    return composite.write(Composite(token, ask.csr_der, (), proxy.evidence(ask.token)))


PROXY_UUID = "0b8e7f0a-6f7e-4c53-9c0e-1f5b6a1d2c3d"


@pytest.mark.req("A-50", "A-90", "A-91", "A-94", "A-98", "A-99")
@pytest.mark.parametrize(("reason", "attack"), ATTACKS, ids=[attack.__name__ for _, attack in ATTACKS])
def test_what_is_wrong_never_waits_for_a_person_and_never_reaches_the_server(
    tmp_path: Path, reason: str, attack: Attack
) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        status, answer, _ = await attack(site, proxy)
        assert (answer["reason"], 400 <= status < 500) == (reason, True), answer
        assert site.queue.every() == [] and site.wire.submitted_bodies == []

    play(tmp_path, story, rules=YES)


@pytest.mark.req("A-94", "A-99")
def test_an_approval_made_with_the_client_key_is_refused_by_the_server_and_shown_to_the_owner(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        ask = await asked(proxy, site.owner)
        await site.hand_in(ask)
        entry = site.queue.get(ask.request.rqh)
        assert entry is not None
        client_key = KeySigner(private(site.wire.gateway.files))
        by_person(site.queue, entry, client_key, site.campus.clock, deny=False, code=None, org=())
        status, answer, _ = await site.hand_in(ask)
        assert (status, answer["reason"]) == (400, "signature-invalid")
        shown = site.queue.get(ask.request.rqh)
        assert shown is not None and shown.refused == "signature-invalid"
        assert await credentials(site.campus, ask.sub) == []

    play(tmp_path, story)


@pytest.mark.req("A-52", "A-97", "A-98")
def test_a_flood_of_one_proxy_is_told_to_wait_and_the_others_go_on(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        answers = [await site.hand_in(await asked(proxy, site.owner)) for _ in range(12)]
        told = [(status, answer.get("reason", "")) for status, answer, _ in answers]
        assert told[:5] == [(202, "")] * 5
        assert set(told[5:8]) == {(429, "gateway-queue-full")}
        assert set(told[8:]) == {(429, "rate-limited")}
        assert all(retry.isdigit() and int(retry) >= 1 for status, _, retry in answers if status == 429)
        calm = await site.campus.proxy()
        assert (await site.hand_in(await asked(calm, site.owner)))[0] == 202

    play(
        tmp_path, story,
        limits=replace(MANY, queue_per_proxy=5, proxy_rate=1, proxy_burst=8),
    )  # fmt: skip


@pytest.mark.req("A-98")
def test_one_program_that_asks_for_ever_new_agents_is_told_to_wait(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        reasons = [(await site.hand_in(await asked(proxy, site.owner)))[1].get("reason") for _ in range(6)]
        assert reasons == [None, None, None, "gateway-queue-full", "rate-limited", "rate-limited"]
        other = await asked(proxy, site.owner)
        seen = proxy.evidence(other.token, agent={"executable": "/usr/bin/other", "uid": 1001})
        assert (await site.hand_in(other, evidence=seen))[0] == 202

    play(tmp_path, story, limits=replace(MANY, queue_per_program=3, agent_rate=1, agent_burst=4))


@pytest.mark.req("A-98", "A-100")
def test_sixty_four_calls_with_one_request_are_one_decision_one_submission_and_one_credential(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        ask = await asked(proxy, site.owner)
        answers = await asyncio.gather(*(site.hand_in(ask) for _ in range(64)))
        assert {status for status, _, _ in answers} <= {200, 201, 202}
        assert [status for status, _, _ in answers].count(201) == 1
        assert len(site.wire.submitted_bodies) == 1 and len(site.queue.decisions()) == 1
        assert len(await credentials(site.campus, ask.sub)) == 1

    play(tmp_path, story, rules=YES)


@pytest.mark.req("A-52")
def test_a_proxy_that_the_owner_did_not_name_is_unknown_here(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        site.proxies = frozenset({(await site.campus.proxy()).identifier})
        await site.restart()
        assert (await site.hand_in(await asked(proxy, site.owner)))[1]["reason"] == "gateway-proxy-unknown"

    play(tmp_path, story, rules=YES)


def test_a_gateway_whose_server_is_not_reached_yet_says_when_to_come_again(tmp_path: Path) -> None:
    async def story(site: Site, proxy: Proxy) -> None:
        for domain in site.service._proxies._domains:
            domain.server = None
        status, answer, retry = await site.hand_in(await asked(proxy, site.owner))
        assert (status, answer["reason"], retry) == (503, "gateway-not-ready", "5")

    play(tmp_path, story, rules=YES)
