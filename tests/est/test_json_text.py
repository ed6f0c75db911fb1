"""JSON text as it is kept and signed: what the standard library writes, but for the exponents of fractions."""

from __future__ import annotations

import json
import math
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from est.json_text import encoder_of

ODD = st.sampled_from(["\ud800", "\x7f", "\u2028"])
WITHOUT_FRACTIONS = st.none() | st.booleans() | st.integers() | st.text() | ODD


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner), max_leaves=10
    )


def written(value: object, **options: bool) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, **options)  # type: ignore[arg-type]


@given(nested(WITHOUT_FRACTIONS), st.booleans(), st.booleans())
def test_json_text_is_what_the_standard_library_writes(value: object, sort_keys: bool, ensure_ascii: bool) -> None:
    encode = encoder_of(sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    try:
        expected = written(value, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    except TypeError:  # names of two kinds cannot be sorted
        with pytest.raises(TypeError):
            encode(value)
    else:
        assert encode(value) == expected


@given(nested(WITHOUT_FRACTIONS | st.floats()))
def test_fractions_are_the_same_numbers_and_nothing_else_becomes_null(value: object) -> None:
    try:
        expected = written(value)
    except ValueError:
        with pytest.raises(ValueError, match="not JSON compliant"):
            encoder_of()(value)
    else:
        assert json.loads(encoder_of()(value)) == json.loads(expected)


def test_what_json_does_not_know_is_refused() -> None:
    encode = encoder_of(ensure_ascii=True)
    for value in (b"a", {1, 2}, object(), {"a": b"b"}, {(1, 2): 3}):
        with pytest.raises(TypeError):
            encode(value)
    for number in (math.nan, math.inf, -math.inf):
        for value in (number, {"a": number}, {"a": None, "b": number}, {"a": None, "b": [number]}):
            with pytest.raises(ValueError, match="not JSON compliant"):
                encode(value)
    assert encode({"a": None, "b": 1, "c": "d", "e": True}) == '{"a":null,"b":1,"c":"d","e":true}'
    assert encode([1e-7, 2.5, UUID(int=0)]) == '[1e-7,2.5,"00000000-0000-0000-0000-000000000000"]'
