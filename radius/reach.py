"""Which rules can never be used, because earlier ones take everything that they could take.

Each rule is a box: per condition the set of values it takes. Values are the ones that the policy names, and one for
"anything else"; a beginning (`sw-*`) has a value of its own that no longer beginning takes. A box that earlier boxes
cover is unreachable. The answer is sound: a rule that some login could be taken by is never called unreachable. Three
things make it careful rather than complete: windows in different time zones are held to be independent, so that such
rules are never found; issuance models and attestation tiers that this release does not know count as possible; and the
work is bounded, past which rules count as reachable and are named in `unchecked`.

One department at a time is enough: a login of several departments that a rule takes is taken by an earlier rule
whenever the same login with only the department that fits is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from radius.rules import (
    COMPARED,
    CREDENTIALS,
    MINUTES_OF_A_DAY,
    OWNER_KINDS,
    Rule,
    Window,
    canonical_department,
    split_patterns,
)

MAX_PIECES: Final = 256
MAX_STEPS: Final = 400_000
_OTHER: Final = "\uffff"  # not a character, so no condition can hold it
_WEEK: Final = 7 * MINUTES_OF_A_DAY

Box = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A rule that can never match, with the names of those before it that take what it could."""

    rule: Rule
    shadowed_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """What was found: the first unreachable rule in the order of the text, and rules that were not looked at."""

    unreachable: Unreachable | None
    unchecked: tuple[str, ...]


def find_unreachable(rules: Sequence[Rule]) -> Reach:
    """Looks at every rule until one is unreachable or the work is spent."""
    space = _Space(rules)
    steps = MAX_STEPS
    unchecked: list[str] = []
    by_department: dict[str, list[int]] = {}
    free: list[int] = []
    for at, rule in enumerate(rules):
        names = {canonical_department(one) for one in rule.departments}
        before = sorted({*free, *(one for name in names for one in by_department.get(name, ()))})
        if not rule.departments:
            before = list(range(at))
        taken_by: set[int] = set()
        left: bool | None = False
        for credential in rule.credentials:
            box = space.box(rule, credential)
            if box is None:
                continue
            steps, left, used = _is_left(space, box, before, credential, steps)
            taken_by |= used
            if left is not False:
                break
        if left is None:
            unchecked.append(rule.name)
        elif not left:
            return Reach(Unreachable(rule, tuple(sorted(rules[one].name for one in taken_by))), ())
        if rule.departments:
            for name in names:
                by_department.setdefault(name, []).append(at)
        else:
            free.append(at)
    return Reach(None, tuple(unchecked))


def _is_left(
    space: _Space, box: Box, before: Sequence[int], credential: str, steps: int
) -> tuple[int, bool | None, set[int]]:
    """(work left, whether something of the box is left or None for not known, the rules that took of it)."""
    pieces: list[Box] = [box]
    used: set[int] = set()
    for one in before:
        if steps <= 0 or len(pieces) > MAX_PIECES:
            return steps, None, used
        taken = space.box(space.rules[one], credential)
        if taken is None:
            continue
        rest: list[Box] = []
        for piece in pieces:
            steps -= 1
            parts = _without(piece, taken)
            if parts is None:
                rest.append(piece)
            else:
                used.add(one)
                rest += parts
        if not rest:
            return steps, False, used
        pieces = rest
    return steps, True, used


def _without(piece: Box, taken: Box) -> list[Box] | None:
    """What of `piece` is outside `taken`, as boxes; None when they do not meet."""
    for mine, theirs in zip(piece, taken, strict=True):
        if not mine & theirs:
            return None
    parts: list[Box] = []
    rest = list(piece)
    for at, theirs in enumerate(taken):
        outside = rest[at] & ~theirs
        if outside:
            parts.append((*rest[:at], outside, *rest[at + 1 :]))
            rest[at] &= theirs
    return parts


class _Space:
    """The values of each condition as bits, and every rule as boxes over them."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self._departments = _bits({canonical_department(one) for rule in rules for one in rule.departments} | {_OTHER})
        self._values = {name: _bits(_representatives(rules, name)) for name in COMPARED}
        self._zones = sorted({rule.window.zone.key for rule in rules if rule.window is not None})
        self._hours = {zone: _slices(rules, zone) for zone in self._zones}
        self._full = {name: (1 << len(bits)) - 1 for name, bits in self._values.items()}
        self._boxes: dict[tuple[int, str], Box | None] = {}

    def box(self, rule: Rule, credential: str) -> Box | None:
        """The logins with this kind of credential that a rule takes; None if there are none."""
        key = (rule.order, credential)
        if key not in self._boxes:
            self._boxes[key] = self._box(rule, credential)
        return self._boxes[key]

    def _box(self, rule: Rule, credential: str) -> Box | None:
        if credential not in rule.credentials:
            return None
        if credential != CREDENTIALS[0] and (rule.departments or rule.owner_kinds):
            return None  # only a dual-identity credential names an owner
        departments = self._departments
        if rule.departments:
            masks = [_sum(departments[canonical_department(one)] for one in rule.departments)]
        else:
            masks = [(1 << len(departments)) - 1]
        for name, bits in self._values.items():
            values = rule.values(name)
            masks.append(_fitting(name, values, bits) if values else self._full[name])
        for zone, hours in self._hours.items():
            if rule.window is None or rule.window.zone.key != zone:
                masks.append((1 << len(hours)) - 1)
            else:
                masks.append(_sum(1 << at for at, minute in enumerate(hours) if _covers(rule.window, minute)))
        return tuple(masks) if all(masks) else None


def _bits(values: set[str]) -> dict[str, int]:
    return {value: 1 << at for at, value in enumerate(sorted(values))}


def _sum(masks: Iterable[int]) -> int:
    total = 0
    for one in masks:
        total |= one
    return total


def _representatives(rules: Sequence[Rule], name: str) -> set[str]:
    if name == "owner_kind":
        return set(OWNER_KINDS)  # the directory takes in no others
    found = {_OTHER}
    for rule in rules:
        exact, beginnings = split_patterns(name, rule.values(name))
        found |= exact
        found |= {beginning + _OTHER for beginning in beginnings}
    return found


def _fitting(name: str, values: tuple[str, ...], bits: dict[str, int]) -> int:
    exact, beginnings = split_patterns(name, values)
    return _sum(bit for value, bit in bits.items() if value in exact or value.startswith(beginnings))


def _slices(rules: Sequence[Rule], zone: str) -> list[int]:
    """First minutes of the parts of a week between which no window of this zone begins or ends."""
    edges = {0, _WEEK}
    for rule in rules:
        if rule.window is not None and rule.window.zone.key == zone:
            for day in range(7):
                edges |= {(day * MINUTES_OF_A_DAY + at) % _WEEK for at in (0, rule.window.start, rule.window.end)}
    return [first for first, _ in pairwise(sorted(edges))]


def _covers(window: Window, minute_of_week: int) -> bool:
    day, minute = divmod(minute_of_week, MINUTES_OF_A_DAY)
    if window.start < window.end:
        return day in window.days and window.start <= minute < window.end
    return (day in window.days and minute >= window.start) or ((day - 1) % 7 in window.days and minute < window.end)
