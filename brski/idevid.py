"""The IDevID: who the device says it is, who made it, which MASA speaks for it (RFC 8995, section 2.3).

Nothing here trusts the certificate: chains are checked by `brski.manufacturer.identify`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import SplitResult, urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from brski import leaves
from brski.errors import DeviceSerialMissing, MasaUriInvalid
from brski.paths import WELL_KNOWN
from est import der
from est.errors import EstError

MASA_URI = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.32")
HARDWARE_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")

_MAX_MASA_URI = 1024
_HOST = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


class SerialSource(Enum):
    """Where a manufacturer's certificates hold the device's serial number (RFC 8995, section 2.3.1).

    The subject's serialNumber attribute is what the document says. Others put it into the hwSerialNum of a
    hardwareModuleName (RFC 4108, section 5) in subjectAltName, or into the subject's common name.
    """

    SUBJECT = "subject-serial-number"
    HARDWARE_MODULE = "hardware-module-name"
    COMMON_NAME = "common-name"


@dataclass(frozen=True, slots=True)
class IDevID:
    """A device certificate, read.

    `serial_number` is the device's (by default subject attribute 2.5.4.5), `issuer` the octets for idevid-issuer,
    `masa_uri` the text of the MASA URI extension ("" without one).
    """

    serial_number: str
    issuer: bytes
    masa_uri: str
    certificate: x509.Certificate

    @property
    def device(self) -> tuple[str, str]:
        """Issuer (hex) and serial number: what tells two devices apart, also those of different manufacturers."""
        return self.issuer.hex(), self.serial_number


def read_idevid(certificate: x509.Certificate, source: SerialSource = SerialSource.SUBJECT) -> IDevID:
    """The device facts of a certificate; raises DeviceSerialMissing or MasaUriInvalid.

    The serial's string type differs between real certificates, so the decoded text is what counts.
    """
    return IDevID(
        serial_number=read_serial_number(certificate, source),
        issuer=idevid_issuer(certificate),
        masa_uri=read_masa_uri(certificate),
        certificate=certificate,
    )


def read_serial_number(certificate: x509.Certificate, source: SerialSource = SerialSource.SUBJECT) -> str:
    """The device's serial number (RFC 8995, section 2.3.1); raises DeviceSerialMissing.

    There must be exactly one: a certificate that gives two does not say which device it is.
    """
    try:
        if source is SerialSource.HARDWARE_MODULE:
            values: list[object] = [_hardware_serial(one) for one in _hardware_modules(certificate)]
        else:
            oid = NameOID.SERIAL_NUMBER if source is SerialSource.SUBJECT else NameOID.COMMON_NAME
            values = [one.value for one in certificate.subject.get_attributes_for_oid(oid)]
    except (ValueError, EstError) as cause:
        raise DeviceSerialMissing("the certificate's names are not readable", source=source.value) from cause
    what = _SERIAL_SOURCES[source]
    if len(values) != 1:
        raise DeviceSerialMissing(f"the certificate has not exactly one {what}", source=source.value)
    try:
        return leaves.read_string(values[0])
    except ValueError as cause:
        raise DeviceSerialMissing(f"the certificate's {what}: {cause}", source=source.value) from cause


_SERIAL_SOURCES = {
    SerialSource.SUBJECT: "serialNumber attribute in its subject",
    SerialSource.HARDWARE_MODULE: "hardwareModuleName in its subjectAltName",
    SerialSource.COMMON_NAME: "common name in its subject",
}


def _hardware_modules(certificate: x509.Certificate) -> list[bytes]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension):
        return []
    return [one.value for one in names.get_values_for_type(x509.OtherName) if one.type_id == HARDWARE_MODULE_NAME]


def _hardware_serial(value: bytes) -> str:
    """hwSerialNum of a HardwareModuleName: its text if it is printable ASCII, else its octets in hex."""
    start, stop = der.only(value, 0, len(value), der.SEQUENCE)
    _, after_type = der.expect(value, start, stop, der.OID)
    start, stop = der.only(value, after_type, stop, der.OCTET_STRING)
    octets = value[start:stop]
    return octets.decode("ascii") if all(0x20 <= octet <= 0x7E for octet in octets) else octets.hex()


def idevid_issuer(certificate: x509.Certificate) -> bytes:
    """The octets of idevid-issuer for a device certificate (RFC 8366bis; RFC 8995, section 5.5 with erratum 7263).

    The complete extnValue OCTET STRING of the authority key identifier. Without that extension the same structure
    around the SHA-1 of the certificate's own key, as the later draft literally says.
    """
    extension = _extension(certificate, x509.AuthorityKeyIdentifier.oid)
    if extension is None:
        return _around_key(certificate)
    return der.tlv(der.OCTET_STRING, extension.public_bytes())


def is_same_issuer(received: bytes, certificate: x509.Certificate, issuer: x509.Certificate | None = None) -> bool:
    """Whether a received idevid-issuer names the issuer of `certificate`.

    Implementations in the field also send the bare key identifier, or the extension without its OCTET STRING wrapper.
    Without an authority key identifier the texts can be read in two ways: hash of the device's key or of the issuer's;
    the second is taken where the issuer's certificate is at hand.
    """
    complete = idevid_issuer(certificate)
    inside = slice(*der.only(complete, 0, len(complete), der.OCTET_STRING))
    if received in (complete, complete[inside]):
        return True
    extension = _extension(certificate, x509.AuthorityKeyIdentifier.oid)
    if isinstance(extension, x509.AuthorityKeyIdentifier):
        return received == extension.key_identifier
    return issuer is not None and received == _around_key(issuer)


def read_masa_uri(certificate: x509.Certificate) -> str:
    """The text of the MASA URI extension, "" without one; raises MasaUriInvalid.

    The extension holds a DER IA5String; raw text, which some makers put there, is read as well.
    """
    extension = _extension(certificate, MASA_URI)
    if extension is None:
        return ""
    value = extension.public_bytes()
    if value[:1] == bytes([der.IA5_STRING]):
        try:
            start, stop = der.only(value, 0, len(value), der.IA5_STRING)
        except EstError as cause:
            raise MasaUriInvalid("the MASA URI extension is not a DER IA5String") from cause
        value = value[start:stop]
    if not 1 <= len(value) <= _MAX_MASA_URI or not all(0x21 <= octet <= 0x7E for octet in value):
        raise MasaUriInvalid("the MASA URI extension is not printable ASCII text")
    return value.decode("ascii")


@dataclass(frozen=True, slots=True)
class MasaAddress:
    """Where a MASA listens: `host` without brackets, `port`, `path` of its well-known base."""

    host: str
    port: int
    path: str = WELL_KNOWN

    @property
    def authority(self) -> str:
        """host:port, brackets around an IPv6 address; the form in which allow lists hold it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, operation: str) -> str:
        """The URL of an operation, for instance requestvoucher."""
        return f"https://{self.authority}{self.path}/{operation}"


@lru_cache(maxsize=512)
def read_masa_address(text: str) -> MasaAddress:
    """A MASA's address from an authority ("masa.example:9443") or a complete HTTPS URI; raises MasaUriInvalid.

    RFC 8995, section 2.3.2: without a slash the text is an authority, and the scheme is always https.
    """
    if "/" not in text:
        text = f"https://{text}"
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text or "%" in text:
        raise MasaUriInvalid("a MASA URI is plain ASCII")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as cause:
        raise MasaUriInvalid("the MASA URI cannot be read") from cause
    if parts.scheme != "https":
        raise MasaUriInvalid("a MASA is asked over https only")
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise MasaUriInvalid("a MASA URI has no user information, query or fragment")
    path = parts.path.rstrip("/")
    if any(step in (".", "..", "") for step in path.split("/")[1:]):
        raise MasaUriInvalid("a MASA URI has no empty or relative path steps")
    return MasaAddress(_host(parts), 443 if port is None else port, path or WELL_KNOWN)


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if "[" in parts.netloc:
        try:
            return IPv6Address(host).compressed
        except AddressValueError as cause:
            raise MasaUriInvalid("the MASA URI names no host") from cause
    if not host or len(host) > 253 or not _HOST.issuperset(host) or ".." in host or host.startswith((".", "-")):
        raise MasaUriInvalid("the MASA URI names no host")
    if parts.port == 0 or parts.netloc.endswith(":"):
        raise MasaUriInvalid("the MASA URI names no port")
    return host.rstrip(".")


def _around_key(certificate: x509.Certificate) -> bytes:
    digest = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest
    return der.tlv(der.OCTET_STRING, b"\x30\x16\x80\x14" + digest)


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> x509.ExtensionType | None:
    try:
        return certificate.extensions.get_extension_for_oid(oid).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        # an unreadable extension block gives no facts; the chain check refuses such certificates on its own
        return None
