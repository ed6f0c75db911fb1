"""Runs the appliance under cProfile, every thread of it: `python -m tests.bench.profiled FILE run ...`."""

from __future__ import annotations

import cProfile
import os
import sys
import threading
from typing import Any

from appliance.cli import main


def _main(file: str) -> None:
    threads: list[cProfile.Profile] = []
    original = threading.Thread.run

    def run(self: Any) -> None:
        if self.name.startswith("store"):
            mine = cProfile.Profile()
            threads.append(mine)
            mine.enable()
        original(self)

    threading.Thread.run = run  # type: ignore[method-assign]
    own = cProfile.Profile()
    own.enable()
    try:
        main()
    finally:
        own.disable()
        own.dump_stats(file)
        for at, one in enumerate(threads):
            one.dump_stats(f"{file}.{at}")
        os._exit(0)


if __name__ == "__main__":
    name = sys.argv[1]
    sys.argv = ["appliance", *sys.argv[2:]]
    _main(name)
