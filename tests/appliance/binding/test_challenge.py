"""The binding challenge: this server's question to this owner about these request bytes, and nobody else's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from appliance.binding import approval, challenge, jws, request
from appliance.binding.errors import BindingError, Malformed, SignatureInvalid
from tests.appliance.binding.example import (
    AGENT,
    AT,
    EXAMPLE,
    KEYS,
    OTHER_AGENT,
    OTHER_OWNER,
    OWNER,
    PROXY,
    SERVER,
    flips,
    private,
    resign,
    signer,
)

NOW = EXAMPLE["now"]
SERVER_KEY = private("ca").public_key()
REQUEST = request.unseal(EXAMPLE["agent_request"])
TOKEN = challenge.seal(
    signer("ca"), REQUEST, iss=SERVER, owner=OWNER, proxy=PROXY, iat=NOW, exp=NOW + 900, jti="J" * 22, nonce="N" * 43
)


def _check(token: str = TOKEN, **facts: object) -> challenge.BindingChallenge:
    found = challenge.unseal(token, SERVER_KEY)
    known: dict[str, object] = {"owner_id": OWNER, "server_id": SERVER, "now": AT}
    challenge.check(found, REQUEST, **{**known, **facts})  # type: ignore[arg-type]
    return found


def _reason(token: str = TOKEN, **facts: object) -> str:
    with pytest.raises(BindingError) as refusal:
        _check(token, **facts)
    return refusal.value.reason


@pytest.mark.req("A-62")
def test_a_challenge_names_request_key_and_owner_and_what_is_asked() -> None:
    found = _check()
    assert (found.aud, found.sub, found.rqh, found.jkt) == (OWNER, AGENT, REQUEST.rqh, REQUEST.jkt)
    assert (found.nonce, found.jti, found.proxy) == ("N" * 43, "J" * 22, PROXY)
    assert (found.purpose, found.profiles, found.ttl) == (REQUEST.purpose, REQUEST.profiles, REQUEST.ttl)


@pytest.mark.req("A-62", "A-100")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://ids.other.example/v1"}, "challenge-wrong-server"),
        ({"aud": OTHER_OWNER}, "challenge-wrong-owner"),
        ({"sub": OTHER_AGENT}, "challenge-for-other-request"),
        ({"cnf": {"jkt": EXAMPLE["jkt"]["owner"]}}, "challenge-for-other-request"),
        ({"rqh": jws.s256("another request")}, "challenge-for-other-request"),
        ({"iat": NOW + 100, "exp": NOW + 200}, "challenge-not-yet-valid"),
        ({"iat": NOW - 800, "exp": NOW - 100}, "challenge-expired"),
        ({"exp": NOW + 901}, "challenge-window-too-long"),
        ({"purpose": "renew"}, "challenge-inconsistent"),
        ({"profiles": ["wit"]}, "challenge-inconsistent"),
        ({"ttl": 60}, "challenge-inconsistent"),
        ({"proxy": OWNER}, "identifier-kind-wrong"),
        ({"proxy": None}, "claim-malformed"),
        ({"nonce": "N" * 21}, "claim-malformed"),
        ({"jti": "J"}, "token-id-too-short"),
        ({"label": "trust me"}, "claim-unknown"),
    ],
    ids=str,
)
def test_each_claim_changed_and_signed_again_has_its_own_refusal(changes: Mapping[str, object], reason: str) -> None:
    assert _reason(resign(TOKEN, "ca", changes)) == reason


@pytest.mark.req("A-62", "A-94")
@pytest.mark.slow
def test_a_flipped_bit_is_no_challenge() -> None:
    for damaged in flips(TOKEN):
        with pytest.raises((SignatureInvalid, Malformed)):
            challenge.unseal(damaged, SERVER_KEY)


@pytest.mark.req("A-94", "A-100")
def test_no_other_object_passes_for_a_challenge_nor_a_challenge_for_an_approval() -> None:
    with pytest.raises(BindingError):
        challenge.unseal(EXAMPLE["approval"], KEYS["owner"])
    with pytest.raises(BindingError) as refusal:
        approval.unseal(TOKEN, SERVER_KEY)
    assert refusal.value.reason == "token-type-wrong"
    forged = challenge.seal(
        signer("owner"), REQUEST, iss=SERVER, owner=OWNER, proxy=PROXY, iat=NOW, exp=NOW + 900, jti="J" * 22,
        nonce="N" * 43,
    )  # fmt: skip
    with pytest.raises(SignatureInvalid):
        challenge.unseal(forged, SERVER_KEY)


@pytest.mark.req("A-62")
def test_a_challenge_is_over_a_skew_after_its_end() -> None:
    assert _check(now=AT + timedelta(seconds=900)).exp == NOW + 900
    assert _reason(now=AT + timedelta(seconds=956)) == "challenge-expired"
