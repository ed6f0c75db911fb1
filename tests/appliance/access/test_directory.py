from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.access.owner_rows import ConfirmationNeeded, OwnerFileRefused, OwnerTextRefused
from appliance.access.snapshot import Snapshot, with_events
from appliance.binding.errors import (
    KeyReused,
    SignatureInvalid,
    StatementExpired,
    StatementForOtherOwner,
    StatementWindowTooLong,
    StatementWrongAudience,
)
from appliance.errors import Conflict, NotFound
from appliance.store import certificates, crls
from est.errors import Refusal
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, ORIGIN, Campus, campus_keys, new_key

HEADER = "ref,name,kind,department\n"
TWO = HEADER + "alice,Alice A.,person,R&D\nbob,Bob B.,person,HR\n"


def play(folder: Path, story: Callable[[Campus], Awaitable[None]]) -> None:
    async def run() -> None:
        campus = Campus.create(folder)
        try:
            await story(campus)
        finally:
            campus.close()

    asyncio.run(run())


async def refs(campus: Campus) -> dict[str, str]:
    return {one["ref"]: one["department"] for one in await campus.directory.list()}


@pytest.mark.req("A-31", "A-32")
def test_an_import_says_what_it_does_and_a_dry_run_does_nothing(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        directory = campus.directory
        planned = await directory.import_csv(TWO, actor=ADMIN, dry_run=True)
        assert [row["ref"] for row in planned["added"]] == ["alice", "bob"]
        assert (planned["applied"], await refs(campus)) == (False, {})
        done = await directory.import_csv(TWO, actor=ADMIN)
        assert done == {**planned, "applied": True}
        again = await directory.import_csv(TWO, actor=ADMIN)
        assert (again["added"], again["changed"], again["unchanged"]) == ([], [], ["alice", "bob"])
        alice = await directory.show("alice")
        assert alice["identifier"].startswith(f"{ORIGIN}/owner/")
        assert (await directory.show(alice["identifier"]))["ref"] == "alice"
        events = [(one["event"], one["actor"]["identifier"]) for one in await campus.audited()]
        assert events.count(("owner-added", "ada")) == 2
        assert events.count(("owners-imported", "ada")) == 2

    play(tmp_path, story)


@pytest.mark.req("A-111")
def test_a_large_change_waits_for_a_confirmation_and_nobody_vanishes(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        directory = campus.directory
        await directory.import_csv(TWO, actor=ADMIN)
        moved = HEADER + "alice,Alice A.,person,HR\n"
        with pytest.raises(ConfirmationNeeded) as refused:
            await directory.import_csv(moved, actor=ADMIN)
        assert refused.value.fields == {"changed": 1, "vanished": 1}
        assert await refs(campus) == {"alice": "R&D", "bob": "HR"}
        done = await directory.import_csv(moved, actor=ADMIN, confirm=True)
        assert done["changed"] == [{"ref": "alice", "department": ["R&D", "HR"]}]
        assert [row["ref"] for row in done["vanished"]] == ["bob"]
        assert await refs(campus) == {"alice": "HR", "bob": "HR"}
        assert {one["state"] for one in await directory.list()} == {"active"}
        with pytest.raises(OwnerFileRefused, match="line 3"):
            await directory.import_csv(HEADER + "carol,C,person,HR\ncarol,C,robot,HR\n", actor=ADMIN)
        assert "carol" not in await refs(campus)

    play(tmp_path, story)


def test_a_file_does_not_bring_back_who_was_revoked(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        await campus.directory.import_csv(TWO, actor=ADMIN)
        await campus.directory.revoke("bob", actor=ADMIN)
        done = await campus.directory.import_csv(TWO.replace("HR", "R&D"), actor=ADMIN)
        assert (done["unchanged"], done["revoked"], done["vanished"]) == (["alice"], ["bob"], [])
        assert (await campus.directory.show("bob"))["state"] == "revoked"
        with pytest.raises(Conflict):
            await campus.directory.add("bob", name="B", kind="person", department="", actor=ADMIN)
        with pytest.raises(Conflict):
            await campus.directory.set_department("bob", "R&D", actor=ADMIN)

    play(tmp_path, story)


def test_single_commands_follow_the_same_rules_as_the_file(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        directory = campus.directory
        made = await directory.add("alice", name="Alice", kind="person", department=" R&D ", actor=ADMIN)
        assert (made["department"], made["keys"], made["proxies"]) == ("R&D", [], None)
        with pytest.raises(Conflict):
            await directory.add("alice", name="Alice", kind="person", department="R&D", actor=ADMIN)
        for wrong in ({"kind": "robot"}, {"name": "a\u202eb"}, {"department": "x" * 65}, {"ref": "a b"}):
            values: dict[str, Any] = {"ref": "carol", "name": "C", "kind": "person", "department": ""} | wrong
            with pytest.raises(OwnerTextRefused):
                await directory.add(values.pop("ref"), **values, actor=ADMIN)
        moved = await directory.set_department("alice", "HR", actor=ADMIN)
        assert moved["department"] == "HR"
        await directory.set_department("alice", "HR", actor=ADMIN)
        assert len(await campus.audited("owner-changed")) == 1
        for act in (directory.suspend, directory.resume, directory.revoke, directory.show):
            with pytest.raises(NotFound):
                await (act("nobody") if act == directory.show else act("nobody", actor=ADMIN))

    play(tmp_path, story)


@pytest.mark.req("A-32", "A-1")
def test_a_key_is_registered_by_its_own_fresh_statement_only(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        directory = campus.directory
        owner, bob = await campus.owner("alice", with_key=False), await campus.owner("bob", with_key=False)

        async def refused(kind: type[Refusal], statement: str, name: str = "alice") -> None:
            with pytest.raises(kind):
                await directory.add_key(name, statement, actor=ADMIN)
            assert (await directory.show("alice"))["keys"] == []

        at = int(campus.clock.now().timestamp())
        await refused(StatementForOtherOwner, owner.statement(sub="bob"))
        await refused(StatementWrongAudience, owner.statement(aud="spiffe://other.example"))
        await refused(StatementExpired, owner.statement(iat=at - 9000, exp=at - 100))
        await refused(StatementWindowTooLong, owner.statement(exp=at + 40 * 86_400))
        good = owner.statement()
        head, body, signature = good.split(".")
        await refused(SignatureInvalid, f"{head}.{body}.{signature[:-6]}AAAAAA")
        shown = await directory.add_key("alice", good, actor=ADMIN)
        assert [(key["jkt"], key["state"]) for key in shown["keys"]] == [(owner.jkt, "active")]
        with pytest.raises(KeyReused):
            await directory.add_key("alice", owner.statement(), actor=ADMIN)
        with pytest.raises(KeyReused):
            await directory.add_key("bob", bob.statement(owner.signer), actor=ADMIN)

    play(tmp_path, story)


@pytest.mark.req("A-1", "A-94")
def test_a_key_that_anybody_has_cannot_become_an_owners(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        owner, bob, proxy = await campus.owner("alice"), await campus.owner("bob", with_key=False), await campus.proxy()
        key = new_key()
        assert (await (await proxy.ask(owner, key)).approved().submit())[0] == 201
        issuing: Any = campus_keys()[2]["agents"].signer
        for taken in (KeySigner(key), KeySigner(proxy.key), issuing):
            with pytest.raises(KeyReused):
                await campus.directory.add_key("bob", bob.statement(taken), actor=ADMIN)
        reserved = new_key()
        await proxy.ask(owner, reserved)  # a reservation proves nothing: anybody can make one for anybody's key
        await campus.directory.add_key("bob", bob.statement(KeySigner(reserved)), actor=ADMIN)

    play(tmp_path, story)


@pytest.mark.req("A-32")
def test_a_rotated_key_keeps_what_it_signed_and_signs_nothing_more(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        owner, proxy = await campus.owner(), await campus.proxy()
        old = owner.signer
        owner.signer = KeySigner(new_key())
        shown = await campus.directory.rotate_key("alice", owner.statement(), actor=ADMIN)
        assert sorted(key["state"] for key in shown["keys"]) == ["active", "retired"]
        ask = await proxy.ask(owner)
        assert (await ask.approved(signer=old).submit())[1]["reason"] == "owner-key-not-valid"
        assert (await ask.approved().submit())[0] == 201
        newest = owner.signer
        owner.signer = KeySigner(new_key())
        overlap = timedelta(hours=1)
        shown = await campus.directory.rotate_key("alice", owner.statement(), actor=ADMIN, overlap=overlap)
        assert sorted(key["state"] for key in shown["keys"]) == ["active", "active", "retired"]
        assert (await (await proxy.ask(owner)).approved(signer=newest).submit())[0] == 201
        campus.clock.advance(3601)
        answer = await (await proxy.ask(owner)).approved(signer=newest).submit()
        assert answer[1]["reason"] == "owner-key-not-valid"
        await campus.directory.revoke_key("alice", owner.jkt, actor=ADMIN)
        assert (await (await proxy.ask(owner)).approved().submit())[1]["reason"] == "owner-key-not-valid"
        with pytest.raises(Conflict):
            await campus.directory.revoke_key("alice", owner.jkt, actor=ADMIN)

    play(tmp_path, story)


@pytest.mark.req("A-95")
def test_revoking_one_key_takes_the_credentials_that_it_approved_and_no_others(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        owner, proxy = await campus.owner(), await campus.proxy()
        stolen = owner.jkt
        lost = (await proxy.ask(owner)).approved()
        assert (await lost.submit())[0] == 201
        owner.signer = KeySigner(new_key())
        await campus.directory.rotate_key("alice", owner.statement(), actor=ADMIN)
        kept = (await proxy.ask(owner)).approved()
        assert (await kept.submit())[0] == 201
        result = await campus.directory.revoke_key("alice", stolen, actor=ADMIN)
        assert result["credentials_revoked"] == 1
        aki = campus.ca.issuing("agents").key_identifier
        revoked = await campus.store.read(lambda tx: crls.entries(tx, "agents", aki, campus.clock.now(), count=100))
        rows = await campus.store.read(lambda tx: certificates.of(tx, "owner_id", owner.identifier))
        assert {row.agent_id: row.state for row in rows} == {lost.sub: "revoked", kept.sub: "issued"}
        assert len(revoked) == 1

    play(tmp_path, story)


@pytest.mark.req("A-110", "A-95", "A-113")
def test_revoking_an_owner_takes_keys_agents_and_credentials_with_it_in_one_transaction(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        seen: list[list[tuple[str, str]]] = []
        snapshot = [Snapshot()]

        def hear(events: list[Any]) -> None:
            seen.append([(event.topic, event.body["state"]) for event in events])
            snapshot[0] = with_events(snapshot[0], events)

        campus.store.subscribe(hear)
        owner, bob, proxy = await campus.owner(), await campus.owner("bob"), await campus.proxy()
        asks = [(await proxy.ask(one)).approved() for one in (owner, owner, bob)]
        for ask in asks:
            assert (await ask.submit())[0] == 201
        shown = await campus.directory.show("alice")
        assert {one["agent"] for one in shown["credentials"]} == {asks[0].sub, asks[1].sub}
        pending = (await proxy.ask(owner)).approved()
        result = await campus.directory.revoke("alice", actor=ADMIN)
        assert (result["state"], result["credentials_revoked"]) == ("revoked", 2)
        assert seen[-1].count(("certificate", "revoked")) == 2
        assert seen[-1].count(("agent", "revoked")) == 2
        assert seen[-1].count(("owner", "revoked")) == seen[-1].count(("owner-key", "revoked")) == 1
        states = {one.agent_id: one.state for one in snapshot[0].credentials.values() if "/agent/" in one.agent_id}
        assert states == {asks[0].sub: "revoked", asks[1].sub: "revoked", asks[2].sub: "issued"}
        assert snapshot[0].owners[owner.identifier].state == "revoked"
        aki = campus.ca.issuing("agents").key_identifier
        revoked = await campus.store.read(lambda tx: crls.entries(tx, "agents", aki, campus.clock.now(), count=100))
        assert len(revoked) == 2
        assert (await pending.submit())[1]["reason"] == "owner-not-active"
        with pytest.raises(Conflict):
            await campus.directory.revoke("alice", actor=ADMIN)
        for act in (campus.directory.suspend, campus.directory.resume):
            with pytest.raises(Conflict):
                await act("alice", actor=ADMIN)
        with pytest.raises(Conflict):
            await campus.directory.add_key("alice", owner.statement(KeySigner(new_key())), actor=ADMIN)

    play(tmp_path, story)


@pytest.mark.req("A-110")
def test_a_suspension_denies_and_ends(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        owner, proxy = await campus.owner(), await campus.proxy()
        ask = (await proxy.ask(owner)).approved()
        await campus.directory.suspend("alice", actor=ADMIN)
        assert (await ask.submit())[1]["reason"] == "owner-not-active"
        with pytest.raises(Conflict):
            await campus.directory.suspend("alice", actor=ADMIN)
        await campus.directory.resume("alice", actor=ADMIN)
        assert (await ask.submit())[0] == 201
        events = [one["event"] for one in await campus.audited()]
        assert events.index("owner-suspended") < events.index("owner-resumed") < events.index("owner-approved")

    play(tmp_path, story)


@pytest.mark.req("A-110", "A-100")
def test_revoking_an_owner_while_sixteen_ask_leaves_no_live_credential(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        owner, proxy = await campus.owner(), await campus.proxy()
        asks = [(await proxy.ask(owner)).approved() for _ in range(16)]
        submitted = [asyncio.create_task(ask.submit()) for ask in asks]
        await asyncio.sleep(0.005)
        await campus.directory.revoke("alice", actor=ADMIN)
        await asyncio.gather(*submitted)
        rows = await campus.store.read(lambda tx: certificates.of(tx, "owner_id", owner.identifier))
        assert [row.serial for row in rows if row.state != certificates.REVOKED] == []

    play(tmp_path, story)


@pytest.mark.req("A-96")
def test_the_matrix_names_who_may_submit_for_an_owner(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        owner, proxy, other = await campus.owner(), await campus.proxy(), await campus.proxy()
        shown = await campus.directory.allow_proxy("alice", proxy.identifier, actor=ADMIN)
        assert shown["proxies"] == [proxy.identifier]
        assert (await (await proxy.ask(owner)).approved().submit())[0] == 201
        assert (await (await other.ask(owner)).approved().submit())[1]["reason"] == "proxy-not-allowed-for-owner"
        with pytest.raises(NotFound):
            await campus.directory.allow_proxy("alice", f"{ORIGIN}/proxy/none", actor=ADMIN)
        with pytest.raises(Conflict):
            await campus.directory.allow_proxy("alice", proxy.identifier, actor=ADMIN)

    play(tmp_path, story)
