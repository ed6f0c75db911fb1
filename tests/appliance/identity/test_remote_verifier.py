"""A verifier elsewhere, over real HTTPS: what it says counts only when it is about this request, and a verifier that is
away costs nobody anything."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from appliance.agent.requester import read_claims
from appliance.binding import bundle, composite, ear, evidence, jws
from appliance.binding.errors import BindingError, EarDigestMismatch, EvidenceForOtherRequest, SignatureInvalid
from appliance.binding.package import verify_package
from appliance.evidence_package import EvidencePackages
from appliance.identity.appraisal_policy import BUILT_IN, AppraisalPolicy, read_appraisal_policy
from appliance.identity.errors import VerifierSettingInvalid
from appliance.identity.remote_verifier import read_destination
from appliance.settings import IdentitySettings
from appliance.store import requests as request_rows
from est.signer import KeySigner
from lab.verifier import PATH, LabVerifier
from tests.appliance.identity.campus import ADMIN, Campus, OwnerHost, Proxy, new_key

Answer = Callable[["Wayward", web.Request, str], Awaitable[web.StreamResponse]]


class Wayward(LabVerifier):
    """The lab's verifier, which answers something else while `instead` is set."""

    instead: Answer | None = None
    calls = 0
    heard: dict[str, Any]
    said = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        body = await request.read()
        self.heard = json.loads(body)
        if self.instead is None:
            answer = await super().answer(request)
            self.said = answer.text or "" if isinstance(answer, web.Response) else ""
            return answer
        return await self.instead(self, request, self.appraise(body))

    def sealed(self, token: str, signer: KeySigner | None = None, **changed: Any) -> web.Response:
        """Its own honest result with other claims, signed by its own key or another."""
        claims = jws.read_object(jws.read(token).payload, "EAR") | changed
        signer = signer or self._signer
        claims = {name: value for name, value in claims.items() if value is not None}
        made = jws.seal(claims, typ=ear.TYP, signer=signer, header={"kid": jws.jkt(signer.public_key())})
        return eat(made)


def eat(token: str) -> web.Response:
    return web.Response(text=token, content_type="application/eat+jwt")


Story = Callable[[Campus, Proxy, OwnerHost, Wayward], Awaitable[None]]


def play(folder: Path, story: Story, *, policy: AppraisalPolicy = BUILT_IN, **settings: Any) -> None:
    async def run() -> None:
        holder: list[Campus] = []
        verifier = Wayward(folder / "verifier", policy, now=lambda: holder[0].clock.now())
        port = await verifier.start()
        found = {
            "verifier_url": f"https://localhost:{port}{PATH}",
            "verifier_anchors": folder / "verifier" / "tls.pem",
            "verifier_keys": folder / "verifier" / "verifier.pub",
        }
        campus = Campus.create(folder, **(found | settings))
        holder.append(campus)
        try:
            await story(campus, await campus.proxy(), await campus.owner(), verifier)
        finally:
            await campus.service.close()
            campus.close()
            await verifier.stop()

    asyncio.run(run())


@pytest.mark.req("A-21")
def test_a_verifier_elsewhere_appraises_first_issue_and_every_renewal(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        key = new_key()
        ask = (await proxy.ask(owner, key)).approved()
        status, answer = await ask.submit()
        assert (status, verifier.calls) == (201, 1), answer
        token = evidence.read_cmw(verifier.heard["evidence"])
        assert jws.s256(ask.token) == verifier.heard["rqh"] == evidence.unseal(token, proxy.key.public_key()).rqh
        assert verifier.heard["nonce"] == ask.request.nonce
        kept = await campus.store.read(lambda tx: request_rows.get(tx, ask.request.rqh))
        assert kept is not None and kept.ear == verifier.said
        result = ear.unseal(kept.ear, verifier._signer.public_key())
        assert (result.developer, result.raw_evidence) == ("https://verifier.lab.example", token)
        renewal = {"purpose": "renew", "nonce_sub": ask.sub, "previous": KeySigner(key)}
        assert (await (await proxy.ask(owner, **renewal)).approved().submit())[0] == 201
        assert verifier.calls == 2
        # whoever verifies offline learns of the key with everything else
        trusted = bundle.read(bundle.write(campus.service.issuer.trust_bundle(())))
        assert [jws.jkt(one) for one in trusted.verifier_keys] == [jws.jkt(verifier._signer.public_key())]

    play(tmp_path, story)


@pytest.mark.req("A-24")
def test_its_tiers_lead_to_a_credential_a_short_one_or_none_by_its_policy_for_the_class(tmp_path: Path) -> None:
    known = "ab" * 32
    policy = read_appraisal_policy(
        f'version = 1\nid = "urn:x:1"\n[class.robot]\nrequired = ["executable_digest"]\nexecutables = ["{known}"]\n'
    )

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        as_root = (await proxy.ask(owner, ttl=7200)).approved()
        status, answer = await as_root.submit(evidence=proxy.evidence(as_root.token, agent={"uid": 0}))
        assert (status, answer["not_after"]) == (201, "2026-01-01T13:00:00Z")
        key = new_key()
        await campus.registry.add("alice", proxy.identifier, jws.jkt(key.public_key()), "robot", actor=ADMIN)
        ask = (await proxy.ask(owner, key)).approved()
        status, answer = await ask.submit()
        assert (status, answer["reason"]) == (403, "evidence-contraindicated")
        assert verifier.heard["agent_class"] == "robot"
        seen = {"executable_digest": {"alg": "sha-256", "hash": jws.base64url(bytes.fromhex(known))}}
        assert (await ask.submit(evidence=proxy.evidence(ask.token, agent=seen)))[0] == 201

    play(tmp_path, story, policy=policy, agent_hours=8)


INSTEAD: dict[str, tuple[str, str, Answer]] = {}


def instead(reason: str, because: str = "") -> Callable[[Answer], Answer]:
    def register(answer: Answer) -> Answer:
        INSTEAD[answer.__name__] = (reason, because, answer)
        return answer

    return register


@instead("verifier-answer-invalid", "key-id-mismatch")
async def signs_with_another_key(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return self.sealed(honest, KeySigner(new_key()))


@instead("verifier-answer-invalid", "signature-invalid")
async def forges_under_the_pinned_name(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    claims, signer = jws.read_object(jws.read(honest).payload, "EAR"), KeySigner(new_key())
    header = {"kid": jws.jkt(self._signer.public_key())}
    return eat(jws.seal(claims, typ=ear.TYP, signer=signer, header=header))


@instead("verifier-answer-invalid", "ear-nonce-mismatch")
async def says_an_old_nonce(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return self.sealed(honest, eat_nonce="bm9uY2Utbm9uY2Utbm9uY2Utbm9uY2U")


@instead("verifier-answer-invalid", "ear-for-other-evidence")
async def appraises_other_evidence(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    other = jws.base64url(b"e30.e30.AAAA")
    return self.sealed(honest, ear_raw_evidence=other)


@instead("verifier-answer-invalid", "ear-for-other-evidence")
async def does_not_say_what_it_appraised(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return self.sealed(honest, ear_raw_evidence=None)


@instead("verifier-answer-invalid", "ear-too-old")
async def answers_from_an_hour_ago(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return self.sealed(honest, iat=int((self._now() - timedelta(hours=1)).timestamp()))


@instead("verifier-answer-invalid", "ear-expired")
async def answers_what_is_over(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    at = int(self._now().timestamp())
    return self.sealed(honest, iat=at - 7200, exp=at - 3600)


@instead("verifier-answer-invalid", "ear-profile-unknown")
async def speaks_an_older_profile(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return self.sealed(honest, eat_profile="tag:github.com,2023:veraison/ear")


@instead("verifier-answer-invalid", "ear-inconsistent")
async def is_kinder_than_its_own_findings(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    parts = jws.read_object(jws.read(honest).payload, "EAR")["submods"]
    parts["agent"]["ear_trustworthiness_vector"]["executables"] = 97
    return self.sealed(honest, submods=parts)


@instead("verifier-answer-invalid", "too-large")
async def sends_ten_megabytes(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return eat("x" * 10_000_000)


@instead("verifier-answer-invalid", "malformed")
async def sends_octets(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return web.Response(body=b"\xff\x00", content_type="application/eat+jwt")


@instead("verifier-answer-invalid", "media-type")
async def sends_a_page(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return web.Response(text=honest, content_type="text/html")


@instead("verifier-answer-invalid", "status-307")
async def sends_elsewhere(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return web.Response(status=307, headers={"location": str(request.url)})


@instead("verifier-answer-invalid", "status-500")
async def breaks(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return web.Response(status=500)


@instead("verifier-unreachable")
async def says_that_it_is_away(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    return web.Response(status=503, headers={"retry-after": "7"})


@instead("verifier-unreachable")
async def hangs_up(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@instead("verifier-timed-out")
async def takes_its_time(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    await asyncio.sleep(5)
    return eat(honest)


@instead("verifier-timed-out")
async def drips(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"content-type": "application/eat+jwt"})
    await stream.prepare(request)
    for char in honest[:30]:
        await stream.write(char.encode())
        await asyncio.sleep(0.1)
    return stream


@pytest.mark.slow
@pytest.mark.req("A-24", "A-40")
@pytest.mark.parametrize("name", INSTEAD)
def test_a_verifier_that_fails_costs_the_owner_nothing(tmp_path: Path, name: str) -> None:
    """The same request and the same approval are good once the verifier is back: nothing was spent."""
    reason, because, answer = INSTEAD[name]

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        ask = (await proxy.ask(owner)).approved()
        verifier.instead = answer
        body = composite.write(ask.composite())
        status, refused, reply = await proxy.call("POST", "/v1/agents/enroll", body, composite.MEDIA_TYPE)
        assert (status, refused["reason"], refused.get("because", "")) == (503, reason, because)
        assert 1 <= int(reply.headers["retry-after"]) <= 300
        assert verifier.calls == 1
        assert (await campus.audited("agent-request-refused"))[-1]["reason"] == reason
        assert not await campus.audited("owner-approved")
        verifier.instead = None
        status, done, _ = await proxy.call("POST", "/v1/agents/enroll", body, composite.MEDIA_TYPE)
        assert status == 201, done

    play(tmp_path, story, verifier_seconds=2)


def test_retry_after_is_what_the_verifier_says(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        verifier.instead = says_that_it_is_away
        body = composite.write((await proxy.ask(owner)).approved().composite())
        _, _, reply = await proxy.call("POST", "/v1/agents/enroll", body, composite.MEDIA_TYPE)
        assert reply.headers["retry-after"] == "7"

    play(tmp_path, story)


@pytest.mark.req("A-24")
def test_a_result_that_was_good_once_is_not_good_for_another_request(tmp_path: Path) -> None:
    """Replayed: an honest result, by the right key, about somebody's earlier request."""

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        assert (await (await proxy.ask(owner)).approved().submit())[0] == 201
        earlier = verifier.said

        async def replay(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
            return eat(earlier)

        verifier.instead = replay
        status, answer = await (await proxy.ask(owner)).approved().submit()
        assert (status, answer["because"]) == (503, "ear-nonce-mismatch")

    play(tmp_path, story)


@pytest.mark.req("A-23", "A-103")
def test_transplanted_evidence_is_refused_before_and_by_the_verifier(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        ask, other = (await proxy.ask(owner)).approved(), await proxy.ask(owner)
        status, answer = await ask.submit(evidence=proxy.evidence(other.token))
        assert (status, answer["reason"], verifier.calls) == (403, "evidence-nonce-mismatch", 0)
        moved = proxy.evidence(other.token, nonce=ask.request.nonce, jkt=ask.request.jkt)
        status, answer = await ask.submit(evidence=moved)
        assert (status, answer["reason"], verifier.calls) == (403, "evidence-for-other-request", 0)
        # a caller that does not look itself gets no result either
        assert (await ask.submit())[0] == 201
        question = verifier.heard | {"evidence": evidence.write_cmw(moved)}
        with pytest.raises(EvidenceForOtherRequest):
            verifier.appraise(json.dumps(question).encode())
        stranger = await campus.proxy()
        question = verifier.heard | {"proxy": verifier.heard["proxy"] | {"jwk": jws.jwk(stranger.key.public_key())}}
        with pytest.raises(SignatureInvalid):
            verifier.appraise(json.dumps(question).encode())

    play(tmp_path, story)


@pytest.mark.req("A-110")
def test_an_owner_suspended_while_the_verifier_thinks_gets_nothing(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        async def meanwhile(self: Wayward, request: web.Request, honest: str) -> web.StreamResponse:
            await campus.directory.suspend("alice", actor=ADMIN)
            return eat(honest)

        verifier.instead = meanwhile
        status, answer = await (await proxy.ask(owner)).approved().submit()
        assert (status, answer["reason"]) == (403, "owner-not-active")

    play(tmp_path, story)


def test_tls_is_held_to_the_anchors_that_were_named(tmp_path: Path) -> None:
    other = LabVerifier(tmp_path / "other")

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        status, answer = await (await proxy.ask(owner)).approved().submit()
        assert (status, answer["reason"], verifier.calls) == (503, "verifier-unreachable", 0)

    assert other is not None
    play(tmp_path, story, verifier_anchors=tmp_path / "other" / "tls.pem")


@pytest.mark.slow
def test_more_than_the_allowed_number_of_calls_wait_and_are_then_told_to_come_again(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        verifier.instead = takes_its_time
        asks = [(await proxy.ask(owner)).approved() for _ in range(3)]
        answers = await asyncio.gather(*(ask.submit() for ask in asks))
        assert {status for status, _ in answers} == {503}
        assert {answer["reason"] for _, answer in answers} >= {"verifier-timed-out", "verifier-busy"}

    play(tmp_path, story, verifier_seconds=0.5, verifier_concurrency=1)


@pytest.mark.parametrize(
    "changed",
    [
        {"verifier_url": "http://verifier.example/"},
        {"verifier_url": "https://user@verifier.example/"},
        {"verifier_url": "https://"},
        {"verifier_anchors": None},
        {"verifier_keys": None},
        {"verifier_keys": Path("/nowhere")},
        {"verifier_keys": "tls.pem"},
        {"verifier_anchors": "verifier.pub"},
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    LabVerifier(tmp_path)
    good = {
        "verifier_url": "https://verifier.example/v1/appraise",
        "verifier_anchors": tmp_path / "tls.pem",
        "verifier_keys": tmp_path / "verifier.pub",
    }
    assert read_destination(IdentitySettings(**good)) is not None  # type: ignore[arg-type]
    assert read_destination(IdentitySettings()) is None
    changed = {
        name: tmp_path / value if name != "verifier_url" and isinstance(value, str) else value
        for name, value in changed.items()
    }
    with pytest.raises(VerifierSettingInvalid):
        read_destination(IdentitySettings(**(good | changed)))


@pytest.mark.slow
def test_the_labs_verifier_runs_as_a_program_and_refuses_what_is_no_evidence(tmp_path: Path) -> None:
    folder = tmp_path / "verifier"
    with subprocess.Popen(
        [sys.executable, "-m", "lab", "verifier", "--dir", str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            port = int(ready["url"].partition("//")[2].partition(":")[2].partition("/")[0])
            context = ssl.create_default_context(cafile=str(folder / "tls.pem"))
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
            connection.request("POST", PATH, b'{"evidence": 1}', {"content-type": "application/json"})
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["reason"]) == (400, "claim-missing")
            connection.close()
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert os.stat(folder / "verifier.key").st_mode & 0o077 == 0


@pytest.mark.req("A-22")
def test_what_an_agent_says_about_itself_reaches_the_server_inside_evidence_only(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        status, answer = await (await proxy.ask(owner)).approved().submit(self_asserted={"ai_model_id": "small-7"})
        assert (status, answer["reason"], verifier.calls) == (400, "malformed", 0)

    play(tmp_path, story)


def test_an_agents_claims_come_from_a_file_and_are_checked_there(tmp_path: Path) -> None:
    file = tmp_path / "claims.json"
    file.write_text('{"ai_model_id": "small-7"}')
    assert read_claims(file) == {"ai_model_id": "small-7"}
    assert read_claims(None) == {}
    for text in ("", "[]", '{"uid": 0}', '{"ai_model_id": 7}'):
        file.write_text(text)
        with pytest.raises(BindingError):
            read_claims(file)
    with pytest.raises(BindingError):
        read_claims(tmp_path / "nowhere")


@pytest.mark.req("A-113")
def test_an_evidence_package_is_verified_offline_with_the_verifiers_key_and_not_without(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost, verifier: Wayward) -> None:
        _, answer = await (await proxy.ask(owner)).approved().submit()
        packages = EvidencePackages(ca=campus.ca, store=campus.store, clock=campus.clock)
        files = {name: text.encode() for name, text in (await packages.export(answer["serial"])).items()}
        trusted = campus.service.issuer.trust_bundle(await campus.directory.records())
        trusted = bundle.read(bundle.write(trusted))
        assert dict(verify_package(files, trusted).steps)["appraisal"] == "affirming"
        with pytest.raises(EarDigestMismatch):
            verify_package(files, replace(trusted, verifier_keys=()))

    play(tmp_path, story)
