"""What is written reads back, and what is damaged raises binding's own refusals and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from appliance.binding import (
    approval,
    challenge,
    composite,
    dual_identity,
    evidence,
    identifier,
    jws,
    possession,
    request,
    token,
)
from appliance.binding.errors import BindingError
from appliance.binding.facts import Model
from appliance.identity.routes import read_answer_call
from est.signer import KeySigner
from tests.appliance.binding.example import EXAMPLE, KEYS, OWNER, private, signer
from tests.support import examples

DER = bytes.fromhex(EXAMPLE["dual_identity_ext_der_hex"])
SIGNER = KeySigner(private("agent"))
UUID4 = st.uuids(version=4).map(str)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
OPENERS = (
    lambda text: request.unseal(text),
    lambda text: possession.unseal(text),
    lambda text: approval.unseal(text, KEYS["owner"]),
    lambda text: challenge.unseal(text, KEYS["owner"]),
    lambda text: evidence.unseal(text, KEYS["proxy"]),
    lambda text: token.unseal(text, {"ids-2026-01": KEYS["issuer"]}, owner_claim="campus.example/owner"),
)


@given(st.binary(max_size=200))
def test_base64url_round_trips_and_has_one_spelling(octets: bytes) -> None:
    assert jws.unbase64url(jws.base64url(octets), "test") == octets


@given(st.text(max_size=60))
def test_any_text_is_canonical_base64url_or_malformed(text: str) -> None:
    try:
        assert jws.base64url(jws.unbase64url(text, "test")) == text
    except BindingError as refusal:
        assert refusal.reason == "malformed"


@given(st.dictionaries(st.text(max_size=10), JSON, max_size=6))
@examples(50)
def test_any_claims_round_trip(claims: dict) -> None:
    try:
        text = jws.seal(claims, typ="test+jwt", signer=SIGNER)
        assert jws.unseal(text, typ="test+jwt", key=KEYS["agent"]).claims == claims
    except BindingError as refusal:
        assert refusal.reason == "malformed"


@given(st.text(max_size=80))
def test_any_text_is_an_identifier_or_refused(text: str) -> None:
    try:
        assert identifier.read(text).uri == text
    except BindingError as refusal:
        assert refusal.reason == "identifier-malformed"


@given(UUID4, st.sampled_from(["agent", "owner", "proxy", "nas"]))
def test_identifiers_that_we_make_are_read(uuid: str, kind: str) -> None:
    made = identifier.make("spiffe://campus.example", identifier.Kind(kind), uuid)
    assert identifier.read(made.uri) == made


@given(st.text(max_size=300), st.sampled_from(OPENERS))
def test_any_text_in_place_of_a_token_is_refused(text: str, opener) -> None:
    try:
        opener(text)
    except BindingError:
        return
    raise AssertionError("a random text was taken for a token")


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "sub",
                "iss",
                "aud",
                "iat",
                "exp",
                "jti",
                "nonce",
                "cnf",
                "submods",
                "profiles",
                "ttl",
                "model",
                "purpose",
                "rqh",
                "eat_profile",
                "owner",
                "proxy",
            ]
        ),
        JSON,
        max_size=8,
    )
)
@examples(150)  # fmt: skip
def test_signed_claims_of_any_shape_are_refused_by_name(claims: dict) -> None:
    jwk = jws.jwk(KEYS["owner"], algorithm=True)
    for opener, typ, header in (
        (lambda text: request.unseal(text), request.TYP, {"jwk": jwk}),
        (lambda text: possession.unseal(text), possession.TYP, {"jwk": jwk}),
        (lambda text: approval.unseal(text, KEYS["owner"]), approval.TYP, {"kid": EXAMPLE["jkt"]["owner"]}),
        (lambda text: challenge.unseal(text, KEYS["owner"]), challenge.TYP, {"kid": EXAMPLE["jkt"]["owner"]}),
        (lambda text: evidence.unseal(text, KEYS["owner"]), evidence.TYP, {"kid": EXAMPLE["jkt"]["owner"]}),
        (lambda text: token.unseal(text, {"k": KEYS["owner"]}, owner_claim="o"), token.TYP, {"kid": "k"}),
    ):
        try:
            opener(jws.seal(claims, typ=typ, signer=signer("owner"), header=header))
        except BindingError:
            continue
        raise AssertionError("random claims were accepted")


@given(JSON)
def test_any_jwk_is_refused_or_a_key(value: object) -> None:
    try:
        jws.read_jwk(value)
    except BindingError:
        return
    raise AssertionError("a random value was taken for a key")


@given(JSON | st.binary(max_size=200))
def test_any_body_is_a_composite_or_refused(value: object) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        composite.read(body)
    except BindingError:
        return
    raise AssertionError("a random body was taken for a composite request")


@given(JSON | st.binary(max_size=200))
def test_any_body_is_an_answer_or_refused(value: object) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        read_answer_call(body)
    except BindingError:
        return
    raise AssertionError("a random body was taken for an owner's answer")


@given(JSON)
def test_any_value_is_a_cmw_record_or_malformed(value: object) -> None:
    try:
        evidence.read_cmw(value)
    except BindingError as refusal:
        assert refusal.reason == "malformed"


@given(st.binary(max_size=300))
def test_random_bytes_are_no_dual_identity(der: bytes) -> None:
    try:
        assert dual_identity.write(dual_identity.read(der)) == der
    except BindingError:
        return


@given(st.lists(st.tuples(st.integers(0, len(DER) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@examples(300)
def test_damaged_extension_is_refused_or_is_the_one_der_of_what_it_says(damage: list[tuple[int, int]]) -> None:
    octets = bytearray(DER)
    for at, value in damage:
        octets[at] = value
    try:
        assert dual_identity.write(dual_identity.read(bytes(octets))) == bytes(octets)
    except BindingError:
        return


@given(
    UUID4,
    st.binary(min_size=32, max_size=32) | st.none(),
    st.binary(min_size=1, max_size=64) | st.none(),
    st.booleans(),
)
@examples(50)
def test_extension_round_trips(uuid: str, ear_digest: bytes | None, log_index: bytes | None, standing: bool) -> None:
    dual = replace(
        dual_identity.read(DER),
        owner_id=OWNER.rpartition("/")[0] + "/" + uuid,
        ear_digest=ear_digest,
        log_index=log_index,
        model=Model.STANDING if standing else Model.SERVER_MEDIATED,
        approval=bytes(32) if standing else EXAMPLE["approval"],
    )
    assert dual_identity.read(dual_identity.write(dual)) == dual
