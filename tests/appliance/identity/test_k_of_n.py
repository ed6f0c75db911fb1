"""k of n approvers: each is asked by its own challenge and answers by its own signature, and what must not count."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import update

from appliance.binding import approval, jws
from appliance.binding.challenge import BindingChallenge
from appliance.binding.errors import KeyReused, OriginMismatch
from appliance.binding.package import verify_package
from appliance.evidence_package import EvidencePackages
from appliance.settings import IdentitySettings
from appliance.store import certificates, schema
from appliance.store import challenges as rows
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, Ask, Campus, OwnerHost, Proxy, Token, campus_keys, new_key
from tests.appliance.identity.test_enroll import credentials
from tests.appliance.identity.test_owner_mediated import MODEL, Gateway, signed
from tests.appliance.identity.test_server_mediated import Desk, again, open_challenge, yes
from tests.appliance.identity.test_standing import Agent, stand

NAMES = ("alice", "bob", "carol")


@dataclass
class Team:
    """Alice, whose the agents are, with bob and carol to approve beside her; each with a tool of their own."""

    folder: Path
    campus: Campus
    proxy: Proxy
    desks: dict[str, Desk]
    gateway: Gateway
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    async def create(cls, folder: Path, needed: int, **more: Any) -> Team:
        campus = Campus.create(folder)
        owners = [await campus.owner(name) for name in NAMES]
        desks = {one.ref: await Desk.register(campus, one, folder) for one in owners}
        gateway = await Gateway.register(owners[0], folder / "gateway")
        made = cls(folder, campus, await campus.proxy(), desks, gateway)
        named = {"robot": [one.identifier for one in owners[1:]]}
        made.restart(approvers={"robot": needed}, named_approvers=named, **more)
        return made

    def restart(self, **settings: Any) -> None:
        self.settings |= settings
        self.campus.close()
        self.campus = Campus.create(self.folder, reopen=self.campus, **self.settings)
        self.proxy = replace(self.proxy, campus=self.campus)
        for desk in self.desks.values():
            desk.owner = replace(desk.owner, campus=self.campus)
        self.gateway.owner = replace(self.gateway.owner, campus=self.campus)

    def owner(self, name: str) -> OwnerHost:
        return self.desks[name].owner

    async def register(self, name: str = "robot") -> Any:
        key = new_key()
        jkt = jws.jkt(key.public_key())
        await self.campus.registry.add("alice", self.proxy.identifier, jkt, name, actor=ADMIN)
        return key

    async def ask(self, name: str = "robot", **changed: Any) -> Ask:
        return await again(self.proxy, self.owner("alice"), await self.register(name), **changed)

    async def submit(self, ask: Ask, **changed: Any) -> tuple[int, dict[str, Any]]:
        return await replace(ask, proxy=self.proxy).submit(**changed)

    async def asked(self, name: str) -> BindingChallenge:
        return await self.desks[name].asked()

    async def answer(self, name: str, ask: Ask, **changed: Any) -> tuple[int, dict[str, Any]]:
        asked = await self.asked(name)
        return await self.desks[name].answer(asked, yes(self.owner(name), ask, asked, **changed))

    async def waiting(self) -> list[int]:
        return [len(await self.desks[name].waiting()) for name in NAMES]

    async def issued(self, ask: Ask) -> list[Any]:
        return [row for row in await credentials(self.campus, ask.sub) if row.state == certificates.ISSUED]


Story = Callable[[Team], Awaitable[None]]


def play(folder: Path, story: Story, needed: int = 2, **settings: Any) -> None:
    async def run() -> None:
        team = await Team.create(folder, needed, **settings)
        try:
            await story(team)
        finally:
            team.campus.close()

    asyncio.run(run())


@pytest.mark.req("A-35", "A-60", "A-62", "A-65", "A-112", "A-113")
def test_two_of_three_owners_are_asked_each_by_a_challenge_of_its_own_and_every_view_shows_both(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        for _ in range(2):
            assert (await team.submit(ask))[0] == 202
        asked = [await team.asked(name) for name in NAMES]
        assert len({one.nonce for one in asked}) == len({one.jti for one in asked}) == 3
        assert [one.aud for one in asked] == [team.owner(name).identifier for name in NAMES]
        assert len(await team.campus.audited("owner-challenged")) == 3
        assert (await team.answer("bob", ask))[0] == 200
        assert await team.waiting() == [1, 0, 1]
        assert (await team.submit(ask))[0] == 202 and (await team.proxy.status(ask.request.rqh))[0] == 202
        assert (await team.answer("alice", ask))[0] == 200
        status, answer = await team.submit(ask)
        assert status == 201, answer
        # nobody is asked any more, and what comes late counts for nothing
        assert await team.waiting() == [0, 0, 0]
        late = await team.desks["carol"].answer(asked[2], yes(team.owner("carol"), ask, asked[2]))
        assert (late[1]["reason"], late[1]["state"]) == ("challenge-over", "not-needed")
        people = [team.owner(name).identifier for name in ("alice", "bob")]
        told = {one["fields"]["txn"] for one in await team.campus.audited("owner-answered")}
        assert told == {answer["txn"]} and len(await team.campus.audited("owner-approved")) == 2
        (row,) = (await team.campus.registry.show(ask.sub))["requests"]
        assert [one["owner"] for one in row["approvals"]] == people, "the agent's own owner's first"
        mine = await team.campus.service.desk.issued(people[0])
        assert [one["owner"] for one in mine["credentials"][0]["approvals"]] == people
        his = await team.campus.service.desk.issued(people[1])
        assert [(one["serial"], one["owner"]) for one in his["beside"]] == [(answer["serial"], people[0])]
        assert his["credentials"] == []
        packages = EvidencePackages(ca=team.campus.ca, store=team.campus.store, clock=team.campus.clock)
        files = {name: one.encode() for name, one in (await packages.export(answer["serial"])).items()}
        bundle = team.campus.service.issuer.trust_bundle(await team.campus.directory.records())
        assert dict(verify_package(files, bundle).steps)["approvals"] == f"2: {', '.join(people)}"

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-62")
def test_every_approvers_long_poll_ends_with_its_own_question(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        polls = [asyncio.create_task(team.desks[name].waiting(20)) for name in NAMES]
        await asyncio.sleep(0.05)
        await team.submit(await team.ask())
        for name, found in zip(NAMES, await asyncio.wait_for(asyncio.gather(*polls), 10), strict=True):
            (row,) = found
            assert open_challenge(team.campus, row["challenge"]).aud == team.owner(name).identifier

    play(tmp_path, story)


@pytest.mark.req("A-35")
def test_the_agents_own_owner_is_always_among_them(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        await team.submit(ask)
        for name in ("bob", "carol"):
            assert (await team.answer(name, ask))[0] == 200
        assert (await team.submit(ask))[0] == 202
        team.campus.clock.advance(901)
        for status, answer in (await team.submit(ask), await team.proxy.status(ask.request.rqh)):
            assert (status, answer["reason"]) == (403, "challenge-expired")
        assert await team.issued(ask) == []

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-62", "A-93")
def test_it_is_refused_as_soon_as_enough_can_approve_no_more_and_the_reason_says_how(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        await team.submit(ask)
        assert (await team.answer("carol", ask, deny=True))[0] == 200
        assert (await team.submit(ask))[0] == 202 and await team.waiting() == [1, 1, 0]
        assert (await team.answer("bob", ask, deny=True))[1]["decision"] == "deny"
        assert await team.waiting() == [0, 0, 0], "alice need not answer any more"
        for status, answer in (await team.submit(ask), await team.proxy.status(ask.request.rqh)):
            assert (status, answer["reason"]) == (403, "approvers-out-of-reach")
            assert (answer["needed"], answer["approved"], answer["denied"]) == (2, 0, 2)
        # who has just said no is not asked again for a while: too few are left
        muted = await again(team.proxy, team.owner("alice"), ask.signer._key)
        assert (await team.submit(muted))[1]["reason"] == "agent-muted"
        assert await team.waiting() == [0, 0, 0]
        team.campus.clock.advance(901)
        later = await again(team.proxy, team.owner("alice"), ask.signer._key)
        await team.submit(later)
        assert (await team.answer("alice", later, deny=True))[0] == 200
        assert await team.waiting() == [0, 0, 0] and (await team.submit(later))[1]["reason"] == "approval-denied"

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-62")
def test_when_some_are_silent_the_others_suffice_and_else_the_reason_counts_the_silent(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        await team.campus.directory.add("engine", name="Engine", kind="policy", department="IT", actor=ADMIN)
        engine = (await team.campus.directory.show("engine"))["identifier"]
        named = team.settings["named_approvers"]["robot"]
        team.restart(named_approvers={"robot": [named[0], engine]})
        ask = await team.ask()
        await team.submit(ask)
        team.campus.clock.advance(31)  # the program's time is over, the persons' is not
        assert (await team.answer("bob", ask))[0] == 200
        assert (await team.submit(ask))[0] == 202
        assert (await team.answer("alice", ask))[0] == 200
        assert (await team.submit(ask))[0] == 201
        other = await team.ask()
        await team.submit(other)
        assert (await team.answer("alice", other))[0] == 200
        team.campus.clock.advance(31)
        assert (await team.submit(other))[0] == 202
        assert (await team.answer("bob", other, deny=True))[0] == 200
        answer = (await team.submit(other))[1]
        assert [answer[name] for name in ("reason", "approved", "denied", "expired")] == [
            "approvers-out-of-reach", 1, 1, 1,
        ]  # fmt: skip

    play(tmp_path, story)


Attack = Callable[[Team, Ask], Awaitable[tuple[int, dict[str, Any]]]]
ATTACKS: dict[str, Attack] = {}


def refused(reason: str) -> Callable[[Attack], Attack]:
    def keep(attack: Attack) -> Attack:
        ATTACKS[f"{reason} ({attack.__name__})"] = attack
        return attack

    return keep


@refused("approval-wrong-owner")
async def an_approver_who_is_not_in_the_list(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    dave = await team.campus.owner("dave")
    asked = await team.asked("bob")
    return await team.desks["bob"].answer(asked, yes(team.owner("bob"), ask, asked, signer=dave.signer))


@refused("owner-mismatch")
async def a_stranger_in_its_own_name(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    dave = await team.campus.owner("dave")
    asked = await team.asked("bob")
    return await team.desks["bob"].answer(asked, yes(dave, ask, asked))


@refused("not-found")
async def a_stranger_with_a_tool(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    dave = await team.campus.owner("dave")
    desk = await Desk.register(team.campus, dave, team.folder)
    assert await desk.waiting() == []
    asked = await team.asked("bob")
    return await desk.answer(asked, yes(dave, ask, asked))


@refused("not-found")
async def the_same_owner_with_two_keys(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    second = KeySigner(new_key())
    alice = team.owner("alice")
    await team.campus.directory.add_key("alice", alice.statement(second), actor=ADMIN)
    assert (await team.answer("alice", ask))[0] == 200
    assert await team.desks["alice"].waiting() == [], "an owner has one place"
    asked = await team.asked("bob")
    return await team.desks["alice"].answer(asked, yes(alice, ask, asked, signer=second))


@refused("owner-mismatch")
async def the_owners_second_key_through_anothers_tool(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    second = KeySigner(new_key())
    alice = team.owner("alice")
    await team.campus.directory.add_key("alice", alice.statement(second), actor=ADMIN)
    asked = await team.asked("bob")
    return await team.desks["bob"].answer(asked, yes(alice, ask, asked, signer=second))


@refused("approval-wrong-owner")
async def the_same_key_under_two_owners(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    alice, bob = team.owner("alice"), team.owner("bob")
    with pytest.raises(KeyReused):
        await team.campus.directory.add_key("bob", bob.statement(alice.signer), actor=ADMIN)
    asked = await team.asked("bob")
    return await team.desks["bob"].answer(asked, yes(bob, ask, asked, signer=alice.signer))


@refused("approval-nonce-mismatch")
async def the_answer_to_another_approvers_challenge(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    asked, others = await team.asked("bob"), await team.asked("carol")
    return await team.desks["bob"].answer(asked, yes(team.owner("bob"), ask, others))


@refused("not-found")
async def an_answer_where_another_was_asked(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    asked = await team.asked("carol")
    return await team.desks["bob"].answer(asked, yes(team.owner("bob"), ask, asked))


@refused("approval-nonce-mismatch")
async def an_answer_replayed_to_a_later_challenge(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    asked = await team.asked("bob")
    old = yes(team.owner("bob"), ask, asked)
    assert (await team.desks["bob"].answer(asked, old))[0] == 200
    newer = await again(team.proxy, team.owner("alice"), ask.signer._key)
    assert (await team.submit(newer))[0] == 202
    return await team.desks["bob"].answer(await team.asked("bob"), yes(team.owner("bob"), newer, asked))


@refused("approval-for-other-request")
async def other_bytes_of_the_same_agent(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    other = await again(team.proxy, team.owner("alice"), ask.signer._key)
    asked = await team.asked("bob")
    return await team.desks["bob"].answer(asked, yes(team.owner("bob"), other, asked))


@refused("challenge-expired")
async def an_answer_after_its_time(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    asked = await team.asked("bob")
    early = yes(team.owner("bob"), ask, asked)
    team.campus.clock.advance(901)
    return await team.desks["bob"].answer(asked, early)


@refused("challenge-over")
async def a_yes_after_a_no(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    asked = await team.asked("bob")
    assert (await team.desks["bob"].answer(asked, yes(team.owner("bob"), ask, asked, deny=True)))[0] == 200
    return await team.desks["bob"].answer(asked, yes(team.owner("bob"), ask, asked))


@refused("challenge-over")
async def the_same_approver_twice(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    asked = await team.asked("bob")
    token = yes(team.owner("bob"), ask, asked)
    for _ in range(2):  # a lost reply: told again, and counted once
        assert (await team.desks["bob"].answer(asked, token))[0] == 200
    return await team.desks["bob"].answer(asked, yes(team.owner("bob"), ask, asked))


@refused("owner-not-active")
async def a_suspended_approver(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    asked = await team.asked("bob")
    await team.campus.directory.suspend("bob", actor=ADMIN)
    return await team.desks["bob"].answer(asked, yes(team.owner("bob"), ask, asked))


@refused("self-approval")
async def the_agents_own_key(team: Team, ask: Ask) -> tuple[int, dict[str, Any]]:
    asked = await team.asked("bob")
    return await team.desks["bob"].answer(asked, yes(team.owner("bob"), ask, asked, signer=ask.signer))


@pytest.mark.req("A-35", "A-61", "A-94", "A-99", "A-100")
@pytest.mark.parametrize("name", ATTACKS)
def test_no_other_answer_counts_for_a_place(tmp_path: Path, name: str) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        assert (await team.submit(ask))[0] == 202
        status, answer = await ATTACKS[name](team, ask)
        assert (answer["reason"], 400 <= status < 500) == (name.partition(" ")[0], True), answer
        assert (await team.submit(ask))[0] != 201, "at most one approval counts"
        assert await team.issued(ask) == []

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-61", "A-110")
@pytest.mark.parametrize("what", ["owner suspended", "owner revoked", "key suspended", "key revoked"])
def test_an_approver_who_falls_before_the_credential_counts_no_more(tmp_path: Path, what: str) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        await team.submit(ask)
        for name in ("alice", "bob"):
            assert (await team.answer(name, ask))[0] == 200
        directory, bob = team.campus.directory, team.owner("bob")
        match what:
            case "owner suspended":
                await directory.suspend("bob", actor=ADMIN)
            case "owner revoked":
                await directory.revoke("bob", actor=ADMIN)
            case "key suspended":
                await directory.suspend_key("bob", bob.jkt, actor=ADMIN)
            case "key revoked":
                await directory.revoke_key("bob", bob.jkt, actor=ADMIN)
        assert (await team.submit(ask))[0] == 202, "carol may still approve"
        assert (await team.answer("carol", ask))[0] == 200
        status, answer = await team.submit(ask)
        assert status == 201, answer
        (row,) = (await team.campus.registry.show(ask.sub))["requests"]
        assert [one["owner"] for one in row["approvals"]] == [
            team.owner(name).identifier for name in ("alice", "carol")
        ]

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-110")
def test_when_nobody_is_left_to_approve_in_a_fallen_ones_place_the_reason_says_so(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        await team.submit(ask)
        for name in ("alice", "bob"):
            await team.answer(name, ask)
        await team.answer("carol", ask, deny=True)
        await team.campus.directory.suspend("bob", actor=ADMIN)
        status, answer = await team.submit(ask)
        assert (status, answer["reason"], answer["withdrawn"]) == (403, "approvers-out-of-reach", 1)
        await team.campus.directory.resume("bob", actor=ADMIN)
        await team.campus.directory.suspend("alice", actor=ADMIN)
        assert (await team.submit(ask))[1]["reason"] == "owner-not-active", "nothing without the agent's own owner"
        assert await team.issued(ask) == []

    play(tmp_path, story)


@pytest.mark.req("A-110", "A-95")
@pytest.mark.parametrize("what", ["key", "owner"])
def test_credentials_fall_with_everyone_who_approved_them(tmp_path: Path, what: str) -> None:
    async def story(team: Team) -> None:
        ask, other = await team.ask(), await team.ask("")
        await team.submit(ask)
        for name in ("alice", "bob"):
            await team.answer(name, ask)
        assert (await team.submit(ask))[0] == 201
        await team.submit(other)
        await team.answer("alice", other)
        assert (await team.submit(other))[0] == 201
        directory = team.campus.directory
        second = KeySigner(new_key())
        await directory.add_key("bob", team.owner("bob").statement(second), actor=ADMIN)
        told = await directory.revoke_key("bob", jws.jkt(second.public_key()), actor=ADMIN)
        assert told["credentials_revoked"] == 0, "that key approved nothing"
        if what == "key":
            told = await directory.revoke_key("bob", team.owner("bob").jkt, actor=ADMIN)
        else:
            told = await directory.revoke("bob", actor=ADMIN)
        assert told["credentials_revoked"] == 1
        assert await team.issued(ask) == [] and len(await team.issued(other)) == 1
        assert (await team.proxy.status(ask.request.rqh))[1]["reason"] == "credential-withdrawn"

    play(tmp_path, story)


@pytest.mark.req("A-110", "A-95")
@pytest.mark.parametrize("what", ["key", "owner"])
def test_two_requests_under_one_reference_fall_each_with_its_own_approvers(tmp_path: Path, what: str) -> None:
    """`txn` is the agent's own claim: saying it twice neither shields a credential nor takes another one along."""

    async def story(team: Team) -> None:
        key = await team.register()
        serials: dict[str, str] = {}
        first = await again(team.proxy, team.owner("alice"), key, txn="flow-7")
        for at, others in enumerate(("carol", "bob", "bob", "carol")):
            fresh = key if at == 0 else new_key()
            renewal = {} if at == 0 else {"purpose": "renew", "previous": KeySigner(key), "nonce_sub": first.sub}
            ask = first if at == 0 else await again(team.proxy, team.owner("alice"), fresh, txn="flow-7", **renewal)
            assert (await team.submit(ask))[0] == 202
            for name in ("alice", others):
                assert (await team.answer(name, ask))[0] == 200
            status, answer = await team.submit(ask)
            assert (status, answer.get("txn")) == (201, "flow-7")
            key = fresh
            serials[answer["serial"]] = others
        bobs = [serial for serial, name in serials.items() if name == "bob"]
        shown = await team.campus.service.desk.issued(team.owner("bob").identifier)
        assert [one["serial"] for one in shown["beside"]] == bobs[::-1]
        if what == "key":
            told = await team.campus.directory.revoke_key("bob", team.owner("bob").jkt, actor=ADMIN)
        else:
            told = await team.campus.directory.revoke("bob", actor=ADMIN)
        assert told["credentials_revoked"] == 2
        assert [serials[row.serial] for row in await team.issued(first)] == ["carol", "carol"]

    play(tmp_path, story)


@pytest.mark.req("A-100", "A-110")
def test_what_was_taken_up_after_an_interruption_falls_with_a_further_approver_too(tmp_path: Path) -> None:
    token = Token(campus_keys()[2]["agents"].signer)

    async def story(team: Team) -> None:
        ask = await team.ask()
        await team.submit(ask)
        for name in ("alice", "bob"):
            await team.answer(name, ask)
        team.restart(ca_token=token)
        token.is_out = True
        assert (await team.submit(ask))[0] == 500
        token.is_out = False
        status, answer = await team.submit(ask)
        assert status == 201
        shown = await team.campus.service.desk.issued(team.owner("bob").identifier)
        assert [(one["serial"] == answer["serial"], one["state"]) for one in shown["beside"]] == [
            (True, "issued"), (False, "revoked"),
        ]  # fmt: skip
        told = await team.campus.directory.revoke("bob", actor=ADMIN)
        assert told["credentials_revoked"] == 1 and await team.issued(ask) == []

    play(tmp_path, story)


@pytest.mark.req("A-110")
@pytest.mark.parametrize("what", ["owner", "key"])
@pytest.mark.parametrize("name", ["alice", "bob"])
def test_nothing_is_handed_out_while_somebody_who_approved_is_suspended(tmp_path: Path, name: str, what: str) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        await team.submit(ask)
        for one in ("alice", "bob"):
            await team.answer(one, ask)
        assert (await team.submit(ask))[0] == 201
        directory, jkt = team.campus.directory, team.owner(name).jkt
        await directory.suspend("carol", actor=ADMIN)
        assert (await team.proxy.status(ask.request.rqh))[0] == 200, "she approved nothing"
        if what == "owner":
            await directory.suspend(name, actor=ADMIN)
        else:
            await directory.suspend_key(name, jkt, actor=ADMIN)
        assert (await team.proxy.status(ask.request.rqh))[1]["reason"] == "credential-withdrawn"
        if what == "owner":
            await directory.resume(name, actor=ADMIN)
        else:
            await directory.resume_key(name, jkt, actor=ADMIN)
        assert (await team.proxy.status(ask.request.rqh))[0] == 200

    play(tmp_path, story)


@pytest.mark.req("A-93", "A-100")
def test_a_request_that_all_approved_and_nobody_handed_in_again_is_over_with_its_time(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        await team.submit(ask)
        for name in ("alice", "bob"):
            await team.answer(name, ask)
        left = ask.request.exp - team.campus.clock.now().timestamp()
        team.campus.clock.advance(left)
        assert (await team.proxy.status(ask.request.rqh))[0] == 202
        team.campus.clock.advance(61)  # beyond what clocks may differ
        assert (await team.submit(ask))[1]["reason"] == "request-expired"
        status, answer = await team.proxy.status(ask.request.rqh)
        assert (status, answer["reason"]) == (409, "request-abandoned")

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-61")
def test_the_rule_is_that_of_the_class_when_the_credential_is_begun(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        key = await team.register("")
        ask = await again(team.proxy, team.owner("alice"), key)
        assert (await team.submit(ask))[0] == 202
        assert (await team.answer("alice", ask))[0] == 200
        change = update(schema.agents).where(schema.agents.c.identifier == ask.sub).values({"class": "robot"})
        await team.campus.store.write(lambda tx: tx.execute(change, {}))
        status, answer = await team.submit(ask)
        assert (status, answer["reason"], answer["needed"]) == (403, "approvers-out-of-reach", 2)
        # and the other way round: whom the list names no more approves nothing
        second = await team.ask()
        await team.submit(second)
        for name in ("alice", "bob"):
            await team.answer(name, second)
        named = team.settings["named_approvers"]["robot"]
        team.restart(named_approvers={"robot": named[1:]})
        assert (await team.submit(second))[0] == 202
        assert (await team.answer("carol", second))[0] == 200
        assert (await team.submit(second))[0] == 201
        (row,) = (await team.campus.registry.show(second.sub))["requests"]
        assert len(row["approvals"]) == 2

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-93")
def test_an_approver_who_cannot_be_asked_is_left_out_if_the_others_are_enough(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        await team.campus.directory.suspend("carol", actor=ADMIN)
        ask = await team.ask()
        assert (await team.submit(ask))[0] == 202
        assert [one["object"] for one in await team.campus.audited("owner-challenged")] == [
            team.owner(name).identifier for name in ("alice", "bob")
        ]
        await team.campus.directory.suspend("bob", actor=ADMIN)
        other = await team.ask()
        assert (await team.submit(other))[1]["reason"] == "owner-not-active"
        for name in ("bob", "carol"):
            await team.campus.directory.resume(name, actor=ADMIN)
        for _ in range(2):
            await team.submit(await team.ask())
        status, answer = await team.submit(await team.ask())
        assert (status, answer["reason"]) == (429, "challenges-full"), "alice has as many questions as she may"
        assert await team.waiting() == [3, 3, 2]

    play(tmp_path, story, challenges_per_owner=3)


@pytest.mark.req("A-60", "A-100", "A-112")
def test_restarts_between_any_two_steps_and_an_interrupted_signature_lose_no_answer(tmp_path: Path) -> None:
    token = Token(campus_keys()[2]["agents"].signer)

    async def story(team: Team) -> None:
        ask = await team.ask()
        assert (await team.submit(ask))[0] == 202
        for name in ("bob", "alice"):
            team.restart()
            assert (await team.submit(ask))[0] == 202
            assert (await team.answer(name, ask))[0] == 200
        team.restart(ca_token=token)
        token.is_out = True
        assert (await team.submit(ask))[0] == 500
        kept = await team.campus.store.read(lambda tx: rows.by_rqh(tx, ask.request.rqh))
        assert [one.state for one in kept] == [rows.SPENT, rows.SPENT, rows.NOT_NEEDED]
        token.is_out = False
        await team.campus.directory.suspend("bob", actor=ADMIN)
        assert (await team.submit(ask))[1]["reason"] == "approvers-out-of-reach", "with these very answers, or not"
        await team.campus.directory.resume("bob", actor=ADMIN)
        assert (await team.submit(ask))[0] == 201
        assert len(await team.issued(ask)) == 1

    play(tmp_path, story)


@pytest.mark.req("A-100")
def test_answers_and_polls_that_race_over_two_servers_make_one_credential(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask()
        await team.submit(ask)
        twin = Campus.create(tmp_path, reopen=team.campus, **team.settings)
        asked = {name: await team.asked(name) for name in NAMES}

        async def answer(name: str, at: int) -> tuple[int, dict[str, Any]]:
            owner = replace(team.owner(name), campus=(team.campus, twin)[at % 2])
            return await Desk(owner, team.desks[name].peer).answer(asked[name], yes(owner, ask, asked[name]))

        async def poll(at: int) -> tuple[int, dict[str, Any]]:
            return await replace(ask, proxy=replace(team.proxy, campus=(team.campus, twin)[at % 2])).submit()

        done = await asyncio.gather(
            *(answer(name, at) for at in range(12) for name in NAMES), *(poll(at) for at in range(24))
        )
        answers, polls = done[:36], [*done[36:], *await asyncio.gather(*(poll(at) for at in range(24)))]
        counted = sum(status == 200 for status, _ in answers)
        assert 2 <= counted <= 3, answers
        assert {answer["reason"] for status, answer in answers if status != 200} <= {"challenge-over"}
        assert sum(status == 201 for status, _ in polls) == 1, polls
        assert len(await team.issued(ask)) == 1
        twin.close()

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-65")
def test_where_nobody_is_named_two_keys_of_the_one_owner_answer(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        team.restart(approvers={"robot": 2}, named_approvers={})
        alice, desk = team.owner("alice"), team.desks["alice"]
        second = KeySigner(new_key())
        await team.campus.directory.add_key("alice", alice.statement(second), actor=ADMIN)
        ask = await team.ask()
        await team.submit(ask)
        first, other = (open_challenge(team.campus, row["challenge"]) for row in await desk.waiting())
        assert (await desk.answer(first, yes(alice, ask, first)))[0] == 200
        status, answer = await desk.answer(other, yes(alice, ask, other))
        assert (status, answer["reason"]) == (403, "approvers-not-distinct")
        assert (await team.campus.audited("owner-answered"))[-1]["outcome"] == "refused"
        assert (await team.submit(ask))[0] == 202
        assert (await desk.answer(other, yes(alice, ask, other, signer=second)))[0] == 200
        assert (await team.submit(ask))[0] == 201
        assert len((await team.campus.audited("dual-identity-issued"))[0]["fields"]["approvals_s256"]) == 2

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-40", "A-65")
def test_an_agent_may_bring_the_approvals_of_the_same_owners_itself(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask(model="agent-mediated")
        tokens = {name: team.owner(name).approve(ask.token) for name in NAMES}

        async def brought(*names: str, more: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
            return await team.submit(replace(ask, approvals=(*(tokens[name] for name in names), *more)))

        assert (await brought("alice"))[1]["reason"] == "approvers-too-few"
        assert (await brought("bob", "carol"))[1]["reason"] == "owner-not-among-approvers"
        alice, second = team.owner("alice"), KeySigner(new_key())
        await team.campus.directory.add_key("alice", alice.statement(second), actor=ADMIN)
        twice = (alice.approve(ask.token, second),)
        assert (await brought("alice", more=twice))[1]["reason"] == "approvers-not-distinct"
        dave = await team.campus.owner("dave")
        assert (await brought("alice", more=(dave.approve(ask.token),)))[1]["reason"] == "owner-mismatch"
        no = (team.owner("carol").approve(ask.token, deny=True),)
        assert (await brought("alice", "bob", more=no))[1]["reason"] == "approval-denied"
        status, answer = await brought("carol", "alice")
        assert status == 201, answer
        (row,) = (await team.campus.registry.show(ask.sub))["requests"]
        assert [one["owner"] for one in row["approvals"]] == [
            team.owner(name).identifier for name in ("alice", "carol")
        ]
        # renewals under standing approvals keep to the same rule
        agent = Agent(team.proxy, team.owner("alice"), ask.sub, ask.signer._key)
        mine, his = (stand(team.owner(name), ask.sub, team.proxy) for name in ("alice", "bob"))
        assert (await agent.renew(mine))[1]["reason"] == "approvers-too-few"
        status, renewed = await agent.renew(his, mine)
        assert status == 201, renewed
        told = await team.campus.directory.revoke("bob", actor=ADMIN)
        assert told["credentials_revoked"] == 1, "the renewal; the first one he did not approve"
        assert (await agent.renew(his, mine))[1]["reason"] == "standing-approval-withdrawn"

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-50", "A-60", "A-65")
def test_what_a_gateway_submits_waits_for_the_others_whom_the_server_asks(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        at = int(team.campus.clock.now().timestamp())
        ask = await team.ask(model=MODEL, exp=at + 7200)
        made = signed(ask, "member 0815", proxy=team.proxy.identifier)
        status, answer = await team.gateway.submit(made)
        assert status == 202, answer
        assert await team.waiting() == [0, 1, 1], "the gateway has its owner's approval already"
        told = (await team.campus.audited("owner-answered"))[0]
        assert (told["object"], told["fields"]["decision"]) == (team.owner("alice").identifier, "approve")
        assert (await team.gateway.call("GET", f"/v1/agents/requests/{ask.request.rqh}"))[0] == 202
        team.restart()
        fresh = replace(made, evidence=team.proxy.evidence(ask.token))
        assert (await team.gateway.submit(fresh))[0] == 202
        # the material is what its owner signed for, and what waits is what its owner approved
        forged = replace(fresh, approvals=(team.owner("bob").approve(ask.token),), org=())
        assert (await team.gateway.submit(forged))[1]["reason"] == "approval-spent"
        no = replace(fresh, approvals=(team.owner("alice").approve(ask.token, deny=True),), org=())
        assert (await team.gateway.submit(no))[1]["reason"] == "approval-denied"
        assert (await team.gateway.submit(replace(fresh, org=("member 0816",))))[1]["reason"] == "org-material-mismatch"
        assert (await team.answer("carol", ask))[0] == 200
        status, answer = await team.gateway.submit(fresh)
        assert status == 201, answer
        (row,) = (await team.campus.registry.show(ask.sub))["requests"]
        assert [one["owner"] for one in row["approvals"]] == [
            team.owner(name).identifier for name in ("alice", "carol")
        ]
        assert row["org"] == ["member 0815"]
        assert (await team.gateway.submit(fresh))[1]["reason"] == "approval-spent" and await team.waiting() == [0, 0, 0]

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-50", "A-97", "A-100")
def test_an_owners_other_gateway_finishes_what_the_first_one_parked(tmp_path: Path) -> None:
    token = Token(campus_keys()[2]["agents"].signer)

    async def story(team: Team) -> None:
        at = int(team.campus.clock.now().timestamp())
        ask = await team.ask(model=MODEL, exp=at + 7200)
        first, second, third = (
            signed(ask, org, proxy=team.proxy.identifier) for org in ("member 0815", "card 4711", "card 4711")
        )
        assert (await team.gateway.submit(first))[0] == 202
        assert (await team.answer("bob", ask))[0] == 200
        assert (await team.gateway.submit(replace(second, org=("member 0815",))))[1][
            "reason"
        ] == "org-material-mismatch"
        assert (await team.gateway.submit(second))[0] == 202, "its approval takes the place of the other one"
        told = [
            one["fields"]
            for one in await team.campus.audited("owner-answered")
            if one["object"] == team.owner("alice").identifier
        ]
        assert [one["approval_s256"] for one in told] == [jws.s256(one.approvals[0]) for one in (first, second)]
        team.restart(ca_token=token)
        token.is_out = True
        assert (await team.gateway.submit(second))[0] == 500
        token.is_out = False
        # what is spent is finished with the spent approvals, whichever gateway asks, and never with other material
        assert (await team.gateway.submit(first))[1]["reason"] == "org-material-mismatch"
        status, answer = await team.gateway.submit(third)
        assert status == 201, answer
        (row,) = (await team.campus.registry.show(ask.sub))["requests"]
        assert row["approvals"][0]["s256"] == jws.s256(second.approvals[0]) and row["org"] == ["card 4711"]
        for one in (first, second, third):
            assert (await team.gateway.submit(one))[1]["reason"] == "approval-spent"
        assert len(await team.issued(ask)) == 1

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-97", "A-100")
def test_an_approval_whose_place_was_taken_is_not_spent_by_who_read_it_before(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask(model=MODEL)
        first, second = signed(ask), signed(ask)
        await team.gateway.submit(first)
        (old,) = [
            one
            for one in await team.campus.store.read(lambda tx: rows.by_rqh(tx, ask.request.rqh))
            if not one.challenge
        ]
        assert (await team.gateway.submit(second))[0] == 202
        kept = await team.campus.store.read(lambda tx: rows.by_rqh(tx, ask.request.rqh))
        assert [one.answer for one in kept if not one.challenge] == [*second.approvals] and len(kept) == 3
        assert not await team.campus.store.write(lambda tx: rows.spend(tx, old.id))
        spent = kept[old.seat]
        assert await team.campus.store.write(lambda tx: rows.spend(tx, spent.id))
        again = await team.campus.store.write(
            lambda tx: rows.replace_brought(tx, spent.id, new_id="another", token=first.approvals[0])
        )
        assert not again, "nothing takes the place of what is spent"
        asked = next(one for one in kept if one.challenge)
        assert not await team.campus.store.write(
            lambda tx: rows.replace_brought(tx, asked.id, new_id="another", token=first.approvals[0])
        )

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-97")
def test_the_other_gateways_key_counts_once_where_two_keys_of_one_owner_must_approve(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        team.restart(approvers={"robot": 2}, named_approvers={})
        alice, desk, second = team.owner("alice"), team.desks["alice"], KeySigner(new_key())
        await team.campus.directory.add_key("alice", alice.statement(second), actor=ADMIN)
        ask = await team.ask(model=MODEL)
        mine = signed(ask)
        other = replace(mine, approvals=(alice.approve(ask.token, second),))
        assert (await team.gateway.submit(mine))[0] == 202
        assert (await team.gateway.submit(other))[0] == 202
        asked = await desk.asked()
        status, answer = await desk.answer(asked, yes(alice, ask, asked, signer=second))
        assert (status, answer["reason"]) == (403, "approvers-not-distinct"), "it stands in the other place"
        assert (await desk.answer(asked, yes(alice, ask, asked)))[0] == 200
        assert (await team.gateway.submit(mine))[0] == 201, "its key has approved; what is there is enough"

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-50", "A-62")
def test_a_gateways_request_is_refused_when_the_others_say_no_or_nothing(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        at = int(team.campus.clock.now().timestamp())
        ask = await team.ask(model=MODEL, exp=at + 7200)
        made = signed(ask)
        await team.gateway.submit(made)
        for name in ("bob", "carol"):
            assert (await team.answer(name, ask, deny=True))[0] == 200
        status, answer = await team.gateway.submit(made)
        assert (status, answer["reason"], answer["approved"]) == (403, "approvers-out-of-reach", 1)
        second = await team.ask(model=MODEL, exp=at + 7200)
        await team.gateway.submit(signed(second))
        team.campus.clock.advance(901)
        late = replace(signed(second), approvals=())
        assert (await team.gateway.submit(late))[1]["reason"] == "approval-missing"
        status, answer = await team.gateway.call("GET", f"/v1/agents/requests/{second.request.rqh}")
        assert (status, answer["reason"], answer["expired"]) == (403, "approvers-out-of-reach", 2)

    play(tmp_path, story)


@pytest.mark.req("A-35", "A-65")
def test_an_answer_is_for_the_model_of_its_request(tmp_path: Path) -> None:
    async def story(team: Team) -> None:
        ask = await team.ask(model=MODEL)
        await team.gateway.submit(signed(ask))
        asked = await team.asked("bob")
        bob = team.owner("bob")
        honest = jws.read_object(jws.read(yes(bob, ask, asked)).payload, "payload")
        forged = jws.seal(
            {**honest, "model": "server-mediated"}, typ=approval.TYP, signer=bob.signer, header={"kid": bob.jkt}
        )
        assert (await team.desks["bob"].answer(asked, forged))[1]["reason"] == "approval-for-other-model"

    play(tmp_path, story)


def test_named_approvers_are_owners_of_this_campus_and_fit_their_number(tmp_path: Path) -> None:
    one, two = (f"spiffe://campus.example/owner/11111111-1111-4111-8111-11111111111{at}" for at in (1, 2))
    good = IdentitySettings(approvers={"robot": 3}, named_approvers={"robot": (one, two)})
    assert good.named_approvers == {"robot": (one, two)}
    for count, named in ((1, (one,)), (4, (one, two)), (2, (one, one)), (0, (one,)), (2, ())):
        with pytest.raises(ValidationError):
            IdentitySettings(approvers={"robot": count}, named_approvers={"robot": named})
    with pytest.raises(ValidationError):
        IdentitySettings(named_approvers={"robot": (one,)})
    foreign = one.replace("campus", "other")
    with pytest.raises(OriginMismatch):
        Campus.create(tmp_path, approvers={"robot": 2}, named_approvers={"robot": (foreign,)})
