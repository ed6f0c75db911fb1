"""JSON text as it is kept and signed: never another one than the standard library's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from est.json_text import encoder_of


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
    st.booleans(),
    st.booleans(),
)
def test_json_text_is_what_the_standard_library_writes(value: object, sort_keys: bool, ensure_ascii: bool) -> None:
    encode = encoder_of(sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    try:
        expected = json.dumps(
            value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=ensure_ascii, allow_nan=False
        )
    except ValueError:
        with pytest.raises(ValueError):
            encode(value)
    else:
        assert encode(value) == expected
