"""X.509 certificates as they come in: read whole and at once, never lazily (RFC 5280, section 4).

cryptography looks into names, dates and extensions only when asked, and fails then; here everything that anybody will
ask is asked first, so that a certificate that was read stays readable. What was read is kept for a while, because a few
CA and registrar certificates come with every message; nothing that is refused for its length is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from est import der as tlv
from est.errors import BodyMalformed, CertificateMalformed
from est.kept import KEPT, keep, keep_as, kept_by_identity

MAX_CERTIFICATE = 8192
_KNOWN = frozenset(one for one in vars(ExtensionOID).values() if isinstance(one, x509.ObjectIdentifier))
"""Kinds of extensions that the library reads, so that it has to be asked."""
CRITICAL = b"\x01\x01\xff"
URI = 0x86  # [6] IMPLICIT IA5String (RFC 5280, section 4.2.1.6)
_SAN = tlv.oid(x509.SubjectAlternativeName.oid.dotted_string)
_SHORT = 512
"""No extension that is the same in many certificates is longer."""
_SKI = x509.SubjectKeyIdentifier.oid.dotted_string
_OWN_KEY = tlv.oid(_SKI)

UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
"""How cryptography says that octets are no certificate to it."""
_EXTENSION_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Facts(NamedTuple):
    """What is asked of a certificate: its extensions by kind, its key identifiers, its names beside the subject."""

    key_usage: x509.KeyUsage | None
    purposes: frozenset[str] | None
    basic_constraints: x509.BasicConstraints | None
    issuer_key: bytes | None
    own_key: bytes | None
    names: tuple[x509.GeneralName, ...]
    private: Mapping[x509.ObjectIdentifier, bytes]
    """The extensions that the library does not know, each with its DER value."""
    issuer: x509.Name


class Parts(NamedTuple):
    """Pieces of a certificate as they stand in it: serial INTEGER, Names, key and Extensions with their tags."""

    serial: bytes
    issuer: bytes
    subject: bytes
    spki: bytes
    extensions: bytes | None


def read_certificate(der: bytes) -> x509.Certificate:
    """One DER certificate of at most 8 KiB, all of whose fields can be read; raises CertificateMalformed."""
    certificate = load_certificate(der)
    check_readable(certificate)
    return certificate


def load_certificate(der: bytes) -> x509.Certificate:
    """Like `read_certificate`, but only the outline is looked at: `check_readable` has still to follow."""
    _check_size(der)
    return _load(der)


def pem_certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM file, at least one, as far as their outline; ValueError for what cannot be read."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise ValueError("no certificates that can be read") from error


def load_own(der: bytes) -> x509.Certificate:
    """`load_certificate` for what we wrote ourselves: its serial number is known, and nobody will ask for it again."""
    _check_size(der)
    return _parse(der)


def _check_size(der: bytes) -> None:
    if len(der) > MAX_CERTIFICATE:
        raise CertificateMalformed(f"a certificate of more than {MAX_CERTIFICATE} bytes", limit=MAX_CERTIFICATE)


@lru_cache(maxsize=KEPT)
def _load(der: bytes) -> x509.Certificate:
    if read_serial(der) <= 0:
        raise CertificateMalformed("a certificate's serial number is not positive")
    return _parse(der)


def _parse(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise CertificateMalformed("a certificate cannot be read") from error
    keep(_ders, certificate, der)  # the library would write them anew
    return certificate


_ders: dict[int, tuple[object, bytes]] = {}


def der_of(certificate: x509.Certificate) -> bytes:
    """The certificate's own bytes; those of one that is too long are not kept."""
    found = _ders.get(id(certificate))
    if found is not None:
        return found[1]
    der = certificate.public_bytes(Encoding.DER)
    return keep(_ders, certificate, der) if len(der) <= MAX_CERTIFICATE else der


def check_readable(certificate: x509.Certificate) -> None:
    """Every field that is used anywhere can be read, and the size is within bounds; raises CertificateMalformed."""
    facts_of(certificate)


@kept_by_identity
def facts_of(certificate: x509.Certificate) -> Facts:
    """What is asked of a certificate; raises CertificateMalformed unless all of it can be read."""
    _check_size(der_of(certificate))
    pieces = parts(certificate)
    try:
        issuer = read_name(pieces.issuer)
        if common_name_in(pieces.subject) is None:
            x509.Name.from_bytes(pieces.subject)
        _ = certificate.serial_number, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (ValueError, TypeError) as error:  # TypeError: an attribute of a Name has an ASN.1 type it must not have
        raise CertificateMalformed("a certificate's names or dates cannot be read") from error
    told: dict[str, Any] = {}
    private: dict[x509.ObjectIdentifier, bytes] = {}
    for _, _, field, value in _told(certificate, pieces.extensions):
        if field == "private":
            oid, octets = value
            private[oid] = octets
        else:
            told[field] = value
    return Facts(
        told.get("key_usage"),
        told.get("purposes"),
        told.get("basic_constraints"),
        told.get("issuer_key"),
        told.get("own_key"),
        told.get("names", ()),
        MappingProxyType(private),
        issuer,
    )


read_name = lru_cache(maxsize=KEPT)(x509.Name.from_bytes)
"""A Name from its octets; ValueError or TypeError if it cannot be read."""


_BEFORE_COMMON_NAME = tuple(
    bytes((tlv.SEQUENCE, size + 11, tlv.SET, size + 9, tlv.SEQUENCE, size + 7))
    + tlv.oid(NameOID.COMMON_NAME.dotted_string)
    + bytes((tlv.UTF8_STRING, size))
    for size in range(65)
)


def plain_name(common_name: str) -> bytes | None:
    """The Name in which `common_name_in()` finds this text, or None if there is none."""
    if not 0 < len(common_name) <= 64 or not common_name.isascii():
        return None
    return _BEFORE_COMMON_NAME[len(common_name)] + common_name.encode("ascii")


def common_name_in(der: bytes) -> str | None:
    """The text, if this can be nothing but the Name of one commonName, a UTF8String of 1 to 64 ASCII characters."""
    start = len(_BEFORE_COMMON_NAME[0])
    size = len(der) - start
    is_plain = 0 < size <= 64 and der.startswith(_BEFORE_COMMON_NAME[size]) and der.isascii()
    return der[start:].decode("ascii") if is_plain else None


Told = tuple[bytes, bool, str, Any]
"""DER of the kind of an extension, whether it is critical, the field of Facts that it fills, and with what."""

_kept: dict[bytes, Told] = {}
"""What extensions tell that came with other certificates before, octet for octet."""


def _told(certificate: x509.Certificate, extensions: bytes | None) -> list[Told]:
    """What each extension tells; the library, which reads all or none, is asked if one is new and not plain."""
    if extensions is None:
        return []
    try:
        at, end = tlv.only(extensions, 0, len(extensions), tlv.SEQUENCE)
        written = []
        while at < end:
            _, stop = tlv.expect(extensions, at, end, tlv.SEQUENCE)
            written.append(extensions[at:stop])
            at = stop
    except BodyMalformed as error:
        raise CertificateMalformed("the certificate's extensions cannot be read") from error
    found = []
    for der in written:
        told = _kept.get(der) or read_plain(der)
        if told is None:
            break
        found.append(told)
    if len(found) == len(written) == len({kind for kind, *_ in found}):
        return found
    found = []
    for der, extension in zip(written, extensions_of(certificate), strict=True):
        told = tlv.oid(extension.oid.dotted_string), extension.critical, *_tell(extension.value)
        found.append(told)
        if len(der) <= _SHORT and told[2] != "names":
            keep_as(_kept, der, told)
    return found


def _tell(value: x509.ExtensionType) -> tuple[str, Any]:
    kind: Any = type(value)  # isinstance() with the library's abstract classes is slow, and nobody derives from these
    given: Any = value
    if kind is x509.KeyUsage:
        return "key_usage", given
    if kind is x509.ExtendedKeyUsage:
        return "purposes", frozenset(oid.dotted_string for oid in given)
    if kind is x509.BasicConstraints:
        return "basic_constraints", given
    if kind is x509.AuthorityKeyIdentifier:
        return "issuer_key", given.key_identifier
    if kind is x509.SubjectKeyIdentifier:
        return "own_key", given.digest
    if kind is x509.SubjectAlternativeName:
        return "names", tuple(given)
    return ("private", (given.oid, given.value)) if kind is x509.UnrecognizedExtension else ("", None)


@lru_cache(maxsize=KEPT)
def read_plain(der: bytes) -> Told | None:
    """What an extension tells that is another one in each certificate, if there is but one way to read it.

    A name comes in a request, then both in what we write and in the certificate that we read after.
    """
    try:
        at, end = tlv.only(der, 0, len(der), tlv.SEQUENCE)
        value_at, after = tlv.expect(der, at, end, tlv.OID)
        kind = der[at:after]
        is_critical = der.startswith(CRITICAL, after)
        start, stop = tlv.only(der, after + len(CRITICAL) * is_critical, end, tlv.OCTET_STRING)
        if kind == _SAN:
            uri = der[slice(*tlv.only(der, *tlv.only(der, start, stop, tlv.SEQUENCE), URI))]
            return kind, is_critical, "names", (x509.UniformResourceIdentifier(uri.decode("ascii")),)
        if kind == _OWN_KEY:
            return kind, is_critical, "own_key", der[slice(*tlv.only(der, start, stop, tlv.OCTET_STRING))]
        oid = _object_identifier(der[value_at:after])
    except (BodyMalformed, ValueError):
        return None
    return None if oid in _KNOWN else (kind, is_critical, "private", (oid, der[start:stop]))


@lru_cache(maxsize=KEPT)
def _object_identifier(value: bytes) -> x509.ObjectIdentifier:
    return x509.ObjectIdentifier(tlv.dotted(value))


@kept_by_identity
def parts(certificate: x509.Certificate) -> Parts:
    """The certificate's names, key and extensions byte for byte; raises CertificateMalformed."""
    der = der_of(certificate)
    try:
        serial_at, serial_end, end = _serial(der)
        _, issuer_at = tlv.expect(der, serial_end, end, tlv.SEQUENCE)
        _, issuer_end = tlv.expect(der, issuer_at, end, tlv.SEQUENCE)
        _, subject_at = tlv.expect(der, issuer_end, end, tlv.SEQUENCE)
        _, subject_end = tlv.expect(der, subject_at, end, tlv.SEQUENCE)
        _, key_end = tlv.expect(der, subject_end, end, tlv.SEQUENCE)
        extensions, at = None, key_end
        while at < end and extensions is None:
            tag, start, at = tlv.read_tlv(der, at, end)
            extensions = der[start:at] if tag == 0xA3 else None
    except BodyMalformed as error:
        raise CertificateMalformed("a certificate cannot be read") from error
    return Parts(
        der[serial_at:serial_end],
        der[issuer_at:issuer_end],
        der[subject_at:subject_end],
        der[subject_end:key_end],
        extensions,
    )


def extension_value(extensions: bytes, dotted: str) -> bytes | None:
    """The value octets of one extension out of a DER Extensions SEQUENCE, as they stand; raises BodyMalformed."""
    wanted = tlv.oid(dotted)
    for _, _, start, stop in tlv.elements(extensions, *tlv.only(extensions, 0, len(extensions), tlv.SEQUENCE)):
        _, after = tlv.expect(extensions, start, stop, tlv.OID)
        if extensions[start:after] != wanted:
            continue
        tag, _, past = tlv.read_tlv(extensions, after, stop)
        if tag == tlv.BOOLEAN:
            after = past
        first, last = tlv.only(extensions, after, stop, tlv.OCTET_STRING)
        return extensions[first:last]
    return None


def find_ski(der: bytes) -> bytes | None:
    """The key identifier in a certificate of which nothing else is read yet; raises CertificateMalformed.

    Whoever seeks one certificate among many that a stranger sent need not pay for reading them all.
    """
    try:
        at, end = tlv.expect(der, 0, len(der), tlv.SEQUENCE)
        fields = tlv.elements(der, *tlv.expect(der, at, end, tlv.SEQUENCE))
        extensions = next((der[start:stop] for tag, _, start, stop in fields if tag == 0xA3), None)
        value = None if extensions is None else extension_value(extensions, _SKI)
        return None if value is None else value[slice(*tlv.only(value, 0, len(value), tlv.OCTET_STRING))]
    except BodyMalformed as error:
        raise CertificateMalformed("a certificate cannot be read") from error


@lru_cache(maxsize=KEPT)
def issuer_and_serial(der: bytes) -> bytes:
    """Issuer Name and serial INTEGER, one after the other, as CMS names a signer; raises CertificateMalformed."""
    try:
        serial_at, serial_end, end = _serial(der)
        _, at = tlv.expect(der, serial_end, end, tlv.SEQUENCE)
        _, stop = tlv.expect(der, at, end, tlv.SEQUENCE)
    except BodyMalformed as error:
        raise CertificateMalformed("a certificate cannot be read") from error
    return der[at:stop] + der[serial_at:serial_end]


def read_serial(der: bytes) -> int:
    """The serial number, looked at before a library warns about it; raises CertificateMalformed."""
    try:
        at, _, end = _serial(der)
        return tlv.read_integer(der, tlv.expect(der, at, end, tlv.INTEGER))
    except BodyMalformed as error:
        raise CertificateMalformed("a certificate cannot be read") from error


def _serial(der: bytes) -> tuple[int, int, int]:
    """Where the serial INTEGER begins and ends, and where the TBSCertificate ends."""
    at, end = tlv.expect(der, 0, len(der), tlv.SEQUENCE)
    at, end = tlv.expect(der, at, end, tlv.SEQUENCE)
    tag, _, stop = tlv.read_tlv(der, at, end)
    if tag == 0xA0:
        at = stop
    _, stop = tlv.expect(der, at, end, tlv.INTEGER)
    return at, stop, end


def extensions_of(certificate: x509.Certificate) -> x509.Extensions:
    """The certificate's extensions; raises CertificateMalformed where the library has five ways to fail."""
    try:
        return certificate.extensions
    except _EXTENSION_ERRORS as error:
        raise CertificateMalformed("the certificate's extensions cannot be read") from error


def aki_of(certificate: x509.Certificate) -> bytes | None:
    """The key identifier of the certificate's issuer, as the certificate names it."""
    return facts_of(certificate).issuer_key


def ski_of(certificate: x509.Certificate) -> bytes | None:
    """The certificate's own key identifier, if it has one."""
    return facts_of(certificate).own_key


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether the certificate verifies under its own key."""
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
