"""Wire and the TLS above it: what a client sees of a slow reader, a reset, a half-closed and a failed connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable

import pytest
from OpenSSL import SSL

from appliance.web.admission import Admission
from appliance.web.server import Timing
from appliance.web.wire import Wire
from tests.appliance.web.front import Client, client_context, get, listening, post


class Recorder(asyncio.Protocol):
    """Notes what a wire tells it."""

    def __init__(self, answer: Callable[[Wire, bytes], None] | None = None) -> None:
        self.told: list[str] = []
        self.data = b""
        self.ended = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._keep_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Wire)
        self.wire = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self._answer is not None:
            self._answer(self.wire, data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self._keep_open

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.told.append("lost")
        self.ended.set_result(exc)


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


async def read_all(other: socket.socket) -> bytes:
    loop, found = asyncio.get_running_loop(), b""
    while data := await loop.sock_recv(other, 65_536):
        found += data
    return found


def test_what_is_written_before_closing_arrives_in_order_and_whole() -> None:
    async def run() -> None:
        ours, theirs = pair()
        recorder = Recorder()
        wire = Wire(ours, recorder)
        parts = [bytes([at % 256]) * 70_000 for at in range(40)]
        for part in parts:
            wire.write(part)
        assert recorder.told == ["made", "pause"]
        assert wire.get_write_buffer_size() > 65_536
        wire.close()
        wire.write(b"too late")
        assert await asyncio.wait_for(read_all(theirs), 60) == b"".join(parts)
        assert await recorder.ended is None
        assert recorder.told == ["made", "pause", "resume", "lost"]
        assert ours.fileno() == -1
        theirs.close()

    asyncio.run(run())


def test_a_half_closed_wire_still_reads() -> None:
    async def run() -> None:
        ours, theirs = pair()
        recorder = Recorder()
        wire = Wire(ours, recorder)
        wire.write(bytes(3_000_000))
        wire.write_eof()
        assert len(await asyncio.wait_for(read_all(theirs), 60)) == 3_000_000
        theirs.sendall(b"still here")
        theirs.close()
        await asyncio.wait_for(recorder.ended, 5)
        assert recorder.data == b"still here"
        assert recorder.told[-2:] == ["eof", "lost"]

    asyncio.run(run())


def test_a_paused_wire_reads_nothing_until_it_goes_on() -> None:
    async def run() -> None:
        ours, theirs = pair()
        recorder = Recorder()
        wire = Wire(ours, recorder)
        wire.pause_reading()
        theirs.sendall(b"abc")
        await asyncio.sleep(0.05)
        assert (recorder.data, wire.is_reading()) == (b"", False)
        wire.resume_reading()
        async with asyncio.timeout(60):
            while recorder.data != b"abc":
                await asyncio.sleep(0.01)
        wire.abort()
        wire.abort()
        await asyncio.wait_for(recorder.ended, 5)
        assert recorder.told.count("lost") == 1
        theirs.close()

    asyncio.run(run())


def test_a_choked_wire_leaves_the_rest_to_its_peer_whatever_above_wants_and_reads_it_later() -> None:
    async def run() -> None:
        ours, theirs = pair()
        recorder = Recorder()
        gate = Admission("test")
        wire = Wire(ours, recorder, admission=gate)
        gate.is_crowded = gate._is_due = True  # nobody's turn comes
        sent = 0
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += theirs.send(bytes(65_536))
            await asyncio.sleep(0)
        wire.pause_reading()
        wire.resume_reading()
        await asyncio.sleep(0.02)
        assert sum(map(len, gate._held[wire].data)) <= 2 * 65_536 < sent
        gate.is_crowded = False
        gate._turn()
        async with asyncio.timeout(60):
            while len(recorder.data) < sent:
                await asyncio.sleep(0.01)
        wire.abort()
        wire.choke(False)
        await asyncio.wait_for(recorder.ended, 5)
        theirs.close()

    asyncio.run(run())


def test_a_protocol_that_fails_ends_its_connection_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(wire: Wire, data: bytes) -> None:
        raise RuntimeError("a bug")

    async def run() -> None:
        ours, theirs = pair()
        recorder = Recorder(fail)
        Wire(ours, recorder)
        theirs.sendall(b"x")
        assert await asyncio.wait_for(read_all(theirs), 60) == b""
        await asyncio.wait_for(recorder.ended, 5)
        theirs.close()

    asyncio.run(run())
    assert "event=connection-failed" in caplog.text and "a bug" in caplog.text


def test_the_protocol_hears_of_the_end_after_its_own_call_has_returned() -> None:
    async def run() -> None:
        ours, theirs = pair()
        recorder = Recorder()
        wire = Wire(ours, recorder)
        wire.close()
        assert recorder.told == ["made"]
        await asyncio.wait_for(recorder.ended, 5)
        theirs.close()

    asyncio.run(run())


@pytest.mark.parametrize("tls", [False, True])
def test_a_reset_while_a_large_answer_is_on_its_way_frees_the_connection(
    tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with listening(tls=tls) as (listener, port):
            client = await Client.connect(port, client_context() if tls else None)
            await client.send(get("/big"))
            await asyncio.sleep(0.1)
            raw = client.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.writer.transport.abort()
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)

    asyncio.run(run())
    assert "Traceback" not in caplog.text


@pytest.mark.req("E-202")
def test_a_large_answer_is_encrypted_as_fast_as_it_is_read() -> None:
    async def run() -> None:
        async with listening(tls=True) as (listener, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(), limit=1000)
            writer.write(get("/big"))
            async with asyncio.timeout(60):
                while not listener._connections:
                    await asyncio.sleep(0.01)
                (connection,) = listener._connections
                assert connection.transport is not None
                while connection.transport.get_write_buffer_size() <= 1_000_000:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert connection.transport.get_write_buffer_size() > 1_000_000
            assert connection.transport._below.get_write_buffer_size() < 200_000  # type: ignore[attr-defined]
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert len(await asyncio.wait_for(reader.readexactly(8_000_000), 60)) == 8_000_000
            writer.write(get("/who"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/bye", "/refused"])
def test_a_connection_that_the_server_ends_ends_with_close_notify(path: str) -> None:
    def talk(port: int) -> tuple[bytes, bool]:
        raw = socket.create_connection(("127.0.0.1", port))
        made = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), raw)
        made.set_connect_state()
        made.do_handshake()
        made.sendall(get(path, "Connection: close"))
        found = b""
        try:
            while True:
                found += made.recv(4096)
        except SSL.ZeroReturnError:
            return found, True
        except SSL.Error:
            return found, False
        finally:
            raw.close()

    async def run() -> tuple[bytes, bool]:
        async with listening(tls=True) as (_, port):
            return await asyncio.to_thread(talk, port)

    answer, is_clean = asyncio.run(run())
    assert is_clean and answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 404"))


def test_an_answer_to_a_body_that_is_too_large_reaches_a_client_that_goes_on_sending() -> None:
    async def run() -> int:
        async with listening(tls=True) as (_, port):
            client = await Client.connect(port, client_context())
            for _ in range(4):
                await client.send(post("/echo", bytes(65_537)))
            return (await client.read()).status

    assert asyncio.run(run()) == 413


def test_a_peer_that_never_ends_its_side_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listening(tls=True, timing=Timing(handshake_seconds=0.3)) as (listener, port):
            raw = socket.create_connection(("127.0.0.1", port))
            raw.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")  # refused with an alert; the socket stays open
            async with asyncio.timeout(60):
                await asyncio.sleep(0.1)
                while listener.connections:
                    await asyncio.sleep(0.05)
            raw.close()

    caplog.set_level(logging.INFO)
    asyncio.run(run())
    assert caplog.text.count("handshake-refused") == 1


@pytest.mark.parametrize(("data", "lines"), [(b"", 0), (b"\x16\x03\x01", 1)], ids=["a look", "a broken greeting"])
def test_a_look_whether_the_port_takes_connections_is_no_refused_handshake(
    data: bytes, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Announcer and join proxies look every half minute; who reads the log looks for devices that fail."""

    async def run() -> None:
        async with listening(tls=True) as (listener, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            await asyncio.sleep(0.05)
            writer.close()
            async with asyncio.timeout(60):
                await asyncio.sleep(0.1)
                while listener.connections:
                    await asyncio.sleep(0.02)

    caplog.set_level(logging.INFO)
    asyncio.run(run())
    assert caplog.text.count("handshake-refused") == lines
