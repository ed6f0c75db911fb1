"""Manufacturers whose devices the registrar takes: rows and the statements over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from appliance.store.schema import manufacturers as table
from appliance.store.transaction import Tx

_INSERT = insert(table)
_ALL = select(table).order_by(table.c.created_at, table.c.name)
_BY_NAME = select(table).where(table.c.name == bindparam("name"))
_UPDATE = (
    update(table)
    .where(table.c.id == bindparam("key"))
    .values({name: bindparam(name) for name in ("name", "anchors_pem", "masa_url", "masa_tls_anchors_pem", "options")})
)
_DELETE = delete(table).where(table.c.id == bindparam("id"))


@dataclass(frozen=True, slots=True)
class ManufacturerRow:
    """One manufacturer. `options`: see appliance.registrar.manufacturers."""

    id: str
    name: str
    anchors_pem: str
    masa_url: str
    masa_tls_anchors_pem: str
    options: Mapping[str, Any]
    created_at: datetime


def add(tx: Tx, row: ManufacturerRow) -> None:
    """Insert; raises Conflict when the name is taken."""
    tx.execute(
        _INSERT,
        {
            "id": row.id,
            "name": row.name,
            "anchors_pem": row.anchors_pem,
            "masa_url": row.masa_url,
            "masa_tls_anchors_pem": row.masa_tls_anchors_pem,
            "options": dict(row.options),
            "created_at": row.created_at,
        },
    )


def save(tx: Tx, row: ManufacturerRow) -> None:
    """Write everything but id and time of creation; raises Conflict when the name is another one's."""
    tx.execute(
        _UPDATE,
        {
            "name": row.name,
            "anchors_pem": row.anchors_pem,
            "masa_url": row.masa_url,
            "masa_tls_anchors_pem": row.masa_tls_anchors_pem,
            "options": dict(row.options),
            "key": row.id,
        },
    )


def every(tx: Tx) -> list[ManufacturerRow]:
    """All, oldest first."""
    return [_read(row) for row in tx.all(_ALL)]


def by_name(tx: Tx, name: str) -> ManufacturerRow | None:
    """The manufacturer of this name."""
    row = tx.one(_BY_NAME, {"name": name})
    return None if row is None else _read(row)


def remove(tx: Tx, identifier: str) -> None:
    """Delete the row; its pledges stay as history."""
    tx.execute(_DELETE, {"id": identifier})


def _read(row: Any) -> ManufacturerRow:
    return ManufacturerRow(
        id=row.id,
        name=row.name,
        anchors_pem=row.anchors_pem,
        masa_url=row.masa_url or "",
        masa_tls_anchors_pem=row.masa_tls_anchors_pem or "",
        options=row.options or {},
        created_at=row.created_at,
    )
