"""Those who are on the way together take each step together; whoever is alone waits for nobody."""

from __future__ import annotations

import asyncio

import pytest

from appliance.cohort import Cohort


def walk(names: str, steps: int = 3) -> list[str]:
    """Everybody at once through so many steps: who was where, in order."""
    cohort, seen = Cohort(), []

    async def one(name: str) -> None:
        with cohort:
            await asyncio.sleep(0)  # until all are in
            for step in range(steps):
                seen.append(f"{name}{step}")
                await cohort.step()

    async def story() -> None:
        await asyncio.gather(*map(one, names))

    asyncio.run(story())
    return seen


def test_each_step_is_taken_by_all_before_anybody_takes_the_next() -> None:
    assert walk("abc") == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_who_is_alone_does_not_give_way() -> None:
    cohort = Cohort()
    with cohort, pytest.raises(StopIteration):
        cohort.step().send(None)


def test_who_has_left_is_not_waited_for_however_it_left() -> None:
    async def story() -> None:
        cohort = Cohort()

        async def fails() -> None:
            with cohort:
                await cohort.step()
                raise ValueError("refused")

        results = await asyncio.gather(fails(), fails(), return_exceptions=True)
        assert [type(one) for one in results] == [ValueError, ValueError]
        with cohort, pytest.raises(StopIteration):
            cohort.step().send(None)

    asyncio.run(story())
