"""Token buckets: the average holds, bursts are allowed, memory is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.web.limits import Bucket, Gcra


def test_a_burst_passes_and_then_the_average_holds() -> None:
    buckets = Gcra(Bucket(5, 20))
    assert sum(buckets.take("a", 100.0) == 0 for _ in range(50)) == 20
    assert sum(buckets.take("a", 101.0) == 0 for _ in range(50)) == 5
    assert sum(buckets.take("a", 1000.0) == 0 for _ in range(50)) == 20


def test_the_wait_it_names_is_enough() -> None:
    buckets = Gcra(Bucket(2, 3))
    while not (wait := buckets.take("a", 10.0)):
        pass
    assert buckets.take("a", 10.0 + wait * 0.9) > 0
    assert buckets.take("a", 10.0 + wait) == 0


def test_keys_do_not_disturb_each_other() -> None:
    buckets = Gcra(Bucket(1, 1))
    assert [buckets.take(key, 5.0) == 0 for key in "abcab"] == [True, True, True, False, False]


def test_memory_is_bounded_and_full_buckets_make_room() -> None:
    buckets = Gcra(Bucket(1, 1), max_keys=100)
    for number in range(1000):
        buckets.take(f"early {number}", 10.0)
    assert len(buckets) <= 100
    assert buckets.take("late", 10.0) > 0
    assert buckets.take("late", 12.0) == 0
    assert len(buckets) <= 100


@given(
    st.floats(0.1, 100),
    st.integers(1, 50),
    st.lists(st.floats(0, 5), min_size=1, max_size=100),
)
def test_never_more_than_burst_and_average_get_through(per_second: float, burst: int, gaps: list[float]) -> None:
    buckets = Gcra(Bucket(per_second, burst))
    now, passed = 1000.0, 0
    for gap in gaps:
        now += gap
        passed += buckets.take("a", now) == 0
        assert passed <= burst + (now - 1000.0) * per_second + 1e-3
