"""How much is measured, and where."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Counts per repetition; cores None = not pinned; `only` empty = all; `program` runs the appliance.

    `seconds` and `in_flight` are those of a steady load, `cases` the inputs of the fuzzer for one target.
    """

    repetitions: int = 5
    operations: int = 1000
    warm_up: int = 100
    agents: int = 10_000
    owners: int = 1_000
    seconds: float = 30.0
    in_flight: int = 200
    stored: int = 1_000_000
    cases: int = 1_000_000
    server_core: int | None = None
    client_core: int | None = None
    only: Collection[str] = ()
    keep: bool = False
    program: Sequence[str] = (sys.executable, "-m", "appliance")

    def wants(self, name: str) -> bool:
        return not self.only or name in self.only
