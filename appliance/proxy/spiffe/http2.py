"""gRPC server streams over HTTP/2 on a Unix socket, with the kernel's word about who connected.

Frames and states are those of `h2`; accepting, peer credentials and bounds are ours, because no gRPC server for Python
says which process is at the other end. Headers and trailers follow the gRPC document "gRPC over HTTP2".
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes

from appliance.proxy.caller import start_ticks
from appliance.proxy.errors import CallerGone
from appliance.proxy.spiffe.messages import MAX_REQUEST_BYTES, Code, Status, check_request, frame, percent
from appliance.web.peer import Peer
from appliance.web.server import bind_unix
from est.errors import Refusal

log = logging.getLogger(__name__)

SECURITY_HEADER = "workload.spiffe.io"
"""SPIFFE Workload Endpoint, section 3: without it a browser could be made to ask."""
MAX_CONNECTIONS = 256
MAX_PER_USER = 64
MAX_STREAMS = 16
SILENT_SECONDS = 10.0
"""A connection without any stream for so long after its begin is closed."""
_MAX_UNREAD = 1 << 20
_MAX_EVENTLESS = 1 << 16
"""Octets of frames that are not whole yet; h2 would collect up to 16 MiB."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The process that connected: the kernel's word, and when that process began."""

    peer: Peer
    start_ticks: int


Serve = Callable[[str, Connected], AsyncIterator[bytes]]
"""The messages of one call, by the method's path; raises Status or a Refusal."""
ToStatus = Callable[[Refusal], Status]


@dataclass(slots=True)
class _Stream:
    path: str
    body: bytearray = field(default_factory=bytearray)
    task: asyncio.Task[None] | None = None
    has_headers: bool = False


class GrpcServer:
    """One Unix socket on which calls are served."""

    def __init__(self, serve: Serve, to_status: ToStatus, *, silent_seconds: float = SILENT_SECONDS) -> None:
        self.serve = serve
        self.to_status = to_status
        self.silent_seconds = silent_seconds
        self.connections: set[_Connection] = set()
        self.ids = itertools.count(1)
        self.users: Counter[int] = Counter()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def open(self, path: Path, mode: int) -> None:
        """Listen. Raises Conflict."""
        listening = bind_unix(path, mode)
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), sock=listening)
        self._path = path

    async def close(self) -> None:
        """Stop accepting and end every call."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        tasks = [task for one in list(self.connections) for task in one.abort()]
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # asyncio tells of an aborted transport in its next round


class _Connection(asyncio.Protocol):
    """One caller's connection."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._streams: dict[int, _Stream] = {}
        self._window = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._who: Connected | None = None
        self._uid = -1
        self._eventless = 0

    # -- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        server = self._server
        credentials = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, self._uid, _ = struct.unpack("3i", credentials)
        self._transport = transport
        server.connections.add(self)
        server.users[self._uid] += 1
        if len(server.connections) > MAX_CONNECTIONS or server.users[self._uid] > MAX_PER_USER:
            log.warning("event=connection-refused listener=spiffe uid=%d", self._uid)
            transport.abort()
            return
        try:
            ticks = start_ticks(pid)
        except CallerGone:
            ticks = -1  # each call of it is refused
        self._who = Connected(Peer("unix", next(server.ids), uid=self._uid, pid=pid), ticks)
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self._flush()
        asyncio.get_running_loop().call_later(server.silent_seconds, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        self._server.users[self._uid] -= 1
        if not self._server.users[self._uid]:
            del self._server.users[self._uid]
        self._window.set()
        for stream in list(self._streams.values()):
            if stream.task is not None:
                stream.task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
            for event in events:
                self._on(event)
        except ProtocolError as error:
            log.info("event=http2-refused uid=%d why=%s", self._uid, type(error).__name__)
            self._flush()
            self._end()
            return
        self._flush()
        self._eventless = 0 if events else self._eventless + len(data)
        if self._eventless > _MAX_EVENTLESS:
            self._end()

    def abort(self) -> list[asyncio.Task[None]]:
        """Cut it; the tasks that now end."""
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        for task in tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.abort()
        return tasks

    # -- HTTP/2 --------------------------------------------------------------------------------------------------

    def _on(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            stream = self._streams.get(event.stream_id)
            if stream is not None and len(stream.body) <= MAX_REQUEST_BYTES:
                stream.body += event.data
        elif isinstance(event, StreamEnded):
            stream = self._streams.get(event.stream_id)
            if stream is not None and stream.task is None:
                stream.task = asyncio.create_task(self._run(event.stream_id, stream))
                stream.task.add_done_callback(self._ended)
        elif isinstance(event, StreamReset):
            stream = self._streams.pop(event.stream_id, None)
            if stream is not None and stream.task is not None:
                stream.task.cancel()
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            self._window.set()
        elif isinstance(event, ConnectionTerminated):
            self._end()

    def _begin(self, event: RequestReceived) -> None:
        values: dict[str, list[str]] = {}
        for name, value in event.headers or ():
            values.setdefault(str(name), []).append(str(value))
        media_type = values.get("content-type", [""])[0]
        if values.get(":method") != ["POST"] or not media_type.startswith("application/grpc"):
            self._h2.send_headers(event.stream_id, [(":status", "415")], end_stream=True)
            if event.stream_ended is None:
                self._h2.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)
            return
        if values.get(SECURITY_HEADER) != ["true"]:
            self._refuse(event, Status(Code.INVALID_ARGUMENT, f"the metadata lacks {SECURITY_HEADER}: true"))
            return
        if len(self._streams) >= MAX_STREAMS:  # a client that acknowledges no settings is not bound by them
            self._h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._streams[event.stream_id] = _Stream(values.get(":path", [""])[0])

    def _refuse(self, event: RequestReceived, status: Status) -> None:
        self._finish(event.stream_id, status, has_headers=False)
        if event.stream_ended is None:
            self._h2.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)

    async def _run(self, stream_id: int, stream: _Stream) -> None:
        """One call, from its request to its trailers."""
        assert self._who is not None
        status = Status(Code.OK, "")
        try:
            check_request(bytes(stream.body))
            async for message in self._server.serve(stream.path, self._who):
                await self._send(stream_id, stream, frame(message))
        except Status as ended:
            status = ended
        except Refusal as refusal:
            status = self._server.to_status(refusal)
        if stream_id in self._streams and self._transport is not None:
            del self._streams[stream_id]
            self._finish(stream_id, status, has_headers=stream.has_headers)
            self._flush()

    async def _send(self, stream_id: int, stream: _Stream, data: bytes) -> None:
        if not stream.has_headers:
            self._h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
            stream.has_headers = True
        while data:
            size = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if size <= 0:
                self._flush()
                self._window.clear()
                await self._window.wait()
                continue
            self._h2.send_data(stream_id, data[:size])
            data = data[size:]
        self._flush()

    def _finish(self, stream_id: int, status: Status, *, has_headers: bool) -> None:
        head = [] if has_headers else [(":status", "200"), ("content-type", "application/grpc")]
        trailers = [*head, ("grpc-status", str(int(status.code)))]
        if status.message:
            trailers.append(("grpc-message", percent(status.message)))
        self._h2.send_headers(stream_id, trailers, end_stream=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, H2Error):  # H2Error: the stream ended while we wrote
            log.error("a call of the Workload API failed", exc_info=error)
            if self._transport is not None:
                self._transport.abort()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None:
            return
        transport.write(self._h2.data_to_send())
        if transport.get_write_buffer_size() > _MAX_UNREAD:  # it makes us answer and does not read
            transport.abort()

    def _close_if_silent(self) -> None:
        if not self._streams and self._h2.highest_inbound_stream_id == 0:
            self._end()

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.close()
