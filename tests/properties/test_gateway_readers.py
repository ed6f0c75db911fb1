"""Whatever a gateway's readers are given, they answer with a value or a refusal of their own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.binding import composite
from appliance.binding.composite import Composite, org_hash
from appliance.binding.errors import BindingError
from appliance.owner.answer_policy import read_answer_policy
from appliance.owner.errors import AnswerPolicyInvalid
from appliance.proxy.errors import OwnerGatewayMissing
from appliance.proxy.gateways import _read_places

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
WORDS = ("version", "otherwise", "rule", "class", "decision", "name", "uids", "per_hour", "executables", "classes")


@pytest.mark.req("A-36")
@given(st.lists(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), min_size=1), max_size=4))
def test_material_survives_the_wire_and_its_hash_tells_where_each_piece_ends(org: list[str]) -> None:
    again = composite.read(composite.write(Composite("a.b.c", org=tuple(org))))
    assert again.org == tuple(org) and again.org_s256 == org_hash(org)
    if len(org) > 1:
        assert org_hash([org[0] + org[1], *org[2:]]) != org_hash(org)
        assert org[0] == org[1] or org_hash([org[1], org[0], *org[2:]]) != org_hash(org)


@given(ANYTHING)
def test_any_material_is_bounded_text_or_refused(org: Any) -> None:
    try:
        found = composite.read(json.dumps({"request": "a.b.c", "org": org}).encode())
    except BindingError:
        return
    assert all(composite.is_org_text(one) for one in found.org) and len(found.org) <= composite.MAX_ORG


@given(st.text() | st.lists(st.sampled_from(WORDS) | st.sampled_from("=[]{}\"'\n1, "), max_size=60).map("".join))
def test_any_text_is_rules_or_refused(text: str) -> None:
    try:
        read_answer_policy(text)
    except AnswerPolicyInvalid:
        pass


@given(ANYTHING | st.fixed_dictionaries({"gateways": st.lists(
    ANYTHING | st.fixed_dictionaries({"url": ANYTHING, "spki_sha256": ANYTHING}), max_size=3)}))  # fmt: skip
def test_any_word_about_gateways_is_places_or_refused(value: Any) -> None:
    try:
        places = _read_places(json.dumps(value).encode())
    except OwnerGatewayMissing:
        return
    assert places and all(len(one.pin) == 32 for one in places)
