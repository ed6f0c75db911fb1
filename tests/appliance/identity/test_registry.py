from __future__ import annotations

from pathlib import Path

import pytest

from appliance.binding import jws
from appliance.errors import Conflict, NotFound, RequestMalformed
from appliance.identity.errors import KeyAlreadyAgent
from tests.appliance.identity.campus import ADMIN, ORIGIN, Campus, OwnerHost, Proxy, new_key
from tests.appliance.identity.test_enroll import play


@pytest.mark.req("A-61", "A-108")
def test_an_agent_registered_beforehand_gets_its_identifier_with_its_first_nonce(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        key = new_key()
        jkt = jws.jkt(key.public_key())
        made = await campus.registry.add("alice", proxy.identifier, jkt, "notes", actor=ADMIN)
        ask = await proxy.ask(owner, key)
        assert ask.sub == made["identifier"]
        assert (await ask.approved().submit())[0] == 201
        bob = await campus.owner("bob")
        assert (await (await proxy.ask(bob, key)).approved().submit())[1]["reason"] == "agent-owner-mismatch"
        shown = await campus.registry.show(made["identifier"].rpartition("/")[2])
        assert (shown["class"], shown["state"], len(shown["credentials"])) == ("notes", "registered", 1)
        listed = await campus.registry.list("alice")
        assert [(one["identifier"], one["serial"]) for one in listed] == [
            (made["identifier"], shown["credentials"][0]["serial"])
        ]
        assert await campus.registry.list("bob") == []

    play(tmp_path, story)


def test_what_cannot_be_registered_is_refused(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        add, jkt = campus.registry.add, jws.jkt(new_key().public_key())
        with pytest.raises(RequestMalformed):
            await add("alice", proxy.identifier, "short", actor=ADMIN)
        with pytest.raises(RequestMalformed):
            await add("alice", proxy.identifier, jkt, "a b", actor=ADMIN)
        for who, behind in (("nobody", proxy.identifier), ("alice", f"{ORIGIN}/proxy/none")):
            with pytest.raises(NotFound):
                await add(who, behind, jkt, actor=ADMIN)
        with pytest.raises(KeyAlreadyAgent):
            await add("alice", proxy.identifier, owner.jkt, actor=ADMIN)
        await add("alice", proxy.identifier, jkt, actor=ADMIN)
        with pytest.raises(KeyAlreadyAgent):
            await add("alice", proxy.identifier, jkt, actor=ADMIN)
        await campus.directory.suspend("alice", actor=ADMIN)
        with pytest.raises(Conflict):
            await add("alice", proxy.identifier, jws.jkt(new_key().public_key()), actor=ADMIN)
        for look in (campus.registry.show, campus.registry.list):
            with pytest.raises(NotFound):
                await look("nobody")

    play(tmp_path, story)


@pytest.mark.req("A-108")
def test_a_revoked_agent_loses_its_credentials_and_its_key_gets_no_new_name(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        key = new_key()
        ask = (await proxy.ask(owner, key)).approved()
        await ask.submit()
        done = await campus.registry.revoke(ask.sub, why="left the project", actor=ADMIN)
        assert done == {"identifier": ask.sub, "state": "revoked", "credentials_revoked": 1}
        assert (await campus.registry.show(ask.sub))["credentials"][0]["state"] == "revoked"
        with pytest.raises(Conflict):
            await campus.registry.revoke(ask.sub, actor=ADMIN)
        again = (await proxy.ask(owner, key)).approved()
        assert again.sub != ask.sub
        assert (await again.submit())[1]["reason"] == "key-reuse"

    play(tmp_path, story)
