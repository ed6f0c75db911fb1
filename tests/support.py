"""What several test folders share: a fixed clock, a clock object, and pregenerated-in-process keys."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings

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


def stretched(seconds: float) -> float:
    """A time limit for a machine with nothing else to do, longer where other tests or programs want it as well."""
    beside_others = 3.0 if "PYTEST_XDIST_WORKER" in os.environ else 1.0
    crowd = 2.0 * os.getloadavg()[0] / (os.cpu_count() or 1)
    return seconds * min(5.0, max(beside_others, crowd))


WITH_FULL, QUICKLY = "with --full", "quickly"
"""Profiles of the property tests: no time limit for an example, which a busy machine would miss."""
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(WITH_FULL, _PATIENT)
settings.register_profile(QUICKLY, _PATIENT, max_examples=25)


def examples(count: int, *more: HealthCheck) -> settings:
    """How many examples a property is tried with; a quarter of them in the quick part."""
    return settings(
        max_examples=max(10, count * settings.default.max_examples // 100),
        suppress_health_check=[HealthCheck.too_slow, *more],
    )
