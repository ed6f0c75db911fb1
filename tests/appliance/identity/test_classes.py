"""Who sets the class of an agent that came by itself, and what goes by it from then on; the agent has no say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from appliance.errors import Conflict, NotFound, RequestMalformed
from appliance.settings import IdentitySettings
from appliance.store import agents
from tests.appliance.identity.campus import ADMIN, Campus, OwnerHost, Proxy
from tests.appliance.identity.test_enroll import credentials, play
from tests.appliance.identity.test_server_mediated import Desk
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


async def give(desk: Desk, agent: str, name: object) -> tuple[int, dict[str, Any]]:
    path = f"/v1/owners/self/agents/{agent.rpartition('/')[2]}/class"
    return await desk.call("POST", path, json.dumps({"class": name}).encode())


@pytest.mark.req("A-113")
def test_an_owner_gives_an_agent_without_a_class_one_that_owners_may_give_and_never_changes_it(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent, desk = await Agent.first(proxy, owner), await Desk.register(campus, owner, tmp_path)
        assert (await give(desk, agent.sub, "root"))[1]["reason"] == "class-not-for-owners"
        assert (await give(desk, agent.sub, ""))[1]["reason"] == "claim-malformed"
        for _ in range(2):  # the answer may have been lost
            assert await give(desk, agent.sub, "robot") == (
                200,
                {"identifier": agent.sub, "class": "robot", "state": "registered"},
            )
        status, told = await give(desk, agent.sub, "screen")
        assert (status, told["reason"]) == (409, "class-already-given")
        (entry,) = await campus.audited("agent-classified")
        assert (entry["actor"]["kind"], entry["actor"]["identifier"]) == ("owner", owner.identifier)
        await campus.registry.classify(agent.sub, "root", actor=ADMIN)
        assert (await give(desk, agent.sub, "robot"))[1]["reason"] == "class-already-given"
        assert (await campus.registry.show(agent.sub))["class"] == "root"

    play(tmp_path, story, owner_classes=("robot", "screen"))


@pytest.mark.req("A-113")
def test_owners_classify_nothing_where_nobody_allowed_it(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent, desk = await Agent.first(proxy, owner), await Desk.register(campus, owner, tmp_path)
        assert (await give(desk, agent.sub, "robot"))[1]["reason"] == "class-not-for-owners"
        assert await campus.audited("agent-classified") == []

    play(tmp_path, story)


@pytest.mark.req("A-113")
def test_an_owner_classifies_no_agent_of_others_none_that_is_stopped_and_the_agent_and_its_proxy_none_at_all(
    tmp_path: Path,
) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        agent, desk = await Agent.first(proxy, owner), await Desk.register(campus, owner, tmp_path)
        bob = await Desk.register(campus, await campus.owner("bob"), tmp_path)
        reserved = await proxy.ask(owner)
        for who, sub in ((bob, agent.sub), (desk, reserved.sub), (desk, NOBODY), (desk, "x")):
            assert (await give(who, sub, "robot"))[0] == 404
        for body in (b'{"class": 1}', b'{"class": "robot", "agent": "x"}', b"{}", b"[]", b"robot"):
            path = f"/v1/owners/self/agents/{agent.sub.rpartition('/')[2]}/class"
            assert (await desk.call("POST", path, body))[0] == 400
        (row,) = await credentials(campus, agent.sub)
        for peer in (proxy.peer, campus.peer(x509.load_der_x509_certificate(row.der), "agents")):
            assert (await give(Desk(owner, peer), agent.sub, "robot"))[1]["reason"] == "owner-client-unknown"
        await campus.registry.suspend(agent.sub, actor=ADMIN)
        assert (await give(desk, agent.sub, "robot"))[0] == 409
        await campus.registry.resume(agent.sub, actor=ADMIN)
        await campus.directory.suspend("alice", actor=ADMIN)
        assert (await give(desk, agent.sub, "robot"))[1]["reason"] == "owner-not-active"
        assert await campus.audited("agent-classified") == []

    play(tmp_path, story, owner_classes=("robot",))


@pytest.mark.parametrize("name", ["", "a b", "x" * 65])
def test_what_owners_may_give_has_to_be_a_class(name: str) -> None:
    with pytest.raises(ValueError, match="agent class"):
        IdentitySettings(owner_classes=(name,))
