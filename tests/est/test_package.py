"""The package's front: the example in its docstring runs, every public name exists, every leaf has its own reason."""

from __future__ import annotations

import doctest

import est
from est import errors


def leaves(base: type[errors.Refusal]) -> set[type[errors.Refusal]]:
    found = {one for one in base.__subclasses__() if one.__module__ == "est.errors"}
    return found | {leaf for one in found for leaf in leaves(one)}


def test_the_example_in_the_docstring_runs() -> None:
    result = doctest.testmod(est)
    assert result.attempted > 5
    assert result.failed == 0


def test_every_public_name_exists() -> None:
    assert [name for name in est.__all__ if not hasattr(est, name)] == []


def test_every_leaf_is_public_has_its_own_reason_and_stands_in_the_tree() -> None:
    found = leaves(errors.Refusal) - {errors.EstError}
    reasons = [leaf.reason for leaf in found]
    assert len(set(reasons)) == len(reasons) > 20
    for leaf in found:
        assert leaf.__name__ in est.__all__
        assert f" {leaf.__name__} " in (errors.__doc__ or "")
        assert leaf.__doc__
        assert str(leaf("why", field=1)) == "why"


def test_the_bases_are_never_raised() -> None:
    for base in (errors.Refusal, errors.EstError):
        try:
            base("no")
        except TypeError:
            continue
        raise AssertionError(base)
