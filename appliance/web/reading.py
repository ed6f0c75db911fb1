"""Bytes into requests: llhttp knows the grammar of HTTP/1.1, and what it leaves to its caller is checked here.

llhttp is used without its leniencies, through httptools. It does not count, does not know which headers may stand once,
and takes HTTP/0.9, HTTP/2.0, every form of target and any trailer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from functools import lru_cache

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from appliance.errors import ExpectationRefused, HttpMalformed
from appliance.web.app import Match
from est.errors import MediaTypeNotAccepted

_log = logging.getLogger(__name__)
MAX_HEAD_BYTES = 16_384
_MAX_TARGET = 4096
_MAX_FIELD = 8192
_MAX_FIELDS = 64
_MAX_LENGTH_DIGITS = 20
_MAX_PIPELINED = 16
_SLICE = 4096
_ONCE = frozenset(
    {
        "authorization",
        "content-encoding",
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "etag",
        "host",
        "max-forwards",
        "server",
        "transfer-encoding",
        "user-agent",
    }
)


class Request:
    """A request from the end of its header block on. What the connection finds out about it has defaults."""

    id: str = ""
    path: str = ""
    query: str = ""
    media_type: str = ""
    match: Match | None = None

    def __init__(
        self, method: str, target: str, version: str, keep_alive: bool, fields: list[tuple[bytes, bytes]]
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.keep_alive = keep_alive
        self.fields = fields
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        """As much of it as has arrived."""
        self.is_whole = False


class RequestReader:
    """Of one connection: takes its bytes, and appends to `arrived` what has come to the end of its header block."""

    def __init__(self) -> None:
        self.arrived: deque[Request] = deque()
        self.is_amid = False
        """Whether a request has begun and not ended."""
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._newest: Request | None = None
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._unfinished = 0  # bytes since the end of a header block or a piece of a body

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is read, whatever comes."""
        return self._parser is None

    def feed(self, data: bytes) -> None:
        """Take these bytes; HttpMalformed where they are no HTTP request, and then nothing more is read.

        What else `arrived` with these bytes is void.
        """
        parser = self._parser
        if parser is None:
            return
        try:
            if len(data) <= _SLICE:
                self._feed(parser, data)
            else:
                for start in range(0, len(data), _SLICE):
                    self._feed(parser, data[start : start + _SLICE])
        except HttpParserUpgrade:  # what follows is no HTTP; the request itself is refused for its headers
            self._parser = None
        except HttpParserError as error:
            self._parser = None
            _log.debug("event=malformed error=%r", error)
            if isinstance(error, HttpParserCallbackError) and error.__context__ is not None:  # raised in a callback
                raise error.__context__ from None
            raise HttpMalformed("the bytes are not an HTTP request that is read here") from error

    def _feed(self, parser: HttpRequestParser, piece: bytes) -> None:
        self._unfinished += len(piece)
        parser.feed_data(piece)
        if self._unfinished > MAX_HEAD_BYTES:  # httptools would keep a header or a trailer that never ends
            self._parser = None
            raise HttpMalformed("the header block is too long")

    def close(self) -> None:
        """Read nothing more. The parser holds this object too, which would leave both to the garbage collector."""
        self._parser = None
        self.arrived.clear()

    # what httptools calls; an exception ends the reading

    def on_message_begin(self) -> None:
        self.is_amid = True
        self._target = b""
        self._fields = []

    def on_url(self, piece: bytes) -> None:
        self._target += piece
        if len(self._target) > _MAX_TARGET:
            raise HttpMalformed("the request target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))
        if len(self._fields) > _MAX_FIELDS:  # each takes far more memory than its bytes, so their end is not waited for
            raise HttpMalformed("there are too many headers")

    def on_headers_complete(self) -> None:
        parser, fields = self._parser, self._fields
        assert parser is not None
        if self._unfinished > _SLICE:  # of what came within two slices nothing is too long
            _check_sizes(self._target, fields)
        version = parser.get_http_version()
        self._newest = Request(
            parser.get_method().decode("ascii"),
            self._target.decode("ascii"),
            version,
            version == "1.1" and parser.should_keep_alive(),
            fields,
        )
        self._fields = []
        self._unfinished = 0
        self.arrived.append(self._newest)
        if len(self.arrived) > _MAX_PIPELINED:
            raise HttpMalformed("too many requests at once")

    def on_body(self, piece: bytes) -> None:
        assert self._newest is not None
        self._newest.body += piece
        self._unfinished = 0

    def on_message_complete(self) -> None:
        assert self._newest is not None
        if self._fields:
            _check_trailer(self._fields, _MAX_FIELDS - len(self._newest.fields))
        self._newest.is_whole = True
        self._newest = None
        self.is_amid = False
        self._unfinished = 0


def _check_sizes(target: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    sizes = [len(name) + len(value) for name, value in fields]
    if max(sizes, default=0) > _MAX_FIELD or len(target) + sum(sizes) > MAX_HEAD_BYTES:
        raise HttpMalformed("the header block is too long")


def _check_trailer(fields: list[tuple[bytes, bytes]], room: int) -> None:
    """Nobody reads a trailer, but what frames or routes a message has no place in it (RFC 9110, section 6.5.1)."""
    if len(fields) > room or any(_in_lower_case(name) in _ONCE for name, _ in fields):
        raise HttpMalformed("this trailer is not read here")


@lru_cache(maxsize=128)
def _in_lower_case(name: bytes) -> str:
    return name.decode("latin-1").lower()


def read_headers(request: Request) -> dict[str, str]:
    """Headers by lower-case name; refuses what this server does not do.

    Raises HttpMalformed, ExpectationRefused (Expect, Upgrade), MediaTypeNotAccepted (a compressed body).
    """
    headers: dict[str, str] = {}
    for field, octets in request.fields:
        name = _in_lower_case(field)
        # llhttp takes away the white space before a value, and not behind it (RFC 9110, section 5.5)
        value = octets.decode("utf-8", "surrogateescape").rstrip(" \t")
        if name in headers:
            if name in _ONCE:
                raise HttpMalformed(f"the header {name} stands twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    _check_head(request, headers)
    return headers


def _check_head(request: Request, headers: Mapping[str, str]) -> None:
    if request.version not in ("1.1", "1.0"):
        raise HttpMalformed("this version of HTTP is not spoken here")
    if "expect" in headers or "upgrade" in headers or request.method == "CONNECT" or "sec-websocket-key1" in headers:
        raise ExpectationRefused("Expect, Upgrade and CONNECT are not done here")
    if "content-encoding" in headers and headers["content-encoding"].lower() != "identity":
        raise MediaTypeNotAccepted("compressed bodies are not read here", expected=["identity"])
    if "transfer-encoding" in headers and headers["transfer-encoding"].lower() != "chunked":
        raise HttpMalformed("this transfer coding is not read here")
    if len(headers.get("content-length", "")) > _MAX_LENGTH_DIGITS:  # zeros in front: llhttp counts to 64 bits
        raise HttpMalformed("this length is not read here")
    if not request.target.startswith("/"):
        raise HttpMalformed("the request target must be a path")
    if "host" not in headers and request.version == "1.1":
        raise HttpMalformed("the header host is missing")
