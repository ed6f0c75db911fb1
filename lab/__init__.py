"""The rest of the world: manufacturers, their MASA, devices, demonstrations; imports everything, imported by nobody.

>>> from datetime import UTC, datetime
>>> from lab import Factory
>>> factory = Factory.create("Acme", now=datetime(2026, 1, 1, tzinfo=UTC))
>>> device = factory.make_device("PX-1", masa="masa.example:9443", now=datetime(2026, 1, 2, tzinfo=UTC))
>>> device.certificate.not_valid_after_utc.year
9999
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.certificates import Domain
    from lab.factory import Factory
    from lab.misbehave import MISBEHAVIOURS
    from lab.mock_masa import MockMasa

__all__ = ["MISBEHAVIOURS", "Domain", "Factory", "MockMasa"]

_HOMES = {
    "Factory": "lab.factory",
    "Domain": "lab.certificates",
    "MockMasa": "lab.mock_masa",
    "MISBEHAVIOURS": "lab.misbehave",
}


def __getattr__(name: str) -> Any:
    # on demand: a command that lists knobs does not wait for an HTTP server to load
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(name)
