"""Discovery over real multicast on the loopback interface, and the order in which offers are tried."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from appliance.clock import SystemClock
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.discover import MAX_KNOWN, Discovery, read_offer
from appliance.proxy.errors import PeerUnreachable
from appliance.proxy.report import Reporter
from appliance.proxy.rounds import Timers, race
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


async def until(discovery: Discovery, port: int, count: int, seconds: float = 8) -> list[Offer]:
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


@pytest.mark.parametrize("info", [announcement("x", 0), announcement("x", 1, address="0.0.0.0"),
                                  announcement("x", 1, address="224.0.0.251")])  # fmt: skip
def test_an_announcement_that_leads_nowhere_is_no_offer(info: AsyncServiceInfo) -> None:
    assert read_offer(info) is None


@pytest.mark.req("B-117")
def test_the_memory_for_announcements_is_bounded() -> None:
    async def run() -> None:
        discovery = Discovery([LOOPBACK])
        for number in range(MAX_KNOWN):
            discovery._offers[f"n{number}"] = Offer(f"n{number}", (LOOPBACK,), 1000 + number)
        from zeroconf import ServiceStateChange

        discovery._heard(
            zeroconf=None, service_type=REGISTRAR_SERVICE, name="one more", state_change=ServiceStateChange.Added
        )
        assert len(discovery.offers()) == MAX_KNOWN
        assert not discovery._tasks

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
                    world.with_settings(give_up_seconds=15), state, SystemClock(), timing=QUICK
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
                Offer("true", (LOOPBACK,), campus.port),
            ]
            started = time.monotonic()
            imprint = await attempts(world, offers, Timing(connect=30, spacing=0.3))
            assert time.monotonic() - started < 3
            assert imprint is not None
            assert imprint.target.port == campus.port
            await imprint.connection.close()
        tarpit.close()

    asyncio.run(run())


async def attempts(world: World, offers: list[Offer], timing: Timing) -> Imprint | None:
    from appliance.proxy.material import read_brski
    from appliance.proxy.voucher_phase import VoucherPhase

    material = read_brski(world.settings)
    reporter = Reporter("brski", SystemClock())
    phase = VoucherPhase(material.pledge, material.client, SystemClock(), reporter, timing)
    return (await race(offers, phase.attempt, reporter, timing)).imprint


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
            offers = [Offer("first", (LOOPBACK,), first.port), Offer("second", (LOOPBACK,), second.port)]
            imprint = await attempts(world, offers, Timing(spacing=0.1))
            assert imprint is not None
            assert imprint.target.port == second.port
            bodies = [one.of("requestvoucher")[0].call.body for one in (first, second)]
            asked = [voucher_request.unseal(body, VOUCHER_CMS_JSON)[0] for body in bodies]
            assert asked[0].nonce != asked[1].nonce
            await asyncio.sleep(0.6)
            # the loser's voucher is never looked at, and the loser never hears of an enrolment
            assert first.paths() == ["requestvoucher"]
            await imprint.connection.close()

    asyncio.run(run())


@pytest.mark.req("B-112")
def test_when_all_offers_fail_the_round_says_so() -> None:
    async def run() -> None:
        async def unreachable(target: object) -> Imprint:
            raise PeerUnreachable("no")

        reporter = Reporter("brski", SystemClock())
        offers = [Offer(str(n), (LOOPBACK, "127.0.0.2"), n) for n in range(1, 4)]
        outcome = await race(offers, unreachable, reporter, QUICK)
        assert outcome.imprint is None
        assert [offer.port for offer, _ in outcome.failed] == [1, 2, 3]

    asyncio.run(run())
