"""Requests that are under way together take each step one after the other, and not one request all its steps.

A step's code and constants fill a good part of a processor's caches, an issuance's many times those. Taken by one
request after the other, a step finds there what it needs; a request that runs through finds what the others left. The
event loop serves whoever waits in turn, so giving way between steps is all that it takes (cohort scheduling: Larus and
Parkes, USENIX 2002).
"""

from __future__ import annotations

import asyncio


class Cohort:
    """Those who are on the same way at this time; a `with` around the way, `step` between its steps."""

    __slots__ = ("_size",)

    def __init__(self) -> None:
        self._size = 0

    def __enter__(self) -> None:
        self._size += 1

    def __exit__(self, *_: object) -> None:
        self._size -= 1

    async def step(self) -> None:
        """Let the others come as far; returns at once where there are none. Anything may have changed meanwhile."""
        if self._size > 1:
            await asyncio.sleep(0)
