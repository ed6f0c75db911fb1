"""Admission: who is served when a port is asked for more than it can do.

A crowd is noticed by the loop being late, twice in a row. From then on requests wait here, and in turn: a few NAS with
all their threads busy are served whole, a refusal would be a rejected login. Where more wait than those can be, for
longer than a moment, it is a storm: served in turn, everybody would wait as long as the whole queue is, and all the
work would be in vain. Then the newest goes first, because its client still waits, and whoever was not served within a
moment hears 503 and Retry-After, for a fraction of what the answer would cost: only the bytes are decrypted. One of the
two happens in every turn, so nobody is left waiting and somebody is always served. The storm is over when no more
connections ask than a few NAS have, or everybody who asked could have been served.
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
WINDOW_BEATS = 20
MAY_WAIT = 128
"""A FreeRADIUS asks over 32 connections at the most: four of them are served whole, however long it takes."""
PATIENCE_SECONDS = 0.01
STORM_PATIENCE_SECONDS = 0.0002
"""At least; it is as long as a request takes."""
TURN_SECONDS, STORM_TURN_SECONDS = 0.002, 0.0001
"""In a storm, but where the loop has other work for longer than MOMENT_SECONDS: then as much as that."""
MOMENT_SECONDS = 0.0004
FULL = 0.95
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
        self.is_storm = False
        self.is_watching = False
        self.is_refusing = False
        self.refused = 0
        """How many, ever; HTTP counts them."""
        self._held: dict[Holdable, _Held] = {}
        self._asked: deque[_Held] = deque()
        self._greeting: deque[_Held] = deque()
        self._is_due = False
        self._ended = self._now()
        self._late = 0
        self._beats = 0
        self._begun = 0.0
        self._askers: set[Holdable] = set()
        self._served = self._refused_before = 0
        self._serving = 0.0
        self._each = 0.0
        """Seconds that a request takes."""

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
                self._askers.add(wire)
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
        asked = self._asked
        if len(asked) > MAY_WAIT and not self.is_storm and self._now() - asked[0].since > PATIENCE_SECONDS:
            self.is_storm = True
            self._begin_window()
            _log.warning("event=storm listener=%s waiting=%d", self._name, len(asked))
        if self.is_storm:
            self._choose()
        else:
            end = self._now() + TURN_SECONDS
            while asked:
                self._pass_on(asked.popleft())
                if self._now() >= end:
                    break
        self._ended = self._now()
        for _ in range(min(GREETINGS, len(self._greeting))):
            self._pass_on(self._greeting.popleft())
        if asked or self._greeting:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _choose(self) -> None:
        """Serve the newest, one whatever its age, and refuse those that waited too long."""
        asked, patience = self._asked, max(STORM_PATIENCE_SECONDS, self._each)
        begun = now = self._now()
        elsewhere = begun - self._ended
        share = elsewhere if elsewhere > MOMENT_SECONDS else STORM_TURN_SECONDS
        while asked:
            self._pass_on(asked.pop())
            self._served += 1
            now = self._now()
            if now - begun >= share or (asked and now - asked[-1].since > patience):
                break
        self._serving += now - begun
        end = now + max(share, now - begun)
        self.is_refusing = True
        try:
            while asked and (now := self._now()) < end and now - asked[0].since > patience:
                self._pass_on(asked.popleft())
        finally:
            self.is_refusing = False

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
        if self.is_crowded:
            self._beats += 1
            if self._beats >= WINDOW_BEATS:
                self._end_window()
        elif self._late >= 2:
            self.is_crowded = True
            self._begin_window()
            _log.warning("event=crowded listener=%s", self._name)
        if self.is_crowded or self._late:
            self._next_beat(loop)
        else:
            self.is_watching = False

    def _begin_window(self) -> None:
        self._beats = 0
        self._begun = self._now()
        self._askers = {held.wire for held in self._asked}
        self._served, self._refused_before = 0, self.refused
        self._serving = 0.0

    def _end_window(self) -> None:
        """The storm is over when few ask or everybody could have been served, the crowd when nobody waits."""
        if self.is_storm:
            self._each = self._serving / self._served if self._served else 0.0
            wanted = (self._served + self.refused - self._refused_before) * self._each
            if len(self._askers) <= MAY_WAIT or wanted < FULL * (self._now() - self._begun):
                self.is_storm = False
                _log.warning("event=storm-over listener=%s refused_ever=%d", self._name, self.refused)
        elif not self._held:
            self.is_crowded = False
            _log.warning("event=crowd-over listener=%s", self._name)
        self._begin_window()
