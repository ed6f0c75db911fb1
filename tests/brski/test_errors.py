"""The tree of refusals."""

from __future__ import annotations

import re

import pytest

import brski
from brski import errors
from brski.errors import BrskiError

LEAVES = [value for value in vars(errors).values() if isinstance(value, type) and value.__base__ is BrskiError]


def test_every_leaf_is_exported_drawn_and_has_its_own_reason() -> None:
    assert len({leaf.reason for leaf in LEAVES}) == len(LEAVES) > 40
    for leaf in LEAVES:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", leaf.reason)
        assert getattr(brski, leaf.__name__) is leaf
        assert leaf.__name__ in brski.__all__
        assert re.search(rf"\b{leaf.__name__}\b", errors.__doc__ or ""), leaf
        assert leaf.__doc__


def test_base_is_abstract() -> None:
    with pytest.raises(TypeError):
        BrskiError("no")


def test_pending_says_how_long() -> None:
    pending = brski.VoucherPending("later", retry_after_seconds=5)
    assert pending.retry_after_seconds == pending.fields["retry_after_seconds"] == 5


def test_everything_exported_exists() -> None:
    for name in brski.__all__:
        assert hasattr(brski, name)
