"""When to ask for a service type: not before having listened, then at doubling pauses up to one hour (RFC 6762, 5.2).

zeroconf sends the first four questions at pauses of one, two and four seconds and goes silent when nothing answers; on
a switch port that takes half a minute to forward, all four are lost. So the doubling is carried on here. Questions list
the answers that are known, which keeps responders quiet that have nothing to add (RFC 6762, section 7.1).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

from zeroconf import DNSOutgoing, DNSQuestion, Zeroconf, current_time_millis  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

_QUERY, _TYPE_PTR, _CLASS_IN = 0, 12, 1
_STEP_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class QueryTiming:
    """Seconds. `listen`: at most this long, by chance, only listen (RFC 8995, appendix B prefers unsolicited
    announcements); `first_pause`: before the question after zeroconf's own; `ceiling`: longest pause.
    """

    listen: float = 0.5
    first_pause: float = 15.0
    ceiling: float = 3600.0

    def pauses(self, number: int) -> float:
        """The pause before the `number`-th question of ours, counted from 0."""
        return min(self.ceiling, self.first_pause * 2.0 ** min(number, 32))


async def listen_first(zeroconf: Zeroconf, services: Sequence[str], seconds: float) -> None:
    """Wait for an announcement, for a part of `seconds` that chance decides: a campus that gets its power back at once
    does not ask in one voice.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds * random.SystemRandom().random()
    while loop.time() < end:
        if any(zeroconf.cache.async_entries_with_name(service) for service in services):
            return
        await asyncio.sleep(_STEP_SECONDS)


async def keep_asking(zeroconf: Zeroconf, services: Sequence[str], timing: QueryTiming) -> None:
    """Ask again and again, ever more rarely; ends by cancellation."""
    number = 0
    while True:
        await asyncio.sleep(timing.pauses(number))
        number += 1
        zeroconf.async_send(_question(zeroconf, services))


def _question(zeroconf: Zeroconf, services: Sequence[str]) -> DNSOutgoing:
    out = DNSOutgoing(_QUERY)
    now = current_time_millis()
    for service in services:
        out.add_question(DNSQuestion(service, _TYPE_PTR, _CLASS_IN))
        for record in zeroconf.cache.get_all_by_details(service, _TYPE_PTR, _CLASS_IN):
            if not record.is_stale(now):
                out.add_answer_at_time(record, now)
    return out
