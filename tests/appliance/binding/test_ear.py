"""The attestation result: one pinned profile, a status never better than its vector, the worst part decides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta

import pytest

from appliance.binding import ear
from appliance.binding.claims import Claims
from appliance.binding.ear import Submodule, Tier
from appliance.binding.errors import BindingError, Malformed, SignatureInvalid
from tests.appliance.binding.example import AT, EXAMPLE, KEYS, VECTORS, flips, part, resign, signer

TOKEN = EXAMPLE["ear"]
NOW = EXAMPLE["now"]
DEVELOPER = "https://campus.example"
PARTS = part(TOKEN, 1)["submods"]


def _check(token: str = TOKEN, **facts: object) -> ear.Ear:
    found = ear.unseal(token, KEYS["verifier"])
    ear.check(found, **{"nonce": EXAMPLE["nonce"], "now": AT, "developer": DEVELOPER, **facts})
    return found


def _reason(token: str = TOKEN, **facts: object) -> str:
    with pytest.raises(BindingError) as refusal:
        _check(token, **facts)
    return refusal.value.reason


def _agent(**changes: object) -> dict[str, object]:
    return {"submods": {**PARTS, "agent": {**PARTS["agent"], **changes}}}


@pytest.mark.req("A-21", "A-24")
def test_the_published_result_passes_at_its_clock() -> None:
    found = _check()
    assert found.status is Tier.AFFIRMING
    assert found.submodules["agent"].vector == {"instance-identity": 2, "executables": 2, "configuration": 2}


@pytest.mark.req("A-21", "A-24")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eat_profile": "tag:ietf.org,2026:rats/ear#02"}, "ear-profile-unknown"),
        ({"iat": NOW + 70}, "ear-not-yet-valid"),
        ({"iat": NOW - 600, "exp": NOW - 60}, "ear-expired"),
        ({"exp": NOW + 100_000}, "ear-window-too-long"),
        ({"exp": "x"}, "claim-malformed"),
        ({"ear_verifier_id": {"developer": "https://other.example", "build": "1"}}, "ear-wrong-verifier"),
        ({"ear_verifier_id": {"developer": DEVELOPER}}, "claim-missing"),
        ({"ear_verifier_id": "me"}, "claim-malformed"),
        ({"eat_nonce": "B" * 43}, "ear-nonce-mismatch"),
        ({"submods": {"agent": PARTS["agent"]}}, "claim-missing"),
        ({"submods": {**PARTS, "third": PARTS["agent"]}}, "claim-unknown"),
        (_agent(ear_status=2), "claim-malformed"),
        (_agent(ear_status="great"), "claim-malformed"),
        (_agent(ear_trustworthiness_vector={"executables": 96}), "ear-inconsistent"),
        (_agent(ear_trustworthiness_vector={"executables": 33}), "ear-inconsistent"),
        (_agent(ear_trustworthiness_vector={"executables": 200}), "claim-malformed"),
        (_agent(ear_trustworthiness_vector={"charm": 2}), "claim-unknown"),
        (_agent(ear_appraisal_policy_ids="x"), "claim-malformed"),
        (_agent(**{"ear.status": "affirming"}), "claim-unknown"),
        ({"ear.verifier-id": "x"}, "claim-unknown"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_claim_changed_and_signed_again_has_its_own_refusal(changes: Mapping[str, object], reason: str) -> None:
    assert _reason(resign(TOKEN, "verifier", changes)) == reason


@pytest.mark.req("A-24")
@pytest.mark.slow
def test_every_flipped_bit_is_signature_invalid_or_malformed() -> None:
    for damaged in flips(TOKEN):
        with pytest.raises((SignatureInvalid, Malformed)):
            ear.unseal(damaged, KEYS["verifier"])


@pytest.mark.req("A-24")
def test_the_worst_part_decides_and_a_worse_status_than_the_vector_is_fine() -> None:
    for word in Tier:
        found = _check(resign(TOKEN, "verifier", _agent(ear_status=str(word))))
        assert found.status is (word if word is not Tier.AFFIRMING else Tier.AFFIRMING)
    assert ear.worst([Tier.WARNING, Tier.NONE]) is Tier.NONE
    assert ear.worst([Tier.CONTRAINDICATED, Tier.NONE]) is Tier.CONTRAINDICATED
    assert ear.worst([]) is Tier.NONE


@pytest.mark.parametrize(
    ("value", "tier"),
    [(-1, "none"), (0, "none"), (1, "none"), (2, "affirming"), (31, "affirming"), (-32, "affirming"), (32, "warning"),
     (95, "warning"), (-33, "warning"), (-96, "warning"), (96, "contraindicated"), (-97, "contraindicated"),
     (127, "contraindicated"), (-128, "contraindicated")],
)  # fmt: skip
def test_tiers_of_vector_values(value: int, tier: str) -> None:
    assert ear.tier_of(value) == tier


@pytest.mark.parametrize("name", ["ear-json-1.json", "ear-json-2.json"])
def test_published_examples_have_consistent_parts(name: str) -> None:
    example = json.loads((VECTORS / "wit" / "rats-examples" / name).read_text())
    assert example["eat_profile"] == ear.PROFILE
    parts = Claims(example["submods"], "submods")
    for part_name, given in example["submods"].items():
        found = ear.read_submodule(parts, part_name)
        assert found.status == given["ear_status"] and found.vector == given["ear_trustworthiness_vector"]


def test_sealing_writes_what_unsealing_reads() -> None:
    parts = {"platform": Submodule(Tier.AFFIRMING, {"hardware": 2}, ("urn:p",)), "agent": Submodule(Tier.WARNING, {})}
    token = ear.seal(
        signer("verifier"),
        iat=NOW,
        exp=NOW + 60,
        nonce=EXAMPLE["nonce"],
        developer=DEVELOPER,
        build="1",
        submodules=parts,
    )
    found = _check(token)
    assert found.submodules == parts and found.status is Tier.WARNING
    assert _reason(token, now=AT + timedelta(seconds=116)) == "ear-expired"
