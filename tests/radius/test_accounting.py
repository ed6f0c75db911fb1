"""The accounting port against another implementation's client: what is stored is acknowledged, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pyrad.packet import AcctPacket

from radius import packets, wire
from radius.accounting import AccountingRecord, mac_key, read_accounting, read_accounting_json, read_accounting_request
from radius.accounting_server import AccountingServer
from radius.clients import Nas
from radius.errors import HookMalformed, PacketInvalid
from tests.radius.world import SECRET

START = ((40, b"\0\0\0\1"), (44, b"A1"), (31, b"02-00-00-00-00-01"), (87, b"swp1"), (25, b"txn-1"))


def message(*attributes: tuple[int, bytes], secret: bytes = SECRET, number: int = 7, signed: bool = False) -> bytes:
    """An Accounting-Request as pyrad makes it."""
    packet = AcctPacket(secret=secret, id=number, dict=packets.dictionary())
    if signed:
        packet.add_message_authenticator()
    for code, value in attributes:
        packet.setdefault(code, []).append(value)
    octets: bytes = packet.RequestPacket()
    return octets


class Client(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.answers.put_nowait(data)

    async def ask(self, octets: bytes, seconds: float = 1.0) -> bytes | None:
        self.transport.sendto(octets)
        try:
            return await asyncio.wait_for(self.answers.get(), seconds)
        except TimeoutError:
            return None


def run(
    act: Callable[[Client, list[AccountingRecord]], Awaitable[None]],
    *,
    take: Callable[[AccountingRecord], Awaitable[None]] | None = None,
    nas: Callable[[str], Nas | None] = lambda address: Nas("switch-1", SECRET),
    host: str = "127.0.0.1",
    on_secret: Callable[[str, str, bool], None] = lambda *_: None,
) -> list[AccountingRecord]:
    taken: list[AccountingRecord] = []

    async def keep(record: AccountingRecord) -> None:
        taken.append(record)

    async def bounded() -> None:
        server = AccountingServer(nas=nas, take=take or keep, on_secret=on_secret)
        port = await server.start(host, 0)
        transport, client = await asyncio.get_running_loop().create_datagram_endpoint(Client, remote_addr=(host, port))
        client.transport = transport
        try:
            async with asyncio.timeout(60):
                await act(client, taken)
        finally:
            transport.close()
            await server.close()

    asyncio.run(bounded())
    return taken


def test_a_record_is_stored_and_acknowledged() -> None:
    async def act(client: Client, taken: list[AccountingRecord]) -> None:
        octets = message(*START, (33, b"proxy"))
        answer = await client.ask(octets)
        assert answer is not None
        request = AcctPacket(secret=SECRET, packet=octets, dict=packets.dictionary())
        reply = request.CreateReply(packet=answer)
        assert reply.code == 5 and request.VerifyReply(reply, answer)
        assert reply.get(33) == [b"proxy"]

    (record,) = run(act)
    assert record == AccountingRecord(
        "start", "switch-1", "127.0.0.1", nas_port="swp1", calling_station="02-00-00-00-00-01", session="A1",
        classes=("txn-1",),
    )  # fmt: skip


def test_a_repeated_message_is_answered_from_memory() -> None:
    async def act(client: Client, taken: list[AccountingRecord]) -> None:
        octets = message(*START)
        first, again = await client.ask(octets), await client.ask(octets)
        assert first is not None and first == again
        assert await client.ask(message((40, b"\0\0\0\2"), (44, b"A1"))) is not None  # same identifier, another request

    assert [record.status for record in run(act)] == ["start", "stop"]


def test_a_message_that_cannot_be_stored_gets_no_answer_and_may_come_again() -> None:
    tried = []

    async def take(record: AccountingRecord) -> None:
        tried.append(record)
        if len(tried) == 1:
            raise RuntimeError("the disk is full")

    async def act(client: Client, taken: list[AccountingRecord]) -> None:
        octets = message(*START)
        assert await client.ask(octets, 0.3) is None
        assert await client.ask(octets) is not None

    run(act, take=take)
    assert len(tried) == 2


def test_a_message_that_is_being_stored_is_not_stored_twice() -> None:
    tried = []

    async def take(record: AccountingRecord) -> None:
        tried.append(record)
        await asyncio.sleep(0.3)

    async def act(client: Client, taken: list[AccountingRecord]) -> None:
        octets = message(*START)
        for _ in range(3):
            client.transport.sendto(octets)
        assert await client.ask(octets) is not None

    run(act, take=take)
    assert len(tried) == 1


BAD = {
    "wrong secret": message(*START, secret=b"other"),
    "no authenticator": b"\x04\x07\x00\x1a" + bytes(16) + b"\x28\x06\0\0\0\1",
    "flipped": message(*START)[:-1] + b"x",
    "no status": message((44, b"A1")),
    "two statuses": message((40, b"\0\0\0\1"), (40, b"\0\0\0\2")),
    "unknown status": message((40, b"\0\0\0\x63")),
    "an access-request": b"\x01" + message(*START)[1:],
    "cut": message(*START)[:-2],
    "empty": b"",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_authentic_accounting_gets_no_answer(name: str) -> None:
    async def act(client: Client, taken: list[AccountingRecord]) -> None:
        assert await client.ask(BAD[name], 0.2) is None

    assert run(act) == []


def test_a_message_authenticator_that_is_there_must_verify() -> None:
    good = message(*START, signed=True)
    assert read_accounting_request(good, SECRET).id == 7
    packet = wire.read_packet(good)
    broken = bytearray(good)
    broken[packet.mark] ^= 1
    import hashlib

    body = bytes(broken[20:])
    broken[4:20] = hashlib.md5(bytes(broken[:4]) + bytes(16) + body + SECRET).digest()
    with pytest.raises(PacketInvalid, match="Message-Authenticator"):
        read_accounting_request(bytes(broken), SECRET)


def test_status_server_is_answered_at_the_accounting_port() -> None:
    from tests.radius.test_packets import request_octets

    async def act(client: Client, taken: list[AccountingRecord]) -> None:
        answer = await client.ask(request_octets(code=12))
        assert answer is not None and answer[0] == 5

    assert run(act) == []


def test_accounting_over_ipv6_and_of_strangers() -> None:
    async def act(client: Client, taken: list[AccountingRecord]) -> None:
        assert await client.ask(message(*START)) is not None

    (record,) = run(act, host="::1", nas=lambda address: Nas("six", SECRET) if address == "::1" else None)
    assert (record.nas, record.nas_address) == ("six", "::1")

    async def stranger(client: Client, taken: list[AccountingRecord]) -> None:
        assert await client.ask(message(*START), 0.2) is None

    assert run(stranger, nas=lambda address: None) == []


def test_both_secrets_of_a_rotation_count_and_it_is_said_which_was_used() -> None:
    used = []

    async def act(client: Client, taken: list[AccountingRecord]) -> None:
        assert await client.ask(message(*START)) is not None
        assert await client.ask(message(*START, secret=b"new", number=8)) is not None

    run(act, nas=lambda address: Nas("s", b"new", SECRET), on_secret=lambda *what: used.append(what))
    assert used == [("s", "127.0.0.1", True), ("s", "127.0.0.1", False)]


def test_gigawords_and_causes_are_read() -> None:
    octets = message(
        (40, b"\0\0\0\2"),
        (42, b"\0\0\0\5"),
        (52, b"\0\0\0\1"),
        (43, b"\xff\xff\xff\xff"),
        (49, b"\0\0\0\6"),
        (46, b"\0\0\1\0"),
    )
    record = read_accounting(read_accounting_request(octets, SECRET), nas="n", nas_address="a")
    assert (record.octets_in, record.octets_out, record.seconds, record.cause) == (
        (1 << 32) + 5, 0xFFFFFFFF, 256, "admin-reset",
    )  # fmt: skip


@pytest.mark.parametrize(
    "document", [{}, [], {"Acct-Status-Type": {"value": ["Failed"]}}, {"Acct-Status-Type": 1}, "x"]
)
def test_json_that_is_no_accounting_is_refused(document: object) -> None:
    with pytest.raises(HookMalformed):
        read_accounting_json(document)


@pytest.mark.parametrize(
    ("text", "key"),
    [("02-AB-00-00-00-01", "02ab00000001"), ("02:ab:00:00:00:01", "02ab00000001"), ("02ab.0000.0001", "02ab00000001"),
     ("phone-7", "phone-7"), ("", "")],
)  # fmt: skip
def test_spellings_of_a_mac_address_are_one(text: str, key: str) -> None:
    assert mac_key(text) == key
