"""The kept line to the identity server: mutual TLS with the LDevID, verified against the explicit anchors.

A few connections are kept and used one exchange at a time. One that has been idle for long is not used again, because
the server may be closing it just then. Nothing here believes a name: host and port are those of the bootstrap, or those
that `follow` has found since; the server is who our anchors and the RA mark (or the configured name) say it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from appliance.clock import Clock
from appliance.proxy.connection import Connection, Target, open_anchorless, open_verified
from appliance.proxy.errors import (
    ConnectionClosed,
    IdentityServerAway,
    PeerUnreachable,
    ProxyError,
    ServerUntrusted,
)
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from est.chains import TrustAnchors
from est.client import EstClient
from est.errors import EstError
from est.exchange import Call, Reply

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 8
RETRY_AFTER_SECONDS = 5
ROOT_PAUSE_SECONDS = 60.0
"""A server that is not trusted is asked for its CA certificates this often at the most."""


class Sender(Protocol):
    """A line to the identity server; raises IdentityServerAway."""

    async def send(self, call: Call) -> Reply: ...


@dataclass(frozen=True, slots=True)
class _Kept:
    connection: Connection
    since: float
    generation: int


class ServerLink:
    """Calls to the identity server. `renewed` after the LDevID or the anchors changed drops what was opened before."""

    def __init__(
        self,
        state: ProxyState,
        target: Target,
        clock: Clock,
        timing: Timing,
        *,
        trust_clock: bool = True,
        on_change: Callable[[bool, str], None] | None = None,
        learn: Callable[[datetime | None], None] = lambda _: None,
        opener: Callable[[], Awaitable[Connection]] | None = None,
        call_seconds: float | None = None,
    ) -> None:
        """`opener` opens connections in another way than by the anchors; `call_seconds` is another deadline."""
        self._opener = opener
        self._call_seconds = call_seconds or timing.call
        self._state = state
        self._target = target
        self._clock = clock
        self._timing = timing
        self._trust_clock = trust_clock
        self._on_change = on_change
        self._learn = learn
        self._kept: list[_Kept] = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._generation = 0
        self._away = False
        self._root_asked: float | None = None
        self.unreachable = asyncio.Event()
        """Set when nobody answered at the server's place."""

    @property
    def target(self) -> Target:
        return self._target

    def move(self, target: Target) -> None:
        """The server is somewhere else now."""
        self._target = target
        self._generation += 1

    async def send(self, call: Call) -> Reply:
        """One call and its answer.

        A kept connection that turns out to be closed before a single octet of the answer is replaced once; that repeats
        a call only when the server closed an idle connection. Raises IdentityServerAway.
        """
        async with self._slots:
            try:
                reply = await self._send(call)
            except ProxyError as refusal:
                self._note(away=True, why=refusal.reason)
                raise IdentityServerAway(
                    "the identity server cannot be reached now",
                    retry_after_seconds=RETRY_AFTER_SECONDS,
                    because=refusal.reason,
                ) from refusal
            self._note(away=False)
            return reply

    async def open(self) -> Connection:
        """A connection of one's own, for renewal. Raises ProxyError leaves."""
        if self._opener is not None:
            return await self._opener()
        try:
            return await self._open()
        except PeerUnreachable:
            self.unreachable.set()
            raise
        except ServerUntrusted:  # it has a new root by now, or somebody else is there
            if not await self._follow_root():
                self.unreachable.set()
                raise
        return await self._open()

    async def _open(self) -> Connection:
        return await open_verified(
            self._target,
            self._state.anchors(),
            self._state.credential(),
            seconds=self._timing.connect,
            trust_clock=self._trust_clock,
        )

    async def _follow_root(self) -> bool:
        """Whether the server's CA certificates hold a new root that the anchor held vouches for; it is the anchor then.

        They are fetched over a connection that may carry nothing else, now and then (RFC 7030, sections 4.1.1, 4.1.3).
        """
        now = self._clock.monotonic()
        if self._root_asked is not None and now - self._root_asked < ROOT_PAUSE_SECONDS:
            return False
        self._root_asked = now
        held = self._state.anchors()
        at = self._clock.now() if self._trust_clock else None
        try:
            connection = await open_anchorless(self._target, seconds=self._timing.connect)
            try:
                reply = await connection.exchange(EstClient().cacerts_call(), seconds=self._timing.call)
            finally:
                await connection.close()
            found = EstClient().read_successor(reply, TrustAnchors(held), at=at)
        except (ProxyError, EstError) as refusal:
            log.warning("no new root because=%s", refusal.reason)
            return False
        if found.root in held:
            return False
        self._state.write_anchors((found.root,))
        self.renewed()
        log.warning("anchors-replaced root=%s", found.root.subject.rfc4514_string())
        return True

    def renewed(self) -> None:
        """Connections made with the old LDevID or anchors are not used again."""
        self._generation += 1

    async def close(self) -> None:
        kept, self._kept = self._kept, []
        for one in kept:
            await one.connection.close()

    async def _send(self, call: Call) -> Reply:
        generation = self._generation
        connection = await self._take()
        kept = connection is not None
        if connection is None:
            connection = await self.open()
        try:
            reply = await connection.exchange(call, seconds=self._call_seconds)
        except ConnectionClosed as refusal:
            if not kept or refusal.fields.get("answered"):
                raise
            connection = await self.open()
            reply = await connection.exchange(call, seconds=self._call_seconds)
        self._learn(connection.date)
        if connection.usable and generation == self._generation:
            self._kept.append(_Kept(connection, self._clock.monotonic(), generation))
        else:
            await connection.close()
        return reply

    async def _take(self) -> Connection | None:
        while self._kept:
            one = self._kept.pop()
            fresh = self._clock.monotonic() - one.since < self._timing.idle
            if one.connection.usable and fresh and one.generation == self._generation:
                return one.connection
            await one.connection.close()
        return None

    def _note(self, *, away: bool, why: str = "") -> None:
        if away != self._away:
            self._away = away
            log.warning("identity server %s because=%s", "away" if away else "back", why or "-")
            if self._on_change is not None:
                self._on_change(away, why)
