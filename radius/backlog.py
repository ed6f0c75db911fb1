"""Packets that came faster than they could be looked at: logins under way go on first, new ones wait, or are dropped.

A NAS sends again what is not answered (RFC 5080, section 2.2.1), so a login that never began costs a repetition, and
one that is broken off in the middle costs everything that was done for it. What waited longer than a NAS does is
dropped unseen: its repetition is on the way. The NAS take turns, and where there are too many new ones it is at the
cost of the NAS that has most: one that floods crowds out only itself.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

MAX_NEW: Final = 1024
NEW_SECONDS: Final = 1.0
_ACCESS_REQUEST: Final = 1
_STATE: Final = 24
_HEADER: Final = 20

Address = tuple[Any, ...]
Packet = tuple[bytes, Address]


def begins(data: bytes) -> bool:
    """Whether a packet asks for a new login: an Access-Request without State. Nothing else of it is looked at."""
    if len(data) < _HEADER or data[0] != _ACCESS_REQUEST:
        return False
    at, end = _HEADER, len(data)
    while at + 2 <= end and data[at + 1] >= 2:
        if data[at] == _STATE:
            return False
        at += data[at + 1]
    return True


class Backlog:
    """What goes on, and by NAS what begins; times are monotonic seconds."""

    def __init__(self) -> None:
        self._going_on: deque[Packet] = deque()
        self._new: dict[str, deque[tuple[float, Packet]]] = {}
        self._waiting = 0
        self.dropped = 0
        """New ones that nobody looked at, ever."""

    def __len__(self) -> int:
        return len(self._going_on) + self._waiting

    def put(self, data: bytes, addr: Address, now: float, nas: str) -> None:
        """Take a packet of a known NAS in; of too many new ones the oldest of the NAS with most goes."""
        if not begins(data):
            self._going_on.append((data, addr))
            return
        if self._waiting >= MAX_NEW:
            self._take(max(self._new, key=lambda name: len(self._new[name])))
            self.dropped += 1
        self._new.setdefault(nas, deque()).append((now, (data, addr)))
        self._waiting += 1

    def going_on(self) -> Packet | None:
        """The next that belongs to a login under way, or to none."""
        return self._going_on.popleft() if self._going_on else None

    def new(self, now: float) -> Packet | None:
        """The next that begins a login and is not too old."""
        while self._new:
            since, packet = self._take(next(iter(self._new)))
            if now - since <= NEW_SECONDS:
                return packet
            self.dropped += 1
        return None

    def _take(self, nas: str) -> tuple[float, Packet]:
        """The oldest new one of a NAS, whose next turn is after everybody else's."""
        queue = self._new.pop(nas)
        oldest = queue.popleft()
        if queue:
            self._new[nas] = queue
        self._waiting -= 1
        return oldest
