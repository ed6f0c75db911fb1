"""YANG leaves as JSON: what is read, what is written."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from brski import leaves
from brski.errors import VoucherMalformed
from lab.certificates import make_root
from tests.support import NOW

DATES = [
    ("2026-01-15T08:00:00Z", datetime(2026, 1, 15, 8, tzinfo=UTC)),
    ("2021-04-13T17:43:23.747-04:00", datetime(2021, 4, 13, 21, 43, 23, 747000, tzinfo=UTC)),
    ("2026-01-15T08:00:00.123456789Z", datetime(2026, 1, 15, 8, 0, 0, 123456, tzinfo=UTC)),
    ("2026-01-15T08:00:00+05:30", datetime(2026, 1, 15, 2, 30, tzinfo=UTC)),
    ("1973-11-25T16:33:09Z", datetime(1973, 11, 25, 16, 33, 9, tzinfo=UTC)),
]


@pytest.mark.req("B-424")
@pytest.mark.parametrize(("text", "moment"), DATES)
def test_dates_of_the_field_are_read_as_utc(text: str, moment: datetime) -> None:
    assert leaves.read_date(text) == moment


@pytest.mark.req("B-424")
def test_dates_are_written_as_utc_seconds() -> None:
    assert leaves.write_date(DATES[1][1]) == "2021-04-13T21:43:23Z"


@pytest.mark.req("B-424")
@pytest.mark.parametrize(
    "text",
    [
        "2026-01-15T08:00:00",
        "2026-01-15 08:00:00Z",
        "2026-01-15T08:00:00z",
        "2026-13-15T08:00:00Z",
        "2026-01-15T08:00:60Z",
        "2026-01-15T08:00:00+24:00",
        "2026-01-15T08:00:00.1234567890Z",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+01:00",
        "٢٠٢٦-01-15T08:00:00Z",
        "",
        None,
        20260115,
    ],
)
def test_other_dates_are_refused(text: object) -> None:
    with pytest.raises(ValueError):
        leaves.read_date(text)


@pytest.mark.req("B-422")
@pytest.mark.parametrize("text", ["AAEC", "AAE=", "AA=="])
def test_standard_base64_is_read(text: str) -> None:
    assert leaves.write_binary(leaves.read_binary(text)) == text


@pytest.mark.req("B-422")
@pytest.mark.parametrize("text", ["AA", "A-_A", "AAEC\n", " AAEC", "AA=A", "", None, 7, ["AAEC"]])
def test_other_binary_is_refused(text: object) -> None:
    with pytest.raises(ValueError):
        leaves.read_binary(text)


@pytest.mark.req("B-255", "B-423")
@pytest.mark.parametrize(
    ("nonce", "octets"),
    [
        ("AAECAwQFBgcICQoLDA0ODw==", 16),
        ("-_XE9zK9q8Ll1qylMtLKeg", 16),
        ("62a2e7693d82fcda2624de58fb6722e5", 24),
        ("not base64 at all!", 18),
        ("AAEC", 3),
    ],
)
def test_length_of_a_nonce_is_taken_after_a_best_effort_decode(nonce: str, octets: int) -> None:
    assert leaves.read_nonce(nonce) == nonce
    assert leaves.nonce_octets(nonce) == octets


@pytest.mark.req("B-425", "B-426")
@pytest.mark.parametrize("value", ["Proximity", "PROXIMITY", "trusted", "", None, 1, True])
def test_other_assertions_are_refused(value: object) -> None:
    with pytest.raises(ValueError):
        leaves.read_assertion(value)


@pytest.mark.req("B-426")
@pytest.mark.parametrize("value", ["true", 1, 0, None])
def test_only_json_booleans_are_booleans(value: object) -> None:
    with pytest.raises(ValueError):
        leaves.read_bool(value)


@pytest.mark.parametrize("text", ["", "a\nb", "a\x00", "a\u2028b", "x" * 256, None, 5])
def test_serials_that_do_not_fit_one_log_line_are_refused(text: object) -> None:
    with pytest.raises(ValueError):
        leaves.read_string(text)


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [
        pytest.param(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03", id="impossible version"),
        pytest.param(b"\x2a\x86\x48\xce\x3d\x03\x01\x07", b"\x2a\x86\x48\xce\x3d\x03\x01\x77", id="unknown curve"),
        pytest.param(b"", b"\x30", id="no certificate at all"),
    ],
)
def test_certificates_that_cannot_be_used_are_the_artefacts_fault(sound: bytes, damaged: bytes) -> None:
    der = make_root("odd", now=NOW).certificate.public_bytes(Encoding.DER)
    assert sound in der
    with pytest.raises(VoucherMalformed):
        leaves.read_certificate(der.replace(sound, damaged, 1), "pinned-domain-cert", VoucherMalformed)
