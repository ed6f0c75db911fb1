"""z: a million inputs of the fuzzer for each reader of RADIUS, without a crash, a hang or a wrong accept.

Packets are `z-datagram`, `z-packet`, `z-accounting` and `z-coa`; EAP-TLS fragments `z-fragments` and `z-damage` (a
genuine login damaged on the way); tagged attributes `z-tunnel`; the hook's JSON `z-hook`. Counted is what libFuzzer
says that it executed. A target that is not through after HOURS has failed, and so has one with a finding, which
is kept in tests/fuzz/crashes. Needs atheris (extra `fuzz`).
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time

from tests.bench.measure import Bench
from tests.bench.plan import Plan

TARGETS = ("datagram", "packet", "accounting", "coa", "fragments", "damage", "tunnel", "hook")
IDS = tuple(f"z-{name}" for name in TARGETS)
HOURS = 6
_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s*(\d+)$", re.MULTILINE)


def run(plan: Plan) -> list[Bench]:
    """Those of IDS that are asked for by name; `z` is all of them."""
    wanted = [name for name in TARGETS if "z" in plan.only or f"z-{name}" in plan.only]
    assert not wanted or importlib.util.find_spec("atheris"), "atheris is not installed: pip install -e '.[fuzz]'"
    return [_fuzz(name, plan.cases) for name in wanted]


def _fuzz(name: str, cases: int) -> Bench:
    bench = Bench(f"z-{name}", f"fuzzed inputs of {cases} without a finding, radius-{name}", "cases", 1.0)
    command = [
        sys.executable, "-m", "tests.fuzz", f"radius-{name}", "--runs", str(cases), "--seconds", str(HOURS * 3600),
    ]  # fmt: skip
    begun = time.monotonic()
    # its own limit comes first; this one is for a fuzzer that does not heed it
    done = subprocess.run(command, capture_output=True, text=True, timeout=HOURS * 3600 + 600, check=False)
    seconds = time.monotonic() - begun
    told = _EXECUTED.search(done.stderr)
    executed = int(told[1]) if told else 0
    if done.returncode:
        bench.notes["finding"] = done.stderr[-2000:]
    bench.add(cpu=cases, reference=0 if done.returncode else executed, operations=executed)
    bench.notes |= {"cases_per_second": round(executed / seconds), "books": "checked"}
    return bench
