"""Tx: what a function inside a transaction may do; it cannot commit, and it cannot reach the connection."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.expression import Executable

from appliance.errors import Conflict, DiskFull, StoreBusy, StoreUnavailable
from appliance.store import schema
from appliance.store.statements import Result, Row

_EMIT = insert(schema.outbox)
_NOTHING: Mapping[str, Any] = {}

_DUPLICATE = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})
_FULL = frozenset({sqlite3.SQLITE_FULL})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One event for whoever keeps a copy of the store's facts; ids grow in commit order."""

    id: int
    time: datetime
    topic: str
    key: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class Chain:
    """The head of the audit log, kept in memory so that appending needs no read; restored when a function fails."""

    seq: int
    hash: bytes
    time: datetime | None


class Tx:
    """One transaction, seen by the function that runs in it.

    Statements are Core statements kept as module constants; values come by name. A duplicate key raises Conflict, a
    full disk DiskFull, a locked database StoreBusy, everything else that the database itself refuses StoreUnavailable.
    """

    __slots__ = ("_run", "chain", "emitted", "now")

    def __init__(self, run: Any, now: datetime, chain: Chain | None) -> None:
        self._run = run
        self.now = now
        self.chain = chain
        self.emitted: list[OutboxRow] = []

    def execute(self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /) -> Result:
        """Run one statement; the result has rows, rowcount and lastrowid."""
        try:
            return self._run(statement, values)  # type: ignore[no-any-return]
        except (sqlite3.Error, DBAPIError) as error:
            raise_refusal(error)

    def execute_many(self, statement: Executable, rows: Sequence[Mapping[str, Any]], /) -> None:
        """Run one statement that answers nothing for each of the rows, which all have the same names."""
        if not rows:
            return
        try:
            self._run(statement, list(rows))
        except (sqlite3.Error, DBAPIError) as error:
            raise_refusal(error)

    def one(self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /) -> Row | None:
        """The first row, or None."""
        return self.execute(statement, values).first()

    def all(self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /) -> list[Row]:
        """Every row."""
        return self.execute(statement, values).all()

    def scalar(self, statement: Executable, values: Mapping[str, Any] = _NOTHING, /) -> Any:
        """The first column of the first row, or None."""
        return self.execute(statement, values).scalar()

    def emit(self, topic: str, key: str, body: Mapping[str, Any]) -> OutboxRow:
        """Write an outbox row; subscribers get it after the COMMIT, in order."""
        result = self.execute(_EMIT, {"time": self.now, "topic": topic, "key": key, "body": body})
        row = OutboxRow(result.lastrowid or 0, self.now, topic, key, body)
        self.emitted.append(row)
        return row


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


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Translate driver errors of a block."""
    try:
        yield
    except (sqlite3.Error, DBAPIError) as error:
        raise_refusal(error)
