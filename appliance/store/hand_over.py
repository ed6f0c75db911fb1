"""HandOver: one thread gives work to another that waits for it, without both wanting the interpreter at once.

Whoever puts into a queue goes on holding the interpreter, so the thread that wakes has to wait for it, which is two
switches of threads for nothing. A pipe is written to with the interpreter let go: the one who wakes takes it at once.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class HandOver(Generic[T]):
    """A queue of one putting and one taking thread; close() when the taking one has ended."""

    def __init__(self) -> None:
        self._things: deque[T | None] = deque()
        self._reading, self._writing = os.pipe()

    def put(self, thing: T | None) -> None:
        """Add to the end of the queue, and wake who waits for it."""
        self._things.append(thing)
        os.write(self._writing, b"1")

    def get(self) -> T | None:
        """The next thing, waiting for it."""
        os.read(self._reading, 1)
        return self._things.popleft()

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._reading)
        os.close(self._writing)
