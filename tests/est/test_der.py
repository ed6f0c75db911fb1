"""The strict DER gate: one object, definite minimal lengths, bounded depth and count."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509

from est import der, transfer
from est.errors import BodyMalformed, BodyTooLarge


@pytest.mark.req("E-200", "B-411")
@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("empty", ""),
        ("tag only", "30"),
        ("cut off", "3003020101"[:-2]),
        ("longer than its container", "3003020201"),
        ("trailing byte", "300302010100"),
        ("indefinite length", "30800201010000"),
        ("length 5 in two octets", "30810302010 1".replace(" ", "")),
        ("length with leading zero", "3082000302010 1".replace(" ", "")),
        ("length of length 5", "30850000000003020101"),
        ("length of length 127", "30ff"),
        ("high tag number", "3f0100"),
        ("INTEGER empty", "30020200"),
        ("INTEGER padded with 00", "300402020001"),
        ("INTEGER padded with ff", "30040202ff80"),
        ("BOOLEAN 01", "3003010101"),
        ("BOOLEAN of two octets", "30040102ffff"),
        ("NULL with content", "3003050100"),
        ("OID empty", "30020600"),
        ("OID cut off", "3003060180"),
        ("BIT STRING empty", "30020300"),
        ("BIT STRING with 8 unused bits", "3004030208ff"),
        ("BIT STRING with set unused bits", "3004030201ff"),
        ("BIT STRING without octets but with unused bits", "3003030101"),
        ("constructed OCTET STRING", "30062404040100 00".replace(" ", "")),
        ("primitive SEQUENCE", "30021000"),
        ("end of contents", "30020000"),
    ],
)
def test_what_is_not_der_is_refused(why: str, data: str) -> None:
    with pytest.raises(BodyMalformed):
        transfer.check_der(bytes.fromhex(data))


@pytest.mark.req("E-200")
def test_depth_count_and_size_are_bounded() -> None:
    nested = b"\x30\x00"
    for _ in range(31):
        nested = der.sequence(nested)
    transfer.check_der(nested)
    with pytest.raises(BodyMalformed, match="deep"):
        transfer.check_der(der.sequence(nested))
    with pytest.raises(BodyMalformed, match="many"):
        transfer.check_der(der.sequence(b"\x05\x00" * 30000))
    with pytest.raises(BodyTooLarge):
        transfer.check_der(der.tlv(der.OCTET_STRING, bytes(70000)))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 65535, 65536, 200000])
def test_what_is_written_is_der(size: int) -> None:
    one = der.sequence(der.tlv(der.OCTET_STRING, bytes(size)))
    der.check(one)
    start, stop = der.only(one, *der.only(one, 0, len(one), der.SEQUENCE), der.OCTET_STRING)
    assert stop - start == size


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, -1, -128, -129, 2**159 - 1, -(2**63)])
def test_integers_survive_the_way_there_and_back(value: int) -> None:
    one = der.integer(value)
    der.check(one)
    assert der.read_integer(one, (2, len(one))) == value


@pytest.mark.parametrize("dotted", ["1.2.840.113549.1.9.16.1.40", "2.5.29.37.0", "0.9", "2.999.3", "1.3.6.1.4.1.32473"])
def test_object_identifiers_survive_the_way_there_and_back(dotted: str) -> None:
    one = der.oid(dotted)
    assert der.dotted(one[2:]) == dotted


@pytest.mark.parametrize("content", ["", "80", "8001", "2a8648ce3d80", "2a" * 65, "ff" * 65 + "7f"])
def test_object_identifiers_that_are_not_der_are_refused(content: str) -> None:
    with pytest.raises(BodyMalformed):
        der.dotted(bytes.fromhex(content))


@pytest.mark.req("E-205")
@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x17\x0d991231235959Z"),
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x17\x0d491231235959Z"),
        (datetime(2050, 1, 1, tzinfo=UTC), b"\x18\x0f20500101000000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x18\x0f99991231235959Z"),
    ],
)
def test_times_change_their_form_in_2050(moment: datetime, text: bytes) -> None:
    assert der.write_time(moment) == text
    assert der.read_time(text[0], text[2:]) == moment


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (0x17, b"2601010000Z"),
        (0x17, b"260101000000+0000"),
        (0x17, b"2601010000000"),
        (0x17, b"26010100000 Z"),
        (0x17, b"260230000000Z"),
        (0x17, b"260101000060Z"),
        (0x18, b"20260101000000.5Z"),
        (0x18, b"260101000000Z"),
        (0x18, b"00000101000000Z"),
        (0x0C, b"20260101000000Z"),
    ],
)
def test_times_in_another_form_are_refused(tag: int, value: bytes) -> None:
    with pytest.raises(BodyMalformed):
        der.read_time(tag, value)


def test_names_written_by_cryptography_pass_the_gate() -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "é")])
    der.check(name.public_bytes())


@pytest.mark.parametrize("length", [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 0x1000000])
def test_a_header_alone_is_that_of_the_element(length: int) -> None:
    value = bytes(length)
    assert der.header(der.SEQUENCE, length) + value == der.tlv(der.SEQUENCE, value)
