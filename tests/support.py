"""What several test folders share: a fixed clock, a clock object, and pregenerated-in-process keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


class FixedClock:
    """A clock that moves only when told."""

    def __init__(self, now: datetime = NOW) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """One P-256 key per name and test run."""
    return ec.generate_private_key(ec.SECP256R1())
