"""A NAS's dynamic authorization server as another implementation would make it (pyrad), with faults by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pyrad.packet import CoAPacket

from radius import packets

ACK, NAK = {40: 41, 43: 44}, {40: 42, 43: 45}


@dataclass
class Das(asyncio.DatagramProtocol):
    """Answers by plan: ack, drop, nak CAUSE, forged (another secret), unsigned, twice, garbage, wrong-id. Then acks.

    `done` are the requests that it carried out, retransmissions not counted; `seen` every datagram.
    """

    secret: bytes
    plan: list[str] = field(default_factory=list)
    demand: bool = True
    done: list[CoAPacket] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    delay_seconds: float = 0.0
    port: int = 0
    _answers: dict[bytes, bytes] = field(default_factory=dict)
    _in_work: set[bytes] = field(default_factory=set)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        asyncio.ensure_future(self._answer(data, addr))

    async def _answer(self, data: bytes, addr: Any) -> None:
        self.seen.append(data)
        if data in self._answers:  # RFC 5080: a duplicate gets the same octets
            self.transport.sendto(self._answers[data], addr)
            return
        if data in self._in_work:  # and one whose answer is still made gets that
            return
        request = CoAPacket(secret=self.secret, packet=data, dict=packets.dictionary())
        if not request.VerifyCoARequest():
            return
        if self.demand and not (request.message_authenticator and request.verify_message_authenticator(
            original_authenticator=bytes(16), original_code=request.code)):  # fmt: skip
            return
        if self.demand and not request.get(55):
            return
        what = self.plan.pop(0) if self.plan else "ack"
        if what == "drop":
            return
        self._in_work.add(data)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(self.delay_seconds)
        self.under_way -= 1
        self._in_work.discard(data)
        reply = request.CreateReply()
        if what.startswith("nak"):
            reply.code = NAK[request.code]
            reply[101] = [int(what.split()[1]).to_bytes(4, "big")]
        elif what == "forged":
            reply.secret = b"not the secret of anybody here"
        if what != "unsigned":
            reply.add_message_authenticator()
        octets = reply.ReplyPacket()
        if what == "garbage":
            octets = b"\x29" + octets[1:9]
        if what == "wrong-id":
            octets = bytes([octets[0], octets[1] ^ 1]) + octets[2:]
        if what in ("ack", "twice", "unsigned") or what.startswith("nak"):
            self._answers[data] = octets
            self.done.append(request)
        self.transport.sendto(octets, addr)
        if what == "twice":
            self.transport.sendto(octets, addr)


@asynccontextmanager
async def das(secret: bytes, plan: Iterable[str] = (), host: str = "127.0.0.1", **more: Any) -> AsyncIterator[Das]:
    made = Das(secret, list(plan), **more)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: made, local_addr=(host, made.port))
    made.port = transport.get_extra_info("sockname")[1]
    try:
        yield made
    finally:
        transport.close()
