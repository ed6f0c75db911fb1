"""One of several processes that answer RADIUS at one port: `python -m radius.worker CONTROL INBOX NUMBER OTHER...`.

The numbers are file descriptors: CONTROL is a socket to the process that decides (radius.pool), INBOX takes packets
that another worker got and that belong to a login here, the OTHERs are the inboxes of the workers, in their order.
Everything secret comes through CONTROL. A worker has no store and no CA key: it speaks RADIUS and TLS, and asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from radius import messages
from radius.clients import Nas, NasTable
from radius.decide import Decision
from radius.errors import WorkerMessageMalformed
from radius.handshake import ServerIdentity
from radius.request import AccessRequest
from radius.server import Address, RadiusServer

MAX_WAITING = 4096
_BATCH = 64
_READ = 1 << 18


class Worker:
    """Between the sockets of this process and a RadiusServer."""

    def __init__(self, control: socket.socket, inbox: socket.socket, number: int, others: list[socket.socket]) -> None:
        self._control = control
        self._inbox = inbox
        self._number = number
        self._others = others
        self._table = NasTable()
        self._waiting: dict[int, tuple[AccessRequest, Callable[[Decision], None]]] = {}
        self._granted: OrderedDict[int, tuple[Decision, int]] = OrderedDict()
        self._asked = 0
        self._server: RadiusServer | None = None
        self._serving: asyncio.Future[None] | None = None
        self._orders: dict[str, Any] = {}
        self._over = asyncio.Event()
        self._reader = messages.Reader(messages.MAX_TO_WORKER)

    async def run(self) -> None:
        """Until the control socket is closed from the other side."""
        loop = asyncio.get_running_loop()
        for one in (self._control, self._inbox, *self._others):
            one.setblocking(False)
        loop.add_reader(self._control, self._on_control)
        try:
            await self._over.wait()
        finally:
            loop.remove_reader(self._control)
            if self._server is not None:
                loop.remove_reader(self._inbox)
                await self._server.close()

    async def _serve(self) -> None:
        told = self._orders
        self._table = NasTable(messages.read_clients(told["clients"]))
        self._server = RadiusServer(
            identity=read_identity(told["identity"]),
            anchors=x509.load_pem_x509_certificates(told["anchors"].encode()),
            nas=self._find_nas,
            later=self._ask,
            on_failure=self._failed,
            on_accept=self._accepted,
            on_secret=self._secret_used,
            number=self._number,
            elsewhere=self._hand_over,
            **told["options"],
        )
        await self._server.start(told["host"], told["port"], shared=True)
        asyncio.get_running_loop().add_reader(self._inbox, self._on_inbox)
        self._say({"ready": True})

    def _on_control(self) -> None:
        try:
            octets = self._control.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._over.set()
            return
        for told in self._reader.feed(octets):
            self._take(told)

    def _take(self, told: dict[str, Any]) -> None:
        if "decision" in told:
            found = self._waiting.pop(told["ask"], None)
            if found is not None:
                request, answer = found
                decision = messages.read_decision(told["decision"], request)
                if decision.verdict != "reject":
                    self._granted[id(decision)] = (decision, told["ask"])
                    while len(self._granted) > MAX_WAITING:
                        self._granted.popitem(last=False)
                answer(decision)
        elif self._server is None and self._serving is not None:
            self._orders |= told  # it came while this process started: what we begin with is out of date already
        elif "clients" in told and self._server is not None:
            self._table = NasTable(messages.read_clients(told["clients"]))
        elif "serve" in told:
            self._orders = told["serve"]
            self._serving = asyncio.ensure_future(self._serve())
            self._serving.add_done_callback(self._served)
        elif "anchors" in told and self._server is not None:
            self._server.use_anchors(x509.load_pem_x509_certificates(told["anchors"].encode()))
        elif "identity" in told and self._server is not None:
            self._server.use_identity(read_identity(told["identity"]))

    def _served(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (failed := task.exception()) is not None:
            self._say({"failed_to_serve": f"{failed}"[:200]})
            self._over.set()

    def _on_inbox(self) -> None:
        for _ in range(_BATCH):
            try:
                octets = self._inbox.recv(8192)
            except OSError:
                return
            source, _, data = octets.partition(b"\n")
            host, port, *rest = source.decode().split(" ")
            if self._server is not None:
                self._server.receive(data, (host, int(port), *map(int, rest)), handed_over=True)

    def _hand_over(self, number: int, data: bytes, addr: Address) -> bool:
        if not 0 <= number < len(self._others):
            return False
        with contextlib.suppress(OSError):  # the other is gone or its inbox is full: the NAS comes again
            self._others[number].send(" ".join(map(str, addr)).encode() + b"\n" + data)
        return True

    def _find_nas(self, address: str) -> Nas | None:
        found = self._table.find(address)
        return None if found is None else found.at(time.time())

    def _ask(self, request: AccessRequest, answer: Callable[[Decision], None]) -> None:
        if len(self._waiting) >= MAX_WAITING:  # whoever decides is gone or choked: these logins run out of time
            return
        self._asked += 1
        self._waiting[self._asked] = (request, answer)
        self._say({"ask": self._asked, "request": messages.write_request(request)})

    def _failed(self, request: AccessRequest, decision: Decision) -> None:
        self._say({"failure": messages.write_failure(decision)})

    def _accepted(self, decision: Decision) -> None:
        _, number = self._granted.pop(id(decision))
        self._say({"accepted": number})

    def _secret_used(self, name: str, address: str, old: bool) -> None:
        self._say({"secret": [name, address, old]})

    def _say(self, message: dict[str, Any]) -> None:
        """Waits where the socket is full: a row of the log is worth more than speed."""
        octets = messages.write(message)
        try:
            with contextlib.suppress(BlockingIOError):
                octets = octets[self._control.send(octets) :]
            if octets:
                self._control.setblocking(True)
                self._control.sendall(octets)
                self._control.setblocking(False)
        except OSError:
            self._over.set()


def read_identity(told: dict[str, str]) -> ServerIdentity:
    """Certificate, chain and key as PEM."""
    first, *chain = x509.load_pem_x509_certificates(told["chain"].encode())
    key = load_pem_private_key(told["key"].encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise WorkerMessageMalformed("not an EC key")
    return ServerIdentity(first, tuple(chain), key)


def main(words: list[str]) -> None:
    """The process."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for one in (signal.SIGINT, signal.SIGTERM):  # a terminal or a service manager sends them to every process
        signal.signal(one, signal.SIG_IGN)  # we end with the control socket, when everything has been said
    control, inbox, number, *others = map(int, words)
    sockets = [socket.socket(fileno=one) for one in (control, inbox, *others)]

    async def run() -> None:
        await Worker(sockets[0], sockets[1], number, sockets[2:]).run()

    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1:])
