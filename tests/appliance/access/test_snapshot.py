"""The snapshot's mappings: a change costs the few, older ones keep what they had, and nothing is lost."""

from __future__ import annotations

from appliance.access.spread import PARTS, Spread


def test_a_changed_entry_is_found_changed_and_older_ones_keep_what_they_had():
    first = Spread({("aa", 1): "issued"})
    second = first.with_changes({("aa", 1): "revoked", ("aa", 2): "issued"})
    assert first.get(("aa", 1)) == "issued" and first.get(("aa", 2)) is None and len(first) == 1
    assert second[("aa", 1)] == "revoked" and len(second) == 2
    assert second.get(("bb", 1), "none") == "none" and ("bb", 1) not in second
    assert dict(second) == {("aa", 1): "revoked", ("aa", 2): "issued"}


def test_many_changes_lose_nothing_and_copy_only_what_they_touch():
    entries: Spread[int, int] = Spread()
    for number in range(3000):
        before = entries
        entries = entries.with_changes({number: number})
        assert sum(one is not two for one, two in zip(before._parts, entries._parts, strict=True)) == 1
    assert sorted(entries.values()) == list(range(3000))
    assert all(entries[number] == number for number in range(3000))


def test_one_that_is_taken_apart_is_freed_in_steps_and_leaves_others_alone():
    first = Spread({number: number for number in range(1000)})
    other = Spread(dict(first))
    assert sum(1 for _ in first.take_apart()) == PARTS
    assert len(first) == 0 and len(other) == 1000
