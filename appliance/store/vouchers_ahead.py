"""Vouchers without a nonce that were fetched before their devices came: rows and the statements over them.

A row is written before the MASA is asked, because its log will have the entry even if the answer gets lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update

from appliance.store.schema import vouchers_ahead as table
from appliance.store.transaction import Tx

_INSERT = insert(table)
_DEVICE = (table.c.idevid_issuer == bindparam("idevid_issuer"), table.c.serial == bindparam("serial"))
_LIVING = (
    select(table)
    .where(*_DEVICE, table.c.voucher.is_not(None), table.c.expires_at > bindparam("now"))
    .order_by(table.c.expires_at.desc())
)
_COUNT = select(func.count()).select_from(table).where(*_DEVICE)
_BY_ID = select(table).where(table.c.id == bindparam("id"))
_ALL = select(table).where(table.c.voucher.is_not(None)).order_by(table.c.serial, table.c.asked_at)
_KEEP = (
    update(table)
    .where(table.c.id == bindparam("key"))
    .values({name: bindparam(name) for name in ("voucher", "history", "expires_at")})
)
_HAND = update(table).where(table.c.id == bindparam("key")).values(handed_at=bindparam("handed_at"))


@dataclass(frozen=True, slots=True)
class VoucherAhead:
    """One request without a nonce and what came of it. `history` is the device's audit log as it was then, JSON."""

    id: str
    manufacturer_id: str
    serial: str
    idevid_issuer: str
    masa_url: str
    media_type: str
    asked_at: datetime
    rvr: bytes = field(repr=False)
    voucher: bytes | None = field(default=None, repr=False)
    history: bytes | None = field(default=None, repr=False)
    expires_at: datetime | None = None
    handed_at: datetime | None = None


def add(tx: Tx, row: VoucherAhead) -> None:
    """Insert what is about to be asked."""
    tx.execute(
        _INSERT,
        {
            "id": row.id,
            "manufacturer_id": row.manufacturer_id,
            "serial": row.serial,
            "idevid_issuer": row.idevid_issuer,
            "masa_url": row.masa_url,
            "media_type": row.media_type,
            "rvr": row.rvr,
            "voucher": row.voucher,
            "history": row.history,
            "asked_at": row.asked_at,
            "expires_at": row.expires_at,
            "handed_at": row.handed_at,
        },
    )


def keep(tx: Tx, identifier: str, *, voucher: bytes, history: bytes | None, expires_at: datetime) -> None:
    """Write what the MASA answered."""
    tx.execute(_KEEP, {"voucher": voucher, "history": history, "expires_at": expires_at, "key": identifier})


def living(tx: Tx, idevid_issuer: str, serial: str) -> list[VoucherAhead]:
    """The vouchers of this device that have not expired, the one that lives longest first."""
    return [_read(row) for row in tx.all(_LIVING, {"idevid_issuer": idevid_issuer, "serial": serial, "now": tx.now})]


def get(tx: Tx, identifier: str) -> VoucherAhead | None:
    """The row with this id."""
    row = tx.one(_BY_ID, {"id": identifier})
    return None if row is None else _read(row)


def asked(tx: Tx, idevid_issuer: str, serial: str) -> int:
    """How many vouchers without a nonce were ever asked for, for this device."""
    return int(tx.scalar(_COUNT, {"idevid_issuer": idevid_issuer, "serial": serial}))


def every(tx: Tx) -> list[VoucherAhead]:
    """All that were granted, by serial number."""
    return [_read(row) for row in tx.all(_ALL)]


def hand(tx: Tx, identifier: str) -> None:
    """Note that the pledge got it."""
    tx.execute(_HAND, {"handed_at": tx.now, "key": identifier})


def _read(row: Any) -> VoucherAhead:
    return VoucherAhead(
        id=row.id,
        manufacturer_id=row.manufacturer_id,
        serial=row.serial,
        idevid_issuer=row.idevid_issuer,
        masa_url=row.masa_url,
        media_type=row.media_type,
        asked_at=row.asked_at,
        rvr=row.rvr,
        voucher=row.voucher,
        history=row.history,
        expires_at=row.expires_at,
        handed_at=row.handed_at,
    )
