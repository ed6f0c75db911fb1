"""Single facts about the home, by key."""

from __future__ import annotations

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.sqlite import insert

from appliance.store import schema
from appliance.store.transaction import Tx

_GET = select(schema.meta.c.value).where(schema.meta.c.key == bindparam("key"))
_INSERT = insert(schema.meta).values(key=bindparam("key"), value=bindparam("value"))
_SET = _INSERT.on_conflict_do_update(index_elements=["key"], set_={"value": _INSERT.excluded.value})


def get(tx: Tx, key: str) -> str | None:
    """The value, or None."""
    value = tx.scalar(_GET, {"key": key})
    return None if value is None else str(value)


def put(tx: Tx, key: str, value: str) -> None:
    """Set or replace the value."""
    tx.execute(_SET, {"key": key, "value": value})
