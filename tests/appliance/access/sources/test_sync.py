"""A watched file as a source, the schedule, and what decisions do when a source falls silent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from appliance import audit
from appliance.access.directory import OwnerDirectory
from appliance.access.owner_changes import OwnerHeldBySource, OwnerOfOtherSource
from appliance.access.sources.errors import (
    DirectoryBusy,
    DirectoryFileRefused,
    DirectoryFrozen,
    DirectoryNotConfigured,
    DirectoryTooLarge,
    DirectoryUnreachable,
)
from appliance.access.sources.ldap_source import Reading
from appliance.access.sources.plan import Person
from appliance.access.sources.sync import DirectorySync, Source
from appliance.audit import APPLIANCE, Actor
from appliance.checks import of_directory
from appliance.errors import Conflict, RequestMalformed
from appliance.settings import DirectorySettings
from appliance.store import owners
from tests.stores import open_store
from tests.support import FixedClock

ADMIN = Actor("administrator", "ada")
HEADER = "ref,name,kind,department\n"
TWELVE = HEADER + "".join(f"user{at},U,person,R&D\n" for at in range(12))


class FakeSource:
    """A directory that says what it is told to, and can be slow."""

    name = "ldap"

    def __init__(self, *people: Person) -> None:
        self.people = list(people)
        self.gate = threading.Event()
        self.gate.set()
        self.reads = 0
        self.fails = False

    def check(self) -> str:
        return "fake"

    def read(self, now: datetime, stop: threading.Event) -> Reading:
        self.reads += 1
        assert self.gate.wait(5)
        if self.fails:
            raise DirectoryUnreachable("it is away")
        return Reading(tuple(self.people))

    def find(self, ref: str, now: datetime, stop: threading.Event) -> Reading:
        return Reading(tuple(one for one in self.people if ref in one.refs))


def person(ref: str, *departments: str, is_enabled: bool = True) -> Person:
    return Person(f"key-{ref}", (ref,), (ref,), departments, is_enabled)


class Site:
    def __init__(self, folder: Path, reader: Source | None, /, **settings: Any) -> None:
        self.folder = folder
        self.clock = FixedClock()
        self.settings = DirectorySettings(**settings)
        self.store = open_store(f"sqlite:///{folder / 'appliance.db'}", self.clock)
        self.directory = OwnerDirectory(origin="spiffe://campus.example", store=self.store, clock=self.clock)
        self.sync = DirectorySync(
            self.settings, origin="spiffe://campus.example", store=self.store, clock=self.clock,
            directory=self.directory, source=reader, chance=lambda: 0.0, grace_seconds=0.0,
        )  # fmt: skip

    async def states(self) -> dict[str, str]:
        return {one.ref: one.state for one in await self.store.read(owners.every)}


@contextmanager
def site(folder: Path, reader: Source | None, /, **settings: Any) -> Iterator[Site]:
    made = Site(folder, reader, **settings)
    try:
        yield made
    finally:
        made.store.close()


def play(
    folder: Path, story: Callable[[Site], Awaitable[None]], reader: Source | None = None, /, **settings: Any
) -> None:
    async def run() -> None:
        with site(folder, reader, **settings) as made:
            await story(made)

    asyncio.run(run())


def with_file(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "owners.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {"source": "csv", "csv_file": path}


def test_a_watched_file_is_taken_in_as_an_import_would(tmp_path: Path) -> None:
    async def story(at: Site) -> None:
        assert (await at.sync.sync(actor=APPLIANCE))["added"] == 12
        path = tmp_path / "owners.csv"
        path.write_text(TWELVE.replace("user0,U,person,R&D", "user0,U,person,HR"))
        assert (await at.sync.sync(actor=APPLIANCE))["changed"] == 1
        (state,) = await at.sync.status()
        assert (state["source"], state["outcome"], state["present"]) == ("local", "done", 12)

    play(tmp_path, story, **with_file(tmp_path, TWELVE))


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (TWELVE[:-4], DirectoryFileRefused),
        (TWELVE.replace("user3,U", "user3"), DirectoryFileRefused),
        (b"", DirectoryFileRefused),
        (b"\x00\n", DirectoryFileRefused),
        (b"\xff\xfe\n", DirectoryFileRefused),
        (HEADER, DirectoryFrozen),
        (HEADER + "user0,U,person,R&D\n", DirectoryFrozen),
        (TWELVE.replace("R&D", "HR"), DirectoryFrozen),
        (TWELVE + "".join(f"more{at},U,person,R&D\n" for at in range(120)), DirectoryTooLarge),
        (None, DirectoryUnreachable),
    ],
    ids=["half-written", "malformed", "empty", "nul", "not-text", "header-only", "cut", "all-moved", "larger", "gone"],
)
def test_a_file_at_fault_changes_nobody(tmp_path: Path, text: str | bytes | None, refusal: type[Exception]) -> None:
    async def story(at: Site) -> None:
        await at.sync.sync(actor=ADMIN)
        before = await at.store.read(owners.every)
        path = tmp_path / "owners.csv"
        if text is None:
            path.unlink()
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(refusal):
            await at.sync.sync(actor=APPLIANCE)
        assert await at.store.read(owners.every) == before
        (state,) = await at.sync.status()
        assert state["outcome"] == ("frozen" if refusal is DirectoryFrozen else "failed")
        (row,) = of_directory([state], at.settings)
        assert row["level"] == ("error" if refusal is DirectoryFrozen else "warning")

    play(tmp_path, story, **with_file(tmp_path, TWELVE), max_owners=100)


def test_the_schedule_reads_again_and_sooner_after_a_failure(tmp_path: Path) -> None:
    source = FakeSource(person("alice", "R&D"))

    async def story(at: Site) -> None:
        task = asyncio.create_task(at.sync.run())
        for _ in range(100):
            await asyncio.sleep(0.02)
            if source.reads >= 3:
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert source.reads >= 3
        assert await at.states() == {"alice": "active"}

    play(tmp_path, story, source, source="ldap", interval_minutes=0.001)


def test_one_reading_at_a_time(tmp_path: Path) -> None:
    source = FakeSource(person("alice", "R&D"))
    source.gate.clear()

    async def story(at: Site) -> None:
        first = asyncio.create_task(at.sync.sync(actor=APPLIANCE))
        await asyncio.sleep(0.05)
        with pytest.raises(DirectoryBusy):
            await at.sync.sync(actor=ADMIN)
        source.gate.set()
        assert (await first)["added"] == 1
        assert source.reads == 1

    play(tmp_path, story, source, source="ldap")


def test_a_reading_that_never_ends_is_given_up(tmp_path: Path) -> None:
    source = FakeSource(person("alice", "R&D"))
    source.gate.clear()

    async def story(at: Site) -> None:
        with pytest.raises(DirectoryUnreachable):
            await at.sync.sync(actor=ADMIN)
        source.gate.set()
        assert (await at.sync.sync(actor=ADMIN))["added"] == 1

    play(tmp_path, story, source, source="ldap", ldap_total_seconds=1)


def test_without_a_source_there_is_nothing_to_read(tmp_path: Path) -> None:
    async def story(at: Site) -> None:
        with pytest.raises(DirectoryNotConfigured):
            await at.sync.sync(actor=ADMIN)
        with pytest.raises(DirectoryNotConfigured):
            await at.sync.lookup("alice")
        await at.sync.run()
        assert await at.sync.look() == "no source is set"

    play(tmp_path, story)


def test_what_a_person_may_do_with_an_owner_of_a_directory(tmp_path: Path) -> None:
    source = FakeSource(*(person(f"u{at}", "R&D") for at in range(12)))

    async def story(at: Site) -> None:
        await at.sync.sync(actor=APPLIANCE)
        with pytest.raises(OwnerOfOtherSource):
            await at.directory.set_department("u0", "HR", actor=ADMIN)
        source.people[0] = person("u0", "R&D", is_enabled=False)
        await at.sync.sync(actor=APPLIANCE)
        with pytest.raises(OwnerHeldBySource):
            await at.directory.resume("u0", actor=ADMIN)
        await at.directory.suspend("u0", actor=ADMIN)
        with pytest.raises(Conflict):
            await at.directory.suspend("u0", actor=ADMIN)
        source.people[0] = person("u0", "R&D")
        await at.sync.sync(actor=APPLIANCE)
        assert (await at.states())["u0"] == "suspended", "held by a person still"
        await at.directory.resume("u0", actor=ADMIN)
        assert (await at.states())["u0"] == "active"
        with pytest.raises(RequestMalformed):
            await at.directory.adopt("u0", "elsewhere", actor=ADMIN)
        await at.directory.adopt("u0", "local", actor=ADMIN)
        await at.directory.set_department("u0", "HR", actor=ADMIN)
        imported = HEADER + "u0,U,person,Law\nu1,U,person,Law\n"
        done = await at.directory.import_csv(imported, actor=ADMIN, confirm=True)
        assert (done["of_other_source"], [one["ref"] for one in done["changed"]]) == (["u1"], ["u0"])
        found = {one.ref: one for one in await at.store.read(owners.every)}
        assert (found["u0"].department, found["u1"].department) == ("Law", "R&D")
        events = await at.store.read(lambda tx: [row.event for row in audit.rows(tx)])
        assert "owner-adopted" in events

    play(tmp_path, story, source, source="ldap")
