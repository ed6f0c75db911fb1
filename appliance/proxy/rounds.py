"""Trying every offer until one yields a valid voucher (RFC 8995, section 4.1): staggered, independent, first come wins.

Each offer has its own timer: tried once, then again after a pause that doubles up to an hour. A dead or silent offer
holds nobody up: the next attempt starts after `spacing` seconds at the latest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from appliance.proxy.connection import Target
from appliance.proxy.errors import PeerUnreachable
from appliance.proxy.report import Reporter
from appliance.proxy.timing import Timing
from appliance.proxy.voucher_phase import Imprint
from brski.discovery import MAX_OFFERS, Offer, backoff_seconds
from est.errors import Refusal

Attempt = Callable[[Target], Awaitable[Imprint]]
_Key = tuple[tuple[str, ...], int]


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

    def next_due(self, offers: Sequence[Offer]) -> float | None:
        """The earliest time at which one of the offers may be tried again."""
        times = [self._failures[_key(offer)][1] for offer in offers if _key(offer) in self._failures]
        return min(times, default=None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round brought: the winner, and every offer that failed with why."""

    imprint: Imprint | None
    offer: Offer | None
    failed: tuple[tuple[Offer, Refusal], ...]


async def race(
    offers: Sequence[Offer], attempt: Attempt, reporter: Reporter, timing: Timing, *, named: bool = False
) -> Outcome:
    """One round over `offers`, in their order; ends with the first valid voucher, all other attempts are dropped."""
    queue = deque(offers)
    running: dict[asyncio.Task[Imprint], Offer] = {}
    failed: list[tuple[Offer, Refusal]] = []
    winners: list[tuple[Imprint, Offer]] = []
    try:
        while (queue or running) and not winners:
            if queue and len(running) < timing.at_once:
                offer = queue.popleft()
                running[asyncio.ensure_future(_through(offer, attempt, named))] = offer
            patience = timing.spacing if queue and len(running) < timing.at_once else None
            done, _ = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                offer = running.pop(task)
                try:
                    winners.append((task.result(), offer))
                except Refusal as refusal:
                    reporter.refused("attempt-failed", refusal, offer=offer.instance[:80], port=offer.port)
                    failed.append((offer, refusal))
    finally:
        for task in running:
            task.cancel()
        late = await asyncio.gather(*running, return_exceptions=True)
        # a second voucher that arrived in the same moment is ignored once one has been accepted
        for one in [*late, *(imprint for imprint, _ in winners[1:])]:
            if isinstance(one, Imprint):
                await one.connection.close()
    imprint, winner = winners[0] if winners else (None, None)
    return Outcome(imprint, winner, tuple(failed))


async def _through(offer: Offer, attempt: Attempt, named: bool) -> Imprint:
    """The offer's addresses one after the other, as long as nobody answers there at all."""
    *others, last = (Target(address, offer.port, named) for address in offer.addresses)
    for target in others:
        try:
            return await attempt(target)
        except Refusal as refusal:
            if not isinstance(refusal, PeerUnreachable):
                raise
    return await attempt(last)


def _key(offer: Offer) -> _Key:
    return offer.addresses, offer.port
