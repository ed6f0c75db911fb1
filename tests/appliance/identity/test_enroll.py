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
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import composite, dual_identity, jws, token, verify
from appliance.binding.facts import OwnerKey, OwnerRecord
from appliance.binding.verify import TrustDomain
from appliance.store import certificates, nonces
from est import csr
from est.signer import KeySigner
from tests.appliance.identity.campus import (
    ADMIN,
    ORIGIN,
    SERVER_ID,
    Ask,
    Campus,
    OwnerHost,
    Proxy,
    campus_keys,
    new_key,
)

Story = Callable[[Campus, Proxy, OwnerHost], Awaitable[None]]


def play(folder: Path, story: Story, **settings: Any) -> None:
    async def run() -> None:
        campus = Campus.create(folder, **settings)
        try:
            await story(campus, await campus.proxy(), await campus.owner())
        finally:
            campus.close()

    asyncio.run(run())


async def credentials(campus: Campus, agent: str) -> list[Any]:
    return await campus.store.read(lambda tx: certificates.of(tx, "agent_id", agent))


@pytest.mark.req("A-15", "A-30", "A-34", "A-40", "W-3", "W-12", "W-13")
def test_an_approved_request_gets_a_certificate_and_a_wit_that_anybody_can_verify(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner, label="notes agent")).approved()
        status, answer = await ask.submit()
        assert status == 201, answer
        leaf, issuing = x509.load_pem_x509_certificates(answer["certificate"].encode())
        record = OwnerRecord(owner.identifier, (OwnerKey(owner.jkt, owner.signer.public_key()),))
        domain = TrustDomain(ORIGIN, SERVER_ID, campus.ca.anchors("agents"))
        report = verify.verify_certificate(leaf, (), domain, lambda name: record, at=campus.clock.now())
        assert (report.agent_id, report.owner_id) == (ask.sub, owner.identifier)
        assert issuing == campus.ca.issuing("agents").certificate
        dual = dual_identity.of_certificate(leaf)
        assert dual is not None and dual.log_sequence == answer["log_index"]
        assert len(leaf.public_bytes(Encoding.DER)) <= 2000
        issuer = campus.service.issuer
        wit = verify.verify_wit(
            answer["wit"],
            domain,
            lambda name: record,
            issuer=issuer.wit_issuer,
            issuer_keys={issuer.wit_kid: issuer.wit_signer.public_key()},
            at=campus.clock.now(),
            approval=ask.approvals[0],
        )
        assert wit.agent_id == ask.sub
        assert jws.read(answer["wit"]).header["kid"] == issuer.wit_kid
        assert len(answer["wit"]) <= 1200
        assert (answer["not_after"], answer["renew_after"]) == ("2026-01-01T13:00:00Z", "2026-01-01T12:40:00Z")
        assert token.owner_claim_of("campus.example") in jws.read_object(jws.read(answer["wit"]).payload, "WIT")

    play(tmp_path, story)


@pytest.mark.req("A-5", "A-112")
def test_one_txn_runs_through_audit_certificate_and_answer_and_only_hashes_are_audited(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner, txn="flow-7", label="notes agent")).approved()
        _, answer = await ask.submit()
        (row,) = await credentials(campus, ask.sub)
        assert answer["txn"] == row.txn == "flow-7"
        entries = {entry["event"]: entry for entry in await campus.audited()}
        told = ("agent-request-received", "evidence-appraised", "owner-approved", "agent-registered")
        for event in (*told, "dual-identity-issued"):
            assert entries[event]["fields"]["txn"] == "flow-7", event
        pending, issued = entries["certificate-pending"], entries["dual-identity-issued"]
        assert pending["seq"] == answer["log_index"] == issued["fields"]["pending"] < issued["seq"]
        assert issued["fields"]["approvals_s256"] == [jws.s256(ask.approvals[0])]
        assert issued["fields"]["rqh"] == ask.request.rqh
        assert issued["fields"]["wit_s256"] == jws.s256(answer["wit"])
        whole = json.dumps(await campus.audited())
        for secret in (ask.token, ask.approvals[0], answer["wit"], "notes agent"):
            assert secret not in whole
        shown = await campus.registry.show(ask.sub)
        assert shown["requests"][0]["approvals_s256"] == [jws.s256(ask.approvals[0])]

    play(tmp_path, story)


Damage = Callable[[Campus, Proxy, OwnerHost], Awaitable[tuple[int, dict[str, Any]]]]
REFUSALS: dict[str, Damage] = {}


def refused_with(reason: str) -> Callable[[Damage], Damage]:
    def register(damage: Damage) -> Damage:
        REFUSALS[f"{reason} ({damage.__name__})"] = damage
        return damage

    return register


@refused_with("self-approval")
async def agent_signs_its_own_approval(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.approve(ask.token, ask.signer),)).submit()


@refused_with("self-approval")
async def another_agent_approves(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    friend = (await proxy.ask(owner)).approved()
    assert (await friend.submit())[0] == 201
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.approve(ask.token, friend.signer),)).submit()


@refused_with("signature-invalid")
async def unknown_owner_approves(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.approve(ask.token, KeySigner(new_key())),)).submit()


@refused_with("signature-invalid")
async def nobody_registered_is_named(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    stranger = OwnerHost(campus, "x", f"{ORIGIN}/owner/22222222-2222-4222-8222-222222222222", KeySigner(new_key()))
    return await (await proxy.ask(stranger)).approved().submit()


@refused_with("owner-mismatch")
async def another_owner_approves(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    bob = await campus.owner("bob", "HR")
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(bob.approve(ask.token),)).submit()


@refused_with("approval-wrong-owner")
async def owner_signs_in_anothers_name(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    bob = await campus.owner("bob", "HR")
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(bob.approve(ask.token, iss=owner.identifier),)).submit()


@refused_with("owner-not-active")
async def owner_is_suspended(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    await campus.directory.suspend("alice", actor=ADMIN)
    return await ask.submit()


@refused_with("owner-not-active")
async def owner_is_revoked(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    await campus.directory.revoke("alice", actor=ADMIN)
    return await ask.submit()


@refused_with("owner-key-not-valid")
async def owner_key_is_retired(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    await campus.directory.rotate_key("alice", owner.statement(KeySigner(new_key())), actor=ADMIN)
    return await ask.submit()


@refused_with("approval-missing")
async def no_approval(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner)).submit()


@refused_with("approval-for-other-key")
async def approval_for_another_key(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    other = KeySigner(new_key())
    return await replace(ask, approvals=(owner.forge(ask.token, cnf={"jkt": jws.jkt(other.public_key())}),)).submit()


@refused_with("approval-for-other-agent")
async def approval_of_another_request(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    other, ask = await proxy.ask(owner), await proxy.ask(owner)
    return await replace(ask, approvals=(owner.approve(other.token),)).submit()


@refused_with("approval-for-other-request")
async def approval_for_other_bytes(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.forge(ask.token, rqh=jws.s256("else")),)).submit()


@refused_with("approval-wrong-audience")
async def approval_for_another_server(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.forge(ask.token, aud="https://ids.other.example/v1"),)).submit()


@refused_with("approval-widened")
async def approval_of_a_longer_life(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.forge(ask.token, ttl=7200),)).submit()


@refused_with("approval-nonce-mismatch")
async def approval_with_another_nonce(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.forge(ask.token, nonce="A" * 43),)).submit()


@refused_with("approval-for-other-model")
async def approval_for_another_model(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.forge(ask.token, model="owner-mediated"),)).submit()


@refused_with("approval-expired")
async def approval_is_over(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    at = int(campus.clock.now().timestamp())
    ask = (await proxy.ask(owner)).approved(iat=at - 600, exp=at - 61)
    return await ask.submit()


@refused_with("approval-window-too-long")
async def approval_for_two_days(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    at = int(campus.clock.now().timestamp())
    return await (await proxy.ask(owner)).approved(exp=at + 2 * 86_400).submit()


@refused_with("approval-denied")
async def owner_says_no(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner)).approved(deny=True).submit()


@refused_with("approval-for-other-proxy")
async def approval_names_another_proxy(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    other = await campus.proxy()
    return await (await proxy.ask(owner)).approved(proxy=other.identifier).submit()


@refused_with("proxy-not-allowed-for-owner")
async def proxy_is_not_in_the_matrix(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    other = await campus.proxy()
    await campus.directory.allow_proxy("alice", other.identifier, actor=ADMIN)
    return await (await proxy.ask(owner)).approved().submit()


@refused_with("approvers-not-distinct")
async def one_key_approves_twice(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner)
    return await replace(ask, approvals=(owner.approve(ask.token), owner.approve(ask.token))).submit()


@refused_with("request-wrong-audience")
async def request_for_another_server(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner, aud="https://ids.other.example/v1")).approved().submit()


@refused_with("request-expired")
async def request_is_over(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    at = int(campus.clock.now().timestamp())
    return await (await proxy.ask(owner, iat=at - 600, exp=at - 61)).approved().submit()


@refused_with("request-window-too-long")
async def request_for_two_days(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    at = int(campus.clock.now().timestamp())
    return await (await proxy.ask(owner, exp=at + 2 * 86_400)).approved().submit()


@refused_with("nonce-unknown")
async def nonce_of_nobody(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner, nonce="A" * 43)).approved().submit()


@refused_with("nonce-expired")
async def nonce_is_too_old(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    granted = await proxy.nonce(jws.jkt((signer := KeySigner(new_key())).public_key()))
    campus.clock.advance(86_401)
    return await Ask.make(proxy, owner, signer, granted, {}).approved().submit()


@refused_with("nonce-for-other-key")
async def nonce_of_another_key(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    granted = await proxy.nonce(jws.jkt(new_key().public_key()))
    return await Ask.make(proxy, owner, KeySigner(new_key()), granted, {}).approved().submit()


@refused_with("nonce-for-other-proxy")
async def request_moves_to_another_proxy(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask, other = (await proxy.ask(owner)).approved(), await campus.proxy()
    return await replace(ask, proxy=other).submit()


@refused_with("nonce-for-other-purpose")
async def nonce_for_renewal(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    signer = KeySigner(new_key())
    granted = await proxy.nonce(jws.jkt(signer.public_key()), "renew")
    return await Ask.make(proxy, owner, signer, granted, {}).approved().submit()


@refused_with("request-for-other-agent")
async def another_agents_name(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    other = f"{ORIGIN}/agent/11111111-1111-4111-8111-111111111111"
    return await (await proxy.ask(owner, sub=other, san=other)).approved().submit()


@refused_with("origin-mismatch")
async def name_of_another_trust_domain(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    other = "spiffe://other.example/agent/11111111-1111-4111-8111-111111111111"
    return await (await proxy.ask(owner, sub=other, san=other)).approved().submit()


@refused_with("gateway-required")
async def owner_mediated_without_the_gateway(
    campus: Campus, proxy: Proxy, owner: OwnerHost
) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner, model="owner-mediated")).approved().submit()


@refused_with("request-window-too-long")
async def server_mediated_for_an_hour(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner, model="server-mediated")).submit()


@refused_with("single-identity-not-offered")
async def no_owner_at_all(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(None)).submit()


@refused_with("csr-mismatch")
async def csr_was_exchanged(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    return await replace(ask, csr_der=csr.build(subject=x509.Name([]), key=ask.signer)).submit()


@refused_with("csr-key-mismatch")
async def csr_of_another_key(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner, csr_der=csr.build(subject=x509.Name([]), key=new_key()))).approved().submit()


@refused_with("csr-names-mismatch")
async def csr_for_another_name(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    other = f"{ORIGIN}/agent/11111111-1111-4111-8111-111111111111"
    return await (await proxy.ask(owner, san=other)).approved().submit()


@refused_with("csr-missing")
async def csr_is_missing(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await replace((await proxy.ask(owner)).approved(), csr_der=None).submit()


@refused_with("proof-of-possession-failed")
async def csr_signature_is_broken(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    assert ask.csr_der is not None
    return await replace(ask, csr_der=ask.csr_der[:-4] + bytes(4)).submit()


@refused_with("key-reuse")
async def agent_has_the_proxys_key(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner, proxy.key)).approved().submit()


@refused_with("key-reuse")
async def agent_has_an_owners_key(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    key, bob = new_key(), await campus.owner("bob", with_key=False)
    await campus.directory.add_key("bob", bob.statement(KeySigner(key)), actor=ADMIN)
    return await (await proxy.ask(owner, key)).approved().submit()


@refused_with("key-reuse")
async def agent_has_the_cas_key(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    signer: Any = campus_keys()[2]["agents"].signer
    granted = await proxy.nonce(jws.jkt(signer.public_key()))
    return await Ask.make(proxy, owner, signer, granted, {}).approved().submit()


@refused_with("key-reuse")
async def agent_has_another_agents_key(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    key, other = new_key(), await campus.proxy()
    assert (await (await proxy.ask(owner, key)).approved().submit())[0] == 201
    return await (await other.ask(owner, key)).approved().submit()


@refused_with("agent-owner-mismatch")
async def agent_wants_another_owner(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    key, bob = new_key(), await campus.owner("bob")
    assert (await (await proxy.ask(owner, key)).approved().submit())[0] == 201
    return await (await proxy.ask(bob, key)).approved().submit()


@refused_with("agent-revoked")
async def agent_is_revoked(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    key = new_key()
    first = (await proxy.ask(owner, key)).approved()
    assert (await first.submit())[0] == 201
    again = (await proxy.ask(owner, key)).approved()
    await campus.registry.revoke(first.sub, actor=ADMIN)
    return await again.submit()


@refused_with("evidence-missing")
async def no_evidence(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    return await (await proxy.ask(owner)).approved().submit(evidence=None)


@refused_with("signature-invalid")
async def evidence_of_another_proxys_key(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask, other = (await proxy.ask(owner)).approved(), await campus.proxy()
    return await ask.submit(evidence=proxy.evidence(ask.token, other.key))


@refused_with("evidence-wrong-proxy")
async def evidence_in_another_proxys_name(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask, other = (await proxy.ask(owner)).approved(), await campus.proxy()
    return await ask.submit(evidence=proxy.evidence(ask.token, iss=other.identifier))


@refused_with("evidence-nonce-mismatch")
async def evidence_transplanted(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask, other = (await proxy.ask(owner)).approved(), await proxy.ask(owner)
    return await ask.submit(evidence=proxy.evidence(other.token))


@refused_with("evidence-for-other-request")
async def evidence_for_other_bytes(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    return await ask.submit(evidence=proxy.evidence(ask.token, rqh=jws.s256("else")))


@refused_with("evidence-for-other-key")
async def evidence_about_another_agent(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    return await ask.submit(evidence=proxy.evidence(ask.token, jkt=jws.jkt(new_key().public_key())))


@refused_with("evidence-for-other-owner")
async def evidence_about_another_owner(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask, bob = (await proxy.ask(owner)).approved(), await campus.owner("bob")
    return await ask.submit(evidence=proxy.evidence(ask.token, agent={"owner_id": bob.identifier}))


@refused_with("evidence-too-old")
async def evidence_is_old(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    made = proxy.evidence(ask.token)
    campus.clock.advance(400)
    return await ask.submit(evidence=made)


@refused_with("evidence-window-too-long")
async def evidence_for_an_hour(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = (await proxy.ask(owner)).approved()
    at = int(campus.clock.now().timestamp())
    return await ask.submit(evidence=proxy.evidence(ask.token, exp=at + 3600))


@refused_with("renewal-proof-missing")
async def renewal_of_nothing(campus: Campus, proxy: Proxy, owner: OwnerHost) -> tuple[int, dict[str, Any]]:
    ask = await proxy.ask(owner, purpose="renew", previous=KeySigner(new_key()))
    return await ask.approved().submit()


@pytest.mark.req("A-1", "A-6", "A-11", "A-13", "A-14", "A-23", "A-65", "A-94", "A-96", "A-99", "A-101", "A-103")
@pytest.mark.parametrize("name", REFUSALS)
def test_a_request_with_one_thing_wrong_is_refused_with_its_own_reason(tmp_path: Path, name: str) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        reason = name.partition(" ")[0]
        before = len(await credentials(campus, ""))
        status, answer = await REFUSALS[name](campus, proxy, owner)
        assert (answer["reason"], 400 <= status < 500) == (reason, True), answer
        refused = await campus.audited("agent-request-refused")
        assert refused[-1]["reason"] == reason
        assert refused[-1]["outcome"] == "refused"
        assert len(await credentials(campus, "")) == before
        unspent = await campus.store.read(lambda tx: nonces.get(tx, "A" * 43))
        assert unspent is None

    play(tmp_path, story)


def test_a_refusal_does_not_tell_which_owners_exist(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        stranger = replace(owner, identifier=f"{ORIGIN}/owner/22222222-2222-4222-8222-222222222222")
        forger = KeySigner(new_key())
        answers = []
        for one in (owner, stranger):
            ask = await proxy.ask(one)
            answers.append(await replace(ask, approvals=(one.approve(ask.token, forger),)).submit())
        for _, answer in answers:
            del answer["request_id"]
        assert answers[0] == answers[1]

    play(tmp_path, story)


def test_what_was_refused_can_be_handed_in_again_with_what_was_missing(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        status, _ = await ask.submit(evidence=None)
        assert status == 400
        status, answer = await ask.submit()
        assert status == 201, answer

    play(tmp_path, story)


@pytest.mark.req("A-105")
def test_the_life_is_the_shortest_of_all_caps(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        async def life(ask: Ask) -> float:
            status, answer = await ask.submit()
            assert status == 201, answer
            leaf = x509.load_pem_x509_certificate(answer["certificate"].encode())
            return (leaf.not_valid_after_utc - campus.clock.now()).total_seconds()

        assert await life((await proxy.ask(owner, ttl=86_400)).approved()) == 2 * 3600  # the setting
        assert await life((await proxy.ask(owner)).approved(ttl=600)) == 600  # the approval
        short = await campus.proxy(life=timedelta(seconds=500))
        assert await life((await short.ask(owner)).approved()) == 500  # the proxy's certificate
        old = owner.signer
        owner.signer = KeySigner(new_key())
        await campus.directory.rotate_key("alice", owner.statement(), actor=ADMIN, overlap=timedelta(seconds=400))
        assert await life((await proxy.ask(owner)).approved(signer=old)) == 400  # the owner's key
        as_root = {"executable": "/usr/bin/agent", "uid": 0}
        ask = (await proxy.ask(owner, ttl=7200)).approved()
        status, answer = await ask.submit(evidence=proxy.evidence(ask.token, agent=as_root))
        assert (status, answer["not_after"]) == (201, "2026-01-01T13:00:00Z")  # a warning of the appraisal

    play(tmp_path, story, agent_hours=2)


@pytest.mark.req("A-15")
def test_the_profiles_are_those_both_asked_and_approved(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        status, answer = await (await proxy.ask(owner)).approved(profiles=("x509",)).submit()
        assert (status, "wit" in answer, "certificate" in answer) == (201, False, True)
        ask = (await proxy.ask(owner, profiles=("wit",))).approved()
        status, answer = await ask.submit()
        assert (status, "wit" in answer, "certificate" in answer) == (201, True, False)
        assert answer["serial"] is None
        assert await credentials(campus, ask.sub) == []
        pending, issued = await campus.audited("wit-pending"), await campus.audited("wit-issued")
        assert pending[0]["seq"] == answer["log_index"] < issued[-1]["seq"]
        assert (await proxy.status(ask.request.rqh))[1] == answer

    play(tmp_path, story)


@pytest.mark.req("A-2")
def test_a_site_that_allows_it_gives_an_agent_without_an_owner_a_single_identity(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = await proxy.ask(None)
        status, answer = await ask.submit()
        assert status == 201, answer
        leaf = x509.load_pem_x509_certificate(answer["certificate"].encode())
        assert dual_identity.of_certificate(leaf) is None
        (row,) = await credentials(campus, ask.sub)
        assert row.owner_id is None
        assert len(await campus.audited("single-identity-issued")) == 1
        # an owner cannot be smuggled in later, and an approval of nobody's agent is not one of anybody's
        again = await proxy.ask(owner, profiles=("x509",), nonce_sub=ask.sub)
        status, answer = await again.approved().submit()
        assert (status, answer["reason"]) == (409, "conflict")

    play(tmp_path, story, single_identity=True)


@pytest.mark.req("A-106", "A-3", "E-122")
def test_a_renewal_needs_the_live_key_and_a_new_one(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        key = new_key()
        first = (await proxy.ask(owner, key)).approved()
        assert (await first.submit())[0] == 201
        renew = {"purpose": "renew", "nonce_sub": first.sub}
        by_nobody = (await proxy.ask(owner, **renew, previous=KeySigner(new_key()))).approved()
        assert (await by_nobody.submit())[1]["reason"] == "signature-invalid"
        same_key = (await proxy.ask(owner, key, **renew, previous=KeySigner(key))).approved()
        assert (await same_key.submit())[1]["reason"] == "key-reuse"
        without_owner_s_word = await proxy.ask(owner, **renew, previous=KeySigner(key))
        assert (await without_owner_s_word.submit())[1]["reason"] == "approval-missing"
        renewed = (await proxy.ask(owner, **renew, previous=KeySigner(key))).approved()
        status, answer = await renewed.submit()
        assert (status, answer["sub"]) == (201, first.sub)
        assert len(await credentials(campus, first.sub)) == 2
        assert len(await campus.audited("agent-registered")) == 1

    play(tmp_path, story)


@pytest.mark.req("A-110", "A-106")
def test_a_wit_alone_is_not_given_again_and_vouches_for_nothing_once_its_owner_s_key_is_revoked(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        second, key = KeySigner(new_key()), new_key()
        await campus.directory.add_key("alice", owner.statement(second), actor=ADMIN)
        wit = (await proxy.ask(owner, key, profiles=("wit",))).approved()
        assert (await wit.submit())[0] == 201

        async def renewed() -> tuple[int, dict[str, Any]]:
            renew = {"purpose": "renew", "nonce_sub": wit.sub, "profiles": ("wit",), "previous": KeySigner(key)}
            ask = await proxy.ask(owner, **renew)
            return await replace(ask, approvals=(owner.approve(ask.token, second),)).submit()

        assert (await proxy.status(wit.request.rqh))[0] == 200
        await campus.directory.revoke_key("alice", owner.jkt, actor=ADMIN)
        status, answer = await proxy.status(wit.request.rqh)
        assert (status, answer["reason"]) == (403, "credential-withdrawn")
        status, answer = await renewed()
        assert (status, answer["reason"]) == (400, "renewal-proof-missing")

    play(tmp_path, story)


@pytest.mark.req("A-110")
@pytest.mark.parametrize("profiles", [("x509", "wit"), ("wit",)])
def test_nothing_is_given_again_once_its_owner_is_revoked(tmp_path: Path, profiles: tuple[str, ...]) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner, profiles=profiles)).approved()
        assert (await ask.submit())[0] == 201
        await campus.directory.revoke("alice", actor=ADMIN)
        status, answer = await proxy.status(ask.request.rqh)
        assert (status, answer["reason"]) == (403, "credential-withdrawn")

    play(tmp_path, story)


@pytest.mark.req("A-41")
def test_software_keys_of_owners_count_only_where_the_site_says_so(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        status, answer = await (await proxy.ask(owner)).approved().submit()
        assert (status, answer["reason"]) == (403, "owner-key-in-software")

    play(tmp_path, story, allow_software_owner_keys=False)


@pytest.mark.req("A-105", "A-40")
def test_an_owner_may_sign_hours_before_the_request_is_handed_in(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        at = int(campus.clock.now().timestamp())
        ask = (await proxy.ask(owner, exp=at + 86_400)).approved(exp=at + 86_400)
        campus.clock.advance(20 * 3600)
        status, answer = await ask.submit()
        assert status == 201, answer

    play(tmp_path, story)


@pytest.mark.req("A-21", "A-24")
def test_the_appraisal_policy_of_the_site_decides_what_evidence_is_worth(tmp_path: Path) -> None:
    known = "ab" * 32
    policy = tmp_path / "appraisal.toml"
    policy.write_text(
        f'version = 1\nid = "urn:x:1"\n[default]\nrequired = ["executable_digest"]\nexecutables = ["{known}"]\n'
        '[class.lax]\nrequired = []\nunknown_executable = "warning"\nwarning_seconds = 60\n'
    )

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        async def submit(ask: Ask, digest: str) -> tuple[int, dict[str, Any]]:
            seen = {"executable_digest": {"alg": "sha-256", "hash": jws.base64url(bytes.fromhex(digest))}}
            return await ask.submit(evidence=proxy.evidence(ask.token, agent=seen))

        ask = (await proxy.ask(owner)).approved()
        status, answer = await ask.submit()
        assert (status, answer["reason"]) == (403, "evidence-contraindicated")
        assert answer["claims"] == ["agent.executables", "agent.instance-identity"]
        assert (await submit(ask, "cd" * 32))[1]["claims"] == ["agent.executables"]
        assert (await submit(ask, known))[0] == 201
        key = new_key()
        jkt = jws.jkt(key.public_key())
        await campus.registry.add("alice", proxy.identifier, jkt, "lax", actor=ADMIN)
        status, answer = await submit((await proxy.ask(owner, key)).approved(), "cd" * 32)
        assert (status, answer["not_after"]) == (201, "2026-01-01T12:01:00Z")

    play(tmp_path, story, appraisal_policy=policy)


@pytest.mark.req("A-21", "A-24")
def test_a_policy_may_refuse_keys_that_the_proxy_made(tmp_path: Path) -> None:
    policy = tmp_path / "appraisal.toml"
    policy.write_text(
        'version = 1\nid = "urn:x:1"\n[default]\nkey_by_proxy = "contraindicated"\n'
        '[class.workload]\nkey_by_proxy = "warning"\nwarning_seconds = 60\n'
    )

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        async def submit(ask: Ask) -> tuple[int, dict[str, Any]]:
            return await ask.submit(evidence=proxy.evidence(ask.token, agent={"key_origin": "proxy"}))

        ask = (await proxy.ask(owner)).approved()
        status, answer = await submit(ask)
        assert (status, answer["reason"], answer["claims"]) == (
            403, "evidence-contraindicated", ["agent.configuration"],
        )  # fmt: skip
        assert (await ask.submit())[0] == 201, "the agent's own key"
        key = new_key()
        await campus.registry.add("alice", proxy.identifier, jws.jkt(key.public_key()), "workload", actor=ADMIN)
        status, answer = await submit((await proxy.ask(owner, key)).approved())
        assert (status, answer["not_after"]) == (201, "2026-01-01T12:01:00Z")

    play(tmp_path, story, appraisal_policy=policy)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00" * 64,
        b"[]",
        b"{}",
        b'{"request": "a.b.c", "request": "a.b.c"}',
        b'{"request": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"request": "' + b"x" * 70_000 + b'"}',
        b'{"request": "e30.e30.AA", "approvals": []}',
        b'{"request": 1, "approvals": [], "more": 2}',
        b'{"request": "\xff", "approvals": []}',
        b"0\x82\x01\x00",
        b'{"request": NaN}',
    ],
)
def test_bad_input_is_a_typed_refusal_and_changes_nothing(tmp_path: Path, body: bytes) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        status, answer, _ = await proxy.call("POST", "/v1/agents/enroll", body or b" ", composite.MEDIA_TYPE)
        assert 400 <= status < 500, answer
        status, answer, _ = await proxy.call("POST", "/v1/agents/nonce", body or b" ")
        assert 400 <= status < 500, answer
        ask = (await proxy.ask(owner)).approved()
        assert (await ask.submit())[0] == 201

    play(tmp_path, story)
