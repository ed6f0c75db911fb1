"""The WIT: published ones open, damaged ones have their own refusals, other people's are read as strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from appliance.binding import jws, token, verify
from appliance.binding.errors import BindingError, Malformed, SignatureInvalid
from appliance.binding.facts import OwnerRecord
from est.errors import Refusal
from tests.appliance.binding.example import (
    AGENT,
    AT,
    DOMAIN,
    EXAMPLE,
    ISSUER,
    KEYS,
    OTHER_AGENT,
    OTHER_OWNER,
    OWNER,
    OWNER_RECORD,
    VECTORS,
    flips,
    owners,
    part,
    resign,
    signer,
)

FULL, DIGEST = EXAMPLE["wit_full"], EXAMPLE["wit_min"]
NOW = EXAMPLE["now"]
CLAIM = "campus.example/owner"
ISSUER_KEYS = {"ids-2026-01": KEYS["issuer"]}
OWNER_DATA = part(FULL, 1)[CLAIM]
JWK = part(FULL, 1)["cnf"]["jwk"]


def _verify(text: str, **facts: object) -> verify.Report:
    given = {"issuer": ISSUER, "issuer_keys": ISSUER_KEYS, "at": AT, **facts}
    return verify.verify_wit(text, DOMAIN, given.pop("owners", owners), **given)


def _reason(text: str, **facts: object) -> str:
    with pytest.raises(Refusal) as refusal:
        _verify(text, **facts)
    return refusal.value.reason


def _owner(**changes: object) -> dict[str, object]:
    return {CLAIM: {**OWNER_DATA, **changes}}


@pytest.mark.req("A-15", "A-30", "A-34")
def test_published_wits_verify_at_their_clock_in_both_forms() -> None:
    full = _verify(FULL)
    assert full.agent_id == AGENT and full.owner_id == OWNER and full.approval is not None
    assert _verify(DIGEST).approval is None
    assert _verify(DIGEST, approval=EXAMPLE["approval"]).approval == full.approval
    assert [name for name, _ in full.steps] == ["signature", "time and issuer", "name", "owner", "approval", "binding"]


@pytest.mark.req("A-4", "A-6", "A-30", "A-34", "A-101")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sub": OTHER_AGENT}, "approval-for-other-agent"),
        ({"sub": AGENT.replace("campus", "other")}, "origin-mismatch"),
        ({"sub": OWNER}, "identifier-kind-wrong"),
        ({"sub": "alice"}, "identifier-malformed"),
        ({"iss": "urn:campus:ids:2"}, "wit-wrong-issuer"),
        ({"iss": 7}, "claim-malformed"),
        ({"iat": NOW + 70}, "wit-not-yet-valid"),
        ({"exp": NOW - 60, "iat": NOW - 600}, "wit-expired"),
        ({"exp": NOW + 3601}, "lifetime-not-approved"),
        ({"iat": NOW - 61}, "issued-outside-approval"),
        ({"exp": "x"}, "claim-malformed"),
        ({"jti": ""}, "claim-malformed"),
        ({"aud": "https://service.campus.example"}, "wit-has-audience"),
        ({"cnf": {"jwk": jws.jwk(KEYS["proxy"], algorithm=True)}}, "approval-for-other-key"),
        ({"cnf": {"jwk": jws.jwk(KEYS["agent"])}}, "wit-key-without-algorithm"),
        ({"cnf": {"jwk": {**JWK, "d": "AA"}}}, "private-key-exposed"),
        ({"cnf": {"jkt": EXAMPLE["jkt"]["agent"]}}, "claim-missing"),
        ({"cnf": {"jwk": {**JWK, "alg": "ES384"}}}, "malformed"),
        (_owner(sub=OTHER_OWNER), "owner-unknown"),
        (_owner(sub=AGENT), "identifier-kind-wrong"),
        (_owner(jwk=jws.jwk(KEYS["agent"])), "owner-key-unknown"),
        (_owner(model="server-mediated"), "approval-for-other-model"),
        (_owner(model="x"), "claim-malformed"),
        (_owner(apv="a.b.c"), "malformed"),
        (_owner(apv=resign(EXAMPLE["approval"], "stranger")), "signature-invalid"),
        (_owner(apv_s256=jws.s256("x")), "claim-malformed"),
        (_owner(department="R&D"), "claim-unknown"),
        ({CLAIM: "alice"}, "claim-malformed"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_claim_changed_and_signed_again_has_its_own_refusal(changes: Mapping[str, object], reason: str) -> None:
    assert _reason(resign(FULL, "ca", changes)) == reason


@pytest.mark.parametrize("claim", ["sub", "iat", "exp", "jti", "cnf"])
def test_each_required_claim_taken_away_is_missing(claim: str) -> None:
    assert _reason(resign(FULL, "ca", without=(claim,))) == "claim-missing"


@pytest.mark.req("A-2")
def test_wit_without_owner_is_a_single_identity_and_never_any_owner_s() -> None:
    single = resign(FULL, "ca", without=(CLAIM,))
    assert token.unseal(single, ISSUER_KEYS, owner_claim=CLAIM).owner is None
    assert _reason(single) == "dual-identity-missing"


def test_wit_without_issuer_is_not_ours() -> None:
    assert _reason(resign(FULL, "ca", without=("iss",))) == "wit-wrong-issuer"


def test_digest_form_names_exactly_one_approval() -> None:
    other = resign(EXAMPLE["approval"], "owner", {"jti": "A" * 22})
    assert _reason(DIGEST, approval=other) == "approval-digest-mismatch"


@pytest.mark.req("A-4")
@pytest.mark.parametrize("name", ["wit_full", "wit_min"])
@pytest.mark.slow
def test_every_flipped_bit_is_signature_invalid_or_malformed(name: str) -> None:
    for at, damaged in enumerate(flips(EXAMPLE[name])):
        if name == "wit_full" and at % 3:
            continue
        with pytest.raises((SignatureInvalid, Malformed)):
            _verify(damaged)


@pytest.mark.parametrize("state", ["suspended", "revoked"])
def test_owner_who_is_not_active_counts_for_nothing(state: str) -> None:
    def lookup(identifier: str) -> OwnerRecord | None:
        return replace(OWNER_RECORD, state=state)

    assert _reason(FULL, owners=lookup) == "owner-not-active"


@pytest.mark.req("A-110")
@pytest.mark.parametrize("text", [FULL, DIGEST])
def test_a_revoked_owner_key_is_refused_whether_the_approval_is_at_hand_or_not(text: str) -> None:
    revoked = replace(OWNER_RECORD, keys=[replace(key, state="revoked") for key in OWNER_RECORD.keys])
    assert _reason(text, owners=lambda _: revoked) == "owner-key-not-valid"
    ended = replace(OWNER_RECORD, keys=[replace(key, not_after=AT - timedelta(days=1)) for key in OWNER_RECORD.keys])
    assert _reason(text, owners=lambda _: ended) == "owner-key-not-valid"


def test_type_and_algorithm_are_exact() -> None:
    for header, reason in (({"typ": "wimse-id+jwt"}, "token-type-wrong"), ({"typ": "jwt"}, "token-type-wrong")):
        assert _reason(resign(FULL, "ca", header=header)) == reason


def test_sealing_writes_what_unsealing_reads() -> None:
    given = token.unseal(FULL, ISSUER_KEYS, owner_claim=CLAIM)
    again = token.seal(
        signer("ca"), kid=given.kid, sub=given.sub, iss=ISSUER, iat=given.iat, exp=given.exp, jti=given.jti,
        key=KEYS["agent"], owner=given.owner, owner_claim=CLAIM,
    )  # fmt: skip
    assert part(again, 1) == part(FULL, 1)
    assert _verify(again).agent_id == AGENT


def test_sizes_stay_near_the_published_ones() -> None:
    assert len(FULL) <= 2200 and len(DIGEST) <= 1100


# Other people's tokens


def test_wimse_draft_wit_opens_with_its_published_key() -> None:
    folder = VECTORS / "wit" / "wimse-s2s-draft"
    keys = json.loads((folder / "keys.json").read_text())
    issuer = jws.read_jwk(keys["issuer_public_for_wit_txt"])
    wit = token.unseal((folder / "wit.txt").read_text().strip(), {"June 5": issuer}, owner_claim=CLAIM)
    assert wit.sub == "wimse://example.com/specific-workload" and isinstance(wit.key, ed25519.Ed25519PublicKey)
    assert wit.owner is None and wit.iss is None


def _conformance() -> tuple[dict, dict[str, jws.PublicKey]]:
    case = json.loads((VECTORS / "wit" / "wimsey-conformance" / "wit" / "issue-basic.json").read_text())
    seed = jws.unbase64url(case["issuer_signing_key_seed_b64u"], "seed")
    return case, {case["kid"]: ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key()}


def test_conformance_wit_without_key_algorithm_has_its_own_refusal() -> None:
    case, keys = _conformance()
    with pytest.raises(BindingError) as refusal:
        token.unseal(case["token"], keys, owner_claim=CLAIM, algorithms=jws.FOREIGN_ALGORITHMS)
    assert refusal.value.reason == "wit-key-without-algorithm"


def test_conformance_negatives_are_refused_for_their_stated_fact() -> None:
    case, keys = _conformance()
    stated = {one["id"]: one for one in case["negative"]}
    other = ed25519.Ed25519PublicKey.from_public_bytes(
        jws.unbase64url(stated["wrong-issuer-key"]["issuer_verifying_key_b64u"], "key")
    )
    for text, at_keys, reason in (
        (stated["wrong-typ"]["token"], keys, "token-type-wrong"),
        (stated["tampered-payload"]["token"], keys, "signature-invalid"),
        (case["token"], {case["kid"]: other}, "signature-invalid"),
        (case["token"], {}, "signature-invalid"),
    ):
        with pytest.raises(BindingError) as refusal:
            token.unseal(text, at_keys, owner_claim=CLAIM, algorithms=jws.FOREIGN_ALGORITHMS)
        assert refusal.value.reason == reason


def test_spiffe_appendix_token_has_the_shape_that_we_read() -> None:
    example = json.loads((VECTORS / "wit" / "spiffe-wit-svid" / "appendix-a.json").read_text())
    sealed = jws.read(example["token"])
    assert sealed.header == example["header"] and jws.read_object(sealed.payload, "payload") == example["claims"]
    assert jws.read_jwk(example["claims"]["cnf"]["jwk"])


def test_stale_peer_s_type_and_audience_are_refused() -> None:
    stale = json.loads((VECTORS / "wit" / "stale-peers" / "cofide-demo-exchange.json").read_text())
    text = stale["workload_identity_token"]
    kid = part(text, 0)["kid"]
    with pytest.raises(BindingError) as refusal:
        token.unseal(resign(text, "ca"), {kid: KEYS["issuer"]}, owner_claim=CLAIM)
    assert refusal.value.reason == "token-type-wrong"
    with pytest.raises(BindingError) as refusal:
        token.unseal(resign(text, "ca", header={"typ": "wit+jwt"}), {kid: KEYS["issuer"]}, owner_claim=CLAIM)
    assert refusal.value.reason == "wit-has-audience"


def test_wit_ends() -> None:
    assert _reason(FULL, at=datetime.fromtimestamp(NOW + 3661, UTC)) == "wit-expired"
    _verify(FULL, at=AT + timedelta(seconds=3600))
