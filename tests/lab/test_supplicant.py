"""Blast-RADIUS from the client's side (CVE-2024-3596): an answer that nobody signed, or a stranger, lets nobody in."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lab.supplicant import Outcome, authenticate
from lab.supplicant import _Datagrams as Datagrams
from radius import packets, wire
from tests.radius.world import SECRET, Desk, campus, login, radius_server

Answer = Callable[[bytes], bytes]
"""An Access-Request -> what comes back."""
VLAN = wire.attribute(64, b"\x00\x00\x00\x0d") + wire.attribute(65, b"\x00\x00\x00\x06") + wire.attribute(81, b"20")
SUCCESS = wire.attribute(packets.EAP_MESSAGE, b"\x03\x00\x00\x04")


def sealed(request: bytes, code: int, body: bytes, secret: bytes = SECRET) -> bytes:
    """An answer whose Response Authenticator holds for this body, as the attack makes one without the secret."""
    head = bytes((code, request[1])) + (20 + len(body)).to_bytes(2, "big")
    return head + hashlib.md5(head + request[4:20] + body + secret, usedforsecurity=False).digest() + body


def answered(code: int = packets.ACCESS_ACCEPT, *, secret: bytes = SECRET, signed: bool = True) -> Answer:
    return lambda request: wire.write_reply(code, request[1], request[4:20], VLAN + SUCCESS, secret, signed=signed)


def with_foreign_mark(request: bytes) -> bytes:
    """The Message-Authenticator of somebody who does not know the secret, under a Response Authenticator that holds."""
    body = wire.attribute(80, bytes(16)) + VLAN + SUCCESS
    head = bytes((packets.ACCESS_ACCEPT, request[1])) + (20 + len(body)).to_bytes(2, "big")
    mark = hmac.digest(b"a secret of somebody else", head + request[4:20] + body, "md5")
    return sealed(request, packets.ACCESS_ACCEPT, body[:2] + mark + body[18:])


def with_foreign_seal(request: bytes) -> bytes:
    """The Message-Authenticator holds, the Response Authenticator does not."""
    good = answered()(request)
    return good[:4] + bytes(16) + good[20:]


def to_another_request(request: bytes) -> bytes:
    return answered()(request[:4] + bytes(16) + request[20:])


FORGED: dict[str, Answer] = {
    "no Message-Authenticator": answered(signed=False),
    "no Message-Authenticator in a reject": answered(packets.ACCESS_REJECT, signed=False),
    "no Message-Authenticator in a challenge": answered(packets.ACCESS_CHALLENGE, signed=False),
    "another secret": answered(secret=b"a secret of somebody else"),
    "another's Message-Authenticator": with_foreign_mark,
    "another's Response Authenticator": with_foreign_seal,
    "the answer to another request": to_another_request,
}


class FakeServer(asyncio.DatagramProtocol):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(self._answer(data), addr)


def outcome_of(answer: Answer) -> Outcome:
    async def act() -> Outcome:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: FakeServer(answer), local_addr=("127.0.0.1", 0))
        try:
            port = transport.get_extra_info("sockname")[1]
            given: dict[str, Any] = login(campus().agent())
            return await authenticate("127.0.0.1", port, SECRET, **given)
        finally:
            transport.close()

    return asyncio.run(act())


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_answer_breaks_the_login_off_and_nothing_in_it_is_believed(name: str) -> None:
    outcome = outcome_of(FORGED[name])
    assert (outcome.code, outcome.trouble) == ("broken", "the reply is not authentic")
    assert (outcome.vlan, outcome.attributes, outcome.rounds) == (None, {}, 1)


def test_a_signed_answer_is_read_and_an_accept_without_a_login_is_no_accept() -> None:
    assert outcome_of(answered(packets.ACCESS_REJECT)).code == "reject"
    early = outcome_of(answered())
    assert (early.code, early.trouble) == ("broken", "Access-Accept without a finished EAP-TLS login")


class Between:
    """A way to the server on which somebody changes every Access-Accept."""

    def __init__(self, inner: Datagrams, change: Callable[[bytes, bytes], bytes]) -> None:
        self._inner = inner
        self._change = change
        self._asked = b""
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()

    def send(self, octets: bytes) -> None:
        self._asked = octets
        self._inner.send(octets)

    async def run(self) -> None:
        while True:
            answer = await self._inner.answers.get()
            is_accept = answer[0] == packets.ACCESS_ACCEPT
            self.answers.put_nowait(self._change(self._asked, answer) if is_accept else answer)


@asynccontextmanager
async def between(port: int, change: Callable[[bytes, bytes], bytes]) -> AsyncIterator[Between]:
    inner = await Datagrams.open("127.0.0.1", port)
    made = Between(inner, change)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        inner.transport.close()


def without_mark(request: bytes, answer: bytes) -> bytes:
    """The same answer without its Message-Authenticator, under a Response Authenticator that holds."""
    assert answer[20:22] == b"\x50\x12"
    return sealed(request, answer[0], answer[38:])


def with_another_vlan(request: bytes, answer: bytes) -> bytes:
    at = answer.index(wire.attribute(81, b"20"))
    return sealed(request, answer[0], answer[20:at] + wire.attribute(81, b"99") + answer[at + 4 :])


@pytest.mark.parametrize(
    ("change", "code", "vlan"),
    [
        (lambda request, answer: answer, "accept", "20"),
        (without_mark, "broken", None),
        (with_another_vlan, "broken", None),
    ],
    ids=["untouched", "without Message-Authenticator", "with another VLAN"],
)
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_the_accept_at_the_end_of_a_real_login_is_held_to_the_same(
    change: Callable[[bytes, bytes], bytes], code: str, vlan: str | None, version: str
) -> None:
    async def act() -> Outcome:
        desk, agent = Desk(), campus().agent()
        desk.admit(agent)
        server = radius_server(desk)
        port = await server.start()
        try:
            async with between(port, change) as way:
                given: dict[str, Any] = login(agent, tls_version=version)
                return await authenticate("127.0.0.1", port, SECRET, **given, wire=way)
        finally:
            await server.close()

    outcome = asyncio.run(act())
    assert (outcome.code, outcome.vlan, outcome.msk_matches) == (code, vlan, code == "accept")
    assert outcome.trouble == ("" if code == "accept" else "the reply is not authentic")
