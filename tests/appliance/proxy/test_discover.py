"""Discovery over real multicast on the loopback interface, and the order in which offers are tried."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from zeroconf import DNSIncoming, IPVersion, ServiceStateChange
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from appliance.clock import SystemClock
from appliance.mdns.links import Link
from appliance.mdns.queries import QueryTiming
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.connection import Target
from appliance.proxy.discover import MAX_KNOWN, MAX_WAITING, Discovery, _Ear, read_offer
from appliance.proxy.errors import PeerUnreachable
from appliance.proxy.report import Reporter
from appliance.proxy.rounds import Attempt, Hunt, Timers
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from appliance.proxy.voucher_phase import Imprint
from brski.discovery import PROXY_SERVICE, REGISTRAR_SERVICE, Offer, instance_name, write_txt
from tests.appliance.proxy.campus import Campus, World, make_world

LOOPBACK = "127.0.0.1"
QUICK = Timing(connect=1, voucher=3, call=3, spacing=0.2, round=0.3, first_pause=0.1)


def announcement(
    name: str,
    port: int,
    *,
    service: str = REGISTRAR_SERVICE,
    txt: Mapping[bytes, bytes | None] | None = None,
    priority: int = 0,
    address: str = LOOPBACK,
) -> AsyncServiceInfo:
    return AsyncServiceInfo(
        service,
        instance_name(name, service),
        port=port,
        addresses=[socket.inet_aton(address)],
        properties=dict(write_txt() if txt is None else txt),
        server=f"{name}.local.",
        priority=priority,
    )


class Announcer:
    def __init__(self, *infos: AsyncServiceInfo) -> None:
        self._infos = infos

    async def __aenter__(self) -> Announcer:
        self._zeroconf = AsyncZeroconf(interfaces=[LOOPBACK], ip_version=IPVersion.V4Only)
        await asyncio.gather(*(self._zeroconf.async_register_service(info) for info in self._infos))
        return self

    async def withdraw(self) -> None:
        await asyncio.gather(*(self._zeroconf.async_unregister_service(info) for info in self._infos))

    async def __aexit__(self, *_: object) -> None:
        await self._zeroconf.async_close()


async def until(discovery: Discovery, port: int, count: int, seconds: float = 60) -> list[Offer]:
    """What is known of this port; others on this machine may announce registrars of their own meanwhile."""
    end = time.monotonic() + seconds
    while True:
        mine = [one for one in discovery.offers() if one.port == port]
        if len(mine) == count or time.monotonic() > end:
            return mine
        await discovery.wait(0.5)


@pytest.mark.req("B-101", "B-102", "B-103")
def test_a_registrar_is_found_and_forgotten_when_it_withdraws() -> None:
    async def run() -> None:
        port = dead_port()
        both = [announcement(f"reg-{port}", port, service=one) for one in (REGISTRAR_SERVICE, PROXY_SERVICE)]
        async with Announcer(*both) as announcer, Discovery([LOOPBACK]) as discovery:
            mine = await until(discovery, port, 1)
            # announced twice, offered once
            assert [(one.addresses, one.variations) for one in mine] == [((LOOPBACK,), {"est-tls"})]
            await announcer.withdraw()
            assert await until(discovery, port, 0) == []

    asyncio.run(run())


@pytest.mark.req("B-114", "B-117")
def test_an_announcement_becomes_an_offer_of_addresses_only() -> None:
    offer = read_offer(announcement("x", 1, txt={b"EST-TLS": None, b"cmp": None, b"url": b"https://evil"}, priority=7))
    assert offer == Offer(instance_name("x"), (LOOPBACK,), 1, frozenset({"est-tls", "cmp"}), 7)
    default = read_offer(announcement("x", 1, txt={}))
    assert default is not None
    assert default.variations == {"est-tls"}


@pytest.mark.req("B-123")
def test_a_link_local_ipv6_address_is_tried_first_and_ipv4_will_do() -> None:
    info = announcement("x", 1)
    info.addresses = [socket.inet_aton("192.0.2.7")]
    plain = read_offer(info)
    assert plain is not None
    assert plain.addresses == ("192.0.2.7",)
    info.addresses = [
        socket.inet_aton("192.0.2.7"),
        socket.inet_pton(socket.AF_INET6, "2001:db8::7"),
        socket.inet_pton(socket.AF_INET6, "fe80::7"),
    ]
    offer = read_offer(info)
    assert offer is not None
    assert offer.addresses[0].startswith("fe80::7")
    assert set(offer.addresses[1:]) == {"192.0.2.7", "2001:db8::7"}
    # the link it was heard on is where a link-local address means something
    scoped = read_offer(info, "eth7")
    assert scoped is not None
    assert scoped.addresses[0] == "fe80::7%eth7"
    assert Target(scoped.addresses[0], 8443).authority == "[fe80::7%25eth7]:8443"
    assert Target(scoped.addresses[0], 8443).host_header == "[fe80::7]:8443"


@pytest.mark.parametrize("info", [announcement("x", 0), announcement("x", 1, address="0.0.0.0"),
                                  announcement("x", 1, address="224.0.0.251")])  # fmt: skip
def test_an_announcement_that_leads_nowhere_is_no_offer(info: AsyncServiceInfo) -> None:
    assert read_offer(info) is None


@pytest.mark.req("B-117")
def test_the_memory_for_announcements_is_bounded() -> None:
    async def run() -> None:
        ear = _Ear(Link("lo", 1, (LOOPBACK,)), (REGISTRAR_SERVICE,), QueryTiming(), lambda: None)
        for number in range(2 * MAX_KNOWN):
            name = f"n{number}.{REGISTRAR_SERVICE}"
            ear._keep(name, Offer(name, (LOOPBACK,), 1000 + number))
            assert name in ear.offers  # who comes late is not shut out
        assert len(ear.offers) == len(ear._waiting) == MAX_KNOWN
        for number in range(2 * MAX_WAITING):
            ear._heard(None, REGISTRAR_SERVICE, f"m{number}.{REGISTRAR_SERVICE}", ServiceStateChange.Added)  # type: ignore[arg-type]
        assert len(ear._resolving) == MAX_KNOWN and len(ear._waiting) == MAX_WAITING
        await ear.close()

    asyncio.run(run())


@pytest.mark.req("B-117", "B-105", "T-33")
def test_announcements_that_fill_the_list_shut_nobody_out_for_good() -> None:
    """Somebody announced more than there is room for, for a very long time, and went away."""

    async def run() -> None:
        port = dead_port()
        async with Announcer(announcement(f"true-{port}", port)):
            async with Discovery([LOOPBACK], queries=QueryTiming(first_pause=0.5)) as discovery:
                assert await until(discovery, port, 1)
                (ear,) = discovery._ears.values()
                true = next(name for name, offer in ear.offers.items() if offer.port == port)
                # as if it had been pushed out by a flood, or its answer had been lost
                del ear.offers[true]
                ear._postpone(true)
                for number in range(MAX_KNOWN - len(ear.offers)):  # another test's registrar may be heard here too
                    name = f"spoof{number}.{REGISTRAR_SERVICE}"
                    ear.offers[name] = Offer(name, ("127.0.0.9",), 9)
                assert not await until(discovery, port, 0)
                assert len(await until(discovery, port, 1)) == 1
                assert len(ear.offers) <= MAX_KNOWN  # who else was heard may have gone meanwhile

    asyncio.run(run())


@pytest.mark.req("B-107", "B-108")
def test_every_offer_has_its_own_doubling_timer_up_to_an_hour() -> None:
    timers = Timers(first_pause_seconds=30)
    one, other = Offer("a", (LOOPBACK,), 1), Offer("b", (LOOPBACK,), 2)
    assert [timers.failed(one, 0.0) for _ in range(9)] == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert timers.is_due(other, 0.0)
    assert not timers.is_due(one, 3599.0)
    assert timers.is_due(one, 3600.0)
    assert timers.next_due([one, other]) == 3600.0


@pytest.mark.req("B-115")
def test_an_announced_offer_is_not_tried_again_within_half_a_minute() -> None:
    timers = Timers(first_pause_seconds=1, shortest_seconds=30)
    assert timers.failed(Offer("a", (LOOPBACK,), 1), 0.0) == 30


def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


@pytest.mark.req("T-33", "B-110", "B-117", "B-109")
def test_a_spoofed_announcement_with_better_priority_costs_a_moment_only(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            spoof = announcement(f"spoof-{campus.port}", dead_port(), priority=0)
            true = announcement(f"true-{campus.port}", campus.port, priority=10)
            async with Announcer(spoof, true):
                state = ProxyState.open(tmp_path / "state")
                report = await Bootstrap(
                    world.with_settings(give_up_seconds=60), state, SystemClock(), timing=QUICK
                ).run()
                assert report.outcome == "ok"
                assert report.steps[1].facts["how"] == "mdns"
                # found by address: no name to hold it to, so the RA mark decided at the second connection
                assert not state.record().named
                assert {one.server_name for one in campus.seen} == {None}

    asyncio.run(run())


@pytest.mark.req("T-33", "B-110")
def test_a_silent_registrar_does_not_hold_up_the_next(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    async def run() -> None:
        async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        tarpit = await asyncio.start_server(silence, LOOPBACK, 0)
        async with Campus(world.factory, world.domain) as campus:
            offers = [
                Offer("tarpit", (LOOPBACK,), tarpit.sockets[0].getsockname()[1]),
                offer(campus.port, priority=1),
            ]
            started = time.monotonic()
            imprint = await attempts(world, offers, Timing(connect=30, spacing=0.3))
            assert time.monotonic() - started < 15
            assert imprint.target.port == campus.port
            await imprint.line.connection.close()
        tarpit.close()

    asyncio.run(run())


class Known:
    """A source of offers that a test fills."""

    def __init__(self, *offers: Offer) -> None:
        self.known = list(offers)
        self.changes = 0
        self.news = asyncio.Event()

    def offers(self) -> list[Offer]:
        return self.known

    def tell(self, *offers: Offer, changes: int = 0) -> None:
        self.known += offers
        self.changes += changes
        self.news.set()

    async def wait(self, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.news.wait()
        self.news.clear()


def hunt(source: Known, attempt: Attempt, timing: Timing = QUICK, round_: float = 30.0) -> Hunt:
    clock = SystemClock()
    return Hunt(source, attempt, Timers(1.0, round_), clock, Reporter("brski", clock), timing)


async def attempts(world: World, offers: list[Offer], timing: Timing) -> Imprint:
    from appliance.proxy.material import read_brski
    from appliance.proxy.voucher_phase import VoucherPhase

    material = read_brski(world.settings)
    reporter = Reporter("brski", SystemClock())
    phase = VoucherPhase(material.pledge, material.client, SystemClock(), reporter, timing)
    return (await hunt(Known(*offers), phase.attempt, timing).next())[0]


@pytest.mark.req("T-31", "B-111")
def test_two_registrars_asked_at_once_get_different_nonces_and_one_wins(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    async def run() -> None:
        from brski import voucher_request
        from brski.paths import VOUCHER_CMS_JSON

        async with Campus(world.factory, world.domain) as first, Campus(world.factory, world.domain) as second:

            async def late(call: object, client: object, proper: object) -> object:
                await asyncio.sleep(0.5)
                return proper()  # type: ignore[operator]

            first.instead["/.well-known/brski/requestvoucher"] = late
            offers = [offer(first.port), offer(second.port, priority=1)]
            imprint = await attempts(world, offers, Timing(spacing=0.1))
            assert imprint.target.port == second.port
            bodies = [one.of("requestvoucher")[0].call.body for one in (first, second)]
            asked = [voucher_request.unseal(body, VOUCHER_CMS_JSON)[0] for body in bodies]
            assert asked[0].nonce != asked[1].nonce
            await asyncio.sleep(0.6)
            # the loser's voucher is never looked at, and the loser never hears of an enrolment
            assert first.paths() == ["requestvoucher"]
            await imprint.line.connection.close()

    asyncio.run(run())


class Stage:
    """Attempts that end as a test says: port -> what happens; every start is noted."""

    def __init__(self, **ends: object) -> None:
        self.started: list[int] = []
        self.progress: dict[int, Callable[[], None]] = {}
        self._ends = {int(port.removeprefix("p")): end for port, end in ends.items()}

    async def until(self, ports: list[int]) -> None:
        """Until these have been tried, these first, each in the order of its start."""
        async with asyncio.timeout(60):
            while len(self.started) < len(ports):
                await asyncio.sleep(0.01)
        assert sorted(self.started[: len(ports)]) == ports

    async def attempt(self, target: Target, progress: Callable[[], None]) -> Imprint:
        self.started.append(target.port)
        self.progress[target.port] = progress
        end = self._ends.get(target.port)
        if isinstance(end, Exception):
            raise end
        if end is None:
            await asyncio.sleep(3600)
        return end  # type: ignore[return-value]


def offer(port: int, priority: int = 0) -> Offer:
    return Offer(f"n{port}", (LOOPBACK,), port, priority=priority)


@pytest.mark.req("B-112", "B-109")
def test_when_all_offers_have_failed_it_listens_until_another_turns_up() -> None:
    async def run() -> None:
        good = object()
        stage = Stage(p1=PeerUnreachable("no"), p2=PeerUnreachable("no"), p3=PeerUnreachable("no"), p4=good)
        source = Known(offer(1), offer(2), offer(3))
        hunting = asyncio.ensure_future(hunt(source, stage.attempt).next())
        await stage.until([1, 2, 3])
        await asyncio.sleep(0.1)
        assert not hunting.done()
        source.tell(offer(4))
        assert (await asyncio.wait_for(hunting, 15))[0] is good

    asyncio.run(run())


@pytest.mark.req("T-31")
def test_of_two_vouchers_that_come_in_the_same_moment_one_counts_and_the_other_connection_is_closed() -> None:
    async def run() -> None:
        closed: list[int] = []

        def imprint(port: int) -> Imprint:
            async def close() -> None:
                closed.append(port)

            line = SimpleNamespace(connection=SimpleNamespace(close=close))
            return Imprint(line, Target(LOOPBACK, port), None, b"", b"", "")  # type: ignore[arg-type]

        both = asyncio.Event()

        async def attempt(target: Target, progress: object) -> Imprint:
            await both.wait()
            return imprint(target.port)

        hunting = asyncio.ensure_future(hunt(Known(offer(1), offer(2)), attempt, Timing(spacing=0.01)).next())
        await asyncio.sleep(0.1)
        both.set()
        winner, _ = await hunting
        assert sorted([winner.target.port, *closed]) == [1, 2]

    asyncio.run(run())


@pytest.mark.req("B-110", "T-33")
def test_a_registrar_that_turns_up_while_another_makes_us_wait_is_tried_at_once() -> None:
    async def run() -> None:
        good = object()
        stage = Stage(p2=good)  # 1 answers 202 for days
        source = Known(offer(1))
        hunting = asyncio.ensure_future(hunt(source, stage.attempt).next())
        await stage.until([1])
        source.tell(offer(2))
        assert (await asyncio.wait_for(hunting, 15))[0] is good

    asyncio.run(run())


@pytest.mark.req("B-110")
def test_with_all_places_taken_the_attempt_without_progress_for_longest_gives_way() -> None:
    async def run() -> None:
        good = object()
        stage = Stage(p9=good)
        timing = Timing(spacing=0.01, at_once=2, stall=1.0)
        source = Known(offer(1), offer(2))
        hunting = asyncio.ensure_future(hunt(source, stage.attempt, timing).next())
        await stage.until([1, 2])
        source.tell(offer(9, priority=5))
        await asyncio.sleep(0.1)
        stage.progress[1]()
        assert sorted(stage.started) == [1, 2]  # nobody has been stuck for long enough yet
        assert (await asyncio.wait_for(hunting, 15))[0] is good

    asyncio.run(run())


@pytest.mark.req("B-107", "B-108")
def test_a_link_that_comes_back_starts_all_timers_anew() -> None:
    async def run() -> None:
        stage = Stage(p1=PeerUnreachable("no"))
        source = Known(offer(1))
        hunting = asyncio.ensure_future(hunt(source, stage.attempt, round_=3600).next())
        await stage.until([1])
        source.tell(changes=1)
        await stage.until([1, 1])
        hunting.cancel()
        await asyncio.gather(hunting, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.req("B-115", "B-109")
def test_whoever_was_tried_least_often_comes_first() -> None:
    async def run() -> None:
        stage = Stage(p1=PeerUnreachable("no"), p2=PeerUnreachable("no"))
        source = Known(offer(1, priority=0))
        timing = Timing(spacing=0.01)
        hunting = asyncio.ensure_future(hunt(source, stage.attempt, timing, round_=2.0).next())
        await stage.until([1])
        source.tell(offer(2, priority=9))
        await stage.until([1, 2])
        hunting.cancel()
        await asyncio.gather(hunting, return_exceptions=True)

    asyncio.run(run())


# -- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.req("B-107")
def test_pauses_between_questions_double_up_to_an_hour() -> None:
    timing = QueryTiming()
    pauses = [timing.pauses(number) for number in range(12)]
    assert pauses[:4] == [15, 30, 60, 120]
    assert pauses[-1] == timing.ceiling == 3600
    assert sorted(pauses) == pauses


class Ears(asyncio.DatagramProtocol):
    """Counts the questions for a service type on loopback, as the wire has them.

    The type is the test's own: others on this machine ask for registrars at the same time.
    """

    def __init__(self) -> None:
        self.service = f"_asked{secrets.randbelow(10**6)}._tcp.local."
        self.asked: list[float] = []

    def datagram_received(self, data: bytes, addr: object) -> None:
        message = DNSIncoming(data)
        if message.is_query() and any(one.name == self.service and one.type == 12 for one in message.questions):
            if not message.num_authorities:  # those are a responder's probes
                self.asked.append(time.monotonic())

    async def __aenter__(self) -> Ears:
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            ear.setsockopt(socket.SOL_SOCKET, option, 1)
        ear.bind(("224.0.0.251", 5353))
        ear.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton(LOOPBACK)
        )
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=ear)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()


@pytest.mark.req("B-105", "B-107")
@pytest.mark.slow
def test_the_questions_of_a_pledge_that_finds_nobody_become_rarer() -> None:
    async def run() -> None:
        queries = QueryTiming(listen=0, first_pause=0.5, ceiling=4)
        async with Ears() as ears, Discovery([LOOPBACK], services=(ears.service,), queries=queries):
            await asyncio.sleep(5.2)
        # zeroconf's own at 0, 1 and 3 s, ours at 0.5, 1.5 and 3.5 s; the last two within the window are the same ones
        assert 4 <= len(ears.asked) <= 7
        assert len([when for when in ears.asked if when > ears.asked[0] + 3.7]) <= 1

    asyncio.run(run())


@pytest.mark.req("B-106")
@pytest.mark.slow
def test_an_announcement_that_comes_while_it_listens_is_taken_without_asking_for_it() -> None:
    async def run() -> None:
        port = dead_port()
        queries = QueryTiming(listen=3600, first_pause=3600)
        async with Ears() as ears, Discovery([LOOPBACK], services=(ears.service,), queries=queries) as discovery:
            await asyncio.sleep(1)
            assert ears.asked == []
            async with Announcer(announcement(f"reg-{port}", port, service=ears.service)):
                assert [one.port for one in await until(discovery, port, 1)] == [port]

    asyncio.run(run())
