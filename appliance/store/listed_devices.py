"""Devices that the site expects, by manufacturer and serial number: rows and the statements over them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select

from appliance.store.schema import listed_devices as table
from appliance.store.transaction import Tx

_INSERT = insert(table)
_OF = select(table).where(table.c.manufacturer_id == bindparam("manufacturer_id")).order_by(table.c.serial)
_ONE = select(table).where(
    table.c.manufacturer_id == bindparam("manufacturer_id"), table.c.serial == bindparam("serial")
)
_DELETE = delete(table).where(
    table.c.manufacturer_id == bindparam("manufacturer_id"), table.c.serial == bindparam("serial")
)
_DELETE_ALL = delete(table).where(table.c.manufacturer_id == bindparam("manufacturer_id"))


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """One expected device. `idevid_issuer` is hex, None when it is not known; `delivered_at` dates its purchase."""

    manufacturer_id: str
    serial: str
    created_at: datetime
    label: str | None = None
    idevid_issuer: str | None = None
    delivered_at: datetime | None = None


def put(tx: Tx, device: ListedDevice) -> None:
    """Insert, or replace what is there."""
    remove(tx, device.manufacturer_id, device.serial)
    tx.execute(
        _INSERT,
        {
            "manufacturer_id": device.manufacturer_id,
            "serial": device.serial,
            "label": device.label,
            "idevid_issuer": device.idevid_issuer,
            "delivered_at": device.delivered_at,
            "created_at": device.created_at,
        },
    )


def get(tx: Tx, manufacturer_id: str, serial: str) -> ListedDevice | None:
    """The device, if it is expected."""
    row = tx.one(_ONE, {"manufacturer_id": manufacturer_id, "serial": serial})
    return None if row is None else _read(row)


def of(tx: Tx, manufacturer_id: str) -> list[ListedDevice]:
    """Every expected device of a manufacturer, by serial number."""
    return [_read(row) for row in tx.all(_OF, {"manufacturer_id": manufacturer_id})]


def remove(tx: Tx, manufacturer_id: str, serial: str) -> None:
    """Forget one."""
    tx.execute(_DELETE, {"manufacturer_id": manufacturer_id, "serial": serial})


def remove_all(tx: Tx, manufacturer_id: str) -> None:
    """Forget every expected device of a manufacturer."""
    tx.execute(_DELETE_ALL, {"manufacturer_id": manufacturer_id})


def _read(row: Any) -> ListedDevice:
    return ListedDevice(
        manufacturer_id=row.manufacturer_id,
        serial=row.serial,
        created_at=row.created_at,
        label=row.label,
        idevid_issuer=row.idevid_issuer,
        delivered_at=row.delivered_at,
    )
