"""PKCS#10 certification requests: read with proof of possession, build (RFC 2986; RFC 7030, section 4.2.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import SignatureAlgorithmOID

from est import der as tlv
from est.certificates import common_name_in, extension_value, read_name, read_plain
from est.errors import (
    BodyMalformed,
    CsrMalformed,
    KeyNotAccepted,
    ProofOfPossessionFailed,
)
from est.kept import keep_as
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
_ECDSA_BY = {
    tlv.sequence(tlv.oid(_ECDSA["secp256r1"])): ec.ECDSA(hashes.SHA256()),
    tlv.sequence(tlv.oid(_ECDSA["secp384r1"])): ec.ECDSA(hashes.SHA384()),
}
_EXTENSION_REQUEST = tlv.oid(EXTENSION_REQUEST)
_NOBODY = tlv.sequence()
_VERSION = tlv.integer(0)
_ECDSA_WITH = {
    "sha256": SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    "sha384": SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    "sha512": SignatureAlgorithmOID.ECDSA_WITH_SHA512,
}
_ECDSA_OVER = {one.name: ec.ECDSA(one()) for one in _HASHES}
_STRINGS = (tlv.UTF8_STRING, tlv.PRINTABLE_STRING, tlv.IA5_STRING)
_MAX_OCTETS = 2048


class Csr(NamedTuple):
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
    outline = _plain_outline(der)
    asked = None if outline is None else _kept.get((outline.subject, outline.attributes)) or _read_plain(outline)
    if outline is None or asked is None:
        return _read_any(der)
    try:
        public_key = check_key(read_spki(outline.spki))
        assert is_ec(public_key)  # the octets before the point say so
        public_key.verify(outline.signature[1:], outline.info, _ECDSA_BY[outline.algorithm])
    except InvalidSignature as error:
        raise ProofOfPossessionFailed("the request is not signed by its own key") from error
    except ValueError as error:
        raise CsrMalformed("the certification request cannot be read") from error
    return Csr(der, public_key, *_keep(asked, outline), hashlib.sha256(outline.spki).digest())


def _read_any(der: bytes) -> Csr:
    check_der(der, max_bytes=MAX_CSR)
    try:
        request = x509.load_der_x509_csr(der)
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


class UnprovenCsr(NamedTuple):
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
    """Pieces of a request as they stand in it, with their tags, the signature without."""

    info: bytes
    version: bytes
    subject: bytes
    spki: bytes
    attributes: bytes
    """With their tag, or b"" for none."""
    algorithm: bytes
    signature: bytes
    """After an octet that says how many bits of the last one are unused."""


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
    found = _kept.get((outline.subject, outline.attributes))
    return _keep(_read_asked(request, outline.subject, outline.attributes), outline) if found is None else found


def _keep(asked: _Asked, outline: _Outline) -> _Asked:
    pieces = outline.subject, outline.attributes
    if pieces not in _kept and sum(map(len, pieces)) <= _MAX_OCTETS:
        keep_as(_kept, pieces, asked)
    return asked


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


def _plain_outline(der: bytes) -> _Outline | None:
    """The outline of a request that is strict DER, and read, where its Name and attributes are; None for any other.

    With a key on P-256 or P-384 and an ECDSA signature, nothing else is left that there is more than one way to read.
    """
    if len(der) > MAX_CSR:
        return None
    try:
        found = _walk(der)
    except BodyMalformed:
        return None
    is_plain = (
        found.version == _VERSION
        and is_plain_spki(found.spki)
        and found.algorithm in _ECDSA_BY
        and found.signature.startswith(b"\x00")
    )
    return found if is_plain else None


def _read_plain(outline: _Outline) -> _Asked | None:
    """What an agent asks for: at most a common name, and one URI among its names; None for anything else."""
    attributes = outline.attributes
    if len(attributes) > _MAX_OCTETS:  # what was read is kept
        return None
    if outline.subject != _NOBODY and common_name_in(outline.subject) is None:
        return None
    try:
        at, end = tlv.only(attributes, *tlv.only(attributes, 0, len(attributes), 0xA0), tlv.SEQUENCE)
        _, after = tlv.expect(attributes, at, end, tlv.OID)
        if attributes[at:after] != _EXTENSION_REQUEST:
            return None
        value_at, end = tlv.only(attributes, after, end, tlv.SET)
        at, end = tlv.only(attributes, value_at, end, tlv.SEQUENCE)
        told = read_plain(attributes[at:end])
        if told is None or told[2] != "names":
            return None
        value = attributes[value_at:end]
        san_der = extension_value(value, _SAN.dotted_string)
    except BodyMalformed:
        return None
    san = x509.SubjectAlternativeName(told[3])
    return _Asked(
        read_name(outline.subject),
        outline.subject,
        san,
        san_der,
        x509.Extensions([x509.Extension(_SAN, told[1], san)]),
        MappingProxyType({EXTENSION_REQUEST: (value,)}),
        None,
    )


def _outline(der: bytes) -> _Outline:
    """Where the parts of a request stand; raises CsrMalformed."""
    try:
        return _walk(der)
    except BodyMalformed as error:
        raise CsrMalformed(error.detail) from error


def _walk(der: bytes) -> _Outline:
    info_at, end = tlv.only(der, 0, len(der), tlv.SEQUENCE)
    at, info_end = tlv.expect(der, info_at, end, tlv.SEQUENCE)
    _, subject_at = tlv.expect(der, at, info_end, tlv.INTEGER)
    _, subject_end = tlv.expect(der, subject_at, info_end, tlv.SEQUENCE)
    _, key_end = tlv.expect(der, subject_end, info_end, tlv.SEQUENCE)
    if key_end != info_end:
        tlv.only(der, key_end, info_end, 0xA0)
    _, algorithm_end = tlv.expect(der, info_end, end, tlv.SEQUENCE)
    start, stop = tlv.only(der, algorithm_end, end, tlv.BIT_STRING)
    return _Outline(
        der[info_at:info_end],
        der[at:subject_at],
        der[subject_at:subject_end],
        der[subject_end:key_end],
        der[key_end:info_end],
        der[info_end:algorithm_end],
        der[start:stop],
    )


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
