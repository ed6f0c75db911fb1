"""The join proxy carries octets and knows nothing of them; slow, greedy and rude peers meet its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.circuits import Places
from appliance.proxy.errors import JoinNotPossible
from appliance.proxy.join import Configured, Discovered, JoinProxy, read_place, run_join
from appliance.proxy.state import ProxyState
from appliance.settings import JoinSettings
from brski.discovery import Offer
from tests.appliance.proxy.campus import Campus, make_world

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends everything back, and ends when the other side has ended."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    writer.close()


class Known:
    """Registrars at given ports."""

    def __init__(self, *ports: int) -> None:
        self.ports = ports

    def places(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", port) for port in self.ports]

    async def wait(self) -> None:
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def joined(handler: Handler = echo, **settings: object) -> AsyncIterator[JoinProxy]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await handler(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    values: dict[str, object] = {"host": "127.0.0.1", **settings}
    join = JoinProxy(JoinSettings(**values), Known(server.sockets[0].getsockname()[1]), SystemClock())  # type: ignore[arg-type]
    await join.start()
    try:
        yield join
    finally:
        await join.stop(0.1)
        server.close()


async def connect(join: JoinProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", join.port)


async def ended(reader: asyncio.StreamReader, seconds: float = 60) -> str:
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(65536):
                pass
            return "closed"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "open"


async def until(fact: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not fact():
            await asyncio.sleep(0.01)


def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def story(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


@pytest.mark.req("B-121", "B-122")
def test_octets_pass_unchanged_whatever_they_are_and_an_end_goes_on_as_an_end() -> None:
    async def run() -> None:
        async with joined() as join:
            reader, writer = await connect(join)
            sent = bytes(range(256)) * 1000
            writer.write(sent)
            writer.write_eof()  # half-closed: the answer still comes
            assert await reader.read(-1) == sent
            await until(lambda: join.circuits == 0)
            assert join.port > 0

    story(run)


@pytest.mark.req("B-121", "B-133", "B-143")
def test_a_pledge_bootstraps_through_it_with_tls_from_end_to_end(tmp_path: Path) -> None:
    world = make_world(tmp_path)

    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            join = JoinProxy(JoinSettings(host="127.0.0.1"), Known(campus.port), SystemClock())
            await join.start()
            settings = world.with_settings(registrar_url=f"https://127.0.0.1:{join.port}")
            state = ProxyState.open(tmp_path / "state")
            report = await Bootstrap(settings, state, SystemClock()).run()
            assert report.outcome == "ok"
            # the registrar saw the pledge's own certificate
            assert campus.seen[0].client == world.device.certificate
            await join.stop(1)

    story(run)


@pytest.mark.req("B-124")
def test_a_side_that_does_not_read_makes_the_other_wait() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    async def run() -> None:
        async with joined(flood, max_octets=10**9) as join:
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", join.port))
            await asyncio.sleep(0.5)
            before = sent
            await asyncio.sleep(0.5)
            # what the kernel's buffers take, and little more
            assert sent == before < 20 * 2**20
            raw.close()
            await until(lambda: join.circuits == 0)

    story(run)


@pytest.mark.req("B-124")
def test_an_idle_circuit_is_ended_and_a_busy_one_is_not() -> None:
    async def run() -> None:
        async with joined(idle_seconds=0.4) as join:
            idle, _ = await connect(join)
            busy, writer = await connect(join)

            async def drip() -> None:
                for _ in range(8):
                    writer.write(b".")
                    await asyncio.sleep(0.1)

            dripping = asyncio.ensure_future(drip())
            assert await ended(idle, 0.7) == "reset"
            assert join.circuits == 1
            await dripping
            assert await ended(busy) == "reset"

    story(run)


@pytest.mark.req("B-124")
def test_one_that_drips_for_ever_is_ended_too() -> None:
    async def run() -> None:
        async with joined(idle_seconds=5, total_seconds=0.5) as join:
            reader, writer = await connect(join)
            ending = asyncio.ensure_future(ended(reader, 3))
            while not ending.done():
                with contextlib.suppress(OSError):
                    writer.write(b".")
                await asyncio.sleep(0.05)
            assert ending.result() == "reset"

    story(run)


@pytest.mark.req("B-124")
def test_more_octets_than_a_bootstrap_needs_end_the_circuit() -> None:
    async def run() -> None:
        async with joined(max_octets=100_000) as join:
            reader, writer = await connect(join)
            writer.write(b"x" * 100_000)
            assert len(await reader.readexactly(100_000)) == 100_000
            writer.write(b"x")
            assert await ended(reader) == "reset"

    story(run)


@pytest.mark.req("B-124")
def test_places_are_bounded_per_address_and_in_all() -> None:
    async def run() -> None:
        async with joined(max_per_address=2, max_circuits=100) as join:
            kept = [await connect(join) for _ in range(2)]
            await until(lambda: join.circuits == 2)
            reader, _ = await connect(join)
            assert await ended(reader) == "reset"
            kept[0][1].close()
            await until(lambda: join.circuits == 1)
            _, writer = await connect(join)
            await until(lambda: join.circuits == 2)
            writer.close()

    story(run)
    places = Places(total=3, per_address=2)
    with places.place("192.0.2.1") as one, places.place("192.0.2.1") as two, places.place("192.0.2.1") as three:
        assert (one, two, three) == (True, True, False)
        with places.place("2001:db8::1") as six, places.place("2001:db8::2") as full:
            assert (six, full) == (True, False)
        with places.place("fe80::1%eth0") as last:
            assert last
    assert places.taken == 0
    sites = Places(total=9, per_address=1)
    with sites.place("2001:db8::1"), sites.place("2001:db8::ffff:1") as neighbour, sites.place("fe80::1%a") as local:
        assert (neighbour, local) == (False, True)  # who owns a /64 owns all addresses in it


@pytest.mark.req("B-121")
@pytest.mark.parametrize("side", ["pledge", "registrar"])
def test_a_reset_of_one_side_is_a_reset_for_the_other(side: str) -> None:
    outcome: list[str] = []

    def reset(writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def registrar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if side == "registrar":
            reset(writer)
        else:
            outcome.append(await ended(reader))

    async def run() -> None:
        async with joined(registrar) as join:
            reader, writer = await connect(join)
            writer.write(b"x")
            await asyncio.sleep(0.1)
            if side == "pledge":
                reset(writer)
            else:
                outcome.append(await ended(reader))
            await until(lambda: bool(outcome) and join.circuits == 0)
        assert outcome == ["reset"]

    story(run)


@pytest.mark.req("B-124", "B-115")
def test_a_dead_registrar_is_passed_over_and_comes_last_from_then_on() -> None:
    async def run() -> None:
        async with joined() as join:
            (alive,) = join._registrars.ports  # type: ignore[attr-defined]
            join._registrars = Known(dead_port(), alive)
            for _ in range(2):
                reader, writer = await connect(join)
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
                writer.close()
            assert join._in_order()[0] == ("127.0.0.1", alive)
            assert await join.reaches_a_registrar()
            join._registrars = Known(dead_port())
            assert not await join.reaches_a_registrar()
            reader, _ = await connect(join)
            assert await ended(reader) == "reset"

    story(run)


@pytest.mark.req("B-124")
def test_the_end_of_the_join_proxy_ends_circuits_that_do_not_end_themselves() -> None:
    async def run() -> None:
        async with joined() as join:
            reader, writer = await connect(join)
            writer.write(b"x")
            await reader.readexactly(1)
            await join.stop(0.2)
            assert await ended(reader) == "reset"
            with pytest.raises(OSError):
                await connect(join)

    story(run)


@pytest.mark.req("B-124")
def test_nothing_of_what_is_said_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with joined() as join:
            reader, writer = await connect(join)
            writer.write(b"secret-payload")
            writer.write_eof()
            await reader.read(-1)
            await until(lambda: join.circuits == 0)

    with caplog.at_level(logging.DEBUG):
        story(run)
    assert "why=closed octets=14/14" in caplog.text
    assert "secret-payload" not in caplog.text


@pytest.mark.parametrize(
    ("text", "place"),
    [("registrar.example:8443", ("registrar.example", 8443)), ("192.0.2.1:443", ("192.0.2.1", 443)),
     ("[fe80::1%eth0]:8443", ("fe80::1%eth0", 8443))],
)  # fmt: skip
def test_a_registrar_is_named_by_host_and_port(text: str, place: tuple[str, int]) -> None:
    assert read_place(text) == place
    assert Configured(place).places() == [place]


@pytest.mark.parametrize("text", ["registrar.example", "x:", ":1", "x:0", "x:65536", "x:-1", "x:1a", "https://x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(JoinNotPossible):
        read_place(text)


@pytest.mark.req("B-117")
def test_mdns_does_not_make_it_a_way_to_places_that_are_no_neighbours() -> None:
    class Heard:
        def offers(self) -> list[Offer]:
            addresses = ("127.0.0.1", "192.0.2.77", "224.0.0.1", "fe80::1%nowhere", "8.8.8.8")
            return [Offer(f"x{n}", (address,), 22) for n, address in enumerate(addresses)]

    assert list(Discovered(Heard(), ["lo"]).places()) == []  # type: ignore[arg-type]


def test_a_flood_of_announcements_costs_a_connection_little() -> None:
    """Reading the machine's interfaces is what costs: once per connection, and not once per announced address."""

    class Heard:
        def __init__(self, count: int) -> None:
            self._offers = [Offer(f"o{number}", (f"192.0.2.{number}",), 8443) for number in range(1, count + 1)]

        def offers(self) -> list[Offer]:
            return self._offers

    def cost(count: int) -> float:
        begun = time.thread_time()
        for _ in range(20):
            assert Discovered(Heard(count), ["lo"]).places() == []  # type: ignore[arg-type]
        return time.thread_time() - begun

    assert cost(32) < 8 * max(cost(1), 0.001)


def test_a_port_that_is_taken_is_refused_in_one_line() -> None:
    async def run() -> None:
        async with joined() as join:
            with pytest.raises(JoinNotPossible, match="cannot listen on 127.0.0.1"):
                await JoinProxy(JoinSettings(host="127.0.0.1", port=join.port), Known(), SystemClock()).start()

    story(run)


@pytest.mark.req("B-101", "B-116")
@pytest.mark.slow
def test_it_is_announced_only_while_it_reaches_a_registrar() -> None:
    from appliance.proxy.discover import Discovery
    from brski.discovery import PROXY_SERVICE

    async def run() -> None:
        events: list[dict[str, object]] = []
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = JoinSettings(host="127.0.0.1", interfaces=("127.0.0.1",), registrar=f"127.0.0.1:{port}")
        running = asyncio.ensure_future(run_join(settings, SystemClock(), events.append, probe_seconds=0.2))
        async with Discovery(["127.0.0.1"], services=(PROXY_SERVICE,)) as discovery:

            def offered() -> bool:
                return any(one.port == events[0]["port"] for one in discovery.offers())

            await until(offered)
            server.close()
            await server.wait_closed()
            await until(lambda: not offered())
            assert [one["event"] for one in events] == ["ready", "registrar-found", "registrar-lost"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert events[-1]["event"] == "stopped"

    story(run)


@pytest.mark.req("B-121")
def test_an_octet_that_is_not_tls_reaches_the_registrar_as_it_is() -> None:
    async def run() -> None:
        heard: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read(-1))
            writer.close()

        async with joined(listen) as join:
            reader, writer = await connect(join)
            client = ssl.MemoryBIO()
            client.write(b"\x16\x03\x09 no such TLS version")
            writer.write(client.read())
            writer.write_eof()
            await ended(reader)
        assert heard == [b"\x16\x03\x09 no such TLS version"]

    story(run)
