"""Tx: what a function inside a transaction may do; it cannot commit, and it cannot reach the connection."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import Executable

from appliance.errors import Conflict, DiskFull, StoreBusy, StoreUnavailable
from appliance.store import schema
from appliance.store.statements import Plain, Result, Row, Statements, plain
from est.json_text import encoder_of

_EMIT = plain(insert(schema.outbox), "time", "topic", "key", "body")
_APPEND = plain(insert(schema.audit), "seq", "time", "event", "body", "prev", "hash")
_encode = encoder_of()
_NOTHING: Mapping[str, Any] = {}

_DUPLICATE = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})
_FULL = frozenset({sqlite3.SQLITE_FULL})
DRIVER_ERRORS = (sqlite3.Error, DBAPIError)
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


@dataclass(slots=True)
class OutboxRow:
    """One event for whoever keeps a copy of the store's facts; ids grow in commit order, 0 is not written yet."""

    id: int
    time: datetime
    topic: str
    key: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class Chain:
    """The head of the audit log, kept in memory so that appending needs no read; restored when a function fails.

    `stamped` and `stamp` are the last time that was written into an entry, and how.
    """

    seq: int
    hash: bytes
    time: datetime | None
    stamped: datetime | None = None
    stamp: str = ""


@dataclass(slots=True)
class Written:
    """Rows of the two tables that only grow, in stored form: they are inserted together, at the end of a group."""

    audit: list[tuple[Any, ...]] = field(default_factory=list)
    outbox: list[tuple[Any, ...]] = field(default_factory=list)
    emitted: list[OutboxRow] = field(default_factory=list)

    def take(self, other: Written) -> None:
        """Add the rows of a function that succeeded."""
        self.audit += other.audit
        self.outbox += other.outbox
        self.emitted += other.emitted

    def insert(self, cursor: Any) -> None:
        """Insert everything and number the outbox rows."""
        audit, outbox, emitted = self.audit, self.outbox, self.emitted
        if audit:
            audit.sort()  # of functions in steps side by side; at its end the table grows without a page half empty
            cursor.executemany(_APPEND.sql, audit)
            self.audit = []
        if outbox:
            if len(outbox) > 1:
                cursor.executemany(_EMIT.sql, outbox[:-1])
            cursor.execute(_EMIT.sql, outbox[-1])  # alone, because only this way of two tells the id
            first = cursor.lastrowid - len(emitted) + 1
            for at, row in enumerate(emitted):
                row.id = first + at
            self.outbox = []


class Tx:
    """One transaction, seen by the function that runs in it.

    Statements are Core statements kept as module constants; values come by name. Plain ones take a tuple in stored
    form. A duplicate key raises Conflict, a full disk DiskFull, a locked database StoreBusy, everything else that the
    database itself refuses StoreUnavailable.
    """

    __slots__ = ("_cursor", "_statements", "chain", "micros", "now", "written")

    def __init__(self, statements: Statements, now: datetime, micros: int, chain: Chain | None) -> None:
        self._statements = statements
        self._cursor = statements.cursor
        self.now = now
        self.micros = micros
        self.chain = chain
        self.written = Written()

    def execute(self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /) -> Result:
        """Run one statement; the result has rows, rowcount and lastrowid."""
        try:
            if self.written.audit:  # whoever reads finds what this function wrote
                self._insert_audit()
            return self._statements.run(statement, values)
        except (sqlite3.Error, DBAPIError) as error:
            raise_refusal(error)

    def execute_many(self, statement: Executable, rows: Sequence[Mapping[str, Any]], /) -> None:
        """Run one statement that answers nothing for each of the rows, which all have the same names."""
        if not rows:
            return
        try:
            self._statements.run_many(statement, rows)
        except (sqlite3.Error, DBAPIError) as error:
            raise_refusal(error)

    def insert_many(self, statement: Plain, rows: Sequence[tuple[Any, ...]], /) -> None:
        """Run a plain INSERT for each of the rows, with nothing of Python in between."""
        try:
            self._cursor.executemany(statement.sql, rows)
        except sqlite3.Error as error:
            raise_refusal(error)

    def one(self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /) -> Row | None:
        """The first row, or None."""
        try:
            if self.written.audit:
                self._insert_audit()
            return self._statements.one(statement, values)
        except (sqlite3.Error, DBAPIError) as error:
            raise_refusal(error)

    def all(self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /) -> list[Row]:
        """Every row."""
        return self.execute(statement, values).all()

    def some(
        self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /, *, count: int
    ) -> Iterator[list[Row]]:
        """Every row, so many at a time; to be read to the end before anything else is asked."""
        try:
            if self.written.audit:
                self._insert_audit()
            yield from self._statements.some(statement, values, count)
        except (sqlite3.Error, DBAPIError) as error:
            raise_refusal(error)

    def scalar(self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /) -> Any:
        """The first column of the first row, or None."""
        row = self.one(statement, values)
        return None if row is None else row[0]

    def insert(self, statement: Plain, values: tuple[Any, ...], /) -> int:
        """Run a plain INSERT; the key of the new row."""
        try:
            return self._cursor.execute(statement.sql, values).lastrowid or 0
        except sqlite3.Error as error:
            raise_refusal(error)

    def change(self, statement: Plain, values: tuple[Any, ...], /) -> int:
        """Run a plain statement that changes rows; how many it changed."""
        try:
            return self._cursor.execute(statement.sql, values).rowcount  # type: ignore[no-any-return]
        except sqlite3.Error as error:
            raise_refusal(error)

    def row(self, statement: Plain, values: tuple[Any, ...], /) -> tuple[Any, ...] | None:
        """The first row of a plain SELECT, or None."""
        try:
            return self._cursor.execute(statement.sql, values).fetchone()  # type: ignore[no-any-return]
        except sqlite3.Error as error:
            raise_refusal(error)

    def rows(self, statement: Plain, values: tuple[Any, ...], /) -> list[tuple[Any, ...]]:
        """Every row of a plain SELECT."""
        try:
            return self._cursor.execute(statement.sql, values).fetchall()  # type: ignore[no-any-return]
        except sqlite3.Error as error:
            raise_refusal(error)

    def emit(self, topic: str, key: str, body: Mapping[str, Any]) -> OutboxRow:
        """Write an outbox row; subscribers get it after the COMMIT, in order."""
        if self.chain is None:
            raise RuntimeError("a reading transaction has no outbox")
        text = _encode(body)
        (
            key + text
        ).encode()  # what UTF-8 cannot hold fails here, in the function that is to blame, not with its whole group
        row = OutboxRow(0, self.now, topic, key, body)
        written = self.written
        written.outbox.append((self.micros, topic, key, text))
        written.emitted.append(row)
        return row

    def append(self, seq: int, event: str, body: str, previous: bytes, digest: bytes) -> None:
        """Write a row of the audit log; only `audit.append` knows what belongs into it."""
        self.written.audit.append((seq, self.micros, event, body, previous, digest))

    def _insert_audit(self) -> None:
        rows, self.written.audit = self.written.audit, []
        self._cursor.executemany(_APPEND.sql, rows)


def raise_refusal(error: BaseException) -> NoReturn:
    """Raise the refusal that a driver's error means; errors that are our own mistakes are raised as they came."""
    cause: BaseException = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        cause = error.orig
    code = getattr(cause, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if code in _DUPLICATE:
        raise Conflict("a record with this key exists already") from cause
    if primary in _FULL:
        raise DiskFull("the disk is full", retry_after_seconds=30) from cause
    if primary in _BUSY:
        raise StoreBusy("the database is held by another process", retry_after_seconds=5) from cause
    if isinstance(cause, sqlite3.IntegrityError | sqlite3.InterfaceError | sqlite3.ProgrammingError):
        raise cause
    if (
        isinstance(cause, sqlite3.OperationalError)
        and primary == sqlite3.SQLITE_ERROR
        and "no such table" not in str(cause)
    ):
        raise cause
    if isinstance(cause, sqlite3.Error):
        raise StoreUnavailable("the database cannot be used", retry_after_seconds=30) from cause
    raise cause


def meant_by(error: BaseException) -> BaseException:
    """The refusal that a driver's error means; any other error is itself."""
    if isinstance(error, DRIVER_ERRORS):
        try:
            raise_refusal(error)
        except BaseException as meant:  # noqa: BLE001 - it is handed back, not handled
            return meant
    return error


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Translate driver errors of a block."""
    try:
        yield
    except (sqlite3.Error, DBAPIError) as error:
        raise_refusal(error)
