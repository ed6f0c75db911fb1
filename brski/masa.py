"""The manufacturer's service: checks of a registrar's voucher-request, the voucher, the audit log (RFC 8995, sections
5.5, 5.6 and 5.8).

Pure: ownership comes in through `Ownership`, the new log entry goes out in the Grant and is to be stored before, or in
one transaction with, the answer. Revocation lists are arguments as well: whoever owns the files or sockets brings them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from brski import audit_log, paths, sealed, voucher, voucher_request
from brski.audit_log import AuditLog, LogEntry
from brski.dialect import STRICT, Dialect
from brski.errors import (
    BrskiError,
    DeviceBlocked,
    DeviceClaimed,
    DeviceUnknown,
    FormatNotAcceptable,
    NeverOwner,
    NonceMismatch,
    PinForbidden,
    PriorRequestInvalid,
    ProximityMismatch,
    RegistrarChainBroken,
    RegistrarNotAuthorized,
    RegistrarUnauthenticated,
    SerialNumberMismatch,
    VoucherRequestMalformed,
)
from brski.idevid import idevid_issuer, is_same_issuer, read_serial_number
from brski.leaves import Assertion, read_certificate
from brski.states import DeviceEvent, DeviceState, after
from brski.voucher import Voucher
from brski.voucher_request import VoucherRequest
from est import chains
from est.certificates import check_readable
from est.crl import RevocationLists
from est.errors import EstError
from est.exchange import Call, Reply
from est.signer import Signer


@dataclass(frozen=True, slots=True)
class Device:
    """One sold device: which, its state, its history, whose it is.

    `owners` holds, oldest first, the SHA-256 of the public key (SPKI) of every certificate that was pinned for it;
    `sold_to` likewise the domain keys it is known to have been sold to, if any. Keys and not domainIDs, because a
    subject key identifier is whatever its CA wrote into the certificate.
    """

    serial_number: str
    issuer: bytes
    log: AuditLog = field(default=AuditLog())
    state: DeviceState = DeviceState.UNCLAIMED
    owners: tuple[bytes, ...] = ()
    sold_to: frozenset[bytes] = frozenset()


class Ownership(Protocol):
    """What the manufacturer knows about its devices."""

    def find(self, serial_number: str, issuer: bytes | None) -> Device | None:
        """The device; `issuer` is the idevid-issuer of the request, None if it has none. None = never sold."""
        ...


@dataclass(frozen=True, slots=True)
class MasaPolicy:
    """How generous a MASA is.

    `override`: a device with a voucher out may be claimed by another domain (audit-only; False = the first registrar
    wins, RFC 8995, section 7.4.2). `demand_prior`: the pledge's own request must be inside a nonced one.
    `demand_proximity`: the registrar that the pledge saw must be the one that asks; False = otherwise the voucher says
    logged. `demand_issuer`: idevid-issuer must be there, as RFC 8366bis says and the examples of RFC 8995 do not.
    `serials_are_unique`: False = vouchers name the issuer too. `formats`: media types of requests, and so of vouchers.
    `dialect`: what is tolerated of registrars and of the devices behind them. `registrar_anchors`: who may ask without
    a nonce, where the connection does not authenticate. `forbidden_pins`: SHA-256 of public keys never pinned (public
    CAs).
    """

    override: bool = True
    demand_prior: bool = True
    demand_proximity: bool = True
    demand_issuer: bool = False
    serials_are_unique: bool = True
    accept_id_data: bool = True
    formats: frozenset[str] = sealed.EVERY_FORMAT
    dialect: Dialect = STRICT
    registrar_anchors: chains.TrustAnchors | None = None
    forbidden_pins: frozenset[bytes] = frozenset()
    nonceless_lifetime: timedelta = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Grant:
    """A voucher that is ready to leave: store `entry`, `owner` and `state` for the device, then send `reply`."""

    reply: Reply
    voucher: Voucher
    entry: LogEntry
    owner: bytes
    device: Device
    state: DeviceState


@dataclass(frozen=True, slots=True)
class _Asked:
    """A registrar's request that stands: chain from its signer upwards, as far as it was sent."""

    request: VoucherRequest
    chain: tuple[x509.Certificate, ...]
    media_type: str
    is_base64: bool = False
    is_proximate: bool = False
    device_certificate: x509.Certificate | None = None


class Masa:
    """The voucher service of one manufacturer.

    `signer` and `chain` (its certificate first) sign vouchers; `idevid_anchors` end the chains of its devices.
    `lasting` is a second signer with its chain for vouchers without a nonce: they are good for long and can be kept, so
    the key that answers day by day should not be able to make them (RFC 8995, section 11.6.2.2).
    """

    def __init__(
        self,
        signer: Signer,
        chain: Sequence[x509.Certificate],
        idevid_anchors: chains.TrustAnchors,
        policy: MasaPolicy | None = None,
        *,
        lasting: tuple[Signer, Sequence[x509.Certificate]] | None = None,
    ) -> None:
        self._signer = signer
        self._chain = tuple(chain)
        self._lasting = lasting or (signer, self._chain)
        self._idevid_anchors = idevid_anchors
        self._policy = policy or MasaPolicy()

    def issue(
        self,
        call: Call,
        ownership: Ownership,
        *,
        now: datetime,
        is_authenticated: bool = False,
        revocation: RevocationLists | None = None,
    ) -> Grant:
        """Check a registrar voucher-request and make the voucher (RFC 8995, sections 5.5.1 to 5.6).

        `is_authenticated` says that the connection itself authenticated the registrar; the registrar's chain is held
        against `revocation`. Raises MediaTypeUnsupported, FormatNotAcceptable, VoucherRequestMalformed,
        VoucherRequestSignatureInvalid, RegistrarNotAuthorized, RegistrarChainBroken, RegistrarUnauthenticated,
        PriorRequestInvalid, ProximityMismatch, SerialNumberMismatch, NonceMismatch, DeviceUnknown, DeviceClaimed,
        DeviceBlocked, PinForbidden.
        """
        media_type = sealed.read_media_type(
            call.media_type, call.headers.get("accept", ""), formats=self._policy.formats
        )
        asked = self._read(call, media_type, now, revocation)
        if asked.request.nonce is None and not is_authenticated and not self._is_known(asked, now):
            raise RegistrarUnauthenticated("a request without a nonce needs a registrar that is known here")
        device = self._find(asked, ownership)
        pin = self._pin(asked)
        owner = chains.spki_sha256(pin)
        if device.state is DeviceState.BLOCKED:
            raise DeviceBlocked("no voucher is issued for this device")
        is_open = self._policy.override or device.state is DeviceState.UNCLAIMED
        if not is_open and owner not in device.owners[-1:]:
            raise DeviceClaimed("another domain holds the voucher of this device")
        granted = Voucher(
            serial_number=device.serial_number,
            assertion=_assertion(asked, device),
            pinned_domain_cert=pin.public_bytes(Encoding.DER),
            created_on=now,
            nonce=asked.request.nonce,
            expires_on=self._expiry(asked, pin, now) if asked.request.nonce is None else None,
            idevid_issuer=None if self._policy.serials_are_unique else device.issuer,
            domain_cert_revocation_checks=False,
        )
        content = voucher.write(granted)
        body = self._sign(content, media_type, is_lasting=granted.nonce is None, now=now)
        granted = voucher.read(content, sealed=body)  # what leaves is read by the code that its receiver will use
        return Grant(
            reply=Reply(200, media_type, body=sealed.wrap(body, media_type, in_base64=asked.is_base64)),
            voucher=granted,
            entry=LogEntry(now, audit_log.domain_id(pin), asked.request.nonce, granted.assertion.value),
            owner=owner,
            device=device,
            state=after(device.state, DeviceEvent.VOUCHER_ISSUED),
        )

    def seal(self, granted: Voucher, media_type: str, *, now: datetime) -> bytes:
        """The signed form of a voucher."""
        return self._sign(voucher.write(granted), media_type, is_lasting=granted.nonce is None, now=now)

    def _sign(self, content: bytes, media_type: str, *, is_lasting: bool, now: datetime) -> bytes:
        signer, chain = self._lasting if is_lasting else (self._signer, self._chain)
        return sealed.seal(
            content,
            media_type,
            signer=signer,
            certificate=chain[0],
            certificates=chain[1:],
            now=now,
        )

    def audit_log(
        self, call: Call, ownership: Ownership, *, now: datetime, revocation: RevocationLists | None = None
    ) -> Reply:
        """The history of a device, for a domain that has or had a voucher for it (RFC 8995, section 5.8).

        Raises what `issue` raises about the request, and NeverOwner.
        """
        media_type = sealed.read_media_type(call.media_type, formats=self._policy.formats)
        if not paths.is_acceptable(call.headers.get("accept", ""), paths.JSON):
            raise FormatNotAcceptable("an audit log is JSON", format=paths.JSON)
        asked = self._read(call, media_type, now, revocation)
        device = self._find(asked, ownership)
        if not any(chains.spki_sha256(certificate) in device.owners for certificate in asked.chain):
            raise NeverOwner("this domain never had a voucher for the device")
        return Reply(200, paths.JSON, body=audit_log.write(audit_log.prune(device.log)))

    def _read(self, call: Call, media_type: str, now: datetime, revocation: RevocationLists | None) -> _Asked:
        request, opened = self._unseal(call.body, media_type)
        if request.proximity_registrar_cert is not None:
            raise VoucherRequestMalformed("a registrar's request has no proximity-registrar-cert")
        asked = _Asked(request, self._check_registrar(opened, now, revocation), media_type, opened.is_base64)
        if request.prior_signed_voucher_request is None:
            if self._policy.demand_prior and request.nonce is not None:
                raise PriorRequestInvalid("the pledge's own request is missing")
            return asked
        return self._check_prior(asked, request.prior_signed_voucher_request, now)

    def _check_registrar(
        self, opened: sealed.Unsealed, now: datetime, revocation: RevocationLists | None
    ) -> tuple[x509.Certificate, ...]:
        # Without this any certificate of a domain could claim devices for it (RFC 8995, section 5.5.4).
        try:
            chains.check_end_entity(opened.signer, chains.REGISTRAR)
        except EstError as cause:
            raise RegistrarNotAuthorized(
                "the request's signer is not a registration authority", because=cause.reason
            ) from cause
        try:
            path = presented = presented_path(opened.signer, opened.certificates[1:])
            # the topmost certificate sent is an anchor for consistency only (RFC 8995, section 5.5.3)
            if len(presented) == 1:
                chains.check_pin(presented, opened.signer, at=now, policy=chains.REGISTRAR)
            else:
                top = chains.TrustAnchors(presented[-1:])
                path = chains.check(opened.signer, presented[1:], top, at=now, policy=chains.REGISTRAR)
            if revocation is not None:
                revocation.check(path, at=now)
            return path
        except EstError as cause:
            raise RegistrarChainBroken(
                "the certificates of the request do not form a valid chain", because=cause.reason
            ) from cause

    def _check_prior(self, asked: _Asked, body: bytes, now: datetime) -> _Asked:
        try:
            prior, opened = self._unseal(body, asked.media_type)
            path = chains.check(
                opened.signer,
                opened.certificates[1:],
                self._idevid_anchors,
                at=now,
                policy=chains.IDEVID,
                ignore_expiry=True,
            )
            serial_number = read_serial_number(opened.signer)
        except (EstError, BrskiError) as cause:
            raise PriorRequestInvalid("the pledge's request is not one of our devices", because=cause.reason) from cause
        if not serial_number == prior.serial_number == asked.request.serial_number:
            raise SerialNumberMismatch("the serial numbers of request, pledge's request and device differ")
        issuer = asked.request.idevid_issuer
        if issuer is not None and not is_same_issuer(issuer, opened.signer, path[1] if len(path) > 1 else None):
            raise SerialNumberMismatch("idevid-issuer is not that of the device")
        if prior.nonce != asked.request.nonce:
            raise NonceMismatch("the nonces of the request and the pledge's request differ")
        is_proximate = self._is_proximate(prior, asked)
        return replace(asked, is_proximate=is_proximate, device_certificate=opened.signer)

    def _is_proximate(self, prior: VoucherRequest, asked: _Asked) -> bool:
        """Whether the pledge saw, in TLS, a key of the chain that asks (RFC 8995, section 5.5.5)."""
        try:
            if prior.proximity_registrar_cert is None:
                raise ProximityMismatch("the pledge's request names no registrar certificate")
            seen = read_certificate(prior.proximity_registrar_cert, "proximity-registrar-cert", PriorRequestInvalid)
            if chains.spki_sha256(seen) not in {chains.spki_sha256(certificate) for certificate in asked.chain}:
                raise ProximityMismatch("the pledge asked for another registrar")
        except ProximityMismatch:
            if self._policy.demand_proximity:
                raise
            return False
        return prior.assertion is Assertion.PROXIMITY

    def _unseal(self, body: bytes, media_type: str) -> tuple[VoucherRequest, sealed.Unsealed]:
        return voucher_request.unseal(
            body, media_type, accept_id_data=self._policy.accept_id_data, dialect=self._policy.dialect
        )

    def _is_known(self, asked: _Asked, now: datetime) -> bool:
        if self._policy.registrar_anchors is None:
            return False
        try:
            chains.check(
                asked.chain[0], asked.chain[1:], self._policy.registrar_anchors, at=now, policy=chains.REGISTRAR
            )
        except EstError:
            return False
        return True

    def _find(self, asked: _Asked, ownership: Ownership) -> Device:
        issuer = asked.request.idevid_issuer
        if asked.device_certificate is not None:
            issuer = idevid_issuer(asked.device_certificate)
        elif issuer is None and self._policy.demand_issuer:
            raise VoucherRequestMalformed("idevid-issuer is missing")
        device = ownership.find(asked.request.serial_number, issuer)
        if device is None:
            raise DeviceUnknown("no such device was sold")
        return device

    def _pin(self, asked: _Asked) -> x509.Certificate:
        """Nonced: the lowest CA sent; nonceless: the highest; only the end entity sent: that one."""
        authorities = asked.chain[1:]
        pin = asked.chain[0]
        if authorities:
            pin = authorities[0] if asked.request.nonce is not None else authorities[-1]
        if chains.spki_sha256(pin) in self._policy.forbidden_pins:
            raise PinForbidden("this CA certifies strangers; it is not pinned")
        return pin

    def _expiry(self, asked: _Asked, pin: x509.Certificate, now: datetime) -> datetime:
        return min(now + self._policy.nonceless_lifetime, pin.not_valid_after_utc, asked.chain[0].not_valid_after_utc)


def presented_path(leaf: x509.Certificate, others: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """`leaf`, its issuer, the issuer's issuer, as far as names and key identifiers of `others` say.

    Nothing is verified; what does not belong is left out.
    """
    path = [leaf]
    left = [certificate for certificate in others if certificate != leaf and _is_readable(certificate)]
    while len(path) < chains.MAX_CHAIN:
        issuer = next((one for one in left if _names(path[-1], one)), None)
        if issuer is None:
            break
        path.append(issuer)
        left.remove(issuer)
    return tuple(path)


def _is_readable(certificate: x509.Certificate) -> bool:
    """A certificate is loaded by its outline only; one whose inside does not read belongs to no path."""
    try:
        check_readable(certificate)
    except EstError:
        return False
    return True


def _names(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    wanted, own = chains.aki_of(certificate), chains.ski_of(issuer)
    return wanted is None or own is None or wanted == own


def _assertion(asked: _Asked, device: Device) -> Assertion:
    """What WE verified, never what was asked for (RFC 8995, section 5.5.5)."""
    if device.sold_to & {chains.spki_sha256(certificate) for certificate in asked.chain}:
        return Assertion.VERIFIED
    return Assertion.PROXIMITY if asked.is_proximate else Assertion.LOGGED
