"""Wire: one accepted socket as an asyncio transport, made and unmade without a task, a future or a turn of the loop.

asyncio's own transport for an accepted socket takes a coroutine and four turns of the loop before its first byte, which
a new connection feels. This one does the same for sockets that are there already, with what every loop offers: readers
and writers. Its protocol is told in the usual words, and never from within a call that it makes itself.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Protocol

from appliance.web.admission import Admission

_log = logging.getLogger(__name__)
_READ = 65_536
_HIGH, _LOW = 65_536, 16_384


class Above(Protocol):
    """What a wire tells; asyncio.Protocol has these words."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def connection_lost(self, exc: BaseException | None) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Wire(asyncio.Transport):
    """A connected, non-blocking stream socket; it belongs to the wire from now on."""

    def __init__(
        self,
        accepted: socket.socket,
        above: Above,
        scratch: memoryview | None = None,
        admission: Admission | None = None,
    ) -> None:
        """Tell `above` of the connection and begin to read, into `scratch`, which all wires of one loop may share.

        What comes may have to wait for `admission`.
        """
        super().__init__()
        self.socket = accepted
        self._scratch = scratch or new_scratch()
        self._loop = asyncio.get_running_loop()
        self._descriptor = accepted.fileno()
        self._above = above
        self._admission = admission
        self._unsent = bytearray()
        self._reading = False
        self._wanted = False  # by above
        self._choked = False  # by admission
        self._held = False  # above was asked to write no more
        self._closing = False
        self._half_closed = False
        self._gone = False
        self._in_reader = False
        above.connection_made(self)
        self.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing: the socket's options are set before it comes here."""
        return default

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._wanted and not self._closing

    def pause_reading(self) -> None:
        self._wanted = False
        self._read_or_not()

    def resume_reading(self) -> None:
        self._wanted = True
        self._read_or_not()

    def choke(self, is_choked: bool) -> None:
        """Read nothing more, whatever above wants, or again what it wants."""
        self._choked = is_choked
        self._read_or_not()

    def _read_or_not(self) -> None:
        reads = self._wanted and not self._choked and not self._closing
        if reads == self._reading:
            return
        self._reading = reads
        if reads:
            self._loop.add_reader(self._descriptor, self._readable)
        else:
            self._loop.remove_reader(self._descriptor)

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._half_closed:
            return
        if not self._unsent:
            try:
                sent = self.socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._loop.add_writer(self._descriptor, self._writable)
        self._unsent += data
        if not self._held and len(self._unsent) > _HIGH:
            self._held = True
            self._above.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send nothing more after what is written; OSError if the peer has reset the connection."""
        if not self._closing and not self._half_closed:
            self._half_closed = True
            if not self._unsent:
                self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close after what is written has been sent."""
        if not self._closing:
            if self._unsent:
                self.pause_reading()
                self._closing = True
            else:
                self._lose(None)

    def abort(self) -> None:
        """Close now."""
        self._lose(None)

    def _readable(self) -> None:
        try:
            data = bytes(self._scratch[: self.socket.recv_into(self._scratch)])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if (admission := self._admission) is not None:
            if not data:
                admission.gone(self)
            elif (admission.is_crowded or not admission.is_watching) and admission.holds(self, data):
                return
        self.deliver(data)

    @property
    def is_greeting(self) -> bool:
        """Whether TLS is above, and in its handshake."""
        return bool(getattr(self._above, "is_greeting", False))

    def deliver(self, data: bytes) -> None:
        """Pass on what was read; empty at the peer's end."""
        if self._gone:
            return
        self._in_reader = True
        try:
            if data:
                self._above.data_received(data)
            else:
                self.pause_reading()
                if not self._above.eof_received():
                    self.close()
        except Exception as error:  # noqa: BLE001 - a connection whose protocol has failed ends, and says so
            _log.exception("event=connection-failed")
            self._lose(error)
        finally:
            self._in_reader = False
        if self._gone:
            self._tell(None)

    def _writable(self) -> None:
        try:
            sent = self.socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        del self._unsent[:sent]
        if self._held and len(self._unsent) <= _LOW:
            self._held = False
            self._above.resume_writing()
        if self._unsent or self._gone:
            return
        self._loop.remove_writer(self._descriptor)
        if self._closing:
            self._lose(None)
        elif self._half_closed:
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError | Exception | None) -> None:
        """The connection is over; above hears it when it is not itself calling."""
        if self._gone:
            return
        self._gone = self._closing = True
        if self._admission is not None:
            self._admission.gone(self)
        self._read_or_not()
        if self._unsent:
            self._unsent.clear()
            self._loop.remove_writer(self._descriptor)
        if not self._in_reader:
            self._loop.call_soon(self._tell, error)

    def _tell(self, error: Exception | None) -> None:
        above = self._above
        # Each holds the other: let go, and what a connection was made of is freed now, not by the garbage collector.
        del self._above
        try:
            above.connection_lost(error)
        finally:
            self.socket.close()


def new_scratch() -> memoryview:
    """Room for what a socket gives at once. A buffer of this size per read costs the allocator more than the copy."""
    return memoryview(bytearray(_READ))
