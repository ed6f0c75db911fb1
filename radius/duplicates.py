"""Duplicate detection of a RADIUS server (RFC 5080, section 2.2.2), within bounds and without clocks.

A request is known by source address, source port and identifier; another authenticator under the same three is a new
request, and the NAS has given up the one before. A repeated request gets the same octets again, or nothing while it is
still worked on.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, Literal

Key = tuple[tuple[Any, ...], int]
KEPT_SECONDS: Final = 10.0  # how long an answer is kept for retransmissions; NAS give up after about 3 x 3 s


class Duplicates:
    """What was asked and answered of late."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Key, tuple[float, bytes, bytes | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def look(self, key: Key, authenticator: bytes, now: float) -> bytes | Literal["new", "underway"]:
        """The answer that was given, or what the request is; a new one counts as under way from now on."""
        found = self._kept.get(key)
        if found is not None and found[1] == authenticator:
            return "underway" if found[2] is None else found[2]
        if found is not None:
            del self._kept[key]
        self._kept[key] = (now, authenticator, None)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return "new"

    def answered(self, key: Key, authenticator: bytes, reply: bytes, now: float) -> None:
        """Keep the answer, unless the NAS asks something else under this key by now."""
        found = self._kept.get(key)
        if found is not None and found[1] == authenticator:
            self._kept[key] = (now, authenticator, reply)
            self._kept.move_to_end(key)

    def forget(self, key: Key, authenticator: bytes) -> None:
        """The request gets no answer: when it comes again it is looked at again."""
        found = self._kept.get(key)
        if found is not None and found[1] == authenticator and found[2] is None:
            del self._kept[key]

    def sweep(self, now: float) -> None:
        """Forget what is too old; the oldest come first."""
        while self._kept:
            key, (since, _, _) = next(iter(self._kept.items()))
            if now - since < KEPT_SECONDS:
                break
            del self._kept[key]

    def clear(self) -> None:
        self._kept.clear()
