"""Time on a device without a clock: never earlier than what was signed or said by those it trusts.

Without a trusted clock no date is judged (RFC 8995, section 2.6.1). Still some things need a time: renewal, evidence,
log lines. A voucher with our nonce was made after we asked, an LDevID is not older than its issuance, and the registrar
that the voucher vouches for says its time in every answer. The latest of these is kept across restarts, and counts on.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from appliance.clock import Clock
from appliance.proxy.errors import ProxyStateDamaged
from appliance.proxy.state import ProxyState

log = logging.getLogger(__name__)

FILE = "time"
_WRITTEN_AGAIN_AFTER = timedelta(hours=1)


class LowerBound:
    """A Clock: the machine's own, or the bound if that is later."""

    def __init__(self, clock: Clock, state: ProxyState) -> None:
        self._clock = clock
        self._state = state
        self._bound = self._written = _read(state.read(FILE))
        self._at = clock.monotonic()

    def now(self) -> datetime:
        own = self._clock.now()
        if self._bound is None:
            return own
        return max(own, self._bound + timedelta(seconds=self._clock.monotonic() - self._at))

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def learn(self, moment: datetime | None) -> None:
        """It is not earlier than `moment`, by the word of somebody who is trusted."""
        if moment is None or moment <= self.now():
            return
        self._bound, self._at = moment, self._clock.monotonic()
        if self._written is None or moment >= self._written + _WRITTEN_AGAIN_AFTER:
            try:
                self._state.write(FILE, moment.isoformat().encode("ascii") + b"\n")
                self._written = moment
            except ProxyStateDamaged as refusal:
                log.warning("the time will not survive a restart: %s", refusal.detail)
            log.info("time-learned not_earlier_than=%s", moment.isoformat())


def read_date(value: str) -> datetime | None:
    """The moment of an HTTP Date header; None for anything else."""
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment.astimezone(UTC) if moment.tzinfo is not None else None


def _read(body: bytes | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat((body or b"").decode("ascii").strip())
    except (ValueError, UnicodeDecodeError):
        return None  # a bound that is lost is learned again
    return moment if moment.tzinfo is not None else None
