"""A relying party with two campuses: each credential is held against its own campus, and a WIT never counts alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from appliance.binding import http_signature, jws, proof
from appliance.binding.errors import Malformed
from appliance.binding.http_signature import Message
from appliance.binding.proof import Beside
from appliance.binding.relying import Judged, RelyingParty
from est.chains import TrustAnchors
from est.errors import Refusal
from est.signer import KeySigner
from tests.appliance.authority import issuing
from tests.appliance.binding.example import AGENT, AT, DOMAIN, EXAMPLE, LEAF, OWNER, certificate, part, resign, signer
from tests.appliance.binding.test_bundle import example
from tests.support import key

TARGET = "https://orders.other.example/v1/orders"
NOW = int(AT.timestamp())
WIT = EXAMPLE["wit_min"]
OTHER = replace(
    example(), domain=replace(DOMAIN, origin="spiffe://other.example", anchors=TrustAnchors((issuing()[0],)))
)


def party(**more: Any) -> RelyingParty:
    return RelyingParty([OTHER, example()], **more)


def proof_of(**changes: Any) -> str:
    wanted = {"wit": WIT, "target": TARGET, "exp": NOW + 60, "jti": "P" * 22, **changes}
    return proof.seal(signer("agent"), **wanted)


def request(*more: tuple[str, str], body: bytes = b"") -> Message:
    return Message([("Workload-Identity-Token", WIT), *more], body, "POST", TARGET + "?a=b")


def signed(message: Message, **changes: Any) -> Message:
    wanted = {"created": NOW, "expires": NOW + 60, "nonce": "N" * 22, "target": TARGET, **changes}
    return replace(message, headers=[*message.headers, *http_signature.sign(message, signer("agent"), **wanted)])


def reason(work: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        work()
    return refusal.value.reason


@pytest.mark.req("A-34")
def test_a_certificate_of_another_campus_is_verified_with_that_campus_and_its_owners() -> None:
    judged = party().certificate(LEAF, [], at=AT)
    assert (judged.report.agent_id, judged.report.owner_id, judged.proved_by) == (AGENT, OWNER, "tls")
    assert jws.jkt(judged.key) == jws.jkt(signer("agent").public_key())  # type: ignore[arg-type]
    assert party().origins == ("spiffe://other.example", "spiffe://campus.example")
    alone = RelyingParty([OTHER])
    assert reason(lambda: alone.certificate(LEAF, [], at=AT)) == "origin-mismatch"
    forged = RelyingParty([replace(OTHER, domain=replace(OTHER.domain, origin=DOMAIN.origin))])
    assert reason(lambda: forged.certificate(LEAF, [], at=AT)) == "signature-invalid", "right origin, other anchors"
    with pytest.raises(Malformed):
        RelyingParty([example(), example()])


@pytest.mark.req("A-34", "A-30")
def test_a_campus_speaks_for_its_own_owners_alone() -> None:
    """It may put anybody into its bundle and sign what it likes: nobody acts for an owner of another campus."""
    alice = OWNER.replace("campus.example", "other.example")
    record, issuer = replace(example().owners[OWNER], owner_id=alice), KeySigner(key("greedy issuer"))
    bundle = replace(example(), owners={alice: record}, wit_keys={"greedy": issuer.public_key()})
    greedy = RelyingParty([OTHER, bundle])
    leaf = certificate(dual={"owner_id": alice, "approval": resign(EXAMPLE["approval"], "owner", {"iss": alice})})
    assert reason(lambda: greedy.certificate(leaf, [], at=AT)) == "origin-mismatch"
    claims = part(WIT, 1)
    claims["campus.example/owner"]["sub"] = alice
    text = jws.seal(claims, typ="wit+jwt", signer=issuer, header={"kid": "greedy"})
    assert reason(lambda: greedy.wit(text, at=AT, proof_text=None, proof_needed=False)) == "origin-mismatch"


@pytest.mark.req("A-4")
def test_a_wit_never_counts_without_a_proof() -> None:
    here = party()
    assert reason(lambda: here.wit(WIT, at=AT, proof_text=None)) == "proof-missing"
    assert reason(lambda: here.request(request(), target=TARGET, at=AT)) == "proof-missing"
    assert here.wit(WIT, at=AT, proof_text=None, proof_needed=False).proved_by == "nothing"
    judged = here.wit(WIT, at=AT, proof_text=proof_of(), target=TARGET)
    assert (judged.report.agent_id, judged.proved_by) == (AGENT, "wpt")


def test_a_request_is_believed_with_exactly_one_proof_and_once() -> None:
    def ask(message: Message, one: RelyingParty | None = None) -> Judged:
        return (one or party()).request(message, target=TARGET, at=AT)

    with_proof = request(("Workload-Proof-Token", proof_of()))
    here = party()
    assert ask(with_proof, here).proved_by == "wpt"
    assert reason(lambda: ask(with_proof, here)) == "proof-replayed"
    by_signature = signed(request(("Content-Type", "text/plain"), body=b"hello"))
    assert ask(by_signature, here).proved_by == "http-signature"
    assert reason(lambda: ask(by_signature, here)) == "proof-replayed"
    assert reason(lambda: ask(signed(request(), nonce=""))) == "proof-missing"
    for_nobody = signed(request(), target="")
    assert reason(lambda: ask(for_nobody)) == "proof-wrong-audience", "anybody could relay it"
    twice = request(("Workload-Proof-Token", proof_of()), ("Workload-Proof-Token", proof_of()))
    assert reason(lambda: ask(twice)) == "proof-missing"
    two_wits = request(("Workload-Identity-Token", WIT), ("Workload-Proof-Token", proof_of()))
    assert reason(lambda: ask(two_wits)) == "proof-missing"
    late = lambda: party().request(with_proof, target=TARGET, at=AT + timedelta(minutes=5))  # noqa: E731
    assert reason(late) == "proof-expired"


def test_an_access_token_in_the_request_must_be_the_one_in_the_proof() -> None:
    bound = proof_of(beside=Beside(access="abc", transaction="txn"))
    fields = (("Workload-Proof-Token", bound), ("Txn-Token", "txn"))
    assert party().request(request(*fields, ("Authorization", "Bearer abc")), target=TARGET, at=AT).proved_by == "wpt"
    for other in ("Bearer xyz", "Basic abc"):
        message = request(*fields, ("Authorization", other))
        assert reason(lambda m=message: party().request(m, target=TARGET, at=AT)) == "proof-for-other-token"


@pytest.mark.parametrize(("text", "expected"), [
    ("", "malformed"), ("a.b.c", "malformed"), ("x" * 20_000, "malformed"),
    (resign(WIT, "issuer", {"sub": AGENT.replace("campus", "elsewhere")}), "origin-mismatch"),
    (resign(WIT, "issuer", {"sub": 7}), "claim-malformed"),
    (resign(WIT, "owner"), "signature-invalid"),
])  # fmt: skip
def test_tokens_that_are_none_or_nobodys_are_refused(text: str, expected: str) -> None:
    assert reason(lambda: party().wit(text, at=AT, proof_text=proof_of(), target=TARGET)) == expected


def test_a_thief_with_the_wit_has_no_proof() -> None:
    stolen = proof.seal(KeySigner(key("thief")), wit=WIT, target=TARGET, exp=NOW + 60, jti="Q" * 22)
    assert reason(lambda: party().wit(WIT, at=AT, proof_text=stolen, target=TARGET)) == "signature-invalid"
