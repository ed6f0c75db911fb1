"""Signed agent cards: the order of members means nothing, every value does, and only the agent's key counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.binding import agent_card, jws
from appliance.binding.errors import BindingError, CardNotSigned
from est.signer import KeySigner
from tests.support import key

AGENT = key("agent")
CARD: dict[str, Any] = {
    "protocolVersion": "0.3.0",
    "name": "Courier é",
    "description": "fetches papers",
    "url": "https://courier.campus.example/a2a",
    "version": "1.0.0",
    "capabilities": {"streaming": False, "pushNotifications": True},
    "defaultInputModes": ["text/plain"],
    "defaultOutputModes": ["text/plain"],
    "skills": [{"id": "fetch", "name": "Fetch", "description": "d", "tags": ["x"], "weight": 1.50}],
}


def signed() -> dict[str, Any]:
    return agent_card.sign(CARD, KeySigner(AGENT))


def test_a_signature_holds_whatever_the_spelling_of_the_document() -> None:
    card = signed()
    (one,) = card["signatures"]
    header = json.loads(jws.unbase64url(one["protected"], "header"))
    assert header == {"alg": "ES256", "kid": jws.jkt(AGENT.public_key()), "typ": "JOSE"}
    turned = json.dumps(dict(reversed(card.items())), indent=4, ensure_ascii=True).replace("1.5", "15e-1")
    for text in (json.dumps(card), turned):
        agent_card.verify(agent_card.read(text.encode()), AGENT.public_key())


@pytest.mark.parametrize("change", [
    {"name": "Courier"}, {"url": "https://thief.example/"}, {"skills": []}, {"more": 1},
    {"capabilities": {"streaming": True, "pushNotifications": True}}, {"signatures": []}, {"signatures": None},
    {"signatures": [{}]}, {"signatures": ["x"]}, {"signatures": [{"protected": "AA", "signature": "AA"}]},
    {"signatures": [{"protected": 1, "signature": 2}]},
])  # fmt: skip
def test_whatever_was_changed_is_not_signed(change: dict[str, Any]) -> None:
    with pytest.raises(CardNotSigned):
        agent_card.verify({**signed(), **change}, AGENT.public_key())


def test_another_key_does_not_count_and_does_not_disturb() -> None:
    with pytest.raises(CardNotSigned):
        agent_card.verify(signed(), key("other").public_key())
    both = agent_card.sign(signed(), KeySigner(key("other")))
    for one in ("agent", "other"):
        agent_card.verify(both, key(one).public_key())
    with pytest.raises(BindingError):
        agent_card.sign({**CARD, "signatures": [{}] * 8}, KeySigner(AGENT))


def test_a_signature_of_another_kind_is_none_over_a_card() -> None:
    """What the key signs elsewhere cannot be moved into a card: the type is part of what is signed."""
    payload = {name: value for name, value in CARD.items()}
    token = jws.seal(payload, typ="wpt+jwt", signer=KeySigner(AGENT))
    protected, _, signature = token.split(".")
    card = {**CARD, "signatures": [{"protected": protected, "signature": signature}]}
    with pytest.raises(CardNotSigned):
        agent_card.verify(card, AGENT.public_key())


@pytest.mark.parametrize("text", [b"", b"[]", b"1", b"\xff", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"{" * 5000])
def test_what_is_no_card_is_malformed(text: bytes) -> None:
    with pytest.raises(BindingError):
        agent_card.read(text)


@pytest.mark.parametrize("value", [1 << 60, float("inf"), {1: 2}, object()])
def test_a_card_without_a_canonical_form_cannot_be_signed(value: Any) -> None:
    with pytest.raises(BindingError):
        agent_card.sign({"name": value}, KeySigner(AGENT))
