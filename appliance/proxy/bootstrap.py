"""From nothing to an LDevID; the method is configured, and a failed one never becomes the other (A-80 to A-83).

BRSKI (RFC 8995): find registrars, ask until one has a valid voucher, enrol over that very connection. EST (RFC 7030):
the server's place and anchor (or its root's fingerprint) are configured, a one-time secret goes out after the server
has been authenticated. Neither configured: stop and say what to configure.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import Clock
from appliance.mdns.links import EVERY, LinkWatch, find_links
from appliance.mdns.queries import QueryTiming
from appliance.proxy.connection import Connection, Target, open_anchorless, open_verified
from appliance.proxy.discover import Discovery
from appliance.proxy.enrol import Enrolled, EnrolPhase
from appliance.proxy.errors import (
    BootstrapGaveUp,
    ConnectionClosed,
    FingerprintMismatch,
    PeerSilent,
    PeerUnreachable,
    ProxyStateDamaged,
)
from appliance.proxy.line import Line
from appliance.proxy.material import BrskiMaterial, EstMaterial, read_brski, read_est
from appliance.proxy.report import BootstrapReport, Listener, Reporter
from appliance.proxy.rounds import Hunt, Offers, Timers
from appliance.proxy.state import ProxyRecord, ProxyState
from appliance.proxy.timing import Timing
from appliance.proxy.voucher_phase import Imprint, VoucherPhase
from appliance.settings import ProxySettings
from brski.discovery import Offer, backoff_seconds
from brski.paths import VOUCHER_FORMATS, VOUCHER_JWS_JSON
from est import chains, cms, transfer
from est.client import EstClient
from est.errors import EnrollmentRefused, EstError, Refusal, ReplyNotAccepted

log = logging.getLogger(__name__)


class Configured:
    """The one registrar that the settings name; open, it notices when the network changes."""

    def __init__(self, target: Target) -> None:
        self._offer = Offer(instance=target.authority, addresses=(target.host,), port=target.port)
        self._watch = LinkWatch()
        self._links = find_links((EVERY,))
        self.changes = 0

    async def __aenter__(self) -> Configured:
        await self._watch.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._watch.__aexit__(kind, error, trace)

    def offers(self) -> Sequence[Offer]:
        return (self._offer,)

    async def wait(self, seconds: float | None) -> None:
        await self._watch.changed(seconds)
        links = find_links((EVERY,))
        if links != self._links:
            self._links = links
            self.changes += 1


class Bootstrap:
    """One run of the configured method on an unconfigured state folder; `run` ends with an LDevID or raises.

    `listener` gets an event per step, `learn` moments that have passed. Raises BootstrapNotConfigured,
    BootstrapGaveUp, and for method est the refusal that no repetition would change.
    """

    def __init__(
        self,
        settings: ProxySettings,
        state: ProxyState,
        clock: Clock,
        *,
        listener: Listener | None = None,
        timing: Timing | None = None,
        learn: Callable[[datetime | None], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._state = state
        self._clock = clock
        self._timing = timing or Timing()
        self._sleep = sleep
        self._learn = learn
        self._reporter = Reporter(settings.method, clock, listener)
        self._enrol = EnrolPhase(
            state,
            clock,
            self._reporter,
            self._timing,
            clock_trusted=settings.trust_clock,
            label=settings.est_label,
            learn=learn,
            sleep=sleep,
        )
        self._deadline = clock.monotonic() + settings.give_up_seconds if settings.give_up_seconds else None

    async def run(self) -> BootstrapReport:
        """Bootstrap, and leave the report in the state folder whatever the outcome."""
        outcome = "interrupted"
        try:
            if self._settings.method == "brski":
                material = read_brski(self._settings)
                self._begin()
                await self._brski(material)
            else:
                preconfigured = read_est(self._settings)
                self._begin()
                await self._est(preconfigured)
            outcome = "ok"
        except Refusal as refusal:
            outcome = refusal.reason
            raise
        finally:
            report = self._reporter.report(outcome)
            self._state.write("bootstrap.json", report.write())
        return report

    def _begin(self) -> None:
        """The method is written down before anything is sent (A-82)."""
        self._state.write("method", self._settings.method.encode() + b"\n")
        self._reporter.step("bootstrap-started", method=self._settings.method)

    # -- BRSKI ---------------------------------------------------------------------------------------------------

    async def _brski(self, material: BrskiMaterial) -> None:
        phase = VoucherPhase(
            material.pledge,
            material.client,
            self._clock,
            self._reporter,
            self._timing,
            media_type=VOUCHER_FORMATS[self._settings.voucher_format],
            clock_trusted=self._settings.trust_clock,
            sleep=self._sleep,
        )
        named = material.registrar is not None
        timers = Timers(self._timing.first_pause, 0.0 if named else self._timing.round)
        async with self._source(material.registrar) as source:
            hunt = Hunt(source, phase.attempt, timers, self._clock, self._reporter, self._timing, named=named)
            while True:
                try:
                    async with asyncio.timeout(self._remaining()):
                        imprint, offer = await hunt.next()
                except TimeoutError as cause:
                    raise self._gave_up(hunt.last) from cause
                try:
                    await self._enrol_imprinted(imprint, material)
                    return
                except ProxyStateDamaged:
                    raise  # a full disk is not the registrar's fault, and another voucher does not help
                except Refusal as refusal:
                    hunt.failed(offer, refusal)

    async def _enrol_imprinted(self, imprint: Imprint, material: BrskiMaterial) -> None:
        line = imprint.line
        if imprint.voucher.nonce is not None:
            self._learn(imprint.voucher.created_on)  # made after we asked
        try:
            enrolled = await self._enrol.first(line)
        except Refusal as refusal:
            self._reporter.refused("enrolment-failed", refusal, server=imprint.target.authority)
            with contextlib.suppress(Refusal):
                await self._enrol.report_failure(line, refusal.reason)
            raise
        finally:
            await line.connection.close()
        suffix = "vjj" if imprint.media_type == VOUCHER_JWS_JSON else "cms"
        self._state.write(f"voucher-request.{suffix}", imprint.request)
        self._state.write(f"voucher.{suffix}", imprint.sealed)
        unique = chains.spki_sha256(material.pledge.idevid.certificate)
        voucher_sha256 = hashlib.sha256(imprint.sealed).hexdigest()
        self._enrol.store(enrolled, self._record(enrolled, imprint.target, unique, voucher_sha256))
        try:
            await self._enrol.report_success(imprint.target)
        except Refusal as refusal:
            # the LDevID stands; the report is repeated while the proxy runs
            self._reporter.refused("enroll-status-failed", refusal)

    @contextlib.asynccontextmanager
    async def _source(self, registrar: Target | None) -> AsyncIterator[Offers]:
        if registrar is not None:
            async with Configured(registrar) as configured:
                yield configured
            return
        async with Discovery(
            self._settings.interfaces, queries=QueryTiming(listen=self._settings.discovery_listen_seconds)
        ) as discovery:
            yield discovery

    # -- EST -----------------------------------------------------------------------------------------------------

    async def _est(self, material: EstMaterial) -> None:
        failures = 0
        last: Refusal | None = None
        while True:
            self._check_deadline(last)
            try:
                async with asyncio.timeout(self._remaining()):
                    await self._est_once(material)
                return
            except TimeoutError as cause:
                raise self._gave_up(last) from cause
            except Refusal as refusal:
                self._reporter.refused("attempt-failed", refusal, server=material.server.authority)
                if not _may_pass(refusal):
                    raise
                last = refusal
            failures += 1
            pause = backoff_seconds(failures, first_seconds=self._timing.first_pause)
            remaining = self._remaining()
            await self._sleep(pause if remaining is None else min(pause, remaining))

    async def _est_once(self, material: EstMaterial) -> None:
        anchors = material.anchors
        if material.fingerprint:
            anchors = (await self._fetch_confirmed_root(material),)

        async def connect() -> Connection:
            connection = await open_verified(
                material.server,
                anchors,
                material.client,
                seconds=self._timing.connect,
                trust_clock=self._settings.trust_clock,
                implicit=material.implicit,
            )
            by = "implicit" if material.implicit else "explicit"
            self._reporter.step("server-verified", server=material.server.authority, anchors=by)
            return connection

        line = Line(await connect(), connect)
        try:
            enrolled = await self._enrol.first(line, authorization=material.authorization)
        finally:
            await line.connection.close()
        self._enrol.store(enrolled, self._record(enrolled, material.server, secrets.token_bytes(32)))

    async def _fetch_confirmed_root(self, material: EstMaterial) -> x509.Certificate:
        """cacerts over a connection that may carry nothing else, believed by the fingerprint (RFC 7030, 4.1.1)."""
        connection = await open_anchorless(material.server, seconds=self._timing.connect)
        try:
            reply = await connection.exchange(EstClient().cacerts_call(), seconds=self._timing.call)
        finally:
            await connection.close()
        if reply.status != 200:
            raise EnrollmentRefused(f"the EST server answered cacerts with {reply.status}", status=reply.status)
        try:
            certificates = cms.read_certs_only(transfer.read_base64(reply.body, max_bytes=len(reply.body) + 1))
        except EstError as cause:
            raise ReplyNotAccepted(f"the CA certificates cannot be read: {cause.detail}") from cause
        digest = hashlib.sha256 if len(material.fingerprint) == 32 else hashlib.sha512
        for one in certificates:
            if digest(one.public_bytes(Encoding.DER)).digest() == material.fingerprint:
                self._reporter.step("root-confirmed", server=material.server.authority)
                return one
        raise FingerprintMismatch("none of the server's CA certificates has the configured fingerprint")

    # -- both ----------------------------------------------------------------------------------------------------

    def _record(self, enrolled: Enrolled, target: Target, unique: bytes, voucher_sha256: str = "") -> ProxyRecord:
        """`unique`: 32 octets that stay with this device: those of its IDevID key, or random ones."""
        return ProxyRecord(
            identifier=enrolled.identifier,
            host=target.host,
            port=target.port,
            named=target.named,
            method=self._settings.method,
            ueid=(b"\x01" + unique).hex(),
            voucher_sha256=voucher_sha256,
            enroll_status_sent=self._settings.method == "est",
        )

    def _remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._clock.monotonic())

    def _check_deadline(self, last: Refusal | None) -> None:
        if self._remaining() == 0.0:
            raise self._gave_up(last)

    def _gave_up(self, last: Refusal | None) -> BootstrapGaveUp:
        why = "nobody announced a registrar" if last is None else f"the last one: {last.detail} ({last.reason})"
        return BootstrapGaveUp(
            f"no LDevID within {self._settings.give_up_seconds:g} s; {why}",
            because="" if last is None else last.reason,
        )


def _may_pass(refusal: Refusal) -> bool:
    """Whether trying again may help: a wrong or spent secret or a foreign server does not get better by repetition."""
    if isinstance(refusal, EnrollmentRefused):
        status = refusal.fields.get("status")
        return isinstance(status, int) and status >= 500
    return isinstance(refusal, PeerUnreachable | PeerSilent | ConnectionClosed)
