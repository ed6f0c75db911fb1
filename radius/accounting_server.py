"""The accounting port of the embedded server (RFC 2866): what is taken in is acknowledged, nothing else.

A NAS repeats what is not acknowledged, so an answer goes out only after the record is stored, and a repeated request is
answered from memory (RFC 5080, section 2.2.2).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from radius import wire
from radius.accounting import AccountingRecord, read_accounting, read_accounting_request
from radius.clients import Nas, plain_address
from radius.duplicates import Duplicates
from radius.errors import PacketInvalid
from radius.packets import Request

log = logging.getLogger(__name__)
MAX_UNDERWAY = 1024


class AccountingServer(asyncio.DatagramProtocol):
    """Accounting on one UDP port; `take` stores a record, whatever it raises leaves the request without an answer."""

    def __init__(
        self,
        *,
        nas: Callable[[str], Nas | None],
        take: Callable[[AccountingRecord], Awaitable[None]],
        on_secret: Callable[[str, str, bool], None] = lambda name, address, old: None,
    ) -> None:
        self._nas = nas
        self._take = take
        self._on_secret = on_secret
        self._duplicates = Duplicates(8192)
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.taken = self.dropped = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; the port chosen. Raises OSError if the address is taken."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
        self._sweep()
        chosen: int = self._transport.get_extra_info("sockname")[1]
        return chosen

    async def close(self) -> None:
        """Stop listening; what is being stored is stored, unanswered."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """One packet (called by asyncio)."""
        source = plain_address(str(addr[0]))
        nas = self._nas(source)
        if nas is None:
            self.dropped += 1
            return
        try:
            request = read_accounting_request(data, *nas.secrets)
            if request.code != wire.STATUS_SERVER:
                record = read_accounting(request, nas=nas.name, nas_address=source)
        except PacketInvalid as refusal:
            self.dropped += 1
            log.debug("accounting packet dropped nas=%s reason=%s", nas.name, refusal.detail)
            return
        if nas.old_secret:
            self._on_secret(nas.name, source, request.secret == nas.old_secret)
        if request.code == wire.STATUS_SERVER:  # RFC 5997, section 4.2: an Accounting-Response says that we live
            self._send(_response(request), addr)
            return
        now = asyncio.get_running_loop().time()
        known = self._duplicates.look((addr, request.id), request.authenticator, now)
        if isinstance(known, bytes):
            self._send(known, addr)
        elif known == "new":
            if len(self._tasks) >= MAX_UNDERWAY:
                self._duplicates.forget((addr, request.id), request.authenticator)
                self.dropped += 1
                return
            task = asyncio.ensure_future(self._store(request, record, addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _store(self, request: Request, record: AccountingRecord, addr: tuple[Any, ...]) -> None:
        key = (addr, request.id)
        try:
            await self._take(record)
        except Exception as failed:  # noqa: BLE001 - supervisor: the NAS comes again, and the next one may go well
            log.warning("accounting record not stored nas=%s error=%r", record.nas, failed)
            self._duplicates.forget(key, request.authenticator)
            return
        self.taken += 1
        reply = _response(request)
        self._duplicates.answered(key, request.authenticator, reply, asyncio.get_running_loop().time())
        self._send(reply, addr)

    def _send(self, octets: bytes, addr: tuple[Any, ...]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(octets, addr)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._duplicates.sweep(loop.time())
        self._timer = loop.call_later(2.0, self._sweep)


def _response(request: Request) -> bytes:
    """Signed where the request was (RFC 5080, section 2.2.3: a Message-Authenticator is optional in accounting)."""
    states = wire.joined((wire.PROXY_STATE, value) for value in request.get(wire.PROXY_STATE))
    signed = bool(request.packet.mark)
    return wire.write_reply(
        wire.ACCOUNTING_RESPONSE, request.id, request.authenticator, states, request.secret, signed=signed
    )
