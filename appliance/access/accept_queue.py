"""Accepts on their way into the table of live sessions: each is here until it is there.

One batch at a time is written, so a later accept of a station never comes before an earlier one, also where the store
refused the first attempt. The batch belongs to nobody who waits for it: a caller that gives up stops nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

from appliance.access import session_table
from appliance.access.assumed import Accepted, key_of
from appliance.errors import DiskFull, StoreBusy, StoreUnavailable
from appliance.store.sessions import Session
from appliance.store.store import Store
from appliance.store.transaction import Tx

_log = logging.getLogger(__name__)
PAGE = 500


class AcceptQueue:
    """Oldest first; `on_outdated` gets the sessions of those that were outdated when they came."""

    def __init__(self, store: Store, on_outdated: Callable[[list[Session]], Awaitable[None]]) -> None:
        self._store = store
        self._on_outdated = on_outdated
        self._waiting: deque[Accepted] = deque()
        self._under_way: list[Accepted] = []
        self._written = 0
        self._page = PAGE
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Accepted]:
        """What is not known to be in the table."""
        yield from self._under_way
        yield from self._waiting

    def append(self, accepted: Accepted) -> None:
        """Queue one; flush() writes it."""
        self._waiting.append(accepted)

    async def flush(self) -> None:
        """When this returns, what was queued before is in the table, whoever wrote it."""
        wanted = self._written + len(self._under_way) + len(self._waiting)
        while self._written < wanted:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._write())
            await asyncio.shield(self._task)

    async def _write(self) -> None:
        batch = self._under_way = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._page))]

        def store(tx: Tx) -> list[Session]:
            return [session_table.accept(tx, *one[:3]) for one in batch]

        try:
            found = await self._store.write(store)
        except (StoreBusy, StoreUnavailable, DiskFull):
            self._put_back()
            raise
        except Exception:  # noqa: BLE001 - smaller batches find the one that cannot be written; it alone is given up
            if len(batch) > 1:
                self._page = len(batch) // 2
                self._put_back()
                return
            _log.exception("event=session-not-written station=%r", key_of(batch[0].decision.request))
            found = []
        self._under_way = []
        self._written += len(batch)
        self._page = min(PAGE, 2 * self._page)
        outdated = [one for one, told in zip(found, batch, strict=False) if told.is_outdated]
        if outdated:
            await self._on_outdated(outdated)

    def _put_back(self) -> None:
        self._waiting.extendleft(reversed(self._under_way))
        self._under_way = []
