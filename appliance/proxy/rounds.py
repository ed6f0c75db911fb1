"""Trying every offer until one yields a valid voucher (RFC 8995, sections 4.1 and 5.1): staggered, independent.

Each offer has its own timer: tried once, then again after a pause that doubles up to an hour; a link that comes back
starts all of them anew. A dead or silent offer holds nobody up: the next attempt starts after `spacing` seconds at the
latest, also while others wait for an administrator, and offers that turn up later are taken in. Only so many attempts
are under way; where that is not enough, the one that has made no progress for longest gives way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from appliance.clock import Clock
from appliance.proxy.connection import Target
from appliance.proxy.errors import PeerUnreachable
from appliance.proxy.report import Reporter
from appliance.proxy.timing import Timing
from appliance.proxy.voucher_phase import Imprint
from brski.discovery import MAX_OFFERS, Offer, backoff_seconds, order
from est.errors import Refusal

Progress = Callable[[], None]
Attempt = Callable[[Target, Progress], Awaitable[Imprint]]
_Key = tuple[tuple[str, ...], int]


class Offers(Protocol):
    """Where offers come from: discovery, or one configured place. `changes` counts returns of a link."""

    @property
    def changes(self) -> int: ...

    def offers(self) -> Sequence[Offer]: ...

    async def wait(self, seconds: float | None) -> None: ...


@dataclass(slots=True)
class Timers:
    """When each offer may be tried again; monotonic seconds. Bounded: the oldest entries go first."""

    first_pause_seconds: float
    shortest_seconds: float = 0.0
    _failures: dict[_Key, tuple[int, float]] = field(default_factory=dict)

    def is_due(self, offer: Offer, now: float) -> bool:
        return now >= self._failures.get(_key(offer), (0, now))[1]

    def failed(self, offer: Offer, now: float) -> float:
        """Note a failure; the pause until the next try, seconds."""
        count = self._failures.pop(_key(offer), (0, 0.0))[0] + 1
        pause = max(self.shortest_seconds, backoff_seconds(count, first_seconds=self.first_pause_seconds))
        self._failures[_key(offer)] = (count, now + pause)
        while len(self._failures) > 4 * MAX_OFFERS:
            del self._failures[next(iter(self._failures))]
        return pause

    def failures(self, offer: Offer) -> int:
        return self._failures.get(_key(offer), (0, 0.0))[0]

    def next_due(self, offers: Sequence[Offer]) -> float | None:
        """The earliest time at which one of the offers may be tried again."""
        times = [self._failures[_key(offer)][1] for offer in offers if _key(offer) in self._failures]
        return min(times, default=None)

    def reset(self) -> None:
        """The link has changed: what failed before may work now (RFC 8995, section 4.1)."""
        self._failures.clear()


@dataclass(slots=True)
class _Running:
    offer: Offer
    progress: float


class Hunt:
    """Looks for one valid voucher among what `source` offers. `last` is the latest refusal that ended an attempt."""

    def __init__(
        self,
        source: Offers,
        attempt: Attempt,
        timers: Timers,
        clock: Clock,
        reporter: Reporter,
        timing: Timing,
        *,
        named: bool = False,
    ) -> None:
        self._source = source
        self._attempt = attempt
        self._timers = timers
        self._clock = clock
        self._reporter = reporter
        self._timing = timing
        self._named = named
        self._running: dict[asyncio.Task[Imprint], _Running] = {}
        self._changes = source.changes
        self._known = 0
        self._next_start = 0.0
        self.last: Refusal | None = None

    async def next(self) -> tuple[Imprint, Offer]:
        """The first valid voucher, and whom it came from. All other attempts are dropped then, also at cancellation."""
        winners: list[tuple[Imprint, Offer]] = []
        try:
            while not winners:
                now = self._clock.monotonic()
                if self._source.changes != self._changes:
                    self._changes = self._source.changes
                    self._timers.reset()
                due = self._due(now)
                if due and (now >= self._next_start or not self._running) and self._make_room(now):
                    self._start(due.pop(0), now)
                winners = self._collect(await self._wait(due, now))
        finally:
            for task in self._running:
                task.cancel()
            late = await asyncio.gather(*self._running, return_exceptions=True)
            self._running.clear()
            # a second voucher that arrived in the same moment is ignored once one has been accepted
            for one in [*late, *(imprint for imprint, _ in winners[1:])]:
                if isinstance(one, Imprint):
                    await one.line.connection.close()
        return winners[0]

    def failed(self, offer: Offer, refusal: Refusal) -> None:
        """What the offer led to did not hold to the end."""
        self.last = refusal
        self._timers.failed(offer, self._clock.monotonic())

    def _due(self, now: float) -> list[Offer]:
        offers = self._source.offers()
        if len(offers) > self._known:
            self._reporter.step("registrars-found", offers=len(offers), how="configured" if self._named else "mdns")
        self._known = len(offers)
        busy = {_key(one.offer) for one in self._running.values()}
        due = order(
            [offer for offer in offers if _key(offer) not in busy and self._timers.is_due(offer, now)],
            shuffle=random.SystemRandom().shuffle,
        )
        return sorted(due, key=self._timers.failures)  # whoever was tried least often comes first

    def _make_room(self, now: float) -> bool:
        """A free place; if need be that of the attempt without progress for longest (RFC 8995, section 5.1)."""
        if len(self._running) < self._timing.at_once:
            return True
        task, oldest = min(self._running.items(), key=lambda item: item[1].progress)
        if now - oldest.progress < self._timing.stall:
            return False
        task.cancel()
        del self._running[task]
        self._timers.failed(oldest.offer, now)
        self._reporter.step("attempt-dropped", "no-progress", offer=oldest.offer.instance[:80], port=oldest.offer.port)
        return True

    def _start(self, offer: Offer, now: float) -> None:
        running = _Running(offer, now)

        def progress() -> None:
            running.progress = self._clock.monotonic()

        self._running[asyncio.ensure_future(self._through(offer, progress))] = running
        self._next_start = now + self._timing.spacing

    async def _wait(self, due: Sequence[Offer], now: float) -> set[asyncio.Task[Imprint]]:
        """Until an attempt ends, the source has news, or the clock allows something; the attempts that ended."""
        times = [] if (again := self._timers.next_due(self._source.offers())) is None else [max(again, now + 0.05)]
        if due:
            full = len(self._running) >= self._timing.at_once
            oldest = min((one.progress for one in self._running.values()), default=now)
            times.append(max(self._next_start, oldest + self._timing.stall if full else now))
        pause = max(0.0, min(times) - now) if times else None
        news = asyncio.ensure_future(self._source.wait(pause))
        try:
            await asyncio.wait({*self._running, news}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not news.done():
                news.cancel()
                await asyncio.gather(news, return_exceptions=True)
        return {task for task in self._running if task.done()}

    def _collect(self, done: set[asyncio.Task[Imprint]]) -> list[tuple[Imprint, Offer]]:
        winners = []
        for task in done:
            offer = self._running.pop(task).offer
            try:
                winners.append((task.result(), offer))
            except Refusal as refusal:
                self._reporter.refused("attempt-failed", refusal, offer=offer.instance[:80], port=offer.port)
                self.failed(offer, refusal)
                self._next_start = 0.0
        return winners

    async def _through(self, offer: Offer, progress: Progress) -> Imprint:
        """The offer's addresses one after the other, as long as nobody answers there at all."""
        *others, last = (Target(address, offer.port, self._named) for address in offer.addresses)
        for target in others:
            try:
                return await self._attempt(target, progress)
            except Refusal as refusal:
                if not isinstance(refusal, PeerUnreachable):
                    raise
        return await self._attempt(last, progress)


def _key(offer: Offer) -> _Key:
    return offer.addresses, offer.port
