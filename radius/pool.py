"""Several processes that answer RADIUS at one port, and this one that decides for them (setting radius.workers).

The workers share the UDP port (SO_REUSEPORT): the kernel gives every packet of one source address and port to the same
worker, so a NAS's retransmissions find the answers kept for them. A login belongs to the worker whose number begins
its State; a packet of it that reaches another, because the NAS uses several source ports, is handed over. Decisions,
the log and the table of sessions stay here: a decision costs microseconds and a login milliseconds, so there is
nothing to gain by a copy of the facts in every worker, and no row can be lost with one. A worker that dies is started
again; its supplicants begin anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from radius import messages
from radius.clients import NasTable
from radius.decide import Decision
from radius.errors import WorkerMessageMalformed
from radius.handshake import ServerIdentity
from radius.request import AccessRequest
from radius.server import Authorize

log = logging.getLogger(__name__)

START_SECONDS = 20.0
_READ = 1 << 18
_MAX_GRANTED = 8192
_BUFFER = 1 << 20


class WorkerPool:
    """The same surface as RadiusServer, over processes. `table` gives the NAS as they are now."""

    def __init__(
        self,
        count: int,
        *,
        identity: ServerIdentity,
        anchors: Sequence[x509.Certificate],
        table: Callable[[], NasTable],
        authorize: Authorize,
        on_failure: Callable[[AccessRequest, Decision], None],
        on_accept: Callable[[Decision], None],
        on_secret: Callable[[str, str, bool], None],
        **options: Any,
    ) -> None:
        """`options` are those of RadiusServer: plain values."""
        self._count = count
        self._identity = identity
        self._anchors = tuple(anchors)
        self._table = table
        self._authorize = authorize
        self._on_failure = on_failure
        self._on_accept = on_accept
        self._on_secret = on_secret
        self._options = options
        self._address = ("", 0)
        self._holder: socket.socket | None = None
        self._inboxes: list[tuple[socket.socket, socket.socket]] = []
        self._workers: dict[int, _Child] = {}
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Start the workers; the port chosen. Raises OSError if the address is taken or a worker does not come up."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # bound but deaf would take its share of the packets: the port is only found and held until the workers have it
        holder = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if port:
                holder.bind((host, port))  # refuses where somebody else is, before we share it among ourselves
            else:
                holder.bind((host, 0))
                port = holder.getsockname()[1]
        finally:
            holder.close()
        self._address = (host, port)
        for _ in range(self._count):
            self._inboxes.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
        await asyncio.gather(*(self._start_worker(number) for number in range(self._count)))
        return port

    async def close(self) -> None:
        """End the workers; what they said before is still heard."""
        self._closing = True
        for child in list(self._workers.values()):
            child.end()
        for child in list(self._workers.values()):
            await child.gone()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pair in self._inboxes:
            for one in pair:
                one.close()

    def use_identity(self, identity: ServerIdentity) -> None:
        """Serve new logins with this certificate."""
        self._identity = identity
        self._tell({"identity": _identity(identity)})

    def use_anchors(self, anchors: Sequence[x509.Certificate]) -> None:
        """Take certificates of these issuing CAs in new logins."""
        self._anchors = tuple(anchors)
        self._tell({"anchors": self._anchors_pem})

    @property
    def _anchors_pem(self) -> str:
        return "".join(one.public_bytes(Encoding.PEM).decode() for one in self._anchors)

    def refresh(self) -> None:
        """The table of NAS has changed."""
        self._tell({"clients": messages.write_clients(self._table().rows)})

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [child.process.pid for child in self._workers.values()]

    def _tell(self, message: dict[str, Any]) -> None:
        for child in self._workers.values():
            child.say(message)

    async def _start_worker(self, number: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for one in (ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        inbox = self._inboxes[number][0]
        others = [pair[1] for pair in self._inboxes]
        passed = (theirs.fileno(), inbox.fileno(), *(one.fileno() for one in others))
        words = [str(passed[0]), str(passed[1]), str(number), *map(str, passed[2:])]
        # asyncio's subprocesses would want a child watcher; a socket tells us well enough that a worker is gone
        process = subprocess.Popen(  # noqa: ASYNC220 - quick: no shell, no waiting
            [sys.executable, "-m", "radius.worker", *words],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        child = _Child(process, ours, self._on_message, lambda: self._on_gone(number))
        self._workers[number] = child
        host, port = self._address
        child.say(
            {
                "serve": {
                    "host": host,
                    "port": port,
                    "identity": _identity(self._identity),
                    "anchors": self._anchors_pem,
                    "clients": messages.write_clients(self._table().rows),
                    "options": self._options,
                }
            }
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await child.ready.wait()
        except TimeoutError:
            raise OSError(f"a RADIUS worker did not start: {child.trouble or 'no word from it'}") from None
        if child.trouble:
            raise OSError(f"a RADIUS worker did not start: {child.trouble}")

    def _on_message(self, child: _Child, told: dict[str, Any]) -> None:
        if "ask" in told:
            request = messages.read_request(told.get("request"))
            decision = self._authorize(request)
            child.remember(int(told["ask"]), decision)
            child.say({"ask": told["ask"], "decision": messages.write_decision(decision)})
        elif "accepted" in told:
            granted = child.granted.pop(told["accepted"], None)
            if granted is not None:
                self._on_accept(granted)
        elif "failure" in told:
            decision = messages.read_failure(told["failure"])
            self._on_failure(decision.request, decision)
        elif "secret" in told:
            name, address, old = told["secret"]
            self._on_secret(str(name)[:64], str(address)[:64], bool(old))

    def _on_gone(self, number: int) -> None:
        if self._closing:
            return
        child = self._workers.pop(number)
        log.error("event=radius-worker-gone number=%d pid=%d", number, child.process.pid)
        task = asyncio.ensure_future(self._again(number, child))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _again(self, number: int, child: _Child) -> None:
        await child.gone()
        if time.monotonic() - child.started < 5:
            await asyncio.sleep(1.0)  # one that dies at once must not be started in a circle
        with contextlib.suppress(OSError):
            await self._start_worker(number)


class _Child:
    """A worker process as seen from here."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        on_message: Callable[[_Child, dict[str, Any]], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.process = process
        self.started = time.monotonic()
        self.ready = asyncio.Event()
        self.trouble = ""
        self.granted: OrderedDict[int, Decision] = OrderedDict()
        self._control = control
        self._on_message = on_message
        self._on_gone = on_gone
        self._unsent = bytearray()
        self._reader = messages.Reader(messages.MAX_FROM_WORKER)
        control.setblocking(False)
        asyncio.get_running_loop().add_reader(control, self._on_control)

    def remember(self, number: int, decision: Decision) -> None:
        """What was granted, until the worker says that the Access-Accept goes out."""
        if decision.verdict != "reject":
            self.granted[number] = decision
            while len(self.granted) > _MAX_GRANTED:
                self.granted.popitem(last=False)

    def say(self, message: dict[str, Any]) -> None:
        """In order; what the socket does not take now is sent when it does."""
        self._unsent += messages.write(message)
        self._send()

    def _send(self) -> None:
        if self._control.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        while self._unsent:
            try:
                sent = self._control.send(self._unsent)
            except BlockingIOError:
                loop.add_writer(self._control, self._send)
                return
            except OSError:
                self._unsent.clear()
                break
            del self._unsent[:sent]
        loop.remove_writer(self._control)

    def _on_control(self) -> None:
        while self._control.fileno() >= 0:
            try:
                octets = self._control.recv(_READ)
            except BlockingIOError:
                return
            except OSError:
                octets = b""
            if not octets:
                self._lost()
                return
            try:
                for told in self._reader.feed(octets):
                    self._take(told)
            except (WorkerMessageMalformed, AttributeError, KeyError, TypeError, ValueError) as broken:
                log.error("event=radius-worker-broken pid=%d error=%r", self.process.pid, broken)
                self._lost()
                return
            if len(octets) < _READ:
                return

    def _take(self, told: dict[str, Any]) -> None:
        if "ready" in told:
            self.ready.set()
        elif "failed_to_serve" in told:
            self.trouble = str(told["failed_to_serve"])[:200]
            self.ready.set()
        else:
            self._on_message(self, told)

    def _lost(self) -> None:
        if self._control.fileno() < 0:
            return
        self._close()
        self.trouble = self.trouble or "it ended"
        self.ready.set()
        self._on_gone()

    def _close(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._control)
        loop.remove_writer(self._control)
        self._control.close()

    def end(self) -> None:
        """Tell it to end; it does when its side of the socket says that nobody is there."""
        if self._control.fileno() >= 0:
            self._control.shutdown(socket.SHUT_WR)

    async def gone(self) -> None:
        """Wait until it has ended, and make it."""
        for _ in range(100):
            if self.process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        else:
            self.process.kill()
            self.process.wait()
        while self._control.fileno() >= 0:  # what it said before it ended
            self._on_control()


def _identity(identity: ServerIdentity) -> dict[str, str]:
    chain = (identity.certificate, *identity.chain)
    return {
        "chain": "".join(one.public_bytes(Encoding.PEM).decode() for one in chain),
        "key": identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }
