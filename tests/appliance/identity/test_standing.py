"""Renewals under a standing approval: covered without a human step, within its bounds, as often as it says."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from appliance.binding import dual_identity, jws, standing, verify
from appliance.binding.composite import Composite
from appliance.binding.errors import ApprovalDigestMismatch, ApprovalNotInside, BindingError, LifetimeNotApproved
from appliance.binding.facts import Model, OwnerKey, OwnerRecord
from appliance.binding.standing import Platform
from appliance.binding.verify import TrustDomain
from appliance.store import Store, standing_approvals
from appliance.store.standing_approvals import LIVE, StandingRow
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, ORIGIN, SERVER_ID, Ask, Campus, OwnerHost, Proxy, new_key, random_id
from tests.appliance.identity.test_enroll import credentials, play
from tests.appliance.identity.test_owner_mediated import Gateway
from tests.appliance.identity.test_server_mediated import Desk, registered, yes
from tests.stores import open_store
from tests.support import NOW, FixedClock

DIGEST = sha256(b"the agent's program").digest()
UEID = b"\x01" + bytes(16)
SEEN = {
    "executable": "/usr/bin/agent",
    "executable_digest": {"alg": "sha-256", "hash": jws.base64url(DIGEST)},
    "uid": 1000,
}
PATH = "/v1/owners/self/standing"


def stand(owner: OwnerHost, sub: str, *proxies: Proxy, signer: KeySigner | None = None, **changed: Any) -> str:
    """A standing approval of an owner for an agent."""
    at = int(owner.campus.clock.now().timestamp())
    values: dict[str, Any] = {
        "iss": owner.identifier,
        "sub": sub,
        "aud": SERVER_ID,
        "iat": at,
        "exp": at + 30 * 86_400,
        "jti": random_id(),
        "max_ttl": 3600,
        "proxies": [one.identifier for one in proxies],
        "platform": Platform(UEID, (jws.base64url(DIGEST),), 1000),
    }
    return standing.seal(signer or owner.signer, standing.draft(**(values | changed)))


class Agent:
    """An agent with a credential, which renews."""

    def __init__(self, proxy: Proxy, owner: OwnerHost, sub: str, key: Any) -> None:
        self.proxy, self.owner, self.sub, self.key = proxy, owner, sub, key

    @classmethod
    async def first(cls, proxy: Proxy, owner: OwnerHost) -> Agent:
        key = new_key()
        ask = (await proxy.ask(owner, key)).approved()
        status, answer = await ask.submit()
        assert status == 201, answer
        return cls(proxy, owner, ask.sub, key)

    async def ask(self, *tokens: str, refer: tuple[str, ...] | None = None, **changed: Any) -> tuple[Ask, Any]:
        """A renewal that refers to these standing approvals, with a new key."""
        key = new_key()
        refer = tuple(jws.s256(one) for one in tokens) if refer is None else refer
        values = {"purpose": "renew", "nonce_sub": self.sub, "previous": KeySigner(self.key), "standing": refer}
        ask = await self.proxy.ask(self.owner, key, **(values | changed))
        return replace(ask, approvals=tokens), key

    async def renew(self, *tokens: str, seen: Any = None, **changed: Any) -> tuple[int, dict[str, Any]]:
        ask, key = await self.ask(*tokens, **changed)
        status, answer = await ask.submit(evidence=self.proxy.evidence(ask.token, agent=SEEN if seen is None else seen))
        if status == 201:
            self.key = key
        return status, answer


@pytest.mark.req("A-3", "A-105", "A-106", "A-107", "A-21")
def test_a_live_standing_approval_covers_renewals_without_a_human_step(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy)
        keys = set()
        for number in range(3):
            campus.clock.advance(2400)
            status, answer = await agent.renew(*([token] if number == 0 else []), refer=(jws.s256(token),))
            assert (status, answer["sub"]) == (201, agent.sub), answer
            keys.add(jws.jkt(agent.key.public_key()))
        assert len(keys) == 3
        leaf = x509.load_pem_x509_certificates(answer["certificate"].encode())[0]
        dual = dual_identity.of_certificate(leaf)
        assert dual is not None and (dual.model, dual.approval) == (Model.STANDING, sha256(token.encode()).digest())
        rows = await credentials(campus, agent.sub)
        assert [row.model for row in rows] == ["agent-mediated", "standing", "standing", "standing"]
        used = await campus.audited("standing-approval-used")
        assert [one["fields"]["uses"] for one in used] == [1, 2, 3]
        assert len(await campus.audited("standing-approval-recorded")) == 1
        assert len(await campus.audited("evidence-appraised")) == 4
        assert len(await campus.audited("owner-approved")) == 1
        issued = (await campus.audited("dual-identity-issued"))[-1]["fields"]
        assert (issued["model"], issued["approvals_s256"]) == ("standing", [jws.s256(token)])

        record = OwnerRecord(owner.identifier, (OwnerKey(owner.jkt, owner.signer.public_key()),))
        domain = TrustDomain(ORIGIN, SERVER_ID, campus.ca.anchors("agents"))

        def look(approval: str | None) -> verify.Report:
            return verify.verify_certificate(
                leaf, (), domain, lambda name: record, at=campus.clock.now(), approval=approval
            )

        assert look(token).model is Model.STANDING
        with pytest.raises(ApprovalNotInside):
            look(None)
        with pytest.raises(ApprovalDigestMismatch):
            look(stand(owner, agent.sub, proxy))

    play(tmp_path, story)


Refused = Callable[[Campus, Agent, Proxy], Awaitable[tuple[int, dict[str, Any]]]]
REFUSED: dict[str, Refused] = {}


def refused_with(reason: str) -> Callable[[Refused], Refused]:
    def register(function: Refused) -> Refused:
        REFUSED[f"{reason} ({function.__name__})"] = function
        return function

    return register


def bad_seen(**changed: Any) -> dict[str, Any]:
    return {name: value for name, value in {**SEEN, **changed}.items() if value is not None}


@refused_with("standing-approval-ended")
async def it_is_over(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    at = int(campus.clock.now().timestamp())
    token = stand(agent.owner, agent.sub, proxy, exp=at + 60)
    campus.clock.advance(200)
    return await agent.renew(token)


@refused_with("standing-approval-not-yet-valid")
async def it_comes_from_the_future(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(stand(agent.owner, agent.sub, proxy, iat=int(campus.clock.now().timestamp()) + 300))


@refused_with("standing-approval-too-long")
async def it_stands_for_a_year(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    at = int(campus.clock.now().timestamp())
    return await agent.renew(stand(agent.owner, agent.sub, proxy, exp=at + 365 * 86_400))


@refused_with("standing-approval-unknown")
async def nobody_has_seen_it(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(refer=(jws.s256(stand(agent.owner, agent.sub, proxy)),))


@refused_with("standing-approval-withdrawn")
async def an_administrator_withdrew_it(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    token = stand(agent.owner, agent.sub, proxy)
    assert (await agent.renew(token))[0] == 201
    (row,) = await campus.service.desk.of_owner("alice")
    await campus.service.desk.withdraw_of("alice", row["s256"], actor=ADMIN)
    return await agent.renew(token)


@refused_with("standing-approval-used-up")
async def it_was_for_two_renewals(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    token = stand(agent.owner, agent.sub, proxy, max_uses=2)
    assert [(await agent.renew(token))[0] for _ in range(2)] == [201, 201]
    return await agent.renew(token)


@refused_with("standing-approval-not-for-first-issue")
async def a_first_issue(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    token = stand(agent.owner, agent.sub, proxy)
    ask = await proxy.ask(agent.owner, standing=(jws.s256(token),))
    return await proxy.submit(
        Composite(ask.token, ask.csr_der, (token,), proxy.evidence((await proxy.ask(agent.owner)).token))
    )


@refused_with("standing-reference-mismatch")
async def the_request_refers_to_another(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    token, other = (stand(agent.owner, agent.sub, proxy) for _ in range(2))
    return await agent.renew(token, refer=(jws.s256(other),))


@refused_with("standing-class-mismatch")
async def for_another_class(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(stand(agent.owner, agent.sub, proxy, agent_class="robot"))


@refused_with("standing-platform-mismatch")
async def another_program(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    other = {"alg": "sha-256", "hash": jws.base64url(sha256(b"another").digest())}
    return await agent.renew(stand(agent.owner, agent.sub, proxy), seen=bad_seen(executable_digest=other))


@refused_with("standing-platform-mismatch")
async def program_not_measured(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(stand(agent.owner, agent.sub, proxy), seen=bad_seen(executable_digest=None))


@refused_with("standing-platform-mismatch")
async def another_user(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(stand(agent.owner, agent.sub, proxy), seen=bad_seen(uid=1001))


@refused_with("standing-platform-mismatch")
async def another_device(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    platform = Platform(b"\x01" + b"x" * 16, (jws.base64url(DIGEST),), 1000)
    return await agent.renew(stand(agent.owner, agent.sub, proxy, platform=platform))


@refused_with("approval-for-other-proxy")
async def for_another_proxy(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(stand(agent.owner, agent.sub, await campus.proxy()))


@refused_with("proxy-not-allowed-for-owner")
async def the_matrix_says_no(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    other = await campus.proxy()
    await campus.directory.allow_proxy("alice", other.identifier, actor=ADMIN)
    return await agent.renew(stand(agent.owner, agent.sub, proxy))


@refused_with("approval-for-other-agent")
async def for_another_agent(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    other = await Agent.first(proxy, agent.owner)
    return await agent.renew(stand(agent.owner, other.sub, proxy))


@refused_with("owner-mismatch")
async def another_owner_signed(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    bob = await campus.owner("bob", "HR")
    return await agent.renew(stand(bob, agent.sub, proxy))


@refused_with("approval-wrong-owner")
async def signed_in_anothers_name(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    bob = await campus.owner("bob", "HR")
    return await agent.renew(stand(bob, agent.sub, proxy, iss=agent.owner.identifier))


@refused_with("self-approval")
async def the_agent_signs_its_own(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(stand(agent.owner, agent.sub, proxy, signer=KeySigner(agent.key)))


@refused_with("signature-invalid")
async def nobody_s_key_signed(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(stand(agent.owner, agent.sub, proxy, signer=KeySigner(new_key())))


@refused_with("approval-wrong-audience")
async def for_another_server(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(stand(agent.owner, agent.sub, proxy, aud="https://ids.other.example/v1"))


@refused_with("owner-not-active")
async def the_owner_is_suspended(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    token = stand(agent.owner, agent.sub, proxy)
    await campus.directory.suspend("alice", actor=ADMIN)
    return await agent.renew(token)


@refused_with("owner-key-not-valid")
async def the_key_was_rotated(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    token = stand(agent.owner, agent.sub, proxy)
    statement = agent.owner.statement(KeySigner(new_key()))
    await campus.directory.rotate_key("alice", statement, actor=ADMIN)
    return await agent.renew(token)


@refused_with("owner-key-not-valid")
async def the_overlap_of_the_key_is_over(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    token = stand(agent.owner, agent.sub, proxy)
    statement = agent.owner.statement(KeySigner(new_key()))
    await campus.directory.rotate_key("alice", statement, actor=ADMIN, overlap=timedelta(minutes=10))
    key = agent.key
    assert (await agent.renew(token))[0] == 201
    campus.clock.advance(700)
    agent.key = key  # what was renewed ended with the owner's key; the first credential lives on
    return await agent.renew(token)


@refused_with("approvers-not-distinct")
async def twice_by_one_key(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    return await agent.renew(*(stand(agent.owner, agent.sub, proxy) for _ in range(2)))


@refused_with("renewal-proof-missing")
async def without_the_live_key(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    token = stand(agent.owner, agent.sub, proxy)
    campus.clock.advance(3700)
    return await agent.renew(token)


@refused_with("signature-invalid")
async def by_another_process_behind_the_proxy(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, Any]:
    return await agent.renew(stand(agent.owner, agent.sub, proxy), previous=KeySigner(new_key()))


@refused_with("approval-spent")
async def two_with_one_jti(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    assert (await agent.renew(stand(agent.owner, agent.sub, proxy, jti="A" * 22)))[0] == 201
    return await agent.renew(stand(agent.owner, agent.sub, proxy, jti="A" * 22, max_ttl=60))


@refused_with("claim-unknown")
async def a_fresh_approval_in_its_place(campus: Campus, agent: Agent, proxy: Proxy) -> tuple[int, dict[str, Any]]:
    ask, _ = await agent.ask(refer=())
    return await agent.renew(agent.owner.approve(ask.token))


@pytest.mark.req("A-107", "A-94", "A-96", "A-106")
@pytest.mark.parametrize("name", REFUSED)
def test_a_renewal_outside_the_bounds_is_refused_with_its_own_reason(tmp_path: Path, name: str) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        reason = name.partition(" ")[0]
        status, answer = await REFUSED[name](campus, agent, proxy)
        assert (answer["reason"], 400 <= status < 500) == (reason, True), answer
        assert (await campus.audited("agent-request-refused"))[-1]["reason"] == reason

    play(tmp_path, story)


@pytest.mark.req("A-105", "A-107")
def test_a_credential_never_outlives_its_standing_approval(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        at = int(campus.clock.now().timestamp())
        status, answer = await agent.renew(stand(owner, agent.sub, proxy, exp=at + 900), ttl=3600)
        assert (status, answer["not_after"]) == (201, "2026-01-01T12:15:00Z")
        status, answer = await agent.renew(stand(owner, agent.sub, proxy, max_ttl=120), ttl=3600)
        assert (status, answer["not_after"]) == (201, "2026-01-01T12:02:00Z")
        status, answer = await agent.renew(stand(owner, agent.sub, proxy, profiles=["wit"]))
        assert status == 201 and "certificate" not in answer

    play(tmp_path, story)


@pytest.mark.req("A-107")
def test_a_relying_party_refuses_a_certificate_that_outlives_the_standing_approval(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy)
        status, answer = await agent.renew(token)
        leaf = x509.load_pem_x509_certificates(answer["certificate"].encode())[0]
        at = int(campus.clock.now().timestamp())
        opened = standing.unseal(token, owner.signer.public_key())
        short = replace(opened, exp=at + 600)
        domain = TrustDomain(ORIGIN, SERVER_ID, campus.ca.anchors("agents"))
        with pytest.raises(LifetimeNotApproved):
            verify._check_approval(
                short, domain, campus.service.issuer.limits, owner_id=owner.identifier, subject=agent.sub,
                jkt="x", model=Model.STANDING, profile="x509", start=at, lifetime_seconds=3600,
            )  # fmt: skip
        assert leaf.not_valid_after_utc.timestamp() <= opened.exp

    play(tmp_path, story)


@pytest.mark.req("A-107")
def test_where_the_server_asks_a_standing_approval_keeps_it_from_asking(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        ask = await registered(campus, proxy, owner)
        assert (await ask.submit())[0] == 202
        challenge = await desk.asked()
        assert (await desk.answer(challenge, yes(owner, ask, challenge)))[0] == 200
        assert (await ask.submit())[0] == 201
        agent = Agent(proxy, owner, ask.sub, ask.signer._key)
        token = stand(owner, ask.sub, proxy)
        status, answer = await desk.call("POST", PATH, json.dumps({"approval": token}).encode())
        assert (status, answer["state"], answer["uses"]) == (200, "live", 0)
        at = int(campus.clock.now().timestamp())
        status, answer = await agent.renew(refer=(jws.s256(token),), model="server-mediated", exp=at + 900)
        assert status == 201, answer
        assert await desk.waiting() == []
        assert [row.model for row in await credentials(campus, ask.sub)] == ["server-mediated", "standing"]

    play(tmp_path, story)


@pytest.mark.req("A-107", "A-113")
def test_owners_hand_in_look_and_withdraw_over_their_own_connection_and_only_their_own(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        bob = await Desk.register(campus, await campus.owner("bob", "HR"), tmp_path)
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy)
        body = json.dumps({"approval": token}).encode()
        status, answer = await bob.call("POST", PATH, body)
        assert (status, answer["reason"]) == (403, "approval-for-other-agent")
        for _ in range(2):
            assert (await desk.call("POST", PATH, body))[0] == 200
        assert len(await campus.audited("standing-approval-recorded")) == 1
        stranger = stand(owner, f"{ORIGIN}/agent/11111111-1111-4111-8111-111111111111", proxy)
        status, answer = await desk.call("POST", PATH, json.dumps({"approval": stranger}).encode())
        assert (status, answer["reason"]) == (403, "approval-for-other-agent")
        status, answer = await bob.call("POST", f"{PATH}/{jws.s256(token)}/withdraw")
        assert status == 404
        assert (await bob.call("GET", PATH))[1] == {"standing": []}
        assert (await agent.renew(refer=(jws.s256(token),)))[0] == 201
        (row,) = (await desk.call("GET", PATH))[1]["standing"]
        assert (row["uses"], row["state"], row["until"]) == (1, "live", "2026-01-31T12:00:00Z")
        status, answer = await desk.call("POST", f"{PATH}/{jws.s256(token)}/withdraw")
        assert (status, answer["state"]) == (200, "withdrawn")
        assert (await desk.call("POST", f"{PATH}/{jws.s256(token)}/withdraw"))[0] == 409
        assert (await desk.call("POST", PATH, body))[0] == 409
        status, answer = await agent.renew(token)
        assert (status, answer["reason"]) == (403, "standing-approval-withdrawn")
        (told,) = await campus.audited("standing-approval-withdrawn")
        assert told["actor"]["kind"] == "owner"

    play(tmp_path, story)


@pytest.mark.req("A-113")
def test_owners_see_what_was_issued_in_their_name_and_which_approval_stands_behind_it(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, tmp_path)
        bob = await Desk.register(campus, await campus.owner("bob", "HR"), tmp_path)
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy)
        assert (await agent.renew(token))[0] == 201
        status, told = await desk.call("GET", "/v1/owners/self/issued")
        assert (status, told["more"], [one["identifier"] for one in told["agents"]]) == (200, False, [agent.sub])
        newest, oldest = told["credentials"]
        assert (newest["model"], oldest["model"]) == ("standing", "agent-mediated")
        assert newest["approvals_s256"] == [jws.s256(token)]
        assert newest["platform"] == {"ueid": UEID.hex(), "executable_sha256": DIGEST.hex(), "uid": 1000}
        status, told = await bob.call("GET", "/v1/owners/self/issued")
        assert (status, told["credentials"], told["agents"]) == (200, [], [])

    play(tmp_path, story)


@pytest.mark.req("A-110", "A-107")
def test_what_falls_with_an_owner_a_key_or_an_agent_takes_its_standing_approvals_along(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agents = [await Agent.first(proxy, owner) for _ in range(2)]
        second = KeySigner(new_key())
        await campus.directory.add_key("alice", owner.statement(second), actor=ADMIN)
        by_first = stand(owner, agents[0].sub, proxy)
        by_second = stand(owner, agents[1].sub, proxy, signer=second)
        for_agent = stand(owner, agents[0].sub, proxy, signer=second)
        assert (await agents[0].renew(by_first, for_agent))[0] == 201
        assert (await agents[1].renew(by_second))[0] == 201

        async def live() -> set[str]:
            return {row["s256"] for row in await campus.service.desk.of_owner("alice") if row["state"] == "live"}

        assert len(await live()) == 3
        await campus.directory.revoke_key("alice", owner.jkt, actor=ADMIN)
        assert await live() == {jws.s256(by_second), jws.s256(for_agent)}
        await campus.registry.revoke(agents[0].sub, actor=ADMIN)
        assert await live() == {jws.s256(by_second)}
        await campus.directory.revoke("alice", actor=ADMIN)
        assert await live() == set()
        why = [one["fields"]["why"] for one in await campus.audited("standing-approval-withdrawn")]
        assert why == ["owner key revoked", "agent revoked", "owner revoked"]

    play(tmp_path, story)


@pytest.mark.req("A-107")
def test_a_restart_between_approval_and_credential_counts_one_use(tmp_path: Path) -> None:
    async def story() -> None:
        from tests.appliance.identity.campus import PulledOut, Token

        lame = Token(campus_signer())
        campus = Campus.create(tmp_path, ca_token=lame)
        proxy, owner = await campus.proxy(), await campus.owner()
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy, max_uses=1)
        ask, key = await agent.ask(token)
        lame.is_out = True
        with pytest.raises(PulledOut):
            await campus.service.request(_body(ask, proxy), proxy.peer)
        lame.is_out = False
        status, answer = await ask.submit(evidence=proxy.evidence(ask.token, agent=SEEN))
        assert status == 201, answer
        (row,) = await campus.service.desk.of_owner("alice")
        assert row["uses"] == 1
        campus.close()

    asyncio.run(story())


def campus_signer() -> Any:
    from tests.appliance.identity.campus import campus_keys

    return campus_keys()[2]["agents"].signer


def _body(ask: Ask, proxy: Proxy) -> bytes:
    from appliance.binding import composite

    return composite.write(ask.composite(evidence=proxy.evidence(ask.token, agent=SEEN)))


@pytest.mark.req("A-107")
def test_of_many_renewals_at_once_as_many_succeed_as_the_approval_allows(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy, max_uses=5)
        asks = [(await agent.ask(token))[0] for _ in range(12)]
        answers = await asyncio.gather(*(one.submit(evidence=proxy.evidence(one.token, agent=SEEN)) for one in asks))
        statuses = sorted(status for status, _ in answers)
        issued = [row for row in await credentials(campus, agent.sub) if row.model == "standing"]
        assert statuses.count(201) == len(issued) == 5
        assert {answer["reason"] for status, answer in answers if status != 201} <= {
            "standing-approval-used-up", "conflict",
        }  # fmt: skip

    play(tmp_path, story)


def _count(url: str, s256: str, times: int, told: Any) -> None:
    store = Store.open(url, FixedClock())
    wins = sum(store.write_sync(lambda tx: standing_approvals.use(tx, s256)) for _ in range(times))
    store.close()
    told.put(wins)


@pytest.mark.slow
@pytest.mark.req("A-107")
def test_two_processes_never_count_beyond_the_bound(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    store = open_store(url, FixedClock())
    row = StandingRow("s" * 43, "o", "a", "j", "k", "t", LIVE, 0, 100, datetime(2027, 1, 1, tzinfo=UTC), NOW)
    store.write_sync(lambda tx: standing_approvals.add(tx, row))
    store.close()
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    workers = [context.Process(target=_count, args=(url, row.s256, 90, told)) for _ in range(2)]
    for one in workers:
        one.start()
    wins = [told.get(timeout=60) for _ in workers]
    for one in workers:
        one.join(30)
    assert sum(wins) == 100
    store = Store.open(url, FixedClock())
    found = store.read_sync(lambda tx: standing_approvals.get(tx, row.s256))
    assert found is not None and found.uses == 100
    store.close()


def test_a_standing_approval_is_read_strictly() -> None:
    from tests.appliance.binding.example import AGENT, OWNER, PROXY, SERVER, signer

    owner = signer("owner")
    good = standing.draft(
        iss=OWNER, sub=AGENT, aud=SERVER, iat=1, exp=2, jti="A" * 22, max_ttl=60, proxies=[PROXY],
        platform=Platform(UEID, (jws.base64url(DIGEST),), 1),
    )  # fmt: skip
    assert standing.unseal(standing.seal(owner, good), owner.public_key()).proxies == (PROXY,)
    for changed in (
        {"proxies": []},
        {"proxies": [PROXY, PROXY]},
        {"proxies": [1]},
        {"proxies": [AGENT]},
        {"max_uses": 0},
        {"max_ttl": 0},
        {"purpose": "renew"},
        {"model": "agent-mediated"},
        {"platform": {}},
        {"platform": {"ueid": "AQ", "executables": [jws.base64url(DIGEST)], "uid": 1}},
        {"platform": {"ueid": jws.base64url(UEID), "executables": [], "uid": 1}},
        {"platform": {"ueid": jws.base64url(UEID), "executables": ["x"], "uid": 1}},
        {"platform": {"ueid": jws.base64url(UEID), "executables": [jws.base64url(DIGEST)], "uid": -1}},
        {"cnf": {"jkt": "A" * 43}},
        {"rqh": "A" * 43},
        {"nonce": "A" * 43},
        {"class": "a b"},
        {"jti": "short"},
    ):
        with pytest.raises(BindingError):
            standing.unseal(standing.seal(owner, {**good, **changed}), owner.public_key())


@pytest.mark.req("A-11", "A-36", "A-50", "A-107")
def test_no_gateway_and_no_material_stands_beside_a_standing_approval(tmp_path: Path) -> None:
    """The owner's signature covers neither: another owner's gateway would get the credential, and anybody's text would
    be kept as the owner's organisational material."""

    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy)
        gateways = [await Gateway.register(one, tmp_path) for one in (owner, await campus.owner("bob", "HR"))]
        for model in ("owner-mediated", "agent-mediated"):
            ask, _ = await agent.ask(token, model=model)
            made = replace(ask.composite(), evidence=proxy.evidence(ask.token, agent=SEEN))
            for gateway in gateways:
                status, answer = await gateway.submit(made)
                assert (status, answer["reason"]) == (403, "submitter-not-a-proxy"), (model, answer)
            status, answer = await proxy.submit(replace(made, org=("member of the board",)))
            assert answer["reason"] == "org-material-not-expected", (model, answer)
            status, answer = await proxy.submit(made)
            assert status == 201, (model, answer)
            agent.key = ask.signer._key

    play(tmp_path, story)
