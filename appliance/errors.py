"""What the appliance itself refuses, as classes; the HTTP status of each stands in appliance/web/statuses.py.

Refusal
└── ApplianceError          (abstract; never raised bare)
    ├── NotFound  Conflict  NotPermitted  RequestMalformed  KeyInUse
    ├── CertificateRequired  TokenRequired
    ├── RateLimited  QueueFull  Overloaded  StoreBusy  DiskFull  StoreUnavailable   (carry retry_after_seconds)
    ├── RouteUnknown  HttpMalformed  RequestTooSlow  AnswerTooSlow  ExpectationRefused
    │                       (the web front also raises est's MethodNotAllowed, BodyTooLarge, MediaTypeNotAccepted)
    ├── HomeMissing  HomeLocked  StoreMissing  StoreForeign
    ├── PassphraseWrong  KeyFileMissing  KeyFileExposed  KeyFileExists  KeyMalformed  KeyMismatch
    └── CaUnsuitable  CaExpired  CertificateUnknown  IssuanceFailed  ClockWentBack  AuditBroken
"""

from __future__ import annotations

from typing import ClassVar

from est.errors import Refusal


class ApplianceError(Refusal):
    """Base of the appliance's own refusals; abstract."""


class NotFound(ApplianceError):
    """The thing that the request names does not exist."""

    reason: ClassVar[str] = "not-found"


class Conflict(ApplianceError):
    """A row with the same key exists, or the record is not in the state that the change starts from."""

    reason: ClassVar[str] = "conflict"


class NotPermitted(ApplianceError):
    """The caller is known, and may not do this."""

    reason: ClassVar[str] = "not-permitted"


class RequestMalformed(ApplianceError):
    """An argument or body of an administrative request cannot be read."""

    reason: ClassVar[str] = "request-malformed"


class KeyInUse(ApplianceError):
    """The key in the certification request belongs to a certificate of somebody else (E-204)."""

    reason: ClassVar[str] = "key-in-use"


class CertificateRequired(ApplianceError):
    """The route needs a client certificate, and the connection has none that serves."""

    reason: ClassVar[str] = "certificate-required"


class TokenRequired(ApplianceError):
    """The route needs a bearer token, and the request has none that is known."""

    reason: ClassVar[str] = "token-required"


class RateLimited(ApplianceError):
    """The caller's token bucket is empty; fields: retry_after_seconds."""

    reason: ClassVar[str] = "rate-limited"


class QueueFull(ApplianceError):
    """A bounded queue has no room; fields: retry_after_seconds."""

    reason: ClassVar[str] = "queue-full"


class Overloaded(ApplianceError):
    """More is asked than can be answered in time; fields: retry_after_seconds."""

    reason: ClassVar[str] = "overloaded"


class StoreBusy(ApplianceError):
    """Too many transactions wait, or another process holds the database; fields: retry_after_seconds."""

    reason: ClassVar[str] = "store-busy"


class StoreUnavailable(ApplianceError):
    """The database cannot be read or written: closed, damaged, replaced, or on a failing disk."""

    reason: ClassVar[str] = "store-unavailable"


class DiskFull(ApplianceError):
    """The disk is below the watermark `store.free_bytes`; nothing was written or signed."""

    reason: ClassVar[str] = "disk-full"


class StoreMissing(ApplianceError):
    """There is no database where one is expected; it is never made again silently, that would forget revocations."""

    reason: ClassVar[str] = "store-missing"


class StoreForeign(ApplianceError):
    """The database was not made by this program, or by a later version of it."""

    reason: ClassVar[str] = "store-foreign"


class RouteUnknown(ApplianceError):
    """No route has this path."""

    reason: ClassVar[str] = "route-unknown"


class HttpMalformed(ApplianceError):
    """The bytes are not the HTTP that this server reads: bad framing, an over-long header block, a coded body."""

    reason: ClassVar[str] = "http-malformed"


class RequestTooSlow(ApplianceError):
    """The request did not arrive within its deadline."""

    reason: ClassVar[str] = "request-too-slow"


class AnswerTooSlow(ApplianceError):
    """The request was read, and its answer did not come within the route's deadline."""

    reason: ClassVar[str] = "answer-too-slow"


class ExpectationRefused(ApplianceError):
    """The request carries Expect or Upgrade, which this server does not do."""

    reason: ClassVar[str] = "expectation-refused"


class HomeMissing(ApplianceError):
    """The state folder does not exist or was never initialised."""

    reason: ClassVar[str] = "home-missing"


class HomeLocked(ApplianceError):
    """Another process runs on the same state folder."""

    reason: ClassVar[str] = "home-locked"


class PassphraseWrong(ApplianceError):
    """The passphrase does not open the key file."""

    reason: ClassVar[str] = "passphrase-wrong"


class TpmUnavailable(ApplianceError):
    """The TPM does not answer or refuses, the passphrase is wrong, or the package that talks to it is missing."""

    reason: ClassVar[str] = "tpm-unavailable"


class KeyFileMissing(ApplianceError):
    """A key or certificate file does not exist or cannot be read."""

    reason: ClassVar[str] = "key-file-missing"


class KeyFileExposed(ApplianceError):
    """A key file can be read by others than its owner."""

    reason: ClassVar[str] = "key-file-exposed"


class KeyFileExists(ApplianceError):
    """A key file is never written over."""

    reason: ClassVar[str] = "key-file-exists"


class KeyMalformed(ApplianceError):
    """A key or sealed value cannot be read, or is of a kind that is not used here."""

    reason: ClassVar[str] = "key-malformed"


class KeyMismatch(ApplianceError):
    """A private key and the certificate that stands beside it do not belong together."""

    reason: ClassVar[str] = "key-mismatch"


class CaUnsuitable(ApplianceError):
    """A CA certificate lacks cA, keyCertSign or its path length, so it must not sign (A-10)."""

    reason: ClassVar[str] = "ca-unsuitable"


class CaExpired(ApplianceError):
    """The issuing CA's life does not cover the certificate to be issued."""

    reason: ClassVar[str] = "ca-expired"


class CertificateUnknown(ApplianceError):
    """No certificate with this issuer and serial was issued here."""

    reason: ClassVar[str] = "certificate-unknown"


class IssuanceFailed(ApplianceError):
    """A finished certificate failed its own check; it was not handed out."""

    reason: ClassVar[str] = "issuance-failed"


class ClockWentBack(ApplianceError):
    """The clock is behind the last audit entry; nothing is issued until it is right."""

    reason: ClassVar[str] = "clock-went-back"


class AuditBroken(ApplianceError):
    """The audit log's chain does not verify; fields: position, the first bad sequence."""

    reason: ClassVar[str] = "audit-broken"
