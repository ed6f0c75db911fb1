"""The site's list of expected devices: a CSV file taken in as a whole, with the difference shown before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.registrar.device_rows import DeviceRow, Difference, compare, read_csv, refused_at
from appliance.registrar.prefetch import issuer_of_key, key_of_issuer
from appliance.store import listed_devices, manufacturers
from appliance.store.listed_devices import ListedDevice
from appliance.store.store import Store
from appliance.store.transaction import Tx

MAX_SHOWN = 1000

Json = Mapping[str, Any]


class ExpectedDevices:
    """Administrators' verbs about devices that have not come yet."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def import_csv(self, text: str, *, actor: Actor, replace: bool = False, dry_run: bool = False) -> Json:
        """Take in a file; answers what it adds, changes and misses.

        Devices that are not in the file stay listed, unless `replace` says that the file is the whole truth about the
        manufacturers in it. Raises DeviceFileRefused naming the line.
        """
        rows = read_csv(text)
        digest = hashlib.sha256(text.encode()).hexdigest()

        def write(tx: Tx) -> Json:
            makers, found = _look(rows, tx)
            for row in (*found.added, *(after for _, after in found.changed)):
                issuer = issuer_of_key(bytes.fromhex(row.key_identifier)) if row.key_identifier else None
                listed_devices.put(
                    tx,
                    ListedDevice(
                        makers[row.manufacturer], row.serial, tx.now, row.label or None, issuer, row.delivered_at
                    ),
                )
            if replace:
                for row in found.missing:
                    listed_devices.remove(tx, makers[row.manufacturer], row.serial)
            counts = {"added": len(found.added), "changed": len(found.changed), "unchanged": found.unchanged}
            removed = len(found.missing) if replace else 0
            fields = {**counts, "removed": removed, "file_sha256": digest}
            audit.append(tx, AuditEvent("devices-listed", actor, fields=fields))
            return _as_json(found, is_applied=True, replace=replace)

        if dry_run:
            _, found = await self._store.read(partial(_look, rows))
            return _as_json(found, is_applied=False, replace=replace)
        return await self._store.write(write)

    async def every(self) -> list[Json]:
        """Listed devices, by manufacturer and serial number."""

        def read(tx: Tx) -> list[Json]:
            return [
                _row_json(_row_of(one, maker.name))
                for maker in manufacturers.every(tx)
                for one in listed_devices.of(tx, maker.id)
            ]

        return await self._store.read(read)


def _look(rows: tuple[DeviceRow, ...], tx: Tx) -> tuple[Mapping[str, str], Difference]:
    makers = {row.name: row.id for row in manufacturers.every(tx)}
    for row in rows:
        if row.manufacturer not in makers:
            raise refused_at(
                row.line,
                f"there is no manufacturer {row.manufacturer[:60]!a}; add it first: appliance manufacturers add",
            )
    named = {row.manufacturer for row in rows}
    listed = [_row_of(one, name) for name in makers if name in named for one in listed_devices.of(tx, makers[name])]
    return makers, compare({(one.manufacturer, one.serial): one for one in listed}, rows)


def _row_of(device: ListedDevice, maker: str) -> DeviceRow:
    return DeviceRow(
        maker,
        device.serial,
        device.label or "",
        key_of_issuer(device.idevid_issuer).hex() if device.idevid_issuer else "",
        device.delivered_at.date().isoformat() if device.delivered_at else "",
    )


def _as_json(found: Difference, *, is_applied: bool, replace: bool) -> Json:
    return {
        "applied": is_applied,
        "added": [_row_json(row) for row in found.added[:MAX_SHOWN]],
        "changed": [{**_row_json(after), "was": _row_json(before)} for before, after in found.changed[:MAX_SHOWN]],
        "removed" if replace else "missing": [_row_json(row) for row in found.missing[:MAX_SHOWN]],
        "counts": {
            "added": len(found.added),
            "changed": len(found.changed),
            "unchanged": found.unchanged,
            "removed" if replace else "missing": len(found.missing),
        },
    }


def _row_json(row: DeviceRow) -> Json:
    return {
        "manufacturer": row.manufacturer,
        "serial": row.serial,
        "label": row.label,
        "idevid-issuer": row.key_identifier,
        "delivered": row.delivered,
    }
