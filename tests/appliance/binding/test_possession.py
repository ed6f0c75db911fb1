"""The owner key statement: the key says whose it is, and each claim changed and signed again has its own refusal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from appliance.binding import jws, possession
from appliance.binding.errors import BindingError, Malformed, SignatureInvalid
from tests.appliance.binding.example import AT, EXAMPLE, KEYS, ORIGIN, OWNER, flips, part, resign, signer

NOW = EXAMPLE["now"]
TOKEN = possession.seal(
    signer("owner"), sub="alice", aud=ORIGIN, iat=NOW, exp=NOW + 86_400, jti="A" * 22, protection="software"
)


def _check(token: str = TOKEN, **facts: object) -> possession.KeyStatement:
    found = possession.unseal(token)
    possession.check(found, **{"names": ("alice", OWNER), "audience": ORIGIN, "now": AT, **facts})
    return found


def _reason(token: str = TOKEN, **facts: object) -> str:
    with pytest.raises(BindingError) as refusal:
        _check(token, **facts)
    return refusal.value.reason


@pytest.mark.req("A-32", "A-41")
def test_statement_passes_and_names_its_key() -> None:
    found = _check()
    assert found.jkt == EXAMPLE["jkt"]["owner"] and found.key == KEYS["owner"] and found.protection == "software"
    _check(resign(TOKEN, "owner", {"sub": OWNER}))


@pytest.mark.req("A-32")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sub": "bob"}, "statement-for-other-owner"),
        ({"aud": "spiffe://other.example"}, "statement-wrong-audience"),
        ({"iat": NOW + 70}, "statement-not-yet-valid"),
        ({"iat": NOW - 600, "exp": NOW - 60}, "statement-expired"),
        ({"exp": NOW + 31 * 86_400}, "statement-window-too-long"),
        ({"jti": "A"}, "token-id-too-short"),
        ({"protection": "paper"}, "claim-malformed"),
        ({"kind": "person"}, "claim-unknown"),
    ],
    ids=str,
)
def test_each_claim_changed_and_signed_again_has_its_own_refusal(changes: Mapping[str, object], reason: str) -> None:
    assert _reason(resign(TOKEN, "owner", changes)) == reason


@pytest.mark.req("A-32")
def test_statement_about_a_key_that_did_not_sign_it_is_refused() -> None:
    with pytest.raises(SignatureInvalid):
        _check(resign(TOKEN, "stranger"))
    with pytest.raises(SignatureInvalid):
        _check(resign(TOKEN, "owner", header={"jwk": jws.jwk(KEYS["agent"])}))
    with pytest.raises(Malformed):
        _check(resign(TOKEN, "owner", header={"jwk": None}))


@pytest.mark.req("A-32", "A-101")
def test_statement_is_no_request_and_a_request_no_statement() -> None:
    assert _reason(EXAMPLE["agent_request"]) == "token-type-wrong"
    assert part(TOKEN, 0)["typ"] == "owner-key+jwt"


def test_every_flipped_bit_is_signature_invalid_or_malformed() -> None:
    for damaged in flips(TOKEN):
        with pytest.raises((SignatureInvalid, Malformed)):
            possession.unseal(damaged)


def test_statement_ends() -> None:
    assert _reason(now=AT + timedelta(days=2)) == "statement-expired"
