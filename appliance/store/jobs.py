"""What waits for the writer, and whom it tells: functions with their futures, subscribers with their loops."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.cohort import Way
from appliance.store.transaction import OutboxRow, Tx

_log = logging.getLogger(__name__)


class Answerable(Protocol):
    """The two ways a future is settled; asyncio's and the thread's both fit."""

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...

    def done(self) -> bool: ...


@dataclass(slots=True)
class Job:
    """One function that waits for its transaction, which it takes in steps."""

    function: Callable[[Tx], Way[Any]]
    loop: asyncio.AbstractEventLoop | None
    future: Answerable
    essential: bool = False
    quick: bool = False
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Who hears of committed outbox rows, and on which loop (None: on the thread that ends the group)."""

    callback: Callable[[list[OutboxRow]], None]
    loop: asyncio.AbstractEventLoop | None


def deliver(callbacks: list[Callable[[list[OutboxRow]], None]], emitted: list[OutboxRow], jobs: list[Job]) -> None:
    """Tell subscribers first, then whoever asked."""
    for callback in callbacks:
        try:
            callback(emitted)
        except Exception:  # noqa: BLE001 - supervisor: one subscriber's fault is not another's
            _log.exception("event=subscriber-failed")
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


Delivery = tuple[list[Callable[[list[OutboxRow]], None]], list[OutboxRow], list[Job]]


class Deliveries:
    """What has to be told to whom, loop by loop, in the order of the commits.

    Two threads end groups, and between a COMMIT and the call to a loop one may overtake the other. So a group is
    added while the writer's lock is held; whichever call comes to the loop first tells everything that waits there.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop | None, deque[Delivery]] = {}
        self._without_loop = threading.Lock()

    def add(
        self, subscribers: Sequence[Subscriber], emitted: list[OutboxRow], group: list[Job]
    ) -> Iterable[asyncio.AbstractEventLoop | None]:
        """Append a group's outcome; answers the loops for which run() must be called, in this order.

        Subscribers without a loop are told by whoever calls, so they come first: they hear before the group's callers,
        unless another thread is telling an earlier group at that moment.
        """
        told = subscribers if emitted else ()
        loops = {one.loop: None for one in told} | {job.loop: None for job in group}
        for loop in loops:
            callbacks = [one.callback for one in told if one.loop is loop]
            jobs = [job for job in group if job.loop is loop]
            self._waiting.setdefault(loop, deque()).append((callbacks, emitted, jobs))
        return sorted(loops, key=lambda loop: loop is not None)

    def run(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """On that loop, or on any thread for those without one: tell what waits."""
        waiting = self._waiting.get(loop, ())
        if loop is not None:
            self._tell(waiting)
            return
        while waiting and self._without_loop.acquire(blocking=False):  # else: the thread that has it looks once more
            try:
                self._tell(waiting)
            finally:
                self._without_loop.release()

    def drop(self, loop: asyncio.AbstractEventLoop | None) -> int:
        """Forget what waits for a loop that is closed; answers for how many functions."""
        return sum(len(jobs) for _, _, jobs in self._waiting.pop(loop, ()))

    @staticmethod
    def _tell(waiting: deque[Delivery] | tuple[()]) -> None:
        while waiting:
            deliver(*waiting.popleft())
