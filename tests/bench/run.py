"""Measures the paths that matter and prints each as a ratio to a reference of the same run.

    python -m tests.bench.run [--quick] [--only ID]... [--json FILE] [--keep DIR]

a1   EST renewal on 32 kept mTLS connections (a1x8, a1x1: on eight, on one; a1s: first enrolment with one-time secrets)
a2   EST renewal on a new mTLS connection each, sixteen at a time (a2x1: one at a time)
b1   requestvoucher at the registrar, CPU only, in this process (b1x2: certificate chains of two links)
b2   the same at the MASA (b2x2)
c    dual-identity issuance: X.509 and WIT for one key, with evidence and the owner's approval, on 64 kept connections
     (cx32, cx8, cx1: on so many)
e1, e1m, e2, f, fr, s, a1f   with --only: a million certificates stored (tests.bench.revocation says what each is)
gf, gt, gn   an owner's gateway: fairness at the desk over three kills, of the rules' turns, and the cost of 100 proxies
     (tests.bench.gateway says what each is)
r    one-time things spent by two processes on one database file
d1   one access decision over HTTPS with 10,000 agents and 1,000 owners in memory
r1   EAP-TLS 1.3 logins with a decision by the embedded server, 32 supplicants at once, against FreeRADIUS that asks an
     appliance of its own (both processes counted); r1-12: the same with TLS 1.2
d3, d3v2, d3h, d1p, d1s, d1v   with --only: FreeRADIUS with and without the hook (TLS 1.3, 1.2), the appliance's part
     of a login, and with 100,000 agents in memory: the tail of a decision, the longest pause of a snapshot swap, how
     soon a change is decided on; F = FreeRADIUS' CPU time per login without the hook
i    with --only: the decision port in a storm of twice what it can do: what is admitted stays quick (wall clock), the
     rest hears 503 and Retry-After
g    transactions of the store, 64 waiting, against fdatasync of the same disk
rn   500 agents renew at the same moment under standing approvals, within a minute, none failing (wall clock)
rns  10,000 uses of one standing approval by two processes, of which 5,000 are allowed, against one process
m    200 pledges in flight through the registrar for 30 s while the MASA takes 500 ms per answer, against one that
     answers at once (wall clock); m99: the 99th percentile of another client's renewals meanwhile
f8   EST renewals on a kept connection while slow clients drip, stall, never read and sit there: 99th percentile against
     the same without them (wall clock); f8n: on a new mTLS connection each
z    with --only: a million inputs of the fuzzer for each reader of RADIUS without a finding, hours of it; z-hook and so
     on: one reader (tests.bench.fuzzed says which there are)

What is compared is CPU time of the appliance's process (schedstat of all its threads), never the wall clock, because
neighbours move that (but for g, where waiting for the disk is the point). References (microseconds of CPU) are measured
in turn with the product, repetition by repetition: Rs, Rv = one P-256 signature, one verification; H = a bare OpenSSL
server taking one mTLS connection; P = one plain aiohttp GET; S = the signatures and verifications that an issuance
really makes, counted in a dry run; D = fdatasync per second. Appliance on the last core, client on the first, if there
are two. Replies are verified after the clock has stopped, and rows and audit entries are counted against them: a wrong
answer is an error, not a slow one. `noisy` means that the reference itself moved by more than 15 %: repeat on a quieter
machine before believing it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import ssl
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import cryptography
from cryptography.hazmat.backends.openssl import backend

from tests.bench import (
    commits,
    crowd,
    decide,
    enrol,
    fuzzed,
    gateway,
    identity,
    logins,
    races,
    radius_logins,
    renewals,
    revocation,
    steady,
    storm,
    vouchers,
)
from tests.bench.measure import Bench
from tests.bench.plan import Plan


def main(arguments: list[str] | None = None) -> int:
    """0 when every must that was measured holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few operations: shows that it works, not how fast")
    parser.add_argument("--only", action="append", default=[], metavar="ID", help="this bench only; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every repetition here")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep homes and logs here")
    parser.add_argument("--repetitions", type=int, default=0, metavar="N")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="run the appliance under cProfile; spoils ratios")
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    two = len(cores) > 1
    program = [sys.executable, "-m", "appliance"]
    if options.profile:
        program = [sys.executable, "-m", "tests.bench.profiled", str(options.profile.absolute())]
    shape: dict[str, Any] = {
        "repetitions": 2,
        "operations": 60,
        "warm_up": 10,
        "agents": 500,
        "owners": 50,
        "seconds": 3.0,
        "in_flight": 20,
        "stored": 20_000,
        "cases": 2000,
    }
    plan = Plan(
        **(shape if options.quick else {}),
        server_core=cores[-1] if two else None,
        client_core=cores[0] if two else None,
        only=options.only,
        keep=options.keep is not None,
        program=program,
    )
    if options.repetitions:
        plan = _with(plan, repetitions=options.repetitions)
    if plan.client_core is not None:
        os.sched_setaffinity(0, {plan.client_core})
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = options.keep or Path(temporary)
        benches = measure(plan, folder)
    print(table(benches))
    if options.json:
        options.json.write_text(json.dumps(report(benches), indent=1) + "\n", encoding="utf-8")
    return 0 if benches and all(bench.holds for bench in benches) else 1


def measure(plan: Plan, folder: Path) -> list[Bench]:
    """Everything that the plan wants, one after the other."""
    return [
        *enrol.run(plan, folder),
        *vouchers.run(plan),
        *identity.run(plan, folder),
        *decide.run(plan, folder),
        *radius_logins.run(plan, folder),
        *logins.run(plan, folder),
        *storm.run(plan, folder),
        *commits.run(plan, folder),
        *races.run(plan, folder),
        *gateway.run(plan, folder),
        *steady.run(plan, folder),
        *crowd.run(plan, folder),
        *revocation.run(plan, folder),
        *renewals.run(plan, folder),
        *fuzzed.run(plan),
    ]


def table(benches: list[Bench]) -> str:
    """One line per bench: median, smallest and largest ratio."""
    rows = [("ID", "WHAT", "CPU us", "REFERENCE us", "RATIO", "MIN", "MAX", "MUST", "")]
    for bench in benches:
        sign = ">=" if bench.at_least else "<="
        must = "" if bench.must is None else f"{sign} {bench.must:.2f}"
        verdict = "holds" if bench.holds else "FAILS"
        rows.append(
            (
                bench.id,
                bench.what,
                f"{statistics.median(bench.cpu):.0f}",
                f"{bench.against} = {statistics.median(bench.reference):.0f}",
                f"{bench.ratio:.2f}",
                f"{min(bench.ratios):.2f}",
                f"{max(bench.ratios):.2f}",
                must,
                (verdict if bench.must is not None else "") + (", noisy" if bench.is_noisy else ""),
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for bench in benches:
        told = {name: value for name, value in bench.notes.items() if name != "books"}
        lines += [f"{bench.id}: " + "; ".join(f"{name} {value}" for name, value in told.items())] if told else []
    return "\n".join(lines)


def report(benches: list[Bench]) -> dict[str, Any]:
    """Every repetition, and what it ran on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "openssl_of_ssl": ssl.OPENSSL_VERSION,
        "cryptography": cryptography.__version__,
        "openssl_of_cryptography": backend.openssl_version_text(),
        "benches": [bench.as_json() for bench in benches],
    }


def _with(plan: Plan, **changed: Any) -> Plan:
    from dataclasses import replace

    return replace(plan, **changed)


if __name__ == "__main__":
    sys.exit(main())
