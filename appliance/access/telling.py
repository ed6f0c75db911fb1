"""Tells the appliance of packets that FreeRADIUS dropped, where FreeRADIUS runs in a process of its own.

FreeRADIUS says so in its log alone, and whoever can reach its port can fill that log. So packets are counted by kind,
the kinds are bounded, and a post every few seconds carries what came together. While the appliance is away the counts
go on; nothing here waits for it but the task that posts.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar, Final

from appliance.access.freeradius import FAILURE_PATH
from appliance.access.raddb_folder import LAST_GOOD, token_in
from appliance.errors import ApplianceError
from appliance.proxy.connection import Target, open_verified
from appliance.proxy.state import ClientFiles
from est.certificates import pem_certificates
from est.errors import Refusal
from est.exchange import Call
from radius.dropped import Dropped, read_dropped_line, write_dropped

_log = logging.getLogger(__name__)

MAX_KINDS: Final = 128
GATHER_SECONDS: Final = 0.2
PAUSE_SECONDS: Final = 2.0
MAX_PAUSE_SECONDS: Final = 60.0
_SECONDS: Final = 5.0
_URL: Final = re.compile(rf'uri = "(https://[^/"]+){re.escape(FAILURE_PATH)}"')


class NotTold(ApplianceError):
    """The appliance did not take word of packets that FreeRADIUS dropped; `detail` says what it answered."""

    reason: ClassVar[str] = "dropped-packets-not-told"


class Teller:
    """Counts what the log lines tell, and posts it until cancelled."""

    def __init__(self, post: Callable[[bytes], Awaitable[None]], *, pause_seconds: float = PAUSE_SECONDS) -> None:
        """`post` raises Refusal, OSError or ValueError where the appliance did not take it: it is told again later."""
        self._post = post
        self._pause_seconds = pause_seconds
        self._counts: dict[Dropped, int] = {}
        self._rest: dict[str, tuple[Dropped, int]] = {}
        self._some = asyncio.Event()

    def heard(self, line: str) -> None:
        """Count a line of FreeRADIUS' log if it tells of a dropped packet; never blocks, never fails."""
        found = read_dropped_line(line)
        if found is not None:
            self._count(found, 1)
            self._some.set()

    async def run(self) -> None:
        """Post what was counted, soon; less and less often while the appliance does not take it."""
        pause = self._pause_seconds
        while True:
            await self._some.wait()
            await asyncio.sleep(min(GATHER_SECONDS, self._pause_seconds))
            counts = self._take()
            try:
                await self._post(write_dropped(counts))
            except Exception as error:  # noqa: BLE001 - whatever it is, FreeRADIUS goes on, and so do its next lines
                self._put_back(counts)
                if pause == self._pause_seconds:
                    self._say(error)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            else:
                pause = self._pause_seconds
            await asyncio.sleep(pause)

    def _count(self, one: Dropped, times: int) -> None:
        if not one.many and (one in self._counts or len(self._counts) < MAX_KINDS):
            self._counts[one] = self._counts.get(one, 0) + times
        else:
            _, before = self._rest.get(one.code, (one, 0))
            self._rest[one.code] = (one._replace(many=True), before + times)

    def _take(self) -> dict[Dropped, int]:
        taken = {**self._counts, **dict(self._rest.values())}
        self._counts, self._rest = {}, {}
        self._some.clear()
        return taken

    def _put_back(self, counts: dict[Dropped, int]) -> None:
        for one, times in counts.items():
            self._count(one, times)
        self._some.set()

    def _say(self, error: Exception) -> None:
        if isinstance(error, Refusal):
            _log.warning("event=dropped-packets-not-told reason=%s detail=%r", error.reason, error.detail)
        elif isinstance(error, OSError | ValueError):  # a file of the folder that is just being written
            _log.warning("event=dropped-packets-not-told reason=os-error detail=%r", str(error))
        else:
            _log.error("event=dropped-packets-not-told", exc_info=error)


async def post(raddb: Path, body: bytes) -> None:
    """To the route, with the token, trust and certificate of what FreeRADIUS serves now in this folder.

    Not of what the folder holds: a token that is used ends the one before, and a newer one may never come to serve.
    Raises NotTold, OSError, ValueError, and what the connection raises.
    """
    served = raddb / LAST_GOOD
    found = _URL.search((served / "mods-enabled" / "rest").read_text(encoding="utf-8"))
    if found is None:
        raise NotTold("the configuration has no route for failures")
    certs = served / "certs"
    client = ClientFiles(certs / "decision-client.pem", certs / "decision-client.key")
    connection = await open_verified(
        Target.read(found[1]),
        pem_certificates((certs / "decision-ca.pem").read_bytes()),
        client if client.certificate.exists() else None,
        seconds=_SECONDS,
    )
    headers = {"authorization": f"Bearer {token_in(served)}", "content-type": "application/json"}
    try:
        reply = await connection.exchange(Call("POST", FAILURE_PATH, headers=headers, body=body), seconds=_SECONDS)
    finally:
        await connection.close()
    if reply.status != 204:
        raise NotTold(f"the appliance answered with {reply.status}")
