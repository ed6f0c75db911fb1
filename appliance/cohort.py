"""Requests that are under way together take each step one after the other, and not one request all its steps.

A step's code and constants fill a good part of a processor's caches, an issuance's many times those. Taken by one
request after the other, a step finds there what it needs; a request that runs through finds what the others left
(cohort scheduling: Larus and Parkes, USENIX 2002).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
Way = Generator[None, None, T]
"""Steps without a wait, with a `yield` between them, and what comes out at the end."""


class Cohort:
    """Those who are on the same way at this time; a `with` around all of their work, `run` inside it."""

    __slots__ = ("_loop", "_size", "_walking")

    def __init__(self) -> None:
        self._size = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._walking: list[tuple[Way[Any], asyncio.Future[Any]]] = []

    def __enter__(self) -> None:
        self._size += 1

    def __exit__(self, *_: object) -> None:
        self._size -= 1

    async def run(self, way: Way[T]) -> T:
        """Go a way, each step in turn with the others; raises what it raises. Alone, all its steps are gone at once.

        Anything may have changed from one step to the next.

        One callback of the event loop takes everybody's step. Were each of them a task that gives way, the loop would
        come and go for each step, which costs a good part of what many of the steps do. Steps run in the context of
        whoever came first, so they use no context variables.
        """
        if self._size <= 1:
            while True:
                try:
                    next(way)
                except StopIteration as last:
                    found: T = last.value
                    return found
        loop = asyncio.get_running_loop()
        end: asyncio.Future[T] = loop.create_future()
        if not self._walking or self._loop is not loop:  # who was under way on a loop that has ended is gone with it
            self._walking, self._loop = [], loop
            loop.call_soon(self._walk, loop)
        self._walking.append((way, end))
        return await end

    def _walk(self, loop: asyncio.AbstractEventLoop) -> None:
        """One step of everybody who is on the way."""
        walking, self._walking = self._walking, []
        for way, end in walking:
            if end.done():  # whoever waited for it has gone
                _leave(way)
                continue
            try:
                next(way)
            except StopIteration as last:
                if not end.done():  # it may have made its own waiter go
                    end.set_result(last.value)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for who waits
                if not end.done():
                    end.set_exception(error)
            else:
                self._walking.append((way, end))
        if self._walking:
            loop.call_soon(self._walk, loop)


def _leave(way: Way[Any]) -> None:
    try:
        way.close()
    except Exception:  # noqa: BLE001 - supervisor: the others go on
        _log.exception("event=way-not-left")
