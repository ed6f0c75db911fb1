"""EST over a connection whose server is trusted: CA certificates, attributes, the LDevID, and the report about it.

RFC 7030, section 4, in the order of RFC 8995, section 5.9. Both bootstrap methods and renewal go this way, so they end
in the same state: explicit trust anchors, a client certificate, its key.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import identifier
from appliance.binding.errors import BindingError
from appliance.clock import Clock
from appliance.proxy import asking
from appliance.proxy.asking import Asking
from appliance.proxy.connection import Connection, Target, open_verified
from appliance.proxy.line import Line
from appliance.proxy.report import Reporter
from appliance.proxy.state import ProxyRecord, ProxyState
from appliance.proxy.timing import Timing
from brski import paths as brski_paths
from brski import telemetry
from est import chains
from est.client import CaCertificates, EstClient, Pending
from est.csrattrs import CsrAttrs
from est.errors import EstError, ReplyNotAccepted
from est.exchange import Call
from est.linking import binding_text

JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A checked LDevID: the certificate, its issuers without the root, the CA certificates, and who it names."""

    certificate: x509.Certificate
    issuers: tuple[x509.Certificate, ...]
    trust: CaCertificates
    identifier: str


class EnrolPhase:
    """Gets one certificate. `learn` hears of moments that have passed; `sleep` is asyncio.sleep, or a test's own."""

    def __init__(
        self,
        state: ProxyState,
        clock: Clock,
        reporter: Reporter,
        timing: Timing,
        *,
        clock_trusted: bool = True,
        label: str = "",
        learn: Callable[[datetime | None], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._state = state
        self._clock = clock
        self._reporter = reporter
        self._timing = timing
        self._clock_trusted = clock_trusted
        self._learn = learn
        self._sleep = sleep
        self._client = EstClient(label=label or None)

    async def first(self, line: Line, *, authorization: str = "") -> Enrolled:
        """cacerts, csrattrs, simpleenroll. `authorization` is the HTTP header's value, for the last two.

        Names and key of the request are those that the server asks for. Raises EstError and ProxyError leaves.
        """
        trust = await self.fetch_anchors(line)
        wanted = asking.first(await self._ask_attributes(line, authorization))
        key, request = self._new_request(wanted)

        def call(request: bytes) -> Call:
            made = self._client.simpleenroll_call(request)
            return replace(made, headers={**made.headers, "authorization": authorization}) if authorization else made

        return await self._request(line, call, wanted, request, key, trust)

    async def again(self, line: Line) -> Enrolled:
        """Fresh anchors, and simplereenroll with a new key; the names stay those of the certificate held now.

        Raises EstError and ProxyError leaves.
        """
        trust = await self.fetch_anchors(line)
        old = self._state.ldevid_chain()[0]
        wanted = asking.again(old)
        key, request = self._new_request(wanted)
        enrolled = await self._request(line, self._client.simplereenroll_call, wanted, request, key, trust)
        if enrolled.identifier != self._state.record().identifier:
            raise ReplyNotAccepted("the renewed LDevID names another proxy")
        return enrolled

    async def fetch_anchors(self, line: Line) -> CaCertificates:
        """The domain's CA certificates; they must vouch for the server that handed them out."""
        reply = await line.exchange(self._client.cacerts_call(), seconds=self._timing.call)
        connection = line.connection
        self._learn(connection.date)
        trust = self._client.read_cacerts(reply, at=self._at())
        try:
            chains.check(
                connection.leaf,
                _issuers(connection.leaf, (*connection.chain[1:], *trust.others)),
                trust.anchors,
                at=self._clock.now(),
                policy=chains.PINNED_SERVER,
                ignore_expiry=not self._clock_trusted,
            )
        except EstError as cause:
            raise ReplyNotAccepted(
                "the CA certificates do not vouch for the server that sent them", because=cause.reason
            ) from cause
        self._reporter.step("anchors-fetched", certificates=1 + len(trust.others))
        return trust

    def store(self, enrolled: Enrolled, record: ProxyRecord) -> None:
        """Make it the proxy's own; the last file written turns the folder from unconfigured to configured."""
        self._state.write_anchors((enrolled.trust.root,))
        self._state.write_record(record)
        self._state.adopt((enrolled.certificate, *enrolled.issuers))
        self._reporter.step(
            "ldevid-stored",
            proxy=enrolled.identifier,
            serial=f"{enrolled.certificate.serial_number:x}",
            not_after=enrolled.certificate.not_valid_after_utc.isoformat(),
        )

    async def report_success(self, target: Target) -> None:
        """A new TLS connection with the LDevID, and the good news over it (RFC 8995, section 5.9.4)."""
        connection = await open_verified(
            target,
            self._state.anchors(),
            self._state.credential(),
            seconds=self._timing.connect,
            trust_clock=self._clock_trusted,
        )
        try:
            self._reporter.step("server-verified", server=target.authority)
            await connection.exchange(_enroll_status(True), seconds=self._timing.call)
        finally:
            await connection.close()
        self._state.note_enroll_status()
        self._reporter.step("enroll-status-sent", status=True)

    async def report_failure(self, line: Line, reason: str) -> None:
        """The bad news, on the connection that failed (RFC 8995, section 5.9.4).

        Where that is what failed, on another to the same server. Raises ProxyError leaves.
        """
        await line.restore()
        await line.connection.exchange(_enroll_status(False, reason), seconds=self._timing.call)
        self._reporter.step("enroll-status-sent", status=False)

    async def _ask_attributes(self, line: Line, authorization: str) -> CsrAttrs:
        """What the request must have; the question is mandatory (RFC 8995, section 5.9.2).

        An answer that cannot be read is none: the server will say what it misses.
        """
        call = self._client.csrattrs_call()
        if authorization:
            call = replace(call, headers={**call.headers, "authorization": authorization})
        reply = await line.exchange(call, seconds=self._timing.call)
        try:
            wanted, problem = self._client.read_csrattrs(reply), ""
        except EstError as refusal:
            wanted, problem = CsrAttrs(), refusal.reason
        self._reporter.step("attributes-asked", status=reply.status, **({"problem": problem} if problem else {}))
        return wanted

    async def _request(
        self,
        line: Line,
        call: Callable[[bytes], Call],
        wanted: Asking,
        request: bytes,
        key: ec.EllipticCurvePrivateKey,
        trust: CaCertificates,
    ) -> Enrolled:
        bound: dict[Connection, Call] = {}

        def on(connection: Connection) -> Call:
            """The request bound to its connection, made once for each (RFC 7030, section 4.2.3; E-15, E-75)."""
            if connection not in bound:
                binding = connection.binding()
                bound[connection] = call(
                    request if binding is None else wanted.request(key, binding=binding_text(binding))
                )
            return bound[connection]

        while True:
            reply = await line.exchange(on, seconds=self._timing.call)
            got = self._client.read_enrolled(reply, key.public_key(), csr_der=request, trust=trust, at=self._at())
            if not isinstance(got, Pending):
                break
            # never sooner than asked, and not all proxies in the same second
            later = got.retry_after_seconds * (1 + JITTER * random.SystemRandom().random())
            wait = min(later, self._timing.longest_enrol_wait)
            self._reporter.step("enrolment-pending", "enrolment-pending", wait_seconds=round(wait, 1))
            await self._sleep(wait)
        chains.check_end_entity(got, chains.CLIENT)
        self._learn(got.not_valid_before_utc)
        enrolled = Enrolled(got, _issuers(got, trust.others), trust, _proxy_named_in(got))
        self._reporter.step("ldevid-received", proxy=enrolled.identifier)
        return enrolled

    def _new_request(self, wanted: Asking) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """A key and its request, kept before they leave.

        Those of an enrolment whose answer was lost are used again byte for byte, so that the server can tell.
        """
        staged = self._state.staged()
        if staged is not None and wanted.fits(staged[1]):
            return staged
        key = ec.generate_private_key(wanted.curve)
        der = wanted.request(key)
        self._state.stage(key, der)
        return key, der

    def _at(self) -> datetime | None:
        return self._clock.now() if self._clock_trusted else None


def _enroll_status(ok: bool, reason: str = "") -> Call:
    body = telemetry.write(telemetry.EnrollStatus(ok, reason))
    return Call("POST", brski_paths.ENROLL_STATUS, brski_paths.JSON, body=body)


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    for extension in chains.extensions_of(certificate):
        if isinstance(extension.value, x509.SubjectAlternativeName):
            return extension.value
    return None


def _proxy_named_in(certificate: x509.Certificate) -> str:
    """The one URI of an LDevID; without it the proxy has no name and no use for the certificate."""
    names = _alternative_names(certificate)
    uris = [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ReplyNotAccepted("the LDevID does not carry exactly one URI that names this proxy")
    try:
        return identifier.read_kind(uris[0], identifier.Kind.PROXY).uri
    except BindingError as cause:
        raise ReplyNotAccepted("the LDevID's URI is not the identifier of a proxy") from cause


def _issuers(certificate: x509.Certificate, pool: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The issuers of a certificate among `pool`, next one first, without self-signed ones."""
    known, found = list(pool), list[x509.Certificate]()
    current = certificate
    while len(found) < chains.MAX_CHAIN - 1:
        for one in known:
            if one.subject == current.issuer and one not in found and not chains.is_self_signed(one):
                try:
                    current.verify_directly_issued_by(one)
                except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
                    continue
                found.append(one)
                current = one
                break
        else:
            break
    return tuple(found)
