"""Who sets the class of an agent that came by itself, and what goes by it from then on; the agent has no say."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import Conflict, NotFound, RequestMalformed
from appliance.store import agents
from tests.appliance.identity.campus import ADMIN, Campus, OwnerHost, Proxy
from tests.appliance.identity.test_enroll import credentials, play
from tests.appliance.identity.test_standing import Agent, stand

NOBODY = "11111111-1111-4111-8111-111111111111"


@pytest.mark.req("A-113")
def test_an_administrator_gives_an_agent_that_came_by_itself_a_class_and_takes_it_away(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        classify = campus.registry.classify
        assert (await campus.registry.show(agent.sub))["class"] == ""
        told = await classify(agent.sub.rpartition("/")[2], "robot", actor=ADMIN)
        assert (told["identifier"], told["class"], told["state"]) == (agent.sub, "robot", "registered")
        await classify(agent.sub, "robot", actor=ADMIN)  # as it is already: nothing to audit
        assert (await campus.registry.list("alice"))[0]["class"] == "robot"
        assert (await campus.registry.suspend(agent.sub, actor=ADMIN))["class"] == "robot"
        assert (await classify(agent.sub, "", actor=ADMIN))["class"] == ""
        fields = {"owner": owner.identifier, "proxy": proxy.identifier}
        entries = await campus.audited("agent-classified")
        assert [one["fields"] for one in entries] == [
            {**fields, "was": "", "class": "robot"},
            {**fields, "was": "robot", "class": ""},
        ]
        assert [row.state for row in await credentials(campus, agent.sub)] == ["issued"]

    play(tmp_path, story)


@pytest.mark.req("A-113")
def test_no_class_is_given_to_nobody_to_a_revoked_agent_or_by_a_name_that_is_none(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent = await Agent.first(proxy, owner)
        for wrong in ("a b", "x" * 65, "röbot", "robot\n"):
            with pytest.raises(RequestMalformed):
                await campus.registry.classify(agent.sub, wrong, actor=ADMIN)
        with pytest.raises(NotFound):
            await campus.registry.classify(NOBODY, "robot", actor=ADMIN)
        await campus.registry.revoke(agent.sub, actor=ADMIN)
        for name in ("robot", ""):
            with pytest.raises(Conflict, match="revoked"):
                await campus.registry.classify(agent.sub, name, actor=ADMIN)
        assert await campus.audited("agent-classified") == []

    play(tmp_path, story)


@pytest.mark.req("A-65", "A-113")
def test_the_next_request_goes_by_the_new_class_also_one_that_is_only_reserved(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        reserved = await proxy.ask(owner)
        await campus.registry.classify(reserved.sub, "robot", actor=ADMIN)
        assert (await reserved.approved().submit())[1]["reason"] == "approvers-too-few"
        agent = await Agent.first(proxy, owner)
        for_robots = stand(owner, agent.sub, proxy, agent_class="reader")
        assert (await agent.renew(for_robots))[0] == 403
        await campus.registry.classify(agent.sub, "reader", actor=ADMIN)
        assert (await agent.renew(for_robots))[0] == 201
        await campus.registry.classify(agent.sub, "robot", actor=ADMIN)
        assert (await agent.renew(stand(owner, agent.sub, proxy)))[1]["reason"] == "approvers-too-few"

    play(tmp_path, story, approvers={"robot": 2})


@pytest.mark.req("A-65")
def test_a_class_that_changes_between_decision_and_signature_is_not_overlooked(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        ask = await proxy.ask(owner)
        seen = await campus.store.read(lambda tx: agents.by_identifier(tx, ask.sub))
        assert seen is not None
        await campus.registry.classify(ask.sub, "robot", actor=ADMIN)
        with pytest.raises(Conflict):
            await campus.store.write(
                lambda tx: agents.register(tx, seen, owner_id=owner.identifier, jkt=ask.request.jkt)
            )
        with pytest.raises(Conflict):
            await campus.store.write(lambda tx: agents.classify(tx, seen, "reader"))
        assert (await campus.registry.show(ask.sub))["state"] == "reserved"

    play(tmp_path, story)
