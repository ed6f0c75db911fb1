"""Certificates from outside: read whole or refused, never half."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from est import certificates, chains, cms, der
from est.errors import CertificateMalformed, EstError
from est.signer import KeySigner
from tests.est.pki import campus, damage_each_byte, odd
from tests.support import NOW, key

PROXY = campus().proxy.public_bytes(Encoding.DER)
NAME = b"\x0c\x07proxy 1"
SERIAL = b"\xa0\x03\x02\x01\x02\x02\x01\x4d"


def spoilt(old: bytes, new: bytes) -> bytes:
    assert PROXY.count(old) == 1
    assert len(old) == len(new)
    return PROXY.replace(old, new)


SPOILT = {
    "name a BIT STRING": spoilt(NAME, b"\x03\x07\0roxy 1"),
    "name not UTF-8": spoilt(NAME, b"\x0c\x07\xff\xfe\xfd\xfc\xfb\xfa\xf9"),
    "name of tag 0": spoilt(NAME, b"\x00\x07proxy 1"),
    "31 February": spoilt(b"\x17\x0d251231120000Z", b"\x17\x0d250231120000Z"),
    "serial number negative": spoilt(SERIAL, SERIAL[:-1] + b"\xff"),
    "serial number 0": spoilt(SERIAL, SERIAL[:-1] + b"\x00"),
    "extension value rubbish": spoilt(b"\x04\x02\x30\x00", b"\x04\x02\x30\x05"),
    "extension twice": spoilt(b"\x06\x03\x55\x1d\x0e", b"\x06\x03\x55\x1d\x0f"),
}


@pytest.mark.req("E-200")
@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.filterwarnings("error")
def test_a_certificate_that_cannot_be_read_whole_is_refused(what: str) -> None:
    with pytest.raises(CertificateMalformed):
        certificates.read_certificate(SPOILT[what])


@pytest.mark.req("E-200")
@pytest.mark.parametrize("what", [one for one in SPOILT if not one.startswith("serial")])
def test_a_certificate_that_another_reader_let_in_is_refused_by_the_chain_check(what: str) -> None:
    try:
        certificate = x509.load_der_x509_certificate(SPOILT[what])
    except ValueError:
        return
    anchors = chains.TrustAnchors([campus().root])
    for leaf, others in ((certificate, [campus().ca]), (campus().proxy, [campus().ca, certificate])):
        with pytest.raises(CertificateMalformed):
            chains.check(leaf, others, anchors, at=NOW, policy=chains.IDEVID)
        with pytest.raises(CertificateMalformed):
            chains.check_pin([leaf, *others], campus().root, at=NOW)


@pytest.mark.req("E-200")
def test_the_signer_of_a_cms_message_is_read_whole() -> None:
    good = cms.seal(
        b"x",
        content_type=cms.ID_DATA,
        signer=KeySigner(key("campus proxy")),
        certificate=campus().proxy,
        signing_time=NOW,
    )
    with pytest.raises(CertificateMalformed):
        cms.unseal(good.replace(PROXY, SPOILT["name a BIT STRING"]), content_types=[cms.ID_DATA])


def test_parts_are_the_bytes_in_the_certificate() -> None:
    parts = certificates.parts(campus().proxy)
    assert parts.serial == der.integer(campus().proxy.serial_number)
    assert parts.issuer == campus().ca.subject.public_bytes()
    assert parts.subject == campus().proxy.subject.public_bytes()
    assert certificates.issuer_and_serial(PROXY) == parts.issuer + parts.serial
    san = campus().proxy.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert certificates.extension_value(parts.extensions or b"", "2.5.29.17") == san.public_bytes()
    assert certificates.extension_value(parts.extensions or b"", "2.5.29.99") is None


PRIVATE = tuple(x509.ObjectIdentifier(f"1.3.6.1.4.1.32473.2026.1.{last}") for last in (1, 2))
ONE_URI = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://campus.example/agent/1")])


@pytest.mark.req("E-200")
@pytest.mark.parametrize("critical", [False, True])
@pytest.mark.parametrize(
    "san",
    [
        None,
        ONE_URI,
        x509.SubjectAlternativeName([*ONE_URI, x509.UniformResourceIdentifier("urn:x")]),
        x509.SubjectAlternativeName([x509.DNSName("a.example")]),
    ],
)
def test_what_came_before_and_what_is_plain_is_told_as_the_library_tells_it(
    san: x509.SubjectAlternativeName | None, *, critical: bool
) -> None:
    purposes = [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH, x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(True, 3), True),
        (x509.ExtendedKeyUsage(purposes), critical),
        (x509.UnrecognizedExtension(PRIVATE[0], b"\x05\x00"), critical),
        (x509.SubjectKeyIdentifier(b"own key"), False),
        (x509.AuthorityKeyIdentifier(b"issuer's key", None, None), False),
        (x509.UnrecognizedExtension(PRIVATE[1], b"a" * 600), False),
    ]
    if san is not None:
        extensions.insert(2, (san, critical))
    first, again = (
        certificates.read_certificate(
            odd("told", key("told"), key("told"), extensions=extensions, serial=serial).public_bytes(Encoding.DER)
        )
        for serial in (7, 8)
    )
    for one in (first, again):
        assert certificates.facts_of(one) == certificates.Facts(
            key_usage=None,
            purposes=frozenset(oid.dotted_string for oid in purposes),
            basic_constraints=x509.BasicConstraints(True, 3),
            issuer_key=b"issuer's key",
            own_key=b"own key",
            names=() if san is None else tuple(san),
            private={PRIVATE[0]: b"\x05\x00", PRIVATE[1]: b"a" * 600},
            issuer=one.issuer,
        )
        assert [(each.value, each.critical) for each in one.extensions] == extensions


@pytest.mark.req("E-200")
def test_an_extension_that_came_before_does_not_pass_twice_in_one_certificate() -> None:
    both = [(x509.UnrecognizedExtension(oid, b"\x05\x00"), False) for oid in PRIVATE]
    good = odd("twice", key("twice"), key("twice"), extensions=both).public_bytes(Encoding.DER)
    certificates.read_certificate(good)
    oids = [der.oid(oid.dotted_string) for oid in PRIVATE]
    with pytest.raises(CertificateMalformed):
        certificates.read_certificate(good.replace(*oids))


@pytest.mark.parametrize("text", ["", "a", "a" * 64, "a" * 65, "\u00e9", "\0", "proxy 1"])
def test_a_plain_name_is_written_and_read_as_the_library_does(text: str) -> None:
    written = certificates.plain_name(text)
    if not 0 < len(text) <= 64 or not text.isascii():
        assert written is None
        return
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
    assert written == name.public_bytes()
    assert certificates.common_name_in(written) == text
    assert certificates.common_name_in(written + b"a") is None
    assert certificates.common_name_in(written.replace(b"\x0c", b"\x13", 1)) is None
    longer = [*name, x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, "1")]
    assert certificates.common_name_in(x509.Name(longer).public_bytes()) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\x30\x00", der.sequence(der.sequence()), der.sequence(der.sequence(der.integer(1))), b"\0" * 9000],
)
def test_what_is_no_certificate_is_malformed(data: bytes) -> None:
    for read in (certificates.read_certificate, certificates.issuer_and_serial, certificates.read_serial):
        try:
            read(data)
        except EstError as refusal:
            assert isinstance(refusal, CertificateMalformed)
    with pytest.raises(CertificateMalformed):
        certificates.read_certificate(data)


def test_a_bit_flip_gives_another_certificate_or_a_refusal() -> None:
    assert damage_each_byte(PROXY, certificates.read_certificate, step=3)


@pytest.mark.req("B-409")
def test_a_key_identifier_is_found_before_anything_else_is_read() -> None:
    for one in (campus().root, campus().ca, campus().proxy, odd("bare", key("bare"), key("bare"), extensions=[])):
        assert certificates.find_ski(one.public_bytes(Encoding.DER)) == certificates.ski_of(one)
    for wrong in (
        b"",
        b"\x30\x00",
        b"\x30\x02\x30\x00",
        PROXY[:-1],
        PROXY.replace(b"\x04\x16\x04\x14", b"\x04\x16\x04\x13"),
    ):
        try:
            found = certificates.find_ski(wrong)
        except CertificateMalformed:
            continue
        assert found is None
