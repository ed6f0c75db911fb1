"""What the lab's MASA remembers: devices sold, to whom, vouchers given, requests answered.

One SQLite file, written through to the disk: what a voucher changes is committed before the voucher leaves, so a
killed process forgets nothing that anybody has in hand (RFC 8995, section 5.6).
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography import x509

from brski import leaves
from brski.audit_log import AuditLog, LogEntry
from brski.idevid import idevid_issuer, is_same_issuer
from brski.masa import Device, Grant
from brski.states import DeviceEvent, DeviceState, after
from est.chains import spki_sha256
from est.exchange import Call
from lab.factory import SAFE_SERIAL, write_file

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, issuer TEXT NOT NULL, serial TEXT NOT NULL, date TEXT NOT NULL, domain_id BLOB NOT NULL,
  nonce TEXT, assertion TEXT NOT NULL, owner BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_device ON events (issuer, serial);
CREATE TABLE IF NOT EXISTS states (issuer TEXT, serial TEXT, state TEXT NOT NULL, PRIMARY KEY (issuer, serial));
CREATE TABLE IF NOT EXISTS sales (issuer TEXT, serial TEXT, domain BLOB, PRIMARY KEY (issuer, serial, domain));
CREATE TABLE IF NOT EXISTS logs (
  slug TEXT PRIMARY KEY, issuer TEXT NOT NULL, serial TEXT NOT NULL, request_sha256 TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS requests (
  id INTEGER PRIMARY KEY, time TEXT NOT NULL, path TEXT NOT NULL, status INTEGER NOT NULL, serial TEXT, detail TEXT,
  media_type TEXT NOT NULL, body_sha256 TEXT NOT NULL);
"""
_REQUEST = ("time", "path", "status", "serial", "detail", "media_type", "body_sha256")


class Records:
    """The folder of devices and the file beside it."""

    def __init__(self, folder: Path, *, is_hasty: bool = False) -> None:
        """`is_hasty`: a commit outlives a killed process, not a power cut, and costs no write to the disk."""
        path = folder / "masa.sqlite"
        with contextlib.suppress(FileExistsError):
            write_file(path, b"")
        self._devices = folder / "devices"
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(f"PRAGMA synchronous={'NORMAL' if is_hasty else 'FULL'}")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # -- devices

    def find(self, serial_number: str, issuer: bytes | None) -> Device | None:
        """The device with its history, if its IDevID lies in the folder."""
        certificate = self._idevid(serial_number)
        if certificate is None or (issuer is not None and not is_same_issuer(issuer, certificate)):
            return None
        key = (idevid_issuer(certificate).hex(), serial_number)
        rows = self._all("SELECT date, domain_id, nonce, assertion, owner FROM events", key, "ORDER BY id")
        sales = self._all("SELECT domain FROM sales", key)
        return Device(
            serial_number=serial_number,
            issuer=bytes.fromhex(key[0]),
            log=AuditLog(tuple(LogEntry(leaves.read_date(row[0]), row[1], row[2], row[3]) for row in rows)),
            state=self._state(key),
            owners=tuple(row[4] for row in rows),
            sold_to=frozenset(row[0] for row in sales),
        )

    def move(self, device: Device, event: DeviceEvent) -> None:
        """Block or release a device; raises OutOfOrder."""
        with self._transaction():
            self._set_state(_key(device), after(device.state, event))

    def sell(self, device: Device, domains: Sequence[x509.Certificate]) -> None:
        """Remember to whom the device was sold: only such a domain gets `verified` vouchers."""
        with self._transaction():
            for domain in domains:
                row = (*_key(device), spki_sha256(domain))
                self._database.execute("INSERT OR IGNORE INTO sales VALUES (?,?,?)", row)

    # -- vouchers and logs

    def grant(self, granted: Grant, call: Call, now: datetime) -> None:
        """Store what a voucher changes, in one transaction, before it leaves."""
        entry, key = granted.entry, _key(granted.device)
        with self._transaction():
            self._database.execute(
                "INSERT INTO events (issuer, serial, date, domain_id, nonce, assertion, owner) VALUES (?,?,?,?,?,?,?)",
                (*key, leaves.write_date(entry.date), entry.domain_id, entry.nonce, entry.assertion, granted.owner),
            )
            self._set_state(key, granted.state)
            self._note(call, 200, now, serial=key[1], detail=entry.assertion)

    def slug(self, call: Call, device: Device) -> str:
        """An unguessable name for this request's log; the same request gets the same one (RFC 8995, section 5.8)."""
        digest = hashlib.sha256(call.body).hexdigest()
        with self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO logs VALUES (?,?,?,?)", (secrets.token_urlsafe(32), *_key(device), digest)
            )
        row = self._database.execute("SELECT slug FROM logs WHERE request_sha256 = ?", (digest,)).fetchone()
        return str(row[0])

    def behind(self, slug: str) -> Device | None:
        """The device whose log this name stands for."""
        row = self._database.execute("SELECT serial, issuer FROM logs WHERE slug = ?", (slug,)).fetchone()
        return self.find(row[0], bytes.fromhex(row[1])) if row else None

    # -- history

    def note(self, call: Call, status: int, now: datetime, *, serial: str = "", detail: str = "") -> None:
        """Remember a request that changed nothing."""
        with self._transaction():
            self._note(call, status, now, serial=serial, detail=detail)

    def requests(self) -> list[dict[str, object]]:
        """What was asked and answered, oldest first."""
        rows = self._database.execute(f"SELECT {', '.join(_REQUEST)} FROM requests ORDER BY id")  # noqa: S608
        return [dict(zip(_REQUEST, row, strict=True)) for row in rows]

    def erase(self) -> None:
        """Forget everything; the personal data of a lab (RFC 8995, section 10.3)."""
        with self._transaction():
            for table in ("events", "states", "sales", "logs", "requests"):
                self._database.execute(f"DELETE FROM {table}")  # noqa: S608 - literals

    def _idevid(self, serial_number: str) -> x509.Certificate | None:
        if not SAFE_SERIAL.fullmatch(serial_number):
            return None
        path = self._devices / serial_number / "idevid.pem"
        try:
            return _certificate(path, path.stat().st_mtime_ns)
        except OSError:
            return None

    def _state(self, key: tuple[str, str]) -> DeviceState:
        row = self._database.execute("SELECT state FROM states WHERE issuer = ? AND serial = ?", key).fetchone()
        return DeviceState(row[0]) if row else DeviceState.UNCLAIMED

    def _set_state(self, key: tuple[str, str], state: DeviceState) -> None:
        self._database.execute(
            "INSERT INTO states VALUES (?,?,?) ON CONFLICT DO UPDATE SET state = excluded.state", (*key, state.value)
        )

    def _all(self, select: str, key: tuple[str, str], order: str = "") -> list[tuple[Any, ...]]:
        return self._database.execute(f"{select} WHERE issuer = ? AND serial = ? {order}", key).fetchall()

    def _note(self, call: Call, status: int, now: datetime, *, serial: str, detail: str) -> None:
        digest = hashlib.sha256(call.body).hexdigest()
        row = (leaves.write_date(now), call.path, status, serial, detail, call.media_type, digest)
        self._database.execute(
            f"INSERT INTO requests ({', '.join(_REQUEST)}) VALUES (?,?,?,?,?,?,?)",  # noqa: S608 - literals
            row,
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _key(device: Device) -> tuple[str, str]:
    return device.issuer.hex(), device.serial_number


@lru_cache(maxsize=10_000)
def _certificate(path: Path, _: int) -> x509.Certificate:
    """The file's first certificate; read again when the time of its last change is another."""
    return x509.load_pem_x509_certificates(path.read_bytes())[0]
