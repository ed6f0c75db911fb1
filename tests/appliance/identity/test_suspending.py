"""Suspending and resuming, rotating with an overlap: what stops, what stays, and that both ends are audited."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from appliance.binding import jws
from appliance.cascade import revoke_behind_proxy
from appliance.errors import Conflict, NotFound
from appliance.identity.errors import AgentSuspended
from appliance.identity.records import check_agent
from appliance.store import agents, certificates, proxies
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, Campus, OwnerHost, Proxy, new_key
from tests.appliance.identity.test_enroll import credentials, play
from tests.appliance.identity.test_standing import Agent, stand


@pytest.mark.req("A-110", "A-107", "A-108")
def test_a_suspended_agent_gets_nothing_and_goes_on_as_itself_when_resumed(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy)
        waiting = (await proxy.ask(owner, purpose="issue", nonce_sub=agent.sub)).approved()
        ready, key = await agent.ask(token)
        await campus.registry.suspend(agent.sub, actor=ADMIN, why="odd traffic")
        for ask in (waiting, ready):
            status, answer = await ask.submit()
            assert (status, answer["reason"]) == (403, "agent-suspended")
        status, answer, _ = await proxy.call(
            "POST",
            "/v1/agents/nonce",
            f'{{"jkt": "{ready.request.jkt}", "purpose": "renew", "sub": "{agent.sub}"}}'.encode(),
        )
        assert (status, answer["reason"]) == (403, "agent-suspended")
        assert [row.state for row in await credentials(campus, agent.sub)] == ["issued"]
        with pytest.raises(Conflict):
            await campus.registry.suspend(agent.sub, actor=ADMIN)
        shown = await campus.registry.resume(agent.sub, actor=ADMIN)
        assert shown["state"] == "registered"
        assert (await agent.renew(token))[0] == 201
        assert (await campus.registry.show(agent.sub))["standing"][0]["uses"] == 1
        with pytest.raises(Conflict):
            await campus.registry.resume(agent.sub, actor=ADMIN)
        with pytest.raises(NotFound):
            await campus.registry.suspend("11111111-1111-4111-8111-111111111111", actor=ADMIN)
        told = await campus.audited("agent-suspended")
        assert (told[0]["object"], told[0]["fields"]["why"]) == (agent.sub, "odd traffic")
        assert len(await campus.audited("agent-resumed")) == 1

    play(tmp_path, story)


@pytest.mark.req("A-110")
def test_what_was_issued_is_handed_out_to_nobody_while_agent_owner_or_key_is_suspended(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = (await proxy.ask(owner, profiles=("wit",))).approved()
        assert (await ask.submit())[0] == 201
        rqh = ask.request.rqh
        registry, directory = campus.registry, campus.directory
        for suspend, resume in (
            (registry.suspend(ask.sub, actor=ADMIN), registry.resume(ask.sub, actor=ADMIN)),
            (directory.suspend("alice", actor=ADMIN), directory.resume("alice", actor=ADMIN)),
            (
                directory.suspend_key("alice", owner.jkt, actor=ADMIN),
                directory.resume_key("alice", owner.jkt, actor=ADMIN),
            ),
        ):
            assert (await proxy.status(rqh))[0] == 200
            await suspend
            status, answer = await proxy.status(rqh)
            assert (status, answer["reason"], "wit" in answer) == (403, "credential-withdrawn", False)
            await resume
        assert "wit" in (await proxy.status(rqh))[1]

    play(tmp_path, story)


@pytest.mark.req("A-110")
def test_an_agent_suspended_between_decision_and_signature_gets_nothing(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        row = await campus.store.read(lambda tx: agents.by_identifier(tx, agent.sub))
        assert row is not None
        submitter = await campus.service._submitters.check(proxy.peer)
        assert check_agent(row, submitter) is row
        moved = await campus.store.write(lambda tx: agents.move(tx, row, agents.SUSPENDED))
        with pytest.raises(AgentSuspended):
            check_agent(moved, submitter)
        with pytest.raises(Conflict):
            await campus.store.write(lambda tx: agents.move(tx, row, agents.SUSPENDED))

    play(tmp_path, story)


@pytest.mark.req("A-102", "A-110")
def test_suspended_agents_fall_with_their_proxy_and_their_owner(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        one, two = await Agent.first(proxy, owner), await Agent.first(proxy, owner)
        await campus.registry.suspend(one.sub, actor=ADMIN)
        count = await campus.store.write(lambda tx: revoke_behind_proxy(tx, proxy.identifier, actor=ADMIN))
        assert count == 2
        for agent in (one, two):
            assert (await campus.registry.show(agent.sub))["state"] == "revoked"
        with pytest.raises(Conflict):
            await campus.registry.resume(one.sub, actor=ADMIN)
        third = await Agent.first(await campus.proxy(), owner)
        await campus.registry.suspend(third.sub, actor=ADMIN)
        await campus.directory.revoke("alice", actor=ADMIN)
        assert (await campus.registry.show(third.sub))["state"] == "revoked"
        assert not await campus.store.read(lambda tx: certificates.live(tx, "owner_id", owner.identifier, tx.now))

    play(tmp_path, story)


@pytest.mark.req("A-32", "A-110")
def test_a_suspended_owner_key_approves_nothing_new_and_what_it_approved_stays(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy)
        second = KeySigner(new_key())
        await campus.directory.add_key("alice", owner.statement(second), actor=ADMIN)
        before = (await proxy.ask(owner)).approved()
        await campus.directory.suspend_key("alice", owner.jkt, actor=ADMIN)
        assert (await before.submit())[1]["reason"] == "owner-key-not-valid"
        assert (await agent.renew(token))[1]["reason"] == "owner-key-not-valid"
        other = await proxy.ask(owner)
        assert (await (await proxy.ask(owner)).approved(signer=second).submit())[0] == 201
        assert [row.state for row in await credentials(campus, agent.sub)] == ["issued"]
        for name, key in (("alice", "A" * 43), ("bob", owner.jkt)):
            with pytest.raises(NotFound):
                await campus.directory.suspend_key(name, key, actor=ADMIN)
        with pytest.raises(Conflict):
            await campus.directory.suspend_key("alice", owner.jkt, actor=ADMIN)
        shown = await campus.directory.resume_key("alice", owner.jkt, actor=ADMIN)
        assert {one["state"] for one in shown["keys"]} == {"active"}
        assert (await other.approved().submit())[0] == 201
        assert (await agent.renew(token))[0] == 201
        events = [entry["event"] for entry in await campus.audited()]
        assert events.index("owner-key-suspended") < events.index("owner-key-resumed")
        await campus.directory.suspend_key("alice", owner.jkt, actor=ADMIN)
        told = await campus.directory.revoke_key("alice", owner.jkt, actor=ADMIN)
        assert told["credentials_revoked"] == 3

    play(tmp_path, story)


@pytest.mark.req("A-32")
def test_during_the_overlap_of_a_rotation_both_keys_approve_and_afterwards_the_new_one_alone(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        new = KeySigner(new_key())
        await campus.directory.rotate_key("alice", owner.statement(new), actor=ADMIN, overlap=timedelta(hours=1))
        assert (await (await proxy.ask(owner)).approved().submit())[0] == 201
        status, answer = await (await proxy.ask(owner, ttl=7200)).approved().submit()
        assert (status, answer["not_after"]) == (201, "2026-01-01T13:00:00Z")  # ends with the key that approved it
        assert (await (await proxy.ask(owner)).approved(signer=new).submit())[0] == 201
        campus.clock.advance(3700)
        assert (await (await proxy.ask(owner)).approved().submit())[1]["reason"] == "owner-key-not-valid"
        assert (await (await proxy.ask(owner)).approved(signer=new).submit())[0] == 201
        shown = await campus.directory.show("alice")
        assert {one["jkt"]: one["not_after"] for one in shown["keys"]} == {
            owner.jkt: "2026-01-01T13:00:00Z",
            jws.jkt(new.public_key()): None,
        }

    play(tmp_path, story)


@pytest.mark.req("A-102")
def test_a_suspended_proxy_submits_nothing_and_does_so_again_when_resumed(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        token = stand(owner, agent.sub, proxy)

        async def move(state: str) -> None:
            def write(tx: object) -> None:
                row = proxies.by_identifier(tx, proxy.identifier)  # type: ignore[arg-type]
                assert row is not None
                proxies.move(tx, row, state)  # type: ignore[arg-type]

            await campus.store.write(write)

        ready, key = await agent.ask(token)
        await move(proxies.SUSPENDED)
        status, answer = await ready.submit()
        assert (status, answer["reason"]) == (403, "proxy-not-active")
        await move(proxies.ACTIVE)
        assert (await agent.renew(token))[0] == 201

    play(tmp_path, story)
