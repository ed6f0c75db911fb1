"""HTTP message signatures: published ones verify with the workloads' keys, and whatever was changed is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.binding import fields, http_signature, jws
from appliance.binding.errors import BindingError, SignatureMalformed
from appliance.binding.http_signature import Message, Signed
from est.errors import Refusal
from est.signer import KeySigner
from tests.appliance.binding.example import VECTORS
from tests.appliance.binding.test_proof import AGENT, AT, NOW, ORDER, WIT, ed25519_key
from tests.support import key

DRAFT = VECTORS / "wit" / "wimse-s2s-draft"


def published(name: str, **facts: Any) -> Message:
    """A message as the draft prints it; its content is what stands behind the empty line, byte for byte."""
    head, _, body = (DRAFT / name).read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")
    lines = head.decode().split("\n")
    headers = [tuple(line.split(": ", 1)) for line in lines[1:]]
    return Message(headers, body, **facts)  # type: ignore[arg-type]


def draft_key(name: str) -> jws.PublicKey:
    found = json.loads((DRAFT / name).read_text())
    return jws.read_jwk({name: value for name, value in found.items() if name in ("kty", "crv", "x")})


CREATED = 1785155797
REQUEST = published("sigs-request.txt", method="GET", url="https://svcb.example.com/gimme-ice-cream?flavor=vanilla")
RESPONSE = published("sigs-response.txt", status=404, request=REQUEST)
MOMENT = datetime.fromtimestamp(CREATED + 5, UTC)


def test_the_published_request_verifies_with_the_key_of_its_workload() -> None:
    signed = http_signature.verify(
        REQUEST, draft_key("sigs-svca-jwk.txt"), at=MOMENT, target="https://svcb.example.com/gimme-ice-cream"
    )
    assert signed.components == ('"@method"', '"@request-target"', '"workload-identity-token"')
    assert signed.params["nonce"] == "abcd1111" and signed.params["wimse-sign-response"] is True


def test_the_published_response_verifies_with_the_request_that_it_answers() -> None:
    signed = http_signature.verify(RESPONSE, draft_key("sigs-svcb-jwk.txt"), at=MOMENT)
    assert signed.params["wimse-req-nonce"] == "abcd1111" and '"@method";req' in signed.components


@pytest.mark.parametrize(("change", "reason"), [
    (lambda one: replace(one, method="POST"), "signature-invalid"),
    (lambda one: replace(one, url=one.url + "&size=2"), "signature-invalid"),
    (lambda one: replace(one, url=one.url.replace("ice", "Ice")), "signature-invalid"),
    (lambda one: replace(one, headers=[(k, v) for k, v in one.headers if k != "Signature"]), "http-signature-missing"),
    (lambda one: replace(one, headers=one.headers[:-1]), "http-signature-malformed"),
    (lambda one: replace(one, headers=[*one.headers, one.headers[-1]]), "http-signature-malformed"),
    (lambda one: replace(one, headers=[*one.headers[:-1], ("workload-identity-token", "x.y.z")]), "signature-invalid"),
    (lambda one: replace(one, headers=[*one.headers, ("Authorization", "Bearer x")]), "component-not-signed"),
    (lambda one: replace(one, headers=[*one.headers, ("Txn-Token", "x")]), "component-not-signed"),
    (lambda one: replace(one, body=b"{}"), "component-not-signed"),
    (lambda one: replace(one, status=200), "component-not-signed"),
])  # fmt: skip
def test_a_published_request_that_was_changed_is_refused(change: Any, reason: str) -> None:
    with pytest.raises(BindingError) as refusal:
        http_signature.verify(
            change(REQUEST),
            draft_key("sigs-svca-jwk.txt"),
            at=MOMENT,
            target="https://svcb.example.com/gimme-ice-cream",
        )
    assert refusal.value.reason == reason


def test_the_response_of_another_request_is_refused() -> None:
    for other in (replace(REQUEST, method="PUT"), replace(REQUEST, url="https://svcb.example.com/other"), None):
        with pytest.raises(BindingError):
            http_signature.verify(replace(RESPONSE, request=other), draft_key("sigs-svcb-jwk.txt"), at=MOMENT)
    with pytest.raises(BindingError) as refusal:
        http_signature.verify(replace(RESPONSE, body=b"Ice cream!\n"), draft_key("sigs-svcb-jwk.txt"), at=MOMENT)
    assert refusal.value.reason == "content-digest-mismatch"


REASONS = {
    "tampered-body": "content-digest-mismatch",
    "rerouted-path": "signature-invalid",
    "created-in-future": "proof-not-yet-valid",
    "too-old": "proof-expired",
    "label-mismatch": "http-signature-missing",
    "missing-required-component": "component-not-signed",
}


def test_the_conformance_vectors_of_another_implementation_are_judged_as_they_say() -> None:
    vector = json.loads((VECTORS / "wit" / "wimsey-conformance" / "httpsig" / "sign-basic.json").read_text())
    workload = jws.unbase64url(vector["wit"].split(".")[1], "payload")
    public = ed25519_key(json.loads(workload)["cnf"]["jwk"]["x"])

    def judge(case: dict[str, Any]) -> Signed:
        facts = {**vector, **case}
        request = facts["request"]
        headers = [*map(tuple, request["headers"]), ("Signature-Input", facts["signature_input"]),
                   ("Signature", facts["signature"])]  # fmt: skip
        return http_signature.verify(
            Message(
                headers, facts["body"].encode(), request["method"], f"https://{request['authority']}{request['path']}"
            ),
            public,
            at=datetime.fromtimestamp(facts["verify_now"], UTC),
            required=facts.get("required_components", []),
            tag=None,
            label=facts.get("accept_label", "wimse"),
            skew_seconds=0,
            longest_seconds=facts.get("max_age", 300),
        )

    assert judge({}).components == tuple(vector["components"])
    assert {case["id"] for case in vector["negative"]} == set(REASONS)
    for case in vector["negative"]:
        with pytest.raises(BindingError) as refusal:
            judge(case)
        assert refusal.value.reason == REASONS[case["id"]], case["id"]


def request(**changes: Any) -> Message:
    message = Message(
        [("Content-Type", "application/json"), ("Workload-Identity-Token", WIT), ("Authorization", "Bearer t")],
        b'{"amount": 1}',
        "POST",
        ORDER + "?x=1",
    )
    return replace(message, **changes)


def signed(message: Message, **changes: Any) -> Message:
    wanted = {"created": NOW, "expires": NOW + 60, "nonce": "N" * 22, "target": ORDER, **changes}
    signer = wanted.pop("signer", KeySigner(AGENT))
    return replace(message, headers=[*message.headers, *http_signature.sign(message, signer, **wanted)])


def verify(message: Message, **changes: Any) -> Signed:
    return http_signature.verify(message, AGENT.public_key(), **{"at": AT, "target": ORDER, **changes})


def reason(message: Message, **changes: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        verify(message, **changes)
    return refusal.value.reason


def test_our_own_signature_covers_what_the_message_carries() -> None:
    found = verify(signed(request()))
    assert found.components == (
        '"@method"', '"@request-target"', '"workload-identity-token"', '"authorization"', '"content-type"',
        '"content-digest"',
    )  # fmt: skip
    assert dict(found.params) == {
        "created": NOW, "expires": NOW + 60, "nonce": "N" * 22, "tag": http_signature.TAG, "wimse-aud": ORDER,
    }  # fmt: skip
    answer = Message([("Workload-Identity-Token", WIT)], b"ok", status=200, request=request())
    assert verify(signed(answer, target="")).components[:2] == ('"@status"', '"workload-identity-token"')


@pytest.mark.parametrize(("change", "expected"), [
    ({"body": b'{"amount": 2}'}, "content-digest-mismatch"),
    ({"method": "PUT"}, "signature-invalid"),
    ({"url": ORDER + "?x=2"}, "signature-invalid"),
])  # fmt: skip
def test_what_was_changed_on_the_way_is_refused(change: dict[str, Any], expected: str) -> None:
    assert reason(replace(signed(request()), **change)) == expected


def test_a_signature_is_good_for_a_few_minutes_at_one_target() -> None:
    assert reason(signed(request(), created=NOW + 61, expires=NOW + 90)) == "proof-not-yet-valid"
    assert reason(signed(request(), created=NOW - 361, expires=NOW + 5)) == "proof-expired"
    assert reason(signed(request(), created=NOW - 200, expires=NOW - 61)) == "proof-expired"
    assert reason(signed(request(), expires=NOW + 500)) == "proof-window-too-long"
    assert reason(signed(request()), target="https://elsewhere.example/") == "proof-wrong-audience"
    assert reason(signed(request()), target="") == "proof-wrong-audience"
    assert reason(signed(request()), at=AT + timedelta(minutes=7)) == "proof-expired"


def test_only_the_key_of_the_wit_signs() -> None:
    assert reason(signed(request(), signer=KeySigner(key("thief")))) == "signature-invalid"
    assert reason(signed(request(), more={"alg": "ed25519"})) == "algorithm-not-allowed"
    verify(signed(request(), more={"alg": "ecdsa-p256-sha256", "keyid": "whatever"}))


def test_of_two_signatures_with_the_tag_none_counts_and_foreign_ones_do_not_disturb() -> None:
    message = signed(request())
    inputs, signature = message.field("signature-input"), message.field("signature")
    others = [one for one in message.headers if not one[0].startswith("Signature")]

    def two(more_input: str, more_signature: str) -> Message:
        return replace(message, headers=[*others, ("Signature-Input", f"{inputs}, {more_input}"),
                                         ("Signature", f"{signature}, {more_signature}")])  # fmt: skip

    verify(two('proxy=("@method");created=1;tag="proxy"', "proxy=:AAAA:"))
    assert reason(two(f'b=("@method");created=1;tag="{http_signature.TAG}"', "b=:AAAA:")) == "http-signature-missing"
    assert reason(two('wimse=("@method")', "b=:AAAA:")) == "http-signature-malformed", "one label twice"


@pytest.mark.parametrize("text", [
    "", "wimse", "wimse=", "wimse=(", 'wimse=("@method"', 'wimse=("@method" x)', 'wimse=("@method""@path")', "Wimse=()",
    'wimse=("@method");created=', 'wimse=("@method");created=1.5', 'wimse=("@method");created=1;created=2',
    'wimse=(1)', 'wimse=(:AA==:)', 'wimse=("@method"),', 'wimse=("@method") x', 'wimse=("\x7f")', 'wimse=("é")',
    'wimse=("@method");created=12345678901234567', "wimse=" + '("x")' * 3, 'wimse=("a\\b")', "a=()" + " " * 9000,
])  # fmt: skip
def test_fields_that_cannot_be_read_are_malformed(text: str) -> None:
    with pytest.raises(SignatureMalformed):
        fields.read_lists(text, "Signature-Input")


@pytest.mark.parametrize("text", ["", "a", "a=", "a=AAAA", "a=:AAAA", "a=:A:", "a=:AA=A:", "a=:AAAA:;x", "a=:A A:"])
def test_octets_that_cannot_be_read_are_malformed(text: str) -> None:
    with pytest.raises(SignatureMalformed):
        fields.read_octets(text, "Signature")


@given(st.text(max_size=80))
def test_any_text_is_read_or_malformed(text: str) -> None:
    for read in (fields.read_lists, fields.read_octets):
        try:
            found = read(text, "field")
        except SignatureMalformed:
            continue
        assert all(isinstance(name, str) for name in found)


@pytest.mark.parametrize("component", [
    '"@status"', '"@query-param";name="x"', '"x-absent"', '"content-type";sf', '"content-type";key="a"',
    '"@method";req', '"Content-Type"', '"@unknown"',
])  # fmt: skip
def test_a_component_that_the_message_does_not_have_is_refused(component: str) -> None:
    covered = fields.read_lists(f"x=({component})", "x")["x"]
    with pytest.raises(BindingError) as refusal:
        http_signature.signature_base(request(), covered)
    assert refusal.value.reason == "component-absent"


def test_components_are_those_of_the_standard() -> None:
    """The derived components of RFC 9421, section 2.2, for one request."""
    message = Message([("X-Two", " a "), ("x-two", "b")], b"", "GET", "https://Www.Example.com:443/p/q?a=b")
    wanted = {
        "@method": "GET", "@authority": "www.example.com", "@scheme": "https", "@request-target": "/p/q?a=b",
        "@path": "/p/q", "@query": "?a=b", "@target-uri": "https://Www.Example.com:443/p/q?a=b", "x-two": "a, b",
    }  # fmt: skip
    covered = fields.InnerList(tuple(fields.Item(name, {}) for name in wanted), {"created": 1})
    lines = http_signature.signature_base(message, covered).decode().split("\n")
    assert lines[:-1] == [f'"{name}": {value}' for name, value in wanted.items()]
    assert lines[-1].startswith('"@signature-params": ("@method" ') and lines[-1].endswith(");created=1")
    twice = fields.InnerList((fields.Item("@method", {}), fields.Item("@method", {})), {})
    with pytest.raises(SignatureMalformed, match="twice"):
        http_signature.signature_base(message, twice)


def test_a_known_digest_must_fit_whatever_else_is_said() -> None:
    message = request(headers=[("Workload-Identity-Token", WIT), ("Content-Digest", "sha-512=:AAAA:")])
    assert reason(signed(message)) == "content-digest-mismatch"
    message = request(headers=[("Workload-Identity-Token", WIT), ("Content-Digest", "md5=:AAAA:")])
    assert reason(signed(message)) == "content-digest-mismatch"
