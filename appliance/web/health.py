"""/healthz: the process answers. /readyz: it can do its work; each check is named with what it saw.

Checks are async functions given by the composition root: database writable, keys loaded, clock sane, disk above the
watermark, CRLs fresh.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from appliance.errors import DiskFull
from appliance.web.peer import Peer
from est.errors import Refusal
from est.exchange import Call, Reply

_log = logging.getLogger(__name__)
Check = Callable[[], Awaitable[str]]
"""One check: a few words on what it saw; raises Refusal when it fails."""

_CHECK_SECONDS = 3.0
_NO_STORE = {"cache-control": "no-store"}


class Health:
    """Endpoint functions of the two health paths."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)

    async def healthz(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """200 while the event loop turns."""
        return Reply(200, "application/json", _NO_STORE, b'{"status": "ok"}')

    async def readyz(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """200 if every check passes, else 503; the body names each."""
        found = await self.look()
        ready = all(one["ok"] for one in found.values())
        body = {"status": "ready" if ready else "not ready", "checks": found}
        headers = _NO_STORE if ready else {**_NO_STORE, "retry-after": "5"}
        return Reply(200 if ready else 503, "application/json", headers, json.dumps(body).encode())

    async def look(self) -> dict[str, dict[str, object]]:
        """Every check by name: ok, reason, and what it saw."""
        names = list(self._checks)
        results = await asyncio.gather(*(self._one(name) for name in names))
        return dict(zip(names, results, strict=True))

    async def _one(self, name: str) -> dict[str, object]:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                seen = await self._checks[name]()
        except Refusal as refusal:
            return {"ok": False, "reason": refusal.reason, "seen": refusal.detail}
        except TimeoutError:
            return {"ok": False, "reason": "check-too-slow", "seen": f"no answer in {_CHECK_SECONDS:.0f} s"}
        return {"ok": True, "reason": "", "seen": seen}


def disk_check(folder: Path, free_bytes: int) -> Check:
    """A check that the disk is above the watermark below which nothing is issued."""

    async def check() -> str:
        free = shutil.disk_usage(folder).free
        if free < free_bytes:
            raise DiskFull(f"{free} bytes free, {free_bytes} wanted", retry_after_seconds=30)
        return f"{free} bytes free"

    return check
