"""The shapes of the certificates and CRLs that we issue: shape, sign, check (RFC 5280, section 4 and 5).

`to_be_signed` writes the bytes to be signed, has cryptography read them back and compares field by field, so what is
signed is byte for byte what was checked; `assemble` puts the signature on and verifies it. Serial numbers, times and
keys are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from est import der as tlv
from est.certificates import extensions_of, load_certificate, ski_of
from est.errors import CertificateMalformed, CertificateNotAsShaped, EstError, ShapeNotPossible
from est.keys import PublicKey, check_key, spki
from est.revocation import Revoked, crl_to_be_signed
from est.signer import hash_for

__all__ = [
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
    "radius_server",
    "registrar",
    "root_ca",
    "to_be_signed",
]

SERVER_AUTH = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")
CLIENT_AUTH = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")
CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")

Extension = tuple[x509.ExtensionType, bool]
IPAddress = IPv4Address | IPv6Address

_ECDSA = {
    "secp256r1": tlv.sequence(tlv.oid("1.2.840.10045.4.3.2")),
    "secp384r1": tlv.sequence(tlv.oid("1.2.840.10045.4.3.3")),
}
_VERSION_3 = b"\xa0\x03\x02\x01\x02"
_NO_SIGNATURE = b"\x03\x01\x00"
_CRITICAL = b"\x01\x01\xff"


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


_CA_USAGE: Extension = (_usage(ca=True), True)
_END_ENTITY: tuple[Extension, ...] = (
    (x509.BasicConstraints(ca=False, path_length=None), True),
    (_usage(ca=False), True),
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
    ) -> Terms:
        """Terms under this CA certificate; raises ShapeNotPossible if the certificate would outlive it."""
        if not_after > issuer.not_valid_after_utc or not_before < issuer.not_valid_before_utc:
            raise ShapeNotPossible("the certificate would be valid when its issuer's certificate is not")
        identifier = ski_of(issuer)
        if identifier is None:
            raise ShapeNotPossible("the issuer's certificate has no key identifier to refer to")
        return cls(issuer.subject, identifier, serial, not_before, not_after, crl_url, issuer_url)


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
    return x509.SubjectKeyIdentifier.from_public_key(key).digest


def root_ca(
    subject: x509.Name, key: PublicKey, *, serial: int, not_before: datetime, not_after: datetime, path_length: int = 1
) -> Shape:
    """The self-signed root: signs issuing CAs only."""
    extensions: tuple[Extension, ...] = (
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        _CA_USAGE,
        (x509.SubjectKeyIdentifier(key_identifier(key)), False),
    )
    return Shape(subject, subject, serial, not_before, not_after, key, extensions)


def issuing_ca(terms: Terms, subject: x509.Name, key: PublicKey) -> Shape:
    """A CA under the root that signs end entities only: path length 0."""
    own: tuple[Extension, ...] = (
        (x509.BasicConstraints(ca=True, path_length=0), True),
        _CA_USAGE,
        (x509.SubjectKeyIdentifier(key_identifier(key)), False),
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


def agent(
    terms: Terms,
    subject: x509.Name,
    key: PublicKey,
    *,
    identifier: str,
    extra_extensions: Sequence[Extension] = (),
) -> Shape:
    """An agent's certificate, also an X509-SVID: one URI name, clientAuth and serverAuth, no host name.

    `extra_extensions` are the private ones of the dual identity; they must not be critical, because TLS libraries
    refuse what they do not know. No subject key identifier: the size budget of EAP-TLS is small.
    """
    if any(critical for _, critical in extra_extensions):
        raise ShapeNotPossible("private extensions of an agent's certificate must not be critical")
    return _end_entity(
        terms, subject, key, (CLIENT_AUTH, SERVER_AUTH), _uri(identifier), extra=tuple(extra_extensions), small=True
    )


def to_be_signed(shape: Shape, *, issuer_key: ec.EllipticCurvePublicKey) -> bytes:
    """DER TBSCertificate of the shape for an issuer with this key, re-read by cryptography and compared.

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
        tlv.tlv(0xA3, tlv.sequence(*(_extension(value, critical) for value, critical in shape.extensions))),
    )
    try:
        check_der(tlv.sequence(tbs, algorithm, _NO_SIGNATURE), shape)
    except CertificateMalformed as error:
        raise ShapeNotPossible("the certificate cannot be encoded") from error
    return tbs


def assemble(tbs: bytes, signature: bytes, issuer_key: ec.EllipticCurvePublicKey) -> bytes:
    """DER certificate or CRL from its signed part and the ECDSA signature, which is verified first.

    Raises CertificateNotAsShaped if the signature is not that of `issuer_key` over `tbs`.
    """
    try:
        issuer_key.verify(signature, tbs, ec.ECDSA(hash_for(issuer_key)))
    except InvalidSignature as error:
        raise CertificateNotAsShaped("the signature does not verify with the issuer's key") from error
    return tlv.sequence(
        tbs,
        _algorithm(issuer_key),
        tlv.tlv(tlv.BIT_STRING, b"\x00" + signature),
    )


def check(certificate: x509.Certificate, shape: Shape) -> None:
    """Compare a finished certificate with its shape, field by field; raises CertificateNotAsShaped."""
    try:
        found = (
            certificate.version,
            certificate.subject,
            certificate.issuer,
            certificate.serial_number,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.public_key(),
            [(one.value, one.critical) for one in extensions_of(certificate)],
        )
    except (ValueError, TypeError, UnsupportedAlgorithm, EstError) as error:
        raise CertificateNotAsShaped("the finished certificate cannot be read") from error
    wanted = (
        x509.Version.v3,
        shape.subject,
        shape.issuer,
        shape.serial,
        shape.not_before.astimezone(UTC).replace(microsecond=0),
        shape.not_after.astimezone(UTC).replace(microsecond=0),
        shape.public_key,
        list(shape.extensions),
    )
    if found == wanted:
        return
    names = ("version", "subject", "issuer", "serial number", "notBefore", "notAfter", "public key", "extensions")
    for what, is_, should_be in zip(names, found, wanted, strict=True):
        if is_ != should_be:
            raise CertificateNotAsShaped(f"the certificate's {what} is not the one shaped")


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


def _extension(value: x509.ExtensionType, critical: bool) -> bytes:
    return tlv.sequence(
        tlv.oid(value.oid.dotted_string),
        _CRITICAL if critical else b"",
        tlv.tlv(tlv.OCTET_STRING, value.public_bytes()),
    )


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
    purposes: Sequence[x509.ObjectIdentifier],
    san: x509.SubjectAlternativeName,
    *,
    extra: tuple[Extension, ...] = (),
    small: bool = False,
) -> Shape:
    own: tuple[Extension, ...] = (
        *_END_ENTITY,
        (x509.ExtendedKeyUsage(purposes), False),
        (san, not list(subject)),
    )
    if not small:
        own += ((x509.SubjectKeyIdentifier(key_identifier(key)), False),)
    return _under(terms, subject, key, own, extra)


def _under(
    terms: Terms, subject: x509.Name, key: PublicKey, own: tuple[Extension, ...], extra: tuple[Extension, ...] = ()
) -> Shape:
    issuer: tuple[Extension, ...] = ((x509.AuthorityKeyIdentifier(terms.issuer_key_identifier, None, None), False),)
    if terms.crl_url is not None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(terms.crl_url)], None, None, None)
        issuer += ((x509.CRLDistributionPoints([point]), False),)
    if terms.issuer_url is not None:
        access = x509.AccessDescription(
            AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(terms.issuer_url)
        )
        issuer += ((x509.AuthorityInformationAccess([access]), False),)
    return Shape(subject, terms.issuer, terms.serial, terms.not_before, terms.not_after, key, (*own, *issuer, *extra))
