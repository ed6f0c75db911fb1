"""One request out, one bounded answer in."""

from __future__ import annotations

import asyncio

import pytest

from appliance.proxy import http1
from appliance.proxy.errors import ConnectionClosed, PeerReplyMalformed, PeerReplyTooLarge
from est.errors import Refusal
from est.exchange import Call

CAP = 1000
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


def read(octets: bytes, method: str = "GET", *, at_once: bool = True) -> http1.Answer:
    async def run() -> http1.Answer:
        reader = asyncio.StreamReader(limit=http1.MAX_HEAD_BYTES)
        if at_once:
            reader.feed_data(octets)
            reader.feed_eof()
        else:
            asyncio.get_running_loop().create_task(drip(reader))
        return await http1.read_answer(reader, method, max_body_bytes=CAP)

    async def drip(reader: asyncio.StreamReader) -> None:
        for one in octets:
            reader.feed_data(bytes([one]))
            await asyncio.sleep(0)
        reader.feed_eof()

    return asyncio.run(run())


@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "octet by octet"])
def test_an_answer_with_length_is_read_and_the_connection_stays_usable(at_once: bool) -> None:
    answer = read(OK, at_once=at_once)
    assert (answer.reply.status, answer.reply.body, answer.reply.media_type) == (200, b"hello", "text/plain")
    assert answer.reusable


@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "octet by octet"])
def test_a_chunked_answer_is_read(at_once: bool) -> None:
    octets = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: z\r\n\r\n"
    answer = read(octets, at_once=at_once)
    assert answer.reply.body == b"hello"
    assert answer.reusable


def test_an_answer_that_ends_with_the_connection_is_read_and_ends_it() -> None:
    answer = read(b"HTTP/1.0 200 OK\r\n\r\nhello")
    assert answer.reply.body == b"hello"
    assert not answer.reusable


def test_connection_close_is_obeyed() -> None:
    assert not read(OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive, Close\r\n\r\n")).reusable


def test_204_has_no_body_whatever_its_headers_say() -> None:
    assert read(b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n").reply.body == b""


def test_interim_answers_are_skipped_but_not_for_ever() -> None:
    interim = b"HTTP/1.1 103 Early\r\n\r\n"
    assert read(interim * 2 + OK).reply.status == 200
    with pytest.raises(PeerReplyMalformed):
        read(interim * 50 + OK)


BAD: list[tuple[str, bytes, type[Refusal]]] = [
    ("nothing", b"", ConnectionClosed),
    ("half a header block", b"HTTP/1.1 200 OK\r\nContent-", ConnectionClosed),
    ("half a body", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", ConnectionClosed),
    ("half a chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", ConnectionClosed),
    ("another protocol", b"SSH-2.0-OpenSSH\r\n\r\n", PeerReplyMalformed),
    ("HTTP/2 text", b"HTTP/2 200\r\n\r\n", PeerReplyMalformed),
    ("status of letters", b"HTTP/1.1 abc OK\r\n\r\n", PeerReplyMalformed),
    ("status of four digits", b"HTTP/1.1 2000 OK\r\n\r\n", PeerReplyMalformed),
    ("status 999", b"HTTP/1.1 999 OK\r\n\r\n", PeerReplyMalformed),
    ("length twice", OK.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"), PeerReplyMalformed),
    ("length and chunks", OK.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), PeerReplyMalformed),
    ("length -5", OK.replace(b": 5", b": -5"), PeerReplyMalformed),
    ("length +5", OK.replace(b": 5", b": +5"), PeerReplyMalformed),
    ("length of 30 digits", OK.replace(b": 5", b": " + b"1" * 30), PeerReplyMalformed),
    ("length over the cap", OK.replace(b": 5", b": 1001"), PeerReplyTooLarge),
    ("endless body", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, PeerReplyTooLarge),
    ("chunks over the cap", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n", PeerReplyTooLarge),
    ("chunk size that is none", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", PeerReplyMalformed),
    ("chunk that ends wrong", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", PeerReplyMalformed),
    ("unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", PeerReplyMalformed),
    ("compressed body", OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), PeerReplyMalformed),
    ("header without colon", b"HTTP/1.1 200 OK\r\nhello\r\n\r\n", PeerReplyMalformed),
    ("folded header", b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", PeerReplyMalformed),
    ("NUL in a header", b"HTTP/1.1 200 OK\r\nA: b\x00c\r\n\r\n", PeerReplyMalformed),
    ("65 headers", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 65 + b"\r\n", PeerReplyTooLarge),
    ("20 kB of headers", b"HTTP/1.1 200 OK\r\na: " + b"b" * 20_000 + b"\r\n\r\n", PeerReplyTooLarge),
    ("headers without end", b"HTTP/1.1 200 OK\r\na: " + b"b" * 40_000, PeerReplyTooLarge),
]


@pytest.mark.req("B-135")
@pytest.mark.parametrize(("octets", "refusal"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_hostile_answers_are_refused(octets: bytes, refusal: type[Refusal]) -> None:
    with pytest.raises(refusal):
        read(octets)


def test_a_request_carries_its_length_and_host() -> None:
    octets = http1.write_request(Call("POST", "/a", "text/plain", {"Accept": "b"}, b"hi"), "h:1")
    assert octets == (
        b"POST /a HTTP/1.1\r\nhost: h:1\r\naccept: b\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nhi"
    )


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\x00", "ä"])
def test_a_header_that_would_split_the_request_is_our_own_mistake(value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        http1.write_request(Call("GET", "/", headers={"accept": value}), "h")


@pytest.mark.parametrize("path", ["/a b", "/a\r\nHost: x", " /a"])
def test_a_path_that_would_split_the_request_is_our_own_mistake(path: str) -> None:
    with pytest.raises(ValueError, match="blanks"):
        http1.write_request(Call("GET", path), "h")
