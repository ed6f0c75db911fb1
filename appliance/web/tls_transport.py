"""One TLS connection: a protocol to the socket's transport below, a transport to the HTTP connection above.

asyncio's own TLS protocol spends several callbacks, buffers and a quarter of a megabyte on every connection. Here what
the socket gave goes straight through the TLS library and on, in the same turn of the loop. Kept from it: the deadline
of the handshake, back-pressure both ways, close_notify before the end. Done differently: an alert is sent before a
refused connection ends, a large answer is encrypted only as fast as the peer takes it, and after our end of the
connection is closed the rest of the peer's bytes is read for a moment, because closing on unread bytes would reset the
connection and lose what the peer has not read yet.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from appliance.web.tls import StandardSide, TlsFront, TlsSide, side_of
from appliance.web.transports import abort, half_close

if TYPE_CHECKING:
    from appliance.web.http import HttpConnection
    from appliance.web.server import Listener

_log = logging.getLogger(__name__)
_AT_ONCE = 65_536
_LINGER_SECONDS = 2.0
_NEVER = float("inf")


class TlsTransport(asyncio.Protocol, asyncio.Transport):
    """From accept to the end of a connection. `deadline` is loop time, looked at by the listener's sweep.

    `above` makes the HTTP connection once the handshake is done; `released` frees the place in the caps where it never
    came to that (the HTTP connection frees it otherwise).
    """

    def __init__(
        self,
        owner: Listener,
        tls: TlsFront | ssl.SSLContext,
        address: str,
        *,
        above: Callable[[], HttpConnection],
        released: Callable[[], None],
    ) -> None:
        super().__init__()
        self.address = address
        self.deadline = _NEVER
        self.side: TlsSide | StandardSide = side_of(tls)
        self._owner = owner
        self._make_above = above
        self._released = released
        self._below: Any = None
        self._above: HttpConnection | None = None
        self._backlog: deque[bytes | bytearray | memoryview] = deque()
        self._refusal = ""
        self._has_spoken = False
        self._over = False  # nothing more goes up or down
        self._closing = False  # over as soon as the backlog is out
        self._peer_ended = False
        self._reading_paused = False
        self._below_paused = False
        self._above_paused = False

    # the protocol below: what the socket's transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = transport
        self.deadline = asyncio.get_running_loop().time() + self._owner.timing.handshake_seconds
        self._owner.watch(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._over = True
        self._owner.unwatch(self)
        self._backlog.clear()
        above, self._above = self._above, None
        if above is not None:
            above.connection_lost(exc)
            return
        # whoever only looks whether the port takes connections, as our own announcer does, is no failed client
        if not self._refusal and self._has_spoken:
            self._tell("the peer went away")
        self._released()

    @property
    def is_greeting(self) -> bool:
        """Whether the handshake is not done."""
        return self._above is None

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._has_spoken = True
        try:
            self.side.feed(data)
            if self._above is not None or self._greet():
                self._read()
        except ssl.SSLError as error:
            self._fail(error)

    def eof_received(self) -> bool:
        self._peer_ended = True
        if self._above is None or self._over:
            return False
        self._above.eof_received()
        self.close()
        return not self._over

    def pause_writing(self) -> None:
        self._below_paused = True
        self._hold_above()

    def resume_writing(self) -> None:
        self._below_paused = False
        self._flush()

    # the transport above: what the HTTP connection calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closing or self._over

    def is_reading(self) -> bool:
        return not self._reading_paused and not self.is_closing()

    def pause_reading(self) -> None:
        if not self._reading_paused and not self._over:
            self._reading_paused = True
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._below.resume_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def get_write_buffer_size(self) -> int:
        return int(self._below.get_write_buffer_size()) + sum(map(len, self._backlog))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self.is_closing():
            self._backlog.append(data)
            self._flush()

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """Close after what is written has been sent."""
        if not self._closing and not self._over:
            self._closing = True
            self._flush()

    def abort(self) -> None:
        """Close now."""
        self._over = True
        self._backlog.clear()
        if self._below is not None:
            abort(self._below)

    # what the listener calls

    def expire(self) -> None:
        """The deadline has passed: of the handshake, or of the peer's own end of the connection."""
        self.deadline = _NEVER
        if self._above is None and not self._refusal:
            self._tell("the handshake took too long")
        self.abort()

    # inside

    def _greet(self) -> bool:
        """Advance the handshake; True when there is somebody above who reads."""
        done = self.side.handshake()
        # What is left of TLS 1.3 by then is session tickets, which nobody waits for: they go with the first answer.
        if not done or self.side.version != "TLSv1.3":
            data = self.side.take()
            if data:
                self._below.write(data)
        if not done:
            return False
        self._owner.unwatch(self)
        self._above = self._make_above()
        self._above.connection_made(self)
        return True

    def _read(self) -> None:
        above = self._above
        while above is not None and not self._reading_paused and not self.is_closing():
            data = self.side.read()
            if data is None:
                return
            if not data:
                above.eof_received()
                self.close()
                return
            above.data_received(data)

    def _read_on(self) -> None:
        try:
            self._read()
        except ssl.SSLError as error:
            self._fail(error)

    def _flush(self) -> None:
        """Encrypt and send what waits, as far as the socket takes it; say goodbye after the last of it."""
        try:
            while self._backlog and not self._below_paused and not self._over:
                first = self._backlog.popleft()
                if len(first) > _AT_ONCE:
                    first = memoryview(first)
                    self._backlog.appendleft(first[_AT_ONCE:])
                    first = first[:_AT_ONCE]
                self._below.write(self.side.seal(first))
            if self._backlog:
                self._hold_above()
            elif self._closing:
                self._finish()
            elif self._above_paused and not self._below_paused and self._above is not None:
                self._above_paused = False
                self._above.resume_writing()
        except ssl.SSLError as error:
            self._fail(error)

    def _hold_above(self) -> None:
        if not self._above_paused and self._above is not None and not self._over:
            self._above_paused = True
            self._above.pause_writing()

    def _finish(self) -> None:
        if self._over:
            return
        if self._above is None:  # in the handshake there is nothing to say goodbye to
            self.abort()
            return
        self.side.goodbye()
        self._end()

    def _fail(self, error: ssl.SSLError) -> None:
        if self._over:
            return
        words = "the peer went away" if isinstance(error, ssl.SSLEOFError) else in_words(error)
        if self._above is None:
            self._tell(words)
        else:
            _log.info("event=tls-broken listener=%s address=%s why=%r", self._owner.name, self.address, words)
        self._backlog.clear()
        self._end()

    def _end(self) -> None:
        """Send the last bytes, goodbye or alert; then wait for the peer's end, though not for long."""
        self._over = True
        data = self.side.take()
        if data:
            self._below.write(data)
        self.deadline = asyncio.get_running_loop().time() + _LINGER_SECONDS
        self._owner.watch(self)
        if self._peer_ended:
            self._below.close()
            return
        if self._reading_paused:
            self._reading_paused = False
            self._below.resume_reading()
        half_close(self._below)

    def _tell(self, why: str) -> None:
        self._refusal = why
        _log.info("event=handshake-refused listener=%s address=%s why=%r", self._owner.name, self.address, why)


def in_words(error: ssl.SSLError) -> str:
    """The reason in an SSLError of either side."""
    return str(error.args[1] if len(error.args) > 1 else error)
