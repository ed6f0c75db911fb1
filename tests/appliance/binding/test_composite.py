"""The composite request: parts kept as they were signed, everything else refused."""

from __future__ import annotations

import json

import pytest

from appliance.binding import composite, jws
from appliance.binding.composite import Composite
from appliance.binding.errors import BindingError
from tests.appliance.binding.example import EXAMPLE

CSR_DER = jws.unbase64url(EXAMPLE["csr_der_b64u"], "csr")
WHOLE = Composite(EXAMPLE["agent_request"], CSR_DER, (EXAMPLE["approval"],), EXAMPLE["evidence_eat"])
VALUE = {
    "request": EXAMPLE["agent_request"],
    "csr": EXAMPLE["csr_der_b64u"],
    "approvals": [EXAMPLE["approval"]],
    "evidence": EXAMPLE["evidence_cmw"],
}


@pytest.mark.req("A-14", "A-40")
def test_composite_of_the_published_parts_reads_and_writes() -> None:
    assert composite.read(json.dumps(VALUE).encode()) == WHOLE
    assert json.loads(composite.write(WHOLE)) == VALUE
    assert composite.read(composite.write(WHOLE)) == WHOLE


@pytest.mark.req("A-14")
def test_proxy_adds_evidence_and_changes_nothing_else() -> None:
    from_agent = composite.read(json.dumps({k: v for k, v in VALUE.items() if k != "evidence"}).encode())
    assert from_agent.evidence is None
    assert from_agent.with_evidence(EXAMPLE["evidence_eat"]) == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        {"request": None},
        {"request": ""},
        {"request": 7},
        {"csr": "===="},
        {"csr": "A" * 8192},
        {"csr": None},
        {"approvals": "x"},
        {"approvals": [7]},
        {"approvals": [""]},
        {"approvals": ["x"] * 9},
        {"approvals": ["x" * 5000]},
        {"evidence": []},
        {"evidence": ["a", "b", "c"]},
        {"org": "x"},
        {"org": [1] * 5},
        {"vlan": 20},
    ],
    ids=str,
)
def test_other_shapes_are_refused(change: dict) -> None:
    with pytest.raises(BindingError):
        composite.read(json.dumps({**VALUE, **change}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\x00" * 64,
        b"\xff\xfe",
        b'{"request":"a","request":"b"}',
        b"[" * 10_000,
        b'{"request":' + b'"a",' * 40_000,
        b"\x30\x82\x01\x00" + b"\x00" * 256,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bodies_that_are_no_composite_are_refused(body: bytes) -> None:
    with pytest.raises(BindingError):
        composite.read(body)
