"""Keeps rows about failures few: the first of a kind at once, then one row a minute that says how many more.

Whoever can send packets can make failures, a stranger too. So the kinds told apart are bounded, and so are new rows per
minute; what does not fit is counted by reason alone. Decisions about certificates that verified are not held back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from radius import Decision

WINDOW_SECONDS = 60.0
ROWS_PER_MINUTE = 30.0
BURST = 120.0
MAX_KINDS = 128

Kind = tuple[str, str, str, str]


@dataclass(slots=True)
class _Seen:
    since: float
    last: Decision
    more: int = 0


class Repeats:
    """What was seen lately. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, _Seen] = {}
        self._rest: dict[str, _Seen] = {}
        self._tokens = BURST
        self._filled_at = float("-inf")

    def is_news(self, decision: Decision, now: float, times: int = 1) -> bool:
        """Whether this failure gets its own row at once; if not, it is counted and told by due().

        One that stands for several gets its row as one, and the others are counted.
        """
        kind = _kind_of(decision)
        seen = self._kinds.get(kind)
        if seen is None and len(self._kinds) < MAX_KINDS and self._take(now):
            self._kinds[kind] = _Seen(now, decision, times - 1)
            return True
        if seen is None:
            seen = self._rest.setdefault(decision.reason_code, _Seen(now, decision))
        seen.more += times
        seen.last = decision
        return False

    def due(self, now: float, *, everything: bool = False) -> Iterator[tuple[Decision, int]]:
        """(the last of a kind, how many it stands for) of the minutes that are over."""
        for kind, seen in list(self._kinds.items()):
            if now - seen.since < WINDOW_SECONDS and not everything:
                continue
            if seen.more:
                yield seen.last, seen.more
                seen.since, seen.more = now, 0
            else:
                del self._kinds[kind]
        for reason, seen in list(self._rest.items()):
            if now - seen.since >= WINDOW_SECONDS or everything:
                del self._rest[reason]
                yield _of_many(seen.last), seen.more

    def _take(self, now: float) -> bool:
        self._tokens = min(BURST, self._tokens + max(0.0, now - self._filled_at) * ROWS_PER_MINUTE / 60)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _kind_of(decision: Decision) -> Kind:
    request = decision.request
    serial = "" if request.credential is None else f"{request.credential.serial:x}"
    return decision.reason_code, request.nas or request.nas_address, request.calling_station, serial


def _of_many(decision: Decision) -> Decision:
    """The row for failures of many senders: the last of them is named as an example."""
    first, *rest = decision.steps
    marked = first._replace(evidence=f"of many senders, the last one: {first.evidence}")
    two, three, four = rest
    return decision._replace(steps=(marked, two, three, four))
