"""One connection's TLS state, however the network cuts what the peer sent."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from appliance.web.tls import TlsSide
from tests.appliance.web.front import front

VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


class Pair:
    """A client and our side with a finished handshake between them, and no network."""

    def __init__(self, version: int, *, early: bytes = b"") -> None:
        """`early`: the client says so much together with the end of its handshake."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        self.client = SSL.Connection(context, None)
        self.client.set_connect_state()
        self.side: TlsSide = front().side()
        done = False
        while not done:
            try:
                self.client.do_handshake()
                done = True
            except SSL.WantReadError:
                pass
            if done and early:
                self.client.send(early)
            if said := self.sent():
                self.side.feed(said)
                self.side.handshake()
            answer = self.side.take()
            if answer:
                self.client.bio_write(answer)

    def sent(self) -> bytes:
        """What the client has to say to us, as it goes over the wire."""
        data = b""
        while True:
            try:
                data += self.client.bio_read(65_536)
            except SSL.WantReadError:
                return data

    def say(self, messages: Sequence[bytes]) -> bytes:
        for message in messages:
            while message:
                message = message[self.client.send(message[:16_384]) :]
        return self.sent()

    def read(self) -> bytes:
        """Everything there is to read now."""
        data = b""
        while more := self.side.read():
            data += more
        return data


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@given(
    messages=st.lists(st.binary(min_size=1, max_size=40) | st.sampled_from([b"x" * 16_384, b"y" * 40_000]), max_size=4),
    cuts=st.lists(st.integers(0, 100_000), max_size=6),
)
def test_all_that_was_said_is_read_as_soon_as_it_is_there(version: int, messages: list[bytes], cuts: list[int]) -> None:
    pair = Pair(version)
    wire = pair.say(messages)
    heard = pair.read()
    at = 0
    for cut in sorted({*(cut for cut in cuts if 0 < cut < len(wire)), *([len(wire)] if wire else [])}):
        pair.side.feed(wire[at:cut])
        heard += pair.read()
        at = cut
    assert heard == b"".join(messages)


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_the_rest_of_a_record_that_looks_like_a_whole_one_hides_nothing_behind_it(version: int) -> None:
    pair = Pair(version)
    pair.read()
    for _ in range(500):
        long, short = pair.say([b"x" * 8_000]), pair.say([b"tail"])
        both = long + short
        cuts = (
            cut for cut in range(1, len(long)) if both[cut + 3 : cut + 5] == (len(both) - cut - 5).to_bytes(2, "big")
        )
        cut = next(cuts, None)
        if cut is None:
            pair.side.feed(both)
            pair.read()
            continue
        pair.side.feed(both[:cut])
        heard = pair.read()
        pair.side.feed(both[cut:])
        assert heard + pair.read() == b"x" * 8_000 + b"tail"
        return
    pytest.fail("chance had no such record")


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_what_comes_with_the_end_of_the_handshake_is_read(version: int) -> None:
    assert Pair(version, early=b"at once").read() == b"at once"


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_whole_record_is_asked_for_once(version: int) -> None:
    pair = Pair(version)
    pair.read()
    with patch.object(SSL.Connection, "recv", autospec=True, side_effect=SSL.Connection.recv) as asked:
        for _ in range(3):
            pair.side.feed(pair.say([b"GET / HTTP/1.1"]))
            assert pair.read() == b"GET / HTTP/1.1"
    assert asked.call_count == 3


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_goodbye_and_damage_are_noticed_behind_a_whole_record(version: int) -> None:
    pair = Pair(version)
    pair.side.feed(pair.say([b"last words"]))
    assert pair.read() == b"last words"
    pair.client.shutdown()
    pair.side.feed(pair.sent())
    assert pair.side.read() == b""

    pair = Pair(version)
    pair.side.feed(pair.say([b"well"]))
    assert pair.read() == b"well"
    wire = bytearray(pair.say([b"unwell"]))
    wire[-1] ^= 1
    pair.side.feed(bytes(wire))
    with pytest.raises(ssl.SSLError, match="record layer failure"):
        pair.side.read()
