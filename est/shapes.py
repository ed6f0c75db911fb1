"""A certificate before its signature: shape, sign, check (RFC 5280, section 4).

`to_be_signed` writes what is to be signed and has it read back, by cryptography, or by our own reader if it is plain,
so what is signed is byte for byte what was checked; `assemble` puts the signature on and verifies it. Extensions that
many certificates share are encoded and compared once, when they are made. Serial numbers, times and keys are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from est import der as tlv
from est.certificates import (
    CRITICAL,
    URI,
    common_name_in,
    extensions_of,
    load_certificate,
    load_own,
    plain_name,
    read_plain,
)
from est.errors import CertificateMalformed, CertificateNotAsShaped, EstError, ShapeNotPossible
from est.kept import keep, kept_by_identity
from est.keys import PublicKey, check_key, spki
from est.signer import signed_form

_ECDSA = {
    "secp256r1": tlv.sequence(tlv.oid("1.2.840.10045.4.3.2")),
    "secp384r1": tlv.sequence(tlv.oid("1.2.840.10045.4.3.3")),
}
_VERSION_3 = b"\xa0\x03\x02\x01\x02"
_NO_SIGNATURE = b"\x03\x01\x00"
_WHENEVER = tlv.sequence(tlv.tlv(tlv.UTC_TIME, b"260101000000Z"), tlv.tlv(tlv.UTC_TIME, b"270101000000Z"))


@dataclass(slots=True)
class Extension:
    """An extension of a shape. `settled` is its DER once that was encoded and read back, else empty."""

    value: x509.ExtensionType
    critical: bool
    settled: bytes = field(default=b"", compare=False)

    def encode(self) -> bytes:
        """DER Extension."""
        return self.settled or tlv.sequence(
            tlv.oid(self.value.oid.dotted_string),
            CRITICAL if self.critical else b"",
            tlv.tlv(tlv.OCTET_STRING, _octets(self.value)),
        )


def _octets(value: Any) -> bytes:
    """DER of an extension's value; of the names that clients have the library would need twice as long."""
    if type(value) is x509.SubjectAlternativeName:
        names = tuple(value)
        if len(names) == 1 and type(names[0]) is x509.UniformResourceIdentifier:
            return tlv.sequence(tlv.tlv(URI, names[0].value.encode("ascii")))
    return bytes(value.public_bytes())


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


def to_be_signed(shape: Shape, *, issuer_key: ec.EllipticCurvePublicKey) -> bytes:
    """DER TBSCertificate of the shape for an issuer with this key, read back by cryptography where it is not plain.

    Raises ShapeNotPossible, KeyNotAccepted, CertificateNotAsShaped.
    """
    _check_possible(shape)
    algorithm = _algorithm(issuer_key)
    extensions = [one.settled or one.encode() for one in shape.extensions]
    tbs = tlv.sequence(
        _VERSION_3,
        tlv.integer(shape.serial),
        algorithm,
        _name(shape.issuer),
        tlv.sequence(tlv.write_time(shape.not_before), tlv.write_time(shape.not_after)),
        _name(shape.subject),
        spki(shape.public_key),
        tlv.tlv(0xA3, tlv.sequence(*extensions)),
    )
    try:
        certificate = load_own(tlv.sequence(tbs, algorithm, _NO_SIGNATURE))
        _check_dates(certificate, shape)
        _check_extensions(certificate, shape, extensions)
    except (CertificateMalformed, ValueError, TypeError) as error:
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
        _check_dates(certificate, shape)
        found = certificate.subject
    except (ValueError, TypeError) as error:
        raise CertificateNotAsShaped("the finished certificate cannot be read") from error
    _compare(("subject",), (found,), (shape.subject,))


def _check_dates(certificate: x509.Certificate, shape: Shape) -> None:
    """Serial number and dates."""
    found = certificate.serial_number, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if found != (shape.serial, shape.not_before, shape.not_after):
        wanted = shape.serial, shape.not_before.replace(microsecond=0), shape.not_after.replace(microsecond=0)
        _compare(("serial number", "notBefore", "notAfter"), found, wanted)


def _compare(names: Sequence[str], found: Sequence[object], wanted: Sequence[object]) -> None:
    for what, is_, should_be in zip(names, found, wanted, strict=True):
        if is_ != should_be:
            raise CertificateNotAsShaped(f"the certificate's {what} is not the one shaped")


def _check_extensions(certificate: x509.Certificate, shape: Shape, written: Sequence[bytes]) -> None:
    """Compare what was written with the shape, value by value, where it is not settled; then it is."""
    wanted = shape.extensions
    if len({one.value.oid for one in wanted}) != len(wanted):
        raise ShapeNotPossible("an extension occurs twice")
    fresh = [(one, der) for one, der in zip(wanted, written, strict=True) if not one.settled]
    if not all([_is_plainly(one, der) for one, der in fresh]):
        found = list(extensions_of(certificate))
        if len(found) != len(wanted):
            raise CertificateNotAsShaped("the certificate's extensions are not those shaped")
        for read, one in zip(found, wanted, strict=True):
            if read.critical != one.critical or (read.oid != one.value.oid if one.settled else read.value != one.value):
                raise CertificateNotAsShaped("the certificate's extensions are not those shaped")
    for one, der in fresh:
        one.settled = der


def _is_plainly(extension: Extension, der: bytes) -> bool:
    """Whether our own reader finds the extension in its DER; False also where only the library can tell.

    The library reads all extensions of a certificate or none, and these are the ones that are another's in each.
    """
    told = read_plain(der)
    if told is None:
        return False
    value: Any = extension.value
    kind = type(value)  # isinstance() with the library's abstract classes is slow
    if kind is x509.UnrecognizedExtension:
        return told[1:] == (extension.critical, "private", (value.oid, value.value))
    return kind is x509.SubjectAlternativeName and told[1:] == (extension.critical, "names", tuple(value))


_names: dict[int, tuple[object, bytes]] = {}


def common_name(text: str) -> x509.Name:
    """A Name of nothing but this; its DER, where it is plain, is known at once. ValueError for an impossible length."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    der = plain_name(text)
    if der is not None and common_name_in(der) == text:
        keep(_names, name, der)
    return name


def _write_name(name: x509.Name) -> bytes:
    """DER of a name, read back and compared; raises ShapeNotPossible."""
    try:
        der = name.public_bytes()
        found = x509.Name.from_bytes(der)
    except (ValueError, TypeError) as error:
        raise ShapeNotPossible("a name cannot be encoded") from error
    if found != name:
        raise ShapeNotPossible("a name reads back as another one")
    return der


_name = kept_by_identity(_write_name, _names)


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
