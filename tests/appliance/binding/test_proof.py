"""Proofs beside a WIT: published ones verify, each claim changed has its own refusal, and none counts twice."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from appliance.binding import jws, proof, token
from appliance.binding.errors import BindingError, Malformed
from appliance.binding.proof import Beside, Spent
from appliance.binding.token import Wit
from est.errors import Refusal
from est.signer import KeySigner
from tests.appliance.binding.example import VECTORS, flips
from tests.support import key

WIMSE = VECTORS / "wit" / "wimse-s2s-draft"
ORDER = "https://orders.campus.example/v1/orders"
AT = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
NOW = int(AT.timestamp())
AGENT = key("agent")
AGENT_ID = "spiffe://campus.example/agent/0190e2b4-6c1f-7a55-9d39-0242ac120002"
CLAIM = "campus.example/owner"


def wit_of(jti: str) -> str:
    return token.seal(
        KeySigner(key("issuer")), kid="k1", sub=AGENT_ID, iss="urn:campus:example", iat=NOW - 60, exp=NOW + 600,
        jti=jti, key=AGENT.public_key(), owner_claim=CLAIM,
    )  # fmt: skip


WIT = wit_of("A" * 22)
OPENED = token.unseal(WIT, {"k1": key("issuer").public_key()}, owner_claim=CLAIM)


def made(signer: Any = None, **changes: Any) -> str:
    wanted = {"wit": WIT, "target": ORDER, "exp": NOW + 120, "jti": "B" * 22, **changes}
    return proof.seal(signer or KeySigner(AGENT), **wanted)


def check(text: str, *, spent: Spent | None = None, wit: Wit = OPENED, **changes: Any) -> proof.Proof:
    memory = spent or Spent()
    wanted = {"target": ORDER, "at": AT, "spend": lambda name, until: memory.take(name, until, NOW), **changes}
    return proof.check(text, wit, **wanted)


def reason(text: str, **changes: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        check(text, **changes)
    return refusal.value.reason


def foreign_wit(text: str, issuer: Any) -> Wit:
    """A WIT of somebody else, whose signature is good and whose claims are read leniently, for its key."""
    sealed = jws.read(text)
    claims: Any = sealed.unseal(typ="wit+jwt", key=issuer, algorithms=jws.FOREIGN_ALGORITHMS).claims
    return Wit(text, sealed.kid or "", claims["sub"], None, 0, 1, "", jws.read_jwk(claims["cnf"]["jwk"]), None)


def ed25519_key(octets: str) -> ed25519.Ed25519PublicKey:
    return ed25519.Ed25519PublicKey.from_public_bytes(jws.unbase64url(octets, "key"))


@pytest.mark.req("A-34")
def test_the_published_proof_of_the_draft_verifies_with_its_wit_and_its_access_token() -> None:
    keys = json.loads((WIMSE / "keys.json").read_text())
    issuer = {name: value for name, value in keys["issuer_public_for_wit_txt"].items() if name != "kid"}
    wit = foreign_wit((WIMSE / "wit.txt").read_text().strip(), jws.read_jwk(issuer))
    text = (WIMSE / "wpt.txt").read_text().strip()
    at = datetime.fromtimestamp(1745510016 - 60, UTC)
    beside = Beside(access=keys["oauth_token_hashed_into_ath"])
    target = "https://workload.example.com/path?with=a&query"
    assert check(text, wit=wit, at=at, target=target, beside=beside).jti == "__bwc4ESC3acc2LTC1-_x"
    assert reason(text, wit=wit, at=at, target=target) == "proof-for-other-token", "the token it names is not there"
    assert reason(text, wit=wit, at=at, target=target, beside=Beside(access="another")) == "proof-for-other-token"


REASONS = {
    "expired": "proof-expired",
    "audience-mismatch": "proof-wrong-audience",
    "wit-binding-mismatch": "proof-for-other-token",
    "wrong-typ": "token-type-wrong",
    "tampered-payload": "signature-invalid",
}


def test_the_conformance_vectors_of_another_implementation_are_judged_as_they_say() -> None:
    vector = json.loads((VECTORS / "wit" / "wimsey-conformance" / "wpt" / "proof-basic.json").read_text())
    issuer = ed25519_key(vector["issuer_verifying_key_b64u"])

    def judge(case: dict[str, Any]) -> proof.Proof:
        facts = {**vector, **case}
        return check(
            facts["proof"],
            wit=foreign_wit(facts["wit"], issuer),
            target=facts["audience"],
            at=datetime.fromtimestamp(facts["verify_now"], UTC),
            skew_seconds=0,
        )

    assert judge({}).exp == vector["claims"]["exp"]
    assert {case["id"] for case in vector["negative"]} == set(REASONS)
    for case in vector["negative"]:
        with pytest.raises(BindingError) as refusal:
            judge(case)
        assert refusal.value.reason == REASONS[case["id"]], case["id"]


def test_a_proof_is_good_once_for_one_target_and_a_few_minutes() -> None:
    spent = Spent()
    assert check(made(), spent=spent).aud == ORDER
    assert reason(made(), spent=spent) == "proof-replayed"
    check(made(jti="C" * 22), spent=spent)
    assert reason(made(target=ORDER + "/7")) == "proof-wrong-audience"
    assert reason(made(exp=NOW - 61)) == "proof-expired"
    assert reason(made(exp=NOW + 361)) == "proof-window-too-long"
    check(made(target="HTTPS://Orders.Campus.Example:443/v1/orders?page=2#x"))


def test_a_refused_proof_spends_nothing() -> None:
    spent = Spent()
    assert reason(made(), spent=spent, target="https://elsewhere.example/") == "proof-wrong-audience"
    check(made(), spent=spent)


def test_only_the_key_of_the_wit_proves_anything() -> None:
    assert reason(made(KeySigner(key("thief")))) == "signature-invalid"
    assert reason(made(wit=wit_of("Z" * 22))) == "proof-for-other-token", "another WIT of the same agent"


def test_every_flipped_bit_is_a_broken_signature_or_malformed() -> None:
    for text in flips(made()):
        assert reason(text) in ("signature-invalid", "malformed", "algorithm-not-allowed")


@pytest.mark.parametrize("beside", [
    Beside(access="t1"), Beside(transaction="t2"), Beside(others={"x-token": "t3"}),
    Beside("t1", "t2", {"x-token": "t3", "y-token": "t4"}),
])  # fmt: skip
def test_every_token_beside_it_must_be_named_and_nothing_else(beside: Beside) -> None:
    check(made(beside=beside), beside=beside)
    assert reason(made(), beside=beside) == "proof-for-other-token"
    assert reason(made(beside=beside)) == "proof-for-other-token"
    assert reason(made(beside=beside), beside=Beside("a", "b", {"x-token": "c"})) == "proof-for-other-token"


def test_a_token_that_is_not_ascii_is_named_by_nothing() -> None:
    assert reason(made(beside=Beside(access="t")), beside=Beside(access="té")) == "proof-for-other-token"


@pytest.mark.parametrize(("typ", "good"), [
    ("wpt+jwt", True), ("application/wpt+jwt", True), ("WPT+jwt", False), ("wit+jwt", False), ("jwt", False),
])  # fmt: skip
def test_both_spellings_of_the_media_type_are_one(typ: str, good: bool) -> None:
    claims = {"aud": ORDER, "exp": NOW + 9, "jti": "J" * 22, "wth": jws.s256(WIT)}
    text = jws.seal(claims, typ=typ, signer=KeySigner(AGENT))
    assert check(text).aud == ORDER if good else reason(text) == "token-type-wrong"


@pytest.mark.parametrize("change", [
    {"exp": "soon"}, {"exp": True}, {"exp": -1}, {"exp": None}, {"aud": None}, {"aud": ["x"]}, {"aud": "ftp://x/"},
    {"aud": "https://u:p@orders.campus.example/v1/orders"}, {"aud": "https://["}, {"jti": ""}, {"jti": 1},
    {"jti": None}, {"wth": "x"}, {"wth": 5}, {"wth": None}, {"oth": []}, {"oth": {"x": 1}}, {"ath": 1},
])  # fmt: skip
def test_nonsense_that_the_right_key_signed_is_refused(change: dict[str, Any]) -> None:
    claims = {"aud": ORDER, "exp": NOW + 9, "jti": "J" * 22, "wth": jws.s256(WIT), **change}
    claims = {name: value for name, value in claims.items() if value is not None}
    with pytest.raises(BindingError):
        check(jws.seal(claims, typ="wpt+jwt", signer=KeySigner(AGENT)))


def test_audiences_are_compared_in_one_form() -> None:
    for url, form in {
        "https://A.example": "https://a.example/",
        "https://a.example:443/x?y#z": "https://a.example/x",
        "http://a.example:8080/": "http://a.example:8080/",
        "https://[::1]:8443/p": "https://[::1]:8443/p",
    }.items():
        assert proof.audience_of(url) == form
    for wrong in ("", "/path", "a.example", "https://", "mailto:x@y", "https://a:99999999/", "https://me@a.example/"):
        with pytest.raises(Malformed):
            proof.audience_of(wrong)


def test_the_memory_of_spent_proofs_is_bounded_and_forgets_what_ended() -> None:
    spent = Spent(most=3)
    assert all(spent.take(f"{number}", NOW + 10, NOW) for number in range(3))
    assert not spent.take("3", NOW + 10, NOW), "full: better none than one that could come again"
    assert not spent.take("0", NOW + 10, NOW + 9)
    assert spent.take("3", NOW + 30, NOW + 11) and spent.take("0", NOW + 30, NOW + 11)
