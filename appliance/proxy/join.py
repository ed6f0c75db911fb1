"""The join proxy: lets pledges reach a registrar that is not on their link (RFC 8995, section 4).

It listens on a port of its own, announces it as `_brski-proxy._tcp`, and opens a TCP connection to the registrar for
every one that a pledge opens. It never takes part in what is said: TLS is between pledge and registrar, and nothing is
logged but addresses, counts and why a circuit ended.

A registrar found by mDNS is used only if it is another machine on a link where registrars are looked for: whoever can
send mDNS must not make this a way to arbitrary places. `join.registrar` names one that is further away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Sequence
from typing import Protocol

from appliance.clock import Clock
from appliance.mdns.announcer import Announcer, takes_connections
from appliance.mdns.links import neighbours
from appliance.proxy.circuits import CHUNK, Bounds, Circuit, End, Places
from appliance.proxy.discover import Discovery
from appliance.proxy.errors import JoinNotPossible
from appliance.proxy.report import Listener
from appliance.settings import JoinSettings
from brski.discovery import PROXY_SERVICE, REGISTRAR_SERVICE, order

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
MAX_TRIED = 4
AVOID_SECONDS = 30.0
PROBE_SECONDS = 30.0
_DRAIN_SECONDS = 5.0

Place = tuple[str, int]


class Registrars(Protocol):
    """Where registrars are believed to be, best first; `wait` returns when that may have changed."""

    def places(self) -> Sequence[Place]: ...

    async def wait(self) -> None: ...


class Configured:
    """The one registrar of the settings."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def places(self) -> Sequence[Place]:
        return [self._place]

    async def wait(self) -> None:
        await asyncio.Event().wait()


class Discovered:
    """What mDNS says, as far as it may be followed; in the order that RFC 8995 pledges use, chance among equals."""

    def __init__(self, discovery: Discovery, interfaces: Sequence[str]) -> None:
        self._discovery = discovery
        self._interfaces = tuple(interfaces)

    def places(self) -> Sequence[Place]:
        offers = order(self._discovery.offers(), shuffle=random.SystemRandom().shuffle)
        places = [(address, offer.port) for offer in offers for address in offer.addresses]
        near = neighbours((address for address, _ in places), self._interfaces)
        return [place for place in dict.fromkeys(places) if place[0] in near]

    async def wait(self) -> None:
        await self._discovery.wait(None)


def read_place(text: str) -> Place:
    """HOST:PORT, an IPv6 address in brackets. Raises JoinNotPossible."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise JoinNotPossible(f"join.registrar is HOST:PORT, not {text!r}")
    return host, int(port)


class JoinProxy:
    """Listens from `start` to `stop`; circuits that are under way at the end have five seconds."""

    def __init__(self, settings: JoinSettings, registrars: Registrars, clock: Clock) -> None:
        self._settings = settings
        self._registrars = registrars
        self._clock = clock
        self._bounds = Bounds(settings.max_octets, settings.idle_seconds, settings.total_seconds)
        self._places = Places(total=settings.max_circuits, per_address=settings.max_per_address)
        self._failed: dict[Place, float] = {}
        self._server: asyncio.Server | None = None
        self._circuits: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Raises JoinNotPossible."""
        host = self._settings.host
        try:
            self._server = await asyncio.start_server(
                self._accepted,
                host,
                self._settings.port,
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                limit=CHUNK,
            )
        except OSError as cause:
            raise JoinNotPossible(f"cannot listen on {host}:{self._settings.port}: {cause.strerror}") from cause
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_seconds: float = _DRAIN_SECONDS) -> None:
        """No new circuits; those under way may end, and are then ended."""
        if self._server is not None:
            self._server.close()
        if self._circuits:
            await asyncio.wait(self._circuits, timeout=grace_seconds)
        for task in list(self._circuits):
            task.cancel()
        await asyncio.gather(*self._circuits, return_exceptions=True)

    @property
    def circuits(self) -> int:
        """How many are under way."""
        return self._places.taken

    async def reaches_a_registrar(self) -> bool:
        """Whether a circuit would have an other end now."""
        for place in self._in_order()[:MAX_TRIED]:
            if await takes_connections(*place):
                return True
        return False

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._circuits.add(task)
        task.add_done_callback(self._circuits.discard)
        peer = writer.get_extra_info("peername")
        if peer is None:
            return
        pledge = End(reader, writer)
        try:
            with self._places.place(peer[0]) as free:
                if free:
                    await self._carry(pledge, peer[0])
                else:
                    log.warning("circuit-refused from=%s circuits=%d", peer[0], self._places.taken)
        except asyncio.CancelledError:
            log.info("circuit-ended from=%s why=stopped", peer[0])  # asyncio's server cannot take a cancelled task
        finally:
            if not writer.is_closing():
                pledge.abort()

    async def _carry(self, pledge: End, address: str) -> None:
        registrar = await self._reach()
        if registrar is None:
            log.warning("circuit-failed from=%s no registrar can be reached", address)
            return
        circuit = Circuit(pledge, registrar, self._bounds)
        begun = self._clock.monotonic()
        why = await circuit.run()
        log.info(
            "circuit-ended from=%s why=%s octets=%d/%d seconds=%.1f",
            address,
            why,
            *circuit.carried,
            self._clock.monotonic() - begun,
        )

    async def _reach(self) -> End | None:
        """A connection to the first registrar that takes one; those that did not lately come last."""
        for place in self._in_order()[:MAX_TRIED]:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    end = End(*await asyncio.open_connection(*place, limit=CHUNK))
            except (OSError, TimeoutError):
                self._failed[place] = self._clock.monotonic() + AVOID_SECONDS
                continue
            self._failed.pop(place, None)
            return end
        return None

    def _in_order(self) -> list[Place]:
        now = self._clock.monotonic()
        self._failed = {place: until for place, until in self._failed.items() if until > now}
        return sorted(self._registrars.places(), key=lambda place: place in self._failed)


async def run_join(
    settings: JoinSettings, clock: Clock, tell: Listener, *, probe_seconds: float = PROBE_SECONDS
) -> None:
    """Run until cancelled. Raises JoinNotPossible.

    `tell` gets `ready` with the port once it listens, `registrar-found` and `registrar-lost`, and `stopped`.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.registrar:
            registrars: Registrars = Configured(read_place(settings.registrar))
        else:
            wanted = settings.registrar_interfaces
            discovery = await stack.enter_async_context(Discovery(wanted, services=(REGISTRAR_SERVICE,)))
            registrars = Discovered(discovery, wanted)
        join = JoinProxy(settings, registrars, clock)
        await join.start()
        found = False

        async def is_alive() -> bool:
            nonlocal found
            now = await join.reaches_a_registrar()
            if now is not found:
                found = now
                tell({"event": "registrar-found" if now else "registrar-lost"})
            return now

        announcer = Announcer(
            interfaces=settings.interfaces,
            host=settings.host,
            port=join.port,
            instance=f"join-{socket.gethostname().split('.')[0][:40] or 'proxy'}-{join.port}",
            services=(PROXY_SERVICE,),
            probe_seconds=probe_seconds,
            is_alive=is_alive,
        )
        tell({"event": "ready", "pid": os.getpid(), "host": settings.host, "port": join.port})
        try:
            await announcer.start()
            while True:
                await registrars.wait()
                announcer.look_again()
        finally:
            await announcer.stop()
            await join.stop()
            tell({"event": "stopped", "pid": os.getpid()})
