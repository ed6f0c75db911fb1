"""The registrar: from a pledge's voucher-request to the call to its MASA, and from the MASA's answer to the voucher
(RFC 8995, sections 5.2 to 5.6 and 5.8).

Two pure steps around one network call that is somebody else's: `Registrar.consider` checks and makes a MasaExchange,
`MasaExchange.conclude` reads what came back. Policy of the site (which devices, whose admission) comes between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from brski import audit_log, leaves, paths, sealed, voucher, voucher_request
from brski.audit_log import AuditLog
from brski.dialect import Dialect
from brski.errors import (
    MasaAnswerInvalid,
    MasaAuthenticationRequired,
    MasaFormatRefused,
    MasaRefused,
    MasaUnavailable,
    NonceInvalid,
    NonceMissing,
    ProximityMismatch,
    RegistrarCertificateUnfit,
    RequestSignerForeign,
    SerialNumberMismatch,
    VoucherRequestMalformed,
)
from brski.idevid import IDevID, MasaAddress, is_same_issuer
from brski.leaves import Assertion
from brski.manufacturer import KnownPledge, Manufacturer, identify
from brski.voucher import Voucher
from brski.voucher_request import VoucherRequest
from est import chains
from est.errors import EstError
from est.exchange import Call, Reply
from est.signer import Signer


@dataclass(frozen=True, slots=True)
class RegistrarPolicy:
    """What a registrar takes from pledges.

    `accept_id_data` also reads CMS with eContentType id-data; `formats` are the media types of voucher-requests.
    """

    accept_nonceless: bool = False
    accept_id_data: bool = True
    formats: frozenset[str] = sealed.EVERY_FORMAT


@dataclass(frozen=True, slots=True)
class MasaExchange:
    """One question to a MASA, and how its answers are read.

    `call` goes to `masa` (url below) over HTTPS with the name checked, at most once per `transaction`: a pledge that
    repeats its request during 202 repeats the transaction (RFC 8995, section 5.6). Afterwards `audit_log_call` goes to
    the same MASA. `is_base64`: the pledge asked in base64 text and is answered so (a dialect).
    """

    pledge: KnownPledge
    masa: MasaAddress
    call: Call
    request: VoucherRequest
    transaction: str
    own_chain: tuple[x509.Certificate, ...]
    accept_id_data: bool = True
    is_base64: bool = False

    @property
    def idevid(self) -> IDevID:
        """The device that asks."""
        return self.pledge.idevid

    @property
    def authority(self) -> str:
        """host:port of the MASA."""
        return self.masa.authority

    @property
    def url(self) -> str:
        """Where `call` goes."""
        return self.masa.url("requestvoucher")

    @property
    def audit_log_url(self) -> str:
        """Where `audit_log_call` goes."""
        return self.masa.url("requestauditlog")

    @property
    def audit_log_call(self) -> Call:
        """The question for the device's history: the same signed request again (RFC 8995, section 5.8)."""
        path = f"{self.masa.path}/requestauditlog"
        return Call("POST", path, self.call.media_type, {"accept": paths.JSON}, self.call.body)

    def conclude(self, reply: Reply, now: datetime) -> Voucher:
        """The voucher in the MASA's answer; its `sealed` bytes go to the pledge unchanged.

        Only what the registrar can know is checked: the pledge alone has the anchors for the signature's chain. Raises
        MasaRefused, MasaFormatRefused, MasaAuthenticationRequired, MasaUnavailable, MasaAnswerInvalid, PinMissing,
        VoucherMalformed, VoucherSignatureInvalid.
        """
        dialect = self.pledge.manufacturer.dialect
        check_masa_reply(reply, self.call.media_type, dialect)
        received, _ = voucher.unseal(
            reply.body, self.call.media_type, accept_id_data=self.accept_id_data, dialect=dialect
        )
        if received.serial_number != self.request.serial_number:
            raise MasaAnswerInvalid("the MASA's voucher is for another device")
        if received.idevid_issuer is not None and not is_same_issuer(received.idevid_issuer, self.idevid.certificate):
            raise MasaAnswerInvalid("the MASA's voucher is for a device of another issuer")
        if received.nonce is not None and received.nonce != self.request.nonce:
            raise MasaAnswerInvalid("the MASA's voucher is for another request")
        if received.expires_on is not None and received.expires_on <= now:
            raise MasaAnswerInvalid("the MASA's voucher has expired")
        pin = received.pin()
        if chains.spki_sha256(pin) not in {chains.spki_sha256(certificate) for certificate in self.own_chain}:
            raise MasaAnswerInvalid("the MASA's voucher pins a certificate that is not ours")
        return received

    def reply(self, granted: Voucher) -> Reply:
        """The answer to the pledge: the signed voucher, byte for byte."""
        return self.reply_with(granted.sealed)

    def reply_with(self, artefact: bytes) -> Reply:
        """`reply` for a voucher that was kept as its signed bytes."""
        media_type = self.call.media_type
        return Reply(200, media_type, body=sealed.wrap(artefact, media_type, in_base64=self.is_base64))

    def read_audit_log(self, reply: Reply) -> AuditLog:
        """The device's history; raises the MASA's refusals as `conclude` does, and AuditLogMalformed."""
        check_masa_reply(reply, paths.JSON, self.pledge.manufacturer.dialect)
        return audit_log.read(reply.body)

    def follow_audit_log(self, reply: Reply) -> Call | None:
        """The call that fetches a log offered as 201 with a Location, None for any other answer.

        The Location must lie at the same MASA; raises MasaAnswerInvalid (RFC 8995, section 5.8).
        """
        return follow_audit_log(reply, self.masa)


class Registrar:
    """The domain's side.

    `certificate` is the end-entity certificate of `signer`, with id-kp-cmcRA; `chain` is what a MASA may pin beside it,
    next issuer first. Raises RegistrarCertificateUnfit.
    """

    def __init__(
        self,
        signer: Signer,
        certificate: x509.Certificate,
        chain: Sequence[x509.Certificate] = (),
        policy: RegistrarPolicy | None = None,
    ) -> None:
        self._policy = policy or RegistrarPolicy()
        self.use_identity(signer, certificate, chain)

    def use_identity(
        self, signer: Signer, certificate: x509.Certificate, chain: Sequence[x509.Certificate] = ()
    ) -> None:
        """Be this registrar from the next request on; raises as the constructor does, and nothing has changed then."""
        if chains.spki_sha256(certificate) != chains.spki_sha256(signer.public_key()):
            raise RegistrarCertificateUnfit("the registrar's certificate is not that of its key")
        try:
            chains.check_end_entity(certificate, chains.REGISTRAR)
        except EstError as cause:
            raise RegistrarCertificateUnfit(
                "the registrar's certificate is not one of a registration authority", because=cause.reason
            ) from cause
        self._signer = signer
        self._certificate = certificate
        self._chain = tuple(chain)
        self._own_keys = frozenset(chains.spki_sha256(one) for one in self.own_chain)

    @property
    def own_chain(self) -> tuple[x509.Certificate, ...]:
        """Our certificate and what a MASA may pin beside it."""
        return (self._certificate, *self._chain)

    @property
    def domain_ids(self) -> frozenset[bytes]:
        """The domainIDs under which a MASA may log our vouchers: one per certificate it may pin."""
        return frozenset(audit_log.domain_id(one) for one in self.own_chain)

    def consider(
        self,
        call: Call,
        peer_certificate: x509.Certificate | None,
        peer_chain: Sequence[x509.Certificate],
        manufacturers: Iterable[Manufacturer],
        *,
        tls_certificate: x509.Certificate,
        now: datetime,
    ) -> MasaExchange:
        """Check a pledge's voucher-request and make the registrar's own (RFC 8995, sections 5.2 to 5.5).

        `peer_certificate` and `peer_chain` are what the pledge presented in TLS, unverified; `tls_certificate` is the
        end-entity certificate that WE presented on that same connection. Raises MediaTypeUnsupported,
        FormatNotAcceptable, ClientCertificateMissing, ManufacturerUnknown, DeviceSerialMissing,
        VoucherRequestMalformed, VoucherRequestSignatureInvalid, RequestSignerForeign, SerialNumberMismatch,
        ProximityMismatch (close the connection), NonceMissing, NonceInvalid, MasaUnknown, MasaNotAllowed,
        MasaUriInvalid, RegistrarCertificateUnfit.
        """
        policy = self._policy
        media_type = sealed.read_media_type(call.media_type, call.headers.get("accept", ""), formats=policy.formats)
        pledge = identify(peer_certificate, peer_chain, manufacturers, now=now)
        dialect = pledge.manufacturer.dialect
        asked, opened = voucher_request.unseal(
            call.body, media_type, accept_id_data=policy.accept_id_data, dialect=dialect
        )
        self._check_request(asked, opened, pledge, tls_certificate)
        masa = pledge.manufacturer.masa_of(pledge.idevid)
        request = VoucherRequest(
            serial_number=pledge.idevid.serial_number,
            nonce=asked.nonce,
            assertion=asked.assertion,
            created_on=now,
            idevid_issuer=pledge.idevid.issuer,
            prior_signed_voucher_request=asked.sealed,
        )
        body = self.sign(request, media_type, now=now, dialect=dialect)
        return MasaExchange(
            pledge=pledge,
            masa=masa,
            call=Call("POST", f"{masa.path}/requestvoucher", media_type, {"accept": media_type}, body),
            request=request,
            transaction=transaction_of(call),
            own_chain=self.own_chain,
            accept_id_data=policy.accept_id_data,
            is_base64=opened.is_base64,
        )

    def sign(self, request: VoucherRequest, media_type: str, *, now: datetime, dialect: Dialect) -> bytes:
        """A voucher-request of the registrar, signed, in the form its MASA takes."""
        body = sealed.seal(
            voucher_request.write(request, dialect),
            media_type,
            signer=self._signer,
            certificate=self._certificate,
            certificates=self._chain,
            now=now,
        )
        return sealed.wrap(body, media_type, in_base64=dialect.base64_bodies)

    def _check_request(
        self,
        asked: VoucherRequest,
        opened: sealed.Unsealed,
        pledge: KnownPledge,
        tls_certificate: x509.Certificate,
    ) -> None:
        # Same key, not same certificate: RFC 8995's own example was signed under a re-issued certificate. Whoever holds
        # the key of the TLS client is the device that authenticated (RFC 8995, section 5.5).
        if chains.spki_sha256(opened.signer) != chains.spki_sha256(pledge.idevid.certificate):
            raise RequestSignerForeign("the voucher-request was signed by another key than the TLS client's")
        if asked.serial_number != pledge.idevid.serial_number:
            raise SerialNumberMismatch(
                "the voucher-request's serial-number is not the certificate's",
                claimed=asked.serial_number,
                authenticated=pledge.idevid.serial_number,
            )
        if asked.assertion is not Assertion.PROXIMITY:
            raise ProximityMismatch("the voucher-request does not assert proximity")
        if asked.proximity_registrar_cert != tls_certificate.public_bytes(Encoding.DER):
            raise ProximityMismatch("the pledge saw another registrar certificate than the one of this connection")
        if asked.prior_signed_voucher_request is not None:
            raise VoucherRequestMalformed("a pledge's voucher-request contains no other")
        if asked.nonce is None:
            if not self._policy.accept_nonceless:
                raise NonceMissing("the voucher-request has no nonce")
        elif leaves.nonce_octets(asked.nonce) not in leaves.nonce_lengths(pledge.manufacturer.dialect):
            raise NonceInvalid("a nonce has 8 to 32 octets")
        # Otherwise the MASA finds the pledge's registrar certificate nowhere in our chain (RFC 8995, section 5.5.5).
        if chains.spki_sha256(tls_certificate) not in self._own_keys:
            raise RegistrarCertificateUnfit(
                "the certificate of this connection is not in the chain that signs requests"
            )


def transaction_of(call: Call) -> str:
    """The key of a voucher request's transaction: SHA-256 of its body, hex. A retry has the same one."""
    return hashlib.sha256(call.body).hexdigest()


def follow_audit_log(reply: Reply, masa: MasaAddress) -> Call | None:
    """The call that fetches a log which `masa` offers as 201 with a Location; raises MasaAnswerInvalid."""
    if reply.status != 201:
        return None
    location = reply.headers.get("location", "")
    try:
        parts = urlsplit(location)
        authority = f"{parts.hostname}:{parts.port or 443}"
    except ValueError as cause:
        raise MasaAnswerInvalid("the audit log's location cannot be read") from cause
    own = urlsplit(masa.url("requestauditlog"))
    is_own = parts.scheme == "https" and "@" not in parts.netloc and authority == f"{own.hostname}:{own.port}"
    if not all("!" <= char <= "~" for char in location) or not parts.path.startswith("/"):
        raise MasaAnswerInvalid("the audit log's location cannot be read")
    if (parts.scheme or parts.netloc) and not is_own:
        raise MasaAnswerInvalid("the audit log is offered at another host")
    query = f"?{parts.query}" if parts.query else ""
    return Call("GET", f"{parts.path}{query}", headers={"accept": paths.JSON})


def check_masa_reply(reply: Reply, media_type: str, dialect: Dialect) -> None:
    """Refuse every answer of a MASA that is not 200 in the format that was asked for."""
    status = reply.status
    if status == 200:
        if not dialect.untyped_answers and paths.bare(reply.media_type) != media_type:
            raise MasaAnswerInvalid("the MASA answered in another format", media_type=paths.bare(reply.media_type)[:64])
        return
    if status == 401:
        raise MasaAuthenticationRequired("the MASA wants this registrar to authenticate", status=status)
    if status in (406, 415):
        raise MasaFormatRefused("the MASA does not take this voucher format", status=status)
    if status in (403, 404):
        raise MasaRefused("the MASA gives no voucher for this device", status=status)
    if 500 <= status <= 599:
        raise MasaUnavailable("the MASA reports a fault of its own", status=status)
    raise MasaAnswerInvalid(f"the MASA answered {status}", status=status)
