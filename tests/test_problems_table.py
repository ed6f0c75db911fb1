"""Every refusal has a status, a reason of its own and a meaning."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from appliance.web.problems import STATUS, all_leaves, status_of
from est.errors import Refusal

LEAVES = all_leaves()


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: f"{leaf.__module__}.{leaf.__qualname__}")
def test_every_refusal_has_a_status(leaf: type[Refusal]) -> None:
    status = status_of(leaf)
    assert status is not None, f"{leaf.reason}: add a row to appliance/web/statuses.py"
    assert status == 202 or 400 <= status <= 599


def test_no_two_refusals_share_a_reason() -> None:
    counted = Counter(leaf.reason for leaf in LEAVES)
    assert [reason for reason, times in counted.items() if times > 1] == []


def test_reasons_are_slugs_and_every_refusal_says_what_it_means() -> None:
    assert [leaf.reason for leaf in LEAVES if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", leaf.reason)] == []
    assert [leaf.__qualname__ for leaf in LEAVES if not leaf.__doc__] == []


def test_the_table_has_no_row_for_a_reason_that_nobody_has() -> None:
    assert sorted(STATUS.keys() - {leaf.reason for leaf in LEAVES}) == []
