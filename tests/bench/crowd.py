"""f8: EST renewals while a crowd of slow clients does what it can: drips, stalls, never reads, sits there.

The 99th percentile of a good client's renewals, on one kept connection and on a new one each time, against its own
before the crowd came, by turns. Deadlines and connection caps are the defaults; what the crowd saw of them is checked.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from appliance.settings import WebSettings
from tests.bench import wire
from tests.bench.campus import Campus, Proxy, environment, new_key
from tests.bench.measure import Bench, percentile
from tests.bench.plan import Plan

SLACK = 5.0
"""A deadline is looked at every quarter second, and the crowd's own clock is one loop with thousands of tasks."""
EVERY = 0.05
FILLING = 10.0
"""Seconds until what waits for a client that never reads fills the buffers."""
Told = dict[str, dict[str, Any]]


def run(plan: Plan, folder: Path) -> list[Bench]:
    """f8 and f8n, if they are wanted."""
    if not (plan.wants("f8") or plan.wants("f8n")):
        return []
    home = folder / "f8"
    home.mkdir(parents=True)
    keep = WebSettings().keepalive_seconds
    campus = Campus(home, core=plan.server_core, settings=(f"web.keepalive_seconds={keep}",), program=plan.program)
    try:
        benches = _measure(campus, plan)
    finally:
        campus.stop()
    if not plan.keep:
        shutil.rmtree(home)
    return [bench for bench in benches if plan.wants(bench.id)]


def _measure(campus: Campus, plan: Plan) -> list[Bench]:
    kept = Bench(
        "f8", "EST renewals, kept connection, slow clients: p99, us of wall clock", "alone", 2.0, at_least=False
    )
    fresh = Bench("f8n", "the same, a new mTLS connection each", "alone", 2.0, at_least=False)
    proxy = campus.proxy()
    for _ in range(plan.repetitions):
        _renew(campus, proxy, 2.0)  # warm, and done with the crowd before
        alone = _renew(campus, proxy, plan.seconds)
        beside, here, told = _beside_a_crowd(campus, proxy, plan)
        _check(told)
        for bench, at in ((kept, 0), (fresh, 1)):
            bench.add(
                cpu=percentile(beside[at], 0.99) * 1e6,
                reference=percentile(alone[at], 0.99) * 1e6,
                operations=len(beside[at]),
            )
            medians = " and ".join(f"{percentile(one[at], 0.5) * 1e3:.1f}" for one in (beside, alone))
            bench.notes |= {"books": "checked", "p50 ms, last": f"{medians} alone"}
        kept.notes["slow clients, last"] = f"{here} at once; " + ", ".join(
            f"{name}: {one['most']} at once, {one['longest']} s at the most" for name, one in told.items()
        )
    campus.check_log()
    return [kept, fresh]


def _beside_a_crowd(campus: Campus, proxy: Proxy, plan: Plan) -> tuple[tuple[list[float], list[float]], int, Told]:
    """Seconds that renewals took, how many slow clients were there, and what these tell of themselves."""
    host, port = campus.address("device")
    scale = min(1.0, plan.in_flight / 200)
    command = [sys.executable, "-m", "tests.bench.slow_clients", host, str(port), str(plan.seconds + 1), str(scale)]
    crowd = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert crowd.stdout is not None
        here = json.loads(crowd.stdout.readline())["here"]
        beside = _renew(campus, proxy, plan.seconds)
        told = json.loads(crowd.communicate(timeout=plan.seconds + 60)[0])
    finally:
        crowd.kill()
    return beside, here, told


def _check(told: Told) -> None:
    """Nobody stayed longer than his deadline, and no address had more connections than it may."""
    web = WebSettings()
    deadlines = {
        "header drip": web.header_seconds,
        "body drip": web.request_seconds,
        "never reads": web.request_seconds + FILLING,
        "TLS stall": web.handshake_seconds,
        "idle, one address": web.handshake_seconds,
        "idle, an address each": max(web.header_seconds, web.keepalive_seconds),
    }
    for name, deadline in deadlines.items():
        assert told[name]["came"] > 0, (name, told[name])
        assert told[name]["longest"] <= deadline + SLACK, (name, told[name])


def _renew(campus: Campus, proxy: Proxy, seconds: float) -> tuple[list[float], list[float]]:
    """A renewal on the kept connection and one on a new one, in turn, twenty a second; seconds that each took."""
    address = campus.address("device")
    connection = wire.Connection(address, proxy.context)
    took: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + seconds
    moment = time.monotonic()
    while moment < end:
        for times in took:
            key = new_key()
            message = proxy.renewal(key)
            time.sleep(max(0.0, moment - time.monotonic()))
            begun = time.perf_counter()
            if times is took[0]:
                answer = connection.exchange(message)
            else:
                new = wire.Connection(address, proxy.context)
                answer = new.exchange(message)
                new.close()
            times.append(time.perf_counter() - begun)
            campus.enrolled(answer, key)
            moment = max(moment + EVERY, time.monotonic())
    connection.close()
    return took
