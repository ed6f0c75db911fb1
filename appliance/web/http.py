"""One HTTP/1.1 connection: reading.py makes requests of its bytes, everything that is said back is made here.

One request at a time, its body within the route's limit before the endpoint sees it. Deadlines are one number per
connection that the listener's sweep looks at, so a stranger who drips bytes costs a comparison and not a timer. Every
answer has a Content-Length, a short header block, and no chunks; every refusal comes from problems.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from appliance.errors import ExpectationRefused, HttpMalformed, Overloaded, RequestTooSlow
from appliance.web.app import Match, refuse, too_slow
from appliance.web.peer import Peer
from appliance.web.problems import one_line, problem
from appliance.web.reading import MAX_HEAD_BYTES, Request, RequestReader, read_headers
from appliance.web.transports import abort, half_close
from est.errors import BodyTooLarge, Refusal
from est.exchange import Call, Reply

if TYPE_CHECKING:
    from appliance.web.server import Listener

_log = logging.getLogger(__name__)
_MAX_BEHIND = 65_536
_MAX_DISCARDED = 1_048_576
_LINGER_SECONDS = 2.0
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_WITHOUT_BODY = frozenset({204, 304})
_NEVER_FROM_HANDLERS = frozenset({"content-length", "connection", "date", "transfer-encoding"})
_NEVER = float("inf")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,8})[ \t]*(?=\r\n|\Z)")
_NOT_PLAIN = (b"\r\ntransfer-encoding", b"\r\nexpect", b"\r\nupgrade", b"\r\nconnection:", b"http/1.0")


@lru_cache(maxsize=64)
def _around(status: int, media_type: str, keep_alive: bool, second: int) -> tuple[str, str]:
    """The lines before and after those of one answer; ValueError for a line break.

    A server with a clock says what time it is (RFC 9110, section 6.6.1); devices without one listen.
    """
    before = f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n"
    if media_type:
        before += _line("Content-Type", media_type)
    after = f"Date: {formatdate(second, usegmt=True)}\r\n"
    return before, after if keep_alive else f"Connection: close\r\n{after}"


def _line(name: str, value: str) -> str:
    line = f"{name}: {value}"
    if "\r" in line or "\n" in line:
        raise ValueError("a header has a line break in it")
    return f"{line}\r\n"


def serialise(reply: Reply, request_id: str, *, head_only: bool, keep_alive: bool) -> bytes:
    """A reply as HTTP/1.1 bytes; ValueError if a header has a line break in it."""
    status = reply.status
    before, after = _around(status, reply.media_type, keep_alive, int(time.time()))
    own = "" if status in _WITHOUT_BODY else f"Content-Length: {len(reply.body)}\r\n"
    for name, value in reply.headers.items():
        if name not in _NEVER_FROM_HANDLERS:
            own += _line(name.title(), value)
    head = f"{before}{own}{after}X-Request-Id: {request_id}\r\n\r\n".encode("latin-1", "replace")
    return head if head_only or status in _WITHOUT_BODY else head + reply.body


def is_whole_post(data: bytes) -> bool:
    """Whether these bytes are one POST as programs write it: Content-Length once, and its body to the last byte."""
    head, found, body = data.partition(b"\r\n\r\n")
    if not found or not head.startswith(b"POST /") or len(head) > MAX_HEAD_BYTES:
        return False
    head = head.lower()
    lengths = _LENGTH.findall(head)
    return len(lengths) == 1 and int(lengths[0]) == len(body) and not any(word in head for word in _NOT_PLAIN)


@lru_cache(maxsize=1)
def _crowded(second: int) -> bytes:
    """The refusal of everybody who is turned away in one second."""
    request_id = f"crowded-{second:x}"
    error = Overloaded("more is asked than can be answered in time", retry_after_seconds=1)
    return serialise(problem(error, path="/", request_id=request_id), request_id, head_only=False, keep_alive=True)


class HttpConnection(asyncio.Protocol):
    """A connection of one listener; `deadline` is loop time, `released` frees its place in the caps."""

    def __init__(self, owner: Listener, address: str, slot: int, released: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.address = address
        self.deadline = _NEVER
        self._owner = owner
        self._slot = slot
        self._released = released
        self._peer: Peer | None = None
        self._reader = RequestReader()
        self._waiting = self._reader.arrived
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._awaits_head = False  # the rest of one that has begun
        self._paused = False  # what is written waits
        self._held = False  # nothing is read for now
        self._discarded = -1  # 0 and up: the answer is out, the rest of the request is thrown away
        self._overran = False
        self._draining = False
        self._advancing = False

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._request is not None

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.deadline = self._loop.time() + self._owner.timing.header_seconds
        self._owner.connected(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        # An endpoint that is running is not cancelled: what it began, it finishes; only the answer has nowhere to go.
        # Until then it keeps its deadline and its place in the caps, or hanging up would be a way around both.
        self._reader.close()
        self.transport = None
        if self._task is None:
            self._request = None
            self._end()

    def eof_received(self) -> None:
        return None  # closes the transport: a client that stops sending does not wait for answers

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._advance()

    def data_received(self, data: bytes) -> None:
        if self._discarded >= 0:
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARDED:
                self.abort()
            return
        if (admission := self._owner.admission) is not None and admission.is_refusing and self._turn_away(data):
            admission.refused += 1
            return
        try:
            self._reader.feed(data)
        except HttpMalformed as error:
            self._refuse_early(error)
            return
        self._advance()
        if self._waiting:
            self._hold()
        elif self._request is None and self._reader.is_amid and not self._awaits_head and self._discarded < 0:
            self._awaits_head = True
            self.deadline = self._loop.time() + self._owner.timing.header_seconds

    def _hold(self) -> None:
        """Read nothing more while the bodies of requests that wait for their turn are large, and then go on."""
        is_much = sum(len(request.body) for request in self._waiting) > _MAX_BEHIND
        if is_much != self._held and self.transport is not None:
            self._held = is_much
            if is_much:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _turn_away(self, data: bytes) -> bool:
        """Refuse one whole POST without a look at its body; False if it is anything but that."""
        if self._request is not None or self._reader.is_amid or self._waiting or self._paused or self.transport is None:
            return False
        if not is_whole_post(data):
            return False
        self.transport.write(_crowded(int(time.time())))
        self.deadline = self._loop.time() + self._owner.timing.keepalive_seconds
        return True

    # what the listener calls

    def expire(self) -> None:
        """The deadline has passed; what that means depends on what was being waited for."""
        self.deadline = _NEVER
        if self._task is not None:
            self._overran = True
            self._task.cancel()
        elif self._request is not None:
            self._refuse(RequestTooSlow("the body did not arrive in time"))
        elif self._awaits_head and self._discarded < 0:
            self._refuse_early(RequestTooSlow("the header did not arrive in time"))
        else:
            self.close()

    def drain(self) -> None:
        """Close as soon as nothing is under way."""
        self._draining = True
        if self._request is None:
            self.close()

    def close(self) -> None:
        """Close after what is written has been sent."""
        if self.transport is not None and not self.transport.is_closing():
            # asyncio never lets go of a TLS connection that its peer has left while reading is paused
            self.transport.resume_reading()
            self.transport.close()

    def abort(self) -> None:
        """Close now."""
        if self.transport is not None:
            abort(self.transport)

    # one request after the other

    def _advance(self) -> None:
        if self._advancing:  # a transport that has written may come back here
            return
        self._advancing = True
        try:
            while self._task is None and self._discarded < 0 and not self._paused:
                if self._request is None:
                    if not self._waiting or self.transport is None:
                        return
                    self._begin(self._waiting.popleft())
                elif not self._read_body():
                    return
        finally:
            self._advancing = False

    def _begin(self, request: Request) -> None:
        self._awaits_head = False
        if self._held:
            self._hold()
        self._request = request
        request.path, _, request.query = request.target.partition("?")
        request.id = self._owner.app.new_request_id()
        try:
            headers = request.headers = read_headers(request)
            match = request.match = self._owner.app.match(request.method, request.path)
            if not request.is_whole:
                self.deadline = self._loop.time() + match.entry.route.seconds
            length = headers.get("content-length")
            media_type = request.media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            self._owner.app.admit(match, media_type, self._who(), int(length) if length is not None else None)
        except Refusal as error:
            self._refuse(error)
            return
        # Even a body that came with the head was not looked at: _advance goes on to it.

    def _read_body(self) -> bool:
        """Look at what has arrived of the body; True if that changed what there is to do next."""
        request = self._request
        assert request is not None
        assert request.match is not None
        limit = request.match.entry.route.max_body
        if len(request.body) > limit:
            self._refuse(BodyTooLarge("the body is too large", limit=limit))
            return True
        if not request.is_whole:
            return False
        self._dispatch(request, request.match)
        return True

    def _dispatch(self, request: Request, match: Match) -> None:
        headers = request.headers
        headers["x-request-id"] = request.id
        call = Call(request.method, request.path, request.media_type, headers, bytes(request.body), request.query)
        self.deadline = self._loop.time() + match.entry.route.seconds
        try:
            reply = match.entry.handler(call, self._who(), match.params)
        except Exception as error:  # noqa: BLE001 - the same door for endpoints that never wait and need no task
            reply = refuse(error, request.method, request.path, self._who(), request.id)
        if isinstance(reply, Reply):
            self._write(request, reply)
        else:
            self._task = self._loop.create_task(self._answer(request, reply))

    async def _answer(self, request: Request, awaited: Awaitable[Reply]) -> None:
        try:
            reply = await awaited
        except asyncio.CancelledError:
            if not self._overran:
                self._task = self._request = None
                if self.transport is None:
                    self._end()
                self.abort()
                raise
            reply = refuse(too_slow(), request.method, request.path, self._who(), request.id)
        except Exception as error:  # noqa: BLE001 - the one door through which every error becomes an answer
            reply = refuse(error, request.method, request.path, self._who(), request.id)
        self._task = None
        self._overran = False
        if self.transport is None:  # the client has hung up
            self._request = None
            self._end()
            return
        self._write(request, reply)
        self._advance()

    def _end(self) -> None:
        self._owner.lost(self)
        self._released()

    def _refuse(self, error: Refusal) -> None:
        """Answer the request under way without its endpoint."""
        request = self._request
        assert request is not None
        if isinstance(error, HttpMalformed | ExpectationRefused | RequestTooSlow) or not request.is_whole:
            request.keep_alive = False  # the rest of a body is not waited for
        try:
            peer = self._who()
        except HttpMalformed:
            peer = Peer(self.address, self._slot)
        self._write(request, refuse(error, request.method, request.path, peer, request.id))

    def _refuse_early(self, error: Refusal) -> None:
        """Answer what never became a request, and close."""
        if self._task is not None:  # an earlier request of this connection is still being answered
            self._waiting.clear()
            self._draining = True
            return
        if self._request is None:
            self._request = Request("", "", "", False, [])
            self._request.path, self._request.id = "/.well-known/", self._owner.app.new_request_id()
        request = self._request
        request.keep_alive = False
        self._write(request, refuse(error, request.method, request.path, Peer(self.address, self._slot), request.id))

    def _write(self, request: Request, reply: Reply) -> None:
        self._request = None
        transport = self.transport
        if transport is None:
            return
        wants_close = reply.headers.get("connection", "").lower() == "close"
        keep_alive = request.keep_alive and not wants_close and not self._draining
        head_only = request.method == "HEAD"
        try:
            data = serialise(reply, request.id, head_only=head_only, keep_alive=keep_alive)
        except ValueError as error:
            reply = refuse(error, request.method, request.path, Peer(self.address, self._slot), request.id)
            data = serialise(reply, request.id, head_only=head_only, keep_alive=keep_alive)
        transport.write(data)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "event=answered path=%r status=%d request_id=%s", one_line(request.path), reply.status, request.id
            )
        if keep_alive:
            timing = self._owner.timing
            self._awaits_head = self._reader.is_amid and not self._waiting
            seconds = timing.header_seconds if self._awaits_head else timing.keepalive_seconds
            self.deadline = self._loop.time() + seconds
            return
        self._waiting.clear()
        self._discarded = 0
        is_all_read = request.match is not None and request.is_whole and not self._reader.has_ended
        if is_all_read or not transport.can_write_eof():  # TLS waits for its peer's end by itself
            self.close()
        else:  # closing on unread bytes would reset the connection and lose the answer
            transport.resume_reading()  # a large body may have paused it, and nobody reads that any more
            half_close(transport)
            self.deadline = self._loop.time() + _LINGER_SECONDS

    def _who(self) -> Peer:
        if self._peer is None:
            self._peer = self._owner.peer_of(self.transport, self.address, self._slot)
        return self._peer
