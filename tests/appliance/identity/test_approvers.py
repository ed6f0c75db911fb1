"""How many must approve, by agent class: none, one, or k different keys of the owner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from appliance.binding import jws
from appliance.errors import NotFound
from appliance.settings import IdentitySettings
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, Ask, Campus, OwnerHost, Proxy, new_key
from tests.appliance.identity.test_enroll import credentials, play
from tests.appliance.identity.test_standing import Agent, stand

RULES = {"robot": 2, "probe": 0}


async def of_class(campus: Campus, proxy: Proxy, name: str, owner: OwnerHost | None, **changed: Any) -> Ask:
    key = new_key()
    ref = "" if owner is None else owner.ref
    await campus.registry.add(ref, proxy.identifier, jws.jkt(key.public_key()), name, actor=ADMIN)
    return await proxy.ask(owner, key, **changed)


def by(ask: Ask, *signers: KeySigner) -> Ask:
    assert ask.owner is not None
    return replace(ask, approvals=tuple(ask.owner.approve(ask.token, one) for one in signers))


@pytest.mark.req("A-35", "A-65", "A-110")
def test_a_class_that_needs_two_approvers_gets_nothing_for_one(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        second, third = KeySigner(new_key()), KeySigner(new_key())
        for one in (second, third):
            await campus.directory.add_key("alice", owner.statement(one), actor=ADMIN)
        ask = await of_class(campus, proxy, "robot", owner)
        status, answer = await by(ask, owner.signer).submit()
        assert (status, answer["reason"], answer["needed"], answer["found"]) == (403, "approvers-too-few", 2, 1)
        status, answer = await by(ask, owner.signer, owner.signer).submit()
        assert answer["reason"] == "approvers-not-distinct"
        status, answer = await by(ask, second, third).submit()
        assert status == 201, answer
        issued = (await campus.audited("dual-identity-issued"))[-1]["fields"]
        assert len(issued["approvals_s256"]) == 2 and len(await campus.audited("owner-approved")) == 2
        agent = Agent(proxy, owner, ask.sub, ask.signer._key)
        one, two = (stand(owner, ask.sub, proxy, signer=signer) for signer in (owner.signer, second))
        assert (await agent.renew(one))[1]["reason"] == "approvers-too-few"
        assert (await agent.renew(one, two))[0] == 201
        assert [row["uses"] for row in await campus.service.desk.of_owner("alice")] == [1, 1]
        # the certificates hold the first approver's key alone, and fall with each of the two all the same
        live = [row.serial for row in await credentials(campus, ask.sub) if row.state == "issued"]
        told = await campus.directory.revoke_key("alice", owner.jkt, actor=ADMIN)
        assert told["credentials_revoked"] == 1, "the renewal, whose first approval it signed"
        told = await campus.directory.revoke_key("alice", jws.jkt(third.public_key()), actor=ADMIN)
        assert (told["credentials_revoked"], len(live)) == (1, 2), "the first credential, as its second approver"

    play(tmp_path, story, approvers=RULES)


@pytest.mark.req("A-2", "A-35")
def test_an_owner_is_needed_unless_the_class_says_otherwise(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        alone = await of_class(campus, proxy, "probe", None)
        status, answer = await alone.submit()
        assert (status, answer["owner"]) == (201, None)
        for name in ("", "robot", "other"):
            ask = await of_class(campus, proxy, name, None)
            status, answer = await ask.submit()
            assert (status, answer["reason"]) == (403, "single-identity-not-offered"), name
        assert (await (await proxy.ask(None)).submit())[1]["reason"] == "single-identity-not-offered"
        # an agent that acts for itself is nobody's, whoever approves
        claimed = await proxy.ask(owner, alone.signer._key, nonce_sub=alone.sub)
        assert (await claimed.approved().submit())[0] in (400, 409)
        mine = await of_class(campus, proxy, "probe", owner)
        assert (await mine.approved().submit())[0] == 201
        with pytest.raises(NotFound):
            await campus.registry.add("nobody", proxy.identifier, "A" * 43, "probe", actor=ADMIN)

    play(tmp_path, story, approvers=RULES)


def test_the_default_may_be_changed_and_numbers_have_bounds(tmp_path: Path) -> None:
    async def story(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        assert (await (await proxy.ask(owner)).approved().submit())[1]["reason"] == "approvers-too-few"
        assert (await (await of_class(campus, proxy, "easy", owner)).approved().submit())[0] == 201

    play(tmp_path, story, approvers={"default": 2, "easy": 1})
    for bad in (-1, 9, "x"):
        with pytest.raises(ValidationError):
            IdentitySettings(approvers={"robot": bad})  # type: ignore[dict-item]
