"""CMS SignedData as BRSKI and EST use it: sign, verify, certs-only (RFC 5652, section 5; RFC 8951; RFC 8995).

Read by our own strict DER reader, so nothing lenient ever sees the bytes: exactly one signer, signed attributes always,
digest and signature algorithms from a short list. Paths to an anchor are the caller's business (`est.chains`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from est import der as tlv
from est.certificates import der_of, find_ski, issuer_and_serial, load_certificate, read_certificate
from est.errors import (
    BodyMalformed,
    BodyTooLarge,
    CmsMalformed,
    CmsNotAccepted,
    CmsSignatureInvalid,
)
from est.keys import public_key_of
from est.signer import Signer, hash_for

ID_DATA = "1.2.840.113549.1.7.1"
ID_CT_ANIMA_JSON_VOUCHER = "1.2.840.113549.1.9.16.1.40"

MAX_CMS = 262144
MAX_CERTIFICATES = 32

_SIGNED_DATA = tlv.oid("1.2.840.113549.1.7.2")
_DATA = tlv.oid(ID_DATA)
_CONTENT_TYPES = {tlv.oid(one): one for one in (ID_DATA, ID_CT_ANIMA_JSON_VOUCHER)}
_CONTENT_TYPE = tlv.oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST = tlv.oid("1.2.840.113549.1.9.4")
_SIGNING_TIME = tlv.oid("1.2.840.113549.1.9.5")
_NULL = b"\x05\x00"
_EMPTY_SET = tlv.tlv(tlv.SET, b"")
_NOTHING_SIGNED = tlv.integer(1) + _EMPTY_SET + tlv.sequence(_DATA)

_HASHES: dict[str, type[hashes.SHA256] | type[hashes.SHA384] | type[hashes.SHA512]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_DIGEST_OIDS = {
    "sha256": tlv.oid("2.16.840.1.101.3.4.2.1"),
    "sha384": tlv.oid("2.16.840.1.101.3.4.2.2"),
    "sha512": tlv.oid("2.16.840.1.101.3.4.2.3"),
}
_DIGESTS = {oid: name for name, oid in _DIGEST_OIDS.items()}
_ECDSA_OIDS = {
    "sha256": tlv.oid("1.2.840.10045.4.3.2"),
    "sha384": tlv.oid("1.2.840.10045.4.3.3"),
    "sha512": tlv.oid("1.2.840.10045.4.3.4"),
}
# Signature algorithm -> kind of key, and the hash if the identifier names one.
_SIGNATURES: dict[bytes, tuple[str, str | None]] = {
    **{oid: ("ec", name) for name, oid in _ECDSA_OIDS.items()},
    tlv.oid("1.2.840.113549.1.1.1"): ("rsa", None),
    tlv.oid("1.2.840.113549.1.1.11"): ("rsa", "sha256"),
    tlv.oid("1.2.840.113549.1.1.12"): ("rsa", "sha384"),
    tlv.oid("1.2.840.113549.1.1.13"): ("rsa", "sha512"),
}


@dataclass(frozen=True, slots=True)
class SignedData:
    """A SignedData whose signature has been verified with the key of `signer`; its chain has not.

    `certificates` are all that were inside, the signer first. The others are for `est.chains`, which looks into them;
    `signing_time` is the signer's own claim.
    """

    content: bytes
    content_type: str
    signer: x509.Certificate
    certificates: tuple[x509.Certificate, ...]
    signing_time: datetime | None
    version: int


def seal(
    content: bytes,
    *,
    content_type: str,
    signer: Signer,
    certificate: x509.Certificate,
    certificates: Sequence[x509.Certificate] = (),
    signing_time: datetime,
) -> bytes:
    """DER ContentInfo with SignedData around `content`, signed by the key of `certificate`.

    `certificates` is the rest of the chain, to be embedded too. CMSVersion is 1 for id-data and 3 for everything else
    (RFC 5652, section 5.1); SHA-256 with P-256, SHA-384 with P-384.
    """
    digest_name = hash_for(signer.public_key()).name
    digest = _DIGEST_OIDS[digest_name]
    algorithm = tlv.sequence(digest)
    ect = tlv.oid(content_type)
    attributes = sorted(
        (
            tlv.sequence(_CONTENT_TYPE, tlv.tlv(tlv.SET, ect)),
            tlv.sequence(_SIGNING_TIME, tlv.tlv(tlv.SET, tlv.write_time(signing_time))),
            tlv.sequence(
                _MESSAGE_DIGEST,
                tlv.tlv(tlv.SET, tlv.tlv(tlv.OCTET_STRING, hashlib.new(digest_name, content).digest())),
            ),
        )
    )
    signed = b"".join(attributes)
    signature = signer.sign(tlv.tlv(tlv.SET, signed))
    signer_der = der_of(certificate)
    embedded = {signer_der, *map(der_of, certificates)}
    return tlv.sequence(
        _SIGNED_DATA,
        tlv.tlv(
            0xA0,
            tlv.sequence(
                tlv.integer(1 if content_type == ID_DATA else 3),
                tlv.tlv(tlv.SET, algorithm),
                tlv.sequence(ect, tlv.tlv(0xA0, tlv.tlv(tlv.OCTET_STRING, content))),
                tlv.tlv(0xA0, b"".join(sorted(embedded))),
                tlv.tlv(
                    tlv.SET,
                    tlv.sequence(
                        tlv.integer(1),
                        tlv.sequence(issuer_and_serial(signer_der)),
                        algorithm,
                        tlv.tlv(0xA0, signed),
                        tlv.sequence(_ECDSA_OIDS[digest_name]),
                        tlv.tlv(tlv.OCTET_STRING, signature),
                    ),
                ),
            ),
        ),
    )


def unseal(
    der: bytes,
    *,
    content_types: Collection[str],
    expected: Sequence[x509.Certificate] = (),
    max_bytes: int = MAX_CMS,
) -> SignedData:
    """Read a SignedData and verify its one signature with the signer certificate found inside (or in `expected`).

    Raises BodyTooLarge, CmsMalformed (not strict DER, not this structure), CmsNotAccepted (content type, algorithms,
    number of signers, signed attributes missing), CmsSignatureInvalid, KeyNotAccepted, CertificateMalformed.
    """
    if len(der) > max_bytes:
        raise BodyTooLarge(f"more than {max_bytes} bytes", limit=max_bytes)
    try:
        frame = _read_frame(der)
        if frame.content is None:
            raise CmsNotAccepted("the SignedData has no content inside")
        start, stop = frame.signer_infos
        if start == stop:
            raise CmsNotAccepted("the SignedData has no signer")
        start, stop = tlv.expect(der, start, stop, tlv.SEQUENCE)
        if stop != frame.signer_infos[1]:
            raise CmsNotAccepted("the SignedData has more than one signer")
        info = _read_signer_info(der, start, stop)
        content_type = _CONTENT_TYPES.get(frame.content_type) or tlv.dotted(frame.content_type[2:])
        attributes = _read_attributes(der, info.attributes)
        claimed = attributes.get(_SIGNING_TIME)
        signing_time = tlv.read_time(claimed[0], claimed[2:]) if claimed else None
    except BodyMalformed as error:
        raise CmsMalformed(error.detail) from error
    if content_type not in content_types:
        raise CmsNotAccepted(f"content type {content_type} is not accepted here")
    if info.digest not in frame.digests:
        raise CmsNotAccepted("the signer's digest algorithm is not among those of the SignedData")
    content = der[frame.content[0] : frame.content[1]]
    if attributes.get(_CONTENT_TYPE) != frame.content_type:
        raise CmsNotAccepted("the signed content-type attribute is not the content's type")
    digest = hashlib.new(info.digest, content).digest()
    if attributes.get(_MESSAGE_DIGEST) != tlv.tlv(tlv.OCTET_STRING, digest):
        raise CmsSignatureInvalid("the message digest is not that of the content")
    embedded = dict.fromkeys(der[first:last] for first, last in frame.certificates)
    signer_der = _find_signer(info, [*embedded, *map(der_of, expected)])
    signer = read_certificate(signer_der)
    # Signed was the SET OF, not the [0] that stands in its place (RFC 5652, section 5.4).
    _verify(signer, info, b"\x31" + der[info.attributes_at + 1 : info.attributes[1]])
    return SignedData(
        content=content,
        content_type=content_type,
        signer=signer,
        certificates=(signer, *(load_certificate(one) for one in embedded if one != signer_der)),
        signing_time=signing_time,
        version=frame.version,
    )


def write_certs_only(certificates: Sequence[x509.Certificate]) -> bytes:
    """DER certs-only SignedData: version 1, no digest algorithms, content or signers (RFC 7030, section 4.1.3)."""
    return enclose({*map(der_of, certificates)})


def enclose(ders: Iterable[bytes]) -> bytes:
    """`write_certs_only` of certificates that are DER already, each of them once."""
    inside = b"".join((_NOTHING_SIGNED, tlv.tlv(0xA0, b"".join(sorted(ders))), _EMPTY_SET))
    return tlv.tlv(tlv.SEQUENCE, _SIGNED_DATA + tlv.tlv(0xA0, tlv.tlv(tlv.SEQUENCE, inside)))


def read_certs_only(der: bytes, *, max_bytes: int = MAX_CMS) -> tuple[x509.Certificate, ...]:
    """The certificates of a certs-only SignedData, in the order found, which means nothing (RFC 5272, section 4.1).

    Raises BodyTooLarge, CmsMalformed, CmsNotAccepted (something is signed or enclosed, or no certificate is there),
    CertificateMalformed.
    """
    if len(der) > max_bytes:
        raise BodyTooLarge(f"more than {max_bytes} bytes", limit=max_bytes)
    try:
        frame = _read_frame(der)
    except BodyMalformed as error:
        raise CmsMalformed(error.detail) from error
    if frame.content is not None or frame.signer_infos[0] != frame.signer_infos[1]:
        raise CmsNotAccepted("a certs-only SignedData has neither content nor signers")
    if not frame.certificates:
        raise CmsNotAccepted("the certs-only SignedData has no certificate")
    return tuple(read_certificate(one) for one in dict.fromkeys(der[a:b] for a, b in frame.certificates))


class _Frame(NamedTuple):
    version: int
    digests: tuple[str, ...]
    content_type: bytes
    content: tlv.Span | None
    certificates: tuple[tlv.Span, ...]
    signer_infos: tlv.Span


class _SignerInfo(NamedTuple):
    issuer_and_serial: bytes | None
    key_identifier: bytes | None
    digest: str
    attributes_at: int
    attributes: tlv.Span
    kind: str
    signature: bytes


def _read_frame(der: bytes) -> _Frame:
    at, end = tlv.only(der, 0, len(der), tlv.SEQUENCE)
    start, stop = tlv.expect(der, at, end, tlv.OID)
    if der[at:stop] != _SIGNED_DATA:
        raise CmsMalformed("the CMS object is not a SignedData")
    at, end = tlv.only(der, stop, end, 0xA0)
    at, end = tlv.only(der, at, end, tlv.SEQUENCE)
    start, stop = tlv.expect(der, at, end, tlv.INTEGER)
    version = tlv.read_integer(der, (start, stop))
    if version not in (1, 3):
        raise CmsMalformed("SignedData version is neither 1 nor 3")
    start, stop = tlv.expect(der, stop, end, tlv.SET)
    digests = tuple(_read_digest(der, *span[2:]) for span in _all(der, start, stop, tlv.SEQUENCE))
    start, stop = tlv.expect(der, stop, end, tlv.SEQUENCE)
    inner_end, at = stop, stop
    _, stop = tlv.expect(der, start, inner_end, tlv.OID)
    content_type = der[start:stop]
    content: tlv.Span | None = None
    if stop != inner_end:
        start, stop = tlv.only(der, stop, inner_end, 0xA0)
        content = tlv.only(der, start, stop, tlv.OCTET_STRING)
    tag, start, stop = tlv.read_tlv(der, at, end)
    certificates: tuple[tlv.Span, ...] = ()
    if tag == 0xA0:
        certificates = tuple((at, last) for _, at, _, last in _all(der, start, stop, tlv.SEQUENCE))
        at = stop
        tag, start, stop = tlv.read_tlv(der, at, end)
    if tag == 0xA1:  # CRLs are allowed and ignored
        for _ in tlv.elements(der, start, stop):
            pass
        at = stop
    return _Frame(version, digests, content_type, content, certificates, tlv.only(der, at, end, tlv.SET))


def _read_signer_info(der: bytes, at: int, end: int) -> _SignerInfo:
    span = tlv.expect(der, at, end, tlv.INTEGER)
    version = tlv.read_integer(der, span)
    sid_at = span[1]
    tag, start, stop = tlv.read_tlv(der, sid_at, end)
    issuer_and_serial = key_identifier = None
    if tag == tlv.SEQUENCE and version == 1:
        issuer_and_serial = der[start:stop]
    elif tag == 0x80 and version == 3:
        key_identifier = der[start:stop]
    else:
        raise CmsMalformed("signer identifier and SignerInfo version do not go together")
    start, stop = tlv.expect(der, stop, end, tlv.SEQUENCE)
    digest = _read_digest(der, start, stop)
    attributes_at = stop
    tag, start, stop = tlv.read_tlv(der, stop, end)
    if tag != 0xA0:
        raise CmsNotAccepted("the signed attributes are missing")
    attributes = (start, stop)
    start, stop = tlv.expect(der, stop, end, tlv.SEQUENCE)
    kind = _read_signature_algorithm(der, start, stop, digest)
    start, stop = tlv.expect(der, stop, end, tlv.OCTET_STRING)
    signature = der[start:stop]
    if stop != end:  # unsigned attributes prove nothing and are ignored
        start, stop = tlv.only(der, stop, end, 0xA1)
        for _ in tlv.elements(der, start, stop):
            pass
    return _SignerInfo(issuer_and_serial, key_identifier, digest, attributes_at, attributes, kind, signature)


def _all(der: bytes, at: int, end: int, tag: int) -> list[tuple[int, int, int, int]]:
    """The elements of a set, all with this tag: of digests, or of certificates."""
    found = list(islice(tlv.elements(der, at, end), MAX_CERTIFICATES + 1))
    if len(found) > MAX_CERTIFICATES:
        raise CmsMalformed(f"the SignedData has more than {MAX_CERTIFICATES} certificates or digest algorithms")
    if any(one[0] != tag for one in found):
        raise CmsMalformed("an element of a CMS set has the wrong type")
    return found


def _read_digest(der: bytes, at: int, end: int) -> str:
    _, stop = tlv.expect(der, at, end, tlv.OID)
    name = _DIGESTS.get(der[at:stop])
    if name is None:
        raise CmsNotAccepted("digest algorithm is not SHA-256, SHA-384 or SHA-512")
    if stop != end and der[stop:end] != _NULL:
        raise CmsMalformed("digest algorithm has unexpected parameters")
    return name


def _read_signature_algorithm(der: bytes, at: int, end: int, digest: str) -> str:
    _, stop = tlv.expect(der, at, end, tlv.OID)
    kind, named = _SIGNATURES.get(der[at:stop], ("", None))
    if not kind:
        raise CmsNotAccepted("signature algorithm is neither ECDSA nor RSA PKCS #1 with SHA-2")
    if named is not None and named != digest:
        raise CmsNotAccepted("digest and signature algorithm name different hashes")
    parameters = der[stop:end]
    if parameters != (b"" if kind == "ec" else _NULL):
        raise CmsMalformed("signature algorithm has unexpected parameters")
    return kind


def _read_attributes(der: bytes, span: tlv.Span) -> dict[bytes, bytes]:
    """Attribute type to its single value, both with tag and length; refuses disorder, duplicates and several values."""
    found: dict[bytes, bytes] = {}
    previous = b""
    for tag, first, start, stop in tlv.elements(der, *span):
        encoded = der[first:stop]
        if tag != tlv.SEQUENCE or encoded < previous:
            raise CmsMalformed("signed attributes are not a DER set")
        previous = encoded
        _, after = tlv.expect(der, start, stop, tlv.OID)
        name = der[start:after]
        values = tlv.only(der, after, stop, tlv.SET)
        _, _, value_stop = tlv.read_tlv(der, *values)
        if value_stop != values[1]:
            raise CmsMalformed("a signed attribute has more than one value")
        if name in found:
            raise CmsMalformed("a signed attribute occurs twice")
        found[name] = der[values[0] : value_stop]
    return found


def _find_signer(info: _SignerInfo, candidates: Sequence[bytes]) -> bytes:
    if info.issuer_and_serial is not None:
        wanted = info.issuer_and_serial
        found = {der for der in candidates if issuer_and_serial(der) == wanted}
    else:
        found = {der for der in candidates if find_ski(der) == info.key_identifier}
    if len(found) != 1:
        raise CmsNotAccepted("the signer's certificate is not embedded exactly once")
    return found.pop()


def _verify(signer: x509.Certificate, info: _SignerInfo, signed: bytes) -> None:
    key = public_key_of(signer)
    algorithm = _HASHES[info.digest]()
    if info.kind != ("ec" if isinstance(key, ec.EllipticCurvePublicKey) else "rsa"):
        raise CmsNotAccepted("the signature algorithm is not one of the signer's key")
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(info.signature, signed, ec.ECDSA(algorithm))
        else:
            key.verify(info.signature, signed, padding.PKCS1v15(), algorithm)
    except InvalidSignature as error:
        raise CmsSignatureInvalid("the signature does not match") from error
