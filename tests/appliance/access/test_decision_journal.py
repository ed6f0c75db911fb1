"""The decision log in a storm: the store is left alone, and no row is lost, doubled or out of its order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.access import decision_log, row_journal
from appliance.access import service as access_service
from appliance.access.decision_log import CALM_SECONDS, DecisionLog
from appliance.access.row_journal import FILE_NAME, RowJournal, line_of
from appliance.access.service import AccessService
from appliance.errors import StoreUnavailable
from appliance.settings import AccessSettings
from appliance.store import decisions
from radius import AccessRequest
from radius.decide import refuse
from tests.stores import open_store
from tests.support import FixedClock


class Night:
    """A store, the journal beside it, and one decision log after the other on both: each but the last has died."""

    def __init__(self, folder: Path) -> None:
        self.clock = FixedClock()
        self.store = open_store(f"sqlite:///{folder / 'a.db'}", self.clock)
        self.file = folder / FILE_NAME
        self.is_storm = False
        self.log = self.another()

    def another(self) -> DecisionLog:
        """The log as the next process makes it; what only the one before knew is lost."""
        log = DecisionLog(self.store, self.clock, keep_days=30, keep_rows=10_000, journal=self.file)
        log.is_storm = lambda: self.is_storm
        self.log = log
        return log

    def decide(self, *names: object) -> None:
        for name in names:
            self.log.put(refuse(AccessRequest(nas=str(name), calling_station="02-00-00-00-00-01"), "tls-unknown-ca"))

    def storm(self) -> None:
        self.is_storm = True

    def calm(self) -> None:
        self.is_storm = False
        self.clock.advance(CALM_SECONDS)

    async def in_a_storm(self, *names: object) -> None:
        """They are decided in one, and get into the journal."""
        self.storm()
        self.decide(*names)
        await self.log.flush()

    async def names(self) -> str:
        rows = await self.store.read(lambda tx: decisions.newest(tx, limit=10_000))
        return " ".join(row["nas"] for row in rows)

    @property
    def in_file(self) -> int:
        return self.file.read_bytes().count(b"\n") - 1


def run(folder: Path, story: Callable[[Night], Awaitable[None]]) -> None:
    async def whole() -> None:
        night = Night(folder)
        try:
            await asyncio.wait_for(story(night), 30)
        finally:
            night.store.close()

    asyncio.run(whole())


def test_the_store_is_left_alone_and_hears_of_everything_in_its_order_when_the_storm_is_over(tmp_path: Path) -> None:
    async def story(night: Night) -> None:
        night.decide("before")
        night.storm()
        night.decide(1, 2)
        await night.log.flush()  # a reader's: it comes back, and finds those rows later
        night.decide(3)
        await night.log.flush()
        assert await night.names() == ""
        assert night.in_file == 4
        assert stat.S_IMODE(night.file.stat().st_mode) == 0o600
        night.is_storm = False
        await night.log.flush()
        assert await night.names() == "", "it may come again at once"
        night.decide("after")
        night.calm()
        await night.log.flush()
        assert await night.names() == "before 1 2 3 after"
        assert not night.file.exists()
        night.decide("quiet")
        await night.log.flush()
        assert await night.names() == "before 1 2 3 after quiet"
        assert not night.file.exists()

    run(tmp_path, story)


def test_what_is_decided_while_the_journal_is_emptied_goes_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "MAX_BATCH", 2)

    async def story(night: Night) -> None:
        await night.in_a_storm(*range(5))
        night.calm()
        written: list[str] = []

        def more() -> None:
            if len(written) < 3:
                written.append(f"new{len(written)}")
                night.decide(written[-1])

        night.log.on_written = more
        await night.log.flush()
        await night.log.flush()
        assert await night.names() == "0 1 2 3 4 new0 new1 new2"
        assert not night.file.exists()

    run(tmp_path, story)


def test_what_is_decided_at_the_end_of_the_journal_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(night: Night) -> None:
        await night.in_a_storm(1)
        night.calm()
        take, later = night.log._journal.take, [2]

        async def slow(count: int) -> Any:
            found = await take(count)
            if not found and later:
                night.decide(later.pop(0))
            return found

        monkeypatch.setattr(night.log._journal, "take", slow)
        await night.log.flush()
        assert await night.names() == "1 2"
        assert not night.file.exists()

    run(tmp_path, story)


def test_who_flushes_behind_a_storm_comes_back_whatever_is_decided_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "BATCH_SECONDS", -1.0)

    async def story(night: Night) -> None:
        await night.in_a_storm(*range(1000))
        night.calm()
        names = iter(range(1000, 100_000))

        async def rain() -> None:
            while True:
                night.decide(next(names))
                await asyncio.sleep(0.001)

        task = asyncio.create_task(rain())
        await night.log.flush()
        assert not night.file.exists()
        task.cancel()
        await night.log.flush()
        assert await night.names() == " ".join(map(str, range(next(names))))

    run(tmp_path, story)


def test_what_was_queued_before_a_storm_that_came_and_went_in_one_commit_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(night: Night) -> None:
        write, first = night.store.write, [True]

        async def slow(function: Callable[..., Any], **how: Any) -> Any:
            if first:
                first.clear()
                night.decide("queued")
                night.storm()
                night.decide("in the storm")
                night.calm()
            return await write(function, **how)

        monkeypatch.setattr(night.store, "write", slow)
        night.decide("first")
        await night.log.flush()
        await night.log.flush()
        assert await night.names() == "first queued in the storm"

    run(tmp_path, story)


def test_behind_a_storm_rows_get_into_the_file_while_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("for a while")

    async def story(night: Night) -> None:
        await night.in_a_storm(1)
        night.calm()
        with monkeypatch.context() as patch:
            patch.setattr(night.store, "write", away)
            for name in (2, 3):
                night.decide(name)
                with pytest.raises(StoreUnavailable):
                    await night.log.flush()
        assert night.in_file == 3
        await night.another().flush()
        assert await night.names() == "1 2 3"

    run(tmp_path, story)


def test_a_stop_in_the_storm_writes_all_of_it(tmp_path: Path) -> None:
    async def story(night: Night) -> None:
        await night.in_a_storm(*range(600))
        night.decide("last")
        await night.log.flush(even_in_a_storm=True)
        assert await night.names() == " ".join([*map(str, range(600)), "last"])
        assert not night.file.exists()

    run(tmp_path, story)


def test_old_rows_are_not_pruned_in_a_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "BATCH_SECONDS", 0.0)

    async def story(night: Night) -> None:
        pruned: list[bool] = []

        async def prune() -> None:
            pruned.append(night.is_storm)

        monkeypatch.setattr(night.log, "prune", prune)
        night.storm()
        task = asyncio.create_task(night.log.run())
        await asyncio.sleep(0.05)
        assert not pruned
        night.calm()
        while not pruned:
            await asyncio.sleep(0.01)
        task.cancel()
        assert pruned == [False]

    run(tmp_path, story)


# ---- the process dies


def test_the_next_process_goes_on_where_the_journal_is(tmp_path: Path) -> None:
    async def story(night: Night) -> None:
        await night.in_a_storm(1, 2)
        night.decide("lost in memory")
        log = night.another()
        night.decide(3)  # before it has looked at the file
        await log.flush()
        assert night.in_file == 3
        night.calm()
        night.decide(4)
        await log.flush()
        assert await night.names() == "1 2 3 4"
        assert not night.file.exists()

    run(tmp_path, story)


@pytest.mark.parametrize("batches", range(4))
def test_rows_that_were_taken_over_are_not_taken_over_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    monkeypatch.setattr(decision_log, "MAX_BATCH", 2)

    async def story(night: Night) -> None:
        await night.in_a_storm(*range(6))
        night.calm()
        write, left = night.store.write, [None] * batches

        async def dies(function: Callable[..., Any], **how: Any) -> Any:
            if not left:
                raise StoreUnavailable("died")
            left.pop()
            return await write(function, **how)

        def remains(*_: object) -> None:
            raise StoreUnavailable("died behind the last COMMIT")

        with monkeypatch.context() as patch:
            patch.setattr(night.store, "write", dies)
            patch.setattr(row_journal, "_remove", remains)
            with pytest.raises(StoreUnavailable):
                await night.log.flush()
        assert await night.names() == " ".join(map(str, range(2 * batches)))
        assert night.file.exists()
        await night.another().flush()
        assert await night.names() == "0 1 2 3 4 5"
        assert not night.file.exists()

    run(tmp_path, story)


def test_the_mark_of_another_journal_says_nothing(tmp_path: Path) -> None:
    async def story(night: Night) -> None:
        for name in ("first", "second"):
            await night.in_a_storm(name, name)
            night.another()
            night.calm()
            await night.log.flush()
        assert await night.names() == "first first second second"

    run(tmp_path, story)


def test_a_line_that_was_cut_off_is_dropped_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(night: Night) -> None:
        await night.in_a_storm(1, 2)
        with night.file.open("ab") as file:
            file.write(b'[17,"rej' + b"x" * 70_000)
        log = night.another()
        night.decide(3)
        await log.flush()
        night.calm()
        await log.flush()
        assert await night.names() == "1 2 3"

    run(tmp_path, story)
    assert "event=decision-journal-cut" in caplog.text
    assert "bytes=70008" in caplog.text


@pytest.mark.parametrize("content", [b"garbage\n", b"\x00" * 5000, b'{"journal":"short"}\n[1]\n'])
def test_a_file_that_is_no_journal_is_put_aside_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    async def story(night: Night) -> None:
        night.file.write_bytes(content)
        log = night.another()
        night.decide(1)
        await log.flush()
        night.storm()
        night.decide(2)
        await log.flush()
        night.calm()
        await log.flush()
        assert await night.names() == "1 2"
        assert night.file.with_suffix(".bad").read_bytes() == content

    run(tmp_path, story)
    assert caplog.text.count("event=decision-journal-unreadable") == 1


def test_a_file_whose_maker_died_at_once_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(night: Night) -> None:
        for content in (b"", b'{"journal":"0123'):
            night.file.write_bytes(content)
            await night.another().flush()
            assert not list(tmp_path.glob("decision-journal*"))

    run(tmp_path, story)
    assert not caplog.text


def test_a_journal_that_cannot_be_read_now_is_put_aside_and_costs_one_descriptor_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def story(night: Night) -> None:
        for _ in range(2):
            await night.in_a_storm("lost to sight")
            night.log.close()
            with night.file.open("ab") as file:
                file.write(b"half a line")
            content = night.file.read_bytes()
            night.calm()
            log = night.another()
            descriptors = psutil.Process().num_fds()
            with monkeypatch.context() as patch:
                patch.setattr(os, "ftruncate", broken)
                await log.flush()
            assert psutil.Process().num_fds() == descriptors
            assert content in [file.read_bytes() for file in tmp_path.glob("decision-journal.bad*")]
        night.decide(1)
        await night.log.flush()
        assert await night.names() == "1"
        assert len(list(tmp_path.glob("decision-journal.bad*"))) == 2

    run(tmp_path, story)


def test_a_journal_that_fails_while_it_is_taken_over_is_put_aside_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(night: Night) -> None:
        await night.in_a_storm(1, 2)
        night.calm()
        size = night.file.stat().st_size
        os.truncate(night.file, size - 20)
        await night.another().flush()
        assert await night.names() == "1"
        await night.in_a_storm(3, 4)
        os.truncate(night.file, 60)  # under its hands
        night.calm()
        await night.log.flush()
        assert await night.names() == "1"
        assert night.file.with_suffix(".bad").exists()
        await night.in_a_storm(5)
        night.calm()
        await night.log.flush()
        assert await night.names() == "1 5"

    run(tmp_path, story)
    assert caplog.text.count("event=decision-journal-unreadable") == 1


def test_something_else_in_its_place_is_put_aside_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(night: Night) -> None:
        night.file.mkdir()
        night.storm()
        await night.another().flush()
        night.decide(1)
        await night.log.flush()
        assert night.in_file == 1
        assert night.file.with_suffix(".bad").is_dir()

    run(tmp_path, story)
    assert "event=decision-journal-unreadable" in caplog.text


def test_lines_that_are_no_rows_take_no_other_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decision_log, "MAX_BATCH", 2)

    async def story(night: Night) -> None:
        await night.in_a_storm(1, 2)
        head, first, second = night.file.read_bytes().splitlines(keepends=True)
        bad = [b"\n", b"{}\n", b"[1,2]\n", b"\xff\n", b"[" * 100_000 + b"\n"]
        night.file.write_bytes(b"".join((head, first, *bad, second, *bad)))
        night.calm()
        await night.another().flush()
        assert await night.names() == "1 2"
        assert not night.file.exists()

    run(tmp_path, story)
    assert caplog.text.count("event=decision-not-written") == 10
    assert "Traceback" not in caplog.text


def test_a_row_that_the_store_refuses_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add = decisions.add

    def broken(tx: Any, rows: Any) -> None:
        if any("sw3" in row for row in rows):
            raise ValueError("cannot be written")
        add(tx, rows)

    monkeypatch.setattr(decisions, "add", broken)

    async def story(night: Night) -> None:
        await night.in_a_storm(*(f"sw{at}" for at in range(7)), "\udcff")
        night.calm()
        await night.log.flush()
        assert await night.names() == "sw0 sw1 sw2 sw4 sw5 sw6"
        assert not night.file.exists()

    run(tmp_path, story)
    assert caplog.text.count("event=decision-not-written") == 2


def test_the_service_starts_with_a_whole_log_and_stops_with_one(tmp_path: Path) -> None:
    async def story(night: Night) -> None:
        await night.in_a_storm("left")
        service = AccessService(AccessSettings(), night.store, night.clock, journal=night.file)
        await service.start()
        assert await night.names() == "left"
        service.spare_the_store(lambda: True)
        service.authorize(AccessRequest(nas="in the storm", calling_station="02-00-00-00-00-01"))
        await service.flush()
        assert night.in_file == 1
        await service.stop()
        assert await night.names() == "left in the storm"
        assert not night.file.exists()

    run(tmp_path, story)


def test_neither_a_start_nor_a_reader_waits_long_for_what_a_storm_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_service, "_START_SECONDS", 0.05)
    monkeypatch.setattr(access_service, "_PATIENCE_SECONDS", 0.05)

    async def story(night: Night) -> None:
        await night.in_a_storm("left")
        write, may_go = night.store.write, asyncio.Event()

        async def slow(function: Callable[..., Any], **how: Any) -> Any:
            await may_go.wait()
            return await write(function, **how)

        monkeypatch.setattr(night.store, "write", slow)
        service = AccessService(AccessSettings(), night.store, night.clock, journal=night.file)
        await service.start()
        await service.flush()
        assert await night.names() == ""
        may_go.set()
        await service.flush()
        assert await night.names() == "left"
        await service.stop()

    run(tmp_path, story)


def test_a_stop_while_the_store_is_away_leaves_the_journal_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("for good")

    async def story(night: Night) -> None:
        service = AccessService(AccessSettings(), night.store, night.clock, journal=night.file)
        await service.start()
        service.spare_the_store(lambda: True)
        service.authorize(AccessRequest(nas="in the storm", calling_station="02-00-00-00-00-01"))
        await service.flush()
        descriptors = psutil.Process().num_fds()
        with monkeypatch.context() as patch:
            patch.setattr(night.store, "write", away)
            await service.stop()
        assert psutil.Process().num_fds() == descriptors - 1
        await night.another().flush()
        assert await night.names() == "in the storm"

    run(tmp_path, story)


# ---- no room


def test_on_a_full_disk_the_store_is_spared_no_longer_and_it_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pwrite = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        if place > 900:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data[:100], place)

    async def story(night: Night) -> None:
        await night.in_a_storm(0)
        size = night.file.stat().st_size
        assert size < 900
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            night.decide(1, 2)
            await night.log.flush()
            assert night.file.stat().st_size == size, "half a line is taken back"
            assert await night.names() == ""
            night.decide(3)
            await night.log.flush()
            assert await night.names() == "0 1 2 3", "the store is not spared what nobody else takes"
        night.decide(4)
        await night.log.flush()
        night.decide(5)
        await night.log.flush()
        assert night.in_file == 2, "there is room again"

    run(tmp_path, story)
    assert caplog.text.count("event=decision-journal-not-written") == 1


def test_the_room_that_is_kept_free_for_others_is_left_free(tmp_path: Path) -> None:
    async def story(night: Night) -> None:
        night.log._journal._reserve = 1 << 60
        night.storm()
        for name in range(3):
            night.decide(name)
            await night.log.flush()
        assert await night.names() == "0 1 2"

    run(tmp_path, story)


def test_a_journal_that_cannot_be_made_loses_nothing(tmp_path: Path) -> None:
    async def story(night: Night) -> None:
        night.log._journal._path = tmp_path / "nowhere" / "file"
        await night.in_a_storm(1, 2)
        night.calm()
        await night.log.flush()
        assert await night.names() == "1 2"

    run(tmp_path, story)


def test_memory_is_bounded_and_the_oldest_go() -> None:
    journal = RowJournal(None, width=1, room=3)
    for at in range(5):
        journal.put((at,))
    assert journal.take_waiting(9) == [(2,), (3,), (4,)]
    journal.put((9,))
    journal.put_before([line_of((at,)) for at in range(5)])
    assert journal.take_waiting(9) == [(3,), (4,), (9,)]


def test_when_too_much_waits_the_store_is_spared_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_journal, "MAX_BEHIND_BYTES", 5_000)

    async def story(night: Night) -> None:
        await night.in_a_storm(*range(100))
        assert await night.names() == ""
        await night.log.flush()
        found = await night.names()
        assert found
        assert " ".join(map(str, range(100))).startswith(found)

    run(tmp_path, story)


def test_a_storm_without_an_end_loses_nothing_that_the_store_can_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_journal, "MAX_BEHIND_BYTES", 20_000)
    monkeypatch.setattr(row_journal, "MAX_BYTES", 40_000)
    monkeypatch.setattr(decision_log, "MAX_QUEUED", 100)

    async def story(night: Night) -> None:
        night.another()
        night.storm()
        for at in range(0, 600, 20):
            night.decide(*range(at, at + 20))
            await night.log.flush()
            assert not night.file.exists() or night.file.stat().st_size < 60_000
        await night.log.flush(even_in_a_storm=True)
        assert await night.names() == " ".join(map(str, range(600)))

    run(tmp_path, story)


# ---- any order of it all


@settings(deadline=None)
@given(st.lists(st.sampled_from(["decide", "decide", "flush", "storm", "calm", "die", "stop"]), max_size=40))
def test_whatever_happens_every_row_that_was_kept_is_there_once_and_in_order(events: list[str]) -> None:
    async def story(night: Night) -> None:
        kept: list[str] = []
        in_memory: list[str] = []
        for at, event in enumerate(events):
            if event == "decide":
                night.decide(at)
                in_memory.append(str(at))
            elif event == "storm":
                night.storm()
            elif event == "calm":
                night.calm()
            elif event == "die":
                in_memory.clear()
                night.another()
            else:
                await night.log.flush(even_in_a_storm=event == "stop")
                kept += in_memory
                in_memory.clear()
        await night.log.flush(even_in_a_storm=True)
        assert (await night.names()).split() == kept + in_memory
        assert not night.file.exists()

    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), story)


_WITHIN = st.sampled_from(["decide", "decide", "storm", "calm", "away"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["decide", "flush", "storm", "calm"]), st.lists(_WITHIN)), max_size=20))
def test_whatever_happens_while_the_store_writes_every_row_is_there_once_and_in_order(
    events: list[tuple[str, list[str]]],
) -> None:
    async def story(night: Night) -> None:
        names, within = iter(range(10_000)), list[str]()
        write = night.store.write

        def happens(event: str) -> None:
            if event == "decide":
                night.decide(next(names))
            elif event == "storm":
                night.storm()
            elif event == "calm":
                night.calm()

        async def slow(function: Callable[..., Any], **how: Any) -> Any:
            while within:
                event = within.pop()
                happens(event)
                if event == "away":
                    raise StoreUnavailable("for a moment")
            return await write(function, **how)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(night.store, "write", slow)
            for event, within_it in events:
                within += within_it
                happens(event)
                if event == "flush":
                    with contextlib.suppress(StoreUnavailable):
                        await night.log.flush()
        night.calm()
        await night.log.flush()
        assert await night.names() == " ".join(map(str, range(next(names))))
        assert not night.file.exists()

    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), story)
