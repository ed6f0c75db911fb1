"""IDevIDs: serial number, MASA URI, issuer."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from brski import DeviceSerialMissing, MasaUriInvalid
from brski.idevid import (
    HARDWARE_MODULE_NAME,
    MASA_URI,
    MasaAddress,
    SerialSource,
    idevid_issuer,
    is_same_issuer,
    read_idevid,
    read_masa_address,
    read_masa_uri,
    read_serial_number,
)
from est import der
from lab.certificates import issue
from lab.factory import make_leaf
from tests.brski.trio import LONG_AGO, device, factory
from tests.support import NOW

NAME = x509.NameOID


def certificate(*attributes: x509.NameAttribute[str], extension: bytes | None = None) -> x509.Certificate:
    extensions = [] if extension is None else [(x509.UnrecognizedExtension(MASA_URI, extension), False)]
    return make_leaf(factory().device_ca, x509.Name(attributes), now=LONG_AGO, extensions=extensions).certificate


def ia5(text: bytes) -> bytes:
    return der.tlv(der.IA5_STRING, text)


SERIAL = x509.NameAttribute(NAME.SERIAL_NUMBER, "PX-7")


@pytest.mark.req("B-151", "B-154", "B-159", "B-265")
def test_idevid_is_read() -> None:
    idevid = read_idevid(device().certificate)
    assert idevid.serial_number == "PX-1" != str(device().certificate.serial_number)
    assert idevid.masa_uri == "masa.example:9443"
    aki = device().certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert idevid.issuer == b"\x04\x18" + aki.public_bytes()
    assert idevid.device == (idevid.issuer.hex(), "PX-1")


@pytest.mark.req("B-152")
@pytest.mark.parametrize("kind", [x509.name._ASN1Type.UTF8String, x509.name._ASN1Type.PrintableString])
def test_string_type_of_the_serial_does_not_matter(kind: x509.name._ASN1Type) -> None:
    assert read_serial_number(certificate(x509.NameAttribute(NAME.SERIAL_NUMBER, "PX-7", kind))) == "PX-7"


@pytest.mark.req("B-151")
@pytest.mark.parametrize(
    "attributes",
    [
        (),
        (x509.NameAttribute(NAME.COMMON_NAME, "PX-7"),),
        (SERIAL, x509.NameAttribute(NAME.SERIAL_NUMBER, "PX-8")),
        (x509.NameAttribute(NAME.SERIAL_NUMBER, "PX\n7", x509.name._ASN1Type.UTF8String),),
    ],
)
def test_certificate_without_exactly_one_readable_serial_is_no_idevid(
    attributes: tuple[x509.NameAttribute[str], ...],
) -> None:
    with pytest.raises(DeviceSerialMissing):
        read_idevid(certificate(*attributes))


@pytest.mark.req("B-154", "B-157")
@pytest.mark.parametrize(
    ("extension", "text"),
    [
        (None, ""),
        (ia5(b"masa.example"), "masa.example"),
        (b"masa.example:9443", "masa.example:9443"),
        (ia5(b"https://masa.example/" + b"a" * 200), "https://masa.example/" + "a" * 200),
    ],
)
def test_masa_uri_extension_is_read(extension: bytes | None, text: str) -> None:
    assert read_masa_uri(certificate(SERIAL, extension=extension)) == text


@pytest.mark.req("B-154")
@pytest.mark.parametrize(
    "extension",
    [b"\x16\x00", b"\x16\x05abc", b"\x16\x80abc\x00\x00", ia5(b"masa") + b"x", ia5(b"a b"), ia5(b"a\xff"), b"\x0c\x01a",
     ia5(b"a" * 1025)],
)  # fmt: skip
def test_unreadable_masa_uri_extension_is_refused(extension: bytes) -> None:
    with pytest.raises(MasaUriInvalid):
        read_masa_uri(certificate(SERIAL, extension=extension))


WELL_KNOWN = "/.well-known/brski"


@pytest.mark.req("B-155", "B-156")
@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("masa.example", MasaAddress("masa.example", 443, WELL_KNOWN)),
        ("masa.example:9443", MasaAddress("masa.example", 9443, WELL_KNOWN)),
        ("MASA.example.:9443", MasaAddress("masa.example", 9443, WELL_KNOWN)),
        ("192.0.2.7:9443", MasaAddress("192.0.2.7", 9443, WELL_KNOWN)),
        ("[2001:DB8::0007]:9443", MasaAddress("2001:db8::7", 9443, WELL_KNOWN)),
        ("https://masa.example", MasaAddress("masa.example", 443, WELL_KNOWN)),
        ("https://masa.example/", MasaAddress("masa.example", 443, WELL_KNOWN)),
        ("HTTPS://masa.example:1/vendor/brski/", MasaAddress("masa.example", 1, "/vendor/brski")),
    ],
)
def test_masa_addresses(text: str, address: MasaAddress) -> None:
    assert read_masa_address(text) == address
    assert read_masa_address(address.authority).authority == address.authority
    assert address.url("requestvoucher") == f"https://{address.authority}{address.path}/requestvoucher"


@pytest.mark.req("B-156", "T-24")
@pytest.mark.parametrize(
    "text",
    [
        "http://masa.example",
        "ldap://masa.example/x",
        "ftp://masa.example/",
        "//masa.example/x",
        "/masa.example",
        "https:///x",
        "https://user@masa.example/",
        "user:secret@masa.example",
        "masa.example?x",
        "https://masa.example/?x",
        "https://masa.example/#x",
        "masa.example#x",
        "masa.example:",
        "masa.example:0",
        "masa.example:65536",
        "masa.example:x",
        "masa..example",
        "-masa.example",
        ".example",
        "",
        ":9443",
        "masa example",
        "masa\\example",
        "masa%2eexample",
        "mäsa.example",
        "masa\n.example",
        "[::1",
        "[v1.x]:9443",
        "[fe80::1%25eth0]:9443",
        "https://masa.example/../x",
        "https://masa.example//x",
        "a" * 254,
    ],
)
def test_what_is_no_https_authority_or_uri_is_refused(text: str) -> None:
    with pytest.raises(MasaUriInvalid):
        read_masa_address(text)


@pytest.mark.req("B-266", "B-160")
def test_device_without_key_identifier_is_named_by_the_hash_of_its_own_key() -> None:
    bare = factory().make_device("PX-NOAKI", now=LONG_AGO, has_aki=False).certificate
    digest = x509.SubjectKeyIdentifier.from_public_key(bare.public_key()).digest
    assert idevid_issuer(bare) == bytes.fromhex("041830168014") + digest
    assert is_same_issuer(idevid_issuer(bare), bare)


@pytest.mark.req("B-265", "B-324")
def test_issuer_is_recognised_in_the_forms_of_the_field() -> None:
    complete = idevid_issuer(device().certificate)
    assert len(complete) == 26
    for form in (complete, complete[2:], complete[6:]):
        assert is_same_issuer(form, device().certificate)
        assert not is_same_issuer(form, device(maker="Other").certificate)
    for junk in (b"", b"C = IE, CN = ...", complete[:-1], complete.hex().encode()):
        assert not is_same_issuer(junk, device().certificate)


@pytest.mark.req("B-265", "B-324")
def test_issuer_is_recognised_where_the_extension_has_more_than_a_key_identifier() -> None:
    long = x509.DirectoryName(x509.Name([x509.NameAttribute(NAME.ORGANIZATION_NAME, "Acme " * 12)] * 3))
    extension = x509.AuthorityKeyIdentifier(bytes(range(20)), [long], 77)
    ca, name = factory().device_ca, device().certificate.subject
    certificate = issue(
        ca.key, name, ca.key, ca.certificate.subject, now=LONG_AGO, not_after=NOW, ca=False, has_aki=False,
        extensions=[(extension, False)],
    )  # fmt: skip
    complete = idevid_issuer(certificate)
    assert complete == der.tlv(der.OCTET_STRING, extension.public_bytes()) and len(complete) > 130
    for form in (complete, extension.public_bytes(), bytes(range(20))):
        assert is_same_issuer(form, certificate)


def test_certificate_with_broken_extensions_gives_no_facts() -> None:
    good = device().certificate.public_bytes(Encoding.DER)
    # the length inside the authority key identifier no longer fits
    at = good.index(b"\x30\x16\x80\x14")
    broken = x509.load_der_x509_certificate(good[:at] + b"\x30\x16\x80\x13" + good[at + 4 :])
    assert idevid_issuer(broken) != idevid_issuer(device().certificate)


def with_names(*names: x509.GeneralName, subject: str = "") -> x509.Certificate:
    attributes = [x509.NameAttribute(NAME.COMMON_NAME, subject)] if subject else []
    extensions = [(x509.SubjectAlternativeName(names), False)] if names else []
    return make_leaf(factory().device_ca, x509.Name(attributes), now=LONG_AGO, extensions=extensions).certificate


def module(serial: bytes, *more: bytes) -> x509.OtherName:
    value = der.sequence(der.oid("1.3.6.1.4.1.32473.1"), der.tlv(der.OCTET_STRING, serial), *more)
    return x509.OtherName(HARDWARE_MODULE_NAME, value)


@pytest.mark.req("B-153")
@pytest.mark.parametrize(("octets", "serial"), [(b"HW-1", "HW-1"), (b"\x01\xfe", "01fe"), (b"a\nb", "610a62")])
def test_a_hardware_module_name_gives_its_text_or_its_octets_in_hex(octets: bytes, serial: str) -> None:
    certificate = with_names(x509.DNSName("device.example"), module(octets))
    assert read_serial_number(certificate, SerialSource.HARDWARE_MODULE) == serial
    with pytest.raises(DeviceSerialMissing):
        read_serial_number(certificate)


@pytest.mark.req("B-153")
@pytest.mark.parametrize(
    "names",
    [
        (),
        (x509.DNSName("device.example"),),
        (module(b"one"), module(b"two")),
        (module(b""),),
        (module(b"one", der.integer(1)),),
        (x509.OtherName(HARDWARE_MODULE_NAME, der.tlv(der.OCTET_STRING, b"HW-1")),),
        (x509.OtherName(x509.ObjectIdentifier("1.2.3"), der.tlv(der.OCTET_STRING, b"HW-1")),),
    ],
)
def test_a_hardware_module_name_that_is_missing_twofold_or_misshapen_is_no_serial(
    names: tuple[x509.GeneralName, ...],
) -> None:
    with pytest.raises(DeviceSerialMissing) as caught:
        read_serial_number(with_names(*names), SerialSource.HARDWARE_MODULE)
    assert caught.value.fields["source"] == "hardware-module-name"


@pytest.mark.req("B-153")
def test_a_common_name_serves_where_it_was_chosen() -> None:
    assert read_idevid(with_names(subject="CN-9"), SerialSource.COMMON_NAME).serial_number == "CN-9"
    with pytest.raises(DeviceSerialMissing):
        read_serial_number(with_names(), SerialSource.COMMON_NAME)
