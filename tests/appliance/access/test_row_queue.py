"""Rows on their way into the store: which of them are given up, and that nothing else takes any away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.access.decision_rows import row_of
from appliance.access.row_queue import RowQueue
from appliance.errors import DiskFull, StoreBusy, StoreUnavailable
from appliance.store import decisions, sessions
from appliance.store.store import Store
from appliance.store.transaction import Tx
from radius import AccessRequest
from radius.decide import refuse
from tests.appliance.access.test_sessions import World, play
from tests.stores import open_store
from tests.support import NOW, FixedClock


@dataclass
class Table:
    """Where rows go; `faults` says what is wrong with some of them, `away` what is wrong with the table."""

    faults: dict[int, Exception] = field(default_factory=dict)
    away: Exception | None = None
    rows: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)

    async def write(self, batch: list[int]) -> list[str]:
        self.batches.append(len(batch))
        await asyncio.sleep(0)
        if self.away is not None:
            raise self.away
        for row in batch:
            if row in self.faults:
                raise self.faults[row]
        self.rows += batch
        return [f"row {row}" for row in batch]

    def queue(self, *rows: int, page: int = 8, room: int | None = None) -> RowQueue[int]:
        queue: RowQueue[int] = RowQueue(page=page, room=room, on_given_up=self.given_up.append)
        for row in rows:
            queue.append(row)
        return queue


async def drain(queue: RowQueue[int], table: Table) -> None:
    while queue:
        await queue.write_some(table.write)


def test_rows_are_written_in_their_order_a_page_at_a_time_and_each_batch_is_told() -> None:
    async def story() -> None:
        table = Table()
        queue = table.queue(*range(5), page=3)
        assert await queue.write_some(table.write) == ([0, 1, 2], ["row 0", "row 1", "row 2"])
        assert (queue.done, len(queue), list(queue)) == (3, 2, [3, 4])
        assert await queue.write_some(table.write, 1) == ([3], ["row 3"])
        assert await queue.write_some(table.write) == ([4], ["row 4"])
        assert await queue.write_some(table.write) is None
        assert (queue.done, table.rows, table.batches) == (5, list(range(5)), [3, 1, 1])

    asyncio.run(story())


def test_a_row_is_in_the_queue_until_it_is_written() -> None:
    async def story() -> None:
        table = Table()
        queue = table.queue(1, 2)
        writing = asyncio.create_task(queue.write_some(table.write))
        await asyncio.sleep(0)
        queue.append(3)
        assert table.batches == [2] and table.rows == []
        assert (list(queue), len(queue), queue.done) == ([1, 2, 3], 3, 0)
        await writing
        assert (list(queue), len(queue), queue.done) == ([3], 1, 2)

    asyncio.run(story())


@pytest.mark.parametrize("bad", [0, 37, 99])
def test_one_bad_row_among_many_is_given_up_alone_and_batches_grow_again(bad: int) -> None:
    table = Table(faults={bad: ValueError("cannot be written")})
    queue = table.queue(*range(100), page=64)
    asyncio.run(drain(queue, table))
    assert table.given_up == [bad]
    assert table.rows == [row for row in range(100) if row != bad]
    assert (queue.done, len(queue)) == (100, 0)
    assert len(table.batches) < 30
    table.batches.clear()
    for row in range(100, 300):
        queue.append(row)
    asyncio.run(drain(queue, table))
    assert max(table.batches) == 64


def test_where_every_row_is_bad_each_is_given_up_once_and_it_ends() -> None:
    table = Table(faults=dict.fromkeys(range(20), ValueError("cannot be written")))
    queue = table.queue(*range(20))
    asyncio.run(drain(queue, table))
    assert (table.given_up, table.rows, queue.done) == (list(range(20)), [], 20)


@pytest.mark.parametrize("away", [StoreUnavailable("gone"), StoreBusy("in use"), DiskFull("full")], ids=type)
def test_while_the_store_is_away_nothing_is_lost_and_nothing_overtakes(away: Exception) -> None:
    async def story() -> None:
        table = Table(away=away)
        queue = table.queue(*range(5), page=3)
        for late in (5, 6):
            writing = asyncio.create_task(queue.write_some(table.write))
            await asyncio.sleep(0)
            queue.append(late)
            with pytest.raises(type(away)):
                await writing
        assert (list(queue), queue.done, table.given_up) == (list(range(7)), 0, [])
        table.away = None
        await drain(queue, table)
        assert table.rows == list(range(7)) and table.batches == [3, 3, 3, 3, 1]

    asyncio.run(story())


def test_the_store_going_away_while_a_bad_row_is_looked_for_loses_nothing() -> None:
    async def story() -> None:
        table = Table(faults={2: ValueError("cannot be written")})
        queue = table.queue(*range(6))
        assert await queue.write_some(table.write) is None
        table.away = StoreUnavailable("gone")
        with pytest.raises(StoreUnavailable):
            await queue.write_some(table.write)
        assert list(queue) == list(range(6)) and not table.given_up
        table.away = None
        await drain(queue, table)
        assert (table.rows, table.given_up) == ([0, 1, 3, 4, 5], [2])

    asyncio.run(story())


@pytest.mark.parametrize(
    ("room", "left"), [(9, [0, 1, 2, 3, 7, 8]), (5, [1, 2, 3, 7, 8]), (2, [7, 8])], ids=["enough", "short", "none"]
)
def test_where_there_is_no_room_to_put_a_batch_back_the_oldest_go(room: int, left: list[int]) -> None:
    async def story() -> None:
        table = Table(away=StoreUnavailable("gone"))
        queue = table.queue(page=4, room=room)
        for row in range(min(room, 4)):
            queue.append(row)
        writing = asyncio.create_task(queue.write_some(table.write))
        await asyncio.sleep(0)
        for late in (7, 8):
            queue.append(late)
        with pytest.raises(StoreUnavailable):
            await writing
        assert list(queue) == left

    asyncio.run(story())


MISTAKES = pytest.mark.parametrize(
    "mistake", [TypeError("a bug"), KeyError("a bug"), AssertionError("a bug")], ids=type
)


@MISTAKES
def test_a_mistake_of_ours_is_raised_and_costs_no_row_if_it_is_gone_the_next_time(mistake: Exception) -> None:
    async def story() -> None:
        table = Table(faults={3: mistake})
        queue = table.queue(*range(5))
        for _ in range(3):
            with pytest.raises(type(mistake)):
                while True:
                    await queue.write_some(table.write)
        assert (list(queue), queue.done, table.given_up) == ([3, 4], 3, [])
        table.faults.clear()
        await drain(queue, table)
        assert (table.rows, table.given_up) == (list(range(5)), [])

    asyncio.run(story())


@MISTAKES
def test_a_row_that_alone_runs_into_a_mistake_twice_running_holds_nobody_up(mistake: Exception) -> None:
    async def story() -> None:
        table = Table(faults={3: mistake})
        queue = table.queue(*range(9))
        while queue:
            with contextlib.suppress(type(mistake)):
                await queue.write_some(table.write)
        assert (table.rows, table.given_up) == ([0, 1, 2, 4, 5, 6, 7, 8], [3])
        assert table.batches == [8, 4, 2, 4, 2, 1, 2, 1, 1, 2, 3]  # it alone failed twice, which is the second 1, 1

    asyncio.run(story())


# ---- what the database itself finds wrong with a row


def decision_row(nas: str) -> tuple[Any, ...]:
    return row_of(refuse(AccessRequest(nas=nas), "tls-unknown-ca", "alert 48"), NOW)


def with_value(name: str, value: Any) -> tuple[Any, ...]:
    row = list(decision_row("bad"))
    row[decisions.COLUMNS.index(name)] = value
    return tuple(row)


BAD_ROWS = {
    "a text that UTF-8 cannot hold": with_value("nas", "sw\udc80"),
    "a number of more than 64 bits": with_value("policy_revision", 2**63),
    "a kind of value that the driver does not know": with_value("port", object()),
    "nothing where something has to be": with_value("verdict", None),
    "too few values": decision_row("bad")[:-1],
}


def written(folder: Path, act: Callable[[Store], Coroutine[Any, Any, None]]) -> list[str]:
    """Names of the NAS in the decision log, after `act`."""
    store = open_store(f"sqlite:///{folder / 'a.db'}", FixedClock())
    try:
        asyncio.run(act(store))
        return [row["nas"] for row in store.read_sync(lambda tx: decisions.newest(tx, limit=100))]
    finally:
        store.close()


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("company", [True, False], ids=["in company", "alone"])
def test_what_the_database_cannot_hold_is_given_up_alone(tmp_path: Path, bad: tuple[Any, ...], company: bool) -> None:
    given_up: list[Any] = []

    async def act(store: Store) -> None:
        queue: RowQueue[tuple[Any, ...]] = RowQueue(page=8, on_given_up=given_up.append)
        for row in (decision_row("sw0"), bad, decision_row("sw1")):
            queue.append(row)

        async def write(batch: list[tuple[Any, ...]]) -> None:
            # `company`: with another transaction, so that this one is undone to a savepoint
            more = [store.write(lambda tx: None)] if company else []
            await asyncio.gather(store.write(lambda tx: decisions.add(tx, batch)), *more)

        while queue:
            await queue.write_some(write)

    assert written(tmp_path, act) == ["sw0", "sw1"]
    assert given_up == [bad]


def test_a_row_whose_key_is_there_already_is_given_up_alone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.account("start")
        there = await world.one()
        fresh = replace(there, id="fresh", mac_key="02000000000b")
        given_up: list[sessions.Session] = []
        queue: RowQueue[sessions.Session] = RowQueue(page=8, on_given_up=given_up.append)
        for session in (there, fresh):
            queue.append(session)

        def add(tx: Tx, batch: list[sessions.Session]) -> None:
            for session in batch:
                sessions.add(tx, session)

        while queue:
            await queue.write_some(lambda batch: world.store.write(lambda tx: add(tx, batch)))
        assert given_up == [there]
        assert {one.id for one in await world.all()} == {there.id, "fresh"}

    play(tmp_path, story, runs=False)


@pytest.mark.parametrize("ends", ["closed", "replaced"])
def test_a_store_that_is_gone_is_no_fault_of_a_row(tmp_path: Path, ends: str) -> None:
    given_up: list[Any] = []

    async def story() -> None:
        file = tmp_path / "a.db"
        store = open_store(f"sqlite:///{file}", FixedClock())
        queue: RowQueue[tuple[Any, ...]] = RowQueue(page=8, on_given_up=given_up.append)
        queue.append(decision_row("sw0"))
        if ends == "closed":
            store.close()
        else:
            file.rename(tmp_path / "b.db")
        with pytest.raises(StoreUnavailable):
            await queue.write_some(lambda batch: store.write(lambda tx: decisions.add(tx, batch)))
        assert len(queue) == 1 and not given_up
        store.close()

    asyncio.run(story())
