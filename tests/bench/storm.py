"""i: twice what the decision port can do, from a fixed clock: what is admitted stays quick, the rest hears 503 at once.

A process of its own makes the storm: one thread drives all connections, and costs less per request than the server
does. A request is due by the clock, and sent when a connection is free; none is ever given up, so one that stays
unanswered fails the bench. What a client in the storm waits for is measured by another one with one connection, which
has not two hundred others to look after. Afterwards every decision must be in the log, once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import select
import shutil
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from est.chains import ski_of
from tests.bench import wire
from tests.bench.campus import Campus
from tests.bench.decide import Population, policy
from tests.bench.measure import Bench, percentile
from tests.bench.plan import Plan

LANES = 240
"""So many that one is free whenever a request is due; an address has at most 256."""
SATURATING = 8
STORM_SECONDS = 16.0
PROBES = 500.0
"""Requests a second of the client that measures."""
PATIENCE_SECONDS = 5.0
LOG_SECONDS = 120.0
"""For what the storms have left in the journal."""


@dataclass(slots=True)
class Outcome:
    """Seconds of those that were decided, and of those that were turned away."""

    admitted: list[float] = field(default_factory=list)
    turned_away: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.admitted) / self.seconds


class Crowd:
    """Connections that are asked over one by one, as many at once as there are."""

    def __init__(self, campus: Campus, lanes: int) -> None:
        self.decided = 0
        self._lanes = {}
        self._poll = select.epoll()
        for _ in range(lanes):
            one = wire.Connection(campus.address("decision"), campus.anonymous).detach()
            one.setblocking(False)
            self._lanes[one.fileno()] = one
            self._poll.register(one.fileno(), select.EPOLLIN)

    def ask(self, calls: Sequence[bytes], *, seconds: float, rate: float = float("inf")) -> Outcome:
        """Send by the clock for so long, then wait for what is under way; AssertionError if an answer stays out."""
        found = Outcome()
        idle, begun_at, parts = deque(self._lanes), dict.fromkeys(self._lanes, 0.0), dict.fromkeys(self._lanes, b"")
        begun = time.perf_counter()
        end, sent, under_way = begun + seconds, 0, 0
        while under_way or time.perf_counter() < end:
            now = time.perf_counter()
            assert now < end + PATIENCE_SECONDS, f"{under_way} requests were never answered"
            while idle and now < end and begun + sent / rate <= now:
                lane = idle.popleft()  # in turn, as if each connection were another NAS
                begun_at[lane] = time.perf_counter()
                self._lanes[lane].sendall(calls[sent % len(calls)])
                sent, under_way = sent + 1, under_way + 1
            wait = begun + sent / rate - now if idle and now < end else 0.01
            ready = self._poll.poll(wait if wait >= 0.001 else 0.0)  # it knows whole milliseconds
            arrived = time.perf_counter()  # what comes later in this list has waited for this client
            for lane, _ in ready:
                data = parts[lane] = parts[lane] + self._lanes[lane].recv(65_536)
                head, _, body = data.partition(b"\r\n\r\n")
                if len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or b"1"):
                    continue
                taken = arrived - begun_at[lane]
                status, parts[lane] = head[9:12], b""
                assert status == b"200" or (status == b"503" and b"retry-after: 1" in head.lower()), head
                (found.admitted if status == b"200" else found.turned_away).append(taken)
                idle.append(lane)
                under_way -= 1
        found.seconds = time.perf_counter() - begun
        self.decided += len(found.admitted)
        return found

    def close(self) -> None:
        self._poll.close()
        for one in self._lanes.values():
            one.close()


def run(plan: Plan, folder: Path) -> list[Bench]:
    """i, where it is asked for by name."""
    if "i" not in plan.only:
        return []
    population = Population(plan.agents, plan.owners, secrets.token_urlsafe(32))
    campus = Campus(
        folder / "i", core=plan.server_core, program=plan.program,
        fill=lambda campus, tx: population.write(tx, ski_of(campus.ca("agents")) or b""),
    )  # fmt: skip
    try:
        campus.operation("policy.publish", text=policy())
        aki = (ski_of(campus.ca("agents")) or b"").hex()
        calls = [population.call(serial, aki) for serial in list(population.vlan_of)[:4000]]
        return [_storm(campus, plan, calls)]
    finally:
        campus.stop()
        if not plan.keep:
            shutil.rmtree(folder / "i")


def _storm(campus: Campus, plan: Plan, calls: Sequence[bytes]) -> Bench:
    bench = Bench(
        "i", "admitted decisions in a storm of twice the capacity, 99th percentile", "4 p50", 1.0, at_least=False
    )
    alone, few = Crowd(campus, 1), Crowd(campus, SATURATING)
    seconds, calm = min(plan.seconds, STORM_SECONDS), min(plan.seconds, 1.0)
    alone.ask(calls, seconds=0.5)
    others = len(_in_a_storm(campus, alone, calls, 0.5, 100)[0].admitted)  # their buffers are no growth
    grown, behind = [], []
    for _ in range(plan.repetitions):
        quiet = percentile(alone.ask(calls, seconds=calm).admitted, 0.5)
        capacity = few.ask(calls, seconds=calm).rate
        before = _resident(campus.pid)
        storm, seen = _in_a_storm(campus, alone, calls, seconds, 2 * capacity - PROBES)
        grown.append(_resident(campus.pid) - before)
        asked = len(storm.admitted) + len(storm.turned_away)
        p99 = percentile(seen.admitted, 0.99)
        bench.add(cpu=p99 * 1e6, reference=4 * quiet * 1e6, operations=asked)
        others += len(storm.admitted)
        behind.append(_until_logged(campus, alone.decided + few.decided + others))
    bench.notes |= {
        "capacity_per_s": round(capacity),
        "asked_per_s": round(asked / storm.seconds),
        "admitted_per_s": round(storm.rate),
        "turned_away": len(storm.turned_away),
        "quiet_p50_us": round(quiet * 1e6),
        "admitted_p50_us": round(percentile(seen.admitted, 0.5) * 1e6),
        "admitted_of_seen": f"{len(seen.admitted)} of {len(seen.admitted) + len(seen.turned_away)}",
        "turned_away_p99_us": round(percentile(seen.turned_away or [0.0], 0.99) * 1e6),
        "grown_kb": max(grown),
        "log_complete_after_s": round(max(behind), 1),
        "books": "checked",
    }
    for one in (alone, few):
        one.close()
    return bench


def _in_a_storm(
    campus: Campus, alone: Crowd, calls: Sequence[bytes], seconds: float, rate: float
) -> tuple[Outcome, Outcome]:
    """What the storm found, and what a client with one connection found in it."""
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe()

    def rage() -> None:
        os.nice(5)  # the other client has to be on time
        many = Crowd(campus, LANES)
        theirs.send(None)
        try:
            theirs.send(many.ask(calls, seconds=seconds, rate=rate))
        except AssertionError as error:
            theirs.send(error)
        many.close()

    process = forked.Process(target=rage)
    process.start()
    try:
        ours.recv()
        with contextlib.suppress(PermissionError):  # or it waits for the end of the other one's slice
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        seen = alone.ask(calls, seconds=seconds, rate=PROBES)
        storm = ours.recv()
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        process.join(30)
    if isinstance(storm, AssertionError):
        raise storm
    return storm, seen


def _until_logged(campus: Campus, decided: int) -> float:
    """Seconds until so many decisions are in the log; AssertionError if they never are, or more."""
    begun = time.monotonic()
    with closing(sqlite3.connect(f"file:{campus.database}?mode=ro", uri=True)) as database:
        while (rows := database.execute("SELECT count(*) FROM decisions").fetchone()[0]) < decided:
            assert time.monotonic() - begun < LOG_SECONDS, f"{decided} decisions and {rows} rows"
            time.sleep(0.25)
        taken = time.monotonic() - begun
        time.sleep(1.0)  # the crowd is over, the journal removed, and whatever would come twice has come
        (rows,) = database.execute("SELECT count(*) FROM decisions").fetchone()
    assert rows == decided, f"{decided} decisions and {rows} rows"
    return taken


def _resident(pid: int) -> int:
    """Kilobytes in memory."""
    fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0])
