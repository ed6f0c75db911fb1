"""Accepts on their way into the table of live sessions: each is here until it is there.

One batch at a time is written, so a later accept of a station never comes before an earlier one, also where the store
refused the first attempt. The batch belongs to nobody who waits for it: a caller that gives up stops nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

from appliance.access import session_table
from appliance.access.assumed import Accepted, key_of
from appliance.access.row_queue import RowQueue
from appliance.store.sessions import Session
from appliance.store.store import Store

_log = logging.getLogger(__name__)
PAGE = 500


class AcceptQueue:
    """Oldest first; `on_outdated` gets the sessions of those that were outdated when they came."""

    def __init__(self, store: Store, on_outdated: Callable[[list[Session]], Awaitable[None]]) -> None:
        self._store = store
        self._on_outdated = on_outdated
        self._rows: RowQueue[Accepted] = RowQueue(page=PAGE, on_given_up=_tell)
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Accepted]:
        """What is not known to be in the table."""
        return iter(self._rows)

    def append(self, accepted: Accepted) -> None:
        """Queue one; flush() writes it."""
        self._rows.append(accepted)

    async def flush(self) -> None:
        """When this returns, what was queued before is in the table, whoever wrote it."""
        wanted = self._rows.done + len(self._rows)
        while self._rows.done < wanted:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._write())
            await asyncio.shield(self._task)

    async def _write(self) -> None:
        written = await self._rows.write_some(self._into_table)
        if written is None:
            return
        outdated = [session for told, session in zip(*written, strict=True) if told.is_outdated]
        if outdated:
            await self._on_outdated(outdated)

    async def _into_table(self, batch: list[Accepted]) -> list[Session]:
        return await self._store.write(lambda tx: [session_table.accept(tx, *one[:3]) for one in batch])


def _tell(accepted: Accepted) -> None:
    _log.exception("event=session-not-written station=%r", key_of(accepted.decision.request))
