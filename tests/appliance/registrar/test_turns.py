"""One at a time per key."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import pytest

from appliance.registrar.turns import Turns


async def passes() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Device:
    """Says when it has its turn, and keeps it until it is told to end."""

    def __init__(self, turns: Turns, key: object, seen: list[str], name: str, *, fails: bool = False) -> None:
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._live(turns, key, seen, name, fails))

    async def _live(self, turns: Turns, key: object, seen: list[str], name: str, fails: bool) -> None:
        async with turns.of(key):
            seen.append(f"{name} begins")
            await self.end.wait()
            seen.append(f"{name} ends")
            if fails:
                raise ZeroDivisionError


def run(story: Callable[[Turns, list[str]], Awaitable[None]]) -> list[str]:
    turns, seen = Turns(), list[str]()
    asyncio.run(asyncio.wait_for(story(turns, seen), 10))
    gc.collect()
    assert not turns._locks, "a key that nobody wants is forgotten"
    return seen


def test_requests_of_one_device_come_one_after_the_other_in_their_order() -> None:
    async def story(turns: Turns, seen: list[str]) -> None:
        devices = [Device(turns, ("mf", 7), seen, name) for name in "abc"]
        for device in devices:
            await passes()
            device.end.set()
        await asyncio.gather(*(device.task for device in devices))

    assert run(story) == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]


def test_those_of_different_devices_do_not_wait_for_each_other() -> None:
    async def story(turns: Turns, seen: list[str]) -> None:
        one, other = Device(turns, 1, seen, "one"), Device(turns, 2, seen, "other")
        await passes()
        other.end.set()
        await other.task
        one.end.set()
        await one.task

    assert run(story) == ["one begins", "other begins", "other ends", "one ends"]


def test_nobody_comes_between_who_ends_and_who_waits() -> None:
    async def story(turns: Turns, seen: list[str]) -> None:
        first, second = Device(turns, 1, seen, "first"), Device(turns, 1, seen, "second")
        await passes()
        first.end.set()
        await first.task  # the second has the turn, and has not yet run
        third = Device(turns, 1, seen, "third")
        third.end.set()
        await passes()
        second.end.set()
        await asyncio.gather(second.task, third.task)

    assert run(story)[2:] == ["second begins", "second ends", "third begins", "third ends"]


def test_an_error_ends_a_turn_too() -> None:
    async def story(turns: Turns, seen: list[str]) -> None:
        bad, good = Device(turns, 1, seen, "bad", fails=True), Device(turns, 1, seen, "good")
        bad.end.set()
        good.end.set()
        with pytest.raises(ZeroDivisionError):
            await bad.task
        await good.task

    assert run(story)[-1] == "good ends"


def test_who_gives_up_waiting_is_passed_over() -> None:
    async def story(turns: Turns, seen: list[str]) -> None:
        first, gone, last = (Device(turns, 1, seen, name) for name in ("first", "gone", "last"))
        await passes()
        gone.task.cancel()
        await passes()
        last.end.set()
        first.end.set()
        await asyncio.gather(first.task, last.task)

    assert run(story) == ["first begins", "first ends", "last begins", "last ends"]


def test_who_gives_up_at_the_moment_that_its_turn_comes_passes_it_on() -> None:
    async def story(turns: Turns, seen: list[str]) -> None:
        async with turns.of(1):
            gone, last = Device(turns, 1, seen, "gone"), Device(turns, 1, seen, "last")
            last.end.set()
            await passes()
        gone.task.cancel()  # it has the turn and has not yet run
        await last.task
        with pytest.raises(asyncio.CancelledError):
            await gone.task

    assert run(story) == ["last begins", "last ends"]
