"""Engines over one database file: for migrations, for the writer thread, for readers.

The standard sqlite3 driver would open transactions on its own terms, and a RELEASE would then commit at once; so its
autocommit is off (`isolation_level=None`) and BEGIN IMMEDIATE is said by us.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.pool import NullPool

_WRITER_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA busy_timeout=3000",
    "PRAGMA foreign_keys=OFF",
    "PRAGMA temp_store=MEMORY",
    # Indexes over random numbers touch pages all over the file: 16 MiB of them stay at hand, and those that change
    # again and again are copied into the file half as often as by default.
    "PRAGMA cache_size=-16384",
    "PRAGMA wal_autocheckpoint=2000",
    "PRAGMA trusted_schema=OFF",
)
_READER_PRAGMAS = ("PRAGMA busy_timeout=3000", "PRAGMA query_only=ON", "PRAGMA trusted_schema=OFF")


def file_of(url: str) -> Path:
    """The database file that an SQLite URL names; ValueError for anything else."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise ValueError(f"the store needs an SQLite file URL, not {parsed.render_as_string()}")
    return Path(parsed.database)


def migration_engine(url: str) -> Engine:
    """An engine whose every transaction is BEGIN IMMEDIATE on a WAL database with full synchronisation."""
    engine = writer_engine(url)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def writer_engine(url: str) -> Engine:
    """The same without the BEGIN: the writer thread says BEGIN and COMMIT itself, on the driver's connection."""
    return _engine(url, _WRITER_PRAGMAS)


def reader_engine(url: str) -> Engine:
    """An engine whose connections cannot write; a transaction is a consistent snapshot."""
    engine = _engine(url, _READER_PRAGMAS)
    event.listen(engine, "begin", _begin_deferred)
    return engine


def _engine(url: str, pragmas: tuple[str, ...]) -> Engine:
    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args={"isolation_level": None, "check_same_thread": False, "cached_statements": 512},
    )

    def on_connect(dbapi: Any, record: Any) -> None:
        cursor = dbapi.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    event.listen(engine, "connect", on_connect)
    return engine


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_deferred(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
