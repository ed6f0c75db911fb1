"""The ways to a syslog receiver: datagrams (RFC 5426), TCP by octet counting (RFC 6587, 3.4.1), TLS (RFC 5425)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

CONNECT_SECONDS: Final = 10.0
TAKE_SECONDS: Final = 30.0
MAX_DATAGRAM: Final = 65_000
_HEAR_SECONDS: Final = 0.02  # in which a host says that nobody listens there
_LOOK_SECONDS: Final = 0.01
_ESTABLISHED: Final = 1  # TCP_ESTABLISHED, the first octet of TCP_INFO
_PORTS: Final = {"udp": 514, "tcp": 601, "tls": 6514}


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where messages go."""

    url: str
    scheme: str
    host: str
    port: int

    @classmethod
    def read(cls, url: str) -> Receiver:
        """One that the settings took."""
        parts = urlsplit(url)
        return cls(url, parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme])


class Wire(Protocol):
    """An open way to a receiver."""

    closed: asyncio.Event
    """Set when it will take no more."""

    async def send(self, messages: Sequence[bytes]) -> None:
        """Until the receiver's host has them; raises OSError, TimeoutError.

        The host, or what accepts connections for it: only a connection that lives on tells of the program. Datagrams
        are gone when they are sent; all that can come back is that nobody listens.
        """

    def check(self) -> None:
        """Raises OSError when it will take no more."""

    async def aclose(self) -> None: ...


async def open_wire(receiver: Receiver, context: Callable[[], ssl.SSLContext | None]) -> Wire:
    """Raises OSError (ssl.SSLError is one), TimeoutError."""
    async with asyncio.timeout(CONNECT_SECONDS):
        if receiver.scheme == "udp":
            return await _Datagrams.open(receiver)
        tls: dict[str, Any] = {}
        if receiver.scheme == "tls":
            tls = {"ssl": context(), "server_hostname": receiver.host}
        return _Stream(*await asyncio.open_connection(receiver.host, receiver.port, **tls))


def counted(message: bytes) -> bytes:
    """A message as it goes over a stream (RFC 6587, section 3.4.1; RFC 5425, section 4.3)."""
    return b"%d %b" % (len(message), message)


class _Datagrams(asyncio.DatagramProtocol):
    """One message a datagram. A receiver that is not there may say so, or not."""

    _transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._error: Exception | None = None

    @classmethod
    async def open(cls, receiver: Receiver) -> _Datagrams:
        loop = asyncio.get_running_loop()
        transport, made = await loop.create_datagram_endpoint(cls, remote_addr=(receiver.host, receiver.port))
        made._transport = transport
        return made

    def error_received(self, exc: Exception) -> None:
        self._error = exc
        self.closed.set()

    async def send(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self._transport.sendto(message[:MAX_DATAGRAM])
        await asyncio.sleep(_HEAR_SECONDS)
        self.check()

    def check(self) -> None:
        if self._error is not None:
            raise OSError(f"the receiver does not listen: {self._error}")

    async def aclose(self) -> None:
        self._transport.close()


class _Stream:
    """A connection that only carries messages there: whatever comes back is its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.closed = asyncio.Event()
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader))
        writer.transport.set_write_buffer_limits(high=1, low=0)  # with 0, TLS would wait for ever

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(4096):
                pass
        self.closed.set()

    async def send(self, messages: Sequence[bytes]) -> None:
        self.check()
        async with asyncio.timeout(TAKE_SECONDS):
            self._writer.write(b"".join(map(counted, messages)))
            await self._writer.drain()
            quiet = 0
            while quiet < 2:  # the transport may hold more than the socket took at once
                await asyncio.sleep(_LOOK_SECONDS)
                self.check()
                quiet = 0 if self._unacknowledged() else quiet + 1

    def _unacknowledged(self) -> int:
        """Octets that the other host has not acknowledged (SIOCOUTQ, tcp(7))."""
        descriptor = self._writer.get_extra_info("socket").fileno()
        (octets,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0"))
        return int(octets)

    def _state(self) -> int:
        """What the kernel knows of the connection (tcp(7)): a busy loop may not have read of its end yet."""
        info = self._writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return int(info[0])

    def check(self) -> None:
        if self.closed.is_set() or self._writer.is_closing() or self._state() != _ESTABLISHED:
            raise ConnectionResetError("the receiver closed the connection")

    async def aclose(self) -> None:
        self._writer.transport.abort()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
