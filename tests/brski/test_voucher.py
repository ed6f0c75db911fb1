"""The voucher as JSON, both directions, and what is not one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from brski import Assertion, PinMissing, Voucher, VoucherMalformed, leaves, voucher
from tests.brski.trio import campus, with_leaf, without_leaf
from tests.support import NOW

PIN = campus().ca.certificate
PIN_DER = PIN.public_bytes(Encoding.DER)
PIN_TEXT = leaves.write_binary(PIN_DER)

NONCED: dict[str, Any] = {
    "ietf-voucher:voucher": {
        "created-on": "2026-01-01T12:00:00Z",
        "assertion": "proximity",
        "serial-number": "PX-1",
        "pinned-domain-cert": PIN_TEXT,
        "domain-cert-revocation-checks": False,
        "nonce": "AAECAwQFBgcICQoLDA0ODw==",
    }
}
NONCELESS: dict[str, Any] = {
    "ietf-voucher:voucher": {
        "created-on": "2026-01-01T12:00:00Z",
        "expires-on": "2027-01-01T00:00:00Z",
        "assertion": "logged",
        "serial-number": "PX-1",
        "idevid-issuer": "BBgwFoAUlU7Vft0KvopLzyjGaNB2fcQyB/U=",
        "pinned-domain-cert": PIN_TEXT,
        "last-renewal-date": "2030-01-01T00:00:00Z",
    }
}
TABLE = [
    (
        NONCED,
        Voucher(
            "PX-1",
            Assertion.PROXIMITY,
            PIN_DER,
            NOW,
            nonce="AAECAwQFBgcICQoLDA0ODw==",
            domain_cert_revocation_checks=False,
        ),
    ),
    (
        NONCELESS,
        Voucher(
            "PX-1",
            Assertion.LOGGED,
            PIN_DER,
            NOW,
            expires_on=datetime(2027, 1, 1, tzinfo=UTC),
            idevid_issuer=bytes.fromhex("041830168014954ed57edd0abe8a4bcf28c668d0767dc43207f5"),
            last_renewal_date=datetime(2030, 1, 1, tzinfo=UTC),
        ),
    ),
]


def body(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.req("B-301", "B-302", "B-303", "B-304", "B-305", "B-306", "B-307", "B-308", "B-421")
@pytest.mark.parametrize(("document", "value"), TABLE)
def test_voucher_reads_and_writes(document: dict[str, Any], value: Voucher) -> None:
    assert voucher.read(body(document)) == value
    assert json.loads(voucher.write(value)) == document


@pytest.mark.req("B-304")
def test_voucher_without_a_pin_is_read_and_pins_nothing() -> None:
    read = voucher.read(body(without_leaf(NONCED, "pinned-domain-cert")))
    assert read.pinned_domain_cert is None
    with pytest.raises(PinMissing):
        read.pin()


def test_pin_that_is_no_certificate_is_malformed() -> None:
    with pytest.raises(VoucherMalformed):
        voucher.read(body(with_leaf(NONCED, pinned_domain_cert="AAEC"))).pin()


@pytest.mark.req("B-301")
def test_voucher_without_created_on_is_read() -> None:
    assert voucher.read(body(without_leaf(NONCED, "created-on"))).created_on is None


@pytest.mark.req("B-311", "B-312", "B-427")
def test_unknown_leaves_are_ignored() -> None:
    more = with_leaf(
        NONCED,
        est_domain="https://est.example",
        additional_configuration_url="x",
        extensions=["a"],
        pinned_domain_pubk="AAEC",
        pinned_domain_pubk_sha256="AAEC",
        prior_signed_voucher_request="AAEC",
    )
    assert voucher.read(body(more)) == TABLE[0][1]


@pytest.mark.req("B-428")
def test_escaped_slashes_are_read_as_slashes() -> None:
    assert "/" in PIN_TEXT
    escaped = body(NONCED).replace(b"/", b"\\/")
    assert voucher.read(escaped) == TABLE[0][1]


@pytest.mark.req("B-306", "B-309")
@pytest.mark.parametrize(
    "value",
    [
        Voucher("PX-1", Assertion.LOGGED, PIN_DER, NOW, nonce="AAECAwQFBgcICQoLDA0ODw==", expires_on=NOW),
        Voucher("PX-1", Assertion.LOGGED, PIN_DER, NOW, last_renewal_date=NOW),
    ],
)
def test_forbidden_combinations_are_not_written(value: Voucher) -> None:
    with pytest.raises(VoucherMalformed):
        voucher.write(value)


@pytest.mark.req("B-421", "B-422", "B-424", "B-425", "B-426", "B-427")
@pytest.mark.parametrize(
    "document",
    [
        {"ietf-voucher-request:voucher": NONCED["ietf-voucher:voucher"]},
        {"voucher": NONCED["ietf-voucher:voucher"]},
        NONCED | {"more": {}},
        NONCED["ietf-voucher:voucher"],
        {"ietf-voucher:voucher": [NONCED["ietf-voucher:voucher"]]},
        [NONCED],
        {},
        None,
        without_leaf(NONCED, "serial-number"),
        without_leaf(NONCED, "assertion"),
        with_leaf(NONCED, assertion="Proximity"),
        with_leaf(NONCED, assertion="trusted"),
        with_leaf(NONCED, serial_number=17),
        with_leaf(NONCED, serial_number=""),
        with_leaf(NONCED, serial_number="PX-1\n"),
        with_leaf(NONCED, created_on="2026-01-01"),
        with_leaf(NONCED, expires_on=1700000000),
        with_leaf(NONCED, domain_cert_revocation_checks="false"),
        with_leaf(NONCED, nonce=7),
        with_leaf(NONCED, nonce="x" * 129),
        with_leaf(NONCED, pinned_domain_cert=PIN_TEXT[:70] + "\n" + PIN_TEXT[70:]),
        with_leaf(NONCED, idevid_issuer="not base64"),
    ],
)
def test_what_is_not_a_voucher_is_refused(document: object) -> None:
    with pytest.raises(VoucherMalformed):
        voucher.read(body(document))


@pytest.mark.req("B-427")
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        body(NONCED).replace(b'"nonce"', b'"serial-number": "PX-2", "nonce"'),
        body(NONCED).replace(b'"PX-1"', b"NaN"),
        body(NONCED).replace(b'"PX-1"', b"[" * 9 + b"]" * 9),
        body(NONCED).replace(b'"PX-1"', b"[" * 10_000 + b"]" * 10_000),
        body(NONCED).replace(b'"PX-1"', b'"\\ud800"'),
    ],
)
def test_json_that_could_mean_two_things_is_refused(raw: bytes) -> None:
    with pytest.raises(VoucherMalformed):
        voucher.read(raw)
