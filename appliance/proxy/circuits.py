"""A TCP circuit: what comes in on one connection goes out on the other, unread, within bounds (RFC 8995, section 4).

Nothing here knows TLS. Buffers are bounded: a side that does not read makes the other wait. An end of stream goes on to
the other side as such, a reset as a reset. A circuit ends when both sides have ended, or at a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.mdns.links import bare
from appliance.web.transports import abort

CHUNK = 16_384
_HIGH_WATER = 32_768


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one circuit may take: octets per direction, seconds without any octet, seconds in all."""

    octets: int
    idle_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class End:
    """One of the two connections."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def abort(self) -> None:
        """End with a reset: an orderly end would say that everything has been delivered."""
        opened = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        abort(self.writer.transport)


class Circuit:
    """Carries until an end; `run` answers why it ended: `closed`, `reset`, `idle`, `too-long`, `too-much`."""

    def __init__(self, pledge: End, registrar: End, bounds: Bounds) -> None:
        self._ends = (pledge, registrar)
        self._bounds = bounds
        self._last = 0.0
        self.carried = [0, 0]

    async def run(self) -> str:
        loop = asyncio.get_running_loop()
        begun = self._last = loop.time()
        pledge, registrar = self._ends
        pumps = [
            asyncio.ensure_future(self._pump(pledge, registrar, 0)),
            asyncio.ensure_future(self._pump(registrar, pledge, 1)),
        ]
        why = "reset"
        try:
            while True:
                now = loop.time()
                wakes = min(self._last + self._bounds.idle_seconds, begun + self._bounds.total_seconds)
                if now >= wakes:
                    why = "idle" if now < begun + self._bounds.total_seconds else "too-long"
                    break
                pending = [pump for pump in pumps if not pump.done()]
                failed = [pump for pump in pumps if pump.done() and pump.exception() is not None]
                if failed:
                    why = "too-much" if isinstance(failed[0].exception(), _TooMuch) else "reset"
                    break
                if not pending:
                    why = "closed"
                    break
                await asyncio.wait(pending, timeout=wakes - now, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in self._ends:
                if why == "closed":
                    end.writer.close()
                else:
                    end.abort()
        return why

    async def _pump(self, source: End, destination: End, direction: int) -> None:
        loop = asyncio.get_running_loop()
        destination.writer.transport.set_write_buffer_limits(high=_HIGH_WATER)
        while data := await source.reader.read(CHUNK):
            self.carried[direction] += len(data)
            if self.carried[direction] > self._bounds.octets:
                raise _TooMuch
            self._last = loop.time()
            destination.writer.write(data)
            await destination.writer.drain()
            self._last = loop.time()
        if destination.writer.can_write_eof():
            destination.writer.write_eof()


class _TooMuch(Exception):
    """More octets than a circuit may carry."""


class Places:
    """How many circuits there are, in all and per address; an IPv6 network of one site counts as one address."""

    def __init__(self, *, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._taken.total()

    @contextlib.contextmanager
    def place(self, address: str) -> Iterator[bool]:
        """Whether there is a place for one more from `address`; it is taken meanwhile."""
        key = _who(address)
        free = self.taken < self._total and self._taken[key] < self._per_address
        if not free:
            yield False
            return
        self._taken[key] += 1
        try:
            yield True
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]


def _who(address: str) -> str:
    found = ipaddress.ip_address(bare(address))
    if isinstance(found, ipaddress.IPv6Address) and not found.is_link_local:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
