"""r: one-time things spent from two processes on one database file, each exactly once; wall clock.

A nonce, an approval's identifier and a challenge, in turn. Both processes go for the same 64 at the same moment, meet
again, and go for the next. The races over HTTP, through two server processes, are in
tests/endtoend/test_races.py.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from multiprocessing.queues import Queue as Results
from multiprocessing.synchronize import Barrier
from pathlib import Path

from appliance.clock import SystemClock
from appliance.store import Store, Tx, challenges, nonces
from appliance.store.challenges import Challenge
from appliance.store.nonces import Nonce
from tests.bench.measure import Bench
from tests.bench.plan import Plan

WAITING = 64
KINDS = ("nonce", "approval", "challenge")
LATER = datetime(2100, 1, 1, tzinfo=UTC)


def run(plan: Plan, folder: Path) -> list[Bench]:
    """r: ten times the plan's operations in races."""
    if not plan.wants("r"):
        return []
    races = plan.operations * 10
    bench = Bench("r", f"{races} one-time things, spent by two processes at once: won once / races", "1", 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{folder / 'races.db'}"
    with closing(Store.open(url, SystemClock(), create=True)) as store:
        for begin in range(0, races, 1000):
            store.write_sync(lambda tx, at=begin: _prepare(tx, range(at, min(at + 1000, races))))  # type: ignore[misc]
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=_spend_all, args=(url, races, barrier, results)) for _ in range(2)]
    for one in both:
        one.start()
    told = [results.get(timeout=600) for _ in both]
    for one in both:
        one.join(30)
    won = Counter(race for mine, _ in told for race in mine)
    doubles, lost = sum(count > 1 for count in won.values()), races - len(won)
    assert (doubles, lost) == (0, 0), f"{doubles} spent twice, {lost} spent by nobody"
    bench.add(cpu=1.0, reference=len(won) / races, operations=races)
    bench.notes |= {
        "doubles": doubles, "lost": lost, "won_by_each": [len(mine) for mine, _ in told],
        "races_per_second": round(races / max(seconds for _, seconds in told)), "books": "checked",
    }  # fmt: skip
    return [bench]


def _prepare(tx: Tx, races: range) -> None:
    for race in races:
        kind = KINDS[race % len(KINDS)]
        if kind == "nonce":
            nonces.add(tx, Nonce(f"n{race}", "jkt", "issue", "agent", "proxy", LATER))
        elif kind == "challenge":
            made = Challenge(
                id=f"c{race}", rqh=f"r{race}", seat=0, txn="t", owner_id="o", agent_id=f"a{race}", proxy_id="p",
                nonce="n", state=challenges.APPROVED, request="q", csr=None, challenge="c", answer="a",
                created_at=tx.now, expires_at=LATER, updated_at=tx.now,
            )  # fmt: skip
            challenges.add(tx, made)


def _spend(tx: Tx, race: int) -> bool:
    kind = KINDS[race % len(KINDS)]
    if kind == "nonce":
        return nonces.spend(tx, f"n{race}")
    if kind == "challenge":
        return challenges.spend(tx, f"c{race}")
    return nonces.spend_id(tx, "approval", f"owner {race}", tx.now + timedelta(days=2))


def _spend_all(url: str, races: int, barrier: Barrier, results: Results[tuple[list[int], float]]) -> None:
    """One of the two processes: which races it won, and how long it took."""
    store = Store.open(url, SystemClock())
    won: list[int] = []

    async def together(races: range) -> None:
        async def one(race: int) -> None:
            if await store.write(lambda tx: _spend(tx, race)):
                won.append(race)

        await asyncio.gather(*(one(race) for race in races))

    seconds = 0.0
    with asyncio.Runner() as runner:
        for begin in range(0, races, WAITING):
            barrier.wait(60)  # or whoever holds the file once would be ahead for ever
            begun = time.perf_counter()
            runner.run(together(range(begin, min(begin + WAITING, races))))
            seconds += time.perf_counter() - begun
    store.close()
    results.put((won, seconds))
