"""What failed beside others, twice more with nobody beside it: `python -m tests.alone` after a run of everything.

Campuses of a dozen processes share the processors with two other workers, and a wait can be too short for that. A
test that then passes twice alone is told and does not fail the run; whether its wait or our code is too slow is for
whoever reads it to find out. Only tests that start processes get this second chance, and only a few of them: what fails
among the others is a fault.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")
WITH_PROCESSES = ("tests/endtoend/", "tests/interop/", "tests/lab/")
MOST = 3


def second_chance(failed: Iterable[str]) -> list[str]:
    """The tests to run again, by their own ids; none where one of them may not, or where they are too many."""
    tests = sorted({_without_group(test) for test in failed})
    return tests if len(tests) <= MOST and all(test.startswith(WITH_PROCESSES) for test in tests) else []


def _without_group(test: str) -> str:
    """A test's id without the name of the group that pytest-xdist has put behind it."""
    head, bracket, tail = test.rpartition("]")
    return head + bracket + tail.partition("@")[0]


def main() -> int:
    """0 if everything that failed passes twice alone."""
    tests = second_chance(json.loads(LAST_FAILED.read_text(encoding="utf-8")) if LAST_FAILED.exists() else ())
    if not tests:
        return 1
    for _ in range(2):
        again = [sys.executable, "-m", "pytest", "--full", "-n", "0", "-p", "no:cacheprovider", *tests]
        if subprocess.run(again, check=False).returncode != 0:
            return 1
    for test in tests:
        print(f"FAILED BESIDE OTHERS, passed twice alone: {test}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
