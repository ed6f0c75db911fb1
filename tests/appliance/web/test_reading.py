"""Bytes to requests: odd ones with reviewed verdicts, and mutants of them compared with another reader's verdicts.

The other one is aiohttp's parser, with checks of its own over the same C code, which read requests here before.
"""

from __future__ import annotations

import asyncio
import gc
import random
import re
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser

from appliance.errors import ExpectationRefused, HttpMalformed
from appliance.web.reading import MAX_HEAD_BYTES, Request, RequestReader, read_headers
from est.errors import MediaTypeNotAccepted, Refusal


class Read(NamedTuple):
    """A request that is taken."""

    method: str
    target: str
    keep_alive: bool
    headers: dict[str, str]
    body: bytes
    is_whole: bool


Verdict = list[Read | type[Refusal]]
"""What becomes of a connection's bytes, request by request; it ends with the first refusal."""
Reference = Callable[[bytes], Verdict]


def ours(data: bytes, *cuts: int) -> Verdict:
    """The bytes come in pieces, cut at these places."""
    reader = RequestReader()
    requests: list[Request] = []
    broken: list[type[Refusal]] = []
    for begin, end in pairwise((0, *cuts, len(data))):
        try:
            reader.feed(data[begin:end])
        except Refusal as error:
            broken.append(type(error))
            break
        requests += reader.arrived
        reader.arrived.clear()
    reader.close()
    verdict: Verdict = []
    for request in requests:
        verdict.append(looked_at(request))
        if isinstance(verdict[-1], type):
            return verdict
    return [*verdict, *broken]


@pytest.fixture(scope="module")
def theirs() -> Iterator[Reference]:
    """Verdicts of aiohttp's parser, fed byte by byte, so that a bad request takes no good one before it along.

    A new parser reads each request, because the last line of a trailer gets into the headers of the next one there.
    """
    loop = asyncio.new_event_loop()

    def parser() -> HttpRequestParser:
        return HttpRequestParser(
            BaseProtocol(loop), loop, 1_000_000, max_line_size=4096, max_field_size=8192, max_headers=64,
            auto_decompress=False,
        )  # fmt: skip

    def read(data: bytes) -> Verdict:
        now, messages, broken, ended = parser(), [], False, 0
        for at in range(len(data)):
            try:
                fresh, is_upgraded, _ = now.feed_data(data[at : at + 1])
            except HttpProcessingError:
                broken = True
                break
            messages += fresh
            if is_upgraded:
                break
            if len(messages) > ended and messages[-1][1].is_eof() and not messages[-1][0].should_close:
                now, ended = parser(), len(messages)
        verdict: Verdict = []
        for message, payload in messages:
            version = f"{message.version.major}.{message.version.minor}"
            keep_alive = not message.should_close and version == "1.1"
            request = Request(message.method, message.path, version, keep_alive, list(message.raw_headers))
            request.body, request.is_whole = bytearray(payload.read_nowait(-1)), payload.is_eof()
            verdict.append(looked_at(request))
            if isinstance(verdict[-1], type):
                return verdict
        return [*verdict, HttpMalformed] if broken else verdict

    yield read
    loop.close()


def looked_at(request: Request) -> Read | type[Refusal]:
    try:
        headers = read_headers(request)
    except Refusal as error:
        return type(error)
    return Read(request.method, request.target, request.keep_alive, headers, bytes(request.body), request.is_whole)


def head(*lines: str | bytes, first: str | bytes = "GET /a HTTP/1.1", host: str = "Host: x") -> bytes:
    octets = [line.encode() if isinstance(line, str) else line for line in (first, host, *lines) if line]
    return b"\r\n".join((*octets, b"", b""))


def chunked(body: bytes, *lines: str) -> bytes:
    return head("Transfer-Encoding: chunked", *lines, first="POST /a HTTP/1.1") + body


def sized(length: str, body: bytes = b"ab", *lines: str) -> bytes:
    return head(f"Content-Length: {length}", *lines, first="POST /a HTTP/1.1") + body


TAKEN = "taken"
INCOMPLETE = "incomplete"
BAD, NOT_DONE, OTHER_MEDIA = HttpMalformed, ExpectationRefused, MediaTypeNotAccepted
TABLE: dict[str, tuple[bytes, str | type[Refusal]]] = {
    # the request line
    "plain": (head(), TAKEN),
    "empty lines before": (b"\r\n\r\n" + head(), TAKEN),
    "http 1.0": (head(first="GET /a HTTP/1.0"), TAKEN),
    "http 1.0 without host": (head(first="GET /a HTTP/1.0", host=""), TAKEN),
    "http 0.9": (b"GET /a\r\n\r\n", BAD),
    "http 0.9 said": (head(first="GET /a HTTP/0.9"), BAD),
    "http 1.2": (head(first="GET /a HTTP/1.2"), BAD),
    "http 2.0": (head(first="GET /a HTTP/2.0"), BAD),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD),
    "http 1": (head(first="GET /a HTTP/1"), BAD),
    "http 1.10": (head(first="GET /a HTTP/1.10"), BAD),
    "rtsp": (head(first="GET /a RTSP/1.0"), TAKEN),
    "rtsp 1.1": (head(first="GET /a RTSP/1.1"), TAKEN),
    "rtsp 2.0": (head(first="GET /a RTSP/2.0"), BAD),
    "ice": (head(first="GET /a ICE/1.0"), BAD),
    "ice of its own method": (head(first="SOURCE /a ICE/1.0"), TAKEN),
    "small letters": (head(first="get /a HTTP/1.1"), BAD),
    "version in small letters": (head(first="GET /a http/1.1"), BAD),
    "unknown method": (head(first="BREW /a HTTP/1.1"), BAD),
    "blank in target": (head(first="GET /a b HTTP/1.1"), BAD),
    "two blanks": (head(first="GET  /a HTTP/1.1"), TAKEN),
    "tab for a blank": (head(first="GET\t/a HTTP/1.1"), BAD),
    "blank before": (head(first=" GET /a HTTP/1.1"), BAD),
    "blank behind": (head(first="GET /a HTTP/1.1 "), BAD),
    "bare line feed in the request line": (b"GET /a HTTP/1.1\nHost: x\r\n\r\n", BAD),
    "bare carriage return in the request line": (b"GET /a HTTP/1.1\rHost: x\r\n\r\n", BAD),
    "target beyond ascii": (head(first=b"GET /\xc3\xa4 HTTP/1.1"), BAD),
    "nul in target": (head(first=b"GET /a\x00b HTTP/1.1"), BAD),
    "control character in target": (head(first=b"GET /a\x0bb HTTP/1.1"), BAD),
    "fragment": (head(first="GET /a#b?c HTTP/1.1"), TAKEN),
    "query": (head(first="GET /a?b=c?d HTTP/1.1"), TAKEN),
    "two slashes": (head(first="GET //other/a HTTP/1.1"), TAKEN),
    "absolute form": (head(first="GET http://other/a HTTP/1.1"), BAD),
    "absolute form without authority": (head(first="GET http:///a HTTP/1.1"), BAD),
    "authority form": (head(first="GET other:443 HTTP/1.1"), BAD),
    "asterisk": (head(first="OPTIONS * HTTP/1.1"), BAD),
    "asterisk of another method": (head(first="GET * HTTP/1.1"), BAD),
    "no target": (head(first="GET  HTTP/1.1"), BAD),
    "query alone": (head(first="GET ?a HTTP/1.1"), BAD),
    "connect": (head(first="CONNECT other:443 HTTP/1.1"), NOT_DONE),
    "longest target": (head(first="GET /" + "a" * 4095 + " HTTP/1.1"), TAKEN),
    "target too long": (head(first="GET /" + "a" * 4096 + " HTTP/1.1"), BAD),
    # header lines
    "no host": (head(host=""), BAD),
    "two hosts": (head("Host: x"), BAD),
    "space before colon": (head("A : b"), BAD),
    "tab before colon": (head("A\t: b"), BAD),
    "no colon": (head("A"), BAD),
    "no name": (head(": b"), BAD),
    "folded": (head("A: b", " c"), BAD),
    "folded with tab": (head("A: b", "\tc"), BAD),
    "folded first line": (head(host=" Host: x"), BAD),
    "empty value": (head("A:", "B: c"), TAKEN),
    "blank value": (head("A: \t ", "B: c"), TAKEN),
    "white space around": (head("A: \t b c \t"), TAKEN),
    "nul in value": (head(b"A: b\x00c"), BAD),
    "nul in name": (head(b"A\x00: b"), BAD),
    "control character in value": (head(b"A: b\x01c"), BAD),
    "delete in value": (head(b"A: b\x7fc"), BAD),
    "carriage return in value": (head(b"A: b\rc"), BAD),
    "line feed in value": (head(b"A: b\nB: c"), BAD),
    "tab in value": (head("A: b\tc"), TAKEN),
    "utf-8 in value": (head("A: ä"), TAKEN),
    "other octets in value": (head(b"A: \xff\xfe"), TAKEN),
    "beyond ascii in name": (head("Ä: b"), BAD),
    "delimiter in name": (head("A(b): c"), BAD),
    "bare line feeds": (b"GET /a HTTP/1.1\nHost: x\n\n", BAD),
    "bare line feed at the end": (b"GET /a HTTP/1.1\r\nHost: x\r\n\n", BAD),
    "twice": (head("A: b", "a: c"), TAKEN),
    "authorization twice": (head("Authorization: a", "authorization: a"), BAD),
    "content type twice": (head("Content-Type: a/b", "Content-Type: a/b"), BAD),
    "user agent twice": (head("User-Agent: a", "User-Agent: a"), BAD),
    "expect": (sized("2", b"ab", "Expect: 100-continue"), NOT_DONE),
    "upgrade": (head("Connection: Upgrade", "Upgrade: websocket"), NOT_DONE),
    "upgrade to http 2": (head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA"), NOT_DONE),
    "upgrade with a body": (sized("2", b"ab" + head(), "Connection: Upgrade", "Upgrade: foo"), NOT_DONE),
    "upgrade of an old draft": (head("Sec-WebSocket-Key1: a"), NOT_DONE),
    "upgrade without connection": (head("Upgrade: websocket"), NOT_DONE),
    "longest header": (head("A: " + "b" * 8191), TAKEN),
    "header too long": (head("A: " + "b" * 8192), BAD),
    "name too long": (head("A" * 8193 + ": b"), BAD),
    "most headers": (head(*(f"A{at}: b" for at in range(63))), TAKEN),
    "too many headers": (head(*(f"A{at}: b" for at in range(64))), BAD),
    "too many of one name": (head(*("A: b" for _ in range(64))), BAD),
    "long head": (head(*(f"A{at}: {'b' * 1500}" for at in range(10))), TAKEN),
    "head too long": (head(*(f"A{at}: {'b' * 1500}" for at in range(11))), BAD),
    # framing
    "length": (sized("2"), TAKEN),
    "length zero": (sized("0", b""), TAKEN),
    "length with zeros": (sized("02"), TAKEN),
    "length in white space": (sized(" 2 \t"), TAKEN),
    "shorter": (sized("3"), INCOMPLETE),
    "length with sign": (sized("+2"), BAD),
    "negative length": (sized("-2"), BAD),
    "length in hex": (sized("0x2"), BAD),
    "length with blank inside": (sized("2 2"), BAD),
    "length with underscore": (sized("1_0"), BAD),
    "length list": (sized("2, 2"), BAD),
    "empty length": (sized(""), BAD),
    "huge length": (sized("9" * 30), BAD),
    "length in thousands of zeros": (sized("0" * 5000 + "2"), BAD),
    "two lengths": (sized("2", b"ab", "Content-Length: 3"), BAD),
    "two equal lengths": (sized("2", b"ab", "Content-Length: 2"), BAD),
    "length and chunks": (sized("2", b"0\r\n\r\n", "Transfer-Encoding: chunked"), BAD),
    "chunks and length": (chunked(b"0\r\n\r\n", "Content-Length: 2"), BAD),
    "chunks": (chunked(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"), TAKEN),
    "chunks in capitals": (head("TRANSFER-ENCODING: CHUNKED", first="POST /a HTTP/1.1") + b"0\r\n\r\n", TAKEN),
    "chunks of http 1.0": (head("Transfer-Encoding: chunked", first="POST /a HTTP/1.0") + b"0\r\n\r\n", TAKEN),
    "two codings": (head("Transfer-Encoding: gzip, chunked", first="POST /a HTTP/1.1") + b"0\r\n\r\n", BAD),
    "chunked is not last": (head("Transfer-Encoding: chunked, gzip", first="POST /a HTTP/1.1") + b"0\r\n\r\n", BAD),
    "chunked twice": (chunked(b"0\r\n\r\n", "Transfer-Encoding: chunked"), BAD),
    "identity": (head("Transfer-Encoding: identity", first="POST /a HTTP/1.1"), BAD),
    "almost chunked": (head("Transfer-Encoding: xchunked", first="POST /a HTTP/1.1") + b"0\r\n\r\n", BAD),
    "chunked in a vertical tab": (head(b"Transfer-Encoding: \x0bchunked", first="POST /a HTTP/1.1"), BAD),
    "chunk extension": (chunked(b'2;a=b;c="d"\r\nab\r\n0\r\n\r\n'), TAKEN),
    "chunk extension with line feed": (chunked(b"2;a\nb\r\nab\r\n0\r\n\r\n"), BAD),
    "endless chunk extension": (chunked(b"2;a=" + b"b" * 30_000), BAD),
    "chunk size in hex": (chunked(b"A\r\n0123456789\r\n0\r\n\r\n"), TAKEN),
    "chunk size with prefix": (chunked(b"0x2\r\nab\r\n0\r\n\r\n"), BAD),
    "chunk size with sign": (chunked(b"+2\r\nab\r\n0\r\n\r\n"), BAD),
    "negative chunk size": (chunked(b"-2\r\nab\r\n0\r\n\r\n"), BAD),
    "chunk size with blank behind": (chunked(b"2 \r\nab\r\n0\r\n\r\n"), BAD),
    "chunk size with blank before": (chunked(b" 2\r\nab\r\n0\r\n\r\n"), BAD),
    "no chunk size": (chunked(b"\r\nab\r\n0\r\n\r\n"), BAD),
    "huge chunk size": (chunked(b"f" * 17 + b"\r\nab"), BAD),
    "chunk longer than said": (chunked(b"2\r\nabc\r\n0\r\n\r\n"), BAD),
    "bare line feed after chunk size": (chunked(b"2\nab\r\n0\r\n\r\n"), BAD),
    "bare line feed after chunk": (chunked(b"2\r\nab\n0\r\n\r\n"), BAD),
    "bare line feed at the end of chunks": (chunked(b"2\r\nab\r\n0\n\n"), BAD),
    "trailer": (chunked(b"2\r\nab\r\n0\r\nA: b\r\nC: d\r\n\r\n"), TAKEN),
    "trailer with length": (chunked(b"0\r\nContent-Length: 2\r\n\r\n"), BAD),
    "trailer with coding": (chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), BAD),
    "trailer with host": (chunked(b"0\r\nHost: x\r\n\r\n"), BAD),
    "trailer with authorization": (chunked(b"0\r\nAuthorization: x\r\n\r\n"), BAD),
    "folded trailer": (chunked(b"0\r\nA: b\r\n c\r\n\r\n"), BAD),
    "most trailers": (chunked(b"0\r\n" + b"A: b\r\n" * 62 + b"\r\n"), TAKEN),
    "many trailers": (chunked(b"0\r\n" + b"A: b\r\n" * 63 + b"\r\n"), BAD),
    "long trailer": (chunked(b"0\r\nA: " + b"b" * 30_000), BAD),
    "compressed": (sized("2", b"ab", "Content-Encoding: gzip"), OTHER_MEDIA),
    "compressed in words of others": (sized("2", b"ab", "Content-Encoding: x"), OTHER_MEDIA),
    "identity encoding": (sized("2", b"ab", "Content-Encoding: identity"), TAKEN),
    # what follows
    "bytes after close": (head("Connection: close") + head(), BAD),
    "rubbish after a body": (sized("2") + b"\x00\x01\r\n\r\n", BAD),
    "body longer than said": (sized("2", b"abc"), BAD),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), BAD),
    "half a head": (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Le", INCOMPLETE),
}
LAXER_BEFORE = {
    "head too long": "16 KiB were counted only while a head was incomplete",
    "endless chunk extension": "bytes without an end in sight are counted now",
    "trailer with host": "a trailer was looked at only where another one followed",
    "trailer with authorization": "the same",
    "many trailers": "the last one was not counted",
}
"""Taken by aiohttp's parser, and refused by ours, with the reason; versions but 1.0 and 1.1 are the others."""


@pytest.mark.parametrize("name", TABLE)
def test_odd_requests_have_these_verdicts(name: str) -> None:
    data, expected = TABLE[name]
    for size in (len(data), 1, 7):
        verdict = ours(data, *range(size, len(data), size))
        if isinstance(expected, type):
            assert verdict[-1] is expected, size
        elif expected is TAKEN:
            (read,) = verdict
            assert isinstance(read, Read) and read.is_whole, size
        else:
            assert not any(isinstance(one, type) or one.is_whole for one in verdict), size


@pytest.mark.parametrize("name", TABLE)
def test_nothing_is_taken_that_was_refused_before(name: str, theirs: Reference) -> None:
    data, expected = TABLE[name]
    before, mine = theirs(data), ours(data, *range(1, len(data)))
    if name in LAXER_BEFORE:
        assert not any(isinstance(one, type) for one in before)
    elif isinstance(expected, type):
        assert before[-1] in (expected, HttpMalformed) and before[:-1] == mine[:-1]
    else:
        assert mine == before


WORDS = (
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"\x7f", b"\xff", b"\x0b", b";a=b", b"0\r\n",
    b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n", b"Connection: close\r\n",
    b"Connection: upgrade\r\n", b"A:\r\n", b"Upgrade: h2c\r\n",
    b"HTTP/1.0", b"HTTP/1.1", b"+", b"-", b"0x", b"_", b",", b"\xc2\xa0", b"\r\n ", b"\r\n\r\n",
    b"?", b"#", b"/", b"*", b"PUT ", b"GET /b HTTP/1.1\r\n", b"chunked", b"identity", b"keep-alive",
)  # fmt: skip


def mutants(dice: random.Random, count: int) -> Iterator[bytes]:
    """Requests of the table, one or two after each other, with up to three changes."""
    good = [data for data, _ in TABLE.values() if len(data) < 300]
    for _ in range(count):
        data = bytearray(b"".join(dice.choices(good, k=dice.randint(1, 2))))
        for _ in range(dice.randint(0, 3)):
            at = dice.randrange(len(data) + 1)
            match dice.randrange(5):
                case 0:
                    data[at : at + 1] = bytes((dice.randrange(256),))
                case 1:
                    data[at:at] = dice.choice(WORDS)
                case 2:
                    del data[at : at + dice.randint(1, 8)]
                case 3:
                    lines = bytes(data).splitlines(keepends=True)
                    lines.insert(dice.randrange(len(lines) + 1), dice.choice(lines) if lines else b"")
                    data[:] = b"".join(lines)
                case _:
                    data[at : at + 2] = dice.choice(WORDS)
        yield bytes(data)


STRICTER = re.compile(
    rb"\n0+(;[^\n]*)?\r\n([^\r\n]+\r\n)*(authorization|content-|etag|host|max-forwards|server|user-agent)",
    re.IGNORECASE,
)
"""Trailers that only theirs takes."""


@pytest.mark.parametrize("seed", range(4))
def test_mutants_are_read_as_before_or_refused(seed: int, theirs: Reference) -> None:
    dice = random.Random(seed)
    taken = 0
    for data in mutants(dice, 1500):
        mine, before = ours(data, *range(1, len(data))), theirs(data)
        taken += isinstance(mine[0] if mine else None, Read)
        if mine != before:
            if len(mine) < len(before) and not any(isinstance(one, type) for one in mine):
                mine = ours(data + b"\r\n\r\n", *range(1, len(data)))  # headers are looked at when the last has come
            # both refuse the same request, or ours one that is listed
            assert isinstance(mine[-1], type), (data, mine, before)
            if not isinstance(before[-1], type) or mine[:-1] != before[:-1]:
                assert STRICTER.search(data), (data, mine, before)
        cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((0, 1, 3))))
        mine, cut = ours(data, *range(1, len(data))), ours(data, *cuts)
        if cut != mine:  # what came in one piece with a broken request falls with it
            assert isinstance(mine[-1], type) and cut[-1] is HttpMalformed and cut[:-1] == mine[: len(cut) - 1], data
    assert 200 < taken < 1300


def test_a_trailer_gets_into_no_headers() -> None:
    first = chunked(b"2\r\nab\r\n0\r\nA: b\r\nX-Role: admin\r\n\r\n")
    for data in (first, b""):
        for follows in (head("C: d"), first):
            verdict = ours(data + follows, *range(1, len(data + follows)))
            assert len(verdict) == 1 + bool(data)
            for read in verdict:
                assert isinstance(read, Read) and read.is_whole and not {"a", "x-role"} & set(read.headers)


def test_a_connection_is_kept_by_http_1_1_alone() -> None:
    cases = {
        head(): True,
        head("Connection: close"): False,
        head("Connection: keep-alive, Close"): False,
        head(first="GET /a HTTP/1.0"): False,
        head("Connection: keep-alive", first="GET /a HTTP/1.0"): False,
    }
    for data, is_kept in cases.items():
        (read,) = ours(data)
        assert isinstance(read, Read) and read.keep_alive == is_kept, data


def test_headers_are_in_lower_case_and_joined() -> None:
    (read,) = ours(head("Accept: a", "ACCEPT: b\t", "Empty:", b"Name: \xc3\xa4\xff", host="HOST: x:1"))
    assert isinstance(read, Read)
    assert read.headers == {"host": "x:1", "accept": "a, b", "empty": "", "name": "ä\udcff"}


def test_requests_that_come_at_once_are_in_order_up_to_a_limit() -> None:
    reader = RequestReader()
    reader.feed(b"".join(head(first=f"GET /{at} HTTP/1.1") for at in range(16)))
    assert [request.target for request in reader.arrived] == [f"/{at}" for at in range(16)]
    with pytest.raises(HttpMalformed, match="too many requests"):
        reader.feed(head())
    reader.close()


def test_a_header_that_never_ends_is_cut_whatever_came_before() -> None:
    for begun in (b"GET /a HTTP/1.1\r\nHost: x\r\nA: ", chunked(b"0\r\nA: "), chunked(b"2;a="), b"\r\n"):
        reader = RequestReader()
        reader.feed(head() + begun)
        fill = b"\r\n" if begun == b"\r\n" else b"bb"
        with pytest.raises(HttpMalformed, match="too long"):
            for _ in range(MAX_HEAD_BYTES):
                reader.feed(fill)
        reader.feed(head())
        assert len(reader.arrived) < 3


@pytest.mark.parametrize("begun", [b"GET /a HTTP/1.1\r\n", chunked(b"0\r\n")], ids=["header", "trailer"])
def test_many_small_headers_are_refused_before_their_end(begun: bytes) -> None:
    reader = RequestReader()
    with pytest.raises(HttpMalformed, match="too many headers"):
        reader.feed(begun + b"a:\r\n" * 100)
    assert reader.has_ended


def test_a_fault_of_our_own_while_reading_is_no_fault_of_the_request() -> None:
    class Faulty(RequestReader):
        def on_headers_complete(self) -> None:
            raise ZeroDivisionError

    reader = Faulty()
    with pytest.raises(ZeroDivisionError):
        reader.feed(head())
    assert reader.has_ended


def test_nothing_is_read_behind_an_upgrade() -> None:
    reader = RequestReader()
    reader.feed(head("Connection: Upgrade", "Upgrade: h2c") + head() + b"\x00" * 9)
    reader.feed(head())
    (request,) = reader.arrived
    with pytest.raises(ExpectationRefused):
        read_headers(request)
    reader.close()


def test_a_closed_reader_goes_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        reader = RequestReader()
        reader.feed(sized("9"))
        gone = weakref.ref(reader)
        reader.close()
        reader.feed(b"ab")
        del reader
        assert gone() is None
    finally:
        gc.enable()
