"""The server asks the owner: parked, challenged, answered, issued; once, by the right owner, over restarts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import challenge as challenges
from appliance.binding import composite, jws, possession, verify
from appliance.binding.challenge import BindingChallenge
from appliance.binding.errors import KeyReused, TokenTypeWrong
from appliance.binding.facts import OwnerKey, OwnerRecord
from appliance.binding.verify import TrustDomain
from appliance.identity.challenge_states import CHALLENGE, ChallengeEvent, ChallengeState, step
from appliance.identity.challenges import MAX_WAITING_CALLS
from appliance.identity.errors import ChallengeOver
from appliance.identity.routes import read_wait
from appliance.owner.client_key import client_keygen
from appliance.store import certificates
from appliance.store import challenges as rows
from appliance.web.peer import Peer
from est.exchange import Call
from est.signer import KeySigner
from tests.appliance.identity.campus import (
    ADMIN,
    ORIGIN,
    SERVER_ID,
    Ask,
    Campus,
    OwnerHost,
    Proxy,
    Token,
    campus_keys,
    new_key,
    random_id,
)
from tests.appliance.identity.test_enroll import credentials, play

PATH = "/v1/owners/self/challenges"


class Desk:
    """An owner's tool with its registered client key."""

    def __init__(self, owner: OwnerHost, peer: Peer) -> None:
        self.owner = owner
        self.peer = peer

    @classmethod
    async def register(cls, campus: Campus, owner: OwnerHost, folder: Path) -> Desk:
        made = client_keygen(folder / owner.ref, ref=owner.ref, audience=ORIGIN, now=campus.clock.now())
        await campus.directory.add_client_key(owner.ref, made.statement_file.read_text().strip(), actor=ADMIN)
        certificate = x509.load_pem_x509_certificate(made.certificate_file.read_bytes())
        return cls(owner, Peer("192.0.2.10", 77, certificate, (certificate,), "TLSv1.3"))

    async def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
        call = Call(method, path, "application/json" if body else "", headers, body)
        reply = await self.owner.campus.app.handle(call, self.peer)
        return reply.status, json.loads(reply.body)

    async def waiting(self, wait: int = 0) -> list[dict[str, Any]]:
        status, answer = await self.call("GET", PATH, **({"prefer": f"wait={wait}"} if wait else {}))
        assert status == 200, answer
        return list(answer["challenges"])

    async def answer(self, challenge: BindingChallenge, token: str) -> tuple[int, dict[str, Any]]:
        return await self.call("POST", f"{PATH}/{challenge.jti}", json.dumps({"approval": token}).encode())

    async def asked(self) -> BindingChallenge:
        (row,) = await self.waiting()
        return open_challenge(self.owner.campus, row["challenge"])


def open_challenge(campus: Campus, token: str) -> BindingChallenge:
    key = campus.ca.issuing("agents").certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return challenges.unseal(token, key)


async def registered(campus: Campus, proxy: Proxy, owner: OwnerHost, **changed: Any) -> Ask:
    """The request of an agent that an administrator registered to its owner."""
    key = new_key()
    await campus.registry.add(owner.ref, proxy.identifier, jws.jkt(key.public_key()), actor=ADMIN)
    return await again(proxy, owner, key, **changed)


async def again(proxy: Proxy, owner: OwnerHost, key: ec.EllipticCurvePrivateKey, **changed: Any) -> Ask:
    at = int(proxy.campus.clock.now().timestamp())
    return await proxy.ask(owner, key, **({"model": "server-mediated", "exp": at + 900} | changed))


def yes(owner: OwnerHost, ask: Ask, challenge: BindingChallenge, **changed: Any) -> str:
    at = int(owner.campus.clock.now().timestamp())
    return owner.approve(ask.token, **({"nonce": challenge.nonce, "proxy": challenge.proxy, "exp": at + 600} | changed))


@pytest.mark.req("A-60", "A-61", "A-62", "A-65", "A-5")
def test_parked_challenged_approved_and_issued_with_one_transaction_id(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        for _ in range(3):  # the same request coalesces
            body = composite.write(ask.composite())
            status, _, reply = await proxy.call("POST", "/v1/agents/enroll", body, composite.MEDIA_TYPE)
            assert (status, reply.headers["retry-after"]) == (202, "2")
            assert (await proxy.status(ask.request.rqh))[0] == 202
        (row,) = await desk.waiting()
        assert row["request"] == ask.token and jws.unbase64url(row["csr"], "csr") == ask.csr_der
        challenge = open_challenge(campus, row["challenge"])
        challenges.check(challenge, ask.request, owner_id=owner.identifier, server_id=SERVER_ID, now=campus.clock.now())
        assert (challenge.jti, challenge.proxy) == (row["id"], proxy.identifier)
        assert len(jws.unbase64url(challenge.nonce, "nonce")) == 32
        assert challenge.exp - challenge.iat == 900
        token = yes(owner, ask, challenge)
        status, told = await desk.answer(challenge, token)
        assert (status, told["decision"]) == (200, "approve")
        assert await desk.waiting() == [] and await credentials(campus, ask.sub) == []
        assert (await proxy.status(ask.request.rqh))[0] == 202
        status, issued = await ask.submit()
        assert status == 201, issued
        leaf = x509.load_pem_x509_certificates(issued["certificate"].encode())[0]
        record = OwnerRecord(owner.identifier, (OwnerKey(owner.jkt, owner.signer.public_key()),))
        domain = TrustDomain(ORIGIN, SERVER_ID, campus.ca.anchors("agents"))
        report = verify.verify_certificate(leaf, (), domain, lambda name: record, at=campus.clock.now())
        assert report.owner_id == owner.identifier
        told_events = ("owner-challenged", "owner-answered", "owner-approved", "dual-identity-issued")
        entries = [(await campus.audited(event))[-1] for event in told_events]
        assert {entry["fields"]["txn"] for entry in entries} == {issued["txn"]} == {told["txn"]}
        assert (await ask.submit())[1]["reason"] == "approval-spent"
        assert (await proxy.status(ask.request.rqh))[1]["serial"] == issued["serial"]
        assert (await desk.answer(challenge, token))[0] == 200  # a lost reply: the same answer, told again
        assert (await desk.answer(challenge, yes(owner, ask, challenge)))[1]["reason"] == "challenge-over"
        assert len(await credentials(campus, ask.sub)) == 1

    play(tmp_path, story)


@pytest.mark.req("A-61")
def test_only_the_registered_owner_is_asked_and_nobody_about_strangers(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        bob = await campus.owner("bob")
        desks = [await Desk.register(campus, one, tmp_path) for one in (owner, bob)]
        ask = await registered(campus, proxy, owner)
        other = await again(proxy, bob, ask.signer._key)
        assert (await other.submit())[1]["reason"] == "agent-owner-mismatch"
        stranger = await again(proxy, owner, new_key())
        assert (await stranger.submit())[1]["reason"] == "agent-not-registered"
        brought = replace(ask, approvals=(owner.approve(ask.token),))
        assert (await brought.submit())[1]["reason"] == "approval-not-expected"
        assert [await desk.waiting() for desk in desks] == [[], []]
        assert await campus.audited("owner-challenged") == []

    play(tmp_path, story)


@pytest.mark.req("A-60", "A-62", "A-93")
def test_a_signed_no_is_a_refusal_and_mutes_the_agent_for_a_while(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        await ask.submit()
        challenge = await desk.asked()
        unsigned = await desk.call("POST", f"{PATH}/{challenge.jti}", b'{"decision":"deny"}')
        assert unsigned[1]["reason"] == "claim-unknown"
        status, told = await desk.answer(challenge, yes(owner, ask, challenge, deny=True))
        assert (status, told["decision"]) == (200, "deny")
        for status, answer in (await ask.submit(), await proxy.status(ask.request.rqh)):
            assert (status, answer["reason"]) == (403, "approval-denied")
        assert (await desk.answer(challenge, yes(owner, ask, challenge)))[1]["reason"] == "challenge-over"
        entry = (await campus.audited("owner-answered"))[0]
        assert entry["fields"]["decision"] == "deny"
        next_one = await again(proxy, owner, ask.signer._key)
        assert (await next_one.submit())[1]["reason"] == "agent-muted"
        campus.clock.advance(901)
        later = await again(proxy, owner, ask.signer._key)
        assert (await later.submit())[0] == 202

    play(tmp_path, story)


@pytest.mark.req("A-93")
def test_an_owner_has_one_question_about_an_agent_and_so_many_in_all(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        first = await registered(campus, proxy, owner)
        await first.submit()
        superseded = await desk.asked()
        newer = await again(proxy, owner, first.signer._key)
        await newer.submit()
        (row,) = await desk.waiting()
        assert row["request"] == newer.token
        assert (await first.submit())[1]["reason"] == "challenge-over"
        assert (await desk.answer(superseded, yes(owner, first, superseded)))[1]["reason"] == "challenge-over"
        second = await registered(campus, proxy, owner)
        assert (await second.submit())[0] == 202
        third = await registered(campus, proxy, owner)
        status, answer = await third.submit()
        assert (status, answer["reason"]) == (429, "challenges-full")
        assert len(await desk.waiting()) == 2

    play(tmp_path, story, challenges_per_owner=2)


Forgery = Callable[[OwnerHost, OwnerHost, Ask, BindingChallenge], Awaitable[str]]
FORGERIES: dict[str, Forgery] = {}


def forged(reason: str) -> Callable[[Forgery], Forgery]:
    def keep(forgery: Forgery) -> Forgery:
        FORGERIES[f"{reason} ({forgery.__name__})"] = forgery
        return forgery

    return keep


@forged("approval-nonce-mismatch")
async def the_requests_own_nonce(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return yes(owner, ask, asked, nonce=None)


@forged("approval-nonce-mismatch")
async def a_nonce_of_ones_own(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return yes(owner, ask, asked, nonce="N" * 43)


@forged("signature-invalid")
async def signed_by_nobody_we_know(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return yes(owner, ask, asked, signer=KeySigner(new_key()))


@forged("approval-wrong-owner")
async def signed_by_another_owner(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return yes(owner, ask, asked, signer=bob.signer)


@forged("owner-mismatch")
async def in_another_owners_name(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return yes(bob, ask, asked)


@forged("self-approval")
async def by_the_agent_itself(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return yes(owner, ask, asked, signer=ask.signer)


@forged("approval-for-other-proxy")
async def for_another_proxy(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return yes(owner, ask, asked, proxy=f"{ORIGIN}/proxy/33333333-3333-4333-8333-333333333333")


@forged("approval-window-too-long")
async def usable_for_an_hour(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return yes(owner, ask, asked, exp=int(owner.campus.clock.now().timestamp()) + 3600)


@forged("approval-for-other-request")
async def for_another_request(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    other = await again(ask.proxy, owner, ask.signer._key)
    return yes(owner, other, asked)


@forged("token-type-wrong")
async def a_statement_of_the_same_key(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    honest = jws.read(yes(owner, ask, asked))
    claims = jws.read_object(honest.payload, "payload")
    return jws.seal(claims, typ=possession.TYP, signer=owner.signer, header={"kid": owner.jkt})


@forged("malformed")
async def no_token_at_all(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return "no.token"


@forged("signature-invalid")
async def the_challenge_sent_back(owner: OwnerHost, bob: OwnerHost, ask: Ask, asked: BindingChallenge) -> str:
    return asked.token


@pytest.mark.req("A-62", "A-94", "A-99", "A-100")
@pytest.mark.parametrize("name", FORGERIES)
def test_no_other_answer_counts_and_the_challenge_keeps_waiting(tmp_path: Path, name: str) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        bob = await campus.owner("bob")
        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        await ask.submit()
        asked = await desk.asked()
        status, answer = await desk.answer(asked, await FORGERIES[name](owner, bob, ask, asked))
        assert (answer["reason"], 400 <= status < 500) == (name.partition(" ")[0], True), answer
        assert (await campus.audited("owner-answered"))[-1]["outcome"] == "refused"
        assert len(await desk.waiting()) == 1
        assert (await ask.submit())[0] == 202 and await credentials(campus, ask.sub) == []
        assert (await desk.answer(asked, yes(owner, ask, asked)))[0] == 200
        assert (await ask.submit())[0] == 201

    play(tmp_path, story)


@pytest.mark.req("A-99", "A-100")
def test_only_the_challenged_owners_client_key_reaches_a_challenge(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        bob = await campus.owner("bob")
        desk, others = await Desk.register(campus, owner, tmp_path), await Desk.register(campus, bob, tmp_path)
        ask = await registered(campus, proxy, owner)
        await ask.submit()
        asked = await desk.asked()
        good = yes(owner, ask, asked)
        assert await others.waiting() == []
        assert (await others.answer(asked, good))[0] == 404
        stranger = Desk(owner, Peer("192.0.2.11", 78, None))
        assert (await stranger.call("GET", PATH))[1]["reason"] == "certificate-required"
        for peer in (proxy.peer, campus.peer(await campus.certificate(owner.signer._key, life=timedelta(days=1)))):
            # a proxy; and even the approval key itself, which must not be used to connect
            assert (await Desk(owner, peer).answer(asked, good))[1]["reason"] == "owner-client-unknown"
        assert (await campus.directory.show("alice"))["client_keys"][0]["state"] == "active"
        client = jws.jkt(desk.peer.certificate.public_key())  # type: ignore[union-attr, arg-type]
        await campus.directory.suspend("alice", actor=ADMIN)
        assert (await desk.call("GET", PATH))[1]["reason"] == "owner-not-active"
        await campus.directory.resume("alice", actor=ADMIN)
        await campus.directory.revoke_client_key("alice", client, actor=ADMIN)
        assert (await desk.answer(asked, good))[1]["reason"] == "owner-client-unknown"
        assert await credentials(campus, ask.sub) == []

    play(tmp_path, story)


@pytest.mark.req("A-1", "A-99")
def test_a_key_that_connects_never_approves_and_never_is_an_agents(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        key = KeySigner(new_key())
        at = int(campus.clock.now().timestamp())
        values = {"sub": "alice", "aud": ORIGIN, "iat": at, "exp": at + 600}
        as_client = possession.seal(key, **values, jti=random_id(), typ=possession.CLIENT_TYP)  # type: ignore[arg-type]
        with pytest.raises(TokenTypeWrong):
            await campus.directory.add_key("alice", as_client, actor=ADMIN)
        await campus.directory.add_client_key("alice", as_client, actor=ADMIN)
        as_approver = possession.seal(key, **values, jti=random_id())  # type: ignore[arg-type]
        own = possession.seal(owner.signer, **values, jti=random_id(), typ=possession.CLIENT_TYP)  # type: ignore[arg-type]
        for take, statement in (
            (campus.directory.add_key, as_approver),
            (campus.directory.add_client_key, own),
        ):
            with pytest.raises(KeyReused):
                await take("alice", statement, actor=ADMIN)
        ask = (await proxy.ask(owner, key._key)).approved()
        assert (await ask.submit())[1]["reason"] == "key-reuse"

    play(tmp_path, story)


@pytest.mark.req("A-62", "A-100")
@pytest.mark.parametrize(("kind", "life"), [("person", 900), ("policy", 30)])
def test_a_challenge_is_over_when_its_time_is(tmp_path: Path, kind: str, life: int) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        made = await campus.directory.add("engine", name="Engine", kind=kind, department="IT", actor=ADMIN)
        engine = OwnerHost(campus, "engine", made["identifier"], KeySigner(new_key()))
        await campus.directory.add_key("engine", engine.statement(), actor=ADMIN)
        desk = await Desk.register(campus, engine, tmp_path)
        ask = await registered(campus, proxy, engine, exp=int(campus.clock.now().timestamp()) + 900)
        await ask.submit()
        asked = await desk.asked()
        assert asked.exp - asked.iat == life
        campus.clock.advance(life - 1)
        assert len(await desk.waiting()) == 1
        campus.clock.advance(1)
        assert await desk.waiting() == []
        assert (await desk.answer(asked, yes(engine, ask, asked)))[1]["reason"] == "challenge-expired"
        for status, answer in (await ask.submit(), await proxy.status(ask.request.rqh)):
            assert (status, answer["reason"]) == (403, "challenge-expired")
        assert await credentials(campus, ask.sub) == []

    play(tmp_path, story)


@pytest.mark.req("A-21", "A-60", "A-110")
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("owner suspended", "owner-not-active"),
        ("key revoked", "owner-key-not-valid"),
        ("agent revoked", "agent-revoked"),
        ("evidence worse", "evidence-contraindicated"),
        ("evidence old", "evidence-too-old"),
        ("nothing", ""),
    ],
)
def test_a_yes_counts_for_what_is_so_when_the_credential_is_begun(tmp_path: Path, what: str, reason: str) -> None:
    policy = tmp_path / "appraisal.toml"
    policy.write_text('version = 1\nid = "urn:test"\n[default]\nroot = "contraindicated"\n')

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        at = int(campus.clock.now().timestamp())
        seen = proxy.evidence(ask.token, exp=at + 290)
        assert (await ask.submit(evidence=seen))[0] == 202
        asked = await desk.asked()
        assert (await desk.answer(asked, yes(owner, ask, asked)))[0] == 200
        campus.clock.advance(301 + 60)
        changed: dict[str, Any] = {}
        match what:
            case "owner suspended":
                await campus.directory.suspend("alice", actor=ADMIN)
            case "key revoked":
                await campus.directory.revoke_key("alice", owner.jkt, actor=ADMIN)
            case "agent revoked":
                await campus.registry.revoke(ask.sub, actor=ADMIN)
            case "evidence worse":
                changed["evidence"] = proxy.evidence(ask.token, agent={"uid": 0})
            case "evidence old":
                changed["evidence"] = seen
        status, answer = await ask.submit(**changed)
        assert answer.get("reason", "") == reason, answer
        assert status == (403 if reason else 201)
        assert len(await credentials(campus, ask.sub)) == (0 if reason else 1)

    play(tmp_path, story, appraisal_policy=policy)


@pytest.mark.req("A-62", "A-105")
def test_a_request_that_is_nearly_over_is_not_asked_about(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = await registered(campus, proxy, owner)
        campus.clock.advance(900 + 30)  # over, and within the tolerance for slow clocks
        assert (await ask.submit())[1]["reason"] == "request-expired"
        assert await campus.audited("owner-challenged") == []

    play(tmp_path, story)


@pytest.mark.req("A-60", "A-100")
def test_everything_is_still_known_after_a_restart_between_any_two_steps(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        seen = campus

        def restart() -> None:
            nonlocal seen, ask, desk
            seen.close()
            seen = Campus.create(tmp_path, reopen=seen)
            ask = replace(ask, proxy=replace(ask.proxy, campus=seen))
            desk = Desk(replace(desk.owner, campus=seen), desk.peer)

        assert (await ask.submit())[0] == 202
        restart()
        asked = await desk.asked()
        restart()
        token = yes(owner, ask, asked)
        assert (await desk.answer(asked, token))[0] == 200
        restart()
        assert (await desk.answer(asked, yes(owner, ask, asked)))[1]["reason"] == "challenge-over"
        status, issued = await ask.submit()
        assert status == 201, issued
        restart()
        assert (await ask.submit())[1]["reason"] == "approval-spent"
        assert (await ask.proxy.status(ask.request.rqh))[1]["serial"] == issued["serial"]
        assert (await desk.answer(asked, yes(owner, ask, asked)))[1]["reason"] == "challenge-over"
        assert len(await credentials(seen, ask.sub)) == 1
        seen.close()

    play(tmp_path, story)


@pytest.mark.req("A-100", "A-112")
def test_a_credential_that_was_interrupted_after_the_answer_was_spent_is_finished(tmp_path: Path) -> None:
    token = Token(campus_keys()[2]["agents"].signer)

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        await ask.submit()
        asked = await desk.asked()
        await desk.answer(asked, yes(owner, ask, asked))
        token.is_out = True
        assert (await ask.submit())[0] == 500
        token.is_out = False
        (kept,) = await campus.store.read(lambda tx: rows.by_rqh(tx, ask.request.rqh))
        assert kept.state == rows.SPENT
        status, issued = await ask.submit()
        assert status == 201, issued
        states = [row.state for row in await credentials(campus, ask.sub)]
        assert sorted(states) == [certificates.ISSUED, certificates.REVOKED]

    play(tmp_path, story, ca_token=token)


@pytest.mark.req("A-100")
def test_sixty_four_answers_and_sixty_four_polls_over_two_servers_make_one_credential(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        other = Campus.create(tmp_path, reopen=campus)
        desk = await Desk.register(campus, owner, tmp_path)
        twin = Desk(replace(owner, campus=other), desk.peer)
        ask = await registered(campus, proxy, owner)
        parked = await asyncio.gather(
            *(replace(ask, proxy=replace(proxy, campus=(campus, other)[at % 2])).submit() for at in range(16))
        )
        assert {status for status, _ in parked} == {202}
        asked = await desk.asked()
        answers = await asyncio.gather(
            *((desk, twin)[at % 2].answer(asked, yes(owner, ask, asked, deny=at % 4 == 3)) for at in range(64))
        )
        assert sum(status == 200 for status, _ in answers) == 1, answers
        assert {answer["reason"] for status, answer in answers if status != 200} == {"challenge-over"}
        (kept,) = await campus.store.read(lambda tx: rows.by_rqh(tx, ask.request.rqh))
        polls = await asyncio.gather(
            *(replace(ask, proxy=replace(proxy, campus=(campus, other)[at % 2])).submit() for at in range(64))
        )
        is_yes = kept.state == rows.APPROVED
        assert sum(status == 201 for status, _ in polls) == (1 if is_yes else 0), polls
        issued = [row for row in await credentials(campus, ask.sub) if row.state == certificates.ISSUED]
        assert len(issued) == (1 if is_yes else 0)
        other.close()

    play(tmp_path, story)


@pytest.mark.req("A-62")
def test_a_long_poll_ends_with_the_question_and_with_the_server(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        polls = [asyncio.create_task(desk.waiting(20)) for _ in range(MAX_WAITING_CALLS)]

        def hanging() -> int:
            return sum(map(len, campus.service.challenges._calls.values()))

        async with asyncio.timeout(15):
            while hanging() < MAX_WAITING_CALLS:
                await asyncio.sleep(0.01)
        assert await asyncio.wait_for(desk.waiting(20), 15) == []  # one too many is answered at once
        await ask.submit()
        for found in await asyncio.wait_for(asyncio.gather(*polls), 60):
            assert [row["request"] for row in found] == [ask.token]
        asked = await desk.asked()
        await desk.answer(asked, yes(owner, ask, asked))
        poll = asyncio.create_task(desk.waiting(20))
        async with asyncio.timeout(15):
            while not hanging():
                await asyncio.sleep(0.01)
        campus.service.challenges.release()
        assert await asyncio.wait_for(poll, 15) == []

    play(tmp_path, story)


def test_how_long_a_poll_may_take_stands_in_prefer() -> None:
    said = {"wait=5": 5, "respond-async, wait=10": 10, 'wait="7"': 7, "": 0, "await=3": 0, "wait=99999": 0}
    assert {text: read_wait(text) for text in said} == said


@pytest.mark.req("A-62")
def test_a_challenge_moves_only_along_its_table() -> None:
    for state in ChallengeState:
        for event in ChallengeEvent:
            if (state, event) not in CHALLENGE:
                with pytest.raises(ChallengeOver):
                    step(state, event)
    assert {state.value for state in ChallengeState} - {"expired"} == {
        rows.WAITING, rows.APPROVED, rows.DENIED, rows.SPENT, rows.SUPERSEDED, rows.NOT_NEEDED,
    }  # fmt: skip
