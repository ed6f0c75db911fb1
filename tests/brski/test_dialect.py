"""Dialects: names, text form, strict by default."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brski.dialect import STRICT, SWITCHES, Dialect, read_dialect, write_dialect
from brski.errors import DialectUnknown

dialects = st.builds(Dialect, **{one.name: st.booleans() for one in fields(Dialect)})


@given(dialects)
def test_dialects_survive_writing_and_reading(dialect: Dialect) -> None:
    assert read_dialect(write_dialect(dialect)) == dialect


def test_every_switch_has_a_meaning_and_nothing_else_has() -> None:
    assert list(SWITCHES) == [one.name.replace("_", "-") for one in fields(Dialect)]


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_nothing_written_is_the_strict_dialect(text: str) -> None:
    assert read_dialect(text) == STRICT == Dialect()


def test_order_and_blanks_do_not_matter() -> None:
    assert read_dialect(" legacy-key , base64-bodies") == Dialect(base64_bodies=True, legacy_key=True)


@pytest.mark.parametrize("text", ["base64", "legacy_key", "LEGACY-KEY", "legacy-key,", ",", "legacy-key;base64-bodies"])
def test_unknown_switch_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(DialectUnknown) as refused:
        read_dialect(text)
    assert refused.value.fields["known"] == list(SWITCHES)
