"""Announcements over real mDNS: on loopback what every machine can show, in namespaces what only a LAN shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from appliance.mdns.announcer import Announcer
from appliance.mdns.links import EVERY, LinkWatch, find_links
from appliance.mdns.responder import Announcement, Responder
from brski.discovery import REGISTRAR_SERVICE, instance_name
from lab import topology
from lab.topology import Cable, Machine, switch

LOOPBACK = ("127.0.0.1",)
WHY_NOT = topology.why_not()
lan = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def announcer(port: int, instance: str, **more: object) -> Announcer:
    options: dict[str, object] = {
        "interfaces": LOOPBACK, "host": "127.0.0.1", "port": port, "instance": instance,
        "services": (REGISTRAR_SERVICE,), "probe_seconds": 0.1, **more,
    }  # fmt: skip
    return Announcer(**options)  # type: ignore[arg-type]


async def look(instance: str, *, seconds: float = 3.0, interfaces: tuple[str, ...] = LOOPBACK) -> set[str]:
    """The addresses under which an instance is found."""
    version = IPVersion.All if any(":" in one for one in interfaces) else IPVersion.V4Only
    async with AsyncZeroconf(interfaces=list(interfaces), ip_version=version) as browser:
        info = AsyncServiceInfo(REGISTRAR_SERVICE, instance_name(instance))
        found = await info.async_request(browser.zeroconf, int(seconds * 1000))
        return set(info.parsed_scoped_addresses()) if found else set()


async def until(fact: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                answer = fact()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await asyncio.sleep(0.02)
    pytest.fail("it never became true")


@pytest.mark.req("B-116")
@pytest.mark.slow
def test_the_announcement_is_withdrawn_while_the_port_takes_no_connections_and_comes_back() -> None:
    async def story() -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        one = announcer(port, f"gone-{port}")
        await one.start()
        try:
            assert one.is_announced
            server.close()
            await server.wait_closed()
            await until(lambda: not one.is_announced)
            assert await look(f"gone-{port}", seconds=0.4) == set()
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port)
            await until(lambda: one.is_announced)
            assert await look(f"gone-{port}") == {"127.0.0.1"}
        finally:
            await one.stop()
            server.close()

    asyncio.run(story())


@pytest.mark.slow
def test_a_name_that_is_taken_gets_a_number_for_instance_and_host_alike() -> None:
    async def story() -> None:
        first, second = announcer(1, "twin", is_alive=yes), announcer(2, "twin", is_alive=yes)
        await first.start()
        await second.start()
        try:
            assert first.names() == {"lo": "twin"}
            assert second.names() == {"lo": "twin-2"}
            assert {info.server for info in second.services()} == {"twin-2.local."}
        finally:
            await second.stop()
            await first.stop()

    asyncio.run(story())


@pytest.mark.slow
def test_two_that_took_the_same_name_in_the_same_moment_end_with_two_names() -> None:
    async def story() -> None:
        one, other = announcer(1, "same", is_alive=yes), announcer(2, "same", is_alive=yes)
        await asyncio.gather(one.start(), other.start())
        try:
            await until(lambda: sorted([*one.names().values(), *other.names().values()]) == ["same", "same-2"])
            await asyncio.sleep(0.5)
            assert sorted([*one.names().values(), *other.names().values()]) == ["same", "same-2"]
        finally:
            await one.stop()
            await other.stop()

    asyncio.run(story())


async def yes() -> bool:
    return True


def test_links_are_named_by_address_or_by_name_and_unknown_names_yield_nothing() -> None:
    assert [link.addresses for link in find_links(["127.0.0.1", "127.0.0.1"])] == [("127.0.0.1",)]
    assert [link.name for link in find_links(["lo"])] == ["lo"]
    assert find_links(["no-such-interface", "192.0.2.77"]) == ()
    assert "lo" not in [link.name for link in find_links([EVERY])]


@pytest.mark.slow
def test_a_port_on_loopback_is_not_announced_on_a_lan() -> None:
    from appliance.mdns.links import Link

    one = announcer(1, "x")
    assert list(one._addresses(Link("eth9", 9, ("192.0.2.1",)))) == []
    assert list(one._addresses(Link("lo", 1, ("127.0.0.1",)))) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("host", "seen"),
    [("0.0.0.0", ["192.0.2.1"]), ("::", ["fe80::1%eth9", "2001:db8::1"]), ("192.0.2.1", ["192.0.2.1"]),
     ("appliance.example", ["192.0.2.1", "fe80::1%eth9", "2001:db8::1"])],
)  # fmt: skip
def test_only_addresses_that_the_port_listens_on_are_announced(host: str, seen: list[str]) -> None:
    from appliance.mdns.links import Link

    link = Link("eth9", 9, ("192.0.2.1", "fe80::1%eth9", "2001:db8::1"))
    assert list(announcer(1, "x", host=host)._addresses(link)) == seen
    assert link.speaking == ["192.0.2.1", "fe80::1"]


# -- what only a LAN shows -------------------------------------------------------------------------------------------


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine, Cable]]:
    with Machine("server") as server, Machine("peer") as peer:
        cable = Cable(server, "eth0", peer, "eth0")
        cable.plug()
        server.address("eth0", "192.0.2.1/24")
        peer.address("eth0", "192.0.2.2/24")
        yield server, peer, cable


def seen_from(
    peer: Machine, instance: str, *, seconds: float = 2.0, interfaces: tuple[str, ...] = ("192.0.2.2",)
) -> set[str]:
    return peer.run(lambda: asyncio.run(look(instance, seconds=seconds, interfaces=interfaces)))


def seen_soon(
    peer: Machine, instance: str, wanted: set[str], seconds: float = 8.0, interfaces: tuple[str, ...] = ("192.0.2.2",)
) -> set[str]:
    end = time.monotonic() + seconds
    while (found := seen_from(peer, instance, seconds=0.5, interfaces=interfaces)) != wanted and time.monotonic() < end:
        pass
    return found


@contextmanager
def announced_on(machine: Machine, **options: object) -> Iterator[None]:
    """An announcer that runs on another machine, in a thread."""
    import threading

    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        one = announcer(8443, "app", **{"host": "0.0.0.0", "is_alive": yes, "probe_seconds": 30, **options})
        await one.start()
        started.set()
        while not stop.is_set():
            await asyncio.sleep(0.05)
        await one.stop()

    thread = threading.Thread(target=lambda: machine.run(lambda: asyncio.run(serve())))
    thread.start()
    try:
        assert started.wait(10)
        yield
    finally:
        stop.set()
        thread.join()


@lan
@pytest.mark.lab
@pytest.mark.slow
def test_addresses_that_come_and_go_are_noticed_and_a_pulled_cable_too() -> None:
    with two_machines() as (server, peer, cable), announced_on(server, interfaces=("eth0",)):
        assert seen_soon(peer, "app", {"192.0.2.1"}) == {"192.0.2.1"}
        server.address("eth0", "192.0.2.5/24")
        assert seen_soon(peer, "app", {"192.0.2.1", "192.0.2.5"}) == {"192.0.2.1", "192.0.2.5"}
        server.ip("address", "flush", "dev", "eth0")
        server.address("eth0", "192.0.2.9/24")
        assert seen_soon(peer, "app", {"192.0.2.9"}) == {"192.0.2.9"}
        cable.pull()
        time.sleep(0.3)
        cable.plug()
        assert seen_soon(peer, "app", {"192.0.2.9"}) == {"192.0.2.9"}


@lan
@pytest.mark.lab
@pytest.mark.slow
def test_each_link_is_told_its_own_addresses_only() -> None:
    with Machine("server") as server, Machine("left") as left, Machine("right") as right:
        for number, peer in enumerate((left, right)):
            Cable(server, f"eth{number}", peer, "eth0").plug()
            server.address(f"eth{number}", f"192.0.{number}.1/24")
            peer.address("eth0", f"192.0.{number}.2/24")
        with announced_on(server, interfaces=(EVERY,)):
            assert seen_from(left, "app", interfaces=("192.0.0.2",)) == {"192.0.0.1"}
            assert seen_from(right, "app", interfaces=("192.0.1.2",)) == {"192.0.1.1"}


@lan
@pytest.mark.lab
@pytest.mark.slow
def test_two_appliances_on_one_lan_never_answer_for_one_host_name() -> None:
    with Machine("one") as one, Machine("two") as two, Machine("peer") as peer:
        with switch("switch", [(one, "eth0"), (two, "eth0"), (peer, "eth0")]):
            for number, machine in enumerate((one, two, peer), 1):
                machine.address("eth0", f"192.0.2.{number}/24")
            with announced_on(one, interfaces=("eth0",)), announced_on(two, interfaces=("eth0",)):
                found = [seen_from(peer, name, interfaces=("192.0.2.3",)) for name in ("app", "app-2")]
                assert sorted(map(sorted, found)) == [["192.0.2.1"], ["192.0.2.2"]]


@lan
@pytest.mark.lab
@pytest.mark.slow
def test_two_lans_that_are_joined_later_end_with_two_names() -> None:
    with Machine("one") as one, Machine("two") as two, Machine("peer") as peer:
        with switch("left", [(one, "eth0"), (peer, "eth0")]) as left, switch("right", [(two, "eth0")]) as right:
            for number, machine in enumerate((one, two, peer), 1):
                machine.address("eth0", f"192.0.2.{number}/24")
            options = {"interfaces": ("eth0",), "probe_seconds": 0.5}
            with announced_on(one, **options), announced_on(two, **options):
                assert seen_from(peer, "app", interfaces=("192.0.2.3",)) == {"192.0.2.1"}
                joint = Cable(left, "joint", right, "joint")
                for one_side in (left, right):
                    one_side.ip("link", "set", "joint", "master", "br0")
                joint.plug()
                # whoever has the lower address keeps the name; no link of either changed
                assert seen_soon(peer, "app-2", {"192.0.2.2"}, interfaces=("192.0.2.3",)) == {"192.0.2.2"}
                assert seen_from(peer, "app", interfaces=("192.0.2.3",)) == {"192.0.2.1"}


@lan
@pytest.mark.lab
def test_the_watch_wakes_when_the_cable_is_pulled() -> None:
    with two_machines() as (server, _, cable):

        async def story() -> float:
            async with LinkWatch() as watch:
                await watch.changed(0.3)
                started = time.monotonic()
                asyncio.get_running_loop().call_later(0.2, cable.pull)
                await watch.changed(10)
                assert find_links(["eth0"]) == ()
                return time.monotonic() - started

        assert server.run(lambda: asyncio.run(story())) < 2


@lan
@pytest.mark.lab
def test_a_link_without_multicast_addresses_refuses_in_silence() -> None:
    with Machine("alone") as alone:
        from appliance.mdns.links import Link

        gone = Link("eth0", 7, ("192.0.2.1",))
        responder = Responder(gone, Announcement("x", (REGISTRAR_SERVICE,), 1, ("192.0.2.1",)))
        assert alone.run(lambda: asyncio.run(responder.open())) is False
