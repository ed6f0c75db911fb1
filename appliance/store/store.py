"""Store: the one door to the database; services hand it functions over a Tx (design D-6)."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine

from appliance.clock import Clock
from appliance.cohort import Way
from appliance.errors import StoreMissing, StoreUnavailable
from appliance.store import heard
from appliance.store.columns import to_micros
from appliance.store.engine import file_of, migration_engine, reader_engine, writer_engine
from appliance.store.jobs import Job, Subscriber
from appliance.store.statements import Statements
from appliance.store.transaction import DRIVER_ERRORS, OutboxRow, Tx, raise_refusal, refusals
from appliance.store.upgrade import upgrade
from appliance.store.writer import Writer
from est.errors import Refusal

T = TypeVar("T")
_READERS = 4
_log = logging.getLogger(__name__)


class Store:
    """Transactions as functions: `await store.write(lambda tx: proxies.add(tx, ...))`.

    A writing function is answered only after its COMMIT, runs on the writer thread or, if it is quick, on the event
    loop, must not block, and may raise a Refusal: then nothing of it is kept. A reading function sees one consistent
    snapshot.
    """

    def __init__(
        self, engine: Engine, readers: Engine, clock: Clock, path: Path, free_bytes: int, is_shared: bool = False
    ) -> None:
        self._engine = engine
        self._readers = readers
        self._clock = clock
        self._path = path
        self._writer = Writer(engine, clock, path, free_bytes, is_shared=is_shared)
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="store-reader")
        self._closed = False
        self._local = threading.local()
        self._open_readers: list[_Reader] = []
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, url: str, clock: Clock, *, create: bool = False, free_bytes: int = 0, is_shared: bool = False
    ) -> Store:
        """Open the database, bringing its tables up to date.

        With `create` the file is made, mode 0600, and must not exist; without, a missing file raises StoreMissing
        (an empty store would have forgotten every revocation), a foreign one StoreForeign. `is_shared` says that other
        processes write to it at the same time.
        """
        path = file_of(url)
        if create:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError as error:
                raise StoreUnavailable("there is a database already", path=str(path)) from error
            except OSError as error:
                raise StoreUnavailable("the database file cannot be made", path=str(path)) from error
        elif not path.is_file():
            raise StoreMissing("there is no database; restore a backup or initialise a new home", path=str(path))
        with refusals():
            upgrade(migration_engine(url), create=create)
            return cls(writer_engine(url), reader_engine(url), clock, path, free_bytes, is_shared)

    def close(self) -> None:
        """Finish queued transactions and close every connection; safe to call twice."""
        self._closed = True
        self._writer.stop()
        self._pool.shutdown(wait=True)
        with self._lock:
            readers, self._open_readers = self._open_readers, []
        for reader in readers:
            reader.connection.close()

    async def write(self, function: Callable[[Tx], T], *, essential: bool = False, quick: bool = False) -> T:
        """Run `function` in a transaction and answer after its COMMIT.

        `quick` is for a handful of point statements: they run on the event loop and save the way to another thread
        and back. Where another function of its group fails, a quick one is undone and run once more, so nothing that it
        does outside the transaction may count twice. `essential` work (a revocation) is done even below the disk
        watermark. Raises what the function raises, StoreBusy, DiskFull or StoreUnavailable.
        """
        return await self._submit(partial(_whole, function), essential, quick)

    async def write_in_steps(self, function: Callable[[Tx], Way[T]]) -> T:
        """A quick write() of several steps, each of them taken by everybody in the group before the next (decision 22).

        Between two steps others may write in the same transaction. Events are told in the order in which functions end,
        so one that matters to others is emitted in the last step.
        """
        return await self._submit(function, essential=False, quick=True)

    async def _submit(self, function: Callable[[Tx], Way[T]], essential: bool, quick: bool) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._writer.submit(Job(function, loop, future, essential, quick))
        return await future

    async def read(self, function: Callable[[Tx], T]) -> T:
        """Run `function` on a reading connection in another thread; StoreUnavailable after close()."""
        if self._closed:
            raise StoreUnavailable("the store is closed", retry_after_seconds=5)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_sync, function)

    def write_sync(self, function: Callable[[Tx], T], *, essential: bool = False) -> T:
        """write() for callers without an event loop; never call it on one."""
        future: Future[T] = Future()
        self._writer.submit(Job(partial(_whole, function), None, future, essential))
        return future.result()

    def read_sync(self, function: Callable[[Tx], T]) -> T:
        """read() on the calling thread; on the event loop only for a handful of point lookups."""
        if self._closed:
            raise StoreUnavailable("the store is closed", retry_after_seconds=5)
        reader = self._reader()
        try:
            reader.begin()
            try:
                now = self._clock.now()
                return function(Tx(reader.statements, now, to_micros(now), None))
            finally:
                reader.end()
        except DRIVER_ERRORS as error:
            raise_refusal(error)

    def subscribe(self, callback: Callable[[list[OutboxRow]], None]) -> None:
        """Call back with every committed group's outbox rows, in order, before its writers are answered.

        On the running event loop if there is one, else on whatever thread ends the group: such a callback must be short
        and wait for nothing of the store's.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self._writer.subscribe(Subscriber(callback, loop))

    async def follow(self, seconds: float) -> None:
        """Look this often for events of other processes on this database, until cancelled; subscribers hear of them.

        Without it they are heard of with this process's own next transaction.
        """
        while True:
            await asyncio.sleep(seconds)
            try:
                if self.read_sync(heard.head) > self._writer.heard:
                    await self.write(_nothing, essential=True)
            except Refusal as refusal:  # busy, or a full disk: the next look may find it better
                _log.warning("event=follow-failed reason=%s", refusal.reason)
            except Exception:  # noqa: BLE001 - supervisor: whoever does not follow knows of no revocation elsewhere
                _log.exception("event=follow-failed")

    @property
    def waiting(self) -> int:
        """How many functions wait for the writer."""
        return self._writer.waiting

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    def _reader(self) -> _Reader:
        reader = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = _Reader(self._readers)
            with self._lock:
                self._open_readers.append(reader)
        return reader


def _whole(function: Callable[[Tx], T], tx: Tx) -> Way[T]:
    """A function as a way of one step."""
    yield from ()
    return function(tx)


def _nothing(tx: Tx) -> None:
    """A transaction that only takes up what others wrote."""


class _Reader:
    """One thread's reading connection."""

    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect()
        dbapi: Any = self.connection.connection.dbapi_connection
        self._dbapi = dbapi
        self._cursor = dbapi.cursor()
        self.statements = Statements(self.connection, self._cursor)
        # SQLAlchemy believes in one long transaction of this connection; BEGIN and ROLLBACK are said to the driver.
        self.connection.begin()
        self._cursor.execute("ROLLBACK")

    def begin(self) -> None:
        self._cursor.execute("BEGIN")

    def end(self) -> None:
        if self._dbapi.in_transaction:
            self._cursor.execute("ROLLBACK")
