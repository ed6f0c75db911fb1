"""Signing: exactly what the card says, never wider, never by the agent itself."""

from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import timedelta

import pytest

from appliance.binding import approval, request
from appliance.binding.facts import OwnerRecord
from appliance.owner import sign as signing
from appliance.owner.review import ReviewCard, review
from appliance.owner.sign import sign
from est.errors import Refusal
from tests.appliance.binding.example import (
    AT,
    EXAMPLE,
    OTHER_OWNER,
    OWNER,
    OWNER_RECORD,
    PROXY,
    SERVER,
    part,
    resign,
    signer,
)

TOKEN = EXAMPLE["agent_request"]
REQUEST = request.unseal(TOKEN)


def _card(**changes: object) -> ReviewCard:
    token = resign(TOKEN, "agent", changes) if changes else TOKEN
    return review(token, owner_id=OWNER, now=AT, proxy=PROXY)


def _sign(card: ReviewCard | None = None, key: str = "owner", **options: object) -> str:
    return sign(card or _card(), signer(key), **{"now": AT, **options})


def _accepted(token: str, owner: OwnerRecord = OWNER_RECORD) -> approval.OwnerApproval:
    return approval.check(token, REQUEST, owner, server_id=SERVER, proxy_id=PROXY, now=AT)


def _reason(*arguments: object, **options: object) -> str:
    with pytest.raises(Refusal) as refusal:
        _sign(*arguments, **options)
    return refusal.value.reason


@pytest.mark.req("A-40", "A-90")
def test_what_the_tool_signs_the_server_accepts() -> None:
    found = _accepted(_sign())
    assert found.proxy == PROXY and found.ttl == 3600 and found.profiles == ("x509", "wit")


@pytest.mark.req("A-90")
def test_signed_object_contains_exactly_the_fields_of_the_card() -> None:
    claims = part(_sign(), 1)
    assert set(claims) == set(part(EXAMPLE["approval"], 1)) | {"proxy"}
    same = {"sub", "aud", "nonce", "purpose", "model", "profiles", "ttl"}
    assert {name: claims[name] for name in same} == {name: part(TOKEN, 1)[name] for name in same}
    assert claims["rqh"] == REQUEST.rqh and claims["cnf"] == {"jkt": REQUEST.jkt}


@pytest.mark.req("A-90")
def test_there_is_no_way_to_sign_a_digest() -> None:
    ours = [one for one in vars(signing).values() if inspect.isfunction(one) and one.__module__ == signing.__name__]
    assert [one.__name__ for one in ours if not one.__name__.startswith("_")] == ["sign"]
    assert next(iter(inspect.signature(sign).parameters)) == "card"
    assert inspect.signature(sign).parameters["card"].annotation == "ReviewCard"


@pytest.mark.req("A-90")
def test_card_that_was_tampered_with_is_not_signed() -> None:
    card = _card()
    for broken in (
        replace(card, request=card.request._replace(ttl=99)),
        replace(card, request=card.request._replace(sub=OTHER_OWNER)),
        replace(card, owner_id=OTHER_OWNER),
    ):
        assert _reason(broken) == "card-not-reviewed"


@pytest.mark.req("A-92")
def test_short_code_that_was_typed_must_be_this_request_s() -> None:
    code = _card().short_code
    _sign(expected_code=code)
    _sign(expected_code=code.lower().replace("-", " "))
    for wrong in ("AAAA-AAAA", "", code[:-1]):
        assert _reason(expected_code=wrong) == "short-code-mismatch"


@pytest.mark.req("A-94")
def test_agent_s_own_key_signs_no_approval() -> None:
    assert _reason(key="agent") == "self-approval"


def test_denial_is_a_signed_answer() -> None:
    with pytest.raises(Refusal) as refusal:
        _accepted(_sign(deny=True))
    assert refusal.value.reason == "approval-denied"


def test_bounds_may_be_narrowed_and_never_widened() -> None:
    narrow = _accepted(_sign(profiles=("wit",), ttl_seconds=600))
    assert (narrow.profiles, narrow.ttl) == (("wit",), 600)
    assert _reason(ttl_seconds=7200) == "approval-widened"
    assert _reason(profiles=("x509", "wit", "ssh")) == "approval-widened"


@pytest.mark.req("A-95", "A-105")
def test_approval_is_short_and_never_outlives_the_request() -> None:
    assert _accepted(_sign()).exp == REQUEST.exp
    found = _accepted(_sign(usable_seconds=60))
    assert found.exp - found.iat == 60
    assert _reason(now=AT + timedelta(seconds=300)) == "request-expired"


@pytest.mark.req("A-105")
def test_long_lives_need_the_setting() -> None:
    card = _card(ttl=86_401)
    assert _reason(card) == "life-too-long"
    sign(card, signer("owner"), now=AT, allow_long_lives=True)
    sign(card, signer("owner"), now=AT, ttl_seconds=86_400)
    sign(card, signer("owner"), now=AT, deny=True)


@pytest.mark.req("A-100")
def test_every_approval_has_its_own_identifier() -> None:
    assert len({part(_sign(), 1)["jti"] for _ in range(20)}) == 20
