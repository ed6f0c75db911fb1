"""X.509 certificates as they come in: read whole and at once, never lazily (RFC 5280, section 4).

cryptography looks into names, dates and extensions only when asked, and fails then; here everything that anybody will
ask is asked first, so that a certificate that was read stays readable. What was read is kept for a while, because a few
CA and registrar certificates come with every message; nothing is kept of what was refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from est import der as tlv
from est.errors import BodyMalformed, CertificateMalformed

MAX_CERTIFICATE = 8192
_KEPT = 256
_SKI = x509.SubjectKeyIdentifier.oid.dotted_string

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
    """Pieces of a certificate as they stand in it: serial INTEGER, Names and Extensions with their tags."""

    serial: bytes
    issuer: bytes
    subject: bytes
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


@lru_cache(maxsize=_KEPT)
def _load(der: bytes) -> x509.Certificate:
    if read_serial(der) <= 0:
        raise CertificateMalformed("a certificate's serial number is not positive")
    return _parse(der)


def _parse(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise CertificateMalformed("a certificate cannot be read") from error


@lru_cache(maxsize=_KEPT)
def der_of(certificate: x509.Certificate) -> bytes:
    """The certificate's own bytes."""
    return certificate.public_bytes(Encoding.DER)


def check_readable(certificate: x509.Certificate) -> None:
    """Every field that is used anywhere can be read, and the size is within bounds; raises CertificateMalformed."""
    facts_of(certificate)


@lru_cache(maxsize=_KEPT)
def facts_of(certificate: x509.Certificate) -> Facts:
    """What is asked of a certificate; raises CertificateMalformed unless all of it can be read."""
    _check_size(certificate.public_bytes(Encoding.DER))
    try:
        issuer = certificate.issuer
        _ = (
            certificate.serial_number,
            certificate.subject,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
    except (ValueError, TypeError) as error:  # TypeError: an attribute of a Name has an ASN.1 type it must not have
        raise CertificateMalformed("a certificate's names or dates cannot be read") from error
    usage = purposes = basic = issuer_key = own_key = None
    names: tuple[x509.GeneralName, ...] = ()
    private: dict[x509.ObjectIdentifier, bytes] = {}
    for extension in extensions_of(certificate):
        value = extension.value
        kind = type(value)  # isinstance() with the library's abstract classes is slow, and nobody derives from these
        if kind is x509.KeyUsage:
            usage = value
        elif kind is x509.ExtendedKeyUsage:
            purposes = frozenset(oid.dotted_string for oid in value)
        elif kind is x509.BasicConstraints:
            basic = value
        elif kind is x509.AuthorityKeyIdentifier:
            issuer_key = value.key_identifier
        elif kind is x509.SubjectKeyIdentifier:
            own_key = value.digest
        elif kind is x509.SubjectAlternativeName:
            names = tuple(value)
        elif kind is x509.UnrecognizedExtension:
            private[value.oid] = value.value
    return Facts(usage, purposes, basic, issuer_key, own_key, names, MappingProxyType(private), issuer)


@lru_cache(maxsize=_KEPT)
def parts(certificate: x509.Certificate) -> Parts:
    """The certificate's names and extensions byte for byte; raises CertificateMalformed."""
    tbs = certificate.tbs_certificate_bytes
    try:
        fields = list(tlv.elements(tbs, *tlv.only(tbs, 0, len(tbs), tlv.SEQUENCE)))
        if fields[0][0] == 0xA0:
            fields = fields[1:]
        encoded = [tbs[at:stop] for _, at, _, stop in fields]
        extensions = next((tbs[start:stop] for tag, _, start, stop in fields[6:] if tag == 0xA3), None)
        return Parts(encoded[0], encoded[2], encoded[4], extensions)
    except (BodyMalformed, IndexError) as error:
        raise CertificateMalformed("a certificate cannot be read") from error


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


@lru_cache(maxsize=_KEPT)
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
