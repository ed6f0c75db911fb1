"""The shape of a fuzz target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Read = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Target:
    """`reads` are the readers that one input goes to, one after the other; `seeds` are where the fuzzer begins."""

    reads: tuple[Read, ...]
    seeds: tuple[bytes, ...]
