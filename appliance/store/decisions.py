"""The decision log: one row per EAP conversation, written in batches off the decision path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Text, bindparam, delete, insert, select

from appliance.store.schema import decisions as table
from appliance.store.transaction import Tx

_INSERT = insert(table).values(trace=bindparam("trace", type_=Text()))
_NEWEST = select(table).order_by(table.c.id.desc()).limit(bindparam("limit"))
_PRUNE = delete(table).where(table.c.time < bindparam("before"))


def add(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows whose keys are the table's columns without id; `trace` is JSON text already."""
    tx.execute_many(_INSERT, rows)


def newest(tx: Tx, *, limit: int) -> list[dict[str, Any]]:
    """The newest rows, oldest of them first."""
    return [dict(row._mapping) for row in tx.all(_NEWEST, {"limit": limit})][::-1]


def prune(tx: Tx, before: datetime) -> int:
    """Delete what is older; answers how many."""
    return tx.execute(_PRUNE, {"before": before}).rowcount
