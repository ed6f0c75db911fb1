"""What the registrar and its EST service refuse beyond brski's and est's own leaves.

ApplianceError
├── the bootstrap
│   ├── EnrollmentNotOpen        no voucher, no positive telemetry, or the pledge said no (RFC 8995, section 5.8.3)
│   ├── HistoryUnjudged          the audit log could not be fetched yet; later may help
│   ├── PledgeClash              another certificate already stands for this issuer and serial number
│   ├── EnrolledAlready          this bootstrap has its certificate; a new one needs a new voucher-request
│   ├── MasaBusy                 as many calls to this MASA are under way as may be; later may help
│   └── MasaCredentialsUnusable  the files for one MASA cannot be used
├── enrolment
│   ├── EnrollmentCredentialsMissing  neither a known client certificate nor HTTP Basic
│   ├── EnrollmentSecretInvalid  HTTP Basic name or secret unknown, expired or spent
│   ├── ProxyRevoked             the identity proxy was revoked
│   ├── LdevidNotAccepted        the client certificate is not a live LDevID of this domain
│   ├── TooManyLdevids           the proxy has as many live certificates as it may
│   ├── EnrollmentDenied         a person said no to this request
│   ├── LabelNotYours            the client belongs to another EST label
│   ├── NamesNotJustified        the CSR claims a name that its sender has no right to
│   ├── NameChangeRefused        ChangeSubjectName asks for what the EST label does not give
│   ├── AuthorityNotWanted       a registration authority under a label without them, or for a proxy of others
│   ├── DecryptKeyUnknown        serverkeygen: the key that the answer shall be encrypted with is not known
│   └── EncryptionRequired       serverkeygen: the label sends no key in clear
└── administration
    ├── SharedKeysUnusable       the file of symmetric keys for serverkeygen cannot be read
    ├── ManufacturerUnusable     anchors, MASA address or options of a manufacturer cannot be used
    ├── DeviceFileRefused        a CSV file of expected devices cannot be taken in
    └── PrefetchNotPossible      no voucher can be fetched ahead for this device
"""

from __future__ import annotations

from typing import ClassVar

from appliance.errors import ApplianceError

CHALLENGE = 'Basic realm="enrollment"'
"""What a 401 of simpleenroll asks for, also when the credentials were wrong (E-46)."""


class EnrollmentNotOpen(ApplianceError):
    """EST from an IDevID needs a voucher, the pledge's yes to it, and a good history (RFC 8995, section 5.8.3)."""

    reason: ClassVar[str] = "enrollment-not-open"


class HistoryUnjudged(ApplianceError):
    """The device's audit log could not be fetched from the MASA; nothing is issued before it was judged."""

    reason: ClassVar[str] = "device-history-unjudged"


class PledgeClash(ApplianceError):
    """Issuer and serial number already stand for a device of another manufacturer, or for another certificate."""

    reason: ClassVar[str] = "pledge-clash"


class EnrolledAlready(ApplianceError):
    """This bootstrap already has its one certificate (B-375)."""

    reason: ClassVar[str] = "enrolled-already"


class EnrollmentCredentialsMissing(ApplianceError):
    """Neither a client certificate that is known here nor HTTP Basic credentials (RFC 7030, section 3.2.3)."""

    reason: ClassVar[str] = "enrollment-credentials-missing"

    def __init__(self, detail: str = "", /, **fields: object) -> None:
        # Bouncy Castle 1.72 gives up on a challenge with a body instead of answering it
        super().__init__(detail, **{"www_authenticate": CHALLENGE, "bare": True, **fields})


class EnrollmentSecretInvalid(ApplianceError):
    """HTTP Basic credentials that are not a live one-time enrolment secret; it is not said why."""

    reason: ClassVar[str] = "enrollment-secret-invalid"

    def __init__(self, detail: str = "", /, **fields: object) -> None:
        super().__init__(detail, **{"www_authenticate": CHALLENGE, **fields})


class ProxyRevoked(ApplianceError):
    """The identity proxy is suspended, or was revoked and its identifier never comes back."""

    reason: ClassVar[str] = "proxy-revoked"


class LdevidNotAccepted(ApplianceError):
    """The TLS client certificate is not a live LDevID that this domain issued to a proxy."""

    reason: ClassVar[str] = "ldevid-not-accepted"


class EnrollmentDenied(ApplianceError):
    """A person denied this request under an EST label whose requests wait for approval; the text has the reason."""

    reason: ClassVar[str] = "enrollment-denied"


class LabelNotYours(ApplianceError):
    """The client enrolled, or was admitted, under another EST label than the one that it asks."""

    reason: ClassVar[str] = "est-label-not-yours"


class NamesNotJustified(ApplianceError):
    """The certification request claims a name that its sender has no right to (RFC 8995, section 5.9)."""

    reason: ClassVar[str] = "names-not-justified"


class NameChangeRefused(ApplianceError):
    """ChangeSubjectName (RFC 6402, section 2.8) asks for names that this EST label does not give."""

    reason: ClassVar[str] = "name-change-refused"


class AuthorityNotWanted(ApplianceError):
    """A registration authority asks where the EST label has none, or for a proxy that none of them enrolled."""

    reason: ClassVar[str] = "authority-not-wanted"


class DecryptKeyUnknown(ApplianceError):
    """The key by which a made key shall be encrypted is unknown; it is not sent in clear instead (RFC 7030, 4.4.1)."""

    reason: ClassVar[str] = "decrypt-key-unknown"


class EncryptionRequired(ApplianceError):
    """The EST label sends made keys encrypted only, and the request names no key to encrypt with."""

    reason: ClassVar[str] = "key-encryption-required"


class SharedKeysUnusable(ApplianceError):
    """The file of symmetric keys of an EST label holds something else, too."""

    reason: ClassVar[str] = "shared-keys-unusable"


class ManufacturerUnusable(ApplianceError):
    """Anchors, MASA address or MASA anchors of a manufacturer cannot be used."""

    reason: ClassVar[str] = "manufacturer-unusable"


class MasaBusy(ApplianceError):
    """Too many calls wait for this MASA, whose limit of calls at once is used up; fields: retry_after_seconds."""

    reason: ClassVar[str] = "masa-busy"


class MasaCredentialsUnusable(ApplianceError):
    """Client certificate, key or secret file for one MASA cannot be read, or others may read it too."""

    reason: ClassVar[str] = "masa-credentials-unusable"


class TooManyLdevids(ApplianceError):
    """The identity proxy holds as many live certificates as `registrar.max_ldevids` allows."""

    reason: ClassVar[str] = "too-many-ldevids"


class DeviceFileRefused(ApplianceError):
    """The CSV file of expected devices cannot be taken in; `line` says where."""

    reason: ClassVar[str] = "device-file-refused"


class PrefetchNotPossible(ApplianceError):
    """No voucher can be fetched ahead: it is switched off, or the site does not know enough of the device."""

    reason: ClassVar[str] = "prefetch-not-possible"
