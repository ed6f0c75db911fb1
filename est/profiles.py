"""The shapes of the certificates and CRLs that we issue: shape, sign, check (RFC 5280, section 4 and 5).

`to_be_signed` writes the bytes to be signed and has cryptography read them back, so what is signed is byte for byte
what was checked; `assemble` puts the signature on and verifies it. Extensions that many certificates share are encoded
and compared once, when they are made. Serial numbers, times and keys are arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from est import der as tlv
from est.certificates import extensions_of, load_certificate, ski_of
from est.errors import CertificateMalformed, CertificateNotAsShaped, EstError, ShapeNotPossible
from est.keys import PublicKey, check_key, spki
from est.revocation import Revoked, crl_to_be_signed
from est.signer import signed_form

__all__ = [
    "Extension",
    "Revoked",
    "Shape",
    "Terms",
    "agent",
    "assemble",
    "check",
    "check_der",
    "crl_to_be_signed",
    "https_server",
    "infrastructure_client",
    "issuing_ca",
    "key_identifier",
    "ldevid",
    "name",
    "ocsp_signer",
    "radius_server",
    "registrar",
    "root_ca",
    "to_be_signed",
]

SERVER_AUTH = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")
CLIENT_AUTH = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")
OCSP_SIGNING = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.9")
CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")

IPAddress = IPv4Address | IPv6Address

_ECDSA = {
    "secp256r1": tlv.sequence(tlv.oid("1.2.840.10045.4.3.2")),
    "secp384r1": tlv.sequence(tlv.oid("1.2.840.10045.4.3.3")),
}
_VERSION_3 = b"\xa0\x03\x02\x01\x02"
_NO_SIGNATURE = b"\x03\x01\x00"
_CRITICAL = b"\x01\x01\xff"
_WHENEVER = tlv.sequence(tlv.tlv(tlv.UTC_TIME, b"260101000000Z"), tlv.tlv(tlv.UTC_TIME, b"270101000000Z"))


class Extension(NamedTuple):
    """An extension of a shape. `settled` is its DER if that was encoded and read back before, else empty."""

    value: x509.ExtensionType
    critical: bool
    settled: bytes = b""

    def encode(self) -> bytes:
        """DER Extension."""
        return self.settled or tlv.sequence(
            tlv.oid(self.value.oid.dotted_string),
            _CRITICAL if self.critical else b"",
            tlv.tlv(tlv.OCTET_STRING, self.value.public_bytes()),
        )


def settle(value: x509.ExtensionType, *, critical: bool = False) -> Extension:
    """An extension for many certificates: encoded, read back by cryptography and compared, once and here.

    Raises ShapeNotPossible for a value that cannot be encoded or reads back as another one.
    """
    try:
        der = Extension(value, critical).encode()
        algorithm, nothing = _ECDSA["secp256r1"], tlv.sequence()
        key = tlv.sequence(algorithm, tlv.tlv(tlv.BIT_STRING, b"\x00\x04"))
        tbs = tlv.sequence(
            _VERSION_3, tlv.integer(1), algorithm, nothing, _WHENEVER, nothing, key, tlv.tlv(0xA3, tlv.sequence(der))
        )
        found = extensions_of(load_certificate(tlv.sequence(tbs, algorithm, _NO_SIGNATURE)))
    except (CertificateMalformed, ValueError) as error:
        raise ShapeNotPossible("an extension cannot be encoded") from error
    if [(one.value, one.critical) for one in found] != [(value, critical)]:
        raise ShapeNotPossible("an extension reads back as another one")
    return Extension(value, critical, der)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


_CA_USAGE = settle(_usage(ca=True), critical=True)
_END_ENTITY = (
    settle(x509.BasicConstraints(ca=False, path_length=None), critical=True),
    settle(_usage(ca=False), critical=True),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A certificate before its signature; `extensions` in order, each with its criticality."""

    subject: x509.Name
    issuer: x509.Name
    serial: int
    not_before: datetime
    not_after: datetime
    public_key: PublicKey
    extensions: tuple[Extension, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What the issuer puts into every certificate: its name and key identifier, a serial number, dates, addresses."""

    issuer: x509.Name
    issuer_key_identifier: bytes
    serial: int
    not_before: datetime
    not_after: datetime
    crl_url: str | None = None
    issuer_url: str | None = None
    ocsp_url: str | None = None

    @classmethod
    def under(
        cls,
        issuer: x509.Certificate,
        *,
        serial: int,
        not_before: datetime,
        not_after: datetime,
        crl_url: str | None = None,
        issuer_url: str | None = None,
        ocsp_url: str | None = None,
    ) -> Terms:
        """Terms under this CA certificate; raises ShapeNotPossible if the certificate would outlive it."""
        if not_after > issuer.not_valid_after_utc or not_before < issuer.not_valid_before_utc:
            raise ShapeNotPossible("the certificate would be valid when its issuer's certificate is not")
        identifier = ski_of(issuer)
        if identifier is None:
            raise ShapeNotPossible("the issuer's certificate has no key identifier to refer to")
        return cls(issuer.subject, identifier, serial, not_before, not_after, crl_url, issuer_url, ocsp_url)


def name(common_name: str, organization: str | None = None, *, serial_number: str | None = None) -> x509.Name:
    """A distinguished name of these parts; raises ShapeNotPossible if a part has an impossible length."""
    parts = ((NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common_name))
    try:
        attributes = [x509.NameAttribute(kind, text) for kind, text in parts if text is not None]
        if serial_number is not None:
            attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number))
    except ValueError as error:
        raise ShapeNotPossible("a part of the name is empty or too long") from error
    return x509.Name(attributes)


def key_identifier(key: PublicKey) -> bytes:
    """The subject key identifier that we give to a key (RFC 5280, section 4.2.1.2, method 1)."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return hashlib.sha1(point, usedforsecurity=False).digest()
    return x509.SubjectKeyIdentifier.from_public_key(key).digest


def root_ca(
    subject: x509.Name, key: PublicKey, *, serial: int, not_before: datetime, not_after: datetime, path_length: int = 1
) -> Shape:
    """The self-signed root: signs issuing CAs only."""
    extensions = (
        Extension(x509.BasicConstraints(ca=True, path_length=path_length), True),
        _CA_USAGE,
        Extension(x509.SubjectKeyIdentifier(key_identifier(key)), False),
    )
    return Shape(subject, subject, serial, not_before, not_after, key, extensions)


def issuing_ca(terms: Terms, subject: x509.Name, key: PublicKey) -> Shape:
    """A CA under the root that signs end entities only: path length 0."""
    own = (
        Extension(x509.BasicConstraints(ca=True, path_length=0), True),
        _CA_USAGE,
        Extension(x509.SubjectKeyIdentifier(key_identifier(key)), False),
    )
    return _under(terms, subject, key, own)


def registrar(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    *,
    dns_names: Sequence[str],
    addresses: Sequence[IPAddress] = (),
) -> Shape:
    """Registrar and EST server: serverAuth, clientAuth (towards the MASA) and cmcRA (RFC 7030, section 3.6.1)."""
    return _end_entity(terms, subject, key, (SERVER_AUTH, CLIENT_AUTH, CMC_RA), _hosts(dns_names, addresses))


def radius_server(terms: Terms, subject: x509.Name, key: PublicKey, *, dns_names: Sequence[str]) -> Shape:
    """RADIUS server: serverAuth and the name that supplicants pin."""
    return _end_entity(terms, subject, key, (SERVER_AUTH,), _hosts(dns_names, ()))


def https_server(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    *,
    dns_names: Sequence[str],
    addresses: Sequence[IPAddress] = (),
) -> Shape:
    """Console and decision port: serverAuth only."""
    return _end_entity(terms, subject, key, (SERVER_AUTH,), _hosts(dns_names, addresses))


def ldevid(terms: Terms, subject: x509.Name, key: PublicKey, *, identifier: str) -> Shape:
    """A proxy's domain certificate: clientAuth only, never cmcRA; the one URI name is its identifier."""
    return _end_entity(terms, subject, key, (CLIENT_AUTH,), _uri(identifier))


def infrastructure_client(terms: Terms, subject: x509.Name, key: PublicKey, *, identifier: str) -> Shape:
    """NAS over RadSec, or a remote decision client: clientAuth only; the one URI name is its identifier."""
    return _end_entity(terms, subject, key, (CLIENT_AUTH,), _uri(identifier))


def ocsp_signer(terms: Terms, subject: x509.Name, key: PublicKey) -> Shape:
    """The OCSP signer of the CA that issues it: OCSPSigning only, and nobody asks about itself (RFC 6960, 4.2.2.2)."""
    own: tuple[Extension, ...] = (
        *_END_ENTITY,
        _purposes((OCSP_SIGNING,)),
        Extension(x509.SubjectKeyIdentifier(key_identifier(key)), False),
    )
    return _under(terms, subject, key, own, (settle(x509.OCSPNoCheck()),))


def agent(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    *,
    identifier: str,
    extra_extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> Shape:
    """An agent's certificate, also an X509-SVID: one URI name, clientAuth and serverAuth, no host name.

    `extra_extensions` are the private ones of the dual identity; they must not be critical, because TLS libraries
    refuse what they do not know. No subject key identifier: the size budget of EAP-TLS is small.
    """
    extra = tuple(Extension(value, critical) for value, critical in extra_extensions)
    if any(one.critical for one in extra):
        raise ShapeNotPossible("private extensions of an agent's certificate must not be critical")
    return _end_entity(terms, subject, key, (CLIENT_AUTH, SERVER_AUTH), _uri(identifier), extra=extra, small=True)


def to_be_signed(shape: Shape, *, issuer_key: ec.EllipticCurvePublicKey) -> bytes:
    """DER TBSCertificate of the shape for an issuer with this key, read back by cryptography.

    Raises ShapeNotPossible, KeyNotAccepted, CertificateNotAsShaped.
    """
    _check_possible(shape)
    algorithm = _algorithm(issuer_key)
    tbs = tlv.sequence(
        _VERSION_3,
        tlv.integer(shape.serial),
        algorithm,
        shape.issuer.public_bytes(),
        tlv.sequence(tlv.write_time(shape.not_before), tlv.write_time(shape.not_after)),
        shape.subject.public_bytes(),
        spki(shape.public_key),
        tlv.tlv(0xA3, tlv.sequence(*[one.encode() for one in shape.extensions])),
    )
    try:
        _check_written(load_certificate(tlv.sequence(tbs, algorithm, _NO_SIGNATURE)), shape)
    except CertificateMalformed as error:
        raise ShapeNotPossible("the certificate cannot be encoded") from error
    return tbs


def assemble(tbs: bytes, signature: bytes, issuer_key: ec.EllipticCurvePublicKey) -> bytes:
    """DER certificate or CRL from its signed part and the ECDSA signature, which is verified first.

    Raises CertificateNotAsShaped if the signature is not that of `issuer_key` over `tbs`.
    """
    try:
        issuer_key.verify(signature, *signed_form(tbs, issuer_key))
    except InvalidSignature as error:
        raise CertificateNotAsShaped("the signature does not verify with the issuer's key") from error
    parts = (tbs, _algorithm(issuer_key), tlv.tlv(tlv.BIT_STRING, b"\x00" + signature))
    return b"".join((tlv.header(tlv.SEQUENCE, sum(map(len, parts))), *parts))  # a CRL may be long: copied once


def check(certificate: x509.Certificate, shape: Shape) -> None:
    """Compare a finished certificate with its shape, field by field; raises CertificateNotAsShaped."""
    try:
        found = (
            certificate.version,
            certificate.issuer,
            certificate.public_key(),
            [(one.value, one.critical) for one in extensions_of(certificate)],
        )
    except (ValueError, TypeError, UnsupportedAlgorithm, EstError) as error:
        raise CertificateNotAsShaped("the finished certificate cannot be read") from error
    _check_own(certificate, shape)
    _compare(
        ("version", "issuer", "public key", "extensions"),
        found,
        (x509.Version.v3, shape.issuer, shape.public_key, [(one.value, one.critical) for one in shape.extensions]),
    )


def _check_own(certificate: x509.Certificate, shape: Shape) -> None:
    """The fields that are of this certificate alone."""
    try:
        found = (
            certificate.serial_number,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.subject,
        )
    except (ValueError, TypeError) as error:
        raise CertificateNotAsShaped("the finished certificate cannot be read") from error
    _compare(
        ("serial number", "notBefore", "notAfter", "subject"),
        found,
        (
            shape.serial,
            shape.not_before.astimezone(UTC).replace(microsecond=0),
            shape.not_after.astimezone(UTC).replace(microsecond=0),
            shape.subject,
        ),
    )


def _compare(names: Sequence[str], found: Sequence[object], wanted: Sequence[object]) -> None:
    for what, is_, should_be in zip(names, found, wanted, strict=True):
        if is_ != should_be:
            raise CertificateNotAsShaped(f"the certificate's {what} is not the one shaped")


def _check_written(certificate: x509.Certificate, shape: Shape) -> None:
    """`check` for what `to_be_signed` has just put together.

    Every extension is read again; of the settled ones only the name is compared, because the octets that stand here
    were read and compared when they were settled. Issuer and key are cryptography's own encodings, copied.
    """
    _check_own(certificate, shape)
    found = list(extensions_of(certificate))
    if len(found) != len(shape.extensions):
        raise CertificateNotAsShaped("the certificate's extensions are not those shaped")
    for one, wanted in zip(found, shape.extensions, strict=True):
        if one.critical != wanted.critical or (
            one.oid != wanted.value.oid if wanted.settled else one.value != wanted.value
        ):
            raise CertificateNotAsShaped("the certificate's extensions are not those shaped")


def check_der(der: bytes, shape: Shape) -> x509.Certificate:
    """Re-read a finished certificate, compare it with its shape, and hand it over; every field of it was read."""
    certificate = load_certificate(der)
    check(certificate, shape)
    return certificate


def _check_possible(shape: Shape) -> None:
    if not 0 < shape.serial < 1 << 159:
        raise ShapeNotPossible("a certificate's serial number is positive and has at most 159 bits")
    if shape.not_before.tzinfo is None or shape.not_after.tzinfo is None or shape.not_after <= shape.not_before:
        raise ShapeNotPossible("a certificate's dates are aware and in order")
    check_key(shape.public_key)


def _algorithm(issuer_key: ec.EllipticCurvePublicKey) -> bytes:
    try:
        return _ECDSA[issuer_key.curve.name]
    except KeyError as error:
        raise ShapeNotPossible("issuing keys are on P-256 or P-384") from error


def _uri(identifier: str) -> x509.SubjectAlternativeName:
    try:
        return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identifier)])
    except ValueError as error:
        raise ShapeNotPossible("an identifier in a certificate is ASCII") from error


def _hosts(dns_names: Sequence[str], addresses: Sequence[IPAddress]) -> x509.SubjectAlternativeName:
    try:
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in dns_names]
    except ValueError as error:
        raise ShapeNotPossible("a host name in a certificate is ASCII (A-labels)") from error
    names += [x509.IPAddress(one) for one in addresses]
    if not names:
        raise ShapeNotPossible("a server's certificate needs a name")
    return x509.SubjectAlternativeName(names)


def _end_entity(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    purposes: tuple[x509.ObjectIdentifier, ...],
    san: x509.SubjectAlternativeName,
    *,
    extra: tuple[Extension, ...] = (),
    small: bool = False,
) -> Shape:
    own: tuple[Extension, ...] = (*_END_ENTITY, _purposes(purposes), Extension(san, not len(subject.rdns)))
    if not small:
        own += (Extension(x509.SubjectKeyIdentifier(key_identifier(key)), False),)
    return _under(terms, subject, key, own, extra)


@lru_cache(maxsize=16)
def _purposes(purposes: tuple[x509.ObjectIdentifier, ...]) -> Extension:
    return settle(x509.ExtendedKeyUsage(purposes))


def _under(
    terms: Terms, subject: x509.Name, key: PublicKey, own: tuple[Extension, ...], extra: tuple[Extension, ...] = ()
) -> Shape:
    issuer = _of_issuer(terms.issuer_key_identifier, terms.crl_url, terms.issuer_url, terms.ocsp_url)
    return Shape(subject, terms.issuer, terms.serial, terms.not_before, terms.not_after, key, (*own, *issuer, *extra))


@lru_cache(maxsize=64)
def _of_issuer(
    key_identifier: bytes, crl_url: str | None, issuer_url: str | None, ocsp_url: str | None
) -> tuple[Extension, ...]:
    """What every certificate of one CA says of it."""
    values: list[x509.ExtensionType] = [x509.AuthorityKeyIdentifier(key_identifier, None, None)]
    if crl_url is not None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        values.append(x509.CRLDistributionPoints([point]))
    access = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, url in (
            (AuthorityInformationAccessOID.OCSP, ocsp_url),
            (AuthorityInformationAccessOID.CA_ISSUERS, issuer_url),
        )
        if url is not None
    ]
    if access:
        values.append(x509.AuthorityInformationAccess(access))
    return tuple(settle(value) for value in values)
