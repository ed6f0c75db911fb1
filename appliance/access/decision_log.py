"""The decision log's writer: decisions are queued in memory and written in batches, never on the decision path.

In a storm the store is left alone: its writer would take from the decisions the processor that they lack. Rows then go
to a journal, and from there into the store when the storm is over; whatever is decided before that is done goes behind
them, so the log is in the order of the decisions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from appliance.access.decision_rows import newest_accepts, row_of
from appliance.access.repeats import Repeats
from appliance.access.row_journal import RowJournal, line_of
from appliance.access.row_queue import RowQueue
from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.store import decisions, meta
from appliance.store.columns import to_micros
from appliance.store.store import Store
from appliance.store.transaction import Tx
from radius import Decision

_log = logging.getLogger(__name__)

MAX_QUEUED = 20_000
MAX_BATCH = 250
"""Other transactions wait for as many rows at most."""
BATCH_SECONDS = 0.5
PRUNE_SECONDS = 600.0
CALM_SECONDS = 1.0
"""A storm that is over for so long does not come again at once."""
_AT_ONCE = 50
_MARK = "decisions_journal"
"""How much of which journal is in the log."""


class DecisionLog:
    """Takes decisions at once and writes them soon; when the store is away it keeps the newest MAX_QUEUED."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        keep_days: int,
        keep_rows: int,
        journal: Path | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        """`journal`: the file for rows that the store is spared, without one it is not; it leaves so much disk free."""
        self._store = store
        self._clock = clock
        self._keep = timedelta(days=keep_days)
        self._keep_rows = keep_rows
        self._queue: RowQueue[tuple[Any, ...]] = RowQueue(page=MAX_BATCH, room=MAX_QUEUED, on_given_up=_tell)
        self._journal = RowJournal(journal, width=len(decisions.COLUMNS), room=MAX_QUEUED, reserve_bytes=reserve_bytes)
        self._from_journal: RowQueue[tuple[int, tuple[Any, ...]]] = RowQueue(page=MAX_BATCH, on_given_up=_tell)
        """Out of the journal, each with the place behind it."""
        self._is_opened = journal is None
        self._spared_until = self._saved_at = float("-inf")
        self._turn = asyncio.Lock()
        self._repeats = Repeats()
        self._pruned_at = float("-inf")
        self.is_storm: Callable[[], bool] = _never
        """Whether the store is to be left alone; asked at every decision."""
        self.on_written: Callable[[], None] = lambda: None
        """Called when rows were written."""

    def put(self, decision: Decision) -> None:
        """Queue one decision; never blocks, never fails."""
        self._add(row_of(decision, self._clock.now()))

    def _add(self, row: tuple[Any, ...]) -> None:
        if self._journal.is_used or self.is_storm():
            self._journal.put(row)
        else:
            self._queue.append(row)

    def put_failure(self, decision: Decision, times: int = 1) -> None:
        """Queue a login that ended before policy, or count it with those like it; never blocks, never fails."""
        if self._repeats.is_news(decision, self._clock.monotonic(), times):
            self._add(row_of(decision, self._clock.now()))

    async def run(self) -> None:
        """Writes batches until cancelled; what is queued then is written by flush()."""
        while True:
            await asyncio.sleep(BATCH_SECONDS)
            try:
                self.tell_repeats()
                if self._queue or self._journal.is_used:
                    await self.flush()
                if self._clock.monotonic() - self._pruned_at > PRUNE_SECONDS and not self._is_store_spared():
                    self._pruned_at = self._clock.monotonic()
                    await self.prune()
            except ApplianceError as refused:
                _log.warning("decision log not written: %s", refused.detail)
                await asyncio.sleep(1.0)

    def tell_repeats(self, *, everything: bool = False) -> None:
        """Queue rows for failures that came again, of the minutes that are over."""
        for decision, times in self._repeats.due(self._clock.monotonic(), everything=everything):
            self._add(row_of(decision, self._clock.now(), times))

    async def prune(self) -> None:
        """Delete what is too old, and the oldest of what is too much, a few rows at a time."""
        before = self._clock.now() - self._keep
        left = 1
        while left:
            left = await self._store.write(lambda tx: decisions.prune(tx, before, keep_rows=self._keep_rows))

    async def flush(self, *, even_in_a_storm: bool = False) -> None:
        """Writes everything that is queued now; when this returns it is in the log, whoever wrote it.

        What is decided meanwhile waits for the next turn: a commit for every handful costs more than the decisions. A
        caller that gives up stops nothing. In a storm it is in the journal then, but for who asks for more.
        """
        await asyncio.shield(asyncio.ensure_future(self._write(even_in_a_storm)))

    @property
    def is_behind(self) -> bool:
        """Whether rows of a storm may be missing in the log yet."""
        return self._journal.is_used

    async def left_behind(self, since: datetime) -> list[dict[str, Any]]:
        """Of each station the newest row in the journal that let it in, oldest first, as the store would have it.

        For the time before the first decision. Some of them may be in the log as well.
        """
        return await asyncio.to_thread(lambda: newest_accepts(self._journal.left_behind(), to_micros(since)))

    def close(self) -> None:
        """Nothing is written any more; what is in the journal is for the next process."""
        self._journal.close()

    async def _write(self, even_in_a_storm: bool) -> None:
        async with self._turn:
            if not self._is_opened:
                await self._journal.open(await self._store.read(partial(meta.get, key=_MARK)))
                self._is_opened = True
            if not even_in_a_storm and self._is_store_spared():
                await self._spare()
                return
            await self._save()
            await self._write_queued()
            if self._journal.is_used:
                await self._write_journal(even_in_a_storm)
                await self._write_queued()

    def _is_store_spared(self) -> bool:
        now = self._clock.monotonic()
        if self.is_storm():
            self._spared_until = now + CALM_SECONDS
        return now < self._spared_until and self._journal.takes_more

    async def _spare(self) -> None:
        """Everything into the journal, what was queued when the storm began before all others."""
        if self._queue and not self._journal.has_file:
            self._journal.is_used = True
            older: list[bytes] = []
            while self._queue:
                older += [line_of(row) for row in self._queue.take(_AT_ONCE)]
                await asyncio.sleep(0)
            self._journal.put_before(older)
        await self._save()

    async def _save(self) -> None:
        self._saved_at = self._clock.monotonic()
        await self._journal.save()

    async def _write_queued(self) -> None:
        """What is queued now; all of it where later rows wait behind it in the journal."""
        wanted = self._queue.done + len(self._queue)
        while self._queue and ((left := wanted - self._queue.done) > 0 or self._journal.is_used):
            if await self._queue.write_some(self._into_log, left if left > 0 else None):
                self.on_written()

    async def _write_journal(self, even_in_a_storm: bool) -> None:
        """What is in the journal, until nothing is or the next storm begins; when nothing is, away with it."""
        while even_in_a_storm or not self._is_store_spared():
            if not self._from_journal:
                for found in await self._journal.take(MAX_BATCH):
                    self._from_journal.append(found)
                if not self._from_journal:
                    await self._end_journal()
                    return
            if await self._from_journal.write_some(self._out_of_journal):
                self.on_written()
            is_due = self._clock.monotonic() - self._saved_at > BATCH_SECONDS
            if is_due and not self._journal.is_at_end:  # the rest takes its time, and the process may die
                await self._save()

    async def _end_journal(self) -> None:
        """What waits for the file is queued instead, and what is decided from now on behind it."""
        while self._journal.waiting > _AT_ONCE:
            self._queue_waiting()
            await asyncio.sleep(0)
        self._queue_waiting()
        await self._journal.end()

    def _queue_waiting(self) -> None:
        for row in self._journal.take_waiting(_AT_ONCE):
            self._queue.append(row)

    async def _into_log(self, batch: list[tuple[Any, ...]]) -> None:
        await self._store.write(lambda tx: decisions.add(tx, batch))

    async def _out_of_journal(self, batch: list[tuple[int, tuple[Any, ...]]]) -> None:
        mark = self._journal.mark(batch[-1][0])

        def write(tx: Tx) -> None:
            decisions.add(tx, [row for _, row in batch])
            meta.put(tx, _MARK, mark)

        await self._store.write(write)


def _never() -> bool:
    return False


def _tell(row: tuple[Any, ...]) -> None:
    _log.exception("event=decision-not-written")
