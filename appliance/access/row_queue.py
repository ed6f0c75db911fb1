"""Rows on their way into the store, a batch at a time: one that cannot be written takes no other with it.

What is wrong with one row fails its whole batch, so smaller ones find it, and it alone is given up. A store that is
away, busy or full says nothing about the rows: they stay where they were. So they do at a mistake of ours; but where it
is always the same row that runs into it, those behind it are worth more than that one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Generic, TypeVar

from appliance.errors import Conflict
from appliance.store.transaction import DRIVER_ERRORS
from est.errors import Refusal

Row = TypeVar("Row")
Answer = TypeVar("Answer")

ROW_ERRORS: Final = (Conflict, *DRIVER_ERRORS, OverflowError, ValueError)
"""What a row can be to blame for: a key that is there already, a constraint that does not hold, a kind of value that
the driver does not know, a number or a time that is out of range, a text that is not Unicode, NaN.

Where the database itself is away, busy or full, the store has said so in words of its own, which are none of these.
"""


class RowQueue(Generic[Row]):
    """Oldest first; with `room`, the oldest go where there is none left."""

    def __init__(self, *, page: int, on_given_up: Callable[[Row], None], room: int | None = None) -> None:
        """At most `page` rows make a batch. `on_given_up` is called while the row's error is handled."""
        self._waiting: deque[Row] = deque(maxlen=room)
        self._under_way: list[Row] = []
        self._full_page = self._page = page
        self._suspect: Row | None = None
        self._on_given_up = on_given_up
        self.done = 0
        """How many rows were written or given up."""

    def __len__(self) -> int:
        return len(self._under_way) + len(self._waiting)

    def __iter__(self) -> Iterator[Row]:
        """What is not known to be in the store."""
        yield from self._under_way
        yield from self._waiting

    def append(self, row: Row) -> None:
        """Queue one; never blocks, never fails."""
        self._waiting.append(row)

    def take(self, count: int) -> list[Row]:
        """Up to `count` of the oldest, which go elsewhere; not while a batch is being written."""
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    async def write_some(
        self, write: Callable[[list[Row]], Awaitable[Answer]], most: int | None = None
    ) -> tuple[list[Row], Answer] | None:
        """(rows that are written, what `write` answered), of one batch of up to `most`; None if nothing was written.

        Then either a row was given up, or the next batch is a smaller one. Only one call at a time. Raises what `write`
        raises and is not about a row; a row that alone ran into a mistake twice running is given up then.
        """
        count = min(self._page, len(self._waiting), self._page if most is None else most)
        batch = self._under_way = [self._waiting.popleft() for _ in range(count)]
        if not batch:
            return None
        try:
            answer = await write(batch)
        except ROW_ERRORS:
            if len(batch) > 1:
                self._page = len(batch) // 2
                self._put_back()
                return None
            self._on_given_up(batch[0])
            self._settle()
            return None
        except Refusal:
            self._put_back()
            raise
        except Exception:  # a mistake of ours: the caller hears of it, and smaller batches find who runs into it
            self._page = max(1, len(batch) // 2)
            if len(batch) == 1 and batch[0] is self._suspect:
                self._on_given_up(batch[0])
                self._settle()
            else:
                self._suspect = batch[0] if len(batch) == 1 else None
                self._put_back()
            raise
        self._settle()
        return batch, answer

    def _settle(self) -> None:
        self.done += len(self._under_way)
        self._under_way = []
        self._suspect = None
        self._page = min(self._full_page, 2 * self._page)

    def _put_back(self) -> None:
        """Before what came meanwhile, which stays: where there is no room, the oldest go."""
        batch, self._under_way = self._under_way, []
        if self._waiting.maxlen is not None:
            batch = batch[max(0, len(self) + len(batch) - self._waiting.maxlen) :]
        self._waiting.extendleft(reversed(batch))
