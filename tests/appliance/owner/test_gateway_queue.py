"""The gateway's queue: bounded, durable, fair, and each request decided once, also by two processes at once."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.owner.errors import GatewayQueueFull, GatewayQueueUnusable, GatewayRequestOver
from appliance.owner.gateway.fair import FairQueue, FairSlots, in_turns
from appliance.owner.gateway.queue import FILE, PERSON, POLICY, Bounds, Entry, Made, Queue
from appliance.owner.gateway.states import GATEWAY, QueueEvent, QueueState, at_time, step

NOW = 1_780_000_000
BOUNDS = Bounds(entries=20, per_proxy=10, per_workload=5)


def entry(name: str, proxy: str = "p1", **changed: object) -> Entry:
    made = Entry(
        rqh=name, domain="campus", owner="o", server="s", proxy=proxy, workload=f"{proxy}-{name}", agent=f"a-{name}",
        purpose="issue", state=QueueState.QUEUED, request=f"request of {name}", csr=b"\x30", executable=None, uid=1000,
        rule=None, approval=None, org=(), answer=None, refused=None, created=NOW, expires=NOW + 3600, updated=NOW,
    )  # fmt: skip
    return replace(made, **changed)  # type: ignore[arg-type]


def yes(name: str, was: QueueState = QueueState.QUEUED, token: str = "approval", **changed: object) -> Made:
    made = Made(name, was, QueueState.APPROVED, POLICY, "rule 1", "rule 1 fits", token, "hash")
    return replace(made, **changed)  # type: ignore[arg-type]


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue.open(tmp_path / "state", create=True)


@pytest.mark.req("A-52", "A-97")
def test_what_was_acknowledged_is_there_after_reopening_with_every_field(tmp_path: Path, queue: Queue) -> None:
    first = queue.add(entry("r1", executable="ab" * 32), BOUNDS, NOW)
    assert queue.decide([yes("r1", org=("member",))], NOW + 1) == [True]
    queue.finish("r1", {"certificate": "pem"}, NOW + 2)
    queue.close()
    again = Queue.open(tmp_path / "state")
    found = again.get("r1")
    assert found == replace(
        first, state=QueueState.ISSUED, approval="approval", rule="rule 1", org=("member",),
        answer={"certificate": "pem"}, updated=NOW + 2,
    )  # fmt: skip
    (made,) = again.decisions()
    assert (made["decider"], made["rule"], made["why"], made["decision"]) == (
        "policy", "rule 1", "rule 1 fits", "approved",
    )  # fmt: skip
    again.close()
    file = tmp_path / "state" / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.req("A-98")
def test_the_same_request_coalesces_and_a_newer_one_of_the_same_agent_takes_its_place(queue: Queue) -> None:
    queue.add(entry("r1", workload="w", agent="a"), BOUNDS, NOW)
    assert (
        queue.add(entry("r1", workload="w", agent="a", request="other bytes"), BOUNDS, NOW).request == "request of r1"
    )
    queue.add(entry("r2", workload="w", agent="a"), BOUNDS, NOW)
    queue.add(entry("r3", workload="stranger", agent="a"), BOUNDS, NOW)  # another program names the same agent
    states = {one.rqh: one.state.value for one in queue.every()}
    assert states == {"r1": "superseded", "r2": "queued", "r3": "queued"}
    assert queue.decide([yes("r1")], NOW) == [False]


@pytest.mark.req("A-97", "A-98", "A-93")
def test_no_proxy_and_no_program_fills_the_queue_of_the_others(queue: Queue) -> None:
    for at in range(10):
        queue.add(entry(f"flood{at}", "p1"), BOUNDS, NOW)
    with pytest.raises(GatewayQueueFull) as full:
        queue.add(entry("more", "p1"), BOUNDS, NOW)
    assert full.value.fields["retry_after_seconds"] > 0
    for at in range(5):
        queue.add(entry(f"one{at}", "p2", workload="w"), BOUNDS, NOW)
    with pytest.raises(GatewayQueueFull):
        queue.add(entry("one-more", "p2", workload="w"), BOUNDS, NOW)
    for at in range(5):
        queue.add(entry(f"other{at}", "p3"), BOUNDS, NOW)
    with pytest.raises(GatewayQueueFull):
        queue.add(entry("last", "p4"), BOUNDS, NOW)  # twenty wait in all
    assert queue.get("last") is None
    queue.decide([yes("flood0")], NOW)
    queue.add(entry("last", "p4"), BOUNDS, NOW)
    assert queue.counts(NOW) == {"queued": 20, "asked": 0}
    assert queue.counts(NOW + 3600) == {"queued": 0, "asked": 0}  # what is over takes no room
    queue.add(entry("later", "p1", expires=NOW + 9000), BOUNDS, NOW + 3600)


@pytest.mark.req("A-100")
def test_a_request_is_decided_once_and_never_after_its_time(queue: Queue) -> None:
    queue.add(entry("r1"), BOUNDS, NOW)
    queue.add(entry("r2", expires=NOW + 5), BOUNDS, NOW)
    no = yes("r1", token="no", state=QueueState.DENIED, decider=PERSON)
    assert queue.decide([yes("r1"), no, yes("r2", was=QueueState.ASKED)], NOW) == [True, False, False]
    assert queue.decide([yes("r2")], NOW + 5) == [False]
    found = queue.get("r1")
    assert found is not None and (found.state, found.approval) == (QueueState.APPROVED, "approval")
    assert len(queue.decisions()) == 1


def _decide_all(folder: str, mine: str, barrier: object, results: object) -> None:
    queue = Queue.open(Path(folder))
    barrier.wait()  # type: ignore[attr-defined]
    took = [at for at in range(200) if queue.decide([yes(f"r{at}", token=mine)], NOW) == [True]]
    results.put((mine, took))  # type: ignore[attr-defined]
    queue.close()


@pytest.mark.slow
@pytest.mark.req("A-100")
def test_two_processes_decide_the_same_two_hundred_requests_and_each_is_decided_once(tmp_path: Path) -> None:
    queue = Queue.open(tmp_path, create=True)
    for at in range(200):
        queue.add(entry(f"r{at}"), Bounds(1000, 1000, 1000), NOW)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    both = [
        context.Process(target=_decide_all, args=(str(tmp_path), name, barrier, results)) for name in ("one", "two")
    ]
    for one in both:
        one.start()
    told = dict(results.get(timeout=60) for _ in both)
    for one in both:
        one.join(10)
    assert sorted(told["one"] + told["two"]) == list(range(200))
    for name, took in told.items():
        assert {found.approval for at in took if (found := queue.get(f"r{at}"))} <= {name}
    assert len(queue.decisions()) == 200
    queue.close()


@pytest.mark.req("A-93")
def test_a_persons_no_is_remembered_and_a_rules_no_is_not_a_persons(queue: Queue) -> None:
    queue.add(entry("r1", workload="w1"), BOUNDS, NOW)
    queue.add(entry("r2", workload="w2"), BOUNDS, NOW)
    queue.decide([yes("r1", state=QueueState.DENIED, decider=PERSON), yes("r2", state=QueueState.DENIED)], NOW + 7)
    assert (queue.denied_at("w1"), queue.denied_at("w2"), queue.denied_at("w3")) == (NOW + 7, None, None)


@pytest.mark.req("A-98")
def test_what_ended_long_ago_is_forgotten(queue: Queue) -> None:
    queue.add(entry("old", expires=NOW + 10), BOUNDS, NOW)
    queue.add(entry("new", "p2", expires=NOW + 4 * 86_400), BOUNDS, NOW + 86_400)
    assert queue.get("old") is not None
    queue.add(entry("newer", "p3", expires=NOW + 5 * 86_400), BOUNDS, NOW + 3 * 86_400)
    assert queue.get("old") is None and queue.get("new") is not None


def test_a_missing_foreign_or_newer_queue_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(GatewayQueueUnusable):
        Queue.open(tmp_path)
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    with pytest.raises(GatewayQueueUnusable):
        Queue.open(tmp_path)
    (tmp_path / FILE).unlink()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(GatewayQueueUnusable):
        Queue.open(tmp_path)


@pytest.mark.req("A-98", "A-52")
def test_turns_are_fair_between_proxies_and_renewals_come_first_within_one() -> None:
    waiting = [
        entry(f"{proxy}-{at}", proxy) for proxy, count in (("p1", 50), ("p2", 5), ("p3", 5)) for at in range(count)
    ]
    waiting.append(entry("p1-renewal", "p1", purpose="renew"))
    turns = [one.rqh for one in in_turns(waiting, lambda one: one.proxy, lambda one: one.is_urgent)]
    assert turns[:6] == ["p1-renewal", "p2-0", "p3-0", "p1-0", "p2-1", "p3-1"]
    assert Counter(name[:2] for name in turns[:15]) == {"p1": 5, "p2": 5, "p3": 5}
    assert sorted(turns) == sorted(one.rqh for one in waiting)
    empty: FairQueue[str] = FairQueue()
    assert empty.pop() is None and len(empty) == 0


@pytest.mark.req("A-98")
def test_places_are_given_out_in_turns_and_a_caller_that_leaves_passes_its_place_on() -> None:
    async def story() -> list[str]:
        slots, order = FairSlots(1), list[str]()
        go = asyncio.Event()

        async def work(key: str, urgent: bool = False) -> None:
            async with slots.place(key, urgent=urgent):
                order.append(key)
                await go.wait()

        tasks = [asyncio.create_task(work("p1"))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(work(key)) for key in ("p1", "p1", "p1", "p2")]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with slots.place("p9", urgent=False):
            order.append("p9")
        return order

    assert asyncio.run(story()) == ["p1", "p1", "p2", "p1", "p9"]


@pytest.mark.req("A-98")
def test_the_state_table_has_no_way_back_and_no_way_out_of_an_end() -> None:
    ends = {QueueState.DENIED, QueueState.ISSUED, QueueState.SUPERSEDED, QueueState.EXPIRED}
    for state in QueueState:
        for event in QueueEvent:
            if state in ends:
                with pytest.raises(GatewayRequestOver):
                    step(state, event)
    order = list(QueueState)
    assert all(order.index(after) > order.index(before) for (before, _), after in GATEWAY.items())
    assert at_time(QueueState.APPROVED, is_over=True) is QueueState.EXPIRED
    assert at_time(QueueState.ISSUED, is_over=True) is QueueState.ISSUED
    assert at_time(QueueState.ASKED, is_over=False) is QueueState.ASKED
