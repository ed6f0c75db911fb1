"""Admission: who is served when a port is asked for more than it can do.

Served in turn, everybody waits as long as the whole queue is; so past a certain load nobody is served in time and all
the work is in vain. Here a queue that stands is noticed by the loop being late, twice in a row, which a burst is not.
From then on the newest request goes first, because its client still waits, and one that has waited past its time is
told 503 and Retry-After, for a fraction of what its answer would cost: only its bytes are decrypted. A few may always
wait. When nobody had to be refused for a while everything is as before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

_log = logging.getLogger(__name__)
BEAT_SECONDS = 0.005
LATE_SECONDS = 0.003
"""asyncio's own timers come up to a millisecond late."""
CALM_BEATS = 20
PATIENCE_SECONDS = 0.02
MAY_WAIT = 64
"""A FreeRADIUS asks over 32 connections at the most, and to it a refusal is a rejected login: a burst of two of them is
served whole."""
TURN_SECONDS = 0.00015
GREETINGS = 2
HELD_BYTES, HELD_GREETING_BYTES = 65_536, 16_384
"""Of one connection; past it nothing more is read until they were passed on."""


class Holdable(Protocol):
    """A connection whose bytes were read and not yet looked at."""

    @property
    def is_greeting(self) -> bool:
        """Whether it is in its TLS handshake: that can only be done or dropped."""
        ...

    def deliver(self, data: bytes) -> None:
        """Pass the bytes on."""
        ...

    def choke(self, is_choked: bool) -> None:
        """Read nothing more, or go on."""
        ...


@dataclass(slots=True)
class _Held:
    wire: Holdable
    since: float
    data: list[bytes] = field(default_factory=list)
    room: int = HELD_BYTES


class Admission:
    """Of one listener; `is_refusing` is true while bytes are passed on whose request is to be refused."""

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        """`now` in seconds, for what waits; the loop has its own clock."""
        self._name = name
        self._now = now
        self.is_crowded = False
        self.is_watching = False
        self.is_refusing = False
        self.refused = 0
        """How many, ever; HTTP counts them."""
        self._held: dict[Holdable, _Held] = {}
        self._asked: deque[_Held] = deque()
        self._greeting: deque[_Held] = deque()
        self._is_due = False
        self._late = 0
        self._calm = 0
        self._most = 0
        self._told = 0

    def holds(self, wire: Holdable, data: bytes) -> bool:
        """Whether these bytes wait here; if not, whoever has them goes on with them."""
        loop = asyncio.get_running_loop()
        if not self.is_watching:
            self.is_watching = True
            self._next_beat(loop)
        if not self.is_crowded:
            return False
        held = self._held.get(wire)
        if held is None:
            held = self._held[wire] = _Held(wire, self._now())
            if wire.is_greeting:
                held.room = HELD_GREETING_BYTES
                self._greeting.append(held)
            else:
                self._asked.append(held)
            self._most = max(self._most, len(self._asked))
        held.data.append(data)
        held.room -= len(data)
        if held.room < 0:
            wire.choke(True)
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._turn)
        return True

    def gone(self, wire: Holdable) -> None:
        """Its peer has hung up: nobody waits for an answer."""
        held = self._held.pop(wire, None)
        if held is not None:
            held.data.clear()

    def _turn(self) -> None:
        """A little of everything, then the loop looks for newer ones."""
        self._is_due = False
        for _ in range(min(GREETINGS, len(self._greeting))):
            self._pass_on(self._greeting.popleft())
        asked, patience = self._asked, PATIENCE_SECONDS
        end = self._now() + TURN_SECONDS
        while asked and (now := self._now()) < end:
            newest = asked.pop()
            if now - newest.since > patience and len(asked) >= MAY_WAIT:
                asked.append(newest)
                break
            self._pass_on(newest)
        end = self._now() + TURN_SECONDS
        self.is_refusing = True
        try:
            while len(asked) > MAY_WAIT and (now := self._now()) < end and now - asked[0].since > patience:
                self._pass_on(asked.popleft())
        finally:
            self.is_refusing = False
        if asked or self._greeting:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _pass_on(self, held: _Held) -> None:
        if held.data:
            self._held.pop(held.wire, None)
            if held.room < 0:
                held.wire.choke(False)
            held.wire.deliver(held.data[0] if len(held.data) == 1 else b"".join(held.data))

    def _next_beat(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(BEAT_SECONDS, self._beat, loop, loop.time() + BEAT_SECONDS)

    def _beat(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._late = self._late + 1 if loop.time() - due > LATE_SECONDS else 0
        refused, self._told = self.refused - self._told, self.refused
        if self.is_crowded:
            self._calm = self._calm + 1 if not refused and self._most <= MAY_WAIT else 0
            self._most = len(self._asked)
            if self._calm >= CALM_BEATS and not self._held:
                self.is_crowded = False
                _log.warning("event=crowd-over listener=%s refused_ever=%d", self._name, self.refused)
        elif self._late >= 2:
            self.is_crowded = True
            self._calm = 0
            _log.warning("event=crowded listener=%s", self._name)
        if self.is_crowded or self._late:
            self._next_beat(loop)
        else:
            self.is_watching = False
