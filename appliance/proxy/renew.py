"""Keeping the LDevID alive: at two thirds of its life a new key and a new certificate, over TLS with the old one.

Anchors are fetched again on the same occasion. A failure is repeated with doubling pauses; the old LDevID is used until
the new one is on disk, and the change-over survives kill -9 (state.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from cryptography import x509

from appliance.clock import Clock
from appliance.proxy.enrol import EnrolPhase
from appliance.proxy.line import Line
from appliance.proxy.link import ServerLink
from appliance.proxy.report import Listener
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from brski.discovery import backoff_seconds
from est.errors import Refusal

log = logging.getLogger(__name__)

FRACTION = 2 / 3
JITTER = 0.05
_LONGEST_SLEEP_SECONDS = 60.0


def renewal_time(certificate: x509.Certificate, jitter: float) -> datetime:
    """When to renew: two thirds of the life, later by up to a twentieth of it (`jitter` in 0..1)."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_before_utc + life * (FRACTION + JITTER * jitter)


class Renewal:
    """Renews for ever; `on_event` hears of every success and failure. `after` runs when a new LDevID is in place."""

    def __init__(
        self,
        state: ProxyState,
        link: ServerLink,
        enrol: EnrolPhase,
        clock: Clock,
        timing: Timing,
        *,
        after: Callable[[], None],
        on_event: Listener | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._state = state
        self._link = link
        self._enrol = enrol
        self._clock = clock
        self._timing = timing
        self._after = after
        self._on_event = on_event
        self._sleep = sleep

    async def run(self) -> None:
        """Wait for the time, renew, begin again. Ends by cancellation only."""
        while True:
            await self._wait_until(renewal_time(self._state.ldevid_chain()[0], random.SystemRandom().random()))
            failures = 0
            while True:
                try:
                    await self.once()
                    break
                except Refusal as refusal:
                    failures += 1
                    pause = backoff_seconds(
                        failures, first_seconds=self._timing.retry, ceiling=self._timing.longest_retry
                    )
                    self._tell_failure(refusal, pause)
                    await self._wait_until(self._clock.now() + timedelta(seconds=pause))

    async def once(self) -> None:
        """One renewal now. Raises EstError and ProxyError leaves; nothing has changed then."""
        line = Line(await self._link.open(), self._link.open)
        try:
            enrolled = await self._enrol.again(line)
        finally:
            await line.connection.close()
        self._state.write_anchors((enrolled.trust.root,))
        self._state.adopt((enrolled.certificate, *enrolled.issuers))
        self._after()
        self._tell(
            {
                "event": "ldevid-renewed",
                "serial": f"{enrolled.certificate.serial_number:x}",
                "not_after": enrolled.certificate.not_valid_after_utc.isoformat(),
            }
        )

    async def _wait_until(self, moment: datetime) -> None:
        """In short steps, because the wall clock may jump and a laptop may sleep."""
        while (left := (moment - self._clock.now()).total_seconds()) > 0:
            await self._sleep(min(left, _LONGEST_SLEEP_SECONDS))

    def _tell_failure(self, refusal: Refusal, pause: float) -> None:
        left = self._state.ldevid_chain()[0].not_valid_after_utc - self._clock.now()
        name = "ldevid-renewal-failed" if left > timedelta() else "ldevid-expired"
        log.warning("%s code=%s detail=%r again_in=%.0fs", name, refusal.reason, refusal.detail, pause)
        self._tell(
            {
                "event": name,
                "code": refusal.reason,
                "detail": refusal.detail,
                "seconds_left": max(0, int(left.total_seconds())),
                "again_in_seconds": pause,
            }
        )

    def _tell(self, event: dict[str, object]) -> None:
        if self._on_event is not None:
            self._on_event(event)
