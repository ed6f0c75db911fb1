"""HandOver: everything arrives once and in order, whoever waits for it is woken, and nothing of it stays open."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from appliance.store.hand_over import HandOver


def test_things_arrive_in_order_in_a_thread_that_waited_for_them() -> None:
    given: HandOver[int] = HandOver()
    taken: list[int] = []

    def take() -> None:
        while (one := given.get()) is not None:
            taken.append(one)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    for one in range(1000):
        given.put(one)
    given.put(None)
    taker.join(10)
    assert not taker.is_alive()
    assert taken == list(range(1000))
    given.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
def test_its_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    given: HandOver[int] = HandOver()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    given.close()
    assert len(os.listdir("/proc/self/fd")) == before
