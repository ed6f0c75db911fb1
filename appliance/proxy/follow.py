"""Finding the identity server again after it got another address, if it was found by mDNS in the first place.

Only where to connect is learned: the server at a new place is the same if its chain ends in our anchors and it has the
RA mark, as at every connection. What mDNS says cannot change whom we trust.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace

from appliance.clock import Clock
from appliance.proxy.connection import Target, open_verified
from appliance.proxy.discover import Discovery
from appliance.proxy.errors import ProxyStateDamaged
from appliance.proxy.link import ServerLink
from appliance.proxy.report import Listener
from appliance.proxy.rounds import Timers
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from brski.discovery import Offer, order
from est.errors import Refusal

log = logging.getLogger(__name__)


class Follower:
    """Looks for the server whenever the link cannot reach it; tells `server-moved`."""

    def __init__(
        self,
        state: ProxyState,
        link: ServerLink,
        interfaces: Sequence[str],
        clock: Clock,
        timing: Timing,
        tell: Listener,
        *,
        trust_clock: bool = True,
    ) -> None:
        self._state = state
        self._link = link
        self._interfaces = tuple(interfaces)
        self._clock = clock
        self._timing = timing
        self._tell = tell
        self._trust_clock = trust_clock

    async def run(self) -> None:
        """Ends by cancellation only."""
        while True:
            await self._link.unreachable.wait()
            await self._look()
            self._link.unreachable.clear()

    async def _look(self) -> None:
        """Until the server answers, at its old place or at a new one."""
        timers = Timers(self._timing.first_pause, self._timing.round)
        async with Discovery(self._interfaces) as discovery:
            changes = discovery.changes
            while True:
                if discovery.changes != changes:
                    changes = discovery.changes
                    timers.reset()
                old = self._link.target
                known = [Offer("", (old.host,), old.port), *discovery.offers()]
                now = self._clock.monotonic()
                for offer in order(
                    [one for one in known if timers.is_due(one, now)], shuffle=random.SystemRandom().shuffle
                ):
                    for address in offer.addresses:
                        if await self._is_ours(Target(address, offer.port)):
                            return
                    timers.failed(offer, self._clock.monotonic())
                again = timers.next_due(known)
                await discovery.wait(None if again is None else max(0.1, again - self._clock.monotonic()))

    async def _is_ours(self, target: Target) -> bool:
        try:
            connection = await open_verified(
                target,
                self._state.anchors(),
                self._state.credential(),
                seconds=self._timing.connect,
                trust_clock=self._trust_clock,
            )
        except Refusal as refusal:
            log.debug("not our server at=%s code=%s", target.authority, refusal.reason)
            return False
        await connection.close()
        if target != self._link.target:
            self._link.move(target)
            try:
                self._state.write_record(replace(self._state.record(), host=target.host, port=target.port))
            except ProxyStateDamaged as refusal:
                log.warning("the server's new place will not survive a restart: %s", refusal.detail)
            self._tell({"event": "server-moved", "registrar": target.authority})
        return True
