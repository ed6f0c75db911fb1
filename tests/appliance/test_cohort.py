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


def test_a_way_that_makes_its_own_waiter_go_holds_up_nobody() -> None:
    seen: list[str] = []

    def cancels(task: list[asyncio.Task[None]], *, at_the_end: bool) -> Way[None]:
        try:
            yield
            task[0].cancel()
            if not at_the_end:
                yield
        finally:
            if not at_the_end:
                raise ValueError("it cannot be left in peace")

    def walks(name: str) -> Way[None]:
        for step in range(4):
            seen.append(f"{name}{step}")
            yield

    async def one(cohort: Cohort, way: Way[None]) -> None:
        with cohort:
            await asyncio.sleep(0)  # until all are in
            await cohort.run(way)

    async def story(*, at_the_end: bool) -> None:
        cohort, task = Cohort(), list[asyncio.Task[None]]()
        task.append(asyncio.create_task(one(cohort, cancels(task, at_the_end=at_the_end))))
        others = [asyncio.create_task(one(cohort, walks(name))) for name in "ab"]
        await asyncio.wait_for(asyncio.gather(*others), 5)
        assert task[0].cancelled()

    for at_the_end in (True, False):
        seen.clear()
        asyncio.run(story(at_the_end=at_the_end))
        assert seen == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


def test_a_loop_that_ended_on_the_way_leaves_nobody_waiting_on_the_next() -> None:
    cohort = Cohort()

    def way() -> Way[int]:
        yield
        yield
        return 7

    async def one() -> int:
        with cohort:
            await asyncio.sleep(0)  # until all are in
            return await cohort.run(way())

    async def both() -> list[int]:
        return await asyncio.wait_for(asyncio.gather(one(), one()), 5)

    loop = asyncio.new_event_loop()
    begun = [loop.create_task(one()) for _ in range(2)]
    for _ in range(2):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert not any(task.done() for task in begun)
    loop.close()
    assert asyncio.run(both()) == [7, 7]
