"""New databases for tests: the migrations run once per test run, and every store begins as a copy of what they made."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from appliance.clock import Clock
from appliance.store.engine import file_of
from appliance.store.store import Store
from tests.support import FixedClock


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.db"
        Store.open(f"sqlite:///{file}", FixedClock(), create=True).close()
        assert [one.name for one in Path(folder).iterdir()] == [file.name], "the log is part of the file again"
        return file.read_bytes()


def open_store(url: str, clock: Clock, **options: Any) -> Store:
    """As `Store.open`, with a new database where there is none; `create=True` has tests of its own."""
    path = file_of(url)
    if not path.exists():
        path.touch(0o600)
        path.write_bytes(_migrated())
    return Store.open(url, clock, **options)
