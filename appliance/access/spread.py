"""An immutable mapping of many entries of which a few change at a time: only the parts that are touched are copied.

A hundred thousand entries copied for each change would hold up the decisions that come meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

PARTS: Final = 256
_LAST: Final = PARTS - 1


class Spread(Mapping[K, V]):
    """`with_changes` gives another one; this one keeps what it had."""

    __slots__ = ("_parts",)

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        self._parts: tuple[dict[K, V], ...] = tuple({} for _ in range(PARTS))
        for key, value in (entries or {}).items():
            self._parts[hash(key) & _LAST][key] = value

    def put(self, key: K, value: V) -> None:
        """Only while it is being filled and nobody else has it."""
        self._parts[hash(key) & _LAST][key] = value

    def with_changes(self, changes: Mapping[K, V]) -> Spread[K, V]:
        """With these entries in place of, or beside, those of the same keys."""
        parts = list(self._parts)
        copied: set[int] = set()
        for key, value in changes.items():
            at = hash(key) & _LAST
            if at not in copied:
                copied.add(at)
                parts[at] = dict(parts[at])
            parts[at][key] = value
        made: Spread[K, V] = Spread.__new__(Spread)
        made._parts = tuple(parts)
        return made

    def take_apart(self) -> Iterator[None]:
        """Free it in steps, when nothing rests on it any more: as a whole it would hold everybody up."""
        for part in self._parts:
            part.clear()
            yield

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D, /) -> V | D: ...
    def get(self, key: K, default: V | D | None = None, /) -> V | D | None:
        return self._parts[hash(key) & _LAST].get(key, default)

    def __getitem__(self, key: K) -> V:
        return self._parts[hash(key) & _LAST][key]

    def __iter__(self) -> Iterator[K]:
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self._parts))
