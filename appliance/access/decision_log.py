"""The decision log's writer: decisions are queued in memory and written in batches, never on the decision path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from appliance.access.decision_rows import row_of
from appliance.access.repeats import Repeats
from appliance.access.row_queue import RowQueue
from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.store import decisions
from appliance.store.store import Store
from radius import Decision

_log = logging.getLogger(__name__)

MAX_QUEUED = 20_000
MAX_BATCH = 250
"""Other transactions wait for as many rows at most."""
BATCH_SECONDS = 0.5
PRUNE_SECONDS = 600.0


class DecisionLog:
    """Takes decisions at once and writes them soon; when the store is away it keeps the newest MAX_QUEUED."""

    def __init__(self, store: Store, clock: Clock, *, keep_days: int, keep_rows: int) -> None:
        self._store = store
        self._clock = clock
        self._keep = timedelta(days=keep_days)
        self._keep_rows = keep_rows
        self._queue: RowQueue[tuple[Any, ...]] = RowQueue(page=MAX_BATCH, room=MAX_QUEUED, on_given_up=_tell)
        self._turn = asyncio.Lock()
        self._repeats = Repeats()
        self._pruned_at = float("-inf")
        self.on_written: Callable[[], None] = lambda: None
        """Called when rows were written."""

    def put(self, decision: Decision) -> None:
        """Queue one decision; never blocks, never fails."""
        self._queue.append(row_of(decision, self._clock.now()))

    def put_failure(self, decision: Decision, times: int = 1) -> None:
        """Queue a login that ended before policy, or count it with those like it; never blocks, never fails."""
        if self._repeats.is_news(decision, self._clock.monotonic(), times):
            self._queue.append(row_of(decision, self._clock.now()))

    async def run(self) -> None:
        """Writes batches until cancelled; what is queued then is written by flush()."""
        while True:
            await asyncio.sleep(BATCH_SECONDS)
            try:
                self.tell_repeats()
                if self._queue:
                    await self.flush()
                if self._clock.monotonic() - self._pruned_at > PRUNE_SECONDS:
                    self._pruned_at = self._clock.monotonic()
                    await self.prune()
            except ApplianceError as refused:
                _log.warning("decision log not written: %s", refused.detail)
                await asyncio.sleep(1.0)

    def tell_repeats(self, *, everything: bool = False) -> None:
        """Queue rows for failures that came again, of the minutes that are over."""
        for decision, times in self._repeats.due(self._clock.monotonic(), everything=everything):
            self._queue.append(row_of(decision, self._clock.now(), times))

    async def prune(self) -> None:
        """Delete what is too old, and the oldest of what is too much, a few rows at a time."""
        before = self._clock.now() - self._keep
        left = 1
        while left:
            left = await self._store.write(lambda tx: decisions.prune(tx, before, keep_rows=self._keep_rows))

    async def flush(self) -> None:
        """Writes everything that is queued now; when this returns it is in the log, whoever wrote it.

        What is decided meanwhile waits for the next turn: a commit for every handful costs more than the decisions. A
        caller that gives up stops nothing.
        """
        await asyncio.shield(asyncio.ensure_future(self._write()))

    async def _write(self) -> None:
        async with self._turn:
            await self._write_queued()

    async def _write_queued(self) -> None:
        wanted = self._queue.done + len(self._queue)
        while self._queue and (left := wanted - self._queue.done) > 0:
            if await self._queue.write_some(self._into_log, left):
                self.on_written()

    async def _into_log(self, batch: list[tuple[Any, ...]]) -> None:
        await self._store.write(lambda tx: decisions.add(tx, batch))


def _tell(row: tuple[Any, ...]) -> None:
    _log.exception("event=decision-not-written")
