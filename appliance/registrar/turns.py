"""One at a time per key: requests of one device queue behind each other, those of different devices do not."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Hashable

_Waiting = deque[asyncio.Future[None]]


class Turns:
    """Who has the turn of a key, and who waits for it, first come first served."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, _Waiting] = {}
        """A key is in it while somebody has its turn."""

    def of(self, key: Hashable) -> Turn:
        """The turn of `key`, for one `async with`."""
        return Turn(self._waiting, key)


class Turn:
    """One caller's. Nearly always nobody else wants it: then it costs next to nothing, as a lock per key would not."""

    __slots__ = ("_key", "_waiting")

    def __init__(self, waiting: dict[Hashable, _Waiting], key: Hashable) -> None:
        self._waiting = waiting
        self._key = key

    async def __aenter__(self) -> None:
        waiting = self._waiting.get(self._key)
        if waiting is None:
            self._waiting[self._key] = deque()
            return
        mine = asyncio.get_running_loop().create_future()
        waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                with contextlib.suppress(ValueError):
                    waiting.remove(mine)
            else:  # it came, and whoever waited for it has gone
                self._pass_on()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        """To the first who still waits; the key stays taken meanwhile, so nobody comes between."""
        waiting = self._waiting[self._key]
        while waiting:
            first = waiting.popleft()
            if not first.done():
                first.set_result(None)
                return
        del self._waiting[self._key]
