"""Status messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brski import EnrollStatus, TelemetryMalformed, VoucherStatus, telemetry
from brski.telemetry import read_enroll_status, read_voucher_status


def body(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.req("B-351", "B-360")
@pytest.mark.parametrize(
    ("message", "document"),
    [
        (VoucherStatus(True), {"version": 1, "status": True}),
        (VoucherStatus(False, "pin"), {"version": 1, "status": False, "reason": "pin"}),
        (
            VoucherStatus(False, "pin", {"a": [1, {"b": None}]}),
            {"version": 1, "status": False, "reason": "pin", "reason-context": {"a": [1, {"b": None}]}},
        ),
    ],
)
def test_status_reads_and_writes(message: VoucherStatus, document: dict[str, Any]) -> None:
    assert json.loads(telemetry.write(message)) == document
    assert read_voucher_status(body(document)) == message


@pytest.mark.req("B-351")
def test_reason_is_left_out_on_success_and_never_missing_on_failure() -> None:
    assert b"reason" not in telemetry.write(EnrollStatus(True, "all fine"))
    assert json.loads(telemetry.write(EnrollStatus(False)))["reason"]


@pytest.mark.req("B-353")
def test_newer_and_larger_messages_are_read_and_reported() -> None:
    message = read_enroll_status(body({"version": 7, "status": True, "mood": "good", "Reason": "x"}))
    assert message == EnrollStatus(True, version=7, unknown=("Reason", "mood"))
    assert message.is_newer
    assert not EnrollStatus(True).is_newer


@pytest.mark.req("B-353")
def test_version_may_be_a_string() -> None:
    assert read_voucher_status(body({"version": "1", "status": True})) == VoucherStatus(True)


@pytest.mark.req("B-352")
def test_reason_is_one_bounded_line() -> None:
    nasty = "voucher\r\n2026 accepted \u2028\x1b[31m" + "x" * 1000
    read = read_voucher_status(body({"version": 1, "status": False, "reason": nasty}))
    assert len(read.reason) <= telemetry.MAX_REASON
    assert read.reason.isprintable()
    assert read.reason.startswith("voucher  2026 accepted")


@pytest.mark.req("B-354", "B-360")
@pytest.mark.parametrize(
    "document",
    [
        {"version": 1},
        {"version": 1, "Status": True},
        {"version": 1, "status": "true"},
        {"version": 1, "status": 1},
        {"version": 1, "status": 0},
        {"version": 1, "status": None},
        {"status": True},
        {"version": 0, "status": True},
        {"version": True, "status": True},
        {"version": "one", "status": True},
        {"version": -1, "status": True},
        {"version": 1.0, "status": True},
        {"version": 1, "status": False, "reason": ["x"]},
        {"version": 1, "status": False, "reason-context": "x"},
        [True],
        True,
        {},
    ],
)
def test_what_is_no_status_is_refused(document: object) -> None:
    for read in (read_voucher_status, read_enroll_status):
        with pytest.raises(TelemetryMalformed):
            read(body(document))


@pytest.mark.req("B-354")
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b'{"version":1,"status":true,"status":false}',
        b'{"version":1,"status":true,"x":NaN}',
        b'{"version":1,"status":true,"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"version":1,"status":true,"x":"' + b"x" * 9000 + b'"}',
    ],
)
def test_broken_json_is_refused(raw: bytes) -> None:
    with pytest.raises(TelemetryMalformed):
        read_voucher_status(raw)


def test_two_kinds_of_message_are_not_equal() -> None:
    assert VoucherStatus(True) != EnrollStatus(True)
