"""What est refuses, as classes.

Refusal                          every refusal of the project: a stable reason, a public detail, structured fields
└── EstError                     abstract; never raised bare
    ├── BodyMalformed            not base64, not DER, not JSON: the bytes cannot be read
    ├── BodyTooLarge             more bytes than the limit of this body
    ├── MediaTypeNotAccepted     the request is not labelled as what the operation takes
    ├── OperationUnknown         no such EST operation here (also: fullcmc, serverkeygen where it is off)
    ├── LabelUnknown             no such EST label here
    ├── LabelNotUsable           a configured label that is an operation's name or not one path segment
    ├── MethodNotAllowed         GET where POST is meant, or the other way round; field `allow`
    ├── CsrMalformed             DER, but not an acceptable PKCS#10 request
    ├── CsrAttributesMalformed   an answer to csrattrs that cannot be read
    ├── CsrAttributeMissing      the request lacks what csrattrs asks for; field `item`
    ├── ProofOfPossessionFailed  the request is not signed by the key that it names
    ├── KeyNotAccepted           key type, curve, size or exponent outside the key policy
    ├── KeyWeak                  an RSA key that can be factored or is publicly known; field `weakness`
    ├── ExtensionNotGranted      the request asks for what is never given on request (CA, cmcRA)
    ├── NamesChanged             re-enrolment with another subject or subjectAltName
    ├── LinkingFailed            challengePassword is not the channel binding of this TLS session
    ├── CmsMalformed             not the one DER form of SignedData that we read
    ├── CmsNotAccepted           a SignedData, but outside the profile (content type, algorithms, signers, attributes)
    ├── CmsSignatureInvalid      digest or signature does not match
    ├── CertificateMalformed     a certificate that cannot be read, or is too large
    ├── ChainNotTrusted          no path to a trust anchor
    ├── ChainTooLong             more certificates than a chain may have
    ├── CertificateOutsideValidity  a path exists, but not at this time
    ├── CertificateRevoked       a certificate of the chain is on its issuer's CRL
    ├── RevocationUnknown        no current CRL of an issuer in the chain is at hand, and one is demanded
    ├── CertificatePurposeWrong  the end-entity certificate is not meant for this use
    ├── PinMismatch              the presented chain does not end in the pinned certificate's key
    ├── ShapeNotPossible         a certificate or CRL that must not or cannot be made
    ├── CertificateNotAsShaped   re-reading gave something else than was shaped, or the signature does not verify
    ├── ReplyNotAccepted         (client) the server's answer is not what RFC 7030 allows
    └── EnrollmentRefused        (client) the server said no; fields `status`, `text`
"""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):
    """Base of every refusal in the project; abstract.

    `reason` is a stable kebab-case slug, `detail` one public line for the human, `fields` structured public facts.
    A private cause is chained with `from`.
    """

    reason: ClassVar[str] = ""

    def __init__(self, detail: str = "", /, **fields: object) -> None:
        if not type(self).__dict__.get("reason"):
            raise TypeError(f"{type(self).__name__} is abstract: raise one of its leaves")
        super().__init__(detail or self.reason)
        self.detail = detail or self.reason.replace("-", " ")
        self.fields = fields


class EstError(Refusal):
    """Base of est's refusals; abstract."""


class BodyMalformed(EstError):
    """The bytes cannot be read as what they should be: base64, DER or JSON (RFC 8951, section 3)."""

    reason = "body-malformed"


class BodyTooLarge(EstError):
    """More bytes than the limit; field `limit` in bytes."""

    reason = "body-too-large"


class MediaTypeNotAccepted(EstError):
    """The request is not labelled as what the operation takes (RFC 7030, section 3.2.4); field `expected`."""

    reason = "media-type-not-accepted"


class OperationUnknown(EstError):
    """No such EST operation here; fullcmc is refused this way, and serverkeygen where it is off (RFC 7030, 3.2.2)."""

    reason = "est-operation-unknown"


class LabelUnknown(EstError):
    """No such EST label here (RFC 7030, section 3.2.2)."""

    reason = "est-label-unknown"


class LabelNotUsable(EstError):
    """A configured label equals an operation's name, or is not one path segment (RFC 7030, section 3.2.2)."""

    reason = "est-label-not-usable"


class MethodNotAllowed(EstError):
    """The operation exists under another HTTP method; field `allow`."""

    reason = "method-not-allowed"


class CsrMalformed(EstError):
    """DER, but not a PKCS#10 request that we accept (RFC 2986)."""

    reason = "csr-malformed"


class CsrAttributesMalformed(EstError):
    """The bytes are not CSR attributes (RFC 7030, section 4.5.2; RFC 9908)."""

    reason = "csr-attributes-malformed"


class CsrAttributeMissing(EstError):
    """The request lacks something that csrattrs asks for (RFC 8995, section 5.9.2); field `item` names it."""

    reason = "csr-attribute-missing"


class ProofOfPossessionFailed(EstError):
    """The request is not signed by the key that it names (RFC 7030, section 3.4)."""

    reason = "proof-of-possession-failed"


class KeyNotAccepted(EstError):
    """Key type, curve, size or exponent outside the key policy."""

    reason = "key-not-accepted"


class KeyWeak(EstError):
    """An RSA key whose modulus can be factored, or whose private half is known; field `weakness` says why."""

    reason = "key-weak"


class ExtensionNotGranted(EstError):
    """The request asks for what nobody gets by asking: a CA certificate or the cmcRA purpose."""

    reason = "requested-extension-not-granted"


class NamesChanged(EstError):
    """Subject or subjectAltName differ from those of the certificate being renewed (RFC 7030, section 4.2.2)."""

    reason = "names-changed"


class LinkingFailed(EstError):
    """challengePassword is not the channel binding of this TLS session (RFC 7030, section 3.5)."""

    reason = "tls-linking-failed"


class CmsMalformed(EstError):
    """Not the one DER form of SignedData that we read (RFC 5652, section 5)."""

    reason = "cms-malformed"


class CmsNotAccepted(EstError):
    """A SignedData outside the profile: content type, algorithms, number of signers, signed attributes."""

    reason = "cms-not-accepted"


class CmsSignatureInvalid(EstError):
    """Message digest or signature do not match (RFC 5652, section 5.6)."""

    reason = "cms-signature-invalid"


class CertificateMalformed(EstError):
    """A certificate that cannot be read, or is larger than we read."""

    reason = "certificate-malformed"


class ChainNotTrusted(EstError):
    """No path from the certificate to one of the trust anchors (RFC 5280, section 6)."""

    reason = "chain-not-trusted"


class ChainTooLong(EstError):
    """More certificates than a chain may have; field `limit`."""

    reason = "chain-too-long"


class CertificateOutsideValidity(EstError):
    """The path would be good at another time: something in it has expired or is not yet valid."""

    reason = "certificate-outside-validity"


class CertificateRevoked(EstError):
    """A certificate of the chain is on its issuer's revocation list (RFC 5280, section 6.3)."""

    reason: ClassVar[str] = "chain-certificate-revoked"


class RevocationUnknown(EstError):
    """A certificate says where its revocation list is, and no current one is at hand (RFC 5280, section 6.3.3)."""

    reason: ClassVar[str] = "chain-revocation-unknown"


class CertificatePurposeWrong(EstError):
    """The end-entity certificate is not meant for this use: key usage, extended key usage, CA flag, serial number."""

    reason = "certificate-purpose-wrong"


class PinMismatch(EstError):
    """The presented chain does not end in the pinned certificate's key (RFC 8995, section 5.6.2)."""

    reason = "pinned-certificate-mismatch"


class ShapeNotPossible(EstError):
    """A certificate or CRL that must not or cannot be made as asked."""

    reason = "shape-not-possible"


class CertificateNotAsShaped(EstError):
    """Re-reading gave something else than was shaped, or the signature does not verify: it must not leave."""

    reason = "certificate-not-as-shaped"


class ReplyNotAccepted(EstError):
    """The EST server's answer is not one that RFC 7030 allows here."""

    reason = "est-reply-not-accepted"


class EnrollmentRefused(EstError):
    """The EST server refused; fields `status` and `text` (printable, at most 500 characters)."""

    reason = "enrollment-refused"
