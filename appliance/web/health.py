"""/healthz: the process answers. /readyz: it can do its work; each check is named with what it saw.

The collaborators are described here by what is asked of them, because the web front imports neither store nor CA.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from appliance.clock import Clock
from appliance.errors import DiskFull, StoreUnavailable
from appliance.settings import Settings
from appliance.web.peer import Peer
from est.errors import Refusal
from est.exchange import Call, Reply

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 3.0
_NO_STORE = {"cache-control": "no-store"}

Check = Callable[[], Awaitable[str]]
"""One check: a few words on what it saw; raises Refusal when it fails."""


class Writable(Protocol):
    """The store, as far as health asks it."""

    async def write(self, function: Callable[[Any], Any]) -> Any:
        """Run a transaction."""
        ...


class Labelled(Protocol):
    """An issuing CA, as far as health asks it."""

    @property
    def label(self) -> str:
        """The name of its list."""
        ...


class Checkable(Protocol):
    """The CA, as far as health asks it."""

    def check(self) -> None:
        """Raise if a CA certificate or key must not be used now."""
        ...

    @property
    def generations(self) -> Sequence[Labelled]:
        """The issuing CAs whose certificates count."""
        ...


class Aging(Protocol):
    """The CRLs, as far as health asks them."""

    async def age_seconds(self, role: str) -> float | None:
        """Age of the list of an issuing CA by its label; None if there is none."""
        ...


class Health:
    """Endpoint functions of the two health paths."""

    def __init__(
        self,
        *,
        store: Writable,
        clock: Clock,
        ca: Checkable,
        crls: Aging,
        settings: Settings,
        advice: Mapping[str, Check] | None = None,
    ) -> None:
        """`advice`: further checks that are shown and leave the appliance ready, whatever they say."""
        self._store = store
        self._clock = clock
        self._ca = ca
        self._crls = crls
        self._settings = settings
        self._checks: dict[str, Check] = {
            "database": self._database,
            "authority": self._authority,
            "disk": self._disk,
            "revocation-lists": self._lists,
        }
        self._advice = dict(advice or {})

    async def healthz(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """200 while the event loop turns."""
        return Reply(200, "application/json", _NO_STORE, b'{"status": "ok"}')

    async def readyz(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """200 if every check passes, else 503; the body names each. What is advice alone does not count."""
        found = await self.look()
        ready = all(one["ok"] for name, one in found.items() if name not in self._advice)
        body = {"status": "ready" if ready else "not ready", "checks": found}
        headers = _NO_STORE if ready else {**_NO_STORE, "retry-after": "5"}
        return Reply(200 if ready else 503, "application/json", headers, json.dumps(body).encode())

    async def look(self) -> dict[str, dict[str, object]]:
        """Every check by name: ok, reason, and what it saw."""
        names = [*self._checks, *self._advice]
        results = await asyncio.gather(*(self._one(name) for name in names))
        return dict(zip(names, results, strict=True))

    async def _one(self, name: str) -> dict[str, object]:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                seen = await (self._checks.get(name) or self._advice[name])()
        except Refusal as refusal:
            return {"ok": False, "reason": refusal.reason, "seen": refusal.detail}
        except TimeoutError:
            return {"ok": False, "reason": "check-too-slow", "seen": f"no answer in {_CHECK_SECONDS:.0f} s"}
        return {"ok": True, "reason": "", "seen": seen}

    async def _database(self) -> str:
        before = self._clock.monotonic()
        await self._store.write(lambda tx: None)
        return f"a transaction took {(self._clock.monotonic() - before) * 1000:.1f} ms"

    async def _authority(self) -> str:
        self._ca.check()
        return "certificates in force, keys match"

    async def _disk(self) -> str:
        free, wanted = shutil.disk_usage(self._settings.home).free, self._settings.store.free_bytes
        if free < wanted:
            raise DiskFull(f"{free} bytes free, {wanted} wanted", retry_after_seconds=30)
        return f"{free} bytes free"

    async def _lists(self) -> str:
        life = self._settings.ca.crl_hours * 3600
        labels = [one.label for one in self._ca.generations]
        ages = [await self._crls.age_seconds(label) for label in labels]
        for role, age in zip(labels, ages, strict=True):
            if age is None or not 0 <= age + 60 <= life:
                raise StoreUnavailable(f"the CRL of {role} is missing or out of date")
        return f"oldest is {max(age for age in ages if age is not None):.0f} s"
