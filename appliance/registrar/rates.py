"""How many new voucher-requests are taken: of one device, of all devices of a manufacturer, of all together (T-36).

A request retried while it waits is the same one and costs nothing; what costs is what may end in a call to a MASA.
"""

from __future__ import annotations

from appliance.clock import Clock
from appliance.errors import RateLimited
from appliance.registrar.manufacturers import KnownManufacturer
from appliance.settings import RegistrarSettings
from appliance.web.limits import Bucket, Gcra


class RequestRates:
    """Token buckets in memory."""

    def __init__(self, settings: RegistrarSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._devices = Gcra(Bucket(settings.pledge_rate, settings.pledge_burst))
        self._all = Gcra(Bucket(settings.request_rate, settings.request_burst))
        self._makers: dict[tuple[str, float], Gcra] = {}

    def take(self, device: tuple[str, str], manufacturer: KnownManufacturer) -> None:
        """Take one token of each kind; raises RateLimited, which says whose limit it was."""
        now = self._clock.monotonic()
        for whose, bucket, key in (
            ("this pledge", self._devices, "/".join(device)),
            (f"all devices of {manufacturer.facts.name}", self._maker(manufacturer), manufacturer.id),
            ("all devices", self._all, ""),
        ):
            wait = bucket.take(key, now)
            if wait:
                raise RateLimited(f"too many new voucher-requests of {whose}", retry_after_seconds=round(wait + 0.5))

    def _maker(self, manufacturer: KnownManufacturer) -> Gcra:
        own = manufacturer.options.requests_per_second
        rate = own or self._settings.maker_rate
        key = (manufacturer.id, rate)
        if key not in self._makers:
            for stale in [one for one in self._makers if one[0] == manufacturer.id]:
                del self._makers[stale]
            burst = max(1, round(own * 10)) if own else self._settings.maker_burst
            self._makers[key] = Gcra(Bucket(rate, burst))
        return self._makers[key]
