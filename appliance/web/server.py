"""Listeners: sockets, TLS, caps and deadlines around an App.

Connections are accepted here rather than by asyncio's server, so that caps apply before a handshake costs anything. One
sweep per listener closes what is past its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from appliance.errors import Conflict
from appliance.settings import WebSettings
from appliance.web import tls_peer
from appliance.web.admission import Admission
from appliance.web.app import App
from appliance.web.http import HttpConnection
from appliance.web.peer import Peer, program_of
from appliance.web.tls import TlsFront
from appliance.web.tls_transport import TlsTransport
from appliance.web.unix_path import short_path
from appliance.web.wire import Wire, new_scratch

_log = logging.getLogger(__name__)
_BACKLOG = 1024
_ACCEPT_AT_ONCE = 64
_SWEEP_SECONDS = 0.25
_PAUSE_SECONDS = 1.0
_SEND_BUFFER = 262_144
"""Bytes that wait in the kernel for one slow reader; Linux counts twice as many."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Deadlines in seconds and connection caps of one listener."""

    handshake_seconds: float = 10.0
    header_seconds: float = 5.0
    keepalive_seconds: float = 15.0
    stall_seconds: float = 10.0
    max_connections: int = 2000
    max_connections_per_address: int = 256

    @classmethod
    def of(cls, web: WebSettings) -> Timing:
        """The deadlines and caps that the settings ask for."""
        return cls(
            web.handshake_seconds,
            web.header_seconds,
            web.keepalive_seconds,
            web.request_seconds,
            web.max_connections,
            web.max_connections_per_address,
        )


class Listener:
    """One port, or one Unix socket, with one app behind it."""

    def __init__(
        self,
        name: str,
        app: App,
        *,
        timing: Timing | None = None,
        tls: TlsFront | ssl.SSLContext | None = None,
        sheds: bool = False,
    ) -> None:
        """`sheds`: POSTs are refused where there are more than can be answered in time."""
        self.name = name
        self.app = app
        self.timing = timing or Timing()
        self.admission = Admission(name) if sheds else None
        self._tls = tls
        self._ids = count(1)
        self._sockets: list[socket.socket] = []
        self._unix_paths: list[Path] = []
        self._connections: set[HttpConnection] = set()
        self._watched: set[TlsTransport] = set()
        self._per_address: Counter[str] = Counter()
        self._scratch = new_scratch()
        self._open = 0
        self._stalled: dict[HttpConnection, float] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._occupied = asyncio.Event()
        self._drained: asyncio.Event | None = None

    def use_tls(self, tls: TlsFront | ssl.SSLContext) -> None:
        """Greet new connections under this from now on; those that are open stay as they are."""
        self._tls = tls

    async def open_tcp(self, host: str, port: int) -> int:
        """Listen on an address; returns the port, which is picked if 0 was asked for. OSError if it is taken."""
        listening = bind_tcp(host, port)
        try:
            await self.open_socket(listening)
        except BaseException:
            listening.close()
            raise
        return int(listening.getsockname()[1])

    async def open_socket(self, listening: socket.socket) -> None:
        """Listen on a socket that is bound, and that other processes may have too."""
        self._listen(listening)

    async def open_unix(self, path: Path, mode: int = 0o600) -> None:
        """Listen on a Unix socket with this file mode; Conflict if somebody answers there already."""
        listening = bind_unix(path, mode)
        try:
            self._listen(listening)
        except BaseException:
            listening.close()
            raise
        self._unix_paths.append(path)

    async def close(self, grace_seconds: float = 10.0) -> None:
        """Stop accepting, let requests that are under way finish, then close what is left."""
        loop = asyncio.get_running_loop()
        for listening in self._sockets:
            loop.remove_reader(listening.fileno())
            listening.close()
        self._sockets.clear()
        for path in self._unix_paths:
            path.unlink(missing_ok=True)
        self._unix_paths.clear()
        for transport in list(self._watched):
            transport.abort()
        for connection in list(self._connections):
            connection.drain()
        if self._connections:
            self._drained = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._drained.wait()
        for connection in list(self._connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None

    @property
    def connections(self) -> int:
        """How many connections are open, handshakes included."""
        return self._open

    def connected(self, connection: HttpConnection) -> None:
        """A connection is ready for its first request."""
        self._connections.add(connection)
        self._occupied.set()

    def lost(self, connection: HttpConnection) -> None:
        """A connection has ended, and what it had under way."""
        self._connections.discard(connection)
        self._stalled.pop(connection, None)
        if self._drained is not None and not self._connections:
            self._drained.set()

    def watch(self, transport: TlsTransport) -> None:
        """A TLS connection has a deadline of its own now: in its handshake, and at its end."""
        self._watched.add(transport)
        self._occupied.set()

    def unwatch(self, transport: TlsTransport) -> None:
        """The deadline is met."""
        self._watched.discard(transport)

    def peer_of(self, transport: asyncio.Transport | None, address: str, connection_id: int) -> Peer:
        """Who is at the other end; HttpMalformed if the certificate presented cannot be read."""
        if transport is None:
            return Peer(address, connection_id)
        if isinstance(transport, TlsTransport):
            return tls_peer.peer_of(transport.side, address, connection_id)
        if isinstance(transport, Wire) and transport.socket.family == socket.AF_UNIX:
            pid, uid, _ = struct.unpack("3i", transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return Peer("unix", connection_id, uid=uid, pid=pid, program=program_of(pid))
        return Peer(address, connection_id)

    @property
    def is_storm(self) -> bool:
        """Whether it is asked for so much more than it can do that it refuses some."""
        return self.admission is not None and self.admission.is_storm

    def _listen(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
        listening.setblocking(False)
        listening.listen(_BACKLOG)
        loop.add_reader(listening.fileno(), self._accept, listening)
        self._sockets.append(listening)

    def _accept(self, listening: socket.socket) -> None:
        is_crowded = self.admission is not None and self.admission.is_crowded
        for _ in range(1 if is_crowded else _ACCEPT_AT_ONCE):
            try:
                accepted, where = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: those that are open go on
                _log.error("event=accept-failed listener=%s error=%s", self.name, error)
                self._pause(listening)
                return
            address = where[0] if where else "unix"
            refused = self._cap(address)
            if refused:
                _log.warning("event=connection-refused listener=%s address=%s why=%r", self.name, address, refused)
                accepted.close()
                continue
            accepted.setblocking(False)
            self._open += 1
            self._per_address[address] += 1
            self._greet(accepted, address)

    def _pause(self, listening: socket.socket) -> None:
        """The connection still waits, so the loop would call again at once, and for ever; look again in a second."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening.fileno())
        loop.call_later(_PAUSE_SECONDS, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening)

    def _cap(self, address: str) -> str:
        if self._open >= self.timing.max_connections:
            return "too many connections"
        if address != "unix" and self._per_address[address] >= self.timing.max_connections_per_address:
            return "too many connections from this address"
        return ""

    def _greet(self, accepted: socket.socket, address: str) -> None:
        """Put TLS or HTTP above the socket."""
        released = _Release(self, address)
        try:
            Wire(accepted, self._protocol(address, released), self._scratch, self.admission)
        except Exception:  # noqa: BLE001 - one connection that cannot be made is no reason to accept no others
            _log.exception("event=connection-failed listener=%s address=%s", self.name, address)
            released()
            accepted.close()

    def _protocol(self, address: str, released: Callable[[], None]) -> HttpConnection | TlsTransport:
        def http() -> HttpConnection:
            return HttpConnection(self, address, next(self._ids), released)

        if self._tls is None:
            return http()
        return TlsTransport(self, self._tls, address, above=http, released=released)

    def release(self, address: str) -> None:
        """A connection's place is free again."""
        self._open -= 1
        self._per_address[address] -= 1
        if self._per_address[address] <= 0:
            del self._per_address[address]

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._connections and not self._watched:
                self._occupied.clear()
                await self._occupied.wait()  # an idle listener wakes nobody
            await asyncio.sleep(_SWEEP_SECONDS)
            self._end_overdue(loop.time())  # in a frame of its own: this one would hold the last connection it saw

    def _end_overdue(self, now: float) -> None:
        for secured in list(self._watched):
            if secured.deadline < now:
                secured.expire()
        for connection in list(self._connections):
            if connection.deadline < now:
                connection.expire()
            transport = connection.transport
            if transport is not None and transport.get_write_buffer_size():
                since = self._stalled.setdefault(connection, now)
                if now - since > self.timing.stall_seconds:
                    _log.info("event=stalled-reader listener=%s address=%s", self.name, connection.address)
                    connection.abort()
            else:
                self._stalled.pop(connection, None)


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A Unix socket with this file mode, not yet listening; Conflict if somebody answers there already."""
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                with short_path(path) as short:
                    probe.connect(short)
            except OSError:
                path.unlink()  # left behind by a process that was killed
            else:
                raise Conflict("another process listens on this socket", path=str(path))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~mode)
    try:
        with short_path(path) as short:
            listening.bind(short)
        path.chmod(mode)
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(old)
    return listening


class _Release:
    """Frees a connection's place once."""

    __slots__ = ("_address", "_done", "_listener")

    def __init__(self, listener: Listener, address: str) -> None:
        self._listener = listener
        self._address = address
        self._done = False

    def __call__(self) -> None:
        if not self._done:
            self._done = True
            self._listener.release(self._address)


def bind_tcp(host: str, port: int) -> socket.socket:
    """A socket bound to an address, port 0 for any; OSError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # every accepted socket inherits it
        # a client that reads nothing is noticed when this is full, and the kernel would let it grow to megabytes
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
