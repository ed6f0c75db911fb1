"""The store: groups commit together, a failing function is undone alone, nobody is answered before COMMIT."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import bindparam, func, insert, select, text, update

from appliance import audit
from appliance.audit import APPLIANCE, AuditEvent
from appliance.cohort import Way
from appliance.errors import (
    Conflict,
    DiskFull,
    NotFound,
    StoreBusy,
    StoreForeign,
    StoreMissing,
    StoreUnavailable,
)
from appliance.store import OutboxRow, Store, Tx, meta, schema
from tests.stores import open_store
from tests.support import FixedClock

INSERT = insert(schema.meta)
ALL = select(schema.meta).order_by(schema.meta.c.key)


def put(key: str, value: str = "v"):
    return lambda tx: tx.execute(INSERT, {"key": key, "value": value})


def keys(store: Store) -> list[str]:
    return [row.key for row in store.read_sync(lambda tx: tx.all(ALL))]


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'appliance.db'}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(url(tmp_path), FixedClock())
    yield opened
    opened.close()


def test_what_was_answered_is_there_after_reopening(tmp_path: Path) -> None:
    first = Store.open(url(tmp_path), FixedClock(), create=True)
    first.write_sync(put("a"))
    first.close()
    second = Store.open(url(tmp_path), FixedClock())
    assert keys(second) == ["a"]
    second.close()


def test_the_database_files_are_only_the_owners(store: Store, tmp_path: Path) -> None:
    store.write_sync(put("a"))
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_every_commit_is_synchronised_to_disk(store: Store) -> None:
    assert store.write_sync(lambda tx: tx.scalar(text("PRAGMA synchronous"))) == 2
    assert store.write_sync(lambda tx: tx.scalar(text("PRAGMA journal_mode"))) == "wal"


def test_a_missing_database_is_never_made_again_silently(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        Store.open(url(tmp_path), FixedClock())
    assert not list(tmp_path.iterdir())


def test_an_existing_database_is_never_made_anew(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        Store.open(url(tmp_path), FixedClock(), create=True)


def test_a_foreign_or_empty_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "appliance.db").touch()
    with pytest.raises(StoreForeign):
        Store.open(url(tmp_path), FixedClock())
    (tmp_path / "appliance.db").write_bytes(b"not a database at all, " * 100)
    with pytest.raises(StoreUnavailable):
        Store.open(url(tmp_path), FixedClock())


def test_a_database_of_a_later_version_is_refused(store: Store, tmp_path: Path) -> None:
    store.close()
    with sqlite3.connect(tmp_path / "appliance.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreForeign):
        Store.open(url(tmp_path), FixedClock())


def quick_group_of(store: Store, functions: list) -> list:
    """Run the functions as one quick group: all of them are there before the loop comes to it."""

    async def run() -> list:
        writing = (store.write(function, quick=True) for function in functions)
        return list(await asyncio.gather(*writing, return_exceptions=True))

    return asyncio.run(run())


def group_of(store: Store, functions: list) -> list:
    """Run the functions in one commit group: the writer is held up until all of them wait."""

    async def run() -> list:
        gate = threading.Event()
        first = asyncio.ensure_future(store.write(lambda tx: gate.wait(5)))
        await asyncio.sleep(0.05)
        waiting = [asyncio.ensure_future(store.write(function)) for function in functions]
        await asyncio.sleep(0)
        gate.set()
        await first
        return await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run(run())


def test_a_failing_function_is_undone_alone_and_its_group_commits(store: Store) -> None:
    def half(tx: Tx) -> None:
        put("half")(tx)
        raise NotFound("no")

    results = group_of(store, [put("a"), half, put("b"), lambda tx: 1 / 0, put("c")])
    assert [type(result).__name__ for result in results] == [
        "Result",
        "NotFound",
        "Result",
        "ZeroDivisionError",
        "Result",
    ]
    assert keys(store) == ["a", "b", "c"]


def test_a_duplicate_key_is_a_conflict_and_the_rest_of_the_group_commits(store: Store) -> None:
    results = group_of(store, [put("a"), put("a"), put("b")])
    assert isinstance(results[1], Conflict)
    assert keys(store) == ["a", "b"]


def test_a_function_that_ends_the_transaction_fails_its_whole_group(store: Store) -> None:
    store.write_sync(put("a"))
    rollback = text("INSERT OR ROLLBACK INTO meta (key, value) VALUES ('a', 'v')")
    results = group_of(store, [put("b"), lambda tx: tx.execute(rollback), put("c")])
    assert all(isinstance(result, Exception) for result in results)
    assert keys(store) == ["a"]
    store.write_sync(put("d"))
    assert keys(store) == ["a", "d"]


def test_functions_cannot_reach_commit_or_the_connection(store: Store) -> None:
    names = store.write_sync(dir)
    assert not {"commit", "rollback", "connection", "begin", "close"} & set(names)


def test_the_audit_head_is_restored_with_the_savepoint(store: Store) -> None:
    def audited(fail: bool):
        def function(tx: Tx) -> int:
            seq = audit.append(tx, AuditEvent("appliance-started", APPLIANCE))
            if fail:
                raise NotFound("no")
            return seq

        return function

    results = group_of(store, [audited(False), audited(True), audited(False), audited(True), audited(False)])
    assert [result for result in results if isinstance(result, int)] == [1, 2, 3]
    assert store.read_sync(lambda tx: audit.verify(audit.rows(tx))).seq == 3


def test_a_failing_function_alone_in_its_group_leaves_nothing_and_the_next_one_works(store: Store) -> None:
    def fails(tx: Tx) -> None:
        put("no")(tx)
        audit.append(tx, AuditEvent("appliance-started", APPLIANCE))
        tx.emit("topic", "no", {})
        raise NotFound("no")

    async def run() -> list[OutboxRow]:
        seen: list[OutboxRow] = []
        store.subscribe(seen.extend)
        for quick in (True, False):
            with pytest.raises(NotFound):
                await store.write(fails, quick=quick)
            await store.write(put(f"yes {quick}"), quick=quick)
        return seen

    assert asyncio.run(run()) == []
    assert keys(store) == ["yes False", "yes True"]
    assert store.write_sync(lambda tx: audit.append(tx, AuditEvent("appliance-started", APPLIANCE))) == 1


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("failing", [(0,), (1,), (3,), (0, 2), (1, 2, 3), (0, 1, 2, 3)])
def test_those_that_fail_leave_nothing_and_the_rest_of_their_group_is_written_once_in_its_order(
    store: Store, quick: bool, failing: tuple[int, ...]
) -> None:
    seen: list[OutboxRow] = []

    def function(number: int) -> Callable[[Tx], int]:
        def write(tx: Tx) -> int:
            put(f"k{number}")(tx)
            tx.emit("topic", f"k{number}", {})
            seq = audit.append(tx, AuditEvent("appliance-started", APPLIANCE, f"k{number}"))
            if number in failing:
                raise NotFound(f"k{number}")
            return seq

        return write

    async def run() -> list[object]:
        store.subscribe(seen.extend)
        writing = (store.write(function(number), quick=quick) for number in range(4))
        return await asyncio.gather(*writing, return_exceptions=True)

    answers = asyncio.run(run())
    good = [number for number in range(4) if number not in failing]
    assert [str(answers[number]) for number in failing] == [str(NotFound(f"k{number}")) for number in failing]
    assert [answers[number] for number in good] == list(range(1, len(good) + 1))
    assert keys(store) == [f"k{number}" for number in good]
    assert [row.key for row in seen] == [f"k{number}" for number in good]
    entries = store.read_sync(lambda tx: audit.page(tx))
    assert [row.entry["object"] for row in entries] == [f"k{number}" for number in good]
    assert [row.prev for row in entries[1:]] == [row.hash for row in entries[:-1]]


@pytest.mark.parametrize("quick", [True, False])
def test_a_function_that_hides_that_it_ended_the_transaction_is_not_answered_with_yes(
    store: Store, quick: bool
) -> None:
    store.write_sync(put("a"))
    rollback = text("INSERT OR ROLLBACK INTO meta (key, value) VALUES ('a', 'v')")

    def hides(tx: Tx) -> None:
        audit.append(tx, AuditEvent("appliance-started", APPLIANCE))
        tx.emit("topic", "a", {})
        with contextlib.suppress(Conflict):
            tx.execute(rollback)

    with pytest.raises(StoreUnavailable):
        asyncio.run(store.write(hides, quick=quick))
    assert store.read_sync(lambda tx: audit.last_seq(tx)) == 0
    assert store.read_sync(lambda tx: tx.scalar(select(func.count()).select_from(schema.outbox))) == 0
    store.write_sync(put("b"))
    assert keys(store) == ["a", "b"]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_nothing_of_a_group_stays_whose_transaction_one_of_it_has_ended(store: Store, quick: bool, fails: bool) -> None:
    store.write_sync(put("a"))
    rollback = text("INSERT OR ROLLBACK INTO meta (key, value) VALUES ('a', 'v')")

    def ends(tx: Tx) -> None:
        with contextlib.suppress(Conflict):
            tx.execute(rollback)
        if fails:
            raise NotFound("no")

    functions = [put("b"), ends, put("c")]
    results = quick_group_of(store, functions) if quick else group_of(store, functions)
    assert [type(one) for one in results] == [
        StoreUnavailable,
        NotFound if fails else StoreUnavailable,
        StoreUnavailable,
    ]
    assert keys(store) == ["a"]
    store.write_sync(put("d"))
    assert keys(store) == ["a", "d"]


def test_a_refusal_that_rests_on_what_was_undone_is_decided_anew(store: Store) -> None:
    """Quick functions: the second sees what the first wrote and refuses; run again, the first one fails."""
    runs: list[str] = []

    def first(tx: Tx) -> None:
        runs.append("first")
        if runs.count("first") > 1:
            raise NotFound("no")
        put("k")(tx)

    def second(tx: Tx) -> str:
        runs.append("second")
        if "k" in [row.key for row in tx.all(ALL)]:
            raise Conflict("it is there")
        return "it is free"

    results = quick_group_of(store, [first, second])
    assert runs == ["first", "second", "first", "second"]
    assert isinstance(results[0], NotFound) and results[1] == "it is free"


def in_steps(store: Store, functions: list) -> list:
    """Run the functions as one quick group, each of them in steps."""

    async def run() -> list:
        return list(await asyncio.gather(*map(store.write_in_steps, functions), return_exceptions=True))

    return asyncio.run(run())


def two_steps(name: str, taken: list[str], *, fails: bool = False) -> Callable[[Tx], Way[list[int]]]:
    def function(tx: Tx) -> Way[list[int]]:
        taken.append(f"{name}a")
        first = audit.append(tx, AuditEvent("appliance-started", APPLIANCE, f"{name}a"))
        tx.emit("topic", f"{name}a", {})
        yield
        taken.append(f"{name}b")
        put(name)(tx)
        if fails:
            raise NotFound("no")
        return [first, audit.append(tx, AuditEvent("appliance-started", APPLIANCE, f"{name}b"))]

    return function


def test_functions_in_steps_take_each_step_together_and_their_entries_are_one_chain(store: Store) -> None:
    taken: list[str] = []
    assert in_steps(store, [two_steps(name, taken) for name in "xy"]) == [[1, 3], [2, 4]]
    assert taken == ["xa", "ya", "xb", "yb"]
    assert keys(store) == ["x", "y"]
    entries = store.read_sync(lambda tx: list(audit.rows(tx)))
    assert [row.entry["object"] for row in entries] == taken
    assert audit.verify(entries).seq == 4


@pytest.mark.parametrize("quick", [True, False])
def test_a_slow_subscriber_without_a_loop_hears_before_the_caller_too(store: Store, quick: bool) -> None:
    seen: list[str] = []

    def slow(events: list[OutboxRow]) -> None:
        time.sleep(0.05)
        seen.extend(one.key for one in events)

    async def run() -> list[str]:
        store.subscribe(lambda events: None)  # this loop is called as well, and was there first
        await asyncio.to_thread(store.subscribe, slow)
        await store.write(lambda tx: tx.emit("topic", "x", {}), quick=quick)
        return list(seen)

    assert asyncio.run(run()) == ["x"]


def test_where_one_in_steps_fails_all_run_once_more_and_each_of_them_whole(store: Store) -> None:
    taken: list[str] = []
    seen: list[OutboxRow] = []
    store.subscribe(seen.extend)
    answers = in_steps(store, [two_steps(name, taken, fails=name == "y") for name in "xyz"])
    assert taken == ["xa", "ya", "za", "xb", "yb", "xa", "xb", "ya", "yb", "za", "zb"]
    assert (answers[0], answers[2]) == ([1, 2], [3, 4])
    assert isinstance(answers[1], NotFound)
    assert keys(store) == ["x", "z"]
    assert [row.key for row in seen] == ["xa", "za"]
    entries = store.read_sync(lambda tx: list(audit.rows(tx)))
    assert [row.entry["object"] for row in entries] == ["xa", "xb", "za", "zb"]
    assert audit.verify(entries).seq == 4


def test_one_that_fails_before_its_first_step_fails_alone(store: Store) -> None:
    def refuses(tx: Tx) -> Way[None]:
        raise NotFound("no")

    taken: list[str] = []
    answers = in_steps(store, [two_steps("x", taken), refuses, two_steps("y", taken)])
    assert isinstance(answers[1], NotFound)
    assert (answers[0], answers[2]) == ([1, 2], [3, 4])
    assert keys(store) == ["x", "y"]


def test_functions_of_one_step_and_of_two_share_a_group_and_one_chain(store: Store) -> None:
    taken: list[str] = []
    seen: list[OutboxRow] = []

    def whole(tx: Tx) -> int:
        tx.emit("topic", "whole", {})
        return audit.append(tx, AuditEvent("appliance-started", APPLIANCE, "whole"))

    async def run() -> list:
        store.subscribe(seen.extend)
        ways = [store.write_in_steps(two_steps(name, taken)) for name in "xy"]
        return list(await asyncio.gather(ways[0], store.write(whole, quick=True), ways[1]))

    assert asyncio.run(run()) == [[1, 4], 2, [3, 5]]
    entries = store.read_sync(lambda tx: list(audit.rows(tx)))
    assert [row.entry["object"] for row in entries] == ["xa", "whole", "ya", "xb", "yb"]
    assert audit.verify(entries).seq == 5
    assert [(row.id, row.key) for row in seen] == [(1, "whole"), (2, "xa"), (3, "ya")]


def test_no_step_is_taken_after_one_that_ended_the_transaction(store: Store) -> None:
    store.write_sync(put("a"))
    taken: list[str] = []

    def ends(tx: Tx) -> Way[None]:
        yield
        with contextlib.suppress(Conflict):
            tx.execute(text("INSERT OR ROLLBACK INTO meta (key, value) VALUES ('a', 'v')"))
        yield

    answers = in_steps(store, [ends, two_steps("x", taken)])
    assert [type(one) for one in answers] == [StoreUnavailable, StoreUnavailable]
    assert taken == ["xa"]
    assert keys(store) == ["a"]
    assert store.read_sync(lambda tx: audit.last_seq(tx)) == 0


def test_entries_and_events_of_a_group_are_written_in_the_order_of_its_functions(store: Store) -> None:
    seen: list[OutboxRow] = []
    store.subscribe(seen.extend)

    def told(name: str, fail: bool = False):
        def function(tx: Tx) -> list[int]:
            seqs = []
            for part in "ab":
                seqs.append(audit.append(tx, AuditEvent("appliance-started", APPLIANCE, object=name + part)))
                tx.emit("topic", name + part, {"part": part})
                tx.scalar(select(func.count()).select_from(schema.meta))  # what is read makes the rows go in
            if fail:
                raise NotFound("no")
            return seqs

        return function

    results = group_of(store, [told("1"), told("2", fail=True), told("3")])
    assert (results[0], results[2]) == ([1, 2], [3, 4])
    entries = store.read_sync(lambda tx: list(audit.rows(tx)))
    assert [row.entry["object"] for row in entries] == ["1a", "1b", "3a", "3b"]
    assert audit.verify(entries).seq == 4
    assert [(row.id, row.key) for row in seen] == [(1, "1a"), (2, "1b"), (3, "3a"), (4, "3b")]
    stored = store.read_sync(lambda tx: tx.all(select(schema.outbox).order_by(schema.outbox.c.id)))
    assert [(row.id, row.key, row.body) for row in stored] == [(row.id, row.key, row.body) for row in seen]


@pytest.mark.parametrize("body", [{"x": "\ud800"}, {"x": b"x"}, {"x": float("nan")}], ids=["surrogate", "bytes", "nan"])
def test_an_event_that_cannot_be_written_fails_in_its_own_function(store: Store, body: dict) -> None:
    results = group_of(store, [put("a"), lambda tx: tx.emit("topic", "k", body), put("b")])
    assert isinstance(results[1], (UnicodeEncodeError, TypeError, ValueError))
    assert keys(store) == ["a", "b"]


def test_outbox_rows_reach_subscribers_in_order_and_before_the_writer_is_answered(store: Store) -> None:
    async def run() -> None:
        seen: list[OutboxRow] = []
        store.subscribe(seen.extend)
        for number in range(5):
            await store.write(lambda tx, n=number: tx.emit("topic", str(n), {"n": n}))
            assert [row.key for row in seen] == [str(n) for n in range(number + 1)]
        assert [row.id for row in seen] == [1, 2, 3, 4, 5]
        assert seen[3].body == {"n": 3}

    asyncio.run(run())


class LeavesLate:
    """The writer's lock; the committing thread lets go of it and then gets no processor until `may_go`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire
        self.has_let_go, self.may_go = threading.Event(), threading.Event()

    def release(self) -> None:
        self._lock.release()
        if threading.current_thread().name == "store-committer":
            self.has_let_go.set()
            assert self.may_go.wait(30)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_events_come_in_the_order_of_commits_where_one_thread_overtakes_the_other(store: Store) -> None:
    lock = store._writer._lock = LeavesLate()
    everywhere: list[str] = []
    store.subscribe(lambda events: everywhere.extend(one.key for one in events))

    async def run() -> list[str]:
        seen: list[str] = []
        store.subscribe(lambda events: seen.extend(one.key for one in events))
        first = asyncio.create_task(store.write(lambda tx: tx.emit("topic", "first", {}), quick=True))
        assert await asyncio.to_thread(lock.has_let_go.wait, 30)
        await store.write(lambda tx: tx.emit("topic", "second", {}))
        lock.may_go.set()
        await first
        return seen

    try:
        assert asyncio.run(run()) == ["first", "second"]
    finally:
        lock.may_go.set()
    assert everywhere == ["first", "second"]


def test_what_is_queued_when_the_store_closes_is_committed_and_answered(store: Store) -> None:
    async def run() -> list[OutboxRow]:
        writing = [
            asyncio.create_task(store.write(lambda tx, n=n, q=q: tx.emit("t", f"{n} {q}", {}), quick=q))
            for n in range(3)
            for q in (True, False)
        ]
        await asyncio.sleep(0)
        store.close()
        return await asyncio.wait_for(asyncio.gather(*writing), 30)

    assert sorted(row.id for row in asyncio.run(run())) == [1, 2, 3, 4, 5, 6]


def test_what_was_rolled_back_is_not_emitted(store: Store) -> None:
    seen: list[OutboxRow] = []
    store.subscribe(seen.extend)

    def fails(tx: Tx) -> None:
        tx.emit("topic", "no", {})
        raise NotFound("no")

    with pytest.raises(NotFound):
        store.write_sync(fails)
    store.write_sync(lambda tx: tx.emit("topic", "yes", {}))
    assert [row.key for row in seen] == ["yes"]


def test_the_outbox_keeps_its_last_rows_only(store: Store) -> None:
    count = select(func.count()).select_from(schema.outbox)

    def emit_many(tx: Tx) -> None:
        tx.execute(text("INSERT INTO outbox (id, time, topic, key, body) VALUES (150000, 0, 't', 'k', '{}')"))
        tx.execute(text("INSERT INTO outbox (id, time, topic, key, body) VALUES (1, 0, 't', 'k', '{}')"))

    store.write_sync(emit_many)
    assert store.read_sync(lambda tx: tx.scalar(count)) == 2
    assert store.write_sync(lambda tx: tx.emit("t", "new", {})).id == 150_001
    assert store.read_sync(lambda tx: tx.scalar(count)) == 2


def test_a_failing_subscriber_disturbs_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[OutboxRow] = []

    def broken(rows: list[OutboxRow]) -> None:
        raise RuntimeError("subscriber")

    store.subscribe(broken)
    store.subscribe(seen.extend)
    store.write_sync(lambda tx: tx.emit("topic", "a", {}))
    assert len(seen) == 1
    assert "subscriber-failed" in caplog.text


def test_a_one_time_value_is_spent_once_by_64_racing_writers(store: Store) -> None:
    store.write_sync(put("token", "fresh"))
    spend = (
        update(schema.meta)
        .where(schema.meta.c.key == bindparam("k"), schema.meta.c.value == "fresh")
        .values(value="spent")
    )

    async def run() -> int:
        results = await asyncio.gather(
            *(store.write(lambda tx: tx.execute(spend, {"k": "token"}).rowcount) for _ in range(64))
        )
        return sum(results)

    assert asyncio.run(run()) == 1


def test_readers_see_a_snapshot_and_cannot_write(store: Store) -> None:
    store.write_sync(put("a"))

    def read(tx: Tx) -> int:
        before = len(tx.all(ALL))
        writer = threading.Thread(target=lambda: store.write_sync(put("b")))
        writer.start()
        writer.join()
        assert len(tx.all(ALL)) == before
        return before

    assert store.read_sync(read) == 1
    assert keys(store) == ["a", "b"]
    with pytest.raises((StoreUnavailable, sqlite3.OperationalError)):
        store.read_sync(put("c"))


def test_a_reading_function_can_neither_emit_nor_append(store: Store) -> None:
    with pytest.raises(RuntimeError):
        store.read_sync(lambda tx: tx.emit("topic", "k", {}))
    with pytest.raises(RuntimeError):
        store.read_sync(lambda tx: audit.append(tx, AuditEvent("appliance-started", APPLIANCE)))


def test_below_the_watermark_nothing_is_written_but_revocations_are(tmp_path: Path) -> None:
    store = Store.open(url(tmp_path), FixedClock(), create=True, free_bytes=1 << 60)
    with pytest.raises(DiskFull) as refused:
        store.write_sync(put("a"))
    assert refused.value.fields["retry_after_seconds"] > 0
    store.write_sync(put("b"), essential=True)
    assert keys(store) == ["b"]
    store.close()


def test_a_removed_or_replaced_database_stops_writing(store: Store, tmp_path: Path) -> None:
    store.write_sync(put("a"))
    file = tmp_path / "appliance.db"
    shutil.move(file, tmp_path / "moved.db")
    with pytest.raises(StoreUnavailable):
        store.write_sync(put("b"))
    file.touch()
    with pytest.raises(StoreUnavailable):
        store.write_sync(put("b"))
    file.unlink()
    shutil.move(tmp_path / "moved.db", file)
    store.write_sync(put("c"))
    assert keys(store) == ["a", "c"]


@pytest.mark.slow
def test_a_database_held_by_another_process_is_busy_and_recovers(store: Store, tmp_path: Path) -> None:
    store.write_sync(put("a"))
    other = sqlite3.connect(tmp_path / "appliance.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        store.write_sync(put("b"))
    other.execute("ROLLBACK")
    other.close()
    store.write_sync(put("c"))
    assert keys(store) == ["a", "c"]


def test_the_audit_head_follows_another_process(store: Store, tmp_path: Path) -> None:
    def append(tx: Tx) -> int:
        return audit.append(tx, AuditEvent("appliance-started", APPLIANCE))

    other = Store.open(url(tmp_path), FixedClock())
    assert [store.write_sync(append), other.write_sync(append), store.write_sync(append)] == [1, 2, 3]
    other.close()
    assert store.read_sync(lambda tx: audit.verify(audit.rows(tx))).seq == 3


def test_a_closed_store_refuses(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable):
        store.write_sync(put("a"))


def test_a_full_disk_under_the_database_refuses_and_recovers(tmp_path: Path) -> None:
    store = Store.open(url(tmp_path), FixedClock(), create=True)
    pages = store.write_sync(lambda tx: tx.scalar(text("PRAGMA page_count")))
    store.write_sync(lambda tx: tx.execute(text(f"PRAGMA max_page_count = {pages + 4}")))
    with pytest.raises(DiskFull):
        for number in range(100):
            store.write_sync(put(f"k{number}", "v" * 2000))
    kept = keys(store)
    store.write_sync(lambda tx: tx.execute(text("PRAGMA max_page_count = 1000000")))
    store.write_sync(put("after"))
    assert keys(store) == ["after", *kept]
    store.close()


def test_meta_values_are_replaced(store: Store) -> None:
    store.write_sync(lambda tx: meta.put(tx, "k", "1"))
    store.write_sync(lambda tx: meta.put(tx, "k", "2"))
    assert store.read_sync(lambda tx: meta.get(tx, "k")) == "2"
    assert store.read_sync(lambda tx: meta.get(tx, "other")) is None


def test_open_files_do_not_grow(store: Store) -> None:
    async def run() -> None:
        await asyncio.gather(*(store.write(put(f"k{n}")) for n in range(50)))
        everybody = threading.Barrier(4)  # each of the reading threads opens its connection
        await asyncio.gather(*(store.read(lambda tx: everybody.wait(5)) for _ in range(4)))
        await asyncio.gather(*(store.read(lambda tx: tx.all(ALL)) for _ in range(50)))

    asyncio.run(run())
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(asyncio.wait_for(store.read(lambda tx: tx.all(ALL)), 60))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def emit(key: str) -> Callable[[Tx], None]:
    """A transaction with an event and an audit entry."""

    def write(tx: Tx) -> None:
        tx.emit("test", key, {})
        audit.append(tx, AuditEvent("appliance-started", APPLIANCE, object=key))

    return write


class Listener:
    """One of two processes, as far as the store can tell: a store of its own on the same file."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = Store.open(url(tmp_path), FixedClock())
        self.told: list[tuple[int, str]] = []
        self.store.subscribe(lambda events: self.told.extend((one.id, one.key) for one in events))


def test_each_of_two_stores_on_one_file_hears_every_event_once_in_the_order_of_commits(
    store: Store, tmp_path: Path
) -> None:
    store.write_sync(emit("before"))
    one, other = Listener(tmp_path), Listener(tmp_path)
    for at in range(6):
        (one if at % 3 else other).store.write_sync(emit(f"e{at}"))
    with pytest.raises(NotFound):  # even by a transaction of which nothing stays
        one.store.write_sync(refuse)
    other.store.write_sync(lambda tx: None)
    for each in (one, other):
        assert each.told == [(at + 2, f"e{at}") for at in range(6)]
        each.store.close()
    assert store.read_sync(lambda tx: audit.verify(audit.rows(tx))).seq == 7


def refuse(tx: Tx) -> None:
    tx.emit("test", "never", {})
    raise NotFound("no")


def test_a_store_that_follows_hears_of_others_without_writing_anything_itself(store: Store, tmp_path: Path) -> None:
    async def run() -> None:
        mine = Listener(tmp_path)
        following = asyncio.create_task(mine.store.follow(0.01))
        store.write_sync(emit("a"))
        async with asyncio.timeout(60):
            while not mine.told:
                await asyncio.sleep(0.01)
        assert mine.told == [(1, "a")]
        await asyncio.sleep(0.05)
        assert mine.told == [(1, "a")]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await asyncio.to_thread(mine.store.close)

    asyncio.run(run())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have a niceness of their own on Linux alone")
def test_the_writers_thread_gives_way_and_the_committers_does_not(store: Store) -> None:
    asyncio.run(store.write(lambda tx: None))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    nice = {one.name: os.getpriority(os.PRIO_PROCESS, one.native_id or 0) for one in threading.enumerate()}
    assert (nice["store-writer"], nice["store-committer"]) == (min(19, own + 10), own)
