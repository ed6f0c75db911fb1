"""A port that is asked for more than it can do: a crowd is served in turn, in a storm the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from appliance.web import admission as rules
from appliance.web.admission import Admission
from appliance.web.http import is_whole_post
from tests.appliance.web.front import Client, Seen, client_context, get, listening, post


class Hand:
    """A connection that notes what it was given, and how."""

    def __init__(self, gate: Admission, *, is_greeting: bool = False) -> None:
        self.gate, self.is_greeting = gate, is_greeting
        self.got: list[tuple[bytes, bool]] = []
        self.is_choked = False
        self.order: list[Hand] = []

    def deliver(self, data: bytes) -> None:
        self.got.append((data, self.gate.is_refusing))
        self.order.append(self)

    def choke(self, is_choked: bool) -> None:
        self.is_choked = is_choked


def play(story: Callable[[Admission, list[float]], None]) -> None:
    async def act() -> None:
        now = [0.0]
        story(Admission("test", lambda: now[0]), now)

    asyncio.run(act())


def crowd(gate: Admission, count: int) -> list[Hand]:
    gate.is_crowded = True
    hands = [Hand(gate) for _ in range(count)]
    for hand in hands:
        assert gate.holds(hand, b"x")
    return hands


def test_nobody_waits_while_the_loop_is_on_time() -> None:
    def story(gate: Admission, now: list[float]) -> None:
        assert not gate.holds(Hand(gate), b"x")
        loop = asyncio.get_running_loop()
        for _ in range(5):
            gate._beat(loop, loop.time())
        assert not gate.is_crowded and not gate.is_watching

    play(story)


def test_a_loop_that_is_late_once_is_a_burst_and_twice_a_crowd_until_it_has_been_calm() -> None:
    def story(gate: Admission, now: list[float]) -> None:
        loop = asyncio.get_running_loop()
        late = rules.LATE_SECONDS + 0.001
        gate._beat(loop, loop.time() - late)
        gate._beat(loop, loop.time())
        gate._beat(loop, loop.time() - late)
        assert not gate.is_crowded
        gate._beat(loop, loop.time() - late)
        assert gate.is_crowded
        for _ in range(rules.WINDOW_BEATS):
            assert gate.is_crowded
            gate._beat(loop, loop.time())
        assert not gate.is_crowded

    play(story)


def end_window(gate: Admission) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(rules.WINDOW_BEATS):
        gate._beat(loop, loop.time())


def deliveries(hands: list[Hand]) -> list[Hand]:
    """Whom the gate passes on, in that order."""
    order: list[Hand] = []
    for hand in hands:
        hand.order = order
    return order


def test_a_crowd_is_served_in_turn_and_nobody_refused_however_long_it_waited() -> None:
    def story(gate: Admission, now: list[float]) -> None:
        hands = crowd(gate, rules.MAY_WAIT)
        order = deliveries(hands)
        now[0] = 1.0
        gate._turn()
        assert order == hands and not gate.is_storm
        assert all(hand.got == [(b"x", False)] for hand in hands)

    play(story)


def test_more_than_may_wait_for_longer_than_a_moment_are_a_storm() -> None:
    def story(gate: Admission, now: list[float]) -> None:
        hands = crowd(gate, rules.MAY_WAIT + 1)
        now[0] = rules.PATIENCE_SECONDS
        gate._turn()
        assert not gate.is_storm and all(hand.got == [(b"x", False)] for hand in hands)
        hands = crowd(gate, rules.MAY_WAIT + 1)
        now[0] += rules.PATIENCE_SECONDS + 0.001
        gate._turn()
        assert gate.is_storm
        assert [hand.got for hand in hands] == [[(b"x", True)]] * rules.MAY_WAIT + [[(b"x", False)]]

    play(story)


def test_in_a_storm_the_newest_go_first_and_everybody_else_hears_no_the_oldest_first() -> None:
    def story(gate: Admission, now: list[float]) -> None:
        gate.is_storm = True
        old = crowd(gate, 5)
        now[0] = rules.STORM_PATIENCE_SECONDS + 0.0001
        new = crowd(gate, 3)
        order = deliveries(old + new)
        gate._turn()
        assert order == new[::-1] + old
        assert [hand.got for hand in old] == [[(b"x", True)]] * 5 and [hand.got for hand in new] == [
            [(b"x", False)]
        ] * 3
        assert not gate._held

    play(story)


class World:
    """A loop and its clients in a time of their own: what is passed on takes its time, and so does everything else."""

    def __init__(self, clients: int, *, each: float = 0.00015, refusal: float = 0.00005, other: float = 0.0) -> None:
        self.now = 0.0
        self.gate = Admission("test", lambda: self.now)
        self.gate.is_crowded = True
        self.served: list[float] = []
        self.refused: list[float] = []
        self.idle = [Asking(self, each, refusal) for _ in range(clients)]
        self.clients = clients
        self.other = other
        self._window = 0.0

    def live(self, seconds: float, *, rate: float = float("inf")) -> None:
        """Clients ask as soon as they are idle and the rate allows; those beyond `clients` go once answered."""
        end, begun, sent = self.now + seconds, self.now, 0
        self.served, self.refused = [], []
        while self.now < end:
            self.now += 0.00002 + self.other
            while self.idle and begun + sent / rate <= self.now:
                asking, sent = self.idle.pop(0), sent + 1
                asking.since = self.now
                self.gate.holds(asking, b"x")
            self.gate._turn()
            if self.now - self._window > rules.WINDOW_BEATS * rules.BEAT_SECONDS:
                self._window = self.now
                self.gate._end_window()
                self.gate.is_crowded = True  # the loop is late as ever

    @property
    def waited_p99(self) -> float:
        return sorted(self.served)[int(len(self.served) * 0.99)]


class Asking:
    is_greeting = False

    def __init__(self, world: World, each: float, refusal: float) -> None:
        self.world, self.each, self.refusal, self.since = world, each, refusal, 0.0

    def deliver(self, data: bytes) -> None:
        is_refused = self.world.gate.is_refusing
        self.world.gate.refused += is_refused  # as HTTP does
        self.world.now += self.refusal if is_refused else self.each
        (self.world.refused if is_refused else self.world.served).append(self.world.now - self.since)
        self.world.idle.append(self)
        if len(self.world.idle) + len(self.world.gate._held) > self.world.clients:
            self.world.idle.pop()

    def choke(self, is_choked: bool) -> None:
        pass


def live(story: Callable[[], None]) -> None:
    async def act() -> None:
        story()

    asyncio.run(act())


@pytest.mark.parametrize("clients", [32, 96, rules.MAY_WAIT])
@pytest.mark.parametrize("other", [0.0, 0.0005])
def test_a_few_nas_are_served_whole_also_after_a_storm(clients: int, other: float) -> None:
    def story() -> None:
        world = World(240, other=other)
        world.live(0.5)
        assert world.gate.is_storm and world.refused
        world.clients = clients
        del world.idle[max(0, clients - len(world.gate._held)) :]
        world.live(0.3)
        assert not world.gate.is_storm
        world.live(1.0)
        assert world.served and not world.refused and not world.gate.is_storm

    live(story)


def test_in_a_storm_what_is_served_waited_for_a_moment_and_nobody_waits_for_long() -> None:
    def story() -> None:
        world = World(240)
        world.live(0.2, rate=12_000)
        assert world.gate.is_storm
        world.live(2.0, rate=12_000)
        assert world.gate.is_storm and len(world.served) > 4000
        assert world.waited_p99 < 4 * 0.00015
        assert max(world.refused) < 0.05
        world.live(0.5, rate=4000)  # less than it can do
        assert not world.gate.is_storm
        world.live(1.0, rate=4000)
        assert not world.refused and len(world.served) > 3900

    live(story)


@pytest.mark.parametrize(("each", "other"), [(0.00015, 0.0005), (0.0024, 0.0), (0.005, 0.002)])
def test_in_a_storm_somebody_is_always_served(each: float, other: float) -> None:
    """Also where the newest has waited past its time before anybody looked: a slow machine, a loop with other work."""

    def story() -> None:
        world = World(240, each=each, other=other)
        world.live(1.0)
        assert world.gate.is_storm
        world.live(2.0)
        assert world.gate.is_storm and len(world.served) > 0.3 * 2.0 / (each + other)
        world.live(1.0, rate=0.5 / (each + other))  # half of what it can do
        assert not world.gate.is_storm
        world.live(1.0, rate=0.5 / (each + other))
        assert not world.refused

    live(story)


def test_nobody_is_left_waiting_while_others_come_again_and_again() -> None:
    """Newest first with a place for the oldest left some of them until their connection had outlived its deadline."""

    def story() -> None:
        world = World(64)
        first = world.idle[:10]
        for one in first:
            world.gate.holds(one, b"x")
        del world.idle[:10]
        world.live(0.1)
        assert all(one not in {held.wire for held in world.gate._asked if held.since == 0.0} for one in first)
        assert max(world.served) < 0.03

    live(story)


def test_a_turn_ends_though_more_wait() -> None:
    def story() -> None:
        for is_storm in (False, True):
            world = World(100)
            world.gate.is_storm = is_storm
            for one in world.idle:
                world.gate.holds(one, b"x")
            world.idle.clear()
            world.gate._turn()
            assert len(world.served) == (1 if is_storm else 14) and len(world.refused) <= 3
            assert world.gate._is_due

    live(story)


def test_a_crowd_is_over_when_nobody_waits() -> None:
    def story(gate: Admission, now: list[float]) -> None:
        (hand,) = crowd(gate, 1)
        end_window(gate)
        assert gate.is_crowded
        gate._turn()
        assert hand.got
        end_window(gate)
        assert not gate.is_crowded

    play(story)


def test_what_comes_in_pieces_stays_in_order_and_who_is_gone_is_not_served() -> None:
    def story(gate: Admission, now: list[float]) -> None:
        one, other = crowd(gate, 2)
        assert gate.holds(one, b"y")
        gate.gone(other)
        gate._turn()
        assert (one.got, other.got) == ([(b"xy", False)], [])

    play(story)


def test_handshakes_are_never_refused_and_few_at_a_time() -> None:
    def story(gate: Admission, now: list[float]) -> None:
        gate.is_crowded = True
        hands = [Hand(gate, is_greeting=True) for _ in range(5)]
        for hand in hands:
            gate.holds(hand, b"hello")
        now[0] = 1.0
        for served in (2, 4, 5):
            gate._turn()
            assert [hand.got for hand in hands] == [[(b"hello", False)]] * served + [[]] * (5 - served)

    play(story)


@pytest.mark.parametrize(("is_greeting", "most"), [(False, 65_536), (True, 16_384)])
def test_of_a_connection_that_waits_only_so_much_is_read(is_greeting: bool, most: int) -> None:
    def story(gate: Admission, now: list[float]) -> None:
        gate.is_crowded = True
        hand = Hand(gate, is_greeting=is_greeting)
        gate.holds(hand, bytes(most))
        assert not hand.is_choked
        gate.holds(hand, b"x")
        assert hand.is_choked
        gate._turn()
        assert not hand.is_choked
        assert [len(data) for data, _ in hand.got] == [most + 1]

    play(story)


@pytest.mark.parametrize("tls", [False, True])
def test_a_refusal_is_503_with_retry_after_and_the_connection_goes_on(tls: bool) -> None:
    async def run() -> None:
        seen = Seen()
        async with listening(seen=seen, sheds=True, tls=tls) as (listener, port):
            assert listener.admission is not None
            client = await Client.connect(port, client_context() if tls else None)
            assert (await client.ask(post("/echo", b"1"))).status == 200
            listener.admission.is_refusing = True
            answer = await client.ask(post("/echo", b"2"))
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert b'"reason": "overloaded"' in answer.body
            assert (await client.ask(get("/who"))).status == 200
            listener.admission.is_refusing = False
            assert (await client.ask(post("/echo", b"3"))).body == b"3"
            assert listener.admission.refused == 1
            assert [call.body for call in seen.calls] == [b"1", b"", b"3"]
            await client.close()

    asyncio.run(run())


def test_in_a_crowd_everybody_is_answered() -> None:
    async def run() -> None:
        async with listening(sheds=True) as (listener, port):
            assert listener.admission is not None
            clients = [await Client.connect(port) for _ in range(40)]
            listener.admission.is_crowded = True
            answers = await asyncio.gather(*(client.ask(post("/echo", b"x")) for client in clients))
            assert {answer.status for answer in answers} <= {200, 503}
            for client in clients:
                await client.close()

    asyncio.run(run())


HEAD = b"POST /v1/decide HTTP/1.1\r\nHost: h\r\n"


@pytest.mark.parametrize(
    ("data", "is_whole"),
    [
        (HEAD + b"Content-Length: 2\r\n\r\n{}", True),
        (HEAD + b"content-length:2\r\nX: y\r\n\r\n{}", True),
        (HEAD + b"Content-Length: 2\r\n\r\n{", False),
        (HEAD + b"Content-Length: 2\r\n\r\n{}POST", False),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", False),
        (HEAD + b"Content-Length: 2x\r\n\r\n{}", False),
        (HEAD + b"X-Content-Length: 2\r\n\r\n{}", False),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", False),
        (HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n{}", False),
        (HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}", False),
        (b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"GET / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", False),
        (HEAD, False),
        (b"", False),
    ],
)
def test_only_a_whole_plain_post_is_refused_unread(data: bytes, is_whole: bool) -> None:
    assert is_whole_post(data) is is_whole
