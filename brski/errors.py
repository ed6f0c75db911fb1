"""What brski refuses, as classes.

Refusal
└── BrskiError                      (abstract; never raised bare)
    ├── messages
    │   ├── MediaTypeUnsupported        the body is in a format that no codec here reads
    │   ├── FormatNotAcceptable         the peer accepts none of the formats we can answer in
    │   ├── VoucherRequestMalformed     not a voucher-request
    │   ├── VoucherRequestSignatureInvalid
    │   ├── VoucherMalformed            not a voucher
    │   ├── VoucherSignatureInvalid     signature broken, or by somebody who is not the MASA
    │   ├── TelemetryMalformed
    │   ├── AuditLogMalformed
    │   ├── JwsMalformed, JwsNotAccepted, JwsSignatureInvalid   why a JWS is none of the above
    │   ├── AnnouncementInvalid         a DNS-SD string that cannot be announced
    │   └── DialectUnknown              a configured tolerance that does not exist
    ├── the registrar about a pledge
    │   ├── ClientCertificateMissing    no IDevID on the connection
    │   ├── DeviceSerialMissing         certificate without exactly one serialNumber attribute
    │   ├── ManufacturerUnknown         IDevID chain ends in no configured anchor
    │   ├── PledgeNotAuthorized         the site's policy says no
    │   ├── RequestSignerForeign        voucher-request signed by another key than the TLS client's
    │   ├── SerialNumberMismatch        serial inside the request is not that of the certificate
    │   ├── ProximityMismatch           proximity-registrar-cert is not the certificate of this connection: close it
    │   ├── NonceMissing, NonceInvalid
    │   ├── MasaUriInvalid, MasaUnknown, MasaNotAllowed
    │   └── RegistrarCertificateUnfit   our own certificate cannot sign this request
    ├── the registrar about the MASA
    │   ├── MasaRefused                 a reasoned no (403, 404)
    │   ├── MasaFormatRefused           406, 415
    │   ├── MasaAuthenticationRequired  401: an administrator has to act
    │   ├── MasaAnswerInvalid           not an answer of RFC 8995
    │   ├── MasaUnavailable             5xx
    │   ├── MasaUnreachable, MasaTimedOut   (raised where the sockets are)
    │   └── DeviceHistoryRefused        the audit log breaks the site's policy
    ├── the MASA
    │   ├── RegistrarNotAuthorized      signer without id-kp-cmcRA
    │   ├── RegistrarUnauthenticated    nonceless request of a stranger
    │   ├── RegistrarChainBroken        certificates of the request do not form a chain
    │   ├── PriorRequestInvalid         the pledge's request inside does not stand
    │   ├── NonceMismatch
    │   ├── DeviceUnknown, DeviceClaimed, DeviceBlocked
    │   ├── NeverOwner                  audit log asked by a domain that never had a voucher
    │   └── PinForbidden                the certificate to be pinned is shared by the public
    ├── the pledge about a voucher
    │   ├── VoucherPending              202: ask again with the very same request
    │   ├── RegistrarRefused            4xx, 5xx, redirect
    │   ├── VoucherForOtherDevice, VoucherForOtherRequest, VoucherNonceless
    │   ├── VoucherExpired, VoucherNotYetValid
    │   ├── AssertionNotAcceptable
    │   ├── PinMissing
    │   └── DomainNotPinned             the TLS peer is not what the voucher vouches for
    └── OutOfOrder                      an event that the record's state does not allow
"""

from __future__ import annotations

from typing import ClassVar

from est.errors import Refusal


class BrskiError(Refusal):
    """Base of brski's refusals; abstract."""


class MediaTypeUnsupported(BrskiError):
    """The body's media type names a format that no codec here reads (RFC 8995, section 5.6)."""

    reason: ClassVar[str] = "media-type-unsupported"


class FormatNotAcceptable(BrskiError):
    """The caller's Accept header names none of the formats we can answer in (RFC 8995, section 5.6)."""

    reason: ClassVar[str] = "voucher-format-not-acceptable"


class VoucherRequestMalformed(BrskiError):
    """The body is not a voucher-request: CMS or JWS frame, JSON, keys or leaf types."""

    reason: ClassVar[str] = "voucher-request-malformed"


class VoucherRequestSignatureInvalid(BrskiError):
    """The signature over a voucher-request does not verify."""

    reason: ClassVar[str] = "voucher-request-signature-invalid"


class VoucherMalformed(BrskiError):
    """The body is not a voucher: CMS or JWS frame, JSON, keys or leaf types."""

    reason: ClassVar[str] = "voucher-malformed"


class VoucherSignatureInvalid(BrskiError):
    """The signature over a voucher does not verify, or its signer is not one of the manufacturer's."""

    reason: ClassVar[str] = "voucher-signature-invalid"


class TelemetryMalformed(BrskiError):
    """A status message that is not one (RFC 8995, sections 5.7 and 5.9.4)."""

    reason: ClassVar[str] = "telemetry-malformed"


class AuditLogMalformed(BrskiError):
    """The MASA's audit log does not have the shape of RFC 8995, section 5.8.1."""

    reason: ClassVar[str] = "audit-log-malformed"


class JwsMalformed(BrskiError):
    """Not the one JSON form of JWS that we read (RFC 7515, section 7.2.1)."""

    reason: ClassVar[str] = "jws-malformed"


class JwsNotAccepted(BrskiError):
    """A JWS outside the profile: number of signatures, header parameters, algorithm, certificates."""

    reason: ClassVar[str] = "jws-not-accepted"


class JwsSignatureInvalid(BrskiError):
    """The signature of a JWS does not verify with the key of its first certificate (RFC 7515, section 5.2)."""

    reason: ClassVar[str] = "jws-signature-invalid"


class AnnouncementInvalid(BrskiError):
    """A service or variation string that DNS-SD cannot carry."""

    reason: ClassVar[str] = "announcement-invalid"


class DialectUnknown(BrskiError):
    """A dialect switch that does not exist; field `known` lists those that do."""

    reason: ClassVar[str] = "dialect-unknown"


class ClientCertificateMissing(BrskiError):
    """The connection carries no IDevID; a pledge authenticates with its TLS client certificate."""

    reason: ClassVar[str] = "client-certificate-missing"


class DeviceSerialMissing(BrskiError):
    """The device certificate has not exactly one X.520 serialNumber attribute (RFC 8995, section 2.3.1)."""

    reason: ClassVar[str] = "device-serial-missing"


class ManufacturerUnknown(BrskiError):
    """The IDevID's chain does not end in a configured manufacturer anchor (RFC 8995, section 5.1)."""

    reason: ClassVar[str] = "manufacturer-unknown"


class PledgeNotAuthorized(BrskiError):
    """The site's policy does not let this device in (RFC 8995, section 5.3)."""

    reason: ClassVar[str] = "pledge-not-authorized"


class RequestSignerForeign(BrskiError):
    """The voucher-request was signed by another key than the one that authenticated the connection."""

    reason: ClassVar[str] = "request-signer-foreign"


class SerialNumberMismatch(BrskiError):
    """The serial-number in the request is not the one of the authenticated certificate (RFC 8995, section 5.5)."""

    reason: ClassVar[str] = "serial-number-mismatch"


class ProximityMismatch(BrskiError):
    """The pledge saw another registrar certificate than ours: somebody may sit in the middle (RFC 8995, section 5.2).

    Whoever answers this closes the connection afterwards.
    """

    reason: ClassVar[str] = "proximity-mismatch"


class NonceMissing(BrskiError):
    """A voucher-request without a nonce, which the policy does not allow."""

    reason: ClassVar[str] = "nonce-missing"


class NonceInvalid(BrskiError):
    """A nonce shorter than 8 or longer than 32 octets (RFC 8366, section 5.3)."""

    reason: ClassVar[str] = "nonce-invalid"


class MasaUriInvalid(BrskiError):
    """The MASA URI of an IDevID or of the configuration is not an HTTPS authority or URI (RFC 8995, section 2.3.2)."""

    reason: ClassVar[str] = "masa-uri-invalid"


class MasaUnknown(BrskiError):
    """Neither the IDevID nor the manufacturer's configuration names a MASA (RFC 8995, section 2.8)."""

    reason: ClassVar[str] = "masa-unknown"


class MasaNotAllowed(BrskiError):
    """The IDevID names a MASA that is not on the manufacturer's list."""

    reason: ClassVar[str] = "masa-not-allowed"


class RegistrarCertificateUnfit(BrskiError):
    """Our own certificate, key or chain cannot make this voucher-request; an administrator's matter."""

    reason: ClassVar[str] = "registrar-certificate-unfit"


class MasaRefused(BrskiError):
    """The MASA answered with a reasoned no; `status` in the fields."""

    reason: ClassVar[str] = "masa-refused"


class MasaFormatRefused(BrskiError):
    """The MASA cannot read or produce this voucher format (406, 415)."""

    reason: ClassVar[str] = "masa-format-refused"


class MasaAuthenticationRequired(BrskiError):
    """The MASA wants the registrar to authenticate (401): an administrator has to act (RFC 8995, section 5.4)."""

    reason: ClassVar[str] = "masa-authentication-required"


class MasaAnswerInvalid(BrskiError):
    """The MASA's answer is not one of RFC 8995, section 5.6 or 5.8."""

    reason: ClassVar[str] = "masa-answer-invalid"


class MasaUnavailable(BrskiError):
    """The MASA answered with a server error; later may help."""

    reason: ClassVar[str] = "masa-unavailable"


class MasaUnreachable(BrskiError):
    """No connection to the MASA, or no trust in its TLS certificate; raised by whoever owns the sockets."""

    reason: ClassVar[str] = "masa-unreachable"


class MasaTimedOut(BrskiError):
    """The MASA did not answer in time; raised by whoever owns the sockets."""

    reason: ClassVar[str] = "masa-timed-out"


class DeviceHistoryRefused(BrskiError):
    """The device's audit log breaks the site's policy (RFC 8995, section 5.8.3)."""

    reason: ClassVar[str] = "device-history-refused"


class RegistrarNotAuthorized(BrskiError):
    """The signer of a registrar voucher-request lacks id-kp-cmcRA (RFC 8995, section 5.5.4)."""

    reason: ClassVar[str] = "registrar-not-authorized"


class RegistrarUnauthenticated(BrskiError):
    """A nonceless request whose registrar nobody vouches for (RFC 8995, section 5.5.4)."""

    reason: ClassVar[str] = "registrar-unauthenticated"


class RegistrarChainBroken(BrskiError):
    """The certificates of a registrar voucher-request do not form a valid chain (RFC 8995, section 5.5.3)."""

    reason: ClassVar[str] = "registrar-chain-broken"


class PriorRequestInvalid(BrskiError):
    """The prior-signed-voucher-request does not stand: signer, device or form (RFC 8995, section 5.5.5)."""

    reason: ClassVar[str] = "prior-request-invalid"


class NonceMismatch(BrskiError):
    """Nonces of the registrar's and of the pledge's request differ (RFC 8995, section 5.5.6)."""

    reason: ClassVar[str] = "nonce-mismatch"


class DeviceUnknown(BrskiError):
    """The MASA never sold this device."""

    reason: ClassVar[str] = "device-unknown"


class DeviceClaimed(BrskiError):
    """Another domain holds a voucher for this device that may not be overridden (RFC 8995, section 5.6)."""

    reason: ClassVar[str] = "device-claimed"


class DeviceBlocked(BrskiError):
    """The manufacturer issues no voucher for this device, for instance because it was reported stolen."""

    reason: ClassVar[str] = "device-blocked"


class NeverOwner(BrskiError):
    """The audit log was asked for by a domain that never had a voucher for the device (RFC 8995, section 5.8)."""

    reason: ClassVar[str] = "never-owner"


class PinForbidden(BrskiError):
    """The certificate to be pinned belongs to a CA that strangers share; anybody could claim the device."""

    reason: ClassVar[str] = "pin-forbidden"


class VoucherPending(BrskiError):
    """The decision is not taken yet; the very same request is repeated after `retry_after_seconds`."""

    reason: ClassVar[str] = "voucher-pending"

    def __init__(self, detail: str = "", /, *, retry_after_seconds: int, **fields: object) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds, **fields)
        self.retry_after_seconds = retry_after_seconds


class RegistrarRefused(BrskiError):
    """The registrar answered with anything but a voucher; `status` in the fields. Redirects are not followed."""

    reason: ClassVar[str] = "registrar-refused"


class VoucherForOtherDevice(BrskiError):
    """serial-number or idevid-issuer of the voucher name another device (RFC 8995, section 5.6.1)."""

    reason: ClassVar[str] = "voucher-for-other-device"


class VoucherForOtherRequest(BrskiError):
    """The voucher's nonce is not the one sent in this attempt (RFC 8995, section 5.6.1)."""

    reason: ClassVar[str] = "voucher-for-other-request"


class VoucherNonceless(BrskiError):
    """A voucher without a nonce, which the local policy does not allow."""

    reason: ClassVar[str] = "voucher-nonceless"


class VoucherExpired(BrskiError):
    """expires-on has passed."""

    reason: ClassVar[str] = "voucher-expired"


class VoucherNotYetValid(BrskiError):
    """created-on lies in the future by more than the tolerated skew."""

    reason: ClassVar[str] = "voucher-not-yet-valid"


class AssertionNotAcceptable(BrskiError):
    """The voucher asserts less (or something else) than the local policy demands."""

    reason: ClassVar[str] = "assertion-not-acceptable"


class PinMissing(BrskiError):
    """The voucher pins no certificate."""

    reason: ClassVar[str] = "pin-missing"


class DomainNotPinned(BrskiError):
    """The certificate chain of the connection does not verify against the voucher's pin (RFC 8995, section 5.6.2)."""

    reason: ClassVar[str] = "domain-not-pinned"


class OutOfOrder(BrskiError):
    """An event that the record's present state does not allow."""

    reason: ClassVar[str] = "out-of-order"
