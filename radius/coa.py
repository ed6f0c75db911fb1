"""Asks a NAS to change or end a session: one exchange over UDP, retransmitted as RFC 5080, section 2.2.1 says.

Retransmissions are the same octets from the same port, so that a NAS that has done it already says so again instead of
doing it twice. What does not authenticate is counted and waited past: only the NAS that shares the secret ends the
wait.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from radius.attributes import Attribute
from radius.dynamic import Answer, SessionName, read_answer, write_order
from radius.errors import PacketInvalid
from radius.nas_profiles import Order

SENDINGS = 4
FIRST_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Exchange:
    """How an exchange ended: `answer` None = no authentic answer came; `sent` and `foreign` count datagrams."""

    answer: Answer | None
    sent: int
    foreign: int
    trouble: str = ""

    @property
    def words(self) -> str:
        """One line for the record of the session."""
        if self.answer is not None:
            return self.answer.words
        return self.trouble or ("no authentic answer" if self.foreign else "no answer")


async def send_order(
    address: tuple[str, int],
    secret: bytes,
    order: Order,
    name: SessionName,
    attributes: Sequence[Attribute],
    *,
    timestamp: int,
    must_be_signed: bool = False,
    sendings: int = SENDINGS,
    first_seconds: float = FIRST_SECONDS,
) -> Exchange:
    """Send `order` and wait for the answer, at most some `first_seconds` * (2 ** `sendings` - 1)."""
    request = write_order(
        order, name, attributes, secret=secret, identifier=secrets.randbelow(256), timestamp=timestamp
    )
    loop = asyncio.get_running_loop()
    mailbox = _Mailbox()
    try:
        transport, _ = await loop.create_datagram_endpoint(lambda: mailbox, remote_addr=address)
    except OSError as cause:
        return Exchange(None, 0, 0, f"cannot be reached: {cause.strerror}")
    sent = foreign = 0
    try:
        for at in range(sendings):
            transport.sendto(request)
            sent += 1
            # randomised, so that many sessions of one NAS do not come back together (RFC 5080, section 2.2.1)
            until = loop.time() + first_seconds * 2**at * random.uniform(0.9, 1.1)  # noqa: S311
            while (left := until - loop.time()) > 0:
                try:
                    async with asyncio.timeout(left):
                        octets = await mailbox.answers.get()
                except TimeoutError:
                    break
                try:
                    return Exchange(read_answer(octets, request, secret, must_be_signed=must_be_signed), sent, foreign)
                except PacketInvalid:
                    foreign += 1
        return Exchange(None, sent, foreign, mailbox.trouble)
    finally:
        transport.close()


class _Mailbox(asyncio.DatagramProtocol):
    """Takes a few datagrams; a flood is not worth memory."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue(64)
        self.trouble = ""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.answers.full():
            self.answers.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        self.trouble = f"refused by its host: {exc}"[:120]
