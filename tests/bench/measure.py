"""CPU time of processes, the cost of a signature, and a figure as a ratio to a reference of the same run."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

TBS_BYTES = 600
_SCHED = 2
_READY = "ready\n"
_TURN, _PAUSE_SECONDS = 50, 0.2


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, to the nanosecond, threads that have ended included.

    FreeRADIUS begins and ends threads all the time, so a sum over those that are there would go backwards.
    """
    return time.clock_gettime(_clock_of(pid))


def _clock_of(pid: int) -> int:
    """The kernel's number for the CPU clock of a process: clock_getcpuclockid(3), which Python has for threads only."""
    return (~pid << 3) | _SCHED


@contextmanager
def awake(*cores: int | None) -> Iterator[None]:
    """Keep these processors from sleeping, with loops that run only when nothing else wants to.

    A virtual processor that slept wakes when its host finds the time, and finds its caches empty: tails would show it.
    """
    mine = str(os.getpid())
    idle = [
        subprocess.Popen([sys.executable, "-S", "-c", _IDLE, str(core), mine]) for core in cores if core is not None
    ]
    try:
        yield
        assert all(one.poll() is None for one in idle)
    finally:
        for one in idle:
            one.kill()
            one.wait()


_IDLE = """
import os, sys
core, parent = map(int, sys.argv[1:])
os.sched_setaffinity(0, {core})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == parent:
    pass
"""


@dataclass(frozen=True, slots=True)
class Primitives:
    """CPU microseconds of one P-256 signature and one verification, as the product's own library makes them."""

    sign: float
    verify: float

    @classmethod
    @contextmanager
    def during(cls, pid: int) -> Iterator[Callable[[], Primitives]]:
        """While the process `pid` works, in short turns on its own processor; at the end a function tells the mean.

        A neighbour may slow one processor down and not the other, and for parts of a second.
        """
        program = [sys.executable, "-m", "tests.bench.measure", str(pid)]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None and child.stdout is not None
            assert child.stdout.readline() == _READY
            told: list[str] = []
            yield lambda: cls(*json.loads(told[0]))
            told.append(child.communicate()[0])

    @classmethod
    def measure(cls, count: int = 300) -> Primitives:
        """In this process, on 600 bytes, which is about a certificate."""
        key, algorithm, data = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(hashes.SHA256()), bytes(TBS_BYTES)
        public, signature = key.public_key(), key.sign(data, algorithm)
        return cls(
            _microseconds(lambda: key.sign(data, algorithm), count),
            _microseconds(lambda: public.verify(signature, data, algorithm), count),
        )


def _microseconds(work: Callable[[], object], count: int) -> float:
    for _ in range(count // 10 + 1):
        work()
    begun = time.thread_time()
    for _ in range(count):
        work()
    return (time.thread_time() - begun) / count * 1e6


@dataclass(slots=True)
class Bench:
    """One figure: CPU microseconds per operation and the reference beside it, repetition by repetition.

    `at_least` True: ratio = reference / CPU, more is better. False: ratio = CPU / reference, less is better.
    """

    id: str
    what: str
    against: str
    must: float | None
    at_least: bool = True
    cpu: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    operations: int = 0

    def add(self, *, cpu: float, reference: float, operations: int) -> None:
        """One repetition, microseconds."""
        self.cpu.append(cpu)
        self.reference.append(reference)
        self.operations += operations

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.cpu, self.reference, strict=True)
        return [base / cpu if self.at_least else cpu / base for cpu, base in pairs]

    @property
    def ratio(self) -> float:
        """The median, which is judged."""
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        """Whether the must is kept; True where there is none."""
        if self.must is None:
            return True
        return self.ratio >= self.must if self.at_least else self.ratio <= self.must

    @property
    def is_noisy(self) -> bool:
        """The reference moved by more than 15 % between repetitions: judge again on a quieter machine."""
        middle = statistics.median(self.reference)
        return max(abs(one - middle) for one in self.reference) > 0.15 * middle

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "id": self.id,
            "what": self.what,
            "against": self.against,
            "must": self.must,
            "better": "more" if self.at_least else "less",
            "ratio": round(self.ratio, 3),
            "ratios": [round(one, 3) for one in self.ratios],
            "cpu_us": [round(one, 1) for one in self.cpu],
            "reference_us": [round(one, 1) for one in self.reference],
            "operations": self.operations,
            "holds": self.holds,
            "noisy": self.is_noisy,
            **self.notes,
        }


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _sample(pid: int) -> None:
    """Primitives in turns beside a process until nobody writes to standard input any more."""
    os.sched_setaffinity(0, os.sched_getaffinity(pid))
    turns = [Primitives.measure(_TURN)]
    print(_READY, end="", flush=True)
    turns.clear()
    while not turns or not select.select([sys.stdin], [], [], _PAUSE_SECONDS)[0]:
        turns.append(Primitives.measure(_TURN))
    print(json.dumps([statistics.mean(one.sign for one in turns), statistics.mean(one.verify for one in turns)]))


if __name__ == "__main__":
    _sample(int(sys.argv[1]))
