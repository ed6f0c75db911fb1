"""HTTP/1.1 by hand, as little of it as a pledge needs: one request, one answer, everything the peer sends bounded.

A provisional peer is hostile input (RFC 8995, section 5.1), so there is no redirect, cookie, compression or
authentication handling to be misled. Requests carry Content-Length. Answers may have Content-Length, be chunked, or end
with the connection; any two of these together are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.proxy.errors import ConnectionClosed, PeerReplyMalformed, PeerReplyTooLarge
from est.exchange import Call, Reply

MAX_HEAD_BYTES = 16_384
MAX_HEADERS = 64
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True)
class Answer:
    """A Reply, and whether the connection may carry another request."""

    reply: Reply
    reusable: bool


def write_request(call: Call, host: str) -> bytes:
    """The octets of a request. Raises ValueError for a header that would split the message (our own mistake)."""
    headers = {"host": host, **{name.lower(): value for name, value in call.headers.items()}}
    if call.media_type:
        headers["content-type"] = call.media_type
    if call.body or call.method != "GET":
        headers["content-length"] = str(len(call.body))
    lines = [f"{call.method} {call.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if any(ord(char) < 0x20 or ord(char) > 0x7E for line in lines for char in line) or call.path.split() != [call.path]:
        raise ValueError("a request line or header holds control characters or blanks")
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + call.body


async def read_answer(reader: asyncio.StreamReader, method: str, *, max_body_bytes: int) -> Answer:
    """One answer off the wire; interim 1xx answers are skipped.

    Raises ConnectionClosed, PeerReplyMalformed, PeerReplyTooLarge. The caller sets the deadline.
    """
    for _ in range(4):
        version, status, headers = await _read_head(reader)
        if status >= 200:
            break
    else:
        raise PeerReplyMalformed("the peer sends interim answers only")
    body, delimited = await _read_body(reader, method, status, headers, max_body_bytes)
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    reusable = delimited and "close" not in options and (version == "1.1" or "keep-alive" in options)
    media_type = headers.get("content-type", "").strip()
    return Answer(Reply(status, media_type, headers, body), reusable)


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, int, Mapping[str, str]]:
    try:
        block = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as cause:
        raise ConnectionClosed("the peer closed before it answered", answered=bool(cause.partial)) from cause
    except asyncio.LimitOverrunError as cause:
        raise PeerReplyTooLarge(f"the peer's header block is over {MAX_HEAD_BYTES} octets") from cause
    if len(block) > MAX_HEAD_BYTES:
        raise PeerReplyTooLarge(f"the peer's header block is over {MAX_HEAD_BYTES} octets")
    first, *lines = block[:-4].decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdigit()) or rest[3:4] not in ("", " "):
        raise PeerReplyMalformed("the peer does not speak HTTP/1.1")
    if not 100 <= int(code) <= 599:
        raise PeerReplyMalformed("the peer's status code is out of range")
    if len(lines) > MAX_HEADERS:
        raise PeerReplyTooLarge(f"the peer sends over {MAX_HEADERS} header lines")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or not _TOKEN.issuperset(name) or any(c < " " and c != "\t" for c in value):
            raise PeerReplyMalformed("the peer sends a header line that does not read")
        if name in headers and name in ("content-length", "transfer-encoding", "content-type", "retry-after"):
            raise PeerReplyMalformed(f"the peer sends {name} twice")
        headers[name] = value.strip()
    return version[5:], int(code), headers


async def _read_body(
    reader: asyncio.StreamReader, method: str, status: int, headers: Mapping[str, str], cap: int
) -> tuple[bytes, bool]:
    """The body, and whether its end was marked (otherwise the connection's end was)."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and coding is not None:
        raise PeerReplyMalformed("the peer sends Content-Length together with Transfer-Encoding")
    if "content-encoding" in headers and headers["content-encoding"].lower() != "identity":
        raise PeerReplyMalformed("the peer compresses its answer though nobody asked")
    if method == "HEAD" or status in (204, 304):
        return b"", True
    try:
        if coding is not None:
            if coding.lower() != "chunked":
                raise PeerReplyMalformed("the peer uses an unknown transfer coding")
            return await _read_chunks(reader, cap), True
        if length is not None:
            if not (length.isascii() and length.isdigit()) or len(length) > 12:
                raise PeerReplyMalformed("the peer's Content-Length is no number")
            if int(length) > cap:
                raise PeerReplyTooLarge(f"the peer announces {length} octets; the cap is {cap}")
            return await reader.readexactly(int(length)), True
        body = bytearray()
        while block := await reader.read(cap + 1 - len(body)):
            body += block
            if len(body) > cap:
                raise PeerReplyTooLarge(f"the peer's answer is over {cap} octets")
        return bytes(body), False
    except asyncio.IncompleteReadError as cause:
        raise ConnectionClosed("the peer closed in the middle of its answer", answered=True) from cause


async def _read_chunks(reader: asyncio.StreamReader, cap: int) -> bytes:
    body = bytearray()  # a peer may send each octet as a chunk of its own
    while True:
        size_text = (await _read_line(reader)).split(b";")[0].strip()
        if not size_text or len(size_text) > 8 or set(size_text) - set(b"0123456789abcdefABCDEF"):
            raise PeerReplyMalformed("the peer's chunk size does not read")
        size = int(size_text, 16)
        if len(body) + size > cap:
            raise PeerReplyTooLarge(f"the peer's answer is over {cap} octets")
        if size == 0:
            break
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise PeerReplyMalformed("the peer's chunk does not end where it should")
    for _ in range(MAX_HEADERS):
        if not await _read_line(reader):
            return bytes(body)
    raise PeerReplyTooLarge("the peer sends too many trailer lines")


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError as cause:
        raise PeerReplyTooLarge("the peer's line has no end") from cause
    return line[:-2]
