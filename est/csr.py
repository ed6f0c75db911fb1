"""PKCS#10 certification requests: read with proof of possession, build (RFC 2986; RFC 7030, section 4.2.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import SignatureAlgorithmOID

from est import der as tlv
from est.certificates import extension_value
from est.errors import (
    BodyMalformed,
    CsrMalformed,
    KeyNotAccepted,
    ProofOfPossessionFailed,
)
from est.keys import PublicKey, check_key, is_ec, is_plain_spki, read_spki, spki, spki_sha256
from est.signer import KeySigner, Signer
from est.transfer import check_der

MAX_CSR = 65536
MAX_SANS = 16
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"  # noqa: S105 - the attribute's object identifier
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
_MICROSOFT_EXTENSION_REQUEST = "1.3.6.1.4.1.311.2.1.14"
_ECDSA = {"secp256r1": "1.2.840.10045.4.3.2", "secp384r1": "1.2.840.10045.4.3.3"}
# What the library throws at requests from outside; TypeError is a Name attribute of a wrong ASN.1 type.
_READ_ERRORS = (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_SAN = x509.SubjectAlternativeName.oid
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_HASH_NAMES = frozenset(one.name for one in _HASHES)
_ALGORITHMS = frozenset(tlv.sequence(tlv.oid(one)) for one in _ECDSA.values())
_VERSION = tlv.integer(0)
_ECDSA_WITH = {
    "sha256": SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    "sha384": SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    "sha512": SignatureAlgorithmOID.ECDSA_WITH_SHA512,
}
_ECDSA_OVER = {one.name: ec.ECDSA(one()) for one in _HASHES}
_STRINGS = (tlv.UTF8_STRING, tlv.PRINTABLE_STRING, tlv.IA5_STRING)
_MAX_KEPT = 256
_MAX_OCTETS = 2048


@dataclass(frozen=True, slots=True)
class Csr:
    """A request whose signature has been verified with the key in it.

    `subject_der` and `san_der` are the bytes as sent (Name; value of the extension), for exact comparison;
    `attributes` are the raw values by dotted type; `key_sha256` is over the DER SubjectPublicKeyInfo.
    """

    der: bytes
    public_key: PublicKey
    subject: x509.Name
    subject_der: bytes
    san: x509.SubjectAlternativeName | None
    san_der: bytes | None
    extensions: x509.Extensions
    attributes: Mapping[str, tuple[bytes, ...]]
    challenge_password: bytes | None
    key_sha256: bytes


def read(der: bytes) -> Csr:
    """Read a request and verify its proof of possession before anything in it is believed (RFC 7030, section 3.4).

    Raises BodyTooLarge, BodyMalformed (not strict DER), CsrMalformed, KeyNotAccepted, ProofOfPossessionFailed.
    """
    outline = _known_outline(der)
    if outline is None:
        check_der(der, max_bytes=MAX_CSR)
    try:
        request = x509.load_der_x509_csr(der)
        if outline is None:
            outline = _outline(der)
        public_key = check_key(read_spki(outline.spki))
        digest = request.signature_hash_algorithm
        digest_name = "" if digest is None else digest.name
        verified = _is_signed(request, public_key, digest_name)
        if not verified:
            _ = request.subject, request.extensions  # what cannot be read at all is malformed, signed or not
    except UnsupportedAlgorithm as error:
        raise KeyNotAccepted("the key or signature algorithm of the request is not supported") from error
    except _READ_ERRORS as error:
        raise CsrMalformed("the certification request cannot be read") from error
    if not verified:
        raise ProofOfPossessionFailed("the request is not signed by its own key")
    if digest_name not in _HASH_NAMES:
        raise KeyNotAccepted("the request is not signed with SHA-256 or stronger")
    return Csr(der, public_key, *_asked(request, outline), spki_sha256(public_key))


@dataclass(frozen=True, slots=True)
class UnprovenCsr:
    """What a request asks for when its key and signature mean nothing (RFC 7030, section 4.4.1).

    `key_sha256` is over the bytes of the placeholder's SubjectPublicKeyInfo.
    """

    der: bytes
    subject: x509.Name
    subject_der: bytes
    san: x509.SubjectAlternativeName | None
    san_der: bytes | None
    extensions: x509.Extensions
    attributes: Mapping[str, tuple[bytes, ...]]
    challenge_password: bytes | None
    key_sha256: bytes

    def with_key(self, key: PublicKey) -> Csr:
        """The request as if it had come for this key, which nobody proved to hold: it is the server's own."""
        return Csr(
            der=self.der,
            public_key=key,
            subject=self.subject,
            subject_der=self.subject_der,
            san=self.san,
            san_der=self.san_der,
            extensions=self.extensions,
            attributes=self.attributes,
            challenge_password=self.challenge_password,
            key_sha256=spki_sha256(key),
        )


def read_unproven(der: bytes) -> UnprovenCsr:
    """Read a request for serverkeygen: the key in it is a placeholder and its signature proves nothing.

    Raises BodyTooLarge, BodyMalformed (not strict DER), CsrMalformed.
    """
    check_der(der, max_bytes=MAX_CSR)
    try:
        request = x509.load_der_x509_csr(der)
    except (*_READ_ERRORS, UnsupportedAlgorithm) as error:
        raise CsrMalformed("the certification request cannot be read") from error
    outline = _outline(der)
    return UnprovenCsr(der, *_asked(request, outline), hashlib.sha256(outline.spki).digest())


def build(
    *,
    subject: x509.Name,
    key: Signer | ec.EllipticCurvePrivateKey,
    san: x509.SubjectAlternativeName | None = None,
    challenge_password: bytes | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
    attributes: Mapping[str, Sequence[bytes]] | None = None,
) -> bytes:
    """A signed DER request.

    `challenge_password` is the text for that attribute (see est.linking), `extensions` go beside `san` as
    non-critical requests, `attributes` are DER values by dotted type. The result has been read back.
    """
    signer: Signer = KeySigner(key) if isinstance(key, ec.EllipticCurvePrivateKey) else key
    values: dict[str, Sequence[bytes]] = dict(attributes or {})
    requested = [
        tlv.sequence(tlv.oid(one.oid.dotted_string), tlv.tlv(tlv.OCTET_STRING, one.public_bytes()))
        for one in ((san, *extensions) if san is not None else extensions)
    ]
    if requested:
        values[EXTENSION_REQUEST] = (tlv.sequence(*requested),)
    if challenge_password is not None:
        values[CHALLENGE_PASSWORD] = (tlv.tlv(tlv.UTF8_STRING, challenge_password),)
    info = tlv.sequence(
        tlv.integer(0),
        subject.public_bytes(),
        spki(signer.public_key()),
        tlv.tlv(0xA0, b"".join(sorted(tlv.sequence(tlv.oid(kind), tlv.set_of(each)) for kind, each in values.items()))),
    )
    algorithm = tlv.sequence(tlv.oid(_ECDSA[signer.public_key().curve.name]))
    der = tlv.sequence(info, algorithm, tlv.tlv(tlv.BIT_STRING, b"\x00" + signer.sign(info)))
    read(der)
    return der


def _is_signed(request: x509.CertificateSigningRequest, key: PublicKey, digest: str) -> bool:
    """Whether the key in the request made its signature; the library's own answer reads the key a second time."""
    if not is_ec(key) or _ECDSA_WITH.get(digest) != request.signature_algorithm_oid:
        return request.is_signature_valid
    try:
        key.verify(request.signature, request.tbs_certrequest_bytes, _ECDSA_OVER[digest])
    except InvalidSignature:
        return False
    return True


class _Outline(NamedTuple):
    """Pieces of a request as they stand in it: Name, SubjectPublicKeyInfo, and the attributes with their tag or b""."""

    subject: bytes
    spki: bytes
    attributes: bytes


class _Asked(NamedTuple):
    """What a request says beside its key, in the order of the fields of Csr."""

    subject: x509.Name
    subject_der: bytes
    san: x509.SubjectAlternativeName | None
    san_der: bytes | None
    extensions: x509.Extensions
    attributes: Mapping[str, tuple[bytes, ...]]
    challenge_password: bytes | None


_kept: dict[tuple[bytes, bytes], _Asked] = {}
"""What was asked with the same Name and attributes, octet for octet."""


def _asked(request: x509.CertificateSigningRequest, outline: _Outline) -> _Asked:
    """What a request asks for; raises CsrMalformed.

    What one client sends again and again, for key after key, is read once.
    """
    pieces = outline.subject, outline.attributes
    found = _kept.get(pieces)
    if found is None:
        found = _read_asked(request, *pieces)
        if sum(map(len, pieces)) <= _MAX_OCTETS:
            if len(_kept) >= _MAX_KEPT:
                _kept.clear()
            _kept[pieces] = found
    return found


def _read_asked(request: x509.CertificateSigningRequest, subject_der: bytes, attributes_der: bytes) -> _Asked:
    try:
        subject, extensions = request.subject, request.extensions
        attributes = _read_attributes(attributes_der)
        san, san_der = _read_san(extensions, attributes)
        challenge = _read_challenge(attributes.get(CHALLENGE_PASSWORD))
    except BodyMalformed as error:
        raise CsrMalformed(error.detail) from error
    except (*_READ_ERRORS, UnsupportedAlgorithm) as error:
        raise CsrMalformed("the certification request cannot be read") from error
    return _Asked(subject, subject_der, san, san_der, extensions, MappingProxyType(attributes), challenge)


def _known_outline(der: bytes) -> _Outline | None:
    """The outline of a request in which only the key and the signature are new; None for any other.

    Its Name and attributes were checked when they first came, octet for octet, and for a key on P-256 or P-384 and an
    ECDSA signature nothing else is left that could be other than strict DER.
    """
    if len(der) > MAX_CSR:
        return None
    try:
        at, end = tlv.only(der, 0, len(der), tlv.SEQUENCE)
        start, stop = tlv.expect(der, at, end, tlv.SEQUENCE)
        if not der.startswith(_VERSION, start):
            return None
        subject_at = start + len(_VERSION)
        _, subject_end = tlv.expect(der, subject_at, stop, tlv.SEQUENCE)
        _, key_end = tlv.expect(der, subject_end, stop, tlv.SEQUENCE)
        found = _Outline(der[subject_at:subject_end], der[subject_end:key_end], der[key_end:stop])
        if found[::2] not in _kept or not is_plain_spki(found.spki):
            return None
        _, algorithm_end = tlv.expect(der, stop, end, tlv.SEQUENCE)
        signature_at, _ = tlv.only(der, algorithm_end, end, tlv.BIT_STRING)
        is_plain = der[stop:algorithm_end] in _ALGORITHMS and der.startswith(b"\x00", signature_at)
    except BodyMalformed:
        return None
    return found if is_plain else None


def _outline(der: bytes) -> _Outline:
    """Where the parts of a request stand; raises CsrMalformed."""
    try:
        at, end = tlv.expect(der, 0, len(der), tlv.SEQUENCE)
        at, end = tlv.expect(der, at, end, tlv.SEQUENCE)
        _, subject_at = tlv.expect(der, at, end, tlv.INTEGER)
        _, subject_end = tlv.expect(der, subject_at, end, tlv.SEQUENCE)
        _, key_end = tlv.expect(der, subject_end, end, tlv.SEQUENCE)
        if key_end != end:
            tlv.only(der, key_end, end, 0xA0)
    except BodyMalformed as error:
        raise CsrMalformed(error.detail) from error
    return _Outline(der[subject_at:subject_end], der[subject_end:key_end], der[key_end:end])


def _read_attributes(der: bytes) -> dict[str, tuple[bytes, ...]]:
    """Attribute values by kind, byte for byte."""
    attributes: dict[str, tuple[bytes, ...]] = {}
    if not der:
        return attributes
    for tag, _, start, stop in tlv.elements(der, *tlv.only(der, 0, len(der), 0xA0)):
        if tag != tlv.SEQUENCE:
            raise CsrMalformed("an attribute of the request is not a SEQUENCE")
        name_at, name_end = tlv.expect(der, start, stop, tlv.OID)
        kind = tlv.dotted(der[name_at:name_end])
        values = tlv.only(der, name_end, stop, tlv.SET)
        if kind in attributes:
            raise CsrMalformed("an attribute of the request occurs twice")
        attributes[kind] = tuple(der[first:last] for _, first, _, last in tlv.elements(der, *values))
    return attributes


def _read_san(
    extensions: x509.Extensions, attributes: Mapping[str, tuple[bytes, ...]]
) -> tuple[x509.SubjectAlternativeName | None, bytes | None]:
    san = next((one.value for one in extensions if type(one.value) is x509.SubjectAlternativeName), None)
    if san is None:
        return None, None
    if not 0 < len(list(san)) <= MAX_SANS:
        raise CsrMalformed(f"subjectAltName must have 1 to {MAX_SANS} names")
    values = (*attributes.get(EXTENSION_REQUEST, ()), *attributes.get(_MICROSOFT_EXTENSION_REQUEST, ()))
    if len(values) != 1:
        raise CsrMalformed("the extension request must have exactly one value")
    return san, extension_value(values[0], _SAN.dotted_string)


def _read_challenge(values: tuple[bytes, ...] | None) -> bytes | None:
    if values is None:
        return None
    if len(values) != 1:
        raise CsrMalformed("challengePassword must have exactly one value")
    tag, start, stop = tlv.read_tlv(values[0], 0, len(values[0]))
    if tag not in _STRINGS or stop - start > 255:
        raise CsrMalformed("challengePassword must be a string of at most 255 bytes")
    return values[0][start:stop]
