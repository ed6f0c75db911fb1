"""The manufacturer's MASA as a process of its own: `brski.Masa` behind HTTPS, with a memory and with knobs.

Ownership and audit log live in DIR/masa.sqlite and survive a restart; a voucher leaves only after its log entry is
committed. It sells the devices in DIR/devices. Beside the BRSKI operations it has a management corner for tests:
GET and DELETE /lab/requests (what was asked and answered; erasing also erases the log), PUT /lab/broken (a JSON list of
knobs), GET and PUT /lab/devices/SERIAL (state, owners, log; block, release, sell).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from cryptography import x509

from brski import audit_log, errors, paths, voucher_request
from brski.masa import Device, Masa, MasaPolicy
from brski.states import DeviceEvent
from est.crl import RevocationLists, read_crl
from est.exchange import Call, Reply
from lab.damage import Signing, damage_log, damage_voucher, instead, tamper
from lab.factory import Factory, Identity, load_or_create, make_root
from lab.masa_records import Records
from lab.misbehave import read_knobs

__all__ = ["STATUS", "MasaOptions", "MockMasa", "Records", "serve", "tamper"]

MAX_BODY = 262_144
READ_SECONDS = 10.0
_LOGS = f"{paths.REQUEST_AUDIT_LOG}/log"

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


@dataclass(frozen=True, slots=True)
class MasaOptions:
    """How this MASA is run, beyond its policy.

    `crls` are files with revocation lists of domains, read for every request; `demand_crl`: a registrar certificate
    that names a list needs one of them. `log_by_url`: an audit log is answered with 201 and a Location. `is_hasty`:
    what is remembered outlives a killed process, not a power cut; for load tests of others.
    """

    crls: tuple[Path, ...] = ()
    demand_crl: bool = False
    log_by_url: bool = False
    is_hasty: bool = False


class MockMasa:
    """The HTTPS server; `start` says on which port it listens."""

    def __init__(
        self,
        folder: Path,
        *,
        broken: Mapping[str, str] | None = None,
        policy: MasaPolicy | None = None,
        options: MasaOptions | None = None,
        records: Records | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._options = options or MasaOptions()
        self._factory: Factory = load_or_create(folder, now=clock())
        policy = policy or MasaPolicy()
        self._dialect = policy.dialect
        self._masa = Masa(
            self._factory.masa_signer,
            self._factory.masa_chain,
            self._factory.device_anchors,
            policy,
            lasting=self._factory.lasting,
        )
        self._foreign: Identity = make_root("Somebody Else", now=clock())
        self._records = records or Records(folder, is_hasty=self._options.is_hasty)
        self._runner: web.AppRunner | None = None
        self.broken: Mapping[str, str] = dict(broken or {})

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port that was taken."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post(paths.REQUEST_VOUCHER, self._request_voucher)
        app.router.add_post(paths.REQUEST_AUDIT_LOG, self._request_audit_log)
        app.router.add_get(f"{_LOGS}/{{slug}}", self._fetch_audit_log)
        app.router.add_get("/lab/requests", self._list_requests)
        app.router.add_delete("/lab/requests", self._erase)
        app.router.add_put("/lab/broken", self._break)
        app.router.add_get("/lab/devices/{serial}", self._show_device)
        app.router.add_put("/lab/devices/{serial}", self._change_device)
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
            granted = self._masa.issue(call, self._records, now=now, revocation=self._revocation())
        except errors.BrskiError as refusal:
            return self._refuse(call, refusal, now)
        is_lasting = granted.voucher.nonce is None
        own = self._factory.lasting if is_lasting else (self._factory.masa_signer, self._factory.masa_chain)
        body = damage_voucher(granted, call.media_type, self.broken, Signing(own, self._foreign), now)
        self._records.grant(granted, call, now)
        # one implementation in the field answers so, whatever it was asked in
        media_type = "text/plain" if self._dialect.untyped_answers else granted.reply.media_type
        return _response(replace(granted.reply, body=body, media_type=media_type))

    async def _request_audit_log(self, request: web.Request) -> web.Response:
        call, now = await _read_call(request), self._clock()
        if (wrong := await self._break_transport(call, now)) is not None:
            return wrong
        try:
            reply = self._masa.audit_log(call, self._records, now=now, revocation=self._revocation())
        except errors.BrskiError as refusal:
            return self._refuse(call, refusal, now)
        if self._options.log_by_url or "log-elsewhere" in self.broken:
            path = f"{_LOGS}/{self._records.slug(call, self._device_of(call))}"
            host = f"https://{self.broken['log-elsewhere']}" if "log-elsewhere" in self.broken else ""
            reply = Reply(201, headers={"location": f"{host}{path}"})
        else:
            reply = replace(reply, body=damage_log(reply.body, self.broken, now))
        self._records.note(call, reply.status, now)
        return _response(reply)

    async def _fetch_audit_log(self, request: web.Request) -> web.Response:
        """A log behind its unguessable name: whoever knows it was told it (RFC 8995, section 5.8)."""
        call, now = await _read_call(request), self._clock()
        device = self._records.behind(request.match_info["slug"])
        self._records.note(replace(call, path=_LOGS), 404 if device is None else 200, now)
        if device is None:
            return web.Response(status=404, text="no such log\n")
        body = audit_log.write(audit_log.prune(device.log))
        return _response(Reply(200, paths.JSON, body=damage_log(body, self.broken, now)))

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

    async def _show_device(self, request: web.Request) -> web.Response:
        device = self._records.find(request.match_info["serial"], None)
        if device is None:
            return web.Response(status=404, text="no such device was sold\n")
        log = json.loads(audit_log.write(device.log))
        owners, sold = ([one.hex() for one in keys] for keys in (device.owners, sorted(device.sold_to)))
        return web.json_response({"state": device.state.value, "owners": owners, "sold_to": sold, "log": log})

    async def _change_device(self, request: web.Request) -> web.Response:
        """`{"event": "blocked"}`, `{"event": "released"}` or `{"sold_to": PEM}`."""
        device = self._records.find(request.match_info["serial"], None)
        if device is None:
            return web.Response(status=404, text="no such device was sold\n")
        try:
            wish = dict(await request.json())
            if "sold_to" in wish:
                self._records.sell(device, x509.load_pem_x509_certificates(str(wish["sold_to"]).encode()))
            if "event" in wish:
                self._records.move(device, DeviceEvent(wish["event"]))
        except (ValueError, TypeError, errors.OutOfOrder) as fault:
            return web.Response(status=400, text=f"{fault}\n")
        return await self._show_device(request)

    def _revocation(self) -> RevocationLists:
        """The lists as they lie on the disk now: a domain publishes new ones while this runs."""
        lists = [read_crl(path.read_bytes()) for path in self._options.crls]
        return RevocationLists(lists, demanded=self._options.demand_crl)

    def _device_of(self, call: Call) -> Device:
        """The device of a request that was granted its log."""
        asked, _ = voucher_request.unseal(call.body, call.media_type, dialect=self._dialect)
        device = self._records.find(asked.serial_number, None)
        assert device is not None
        return device

    def _refuse(self, call: Call, refusal: errors.BrskiError, now: datetime) -> web.Response:
        status = STATUS[type(refusal)]
        self._records.note(call, status, now, detail=refusal.reason)
        return web.Response(status=status, text=f"{refusal.reason}: {refusal.detail}\n")

    async def _break_transport(self, call: Call, now: datetime) -> web.Response | None:
        if "slow" in self.broken:
            await asyncio.sleep(float(self.broken["slow"]))
        found = instead(call.path, call.media_type, self.broken)
        if found is None:
            return None
        knob, reply = found
        self._records.note(call, reply.status, now, detail=knob)
        return _response(reply)


async def serve(
    folder: Path, host: str, port: int, broken: Mapping[str, str], policy: MasaPolicy, options: MasaOptions
) -> None:
    """`python -m lab masa`: run until SIGTERM or SIGINT; one JSON line when it listens."""
    masa = MockMasa(folder, broken=broken, policy=policy, options=options)
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
    headers = {**reply.headers, "Content-Type": reply.media_type} if reply.media_type else reply.headers
    return web.Response(status=reply.status, body=reply.body, headers=headers)
