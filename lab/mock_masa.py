"""The manufacturer's MASA as a process of its own: `brski.Masa` behind HTTPS, with a memory and with knobs.

Ownership and audit log live in DIR/masa.sqlite and survive a restart; a voucher leaves only after its log entry is
committed. It sells the devices in DIR/devices. Beside the two BRSKI operations it has a management corner for tests:
GET and DELETE /lab/requests (what was asked and answered; erasing also erases the log), PUT /lab/broken (a JSON list of
knobs).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from brski import errors, leaves, paths, sealed, voucher
from brski.audit_log import AuditLog, LogEntry
from brski.idevid import idevid_issuer, is_same_issuer
from brski.masa import Device, Grant, Masa, MasaPolicy
from brski.states import DeviceState
from est import jose
from est.exchange import Call, Reply
from lab.factory import SAFE_SERIAL, Factory, Identity, load_or_create, make_root, write_file
from lab.misbehave import read_knobs

MAX_BODY = 262_144
READ_SECONDS = 10.0

# What a MASA answers to whom; a reader of RFC 8995, section 5.6 chooses 403 where somebody could change it.
STATUS: Mapping[type[errors.BrskiError], int] = {
    errors.MediaTypeUnsupported: 415,
    errors.FormatNotAcceptable: 406,
    errors.VoucherRequestMalformed: 400,
    errors.VoucherRequestSignatureInvalid: 403,
    errors.RegistrarNotAuthorized: 403,
    errors.RegistrarUnauthenticated: 403,
    errors.RegistrarChainBroken: 403,
    errors.PriorRequestInvalid: 403,
    errors.ProximityMismatch: 403,
    errors.SerialNumberMismatch: 403,
    errors.NonceMismatch: 403,
    errors.DeviceUnknown: 404,
    errors.DeviceClaimed: 403,
    errors.DeviceBlocked: 403,
    errors.NeverOwner: 404,
    errors.PinForbidden: 403,
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, issuer TEXT NOT NULL, serial TEXT NOT NULL, date TEXT NOT NULL, domain_id BLOB NOT NULL,
  nonce TEXT, assertion TEXT NOT NULL, owner BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_device ON events (issuer, serial);
CREATE TABLE IF NOT EXISTS states (issuer TEXT, serial TEXT, state TEXT NOT NULL, PRIMARY KEY (issuer, serial));
CREATE TABLE IF NOT EXISTS requests (
  id INTEGER PRIMARY KEY, time TEXT NOT NULL, path TEXT NOT NULL, status INTEGER NOT NULL, serial TEXT, detail TEXT);
"""


class Records:
    """What this MASA sold and to whom it gave vouchers: the folder of devices and one SQLite file."""

    def __init__(self, folder: Path) -> None:
        path = folder / "masa.sqlite"
        with contextlib.suppress(FileExistsError):
            write_file(path, b"")
        self._devices = folder / "devices"
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def find(self, serial_number: str, issuer: bytes | None) -> Device | None:
        """The device with its history, if its IDevID lies in the folder."""
        if not SAFE_SERIAL.fullmatch(serial_number):
            return None
        try:
            pem = (self._devices / serial_number / "idevid.pem").read_bytes()
        except OSError:
            return None
        certificate = x509.load_pem_x509_certificates(pem)[0]
        if issuer is not None and not is_same_issuer(issuer, certificate):
            return None
        key = (idevid_issuer(certificate).hex(), serial_number)
        rows = self._database.execute(
            "SELECT date, domain_id, nonce, assertion, owner FROM events WHERE issuer = ? AND serial = ? ORDER BY id",
            key,
        ).fetchall()
        state = self._database.execute("SELECT state FROM states WHERE issuer = ? AND serial = ?", key).fetchone()
        return Device(
            serial_number=serial_number,
            issuer=bytes.fromhex(key[0]),
            log=AuditLog(tuple(LogEntry(leaves.read_date(row[0]), row[1], row[2], row[3]) for row in rows)),
            state=DeviceState(state[0]) if state else DeviceState.UNCLAIMED,
            owners=tuple(row[4] for row in rows),
        )

    def grant(self, granted: Grant, path: str, now: datetime) -> None:
        """Store what a voucher changes, in one transaction, before it leaves (RFC 8995, section 5.6)."""
        device, entry = granted.device, granted.entry
        key = (device.issuer.hex(), device.serial_number)
        with self._transaction():
            self._database.execute(
                "INSERT INTO events (issuer, serial, date, domain_id, nonce, assertion, owner) VALUES (?,?,?,?,?,?,?)",
                (*key, leaves.write_date(entry.date), entry.domain_id, entry.nonce, entry.assertion, granted.owner),
            )
            self._database.execute(
                "INSERT INTO states VALUES (?,?,?) ON CONFLICT DO UPDATE SET state = excluded.state",
                (*key, granted.state.value),
            )
            self._note(path, 200, now, serial=device.serial_number, detail=entry.assertion)

    def note(self, path: str, status: int, now: datetime, *, serial: str = "", detail: str = "") -> None:
        """Remember a request that changed nothing."""
        with self._transaction():
            self._note(path, status, now, serial=serial, detail=detail)

    def requests(self) -> list[dict[str, object]]:
        """What was asked and answered, oldest first."""
        rows = self._database.execute("SELECT time, path, status, serial, detail FROM requests ORDER BY id").fetchall()
        return [dict(zip(("time", "path", "status", "serial", "detail"), row, strict=True)) for row in rows]

    def erase(self) -> None:
        """Forget everything; the personal data of a lab (RFC 8995, section 10.3)."""
        with self._transaction():
            for table in ("events", "states", "requests"):
                self._database.execute(f"DELETE FROM {table}")  # noqa: S608 - three literals

    def _note(self, path: str, status: int, now: datetime, *, serial: str, detail: str) -> None:
        self._database.execute(
            "INSERT INTO requests (time, path, status, serial, detail) VALUES (?,?,?,?,?)",
            (leaves.write_date(now), path, status, serial, detail),
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


class MockMasa:
    """The HTTPS server; `start` says on which port it listens."""

    def __init__(
        self,
        folder: Path,
        *,
        broken: Mapping[str, str] | None = None,
        policy: MasaPolicy | None = None,
        records: Records | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._factory: Factory = load_or_create(folder, now=clock())
        self._masa = Masa(
            self._factory.masa_signer, self._factory.masa_chain, self._factory.device_anchors, policy or MasaPolicy()
        )
        self._foreign: Identity = make_root("Somebody Else", now=clock())
        self._records = records or Records(folder)
        self._runner: web.AppRunner | None = None
        self.broken: Mapping[str, str] = dict(broken or {})

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port that was taken."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post(paths.REQUEST_VOUCHER, self._request_voucher)
        app.router.add_post(paths.REQUEST_AUDIT_LOG, self._request_audit_log)
        app.router.add_get("/lab/requests", self._list_requests)
        app.router.add_delete("/lab/requests", self._erase)
        app.router.add_put("/lab/broken", self._break)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=self._tls())
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening and close the records."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._records.close()

    def _tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        home = self._folder / "manufacturer"
        context.load_cert_chain(home / "masa-tls.pem", home / "masa-tls.key.pem")
        return context

    async def _request_voucher(self, request: web.Request) -> web.Response:
        call, now = await _read_call(request), self._clock()
        if (wrong := await self._break_transport(call, now)) is not None:
            return wrong
        try:
            granted = self._masa.issue(call, self._records, now=now)
        except errors.BrskiError as refusal:
            return self._refuse(call, refusal, now)
        body = self._break_voucher(granted, call, now)
        self._records.grant(granted, call.path, now)
        return _response(replace(granted.reply, body=body))

    async def _request_audit_log(self, request: web.Request) -> web.Response:
        call, now = await _read_call(request), self._clock()
        if (wrong := await self._break_transport(call, now)) is not None:
            return wrong
        try:
            reply = self._masa.audit_log(call, self._records, now=now)
        except errors.BrskiError as refusal:
            return self._refuse(call, refusal, now)
        self._records.note(call.path, reply.status, now)
        return _response(replace(reply, body=self._break_log(reply.body, now)))

    async def _list_requests(self, _: web.Request) -> web.Response:
        return web.json_response(self._records.requests())

    async def _erase(self, _: web.Request) -> web.Response:
        self._records.erase()
        return web.Response(status=204)

    async def _break(self, request: web.Request) -> web.Response:
        try:
            self.broken = read_knobs(str(word) for word in await request.json())
        except (ValueError, TypeError) as fault:
            return web.Response(status=400, text=f"{fault}\n")
        return web.json_response(dict(self.broken))

    def _refuse(self, call: Call, refusal: errors.BrskiError, now: datetime) -> web.Response:
        status = STATUS[type(refusal)]
        self._records.note(call.path, status, now, detail=refusal.reason)
        return web.Response(status=status, text=f"{refusal.reason}: {refusal.detail}\n")

    async def _break_transport(self, call: Call, now: datetime) -> web.Response | None:
        if "slow" in self.broken:
            await asyncio.sleep(float(self.broken["slow"]))
        answers = {
            "http-500": web.Response(status=500, text="out of order\n"),
            "http-401": web.Response(status=401, text="who are you\n", headers={"WWW-Authenticate": "Basic"}),
            "html": web.Response(text="<html><body>Welcome to the factory</body></html>", content_type="text/html"),
        }
        for knob, answer in answers.items():
            if knob in self.broken:
                self._records.note(call.path, answer.status, now, detail=knob)
                return answer
        return None

    def _break_voucher(self, granted: Grant, call: Call, now: datetime) -> bytes:
        document = json.loads(voucher.write(granted.voucher))
        members = document[voucher.KEY]
        if "wrong-serial" in self.broken:
            members["serial-number"] = "somebody-else"
        if "wrong-nonce" in self.broken:
            members["nonce"] = leaves.write_binary(bytes(16))
        if "expired" in self.broken:
            members["expires-on"] = leaves.write_date(now - timedelta(hours=1))
        if "wrong-pin" in self.broken:
            members["pinned-domain-cert"] = leaves.write_binary(self._foreign.certificate.public_bytes(Encoding.DER))
        signer = self._foreign if "foreign-signer" in self.broken else self._factory.masa
        body = sealed.seal(
            json.dumps(document).encode(),
            call.media_type,
            signer=signer.signer,
            certificate=signer.certificate,
            certificates=() if signer is self._foreign else self._factory.masa_chain[1:],
            now=now,
        )
        return tamper(body) if "tampered" in self.broken else body

    def _break_log(self, body: bytes, now: datetime) -> bytes:
        log = json.loads(body)
        for knob, nonce in (("foreign-history", "Zm9yZWlnbi1ub25jZQ=="), ("nonceless-history", None)):
            if knob in self.broken:
                stranger = {"domainID": leaves.write_binary(b"\x13" * 20), "nonce": nonce, "assertion": "logged"}
                log["events"].append({"date": leaves.write_date(now), **stranger})
        if "string-numbers" in self.broken:
            log["version"] = str(log["version"])
            log["truncation"] = {name: str(count) for name, count in log["truncation"].items()}
        return json.dumps(log).encode()


def tamper(body: bytes) -> bytes:
    """The signed artefact with one bit of a digit in its created-on changed, so that it still reads as one."""
    if sealed.media_type_of(body) == paths.VOUCHER_JWS_JSON:
        document = json.loads(body)
        document["payload"] = jose.base64url(_other_date(jose.unbase64url(document["payload"].encode())))
        return json.dumps(document).encode()
    return _other_date(body)


def _other_date(body: bytes) -> bytes:
    at = body.index(b"Z", body.index(b'"created-on"')) - 1
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


async def serve(folder: Path, host: str, port: int, broken: Mapping[str, str], policy: MasaPolicy) -> None:
    """`python -m lab masa`: run until SIGTERM or SIGINT; one JSON line when it listens."""
    masa = MockMasa(folder, broken=broken, policy=policy)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    port = await masa.start(host, port)
    print(json.dumps({"event": "ready", "pid": os.getpid(), "host": host, "port": port}), flush=True)
    await stopped.wait()
    await masa.stop()


async def _read_call(request: web.Request) -> Call:
    body = await asyncio.wait_for(request.read(), READ_SECONDS)
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Call(request.method, request.path, request.headers.get("content-type", ""), headers, body)


def _response(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, body=reply.body, headers={"Content-Type": reply.media_type})
