"""A conversation that outlives its connection: pulled cables and peers that close are bridged, to the same server only.

All calls of a bootstrap may be repeated octet for octet: the registrar knows a voucher-request and a CSR again (RFC
8995, section 5.6; RFC 7030, section 4.2.3). What a new connection must show before anything goes out on it, `reopen`
checks: the certificate of the first one (RFC 8995, section 5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from appliance.proxy.connection import Connection
from appliance.proxy.errors import ConnectionClosed, PeerSilent, PeerUnreachable, TlsHandshakeFailed
from est.errors import Refusal
from est.exchange import Call, Reply

LOSSES = (ConnectionClosed, PeerSilent, PeerUnreachable, TlsHandshakeFailed)
"""What a pulled cable looks like from here."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0


@dataclass(slots=True)
class Line:
    """The connection of one conversation, and how to get another to the very same server.

    `patience`: for how many seconds after the last answer a loss is repaired; 0 = never. `on_loss` hears of each one.
    """

    connection: Connection
    reopen: Callable[[], Awaitable[Connection]]
    patience: float = 0.0
    on_loss: Callable[[Refusal], None] | None = None
    progress: Callable[[], None] | None = None
    _answered: bool = field(default=False)
    _losses: int = field(default=0)

    async def restore(self) -> None:
        """Open again if the server has closed in the meantime."""
        if not self.connection.usable:
            self.connection = await self.reopen()

    async def exchange(self, call: Call | Callable[[Connection], Call], *, seconds: float) -> Reply:
        """Send a call and read its answer, on another connection to the same server if this one is lost.

        A function makes the call for the connection that it goes out on.

        Raises what Connection.exchange and `reopen` raise; a loss only when the patience is over.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        failures = 0
        while True:
            try:
                await self.restore()
                if self.progress is not None:
                    self.progress()
                made = call(self.connection) if callable(call) else call
                reply = await self.connection.exchange(made, seconds=seconds)
            except LOSSES as loss:
                failures += 1
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (failures - 1))
                if loop.time() + pause > deadline or (failures > 1 and self._turned_away(loss)):
                    raise
                if self.on_loss is not None:
                    self.on_loss(loss)
                await asyncio.sleep(pause)
            else:
                self._answered = True
                if self.progress is not None:
                    self.progress()
                return reply

    def _turned_away(self, loss: Refusal) -> bool:
        """A server that never answers and only closes does not want us; a cable behaves differently."""
        return not self._answered and isinstance(loss, ConnectionClosed | TlsHandshakeFailed)
