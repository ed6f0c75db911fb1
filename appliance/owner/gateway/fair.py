"""Fair turns: between proxies one after the other, within a proxy renewals before first issues, then by age (A-98).

Pure: whoever uses it keeps what is waiting somewhere safe.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of many keys; each turn takes one item of the next key."""

    def __init__(self) -> None:
        self._turns: deque[str] = deque()
        self._items: dict[str, tuple[deque[T], deque[T]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, key: str, item: T, *, urgent: bool = False) -> None:
        """Put an item at the end of its key's line; urgent ones have a line of their own, which comes first."""
        lines = self._items.get(key)
        if lines is None:
            lines = self._items[key] = (deque(), deque())
            self._turns.append(key)
        lines[0 if urgent else 1].append(item)
        self._size += 1

    def pop(self) -> T | None:
        """The next item; None when there is none."""
        if not self._turns:
            return None
        key = self._turns.popleft()
        urgent, plain = self._items[key]
        item = (urgent or plain).popleft()
        if urgent or plain:
            self._turns.append(key)
        else:
            del self._items[key]
        self._size -= 1
        return item


def in_turns(items: Iterable[T], key: Callable[[T], str], urgent: Callable[[T], bool]) -> list[T]:
    """All items in the order in which they have their turns; they come in by age."""
    queue: FairQueue[T] = FairQueue()
    for one in items:
        queue.push(key(one), one, urgent=urgent(one))
    found: list[T] = []
    while (item := queue.pop()) is not None:
        found.append(item)
    return found


class FairSlots:
    """A number of places, given out in fair turns."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @contextlib.asynccontextmanager
    async def place(self, key: str, *, urgent: bool) -> AsyncIterator[None]:
        """A place while inside; waits for it."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.push(key, turn, urgent=urgent)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while (turn := self._waiting.pop()) is not None:
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
