"""The owner approval: every claim changed and signed again by the owner is refused for its own reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import approval, jws, request
from appliance.binding.errors import BindingError, Malformed, SignatureInvalid
from appliance.binding.facts import Limits, OwnerKey, OwnerRecord
from est.signer import KeySigner
from tests.appliance.binding.example import (
    AGENT,
    AT,
    EXAMPLE,
    KEYS,
    OTHER_AGENT,
    OTHER_OWNER,
    OTHER_PROXY,
    OWNER,
    OWNER_RECORD,
    PROXY,
    SERVER,
    flips,
    part,
    private,
    resign,
    signer,
)

TOKEN = EXAMPLE["approval"]
NOW = EXAMPLE["now"]
REQUEST = request.unseal(EXAMPLE["agent_request"])


def _check(token: str = TOKEN, **facts: object) -> approval.OwnerApproval:
    asked = facts.pop("request", REQUEST)
    owner = facts.pop("owner", OWNER_RECORD)
    return approval.check(token, asked, owner, **{"server_id": SERVER, "proxy_id": PROXY, "now": AT, **facts})


def _reason(token: str = TOKEN, **facts: object) -> str:
    with pytest.raises(BindingError) as refusal:
        _check(token, **facts)
    return refusal.value.reason


def _owner(**changes: object) -> OwnerRecord:
    key = OwnerKey(EXAMPLE["jkt"]["owner"], KEYS["owner"])
    key_changes = {name: changes.pop(name) for name in tuple(changes) if hasattr(key, name) and name != "state"}
    if "key_state" in changes:
        key_changes["state"] = changes.pop("key_state")
    return replace(OWNER_RECORD, keys=(replace(key, **key_changes),), **changes)


@pytest.mark.req("A-15", "A-30", "A-40", "A-65")
def test_the_published_approval_passes_at_its_clock() -> None:
    found = _check()
    assert (found.iss, found.sub, found.jkt) == (OWNER, AGENT, EXAMPLE["jkt"]["agent"])
    assert found.rqh == jws.s256(EXAMPLE["agent_request"])


@pytest.mark.req("A-61", "A-94", "A-96", "A-100", "A-101", "A-105")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": OTHER_OWNER}, "approval-wrong-owner"),
        ({"iss": AGENT}, "identifier-kind-wrong"),
        ({"sub": OTHER_AGENT}, "approval-for-other-agent"),
        ({"sub": OWNER}, "identifier-kind-wrong"),
        ({"aud": "https://ids.other.example/v1"}, "approval-wrong-audience"),
        ({"aud": [SERVER, "https://other.example"]}, "claim-malformed"),
        ({"iat": NOW + 70}, "approval-not-yet-valid"),
        ({"iat": NOW - 600, "exp": NOW - 60}, "approval-expired"),
        ({"exp": NOW + 86_401}, "approval-window-too-long"),
        ({"exp": NOW - 1}, "claim-malformed"),
        ({"jti": "MTExMTEx"}, "token-id-too-short"),
        ({"nonce": "B" * 43}, "approval-nonce-mismatch"),
        ({"cnf": {"jkt": EXAMPLE["jkt"]["proxy"]}}, "approval-for-other-key"),
        ({"cnf": {"jwk": jws.jwk(KEYS["agent"])}}, "claim-unknown"),
        ({"cnf": "x"}, "claim-malformed"),
        ({"rqh": jws.s256("another request")}, "approval-for-other-request"),
        ({"purpose": "renew"}, "approval-for-other-purpose"),
        ({"purpose": "standing"}, "claim-malformed"),
        ({"model": "server-mediated"}, "approval-for-other-model"),
        ({"model": "standing"}, "claim-malformed"),
        ({"profiles": []}, "claim-malformed"),
        ({"ttl": 3601}, "approval-widened"),
        ({"ttl": 0}, "claim-malformed"),
        ({"proxy": OTHER_PROXY}, "approval-for-other-proxy"),
        ({"proxy": "any"}, "identifier-malformed"),
        ({"decision": "deny"}, "approval-denied"),
        ({"decision": "maybe"}, "claim-malformed"),
        ({"vlan": 30}, "claim-unknown"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_claim_changed_and_signed_again_has_its_own_refusal(changes: Mapping[str, object], reason: str) -> None:
    assert _reason(resign(TOKEN, "owner", changes)) == reason


@pytest.mark.parametrize(
    "claim", ["iss", "sub", "aud", "iat", "exp", "jti", "nonce", "cnf", "rqh", "purpose", "model", "profiles", "ttl"]
)
def test_each_required_claim_taken_away_is_missing(claim: str) -> None:
    with pytest.raises(BindingError) as refusal:
        _check(resign(TOKEN, "owner", without=(claim,)))
    assert refusal.value.reason == "claim-missing" and refusal.value.fields["claim"] == claim


@pytest.mark.req("A-99")
def test_every_flipped_bit_is_signature_invalid_or_malformed() -> None:
    for damaged in flips(TOKEN):
        try:
            owner = OWNER_RECORD if approval.kid_of(damaged) == EXAMPLE["jkt"]["owner"] else None
        except Malformed:
            continue
        with pytest.raises((SignatureInvalid, Malformed)):
            _check(damaged, owner=owner)


@pytest.mark.req("A-32")
def test_key_that_nobody_registered_signs_nothing() -> None:
    stranger = resign(TOKEN, "stranger", header={"kid": jws.jkt(private("stranger").public_key())})
    assert _reason(stranger, owner=None) == "signature-invalid"
    assert _reason(stranger) == "signature-invalid"
    assert _reason(resign(TOKEN, "stranger")) == "signature-invalid"
    assert _reason(resign(TOKEN, "owner", header={"kid": None})) == "malformed"


@pytest.mark.req("A-94")
def test_agent_does_not_approve_itself() -> None:
    own = resign(TOKEN, "agent", header={"kid": EXAMPLE["jkt"]["agent"]})
    assert _reason(own, owner=None) == "self-approval"
    both = _owner(jkt=EXAMPLE["jkt"]["agent"], public_key=KEYS["agent"])
    assert _reason(own, owner=both) == "self-approval"


@pytest.mark.req("A-94")
def test_no_other_agent_approves_it_either() -> None:
    other = resign(TOKEN, "stranger", header={"kid": jws.jkt(private("stranger").public_key())})
    assert _reason(other, owner=None, signer_is_agent=True) == "self-approval"


@pytest.mark.req("A-94", "A-101")
def test_self_approval_is_told_only_of_a_real_signature() -> None:
    own = resign(TOKEN, "agent", header={"kid": EXAMPLE["jkt"]["agent"]})
    assert _reason(own[:-8] + "AAAAAAAA", owner=None) == "signature-invalid"


@pytest.mark.req("A-32", "A-95")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"state": "suspended"}, "owner-not-active"),
        ({"state": "revoked"}, "owner-not-active"),
        ({"key_state": "revoked"}, "owner-key-not-valid"),
        ({"key_state": "retired"}, "owner-key-not-valid"),
        ({"not_before": datetime.fromtimestamp(NOW + 1, UTC)}, "owner-key-not-valid"),
        ({"not_after": datetime.fromtimestamp(NOW - 1, UTC)}, "owner-key-not-valid"),
    ],
)
def test_owner_or_key_that_does_not_count_any_more(changes: dict, reason: str) -> None:
    assert _reason(owner=_owner(**changes)) == reason


@pytest.mark.req("A-41")
def test_software_key_counts_only_where_policy_says_so() -> None:
    assert _reason(limits=Limits(software_owner_keys=False)) == "owner-key-in-software"
    _check(limits=Limits(software_owner_keys=False), owner=_owner(protection="pkcs11"))


@pytest.mark.req("A-96", "A-11")
def test_proxy_outside_the_owner_s_matrix_is_refused() -> None:
    assert _reason(owner=_owner(proxies=frozenset({OTHER_PROXY}))) == "proxy-not-allowed-for-owner"
    _check(owner=_owner(proxies=frozenset({PROXY})))


@pytest.mark.req("A-61")
def test_request_that_names_another_owner_or_none_is_refused() -> None:
    for asked in (resign(EXAMPLE["agent_request"], "agent", {"owner": OTHER_OWNER}),
                  resign(EXAMPLE["agent_request"], "agent", without=("owner",))):  # fmt: skip
        assert _reason(request=request.unseal(asked)) == "owner-mismatch"


@pytest.mark.req("A-14")
@pytest.mark.parametrize("changes", [{"ttl": 7200}, {"jti": "A" * 22}, {"label": "harmless"}, {"txn": "job-7"}])
def test_any_other_request_of_the_same_agent_needs_its_own_approval(changes: Mapping[str, object]) -> None:
    asked = request.unseal(resign(EXAMPLE["agent_request"], "agent", changes))
    assert _reason(request=asked) == "approval-for-other-request"


def test_wider_profiles_than_asked_are_refused() -> None:
    asked = request.unseal(resign(EXAMPLE["agent_request"], "agent", {"profiles": ["wit"]}, without=("csr_s256",)))
    assert _reason(resign(TOKEN, "owner", {"rqh": asked.rqh}), request=asked) == "approval-widened"


def test_narrower_approval_passes_and_bounds_what_is_issued() -> None:
    found = _check(resign(TOKEN, "owner", {"profiles": ["wit"], "ttl": 600}))
    assert approval.bounds(REQUEST, found, 28_800) == (("wit",), 600)
    assert approval.bounds(REQUEST, _check(), 28_800, 1200) == (("x509", "wit"), 1200)
    with pytest.raises(BindingError) as refusal:
        approval.bounds(REQUEST._replace(profiles=("x509",)), found)
    assert refusal.value.reason == "profile-not-approved"


def test_answer_to_a_challenge_carries_the_challenge_s_nonce() -> None:
    challenge = "C" * 43
    assert _reason(nonce=challenge) == "approval-nonce-mismatch"
    _check(resign(TOKEN, "owner", {"nonce": challenge}), nonce=challenge)


def test_denial_counts_only_if_it_is_about_this_request() -> None:
    denial = {"decision": "deny", "cnf": {"jkt": EXAMPLE["jkt"]["proxy"]}}
    assert _reason(resign(TOKEN, "owner", denial)) == "approval-for-other-key"


@pytest.mark.req("A-105")
def test_window_and_skew_are_limits() -> None:
    assert _reason(limits=Limits(window_seconds=599)) == "approval-window-too-long"
    assert _reason(now=AT + timedelta(seconds=656)) == "approval-expired"
    _check(now=AT + timedelta(seconds=655))
    assert _reason(now=AT + timedelta(seconds=600), limits=Limits(skew_seconds=0)) == "approval-expired"


def test_p384_owner_key_signs() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    kid = jws.jkt(key.public_key())
    token = approval.seal(KeySigner(key), REQUEST, iss=OWNER, iat=NOW, exp=NOW + 60, jti="A" * 22)
    assert part(token, 0)["alg"] == "ES384"
    _check(token, owner=_owner(jkt=kid, public_key=key.public_key()))


def test_sealing_copies_the_request_and_cannot_widen_it() -> None:
    token = approval.seal(
        signer("owner"), REQUEST, iss=OWNER, iat=NOW, exp=NOW + 600, jti="MTExMTExMTExMTExMTExMQ", proxy=PROXY
    )
    assert part(token, 1) == {**part(TOKEN, 1), "proxy": PROXY}
    _check(token)
    for wider in ({"ttl": 3601}, {"profiles": ("x509", "wit", "ssh")}):
        with pytest.raises(BindingError) as refusal:
            approval.seal(signer("owner"), REQUEST, iss=OWNER, iat=NOW, exp=NOW + 600, jti="A" * 22, **wider)
        assert refusal.value.reason == "approval-widened"


def test_credential_never_begins_before_the_approval_could_be_used() -> None:
    found = _check()
    assert approval.not_before(found, AT) == datetime.fromtimestamp(NOW - 55, UTC)
    late = _check(resign(TOKEN, "owner", {"iat": NOW + 30}))
    assert approval.not_before(late, AT) == datetime.fromtimestamp(NOW - 30, UTC)


def test_oversized_approval_is_malformed() -> None:
    assert _reason(TOKEN + "A" * 4096) == "malformed"
