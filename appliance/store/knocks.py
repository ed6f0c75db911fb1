"""Who knocked and was not let in, one row per certificate: rows and the statements over them.

What stands in a row of nobody's manufacturer comes from an unverified certificate. Nothing follows from it but its own
removal.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update

from appliance.store.schema import knocks as table
from appliance.store.transaction import Tx

_INSERT = insert(table)
_ONE = select(table).where(table.c.fingerprint == bindparam("fingerprint"))
_ALL = select(table).order_by(table.c.last_seen.desc()).limit(bindparam("limit"))
_UPDATE = (
    update(table)
    .where(table.c.fingerprint == bindparam("key"))
    .values(
        {
            name: bindparam(name)
            for name in ("serial", "maker", "manufacturer_id", "address", "reason", "detail", "times", "last_seen")
        }
    )
)
_DELETE = delete(table).where(table.c.fingerprint == bindparam("fingerprint"))
_DELETE_OF = delete(table).where(table.c.manufacturer_id == bindparam("manufacturer_id"))
_STRANGERS = select(func.count()).select_from(table).where(table.c.manufacturer_id.is_(None))
_FROM = (
    select(func.count())
    .select_from(table)
    .where(table.c.manufacturer_id.is_(None), table.c.address == bindparam("address"))
)
_OLDEST = (
    select(table.c.fingerprint)
    .where(table.c.manufacturer_id.is_(None))
    .order_by(table.c.last_seen, table.c.fingerprint)
    .limit(bindparam("limit"))
)
_OLDEST_FROM = (
    select(table.c.fingerprint)
    .where(table.c.manufacturer_id.is_(None), table.c.address == bindparam("address"))
    .order_by(table.c.last_seen, table.c.fingerprint)
    .limit(bindparam("limit"))
)


@dataclass(frozen=True, slots=True)
class Knock:
    """One certificate that knocked. `manufacturer_id` is None for a stranger; `maker` is what the certificate says."""

    fingerprint: str
    serial: str
    maker: str
    manufacturer_id: str | None
    address: str
    reason: str
    detail: str
    times: int
    first_seen: datetime
    last_seen: datetime

    @property
    def is_stranger(self) -> bool:
        """Whether no known manufacturer vouches for the certificate."""
        return self.manufacturer_id is None


def put(tx: Tx, knock: Knock) -> None:
    """Insert, or add to what is there: the number grows, the first time stays."""
    before = get(tx, knock.fingerprint)
    values = {
        "serial": knock.serial,
        "maker": knock.maker,
        "manufacturer_id": knock.manufacturer_id,
        "address": knock.address,
        "reason": knock.reason,
        "detail": knock.detail,
        "times": knock.times + (before.times if before else 0),
        "last_seen": knock.last_seen,
    }
    if before is None:
        tx.execute(_INSERT, {**values, "fingerprint": knock.fingerprint, "first_seen": knock.first_seen})
    else:
        tx.execute(_UPDATE, {**values, "key": knock.fingerprint})


def get(tx: Tx, fingerprint: str) -> Knock | None:
    """The row of this certificate."""
    row = tx.one(_ONE, {"fingerprint": fingerprint})
    return None if row is None else _read(row)


def every(tx: Tx, *, limit: int = 2000) -> list[Knock]:
    """Rows, who knocked last first."""
    return [_read(row) for row in tx.all(_ALL, {"limit": limit})]


def remove(tx: Tx, fingerprint: str) -> None:
    """Forget one, because it is in, or because an administrator says so."""
    tx.execute(_DELETE, {"fingerprint": fingerprint})


def remove_of(tx: Tx, manufacturer_id: str) -> None:
    """Forget the devices of a manufacturer, because it is known no more."""
    tx.execute(_DELETE_OF, {"manufacturer_id": manufacturer_id})


def make_room(tx: Tx, *, address: str, per_address: int, in_all: int) -> None:
    """Drop the strangers that knocked longest ago, so that one more fits: first those of the same address."""
    crowd = int(tx.scalar(_FROM, {"address": address}))
    if crowd >= per_address:
        _drop(tx, _OLDEST_FROM, {"address": address, "limit": crowd - per_address + 1})
    count = int(tx.scalar(_STRANGERS))
    if count >= in_all:
        _drop(tx, _OLDEST, {"limit": count - in_all + 1})


def _drop(tx: Tx, statement: Any, values: dict[str, Any]) -> None:
    for row in tx.all(statement, values):
        remove(tx, row.fingerprint)


def _read(row: Any) -> Knock:
    return Knock(
        fingerprint=row.fingerprint,
        serial=row.serial,
        maker=row.maker,
        manufacturer_id=row.manufacturer_id,
        address=row.address,
        reason=row.reason,
        detail=row.detail,
        times=row.times,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
    )
