"""One-time things are spent once: by sixteen at a time, over a restart, and after a crash in between."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from appliance.binding import jws
from appliance.errors import IssuanceFailed
from appliance.store import agents, certificates
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, Campus, OwnerHost, Proxy, Token, campus_keys, new_key
from tests.appliance.identity.test_enroll import credentials, play


@pytest.mark.req("A-100")
def test_sixteen_at_once_get_exactly_one_credential(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        answers = await asyncio.gather(*(ask.submit() for _ in range(16)))
        assert sorted(status for status, _ in answers if status == 201) == [201]
        others = {(status, answer.get("reason", "")) for status, answer in answers if status != 201}
        assert others <= {(202, ""), (409, "approval-spent"), (409, "nonce-spent")}
        assert len(await credentials(campus, ask.sub)) == 1
        assert len(await campus.audited("dual-identity-issued")) == 1

    play(tmp_path, story)


@pytest.mark.req("A-100")
def test_two_servers_over_one_store_spend_an_approval_once(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        other = Campus.create(tmp_path, reopen=campus)
        twin = replace(proxy, campus=other)
        for _ in range(10):
            ask = (await proxy.ask(owner)).approved()
            answers = await asyncio.gather(ask.submit(), replace(ask, proxy=twin).submit())
            assert sorted(status for status, _ in answers)[0] == 201
            assert sum(status == 201 for status, _ in answers) == 1, answers
            issued = [row for row in await credentials(campus, ask.sub) if row.state == certificates.ISSUED]
            assert len(issued) == 1
        other.close()

    play(tmp_path, story)


@pytest.mark.req("A-98", "A-100")
def test_a_finished_request_is_409_when_posted_and_the_same_result_when_asked(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        _, answer = await ask.submit()
        for server in (campus, Campus.create(tmp_path, reopen=campus)):
            there = replace(proxy, campus=server)
            status, refused = await replace(ask, proxy=there).submit()
            assert (status, refused["reason"]) == (409, "approval-spent")
            assert await there.status(ask.request.rqh) == (200, answer)
            assert await there.status(ask.request.rqh) == (200, answer)
        assert len(await credentials(campus, ask.sub)) == 1
        stranger = await campus.proxy()
        assert (await stranger.status(ask.request.rqh))[0] == 404
        assert (await replace(ask, proxy=stranger).submit())[1]["reason"] == "nonce-for-other-proxy"
        for rqh in ("x", "A" * 43, "%00" * 15):
            assert (await proxy.status(rqh))[0] == 404

    play(tmp_path, story)


@pytest.mark.req("A-100")
@pytest.mark.parametrize("restart", [False, True])
def test_nonce_request_and_approval_identifiers_are_good_for_one_request_each(tmp_path: Path, restart: bool) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        key = new_key()
        first = (await proxy.ask(owner, key, jti="J" * 22)).approved(jti="K" * 22)
        assert (await first.submit())[0] == 201
        if restart:
            proxy = replace(proxy, campus=Campus.create(tmp_path, reopen=campus))
        same_nonce = (await proxy.ask(owner, key, nonce=first.request.nonce)).approved()
        assert (await same_nonce.submit())[1]["reason"] == "nonce-spent"
        same_request = (await proxy.ask(owner, key, jti="J" * 22)).approved()
        assert (await same_request.submit())[1]["reason"] == "request-replayed"
        same_approval = (await proxy.ask(owner, key)).approved(jti="K" * 22)
        assert (await same_approval.submit())[1]["reason"] == "approval-spent"
        # what was refused spent nothing of its own
        retried = replace(same_approval, approvals=(owner.approve(same_approval.token),))
        assert (await retried.submit())[0] == 201

    play(tmp_path, story)


def ca_token() -> Token:
    return Token(campus_keys()[2]["agents"].signer)


@pytest.mark.req("A-112")
@pytest.mark.parametrize("restart", [False, True])
def test_a_request_interrupted_after_its_yes_is_finished_when_it_comes_again(tmp_path: Path, restart: bool) -> None:
    token = ca_token()

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        token.is_out = True
        status, _ = await ask.submit()
        assert status == 500
        token.is_out = False
        (orphan,) = await credentials(campus, ask.sub)
        assert orphan.state == certificates.PENDING
        status, answer = await proxy.status(ask.request.rqh)
        assert (status, answer["status"]) == (202, f"/v1/agents/requests/{ask.request.rqh}")
        if restart:
            ask = replace(ask, proxy=replace(proxy, campus=Campus.create(tmp_path, reopen=campus)))
        campus.clock.advance(120)
        status, answer = await ask.submit()
        assert status == 201, answer
        lost, kept = await credentials(campus, ask.sub)
        assert (lost.state, lost.revocation_reason, kept.state) == ("revoked", "superseded", "issued")
        assert kept.txn == lost.txn == answer["txn"]
        assert (await ask.submit())[0] == 409
        assert len(await campus.audited("owner-approved")) == 1
        assert len(await campus.audited("evidence-appraised")) == 2

    play(tmp_path, story, ca_token=token)


@pytest.mark.req("A-112", "A-113")
def test_an_interrupted_request_is_finished_with_the_approval_that_is_on_record_only(tmp_path: Path) -> None:
    token = ca_token()

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        token.is_out = True
        await ask.submit()
        token.is_out = False
        other = replace(ask, approvals=(owner.approve(ask.token),))
        status, answer = await other.submit()
        assert (status, answer["reason"]) == (409, "approval-spent")
        assert [row.state for row in await credentials(campus, ask.sub)] == [certificates.PENDING]
        assert (await ask.submit())[0] == 201
        (entry,) = await campus.audited("owner-approved")
        (issued,) = await campus.audited("dual-identity-issued")
        assert issued["fields"]["approvals_s256"] == [entry["fields"]["approval_s256"]] == [jws.s256(ask.approvals[0])]

    play(tmp_path, story, ca_token=token)


@pytest.mark.req("A-110")
def test_an_interrupted_request_is_not_finished_for_an_owner_who_was_suspended_meanwhile(tmp_path: Path) -> None:
    token = ca_token()

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        token.is_out = True
        await ask.submit()
        token.is_out = False
        await campus.directory.suspend("alice", actor=ADMIN)
        assert (await ask.submit())[1]["reason"] == "owner-not-active"
        campus.clock.advance(3600 + 61)
        assert (await proxy.status(ask.request.rqh))[1]["reason"] == "request-abandoned"
        assert (await ask.submit())[1]["reason"] == "request-expired"

    play(tmp_path, story, ca_token=token)


@pytest.mark.parametrize("which", ["ca_token", "wit_token"])
def test_a_credential_that_does_not_verify_never_leaves(tmp_path: Path, which: str) -> None:
    token = ca_token() if which == "ca_token" else Token(KeySigner(new_key()))

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        token.lies = True
        evidence = proxy.evidence(ask.token)
        status, answer = await ask.submit(evidence=evidence)
        assert (status, answer["reason"]) == (500, IssuanceFailed.reason)
        assert [row.state for row in await credentials(campus, ask.sub)] == [certificates.PENDING]
        assert await campus.audited("dual-identity-issued") == []
        token.lies = False
        assert (await ask.submit())[0] == 201

    play(tmp_path, story, **{which: token})


@pytest.mark.req("A-98")
def test_identifiers_are_reserved_per_key_and_only_so_many(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        jkts = [jws.jkt(new_key().public_key()) for _ in range(4)]
        first = await proxy.nonce(jkts[0])
        again = await proxy.nonce(jkts[0])
        assert first["sub"] == again["sub"]
        assert first["nonce"] != again["nonce"]
        assert (len(first["nonce"]), first["expires_in"]) == (43, 86_400)
        await proxy.nonce(jkts[1])
        await proxy.nonce(jkts[2])
        with pytest.raises(AssertionError, match="reservations-full"):
            await proxy.nonce(jkts[3])
        other = await campus.proxy()
        assert (await other.nonce(jkts[0]))["sub"] != first["sub"]
        campus.clock.advance(86_500)
        await proxy.nonce(jkts[3])
        assert await campus.store.read(lambda tx: agents.by_identifier(tx, first["sub"])) is None

    play(tmp_path, story, reserve_per_proxy=3)


def test_a_nonce_for_an_agent_is_given_to_its_own_proxy_only(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner)).approved()
        assert (await ask.submit())[0] == 201
        other, jkt = await campus.proxy(), jws.jkt(new_key().public_key())
        for where in (ask.sub, f"{ask.sub[:-4]}0000"):
            with pytest.raises(AssertionError, match="agent-unknown"):
                await other.nonce(jkt, "renew", where)
        assert (await proxy.nonce(jkt, "renew", ask.sub))["sub"] == ask.sub

    play(tmp_path, story)


@pytest.mark.req("A-98")
def test_a_proxy_that_asks_too_often_has_to_wait(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        for _ in range(3):
            await proxy.status("A" * 43)
        status, answer, reply = await proxy.call("GET", f"/v1/agents/requests/{'A' * 43}")
        assert (status, answer["reason"]) == (429, "rate-limited")
        assert int(reply.headers["retry-after"]) >= 1
        assert (await (await campus.proxy()).status("A" * 43))[0] == 404

    play(tmp_path, story, proxy_rate=0.1, proxy_burst=3)


def test_the_answer_holds_the_chain_up_to_the_issuing_ca(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        _, answer = await (await proxy.ask(owner)).approved().submit()
        leaf, issuing = x509.load_pem_x509_certificates(answer["certificate"].encode())
        leaf.verify_directly_issued_by(issuing)
        issuing.verify_directly_issued_by(campus.ca.root)
        _, trust, reply = await proxy.call("GET", "/v1/trust")
        assert x509.load_pem_x509_certificate(trust["root"].encode()) == campus.ca.root
        assert trust["radius_server_name"] == "radius.campus.example"
        assert (trust["server_id"], trust["trust_domain"]) == ("https://ids.campus.example/v1", "campus.example")
        assert trust["wit_keys"]["keys"][0]["kid"] == jws.read(answer["wit"]).kid

    play(tmp_path, story)
