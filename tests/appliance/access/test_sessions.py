"""Live sessions: accounting keeps their table, and a changed decision reaches the port within seconds."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.access import session_changes
from appliance.access import sessions as sessions_module
from appliance.access.decision_log import DecisionLog
from appliance.access.nas import ALL, REQUESTS, Engine, NasService
from appliance.access.open_sessions import OpenSessions
from appliance.access.policies import PolicyService
from appliance.access.service import AccessService
from appliance.access.session_changes import ChangeRunner
from appliance.access.sessions import SessionService, SessionUnknown
from appliance.audit import rows as audit_rows
from appliance.clock import SystemClock
from appliance.errors import StoreUnavailable
from appliance.identity.registry import AgentRegistry
from appliance.settings import AccessSettings
from appliance.store import agents, decisions, sessions
from appliance.store.sessions import Session
from appliance.store.store import Store
from appliance.web.peer import Peer
from est.errors import Refusal
from est.exchange import Call
from radius import AccessRequest
from radius.accounting import AccountingRecord
from tests.appliance.access.test_access_service import (
    ADMIN,
    AGENT,
    OWNER,
    POLICY,
    Box,
    login,
    ready,
    set_agent,
    set_owner,
    with_port,
)  # fmt: skip
from tests.radius.das import das
from tests.stores import open_store
from tests.support import stretched

SECRET = "shared-secret-of-the-switch-0001"
MAC = "02-00-00-00-00-01"
AT = {"nas": "switch-1", "nas_address": "127.0.0.1", "nas_port": "swp1", "calling_station": MAC}


class World:
    """An access service with its sessions, over a store of its own."""

    def __init__(self, store: Store, access: AccessService, nas: NasService, service: SessionService) -> None:
        self.store, self.access, self.nas, self.sessions = store, access, nas, service

    def log_in(self, **more: Any) -> Any:
        decision = self.access.authorize(login(**(AT | more)))
        self.sessions.accepted(decision)
        return decision

    async def account(self, status: str, session: str = "A1", **more: Any) -> None:
        given = AT | {"session": session} | more
        await self.sessions.account(AccountingRecord(status, **given))  # type: ignore[arg-type]

    async def all(self, **by: Any) -> list[Session]:
        return await self.sessions.search(everything=True, **by)

    async def one(self) -> Session:
        (found,) = await self.all()
        return found

    async def until(self, check: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> float:
        begun = time.monotonic()
        while not await check():
            assert time.monotonic() - begun < seconds, "not within its time"
            await asyncio.sleep(0.02)
        return time.monotonic() - begun

    async def ended(self, session_id: str = "") -> bool:
        found = await self.all(**({"session_id": session_id} if session_id else {}))
        return bool(found) and all(one.ended_at is not None for one in found)

    async def events(self) -> list[str]:
        def read(tx: Any) -> list[str]:
            return [row.event for row in audit_rows(tx) if row.event.startswith("session")]

        return await self.store.read(read)


@asynccontextmanager
async def world(folder: Path, *, runs: bool = True, **options: Any) -> AsyncIterator[World]:
    clock = SystemClock()
    file = folder / "a.db"
    fresh = not file.exists()
    store = open_store(f"sqlite:///{file}", clock)
    access = AccessService(AccessSettings(), store, clock, journal=folder / "journal.jsonl")
    nas = NasService(store, Box())
    service = SessionService(
        store, clock, access, **({"stale_minutes": 60, "assumed_hours": 24, "keep_days": 1} | options)
    )
    runner = ChangeRunner(store, clock, service, nas, access.simulate)
    try:
        await access.start()
        await nas.start()
        if fresh:
            await ready(access, store)
        await service.start()
        if runs:
            await runner.start()
        yield World(store, access, nas, service)
    finally:
        await runner.stop()
        await service.stop()
        await access.stop()
        store.close()


def play(folder: Path, story: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120), world(folder, **options) as made:
            await story(made)

    asyncio.run(bounded())


# ---- the table


def test_an_accept_alone_makes_a_session_that_is_assumed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in()
        session = await world.one()
        assert (session.state, session.vlan, session.agent_id, session.owner_id) == ("assumed", "20", AGENT, OWNER)
        assert (session.nas, session.port, session.mac, session.serial, session.txn) == (
            "switch-1", "swp1", MAC, "beef", "txn-1",
        )  # fmt: skip

    play(tmp_path, story)


def test_an_accept_costs_no_row_of_the_table_until_there_is_more_to_keep(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async def rows() -> list[Session]:
            return await world.store.read(lambda tx: sessions.search(tx, ended=True))

        world.log_in()
        shown = await world.one()
        assert await rows() == []
        await world.account("start", "")
        (row,) = await rows()
        assert (row.id, row.began_at, row.granted, row.request) == (
            shown.id, shown.began_at, shown.granted, shown.request,
        )  # fmt: skip
        assert (row.state, shown.state) == ("open", "assumed")

    play(tmp_path, story)


def test_after_a_restart_the_decision_log_tells_which_sessions_are_assumed(tmp_path: Path) -> None:
    station = "02:00:00:00:00:09"
    shown: list[Session] = []

    async def before(world: World) -> None:
        world.log_in(nas_identifier="sw1")
        world.log_in(calling_station=station)
        world.log_in(calling_station="02-00-00-00-00-03")
        world.log_in(calling_station="02-00-00-00-00-04")
        await world.account("start", calling_station="02-00-00-00-00-03")
        await world.account("start", "A4", calling_station="02-00-00-00-00-04")
        await world.account("stop", "A4", calling_station="02-00-00-00-00-04")
        shown.extend(await world.all())

    async def after(world: World) -> None:
        found = {one.mac: one for one in await world.all()}
        assert {one.mac: (one.state, one.port, one.granted, one.txn) for one in shown} == {
            mac: (one.state, one.port, one.granted, one.txn) for mac, one in found.items()
        }
        assert {one.state for one in shown} == {"assumed", "open", "ended"}
        assert found[station].state == "assumed"  # in the very spelling of its NAS
        assert found[MAC].request["nas_identifier"] == "sw1"
        assert found[MAC].request["credential"] == shown[-1].request["credential"]
        async with das(SECRET.encode()) as nas:
            await world.nas.add("switch-1", "127.0.0.1", SECRET, ADMIN, coa_port=nas.port, profile="hostapd")
            await world.store.write(lambda tx: set_owner(tx, state="revoked"))

            async def told() -> bool:
                return len(nas.done) >= 3

            await world.until(told)
            await world.until(world.ended)
            assert len(nas.done) == 3

    play(tmp_path, before)
    play(tmp_path, after)


def test_after_a_crash_in_a_storm_so_does_what_is_not_in_it_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, third = "02-00-00-00-00-09", "02-00-00-00-00-03"
    shown: list[Session] = []

    async def nothing(log: DecisionLog, **how: Any) -> None:
        """The journal is long, and nobody waits for all of it."""

    async def before(world: World) -> None:
        world.log_in()
        world.log_in(calling_station=third)
        await world.access.flush()
        world.access.spare_the_store(lambda: True)
        world.log_in(calling_station=other)
        world.log_in(calling_station=other, nas_port="swp9")
        world.log_in(nas_port="swp2")
        shown.extend(await world.all())
        await world.access.flush()
        monkeypatch.setattr(DecisionLog, "flush", nothing)

    async def after(world: World) -> None:
        assert len(await world.store.read(lambda tx: decisions.newest(tx, limit=9))) == 2
        found = {(one.mac, one.port, one.txn) for one in await world.all()}
        assert found == {(one.mac, one.port, one.txn) for one in shown}
        assert {one[:2] for one in found} == {(MAC, "swp2"), (third, "swp1"), (other, "swp9")}

    play(tmp_path, before)
    play(tmp_path, after, runs=False)


def test_what_was_revoked_while_the_appliance_was_down_is_off_its_port_after_the_start(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def before(world: World) -> None:
        # on the list from the start: a session of an unknown NAS would be over before anybody was asked
        await world.nas.add("switch-1", "127.0.0.1", SECRET, ADMIN, coa_port=port, profile="hostapd")
        world.log_in()

    async def meanwhile() -> None:
        store = open_store(f"sqlite:///{tmp_path / 'a.db'}", SystemClock())
        await store.write(lambda tx: set_owner(tx, state="revoked"))
        store.close()

    async def after(world: World) -> None:
        async with das(SECRET.encode(), port=port) as nas:
            await world.until(world.ended)
            assert len(nas.done) == 1
        assert (await world.one()).cause == "disconnected"

    play(tmp_path, before)
    asyncio.run(meanwhile())
    play(tmp_path, after)


def test_a_session_that_nobody_ever_accounted_for_is_forgotten(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in()
        await world.store.write(lambda tx: set_owner(tx, state="active"))
        (session,) = await world.all()
        await world.sessions.order([session], "reauthenticate", ADMIN)  # writes it down
        later = SystemClock().now() + timedelta(hours=25)
        await world.store.write(lambda tx: sessions.give_up(tx, later))
        assert (await world.one()).cause == "never-accounted"

    play(tmp_path, story, runs=False)


def test_of_too_many_assumed_sessions_the_oldest_go_into_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.access.assumed.MAX_ASSUMED", 3)

    async def story(world: World) -> None:
        for at in range(5):
            world.log_in(calling_station=f"02-00-00-00-01-{at:02X}")
        assert len(await world.all()) == 5
        rows = await world.store.read(lambda tx: sessions.search(tx))
        assert {row.mac[-2:] for row in rows} == {"00", "01"}

    play(tmp_path, story)


def test_a_station_that_was_quiet_while_another_logged_in_again_and_again_is_known_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.access.sessions.MAX_ASSUMED", 4)
    quiet = [AT | {"calling_station": "02-00-00-00-00-09"}, AT | {"calling_station": ""}, AT | {"nas_address": "::1"}]

    async def before(world: World) -> None:
        for one in quiet:
            world.log_in(**one)
        for _ in range(12):
            world.log_in()

    async def after(world: World) -> None:
        assert len(await world.all()) == 4

    play(tmp_path, before)
    play(tmp_path, after)


def test_no_session_is_lost_where_more_change_at_once_than_are_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.access.sessions.MAX_QUEUED", 4)
    monkeypatch.setattr("appliance.access.sessions.PAGE", 3)
    longest = 0

    async def story(world: World) -> None:
        nonlocal longest
        for at in range(20):
            world.log_in(calling_station=f"02-00-00-00-01-{at:02X}")
        write = world.sessions._write_down

        def counted(keys: Any, **how: Any) -> None:
            nonlocal longest
            write(keys, **how)
            longest = max(longest, len(world.sessions._accepted))

        monkeypatch.setattr(world.sessions, "_write_down", counted)
        await PolicyService(world.store, world.access).publish(POLICY.replace("20", "21"), "", ADMIN)

        async def ordered() -> bool:
            return len(await world.events()) >= 20

        await world.until(ordered)
        assert len(await world.store.read(lambda tx: sessions.search(tx))) == 20
        assert longest <= 3

    play(tmp_path, story, runs=False)


def test_a_change_that_waits_is_told_once_however_often_it_is_looked_at(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in()
        await world.store.write(lambda tx: set_owner(tx, state="suspended"))

        async def asked() -> bool:
            return bool(await world.events())

        await world.until(asked)
        session = await world.one()
        for _ in range(3):
            await world.sessions._decide([session])
        assert await world.events() == ["session-change-asked"]
        (change,) = await world.sessions.changes(session.id)
        assert (change.state, change.attempts) == ("waiting", 0)
        await world.sessions.order([session], "end", ADMIN)  # another reason is another change
        assert await world.events() == ["session-change-asked"] * 2

    play(tmp_path, story, runs=False)


def test_no_accept_is_lost_while_the_store_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.access.sessions.MAX_QUEUED", 2)
    stations = [f"02-00-00-00-01-{at:02X}" for at in range(5)]

    async def story(world: World) -> None:
        for station in stations:
            world.log_in(calling_station=station)
            await world.account("start", "", calling_station=station)
        with monkeypatch.context() as broken:
            broken.setattr(world.store, "write", refused)
            for station in stations * 3:
                world.log_in(calling_station=station, nas_port="swp9")
            assert len(world.sessions._accepted) == 2
            with pytest.raises(StoreUnavailable):
                await world.sessions._flush()
        found = [(one.mac, one.port) for one in await world.all() if one.is_live]
        assert sorted(found) == [(one, "swp9") for one in stations]

    async def refused(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("full")

    play(tmp_path, story, runs=False)


def slowly(world: World, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The store's writing waits for this event before it begins."""
    write, may_go = world.store.write, asyncio.Event()

    async def waits(*given: Any, **how: Any) -> Any:
        await may_go.wait()
        return await write(*given, **how)

    monkeypatch.setattr(world.store, "write", waits)
    return may_go


def test_a_session_is_listed_at_every_moment_of_its_way_into_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.log_in()
        may_go = slowly(world, monkeypatch)
        accounting = asyncio.create_task(world.account("start", ""))
        await asyncio.sleep(0)
        assert (await world.one()).state == "assumed"
        may_go.set()
        await accounting
        assert (await world.one()).state == "open"

    play(tmp_path, story, runs=False)


def test_a_caller_that_gives_up_leaves_no_accept_behind_whose_session_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.log_in()
        may_go = slowly(world, monkeypatch)
        accounting = asyncio.create_task(world.account("stop", ""))
        await asyncio.sleep(0)
        accounting.cancel()
        await asyncio.gather(accounting, return_exceptions=True)
        may_go.set()
        await world.until(world.ended)
        assert len(await world.all()) == 1
        assert list(world.sessions._accepted) == []

    play(tmp_path, story, runs=False)


def test_a_later_accept_is_written_after_one_that_the_store_refused_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        await world.account("start", "")
        await world.sessions.stop()  # nobody but us writes
        write, may_go = world.store.write, asyncio.Event()

        async def refuses_once(*given: Any, **how: Any) -> Any:
            monkeypatch.setattr(world.store, "write", write)
            await may_go.wait()
            raise StoreUnavailable("for a moment")

        monkeypatch.setattr(world.store, "write", refuses_once)
        world.log_in(nas_port="swp2")
        first = asyncio.create_task(world.sessions._flush())
        await asyncio.sleep(0.05)
        world.log_in(nas_port="swp3")
        second = asyncio.create_task(world.sessions._flush())
        await asyncio.sleep(0.05)
        may_go.set()
        await asyncio.gather(first, second, return_exceptions=True)
        assert [one.port for one in await world.all() if one.is_live] == ["swp3"]

    play(tmp_path, story, runs=False)


def test_an_accept_that_cannot_be_written_takes_no_other_with_it_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stations = [f"02-00-00-00-01-{at:02X}" for at in range(5)]
    accept = sessions_module.session_table.accept

    def broken(tx: Any, decision: Any, *times: int) -> Session:
        if decision.request.calling_station == stations[2] and decision.request.nas_port == "swp9":
            raise ValueError("cannot be written")
        return accept(tx, decision, *times)

    monkeypatch.setattr(sessions_module.session_table, "accept", broken)

    async def story(world: World) -> None:
        for station in stations:
            world.log_in(calling_station=station)
            await world.account("start", "", calling_station=station)
        for station in stations:
            world.log_in(calling_station=station, nas_port="swp9")
        found = {one.mac: one.port for one in await world.all() if one.is_live}
        assert found == {one: "swp9" for one in stations} | {stations[2]: "swp1"}
        async with das(SECRET.encode()) as nas:  # and what is revoked is taken off as ever
            await world.nas.add("switch-1", "127.0.0.1", SECRET, ADMIN, coa_port=nas.port, profile="hostapd")
            await world.store.write(lambda tx: set_owner(tx, state="revoked"))
            await world.until(world.ended)

    play(tmp_path, story)


@pytest.mark.parametrize("is_mended", [True, False])
def test_a_mistake_of_ours_while_accepts_are_written_takes_none_away_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_mended: bool
) -> None:
    def mistaken(*_: Any) -> Session:
        raise TypeError("a bug")

    async def story(world: World) -> None:
        await world.account("start", "")
        with monkeypatch.context() as broken:
            broken.setattr(sessions_module.session_table, "accept", mistaken)
            world.log_in(nas_port="swp9")

            async def is_told() -> bool:
                return caplog.text.count("event=sessions-not-looked-at") == 1

            await world.until(is_told)
            assert len(world.sessions._accepted) == 1
            if not is_mended:  # the appliance stops, and closes its store, all the same
                await world.sessions.stop()
                assert "event=sessions-not-written" in caplog.text and "a bug" in caplog.text
                return

        async def is_written() -> bool:
            return not len(world.sessions._accepted)

        await world.until(is_written)  # by the task that met the mistake
        assert [one.port for one in await world.all() if one.is_live] == ["swp9"]

    play(tmp_path, story, runs=False)


def test_a_reject_makes_none(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.store.write(lambda tx: set_owner(tx, state="suspended"))
        assert world.log_in().verdict == "reject"
        assert await world.all() == []

    play(tmp_path, story)


def test_accounting_confirms_counts_and_ends_a_session(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in()
        await world.account("start", classes=("txn-1",))
        assert (await world.one()).state == "open"
        await world.account("interim", octets_in=10, octets_out=20)
        await world.account("interim", octets_in=5, octets_out=30)  # late: counters never go back
        session = await world.one()
        assert (session.octets_in, session.octets_out, session.acct_session) == (10, 30, "A1")
        await world.account("stop", octets_in=11, octets_out=31, cause="user-request")
        session = await world.one()
        assert (session.state, session.cause, session.octets_in) == ("ended", "user-request", 11)

    play(tmp_path, story)


def test_repeated_and_late_messages_change_nothing_more(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in()
        for _ in range(3):
            await world.account("start")
        for _ in range(2):
            await world.account("stop", cause="lost-carrier")
        await world.account("start")  # overtaken by its Stop on the way
        await world.account("interim", octets_in=99)
        session = await world.one()
        assert (session.state, session.cause) == ("ended", "lost-carrier")

    play(tmp_path, story)


def test_a_newer_session_of_the_same_station_ends_the_one_whose_stop_got_lost(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in()
        await world.account("start", "A1", octets_in=7)
        await world.account("start", "A2", classes=("txn-1",))
        newer, older = await world.all()
        assert (older.acct_session, older.state, older.cause) == ("A1", "ended", "lost-stop")
        assert (newer.acct_session, newer.state, newer.agent_id, newer.octets_in) == ("A2", "open", AGENT, 0)
        await world.account("stop", "A1")
        assert (await world.all())[0].state == "open"

    play(tmp_path, story)


def test_an_accept_at_another_port_takes_the_place_of_one_that_nobody_accounted_for(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in(session="A1")
        world.log_in(session="A2", nas_port="swp2")
        session = await world.one()
        assert (session.port, session.state, session.acct_session) == ("swp2", "assumed", "A2")

    play(tmp_path, story)


def test_an_accept_at_another_port_moves_the_station(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in(session="A1")
        await world.account("start")
        world.log_in(session="A2", nas_port="swp2")
        newer, older = await world.all()
        assert (older.port, older.cause, newer.port, newer.state) == ("swp1", "superseded", "swp2", "assumed")

    play(tmp_path, story)


def test_a_reauthentication_goes_on_with_the_same_session(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in()
        first = await world.one()
        await world.account("start")
        world.log_in()
        again = await world.one()
        assert (again.id, again.state, again.began_at) == (first.id, "open", first.began_at)

    play(tmp_path, story)


@pytest.mark.parametrize(("status", "cause"), [("on", "nas-reboot"), ("off", "nas-request")])
def test_a_nas_that_restarts_ends_its_own_sessions_only(tmp_path: Path, status: str, cause: str) -> None:
    async def story(world: World) -> None:
        world.log_in()
        world.log_in(calling_station="02-00-00-00-00-02")
        world.log_in(nas="switch-2", nas_address="127.0.0.2")
        await world.account(status, "", calling_station="", nas_port="")
        found = {(one.nas, one.mac): one.cause for one in await world.all()}
        assert found == {
            ("switch-1", MAC): cause, ("switch-1", "02-00-00-00-00-02"): cause, ("switch-2", MAC): "",
        }  # fmt: skip

    play(tmp_path, story)


def test_the_mac_is_one_address_in_every_spelling(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in(calling_station="02-AB-00-00-00-01")
        await world.account("start", calling_station="02ab.0000.0001")
        session = await world.one()
        assert (session.state, session.mac) == ("open", "02-AB-00-00-00-01")
        assert await world.all(mac="02:ab:00:00:00:01") == [session]

    play(tmp_path, story)


def test_a_session_that_nobody_decided_is_shown_and_left_alone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.account("start", "X9", octets_in=3)
        session = await world.one()
        assert (session.state, session.verdict, session.agent_id, session.octets_in) == ("open", "unknown", "", 3)
        await PolicyService(world.store, world.access).publish(POLICY.replace("20", "21"), "", ADMIN)
        await asyncio.sleep(0.6)
        assert await world.events() == []

    play(tmp_path, story)


def test_a_session_without_interim_becomes_stale_and_comes_back(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in()
        await world.account("start")
        now = SystemClock().now()
        await world.store.write(lambda tx: sessions.mark_stale(tx, now + timedelta(seconds=1)))
        assert (await world.one()).state == "stale"
        await world.account("interim")
        assert (await world.one()).state == "open"

    play(tmp_path, story)


def test_freeradius_accounts_by_json_with_the_same_token(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        routes = await with_port(world.access, world.store, world.sessions)
        body = {
            "Acct-Status-Type": {"type": "integer", "value": ["Start"]},
            "Acct-Session-Id": {"type": "string", "value": ["A1"]},
            "Calling-Station-Id": {"type": "string", "value": [MAC]},
            "NAS-Port-Id": {"type": "string", "value": ["swp1"]},
            "Tmp-String-0": {"type": "string", "value": ["switch-1"]},
            "Tmp-String-1": {"type": "string", "value": ["127.0.0.1"]},
            "Class": {"type": "octets", "value": ["0x" + b"txn-1".hex()]},
        }
        world.log_in()
        await world.one()

        async def post(token: str, **more: Any) -> int:
            call = Call("POST", "/radius/accounting", "application/json", {"authorization": f"Bearer {token}"},
                        json.dumps(body | more).encode())  # fmt: skip
            return (await routes.accounting(call, Peer(), {})).status

        assert await post("right-token") == 204
        assert (await world.one()).state == "open"
        stop = {
            "Acct-Status-Type": {"type": "integer", "value": [2]},
            "Acct-Output-Octets": {"value": [7]},
            "Acct-Output-Gigawords": {"value": ["1"]},
            "Acct-Terminate-Cause": {"value": ["Lost-Carrier"]},
        }
        assert await post("right-token", **stop) == 204
        session = await world.one()
        assert (session.cause, session.octets_out) == ("lost-carrier", (1 << 32) + 7)
        with pytest.raises(Exception, match="bearer"):
            await post("wrong")

    play(tmp_path, story)


def test_a_port_that_asked_by_mac_address_in_vain_gets_the_reason_whoever_refused_it(tmp_path: Path) -> None:
    """FreeRADIUS does not ask for a decision where the policy has no bypass; the embedded server does."""

    async def story(world: World) -> None:
        routes = await with_port(world.access, world.store, world.sessions)
        body = {
            "Service-Type": {"type": "integer", "value": ["Call-Check"]},
            "Calling-Station-Id": {"type": "string", "value": [MAC]},
            "Tmp-String-0": {"type": "string", "value": ["switch-1"]},
            "Tmp-String-1": {"type": "string", "value": ["127.0.0.1"]},
        }
        call = Call("POST", "/radius/failure", "application/json", {"authorization": "Bearer right-token"},
                    json.dumps(body).encode())  # fmt: skip
        assert routes.fail(call, Peer(), {}).status == 204
        await world.access.flush()
        (row,) = await world.store.read(lambda tx: decisions.newest(tx, limit=2))
        assert (row["reason"], row["nas"], row["mac"]) == ("mac-bypass-off", "switch-1", MAC)

    play(tmp_path, story)


def test_a_nas_with_a_certificate_is_asked_with_its_own_secret_from_whatever_address_it_came(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        other = "another-secret-of-the-hall-00001"
        async with das(other.encode()) as nas:
            await world.nas.add("switch-1", "127.0.0.1", SECRET, ADMIN, coa_port=1, profile="hostapd")
            await world.nas.add("hall", "192.0.2.77", other, ADMIN, coa_port=nas.port, profile="hostapd")
            world.log_in(nas="hall")
            await world.store.write(lambda tx: set_owner(tx, state="suspended"))
            assert await world.until(world.ended) < stretched(5)
            assert len(nas.done) == 1

    play(tmp_path, story)


def test_a_nas_that_refuses_is_not_asked_again_at_every_look(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode(), ["nak 406"] * 9) as nas:
            await plug(world, nas.port, "hostapd")
            await world.store.write(lambda tx: set_owner(tx, state="suspended"))

            async def failed() -> bool:
                return "session-change-failed" in await world.events()

            await world.until(failed)
            for _ in range(3):
                await world.store.write(lambda tx: set_owner(tx, state="suspended"))
                await asyncio.sleep(0.3)
            assert await world.events() == ["session-change-asked", "session-change-failed"]
            session = await world.one()
            await world.sessions.order([session], "end", ADMIN)  # an administrator is another matter
            assert (await world.events())[-1] == "session-change-asked"

    play(tmp_path, story)


def test_a_session_of_a_nas_that_was_removed_ends_with_its_first_change(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await plug(world, 9, "hostapd")
        await world.nas.remove("switch-1", ADMIN)
        await world.store.write(lambda tx: set_owner(tx, state="suspended"))
        await world.until(world.ended)
        assert (await world.one()).cause == "nas-unknown"
        assert (await world.events()).count("session-change-failed") == 1

    play(tmp_path, story)


# ---- changes


async def plug(world: World, port: int, profile: str, **more: Any) -> Session:
    await world.nas.add("switch-1", "127.0.0.1", SECRET, ADMIN, coa_port=port, profile=profile)
    world.log_in(**more)
    await world.account("start")
    return await world.one()


CHANGES = {
    "owner suspended": lambda tx: set_owner(tx, state="suspended"),
    "owner revoked": lambda tx: set_owner(tx, state="revoked"),
    "agent revoked": lambda tx: set_agent(tx, "revoked"),
    "agent suspended": lambda tx: set_agent(tx, "suspended"),
    "certificate revoked": lambda tx: tx.emit("certificate", "x", revoked_row(tx)),
}


def revoked_row(tx: Any) -> dict[str, Any]:
    from appliance.store.columns import to_micros
    from tests.appliance.access.test_access_service import AKI

    at = to_micros(tx.now)
    return {
        "issuer_role": "agents", "issuer_aki": AKI, "serial": "beef", "profile": "agent", "subject_id": AGENT,
        "owner_id": OWNER, "state": "revoked", "not_before": at - 10**9, "not_after": at + 10**12, "txn": "txn-1",
    }  # fmt: skip


@pytest.mark.req("A-110")
@pytest.mark.parametrize("what", CHANGES)
def test_what_is_revoked_is_off_its_port_within_five_seconds(tmp_path: Path, what: str) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            session = await plug(world, nas.port, "hostapd")
            await world.store.write(CHANGES[what])
            assert await world.until(world.ended) < stretched(5)
            (request,) = nas.done
            assert (request.code, request.get(31), request.get(44)) == (40, [MAC.encode()], [b"A1"])
            (change,) = await world.sessions.changes(session.id)
            assert (change.state, change.result, change.attempts) == ("done", "ack", 1)
            assert (await world.one()).cause == "disconnected"
            assert await world.events() == ["session-change-asked", "session-changed"]

    play(tmp_path, story)


def test_a_list_of_changes_that_is_older_than_their_end_asks_for_none_of_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[Any] = []
    real = session_changes.sessions.due

    def stale(tx: Any, count: int) -> list[Any]:
        found = real(tx, count)
        listed.extend(one for one in found if one.id not in {known.id for known in listed})
        return [*listed]

    monkeypatch.setattr(session_changes.sessions, "due", stale)

    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            session = await plug(world, nas.port, "hostapd")
            await world.store.write(CHANGES["owner suspended"])
            await world.until(world.ended)
            for _ in range(5):
                world.sessions.ordered.set()
                await asyncio.sleep(0.06)
            (change,) = await world.sessions.changes(session.id)
            assert (change.state, change.result, change.attempts) == ("done", "ack", 1)
            assert await world.events() == ["session-change-asked", "session-changed"]
            assert len(nas.seen) == 1

    play(tmp_path, story)
    assert listed


@pytest.mark.req("A-113")
def test_another_class_changes_a_live_session_at_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        robots = '[[rule]]\nname = "robots"\nagent_class = "robot"\nvlan = "hr"\n'
        text = POLICY.replace("version = 1", "version = 2").replace("[[rule]]", robots + "[[rule]]", 1)
        await PolicyService(world.store, world.access).publish(text, "", ADMIN)
        await world.store.write(
            lambda tx: agents.add(tx, agents.Agent("a", AGENT, OWNER, "p", "j", "", agents.REGISTERED, tx.now, tx.now))
        )
        async with das(SECRET.encode()) as nas:
            assert (await plug(world, nas.port, "generic-coa")).vlan == "20"
            registry = AgentRegistry(origin=AGENT.partition("/agent/")[0], store=world.store)
            await registry.classify(AGENT, "robot", actor=ADMIN)

            async def moved() -> bool:
                return (await world.one()).vlan == "30"

            assert await world.until(moved) < stretched(5)

    play(tmp_path, story)


@pytest.mark.req("A-111")
def test_another_department_changes_the_vlan_in_place_where_the_nas_can(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            await plug(world, nas.port, "generic-coa")
            await world.store.write(lambda tx: set_owner(tx, "HR"))

            async def moved() -> bool:
                return (await world.one()).vlan == "30"

            assert await world.until(moved) < stretched(5)
            (request,) = nas.done
            assert (request.code, request.get(81)) == (43, [b"30"])
            session = await world.one()
            assert session.is_live
            await asyncio.sleep(0.5)
            assert len(nas.done) == 1

    play(tmp_path, story)


def test_a_published_policy_reaches_the_sessions_it_changes_and_no_others(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            await plug(world, nas.port, "hostapd")
            policies = PolicyService(world.store, world.access)
            await policies.publish(POLICY + "\n# another comment\n", "", ADMIN)
            await asyncio.sleep(0.6)
            assert nas.seen == []
            await policies.publish(POLICY.replace("rnd = 20", "rnd = 21"), "", ADMIN)
            await world.until(world.ended)
            assert len(nas.done) == 1

    play(tmp_path, story)


def test_a_nas_that_refuses_coa_gets_a_disconnect(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode(), ["nak 401"]) as nas:
            session = await plug(world, nas.port, "generic-coa")
            await world.store.write(lambda tx: set_owner(tx, "HR"))
            await world.until(world.ended)
            *asked, last = [request.code for request in nas.done]  # more than once where its answer comes too late
            assert set(asked) == {43} and last == 40
            (change,) = await world.sessions.changes(session.id)
            assert (change.state, change.want, change.attempts) == ("done", "end", 2)

    play(tmp_path, story)


def test_a_session_that_the_nas_does_not_know_is_over(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode(), ["nak 503"] * 9) as nas:
            await plug(world, nas.port, "hostapd")
            await world.store.write(lambda tx: set_owner(tx, state="revoked"))
            await world.until(world.ended)
            assert (await world.one()).cause == "unknown-to-nas"
            assert 1 <= len(nas.done) <= 4  # it may not have processed the Accept yet, so it is asked again

    play(tmp_path, story)


def test_lost_and_forged_answers_do_not_end_the_wait(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode(), ["drop", "forged", "twice"]) as nas:
            await plug(world, nas.port, "hostapd")
            await world.store.write(lambda tx: set_owner(tx, state="revoked"))
            assert await world.until(world.ended) < stretched(5)
            assert len(nas.done) == 1

    play(tmp_path, story)


def test_a_login_after_reauthentication_settles_the_change(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            session = await plug(world, nas.port, "reauthenticate")
            await world.store.write(lambda tx: set_owner(tx, "HR"))

            async def asked() -> bool:
                return bool(nas.done)

            await world.until(asked)
            assert nas.done[0].code == 43 and nas.done[0].get(81) is None
            world.log_in()

            async def settled() -> bool:
                return (await world.sessions.changes(session.id))[0].state == "done"

            await world.until(settled)
            await asyncio.sleep(0.5)
            assert len(nas.done) == 1
            found = await world.one()
            assert (found.id, found.vlan, found.is_live) == (session.id, "30", True)

    play(tmp_path, story)


@asynccontextmanager
async def refused_first_record(world: World) -> AsyncIterator[None]:
    """A session's first record waits in the store for the body of the block, and is refused after it."""
    write, begun, may_go = world.store.write, asyncio.Event(), asyncio.Event()

    async def refuse_once(do: Any, *more: Any, **how: Any) -> Any:
        if "_write_first" not in do.__qualname__:
            return await write(do, *more, **how)
        world.store.write = write  # type: ignore[method-assign]
        begun.set()
        await may_go.wait()
        raise StoreUnavailable("for a moment")

    world.store.write = refuse_once  # type: ignore[assignment, method-assign]
    first = asyncio.create_task(world.account("start", ""))
    await begun.wait()
    yield
    may_go.set()
    with pytest.raises(StoreUnavailable):
        await first


def test_an_accept_that_the_store_refused_is_not_written_over_a_newer_one(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.log_in(nas_port="swp1")
        async with refused_first_record(world):
            assert [one.port async for one in world.sessions.live()] == ["swp1"]
            world.log_in(nas_port="swp2")
            await world.sessions._flush()
        assert [(one.port, one.ended_at) for one in await world.all()] == [("swp2", None)]

    play(tmp_path, story, runs=False)


def test_what_happens_while_the_store_refuses_an_accept_counts_for_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            await world.nas.add("switch-1", "127.0.0.1", SECRET, ADMIN, coa_port=nas.port, profile="hostapd")
            world.log_in()
            write = world.store.write
            async with refused_first_record(world):
                await write(lambda tx: set_owner(tx, state="revoked"))
                await asyncio.sleep(1)  # the look that this asked for is over, and saw no session
            await world.until(world.ended, 12)
            assert len(nas.done) == 1

    play(tmp_path, story)


def test_many_assumed_sessions_are_shown_a_few_at_a_time(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for at in range(200):
            world.log_in(calling_station=f"02-00-00-00-02-{at:02X}")
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        others = asyncio.create_task(count())
        found = [one async for one in world.sessions.live()]
        assert len(found) == len(await world.all()) == 200
        assert turns > 6
        others.cancel()

    play(tmp_path, story, runs=False)


def test_a_supplicant_that_does_not_log_in_anew_is_taken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_changes, "LOGIN_AFTER_ACK", timedelta(seconds=0.5))

    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            await plug(world, nas.port, "reauthenticate")
            await world.store.write(lambda tx: set_owner(tx, "HR"))
            await world.until(world.ended)
            *asked, last = [request.code for request in nas.done]  # more than once where its answer comes too late
            assert set(asked) == {43} and last == 40

    play(tmp_path, story)


def test_an_order_outlives_a_restart(tmp_path: Path) -> None:
    async def before(world: World) -> None:
        await plug(world, 9, "hostapd")
        await world.store.write(lambda tx: set_owner_row(tx, "suspended"))

        async def ordered() -> bool:
            return bool(await world.events())

        await world.until(ordered)

    play(tmp_path, before, runs=False)

    async def after() -> None:
        async with das(SECRET.encode()) as nas, asyncio.timeout(20):
            async with world(tmp_path, runs=False) as made:
                await made.nas.change("switch-1", ADMIN, coa_port=nas.port)
            async with world(tmp_path) as made:
                await made.store.write(lambda tx: (set_owner(tx, state="suspended"), set_agent(tx)))
                await made.until(made.ended)
                assert len(nas.done) == 1

    asyncio.run(after())


def set_owner_row(tx: Any, state: str) -> None:
    set_owner(tx, state=state)


def test_a_change_that_is_taken_back_in_time_costs_nobody_a_session(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode(), ["drop"] * 4) as nas:
            session = await plug(world, nas.port, "hostapd")
            await world.store.write(lambda tx: set_owner(tx, state="suspended"))

            async def asked() -> bool:
                return len(nas.seen) >= 1

            await world.until(asked)
            await world.store.write(lambda tx: set_owner(tx))

            async def settled() -> bool:
                return (await world.sessions.changes(session.id))[0].state == "done"

            await world.until(settled)
            (change,) = await world.sessions.changes(session.id)
            assert change.result == "not needed any more"
            assert (await world.one()).is_live

    play(tmp_path, story)


def test_a_stale_snapshot_takes_nobody_off(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await plug(world, 9, "hostapd")
        world.access._snapshot = replace(world.access.snapshot, checked_at=float("-inf"))
        world.sessions._everything = True
        world.sessions._awake.set()
        await asyncio.sleep(0.5)
        assert await world.events() == []

    play(tmp_path, story)


def test_one_dead_nas_holds_up_nobody_elses_sessions(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode(), host="127.0.0.2") as alive, das(SECRET.encode(), ["drop"] * 10_000) as dead:
            await world.nas.add("dead", "127.0.0.1", SECRET, ADMIN, coa_port=dead.port, profile="hostapd")
            await world.nas.add("alive", "127.0.0.2", SECRET, ADMIN, coa_port=alive.port, profile="hostapd")
            for at in range(60):
                world.log_in(calling_station=f"02-00-00-00-01-{at:02X}")
            world.log_in(nas="alive", nas_address="127.0.0.2")
            await world.all()
            await world.store.write(lambda tx: set_owner(tx, state="revoked"))

            async def off() -> bool:
                return len(alive.done) == 1

            assert await world.until(off) < stretched(5)

    play(tmp_path, story)


def test_many_sessions_of_one_nas_are_ended_few_at_a_time_and_within_five_seconds(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode(), delay_seconds=0.02) as nas:
            await world.nas.add("switch-1", "127.0.0.1", SECRET, ADMIN, coa_port=nas.port, profile="hostapd")
            for at in range(100):
                world.log_in(calling_station=f"02-00-00-00-01-{at:02X}", nas_port=f"swp{at}")
            assert len(await world.all()) == 100
            await world.store.write(lambda tx: set_owner(tx, state="revoked"))
            assert await world.until(world.ended) < stretched(5)
            assert nas.most_under_way <= 8

    play(tmp_path, story)


def test_a_login_decided_before_a_revocation_and_accepted_after_it_is_taken_off(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            await world.nas.add("switch-1", "127.0.0.1", SECRET, ADMIN, coa_port=nas.port, profile="hostapd")
            decision = world.access.authorize(login(**AT))
            await world.store.write(lambda tx: set_owner(tx, state="revoked"))
            await asyncio.sleep(0.5)
            world.sessions.accepted(decision)
            await world.until(world.ended)
            assert len(nas.done) == 1

    play(tmp_path, story)


def test_an_administrator_takes_sessions_off_or_asks_them_anew(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            session = await plug(world, nas.port, "reauthenticate")
            await world.sessions.order([session], "reauthenticate", ADMIN)

            async def done() -> bool:
                return (await world.sessions.changes(session.id))[-1].state == "done"

            await world.until(done)
            assert (await world.one()).is_live
            await world.sessions.order([session], "end", ADMIN)
            await world.until(world.ended)
            *asked, last = [request.code for request in nas.done]  # more than once where its answer comes too late
            assert set(asked) == {43} and last == 40
            with pytest.raises(SessionUnknown):
                await world.sessions.order([], "end", ADMIN)

    play(tmp_path, story)


# ---- a draft policy


def test_a_draft_shows_which_open_sessions_it_would_move_or_end(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        open_ = OpenSessions(world.access, world.sessions)
        world.log_in()
        await world.account("start")
        world.log_in(calling_station="02-00-00-00-00-02", nas_port="swp2")  # assumed, not in the table
        stranger = {"calling_station": "02-00-00-00-00-09", "session": "S9", "nas_port": "swp9"}
        await world.account("start", **stranger)  # not decided by us
        generation = world.access.generation

        same = await open_.impact(POLICY + "# nothing\n")
        assert (same["sessions"], same["sessions_changed"], same["sessions_not_judged"]) == (3, 0, 1)

        moved = await open_.impact(POLICY.replace("rnd = 20", "rnd = 21"))
        assert moved["sessions_changed"] == 2
        one, two = moved["session_changes"]
        assert (one["port"], two["port"]) == ("swp1", "swp2")
        assert one.items() >= {
            "nas": "switch-1", "mac": MAC, "agent": AGENT, "owner": OWNER, "vlan_now": "20", "vlan_then": "21",
            "asks": "change", "reason": "rule-matched", "why": "rule research: VLAN rnd (21)",
        }.items()  # fmt: skip
        assert "Tunnel-Private-Group-Id=20" in one["granted_now"] and "=21" in one["granted_then"]

        only_one = POLICY.replace("version = 1", "version = 2").replace(
            'department = "R&D"', 'department = "R&D"\nport = "swp1"'
        )
        (left,) = (await open_.impact(only_one + '[[rule]]\nname = "x"\nport = "swp2"\nreject = "not here"\n'))[
            "session_changes"
        ]
        assert (left["port"], left["vlan_now"], left["vlan_then"], left["asks"]) == ("swp2", "20", "", "end")
        assert "not here" in left["why"]

        # what changes anyhow is not the draft's doing, and nothing was changed by looking
        await world.store.write(lambda tx: set_owner(tx, state="suspended"))
        assert (await open_.impact(POLICY.replace("rnd = 20", "rnd = 21")))["sessions_changed"] == 0
        assert {one.vlan for one in await world.all()} == {"20", ""}
        assert world.access.generation > generation

    play(tmp_path, story, runs=False)


def test_what_a_draft_shows_is_what_its_publication_does(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            await plug(world, nas.port, "hostapd")
            draft = POLICY.replace("rnd = 20", "rnd = 21")
            (told,) = (await OpenSessions(world.access, world.sessions).impact(draft))["session_changes"]
            await PolicyService(world.store, world.access).publish(draft, "", ADMIN)
            assert await world.until(world.ended) < 5
            assert (await world.one()).id == told["session"]
            with pytest.raises(Refusal):
                await OpenSessions(world.access, world.sessions).impact("version = 9")

    play(tmp_path, story)


# ---- secrets


def test_a_rotated_secret_counts_beside_the_old_one_until_its_time(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.nas.add("switch-1", "192.0.2.0/24", SECRET, ADMIN)
        now = SystemClock().now()
        world.nas._now = lambda: now
        made = await world.nas.rotate_secret("switch-1", ADMIN, overlap_seconds=3600)
        nas = world.nas.lookup("192.0.2.9")
        assert nas is not None
        assert nas.secrets == (made["shared_secret"].encode(), SECRET.encode())
        world.nas.used_secret("switch-1", "192.0.2.9", True)
        world.nas.used_secret("switch-1", "192.0.2.8", True)
        world.nas.used_secret("switch-1", "192.0.2.8", False)
        (shown,) = await world.nas.every()
        assert shown["still_old"] == ["192.0.2.9"]
        now += timedelta(seconds=3601)
        assert world.nas.lookup("192.0.2.9").secrets == (made["shared_secret"].encode(),)  # type: ignore[union-attr]
        assert (await world.nas.every())[0]["old_secret_until"] == ""

    play(tmp_path, story, runs=False)


@pytest.mark.parametrize(
    ("engine", "scope", "words"),
    [("embedded", ALL, ""), ("freeradius", REQUESTS, "one secret per NAS"), ("none", REQUESTS, "radius run")],
)
def test_what_an_overlap_is_for_depends_on_who_speaks_radius(
    tmp_path: Path, engine: Engine, scope: str, words: str
) -> None:
    async def story(world: World) -> None:
        nas = NasService(world.store, Box(), engine=engine)
        await nas.add("switch-1", "192.0.2.0/24", SECRET, ADMIN)
        made = await nas.rotate_secret("switch-1", ADMIN, overlap_seconds=3600)
        assert made["overlap_for"] == scope
        assert words in made["logins"] and bool(words) == bool(made["logins"])
        (shown,) = await nas.every()
        assert shown["old_secret_for"] == scope
        assert shown["still_old"] == ([] if engine == "embedded" else None)
        assert nas.clients() == [("switch-1", "192.0.2.0/24", made["shared_secret"])]  # what FreeRADIUS gets
        target = nas.target("192.0.2.9")
        assert target is not None and target.secrets == (made["shared_secret"].encode(), SECRET.encode())
        assert (await nas.rotate_secret("switch-1", ADMIN, overlap_seconds=0))["overlap_for"] == ""
        assert (await nas.every())[0]["old_secret_for"] == ""

    play(tmp_path, story, runs=False)


def test_a_nas_that_still_has_the_old_secret_is_disconnected_with_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with das(SECRET.encode()) as nas:
            await plug(world, nas.port, "hostapd")
            await world.nas.rotate_secret("switch-1", ADMIN, overlap_seconds=60)
            await world.store.write(lambda tx: set_owner(tx, state="revoked"))
            assert await world.until(world.ended) < stretched(5)
            assert len(nas.done) == 1

    play(tmp_path, story)


def test_what_is_stored_of_a_login_decides_the_same_again() -> None:
    from appliance.access.session_table import read_login, write_login

    request: AccessRequest = login(**AT, user_name="x", nas_identifier="sw")
    assert read_login(json.loads(json.dumps(write_login(request)))) == request
    assert read_login(write_login(request) | {"of_another_release": 1}) == request
