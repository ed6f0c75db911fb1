"""Those who are on the way together take each step together; whoever is alone waits for nobody."""

from __future__ import annotations

import asyncio

from appliance.cohort import Cohort, Way


def go(names: str, fail: str = "", cancel: str = "") -> tuple[list[str], list[object]]:
    """Everybody at once on a way of three steps: who was where, in order, and what became of each."""
    cohort, seen = Cohort(), []

    def way(name: str) -> Way[str]:
        try:
            for step in range(3):
                seen.append(f"{name}{step}")
                if step and name in fail:
                    raise ValueError(name)
                if step and name in cancel:
                    tasks[names.index(name)].cancel()
                yield
            return name.upper()
        finally:
            seen.append(f"{name}-")

    async def one(name: str) -> str:
        with cohort:
            await asyncio.sleep(0)  # until all are in
            return await cohort.run(way(name))

    async def story() -> list[object]:
        tasks.extend(asyncio.ensure_future(one(name)) for name in names)
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    tasks: list[asyncio.Future[str]] = []
    return seen, asyncio.run(story())


def test_each_step_is_taken_by_all_before_anybody_takes_the_next() -> None:
    seen, ends = go("abc")
    assert seen == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a-", "b-", "c-"]
    assert ends == ["A", "B", "C"]


def test_who_is_alone_goes_the_whole_way_at_once() -> None:
    assert go("a") == (["a0", "a1", "a2", "a-"], ["A"])


def test_what_stops_one_of_them_stops_nobody_else() -> None:
    seen, ends = go("abc", fail="a", cancel="b")
    assert [type(one) for one in ends] == [ValueError, asyncio.CancelledError, str]
    assert seen == ["a0", "b0", "c0", "a1", "a-", "b1", "c1", "b-", "c2", "c-"]


def test_who_has_left_is_not_waited_for_however_it_left() -> None:
    seen: list[str] = []

    def way(name: str) -> Way[None]:
        for step in range(2):
            seen.append(f"{name}{step}")
            yield

    async def fails(cohort: Cohort) -> None:
        with cohort:
            await asyncio.sleep(0)
            raise ValueError("refused")

    async def story() -> None:
        cohort = Cohort()
        await asyncio.gather(fails(cohort), fails(cohort), return_exceptions=True)
        with cohort:
            alone = cohort.run(way("a"))
            try:
                alone.send(None)
            except StopIteration:
                seen.append("end")

    asyncio.run(story())
    assert seen == ["a0", "a1", "end"]
