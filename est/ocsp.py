"""OCSP: what a request asks, and the response that says it (RFC 6960; RFC 5019 and RFC 9654 for what clients may send).

Pure: keys, times and the status of each certificate are arguments, the signature is put on by `assemble`. A request
names certificates by hashes of their issuer and by serial number; `IssuerNames` finds the issuer. The CertID goes back
as it came, byte for byte, because that is what clients compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from est import der as tlv
from est.errors import BodyMalformed, CertificateNotAsShaped, ShapeNotPossible
from est.keys import PublicKey, spki
from est.revocation import ECDSA, REASONS
from est.signer import signed_form

REQUEST_TYPE = "application/ocsp-request"
RESPONSE_TYPE = "application/ocsp-response"

MAX_REQUEST = 8192
MAX_CERTIFICATES = 16
"""Certificates in one request; more is malformed here."""
MAX_NONCE = 128
"""Octets (RFC 9654, section 2.1)."""

MALFORMED = b"\x30\x03\x0a\x01\x01"
INTERNAL_ERROR = b"\x30\x03\x0a\x01\x02"
TRY_LATER = b"\x30\x03\x0a\x01\x03"
UNAUTHORIZED = b"\x30\x03\x0a\x01\x06"
"""Responses without a signature (RFC 6960, section 4.2.1)."""

_HASHES = {
    tlv.oid("1.3.14.3.2.26"): "sha1",
    tlv.oid("2.16.840.1.101.3.4.2.1"): "sha256",
    tlv.oid("2.16.840.1.101.3.4.2.2"): "sha384",
    tlv.oid("2.16.840.1.101.3.4.2.3"): "sha512",
}
_BASIC = tlv.oid("1.3.6.1.5.5.7.48.1.1")
_NONCE = tlv.oid("1.3.6.1.5.5.7.48.1.2")
# Extensions of a request that may be critical: the nonce is answered, the kinds of response that a client reads
# (RFC 6960, section 4.4.3) always have the one kind there is, preferred algorithms are a wish.
_KNOWN = frozenset({_NONCE, tlv.oid("1.3.6.1.5.5.7.48.1.4"), tlv.oid("1.3.6.1.5.5.7.48.1.8")})
_GOOD = b"\x80\x00"
_UNKNOWN = b"\x82\x00"
_EMPTY_PARAMETERS = (b"", b"\x05\x00")


@dataclass(frozen=True, slots=True)
class CertId:
    """One certificate that is asked about; `der` is the CertID as it was sent."""

    der: bytes
    algorithm: bytes
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int


@dataclass(frozen=True, slots=True)
class OcspRequest:
    """A request: at least one certificate, and the nonce without its OCTET STRING, or None."""

    certificates: tuple[CertId, ...]
    nonce: bytes | None


@dataclass(frozen=True, slots=True)
class Revocation:
    """When and why (a name in REASONS) a certificate was revoked."""

    at: datetime
    reason: str = "unspecified"


@dataclass(frozen=True, slots=True)
class Single:
    """The answer for one certificate; `status` None = never issued here, True = good."""

    certificate: CertId
    status: Revocation | bool | None


class IssuerNames:
    """Finds an issuer by the hashes of its name and key, for every hash that a CertID may use."""

    def __init__(self, issuers: Mapping[str, x509.Certificate]) -> None:
        """Certificates of the CAs that are answered for, by any label."""
        self._known: dict[tuple[bytes, bytes, bytes], str] = {}
        for label, certificate in issuers.items():
            name, key = certificate.subject.public_bytes(), _key_bits(certificate)
            for algorithm, hash_name in _HASHES.items():
                hashed = tuple(hashlib.new(hash_name, data, usedforsecurity=False).digest() for data in (name, key))
                self._known[algorithm, hashed[0], hashed[1]] = label

    def of(self, certificate: CertId) -> str | None:
        """The label of the issuer, or None."""
        return self._known.get((certificate.algorithm, certificate.issuer_name_hash, certificate.issuer_key_hash))


def key_hash(key: PublicKey) -> bytes:
    """How a responder names itself: SHA-1 of its key (RFC 6960, section 4.2.1)."""
    return hashlib.sha1(_key_bits(key), usedforsecurity=False).digest()


def read_request(der: bytes) -> OcspRequest:
    """Read an OCSPRequest; raises BodyMalformed. A requestor's name and signature are passed over, nobody needs them.

    No certificate at all, more than MAX_CERTIFICATES, a nonce of no or more than 128 octets and an unknown critical
    extension are malformed too.
    """
    if len(der) > MAX_REQUEST:
        raise BodyMalformed("the OCSP request is too long")
    start, stop = tlv.only(der, 0, len(der), tlv.SEQUENCE)
    at, end = tlv.expect(der, start, stop, tlv.SEQUENCE)
    if end != stop:
        tlv.only(der, end, stop, 0xA0)
    tag, begin, after = tlv.read_tlv(der, at, end)
    if tag == 0xA0:  # version, whose only value is the default and so never stands in DER; some write it all the same
        if der[begin:after] != b"\x02\x01\x00":
            raise BodyMalformed("an OCSP request of another version than 1")
        at = after
        tag, begin, after = tlv.read_tlv(der, at, end)
    if tag == 0xA1:
        at = after
    first, last = tlv.expect(der, at, end, tlv.SEQUENCE)
    certificates: list[CertId] = []
    for kind, _, begin, after in tlv.elements(der, first, last):
        if kind != tlv.SEQUENCE or len(certificates) == MAX_CERTIFICATES:
            raise BodyMalformed(f"an OCSP request asks for 1 to {MAX_CERTIFICATES} certificates")
        certificates.append(_read_single(der, begin, after))
    if not certificates:
        raise BodyMalformed(f"an OCSP request asks for 1 to {MAX_CERTIFICATES} certificates")
    nonce = None
    if last != end:
        nonce = _read_extensions(der, *tlv.only(der, last, end, 0xA2))
    return OcspRequest(tuple(certificates), nonce)


def read_cert_id(der: bytes) -> CertId:
    """Read a CertID that stands alone; raises BodyMalformed."""
    return _read_cert_id(der, der, *tlv.only(der, 0, len(der), tlv.SEQUENCE))


def response_data(
    answers: Sequence[Single],
    *,
    responder: bytes,
    this_update: datetime,
    next_update: datetime,
    nonce: bytes | None = None,
) -> bytes:
    """DER ResponseData to be signed; `responder` is the key_hash() of its key. Raises ShapeNotPossible.

    `next_update` is always given, or clients could not cache (RFC 5019, section 2.2.4).
    """
    if not answers or next_update <= this_update:
        raise ShapeNotPossible("an OCSP response has an answer, and dates in order")
    produced = _generalized(this_update)
    dates = produced + tlv.tlv(0xA0, _generalized(next_update))
    extensions = b""
    if nonce is not None:
        extension = tlv.sequence(_NONCE, tlv.tlv(tlv.OCTET_STRING, tlv.tlv(tlv.OCTET_STRING, nonce)))
        extensions = tlv.tlv(0xA1, tlv.sequence(extension))
    return tlv.sequence(
        tlv.tlv(0xA2, tlv.tlv(tlv.OCTET_STRING, responder)),
        produced,
        tlv.sequence(*(tlv.sequence(one.certificate.der, _status(one.status), dates) for one in answers)),
        extensions,
    )


def assemble(
    data: bytes, signature: bytes, responder_key: ec.EllipticCurvePublicKey, certificate: bytes = b""
) -> bytes:
    """DER OCSPResponse, successful, from its signed part and the ECDSA signature, which is verified first.

    `certificate` is the delegated signer's, DER, empty where the CA itself signs. Raises CertificateNotAsShaped.
    """
    try:
        responder_key.verify(signature, *signed_form(data, responder_key))
    except InvalidSignature as error:
        raise CertificateNotAsShaped("the signature does not verify with the responder's key") from error
    basic = tlv.sequence(
        data,
        tlv.sequence(ECDSA[responder_key.curve.name]),
        tlv.tlv(tlv.BIT_STRING, b"\x00" + signature),
        _chain(certificate) if certificate else b"",
    )
    inner = tlv.sequence(_BASIC, tlv.tlv(tlv.OCTET_STRING, basic))
    return tlv.sequence(b"\x0a\x01\x00", tlv.tlv(0xA0, inner))


@lru_cache(maxsize=16)
def _chain(certificate: bytes) -> bytes:
    """The certs field, which is the same in every answer of one signer."""
    return tlv.tlv(0xA0, tlv.sequence(certificate))


def _read_single(der: bytes, at: int, end: int) -> CertId:
    begin, after = tlv.expect(der, at, end, tlv.SEQUENCE)
    found = _read_cert_id(der, der[at:after], begin, after)
    if after != end:
        # Whatever is asked about one certificate alone: nothing is understood, so nothing may be critical.
        _read_extensions(der, *tlv.only(der, after, end, 0xA0), single=True)
    return found


def _read_cert_id(der: bytes, whole: bytes, at: int, end: int) -> CertId:
    begin, after = tlv.expect(der, at, end, tlv.SEQUENCE)
    _, _, stop = tlv.read_tlv(der, begin, after)
    algorithm, parameters = der[begin:stop], der[stop:after]
    if parameters not in _EMPTY_PARAMETERS:
        raise BodyMalformed("a hash algorithm with parameters")
    name = tlv.expect(der, after, end, tlv.OCTET_STRING)
    key = tlv.expect(der, name[1], end, tlv.OCTET_STRING)
    serial = tlv.only(der, key[1], end, tlv.INTEGER)
    if serial[1] - serial[0] > 21:
        raise BodyMalformed("a serial number of more than 20 octets")
    return CertId(whole, algorithm, der[slice(*name)], der[slice(*key)], tlv.read_integer(der, serial))


def _read_extensions(der: bytes, at: int, end: int, *, single: bool = False) -> bytes | None:
    nonce = None
    begin, after = tlv.only(der, at, end, tlv.SEQUENCE)
    for tag, _, first, last in tlv.elements(der, begin, after):
        if tag != tlv.SEQUENCE:
            raise BodyMalformed("an extension is a SEQUENCE")
        _, _, stop = tlv.read_tlv(der, first, last)
        oid, critical = der[first:stop], False
        kind, _, next_ = tlv.read_tlv(der, stop, last)
        if kind == tlv.BOOLEAN:
            critical, stop = der[next_ - 1] == 0xFF, next_
        value = tlv.only(der, stop, last, tlv.OCTET_STRING)
        if critical and (single or oid not in _KNOWN):
            raise BodyMalformed("a critical extension that is not understood")
        if oid == _NONCE and not single:
            span = tlv.only(der, *value, tlv.OCTET_STRING)
            if nonce is not None or not 1 <= span[1] - span[0] <= MAX_NONCE:
                raise BodyMalformed(f"one nonce of 1 to {MAX_NONCE} octets")
            nonce = der[slice(*span)]
    return nonce


def _status(status: Revocation | bool | None) -> bytes:
    if not isinstance(status, Revocation):
        return _GOOD if status else _UNKNOWN
    if status.reason not in REASONS:
        raise ShapeNotPossible("a revocation needs a known reason")
    code = REASONS[status.reason]
    reason = tlv.tlv(0xA0, tlv.tlv(0x0A, bytes((code,)))) if code else b""
    return tlv.tlv(0xA1, _generalized(status.at) + reason)


@lru_cache(maxsize=64)
def _generalized(moment: datetime) -> bytes:
    utc = moment.astimezone(UTC)
    return tlv.tlv(tlv.GENERALIZED_TIME, f"{utc.year:04d}{utc:%m%d%H%M%S}Z".encode())


def _key_bits(key: x509.Certificate | PublicKey) -> bytes:
    """The subjectPublicKey BIT STRING without its header: what key hashes are made of (RFC 6960, section 4.1.1)."""
    info = spki(key)
    start, stop = tlv.only(info, 0, len(info), tlv.SEQUENCE)
    _, algorithm_end = tlv.expect(info, start, stop, tlv.SEQUENCE)
    bits = tlv.only(info, algorithm_end, stop, tlv.BIT_STRING)
    return info[bits[0] + 1 : bits[1]]
