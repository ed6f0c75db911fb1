"""The way to the identity server's other processes, where its trust document names their port.

They are held to the same anchors and name as the server itself, at the same host. Whoever does not answer there is
left out for a while, and the server takes the call: the same bytes again are answered as the first time, and a nonce
more costs nobody anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from appliance.clock import Clock
from appliance.proxy.connection import Target
from appliance.proxy.errors import IdentityServerAway
from appliance.proxy.link import ServerLink
from est.errors import EstError
from est.exchange import Call, Reply
from est.transfer import read_json

log = logging.getLogger(__name__)

FRESH_SECONDS = 300.0
"""How long the trust document's word is used without asking again."""
SHUN_SECONDS = 300.0
MAX_DOCUMENT = 262_144


class WorkersLine:
    """Sends calls to the port named, else over `link`. `make` opens a line to another place of the same server."""

    def __init__(self, link: ServerLink, make: Callable[[Target], ServerLink], clock: Clock) -> None:
        self._link = link
        self._make = make
        self._clock = clock
        self._side: ServerLink | None = None
        self._server: Target | None = None
        self._ask_at = float("-inf")

    async def send(self, call: Call) -> Reply:
        """One call and its answer; raises IdentityServerAway when the server itself does not answer either."""
        side = await self._beside()
        if side is not None:
            try:
                return await side.send(call)
            except IdentityServerAway as refusal:
                log.warning("identity-workers away because=%s", refusal.fields.get("because", ""))
                await self._use(None, SHUN_SECONDS)
        return await self._link.send(call)

    def renewed(self) -> None:
        """Connections made with the old LDevID are not used again."""
        if self._side is not None:
            self._side.renewed()

    async def close(self) -> None:
        """Close what is open to the workers; the server's own line is its maker's."""
        if self._side is not None:
            await self._side.close()

    async def _beside(self) -> ServerLink | None:
        """The line to the workers as far as it is known, asked for anew when that is old or the server has moved."""
        server = self._link.target
        if server == self._server and self._clock.monotonic() < self._ask_at:
            return self._side
        self._server = server
        port = await self._ask()
        target = None if port is None else Target(server.host, port, server.named)
        await self._use(target, FRESH_SECONDS)
        return self._side

    async def _use(self, target: Target | None, seconds: float) -> None:
        self._ask_at = self._clock.monotonic() + seconds
        old = self._side
        if target is not None and old is not None and old.target == target:
            return
        self._side = None if target is None else self._make(target)
        if old is not None:
            await old.close()

    async def _ask(self) -> int | None:
        try:
            reply = await self._link.send(Call("GET", "/v1/trust", headers={"accept": "application/json"}))
            document = read_json(reply.body, max_bytes=MAX_DOCUMENT) if reply.status == 200 else {}
        except (IdentityServerAway, EstError) as refusal:  # the call itself will say so better
            log.debug("no trust document: %s", refusal)
            return None
        port = document.get("identity_port") if isinstance(document, dict) else None
        return port if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65_536 else None
