"""Token buckets with bounded memory: per address for strangers, per identity for those we know (GCRA).

A bucket is one number, the theoretical arrival time of the next request; a full one is not kept at all. When the table
is full of busy buckets, strangers are refused rather than the table grown.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from appliance.clock import Clock
from appliance.errors import RateLimited
from appliance.web.peer import Peer
from appliance.web.routes import Rate

_MAX_BUCKETS = 65_536


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests per second on average, and how many may come at once."""

    per_second: float
    burst: int


class Gcra:
    """One kind of bucket, kept by key."""

    def __init__(self, bucket: Bucket, *, max_keys: int = _MAX_BUCKETS) -> None:
        self._interval = 1.0 / bucket.per_second
        self._tolerance = self._interval * (bucket.burst - 1)
        self._max_keys = max_keys
        self._arrivals: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrivals)

    def take(self, key: str, now: float) -> float:
        """Take one token at monotonic time `now`: 0.0 if there was one, else the seconds until there is."""
        arrivals = self._arrivals
        arrival = arrivals.get(key)
        if arrival is None:
            if len(arrivals) >= self._max_keys and not self._forget(now):
                return self._interval
            arrival = now
        elif arrival < now:
            arrival = now
        wait = arrival - now - self._tolerance
        if wait > 1e-9:
            return wait
        arrivals[key] = arrival + self._interval
        arrivals.move_to_end(key)
        return 0.0

    def _forget(self, now: float) -> bool:
        """Drop full buckets from the old end; True if there is room now."""
        while self._arrivals:
            key, arrival = next(iter(self._arrivals.items()))
            if arrival > now:
                return False
            del self._arrivals[key]
            if len(self._arrivals) <= self._max_keys * 3 // 4:
                break
        return len(self._arrivals) < self._max_keys


class Limits:
    """The limits of one listener.

    `is_known` says whether a connection's certificate is one of ours, so that its owner counts by key and not by
    address; it is asked once per connection and must verify what it believes. `on_refused` hears of every refusal.
    """

    def __init__(
        self,
        clock: Clock,
        address: Bucket,
        identity: Bucket,
        is_known: Callable[[Peer], bool] | None = None,
        *,
        on_refused: Callable[[Peer], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._addresses = Gcra(address)
        self._identities = Gcra(identity)
        self._is_known = is_known
        self._on_refused = on_refused
        self._known: OrderedDict[int, bool] = OrderedDict()

    def check(self, rate: Rate, peer: Peer) -> None:
        """Take a token for one request; raises RateLimited."""
        if rate == "none":
            return
        if peer.certificate is not None and (rate == "identity" or self._knows(peer)):
            key, buckets = (peer.key_sha256 or b"").hex(), self._identities
        elif peer.uid is not None:
            key, buckets = f"uid {peer.uid}", self._identities
        else:
            key, buckets = peer.address, self._addresses
        wait = buckets.take(key, self._clock.monotonic())
        if wait:
            self._on_refused(peer)
            raise RateLimited("too many requests", retry_after_seconds=max(1, round(wait + 0.5)))

    def _knows(self, peer: Peer) -> bool:
        if self._is_known is None:
            return False
        known = self._known.get(peer.connection_id)
        if known is None:
            if len(self._known) >= _MAX_BUCKETS:
                self._known.popitem(last=False)
            known = self._known[peer.connection_id] = self._is_known(peer)
        return known
