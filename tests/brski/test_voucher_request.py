"""Voucher-requests as JSON, both directions, and what is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brski import Assertion, VoucherRequest, VoucherRequestMalformed, voucher_request
from tests.brski.trio import with_leaf, without_leaf
from tests.support import NOW

PVR: dict[str, Any] = {
    "ietf-voucher-request:voucher": {
        "created-on": "2026-01-01T12:00:00Z",
        "assertion": "proximity",
        "serial-number": "PX-1",
        "nonce": "AAECAwQFBgcICQoLDA0ODw==",
        "proximity-registrar-cert": "AAEC",
    }
}
RVR: dict[str, Any] = {
    "ietf-voucher-request:voucher": {
        "created-on": "2026-01-01T12:00:00Z",
        "assertion": "proximity",
        "serial-number": "PX-1",
        "idevid-issuer": "BBgwFoAUlU7Vft0KvopLzyjGaNB2fcQyB/U=",
        "nonce": "-_XE9zK9q8Ll1qylMtLKeg",
        "prior-signed-voucher-request": "AQID",
    }
}
TABLE = [
    (
        PVR,
        VoucherRequest(
            "PX-1", "AAECAwQFBgcICQoLDA0ODw==", Assertion.PROXIMITY, NOW, proximity_registrar_cert=b"\x00\x01\x02"
        ),
    ),
    (
        RVR,
        VoucherRequest(
            "PX-1",
            "-_XE9zK9q8Ll1qylMtLKeg",
            Assertion.PROXIMITY,
            NOW,
            idevid_issuer=bytes.fromhex("041830168014954ed57edd0abe8a4bcf28c668d0767dc43207f5"),
            prior_signed_voucher_request=b"\x01\x02\x03",
        ),
    ),
]


def body(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.req("B-241", "B-261", "B-263", "B-267", "B-421", "B-423")
@pytest.mark.parametrize(("document", "value"), TABLE)
def test_voucher_request_reads_and_writes(document: dict[str, Any], value: VoucherRequest) -> None:
    assert voucher_request.read(body(document)) == value
    assert json.loads(voucher_request.write(value)) == document


@pytest.mark.req("B-246")
def test_request_of_a_pledge_without_clock_has_no_date() -> None:
    value = voucher_request.read(body(without_leaf(PVR, "created-on")))
    assert value.created_on is None
    assert b"created-on" not in voucher_request.write(value)


@pytest.mark.req("B-248", "B-427")
def test_leaves_that_mean_nothing_in_a_request_are_ignored() -> None:
    more = with_leaf(
        PVR, pinned_domain_cert="%%%", last_renewal_date=[], domain_cert_revocation_checks="x", vendor_leaf={"a": 1}
    )
    assert voucher_request.read(body(more)) == TABLE[0][1]


@pytest.mark.req("B-421", "B-427", "T-21")
@pytest.mark.parametrize(
    "document",
    [
        {"ietf-voucher:voucher": PVR["ietf-voucher-request:voucher"]},
        PVR | {"ietf-voucher:voucher": {}},
        without_leaf(PVR, "serial-number"),
        with_leaf(PVR, serial_number=None, nonce=None),
        with_leaf(PVR, assertion=True),
        with_leaf(PVR, nonce=["AAEC"]),
        with_leaf(PVR, proximity_registrar_cert="AA"),
        with_leaf(PVR, prior_signed_voucher_request=""),
        "ietf-voucher-request:voucher",
    ],
)
def test_what_is_not_a_voucher_request_is_refused(document: object) -> None:
    with pytest.raises(VoucherRequestMalformed):
        voucher_request.read(body(document))
