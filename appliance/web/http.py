"""One HTTP/1.1 connection: aiohttp reads the requests, everything said back is ours.

Deadlines are kept as one number per connection that the listener's sweep looks at: a stranger who drips bytes costs a
comparison, not a timer. Every answer has a Content-Length, a short header block, and no chunks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp.web import BaseRequest, RequestHandler

from appliance.errors import ExpectationRefused, HttpMalformed, RequestTooSlow
from appliance.web.app import new_request_id, refuse
from appliance.web.peer import Peer
from appliance.web.problems import one_line, problem
from est.errors import BodyTooLarge, MediaTypeNotAccepted
from est.exchange import Call, Reply

if TYPE_CHECKING:
    from appliance.web.server import Listener

_log = logging.getLogger(__name__)
MAX_HEAD_BYTES = 16_384
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_WITHOUT_BODY = frozenset({204, 304})
_ONCE = ("host", "content-type", "content-length", "authorization", "content-encoding", "transfer-encoding")
_NEVER_FROM_HANDLERS = frozenset({"content-length", "connection", "transfer-encoding"})


class RawAnswer:
    """A Reply on its way out, in the shape that aiohttp's connection asks its responses to have."""

    __slots__ = ("_data", "_transport", "keep_alive", "status")

    def __init__(self, reply: Reply, request_id: str, *, head_only: bool, keep_alive: bool) -> None:
        self.status = reply.status
        self.keep_alive = keep_alive and reply.headers.get("connection", "").lower() != "close"
        self._data = _serialise(reply, request_id, head_only, self.keep_alive)
        self._transport: asyncio.Transport | None = None

    async def prepare(self, request: BaseRequest) -> None:
        self._transport = request.transport
        if self._transport is None:
            raise ConnectionResetError("the client has gone")
        self._transport.write(self._data)

    async def write_eof(self) -> None:
        return None


def _serialise(reply: Reply, request_id: str, head_only: bool, keep_alive: bool) -> bytes:
    status = reply.status
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}"]
    if reply.media_type:
        lines.append(f"Content-Type: {reply.media_type}")
    if status not in _WITHOUT_BODY:
        lines.append(f"Content-Length: {len(reply.body)}")
    for name, value in reply.headers.items():
        if name not in _NEVER_FROM_HANDLERS:
            lines.append(f"{name.title()}: {value}")
    if not keep_alive:
        lines.append("Connection: close")
    lines.append(f"X-Request-Id: {request_id}\r\n\r\n")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) + 1:
        raise ValueError("a header value has a line break")
    data = head.encode("latin-1", "replace")
    return data if head_only or status in _WITHOUT_BODY else data + reply.body


def _nothing() -> None:
    return None


class HttpConnection(RequestHandler):
    """aiohttp's connection with our deadlines and our error answers."""

    __slots__ = ("_head_bytes", "_owner", "_peer", "busy", "deadline", "peer_address", "released", "slot", "started")

    def __init__(self, owner: Listener, manager: Any, address: str, connection_id: int, **options: Any) -> None:
        super().__init__(manager, **options)
        self._owner = owner
        self._peer: Peer | None = None
        self._head_bytes = 0
        self.peer_address = address
        self.slot = connection_id
        self.busy = False
        self.started = False
        self.deadline = float("inf")
        self.released: Callable[[], None] = _nothing

    @property
    def peer(self) -> Peer:
        """Who is at the other end; raises HttpMalformed if the certificate presented cannot be read at all."""
        if self._peer is None:
            self._peer = self._owner.peer_of(self.transport, self.peer_address, self.slot)
        return self._peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.deadline = self._loop.time() + self._owner.timing.header_seconds
        self._owner.connected(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._owner.lost(self)
        self.released()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            if not self.started:
                self.started = True
                self._head_bytes = 0
                self.deadline = self._loop.time() + self._owner.timing.header_seconds
            self._head_bytes += len(data)
        super().data_received(data)
        if not self.busy and self._head_bytes > MAX_HEAD_BYTES and not self._messages:
            self.cut(HttpMalformed("the header block is too long"))

    def begin(self) -> None:
        """A request's head is complete."""
        self.busy = True
        self.deadline = float("inf")

    def finish(self) -> None:
        """Its answer is written."""
        self.busy = False
        self.started = False
        self._head_bytes = 0
        self.deadline = self._loop.time() + self._owner.timing.keepalive_seconds

    def expire(self) -> None:
        """The deadline has passed: say so if a request had begun, and close."""
        if self.started and not self.busy:
            self.cut(RequestTooSlow("the request's header did not arrive in time"))
        elif self.transport is not None:
            self.transport.abort() if self.transport.get_write_buffer_size() else self.force_close()

    def cut(self, refusal: HttpMalformed | RequestTooSlow) -> None:
        """Answer out of turn and close."""
        transport = self.transport
        if transport is not None:
            request_id = new_request_id()
            _log.info("event=refused reason=%s detail=%r address=%s", refusal.reason, refusal.detail, self.peer_address)
            reply = problem(refusal, path="/.well-known/", request_id=request_id)
            transport.write(_serialise(reply, request_id, False, False))
        self.force_close()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> Any:
        """aiohttp could not read a request: one plain line from our table instead of its page."""
        if exc is not None and status >= 500:
            error: Exception = exc if isinstance(exc, Exception) else RuntimeError("aiohttp failed")
        else:
            error = HttpMalformed("the bytes are not an HTTP request that is read here")
        request_id = new_request_id()
        reply = refuse(error, "", "/.well-known/", Peer(self.peer_address, self.slot), request_id)
        return RawAnswer(reply, request_id, head_only=False, keep_alive=False)


async def respond(connection: HttpConnection, request: BaseRequest) -> RawAnswer:
    """Read one request, have the app answer it, write the answer."""
    connection.begin()
    request_id = new_request_id()
    app = connection._owner.app
    method, path = request.method, request.raw_path.partition("?")[0]
    keep_alive = request.keep_alive
    peer: Peer | None = None
    try:
        peer = connection.peer
        headers = _headers(request)
        _check_head(headers, path)
        match = app.match(method, path)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        call = Call(method, path, media_type, headers)
        app.admit(match, call, peer, request.content_length)
        body = b""
        if request.body_exists:
            body = await _read_body(request, match.entry.route.max_body, match.entry.route.seconds)
        headers["x-request-id"] = request_id
        reply = await app.answer(match, Call(method, path, media_type, headers, body), peer)
    except Exception as error:  # noqa: BLE001 - the one door through which every error becomes an answer
        if not request.content.is_eof():
            keep_alive = False  # the rest of the body is not waited for
        if isinstance(error, HttpMalformed | ExpectationRefused | RequestTooSlow):
            keep_alive = False
        who = peer or Peer(connection.peer_address, connection.slot)
        reply = refuse(error, method, path, who, request_id)
    try:
        answer = RawAnswer(reply, request_id, head_only=method == "HEAD", keep_alive=keep_alive)
    except ValueError as error:  # a handler's header cannot be written
        reply = refuse(error, method, path, peer or Peer(connection.peer_address), request_id)
        answer = RawAnswer(reply, request_id, head_only=method == "HEAD", keep_alive=False)
    connection.finish()
    _log.debug(
        "event=answered method=%s path=%r status=%d request_id=%s",
        method,
        one_line(path, 200),
        reply.status,
        request_id,
    )
    return answer


def _headers(request: BaseRequest) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        name = name.lower()
        if name in headers:
            if name in _ONCE:
                raise HttpMalformed(f"the header {name} stands twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _check_head(headers: Mapping[str, str], path: str) -> None:
    if "expect" in headers or "upgrade" in headers:
        raise ExpectationRefused("Expect and Upgrade are not done here")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeNotAccepted("compressed bodies are not read here", expected=["identity"])
    if not path.startswith("/"):
        raise HttpMalformed("the request target must be a path")


async def _read_body(request: BaseRequest, max_body: int, seconds: float) -> bytes:
    content = request.content
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                chunk = await content.readany()
                if not chunk:
                    break
                size += len(chunk)
                if size > max_body:
                    raise BodyTooLarge("the body is too large", limit=max_body)
                chunks.append(chunk)
    except TimeoutError as error:
        raise RequestTooSlow("the body did not arrive in time") from error
    except ValueError as error:  # aiohttp: the body's framing is wrong
        raise HttpMalformed("the body's framing is wrong") from error
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
