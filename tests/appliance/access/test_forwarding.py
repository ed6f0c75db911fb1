"""The decision log at real receivers: in order, live, over outages and restarts, never on the way of a decision."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from appliance.access import forwarding
from appliance.access.decision_log import DecisionLog
from appliance.access.forwarding import PAGE, LogForwarding, LogNotForwarded
from appliance.access.log_export import VENDOR
from appliance.access.syslog_wire import Receiver, open_wire
from appliance.clock import SystemClock
from appliance.settings import AccessSettings
from appliance.store import decisions, meta, schema
from appliance.store.store import Store
from radius import AccessRequest
from radius.decide import refuse
from tests.interop.radius_tools import free_tcp_port
from tests.radius.world import Issued, campus
from tests.stores import open_store

EVIL = 'x"y]z\\\r\n<34>1 forged'
# RFC 5424, section 6, as strict as it is written
_SD_PARAM = r'[a-z_]{1,32}="(?:[^"\\\]]|\\["\\\]])*"'
MESSAGE = re.compile(
    r"<(?P<pri>\d{1,3})>1 (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48})"
    r" - (?P<msgid>[!-~]{1,32}) (?P<sd>-|\[decision@\d+(?: " + _SD_PARAM + r")+\])(?: (?P<msg>.*))?"
)


@pytest.fixture(autouse=True)
def certain_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "CERTAIN_SECONDS", 0.3)


def read_message(octets: bytes) -> tuple[int, str]:
    """(id of the row, text) of a message, which must be a right one."""
    text = octets.decode()
    found = MESSAGE.fullmatch(text)
    assert found is not None, text
    assert (found["app"], int(found["pri"]) // 8) == (VENDOR, 10)
    if found["sd"] == "-":
        assert found["msg"].startswith("CEF:0|"), text
        return int(re.findall(r"(?<!\\) externalId=(\d+) ", found["msg"])[0]), found["msg"]
    assert found["msg"].startswith("\ufeff")
    return int(re.findall(r'(?: |\[)id="(\d+)"', found["sd"])[0]), found["msg"]


@dataclass
class Taken:
    """What a receiver got."""

    ids: list[int] = field(default_factory=list)
    connections: int = 0

    def take(self, octets: bytes) -> None:
        self.ids.append(read_message(octets)[0])

    async def until(self, wanted: Callable[[list[int]], bool], seconds: float = 8.0) -> list[int]:
        deadline = time.monotonic() + seconds
        while not wanted(self.ids):
            assert time.monotonic() < deadline, self.ids
            await asyncio.sleep(0.02)
        return self.ids


@asynccontextmanager
async def receiver(
    taken: Taken, port: int = 0, tls: ssl.SSLContext | None = None, *, reads: int = 1 << 30
) -> AsyncIterator[int]:
    """A receiver over TCP by octet counting, which takes `reads` messages of a connection and then closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.connections += 1
        try:
            for _ in range(reads):
                length = (await reader.readuntil(b" "))[:-1]
                assert re.fullmatch(rb"[1-9][0-9]{0,5}", length), length
                taken.take(await reader.readexactly(int(length)))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for client in list(asyncio.all_tasks()):
            if client.get_coro().__qualname__.endswith("receiver.<locals>.serve"):  # type: ignore[union-attr]
                client.cancel()
        await asyncio.sleep(0.05)


class Site:
    """A store, its decision log, and forwarders that come and go."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.log = DecisionLog(store, SystemClock(), keep_days=30, keep_rows=1000)
        self.made = 0

    async def decide(self, count: int = 1) -> None:
        for _ in range(count):
            self.made += 1
            request = AccessRequest(nas="sw-1", user_name=EVIL, calling_station=f"02-00-00-00-00-{self.made % 256:02X}")
            self.log.put(refuse(request, "owner-suspended", EVIL))
        await self.log.flush()

    @asynccontextmanager
    async def forwarding(self, url: str, **more: Any) -> AsyncIterator[LogForwarding]:
        settings = AccessSettings(forward_to=(url,), **more)
        found = LogForwarding(settings, self.store, SystemClock(), sender="campus1", pen=32473)
        self.log.on_written = found.news
        task = asyncio.create_task(found.run())
        try:
            yield found
        finally:
            self.log.on_written = lambda: None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, found: LogForwarding, **wanted: object) -> dict[str, Any]:
        deadline = time.monotonic() + 8
        while True:
            (status,) = await found.status()
            if status.items() >= wanted.items():
                return status
            assert time.monotonic() < deadline, (status, wanted)
            await asyncio.sleep(0.02)


def play(tmp_path: Path, story: Callable[[Site], Awaitable[None]]) -> None:
    async def bounded() -> None:
        store = open_store(f"sqlite:///{tmp_path / 'log.db'}", SystemClock())
        try:
            async with asyncio.timeout(60):
                await story(Site(store))
        finally:
            store.close()

    asyncio.run(bounded())


def some(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


@pytest.mark.parametrize("format_", ["syslog", "cef"])
def test_rows_arrive_over_tcp_as_they_are_written_in_order_and_once(tmp_path: Path, format_: str) -> None:
    async def story(site: Site) -> None:
        await site.decide(3)  # from before: a new receiver gets what comes
        taken = Taken()
        async with receiver(taken) as port, site.forwarding(f"tcp://127.0.0.1:{port}", forward_format=format_) as found:
            await site.until(found, state="connected", behind=0)
            begun = time.monotonic()
            await site.decide()
            await taken.until(lambda ids: ids == [4])
            assert time.monotonic() - begun < 2
            await site.decide(3 * PAGE)
            await taken.until(lambda ids: ids == some(4, 4 + 3 * PAGE))
            status = await site.until(found, behind=0)
            assert (status["sent"], status["dropped"], status["why"]) == (3 * PAGE + 1, 0, "")
            assert taken.connections == 1
            assert "1 receivers" in await found.look()

    play(tmp_path, story)


def test_rows_arrive_over_udp_a_datagram_each(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        taken = Taken()

        class Takes(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                taken.take(data)

        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Takes, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        async with site.forwarding(f"udp://127.0.0.1:{port}") as found:
            await site.until(found, state="connected", behind=0)
            await site.decide(PAGE + 10)
            await taken.until(lambda ids: ids == some(1, PAGE + 10))
            await site.until(found, sent=PAGE + 10)
            transport.close()
            await site.decide()
            await site.until(found, state="away")  # its host says that nobody listens
            assert (await site.until(found, behind=1))["why"].startswith("the receiver does not listen")
            transport, _ = await loop.create_datagram_endpoint(Takes, local_addr=("127.0.0.1", port))
            await taken.until(lambda ids: ids[-1] == PAGE + 11)
        transport.close()

    play(tmp_path, story)


def test_over_tls_the_receiver_must_be_who_it_should_be(tmp_path: Path) -> None:
    def context(own: Issued) -> ssl.SSLContext:
        (tmp_path / "own.pem").write_bytes(own.pem)
        (tmp_path / "own.key").write_bytes(own.key_pem)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(tmp_path / "own.pem", tmp_path / "own.key")
        return made

    async def story(site: Site) -> None:
        taken, ca = Taken(), tmp_path / "ca.pem"
        ca.write_bytes(campus("stranger").root_pem)
        async with receiver(taken, tls=context(campus().decision_port())) as port:
            url = f"tls://127.0.0.1:{port}"
            async with site.forwarding(url, forward_ca_file=ca) as found:
                assert "certificate verify failed" in (await site.until(found, state="away"))["why"]
                await site.decide(2)
            assert taken.ids == []
            ca.write_bytes(campus().root_pem)
            async with site.forwarding(url, forward_ca_file=ca) as found:
                await site.until(found, state="connected", behind=0)
                await site.decide(2)
                await taken.until(lambda ids: ids == some(1, 4))

    play(tmp_path, story)


def test_what_a_receiver_missed_waits_in_the_store_also_over_our_restart(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        taken, port = Taken(), free_tcp_port()
        url = f"tcp://127.0.0.1:{port}"
        async with receiver(taken, port), site.forwarding(url) as found:
            await site.until(found, state="connected", behind=0)
            await site.decide(5)
            await site.until(found, sent=5)
        async with site.forwarding(url) as found:  # it is not there
            await site.decide(5)
            status = await site.until(found, state="away", behind=5)
            assert status["why"]
        await site.decide(5)  # and we are not
        async with receiver(taken, port), site.forwarding(url) as found:
            await site.until(found, state="connected", behind=0)
            await site.decide(5)
            await taken.until(lambda ids: ids == some(1, 20))
            assert (await site.until(found, sent=20))["dropped"] == 0

    play(tmp_path, story)


def test_a_receiver_that_breaks_off_loses_nothing_and_gets_few_twice(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        taken, port = Taken(), free_tcp_port()
        async with site.forwarding(f"tcp://127.0.0.1:{port}") as found:
            await site.until(found, state="away")  # it is new, and what comes waits for it
            await site.decide(2)
            async with receiver(taken, port, reads=7):  # seven of a connection, then it is gone
                await site.until(found, state="connected")
                await site.decide(PAGE)
                await taken.until(lambda ids: len(ids) >= 7)
            async with receiver(taken, port):
                await site.decide(20)
                await taken.until(lambda ids: set(ids) >= set(some(1, PAGE + 22)), 15)
                assert len(taken.ids) <= PAGE + 22 + 3 * PAGE

    play(tmp_path, story)


async def closes_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A balancer without anybody behind it: its host acknowledges what it never reads."""
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.15)
    writer.transport.abort()


@pytest.mark.slow
def test_what_takes_connections_and_closes_them_late_got_nothing(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        taken, port = Taken(), free_tcp_port()
        connections = 0

        async def balancer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await closes_late(reader, writer)

        async with site.forwarding(f"tcp://127.0.0.1:{port}") as found:
            await site.until(found, state="away")
            server = await asyncio.start_server(balancer, "127.0.0.1", port)
            await site.decide(3 * PAGE)
            await asyncio.sleep(3)
            (status,) = await found.status()
            assert (status["sent"], status["behind"], status["dropped"]) == (0, 3 * PAGE, 0)
            assert 2 <= connections <= 5  # it is tried more and more slowly
            server.close()
            async with receiver(taken, port):
                await taken.until(lambda ids: ids == some(1, 3 * PAGE))
                await site.until(found, sent=3 * PAGE, behind=0)

    play(tmp_path, story)


def test_an_end_that_a_busy_loop_has_not_read_of_is_known() -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            wire = await open_wire(Receiver.read(f"tcp://127.0.0.1:{server.getsockname()[1]}"), lambda: None)
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
            await wire.send([b"one"])
            connection.close()
            time.sleep(0.1)
            assert not wire.closed.is_set()
            with pytest.raises(ConnectionResetError):
                wire.check()
            await wire.aclose()

    asyncio.run(story())


def test_pages_do_not_wait_for_those_before_them_to_be_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "CERTAIN_SECONDS", 30.0)
    monkeypatch.setattr(forwarding, "WINDOW", 6)

    async def story(site: Site) -> None:
        taken = Taken()
        async with receiver(taken) as port, site.forwarding(f"tcp://127.0.0.1:{port}") as found:
            await site.until(found, state="connected")
            begun = time.monotonic()
            await site.decide(10 * PAGE)
            await taken.until(lambda ids: len(ids) >= 5 * PAGE)
            assert time.monotonic() - begun < 5
            await asyncio.sleep(0.5)
            assert len(taken.ids) <= 6 * PAGE  # of what might come twice there is an end
            assert (await found.status())[0]["sent"] == 0

    play(tmp_path, story)


def test_too_much_for_a_receiver_that_is_away_is_dropped_and_counted(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        taken, port = Taken(), free_tcp_port()
        url = f"tcp://127.0.0.1:{port}"
        async with receiver(taken, port), site.forwarding(url, forward_rows=100) as found:
            await site.until(found, state="connected", behind=0)
            await site.decide()
            await taken.until(lambda ids: ids == [1])
            await site.until(found, sent=1)
        await site.decide(250)
        async with receiver(taken, port), site.forwarding(url, forward_rows=100) as found:
            await taken.until(lambda ids: ids == [1, *some(152, 251)])
            assert (await site.until(found, behind=0))["dropped"] == 150
        # what the log itself does not keep any more counts as well
        await site.decide(60)
        long_ago = SystemClock().now() - timedelta(days=1)
        await site.store.write(lambda tx: decisions.prune(tx, long_ago, keep_rows=10))
        async with receiver(taken, port), site.forwarding(url, forward_rows=100) as found:
            await taken.until(lambda ids: ids[-11:] == [251, *some(302, 311)])
            status = await site.until(found, behind=0)
            assert status["dropped"] == 150 + 50 and status["sent"] == 1 + 100 + 10
        # also where nothing is left
        await site.decide(4)
        await site.store.write(lambda tx: decisions.prune(tx, long_ago, keep_rows=0))
        async with receiver(taken, port), site.forwarding(url, forward_rows=100) as found:
            assert (await site.until(found, state="connected", behind=0))["dropped"] == 150 + 50 + 4
            await site.decide()
            await taken.until(lambda ids: ids[-2:] == [311, 316])
        # a backup from before the first row was restored
        await site.store.write(lambda tx: tx.execute(schema.decisions.delete()))
        await site.store.write(lambda tx: tx.execute(schema.meta.delete().where(schema.meta.c.key.like("decisions%"))))
        await site.decide(5)
        async with receiver(taken, port), site.forwarding(url, forward_rows=100) as found:
            await taken.until(lambda ids: ids[-6:] == [316, *some(1, 5)])
            assert (await site.until(found, behind=0))["dropped"] == 150 + 50 + 4

    play(tmp_path, story)


def test_a_receiver_that_takes_nothing_holds_up_no_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.access.syslog_wire.TAKE_SECONDS", 0.5)

    async def story(site: Site) -> None:
        gate, opened = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            opened.set()
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await gate.wait()
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1)
        server.sockets[0].setsockopt(1, 8, 2048)  # SO_RCVBUF
        port = server.sockets[0].getsockname()[1]
        async with site.forwarding(f"tcp://127.0.0.1:{port}") as found:
            await opened.wait()
            begun = time.monotonic()
            for _ in range(20):
                await site.decide(PAGE)
            assert time.monotonic() - begun < 5
            await site.until(found, why="the receiver does not answer, or takes nothing")
            assert (await found.status())[0]["behind"] > 0
            gate.set()
        server.close()

    play(tmp_path, story)


def test_after_a_restored_backup_it_goes_on_with_what_comes(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        taken, port = Taken(), free_tcp_port()
        url = f"tcp://127.0.0.1:{port}"
        await site.decide(3)
        await asyncio.sleep(0.01)
        position = {"row": 9000, "at": SystemClock().now().isoformat(), "sent": 9000, "dropped": 0}
        await site.store.write(lambda tx: meta.put(tx, f"log-forward {url}", json.dumps(position)))
        async with receiver(taken, port), site.forwarding(url) as found:
            await site.until(found, behind=0, state="connected")
            await site.decide(2)
            await taken.until(lambda ids: ids == [4, 5])

    play(tmp_path, story)


def test_one_that_stays_away_is_told_to_the_administrator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PATIENCE", forwarding.timedelta(seconds=0.2))

    async def story(site: Site) -> None:
        async with site.forwarding(f"tcp://127.0.0.1:{free_tcp_port()}") as found:
            await asyncio.sleep(0.4)
            with pytest.raises(LogNotForwarded, match="1 of 1 are away"):
                await found.look()

    play(tmp_path, story)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_one_that_flaps_is_away_and_an_idle_or_busy_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(forwarding, "PATIENCE", timedelta(seconds=1.0))
    monkeypatch.setattr(forwarding, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(forwarding, "LONGEST_PAUSE", 0.5)  # as the real one, below the patience

    async def story(site: Site) -> None:
        taken, port = Taken(), free_tcp_port()
        server = await asyncio.start_server(lambda _, writer: writer.transport.abort(), "127.0.0.1", port)
        async with site.forwarding(f"{scheme}://127.0.0.1:{port}") as found:  # nobody hears datagrams there
            await site.until(found, behind=0)
            async with asyncio.timeout(20):
                while not found._forwarders[0].is_missed():
                    await site.decide()  # a host says only so often that nobody is there
                    await asyncio.sleep(0.05)
            for _ in range(40):
                await site.decide()
                with pytest.raises(LogNotForwarded, match="1 of 1 are away"):
                    await found.look()
                (status,) = await found.status()
                assert status["state"] == "away" and status["why"]
                await asyncio.sleep(0.03)
        server.close()
        async with receiver(taken, port), site.forwarding(f"tcp://127.0.0.1:{port}") as found:
            for count in (0, 1) * 15:
                await site.decide(count)
                await asyncio.sleep(0.1)
                await found.look()
            for _ in range(15):
                await asyncio.sleep(0.1)
                await found.look()

    play(tmp_path, story)


@pytest.mark.parametrize(
    "url", ["", "syslog.example", "http://x:1", "tcp://", "tcp://a:0", "udp://a:65536", "tls://u:p@a:1", "tcp://a/x"]
)
def test_what_is_no_receiver_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="is wanted"):
        AccessSettings(forward_to=(url,))
    for urls in (("tcp://[1.2.3.4]:514",), ("tls://[:::::]",), ("udp://a", "tcp://b", "udp://a")):
        with pytest.raises(ValidationError, match="forward_to"):
            AccessSettings(forward_to=urls)
    assert AccessSettings(forward_to=("tls://[::1]", "udp://a.example:5514")).forward_to
