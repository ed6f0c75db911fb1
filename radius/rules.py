"""Rules: what one may look at, when it takes a login, and what it then gives.

All conditions of a rule must hold; one that is absent always holds, except `credential`, which is `dual` unless said
otherwise. A condition lists what it takes; a last `*` in nas, port or ssid stands for any end. An owner of several
departments fits a rule that names any of them.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

CREDENTIALS: Final = ("dual", "single", "proxy")
OWNER_KINDS: Final = ("person", "device", "policy")
MODELS: Final = ("agent-mediated", "owner-mediated", "server-mediated", "standing")
TIERS: Final = ("affirming", "warning")
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_OF_A_DAY: Final = 1440
_STATION: Final = re.compile(r"[0-9A-Fa-f]{2}(?:[-:.]?[0-9A-Fa-f]{2}){5}:(.+)\Z")


class Asked(NamedTuple):
    """Everything about one login that a rule may look at, as texts. What is not known is empty, and fits no condition.

    `credential` is dual, single or proxy; only a dual one has an owner, so only it has an owner kind and departments.
    """

    credential: str = "dual"
    owner_kind: str = ""
    departments: tuple[str, ...] = ()
    agent_class: str = ""
    tier: str = ""
    model: str = ""
    nas: str = ""
    port: str = ""
    ssid: str = ""
    site: str = ""


# fields of Asked that a rule compares as they are; credential and departments are looked up in an index
COMPARED: Final = ("owner_kind", "agent_class", "tier", "model", "nas", "port", "ssid", "site")
_AT: Final = {name: Asked._fields.index(name) for name in COMPARED}


@dataclass(frozen=True, slots=True)
class Window:
    """Weekdays (0 = Monday) and minutes of the day, `start` to before `end`, as clocks in `zone` show them.

    With `start` after `end` it runs over midnight and belongs to the day on which it begins.
    """

    zone: ZoneInfo
    days: frozenset[int]
    start: int
    end: int

    def holds(self, now: datetime) -> bool:
        """Whether `now` (aware) is inside."""
        try:
            local = now.astimezone(self.zone)
        except (OverflowError, ValueError):  # the first and the last day of the calendar
            return False
        day, minute = local.weekday(), local.hour * 60 + local.minute
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (day in self.days and minute >= self.start) or ((day - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Conditions are as written; an empty one means any. `vlan` is empty exactly when `reject` is not."""

    name: str
    order: int
    vlan: str = ""
    vlan_id: int | str = 0
    credentials: tuple[str, ...] = ("dual",)
    departments: tuple[str, ...] = ()
    owner_kinds: tuple[str, ...] = ()
    agent_classes: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    nas: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    ssids: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    window: Window | None = None
    role: str = ""
    filter_id: str = ""
    session_timeout: int | None = None
    reject: str = ""
    checks: tuple[tuple[int, frozenset[str], tuple[str, ...]], ...] = field(init=False, repr=False, compare=False)
    """Of each condition: which field of Asked, the exact values, the beginnings."""

    def __post_init__(self) -> None:
        checks = []
        for name in COMPARED:
            if values := self.values(name):
                exact, beginnings = split_patterns(name, values)
                checks.append((_AT[name], exact, beginnings))
        object.__setattr__(self, "checks", tuple(checks))

    def values(self, condition: str) -> tuple[str, ...]:
        """What the rule lists under a field of Asked that is compared as it is."""
        found: tuple[str, ...] = getattr(self, _HELD_BY[condition])
        return found

    def takes(self, asked: Asked, now: datetime) -> bool:
        """Whether every condition but credential and department holds."""
        for at, exact, beginnings in self.checks:
            value = asked[at]
            if value not in exact and not value.startswith(beginnings):  # type: ignore[union-attr]
                return False
        return self.window is None or self.window.holds(now)


_HELD_BY: Final = {
    "owner_kind": "owner_kinds",
    "agent_class": "agent_classes",
    "tier": "tiers",
    "model": "models",
    "nas": "nas",
    "port": "ports",
    "ssid": "ssids",
    "site": "sites",
}
WITH_PATTERNS: Final = frozenset({"nas", "port", "ssid"})


def split_patterns(condition: str, values: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """(exact values, beginnings) of what a condition lists."""
    if condition not in WITH_PATTERNS:
        return frozenset(values), ()
    exact = frozenset(value for value in values if not value.endswith("*"))
    return exact, tuple(value[:-1] for value in values if value.endswith("*"))


def canonical_department(text: str) -> str:
    """The form in which departments are compared: NFC, without case and without blanks around it.

    One rule for policy and directory. Look-alike letters of another script stay different, so they match no rule.
    """
    if text.isascii():
        return text.strip().lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).strip().casefold())


def ssid_of(called_station: str) -> str:
    """The SSID behind the access point's address in Called-Station-Id (RFC 3580, section 3.20); empty without one."""
    found = _STATION.match(called_station)
    return found[1] if found else ""
