"""The writer: whole transactions queue up, are committed in groups, and are answered after their COMMIT.

Each function runs between SAVEPOINT and RELEASE of one fixed name, directly on the driver's connection, so a failing
one is undone alone and the rest of its group commits. Quick functions do so only once one of their group has failed:
then the whole group is undone and the others run once more. For behind a savepoint the database copies every page
before it is changed, which costs a good part of what those functions do. Audit and outbox rows of a group are inserted
together when all its functions have run. Functions that stand and fall together take their steps side by side (decision
22). Subscribers hear of a group before its callers do, so whoever was answered finds the in-memory copies up to date.

There are two queues over the one connection. Ordinary functions run on the writer thread. Quick ones, a handful of
point statements each, run on the event loop itself and only their COMMIT, which waits for the disk, goes to another
thread: two threads that work in turns hand the interpreter over at every statement, which costs more than the
statements do. A lock, held from BEGIN to COMMIT, keeps the two apart.

Another process may write to the same file. A group that finds so takes up what that one told the outbox before it
adds its own, so every process hears of every event in the order of the commits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.engine import Connection

from appliance.clock import Clock
from appliance.cohort import Way
from appliance.errors import DiskFull, StoreBusy, StoreUnavailable
from appliance.store import schema
from appliance.store.columns import from_micros, to_micros
from appliance.store.hand_over import HandOver
from appliance.store.heard import Heard
from appliance.store.jobs import Deliveries, Job, Subscriber
from appliance.store.statements import Statements, plain
from appliance.store.transaction import Chain, OutboxRow, Tx, Written, meant_by
from est.errors import Refusal

_log = logging.getLogger(__name__)
_HEAD = plain(
    select(schema.audit.c.seq, schema.audit.c.hash, schema.audit.c.time).where(
        schema.audit.c.seq == select(func.max(schema.audit.c.seq)).scalar_subquery()
    )
)
_MAX_GROUP = 128
_NICE = 10
_PASSES = 4
"""How often the loop goes round before a group begins that is not expected to be alone."""
_MAX_WAITING = 10_000
_DISK_CHECK_SECONDS = 1.0
_ENDED = "the transaction was ended by the database"
_OUTBOX_KEPT = 100_000
_OUTBOX_SLACK = 5_000


@dataclass(slots=True)
class _Open:
    """A quick group whose functions have run and whose COMMIT is under way."""

    group: list[Job]
    emitted: list[OutboxRow]
    head: tuple[int, bytes, Any]
    loop: asyncio.AbstractEventLoop


_Walking = tuple[Job, Tx, Way[Any] | None]
"""A function that is under way: None before its first step."""


class Writer:
    """The only one that writes; started by the constructor, ended by stop()."""

    def __init__(self, engine: Engine, clock: Clock, path: Path, free_bytes: int, *, is_shared: bool = False) -> None:
        """`is_shared`: other processes write too, and waiting for them is for the writer thread, not for the loop."""
        self._is_shared = is_shared
        self._engine = engine
        self._clock = clock
        self._path = path
        self._free_bytes = free_bytes
        self._disk_checked = float("-inf")
        self._disk_is_low = False
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        self._company = False
        self._subscribers: tuple[Subscriber, ...] = ()
        # SQLAlchemy believes in one long transaction of this connection; BEGIN and COMMIT are said to the driver.
        self._connection: Connection = engine.connect()
        self._connection.begin()
        dbapi: Any = self._connection.connection.dbapi_connection
        self._dbapi: Any = dbapi
        self._cursor: Any = dbapi.cursor()
        self._statements = Statements(self._connection, self._cursor)
        self._heard = Heard(self._statements)
        self._file = str(path)
        self._inode = _inode(self._file)
        self._version = -1
        self._outbox_due = _OUTBOX_KEPT
        self._chain = Chain(0, bytes(32), None)
        self._lock = threading.Lock()
        self._quick: deque[Job] = deque()
        self._turn_loop: asyncio.AbstractEventLoop | None = None
        self._calling: asyncio.AbstractEventLoop | None = None
        self._commits = HandOver[_Open]()
        self._deliveries = Deliveries()
        self._thread = threading.Thread(target=self._main, name="store-writer", daemon=True)
        self._committer = threading.Thread(target=self._commit_quick, name="store-committer", daemon=True)
        self._thread.start()
        self._committer.start()

    def submit(self, job: Job) -> None:
        """Queue a function; StoreUnavailable after stop(), StoreBusy when too many wait."""
        if self._closed:
            raise StoreUnavailable("the store is closed", retry_after_seconds=5)
        if self.waiting >= _MAX_WAITING:
            raise StoreBusy("too many transactions wait", retry_after_seconds=2)
        if self._is_shared or not job.quick or job.loop is None:
            self._jobs.put(job)
            return
        self._quick.append(job)
        if self._turn_loop is None or self._turn_loop.is_closed():
            self._turn_loop = job.loop
            job.loop.call_soon(self._turn, job.loop)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a subscriber; it hears of every group committed from now on."""
        self._subscribers = (*self._subscribers, subscriber)

    @property
    def waiting(self) -> int:
        """How many functions wait for their transaction."""
        return self._jobs.qsize() + len(self._quick)

    @property
    def heard(self) -> int:
        """Id of the newest event that subscribers were told of, or are being told of."""
        return self._heard.id

    def stop(self) -> None:
        """Finish what is queued, then end the thread and close its connection."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join()
        self._commits.put(None)
        self._committer.join()
        self._commits.close()
        while self._quick:  # the loop has no turn left for them
            group = [self._quick.popleft() for _ in range(min(len(self._quick), _MAX_GROUP))]
            self._commit(group)
        self._connection.close()

    def _main(self) -> None:
        if not self._is_shared:
            _give_way()
        while True:
            job = self._jobs.get()
            group: list[Job] = []
            while job is not None:
                group.append(job)
                if len(group) >= _MAX_GROUP:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(group)
            if job is None:
                return

    def _commit(self, group: list[Job]) -> None:
        """A whole group on this thread, from BEGIN to the answers."""
        emitted: list[OutboxRow] = []
        chain = self._chain
        with self._lock:
            head = (chain.seq, chain.hash, chain.time)
            try:
                self._check_file()
                if self._run_group(group, emitted):
                    self._end()
                self._heard.up_to(emitted)
            except BaseException as error:  # noqa: BLE001 - supervisor: whatever it was, every caller has to hear of it
                self._fail(group, emitted, head, error)
            loops = self._deliveries.add(self._subscribers, emitted, group)
        self._call_turn()
        self._answer(loops)

    def _turn(self, loop: asyncio.AbstractEventLoop, passes: int = 0) -> None:
        """On the event loop: run the functions of one quick group and hand its COMMIT over.

        A COMMIT costs as much as several functions. So where the group before was in company, this one waits while
        the loop goes round a few times, in well under a millisecond: whoever is on the way comes along.
        """
        if not self._quick:
            self._turn_loop = None
            return
        if self._company and passes < _PASSES:
            loop.call_soon(self._turn, loop, passes + 1)
            return
        self._calling = loop
        if not self._lock.acquire(blocking=False):
            return  # whoever holds it calls back when it is done
        self._calling = None
        if self._closed:
            self._lock.release()
            return
        group = [self._quick.popleft() for _ in range(min(len(self._quick), _MAX_GROUP))]
        self._company = len(group) > 1
        emitted: list[OutboxRow] = []
        chain = self._chain
        head = (chain.seq, chain.hash, chain.time)
        try:
            self._check_file()
            is_open = self._run_group(group, emitted)
        except BaseException as error:  # noqa: BLE001 - supervisor: whatever it was, every caller has to hear of it
            self._fail(group, emitted, head, error)
            is_open = False
        if is_open:
            self._commits.put(_Open(group, emitted, head, loop))
            return
        self._heard.up_to(emitted)
        loops = self._deliveries.add(self._subscribers, emitted, group)
        self._lock.release()
        self._answer(loops, but=loop)
        self._answered(loop)

    def _commit_quick(self) -> None:
        """On its own thread: the COMMIT of quick groups."""
        while (opened := self._commits.get()) is not None:
            try:
                self._end()
                self._heard.up_to(opened.emitted)
            except BaseException as error:  # noqa: BLE001 - supervisor: whatever it was, every caller has to hear of it
                self._fail(opened.group, opened.emitted, opened.head, error)
            loops = self._deliveries.add(self._subscribers, opened.emitted, opened.group)
            self._lock.release()
            self._answer(loops, but=opened.loop)
            self._call(opened.loop, self._answered)

    def _answered(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the event loop: tell subscribers and callers, then take the next quick group."""
        self._deliveries.run(loop)
        loop.call_soon(self._turn, loop)

    def _call_turn(self) -> None:
        """After a group of the other queue: a quick group may have found the lock taken."""
        loop, self._calling = self._calling, None
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._turn, loop)
            except RuntimeError:
                _log.warning("event=turn-dropped transactions=%d", len(self._quick))

    def _fail(
        self, group: list[Job], emitted: list[OutboxRow], head: tuple[int, bytes, Any], error: BaseException
    ) -> None:
        error = meant_by(error)
        chain = self._chain
        chain.seq, chain.hash, chain.time = head
        self._version = -1
        if not isinstance(error, (StoreBusy, DiskFull)):
            _log.error("event=commit-failed transactions=%d error=%r", len(group), error, exc_info=error)
        for job in group:
            job.error = job.error or error
        emitted.clear()

    def _run_group(self, group: list[Job], emitted: list[OutboxRow], *, is_second: bool = False) -> bool:
        """BEGIN and the functions; rolled back whole when the database itself fails.

        False if the transaction is over already: its only function failed.
        """
        execute = self._cursor.execute
        execute("BEGIN IMMEDIATE")
        try:
            version = execute("PRAGMA data_version").fetchone()[0]
            if version != self._version:  # another process wrote: our head of the audit log is old
                self._load_head()
                emitted += self._heard.others()
                self._version = version
            now = self._clock.now()
            micros = to_micros(now)
            jobs = self._with_room(group)
            is_apart = is_second or (len(group) > 1 and not all(job.quick for job in group))
            written = Written()
            if is_apart:
                for job in jobs:
                    self._run_apart(job, now, micros, written)
            elif not self._run(jobs, now, micros, written):
                execute("ROLLBACK")
                if len(group) == 1:
                    return False
                for one in group:  # the refusal too: it may rest on what has just been undone
                    one.result = one.error = None
                emitted.clear()
                self._version = -1  # what others wrote is taken up again, and what they write meanwhile
                return self._run_group(group, emitted, is_second=True)
            if not self._dbapi.in_transaction:
                raise StoreUnavailable(_ENDED, retry_after_seconds=5)
            written.insert(self._cursor)
            emitted += written.emitted
            if emitted and emitted[-1].id > self._outbox_due:
                execute("DELETE FROM outbox WHERE id <= ?", (emitted[-1].id - _OUTBOX_KEPT,))
                self._outbox_due = emitted[-1].id + _OUTBOX_SLACK
        except BaseException:  # whatever it was, the transaction must not stay open
            if self._dbapi.in_transaction:
                execute("ROLLBACK")
            raise
        return True

    def _end(self) -> None:
        """COMMIT; rolled back when it fails."""
        execute = self._cursor.execute
        # INSERT OR ROLLBACK, a full disk or an I/O error end the outer transaction; a commit would then succeed and
        # mean nothing.
        if not self._dbapi.in_transaction:
            raise StoreUnavailable(_ENDED, retry_after_seconds=5)
        try:
            execute("COMMIT")
        except BaseException:  # whatever it was, the transaction must not stay open
            if self._dbapi.in_transaction:
                execute("ROLLBACK")
            raise

    def _run_apart(self, job: Job, now: datetime, micros: int, written: Written) -> None:
        """One function behind a savepoint: it is undone alone if it fails."""
        execute = self._cursor.execute
        execute("SAVEPOINT t")
        if not self._run((job,), now, micros, written):
            execute("ROLLBACK TO t")
        execute("RELEASE t")

    def _run(self, jobs: Sequence[Job], now: datetime, micros: int, written: Written) -> bool:
        """Functions that stand and fall together, one step of everybody before the next of anybody.

        False if one failed: it has its error, and what all of them wrote is still to be undone. Raises StoreUnavailable
        if the transaction is not open any more after a step.
        """
        chain, dbapi = self._chain, self._dbapi
        seq, digest, time_of_last = chain.seq, chain.hash, chain.time
        walking: list[_Walking] = [(job, Tx(self._statements, now, micros, chain), None) for job in jobs]
        while walking:
            further: list[_Walking] = []
            for job, tx, way in walking:
                try:
                    if way is None:
                        way = job.function(tx)
                    next(way)
                except StopIteration as last:
                    job.result = last.value
                    written.take(tx.written)
                except BaseException as error:  # supervisor: the caller gets it, whatever it is
                    job.error = error
                    chain.seq, chain.hash, chain.time = seq, digest, time_of_last
                    if dbapi.in_transaction:
                        return False
                    if isinstance(error, Refusal):  # it is this one's; the others hear what happened to them
                        raise StoreUnavailable(_ENDED, retry_after_seconds=5) from error
                    raise
                else:
                    further.append((job, tx, way))
                if not dbapi.in_transaction:  # what follows would be outside any
                    raise StoreUnavailable(_ENDED, retry_after_seconds=5)
            walking = further
        return True

    def _load_head(self) -> None:
        row = self._cursor.execute(_HEAD.sql).fetchone()
        chain = self._chain
        chain.seq, chain.hash, chain.time = (row[0], row[1], from_micros(row[2])) if row else (0, bytes(32), None)

    def _check_file(self) -> None:
        if _inode(self._file) != self._inode:
            raise StoreUnavailable("the database file was removed or replaced", retry_after_seconds=30)

    def _with_room(self, group: list[Job]) -> list[Job]:
        """Those for whom the disk has room; the others get their refusal."""
        if not self._disk_low():
            return group
        for job in group:
            if not job.essential:
                job.error = DiskFull("the disk is nearly full", retry_after_seconds=30)
        return [job for job in group if job.essential]

    def _disk_low(self) -> bool:
        if not self._free_bytes:
            return False
        at = time.monotonic()
        if at - self._disk_checked >= _DISK_CHECK_SECONDS:
            self._disk_checked = at
            state = os.statvfs(self._path.parent)
            self._disk_is_low = state.f_bavail * state.f_frsize < self._free_bytes
        return self._disk_is_low

    def _answer(
        self,
        loops: Iterable[asyncio.AbstractEventLoop | None],
        *,
        but: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Have subscribers and callers told, each on its loop; the loop `but` is told otherwise."""
        for loop in loops:
            if loop is None:
                self._deliveries.run(None)
            elif loop is not but:
                self._call(loop, self._deliveries.run)

    def _call(self, loop: asyncio.AbstractEventLoop, function: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        try:
            loop.call_soon_threadsafe(function, loop)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            _log.warning("event=answer-dropped transactions=%d", self._deliveries.drop(loop))


def _inode(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)  # noqa: PTH116 - runs once per commit
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _give_way() -> None:
    """Let the other threads of this process go first where processors are few, as far as the system knows threads.

    What is written here can wait; decisions and quick transactions on the event loop cannot, and a scheduler would
    take the processor from them for milliseconds.
    """
    with contextlib.suppress(OSError, AttributeError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + _NICE))
