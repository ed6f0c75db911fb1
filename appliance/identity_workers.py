"""The processes that serve the identity API beside this one (settings identity.workers, web.identity_port).

They share one listening socket, which this process holds and never accepts from: a worker that is busy takes nothing
new, and one that dies leaves what waits to the others. One that died is started again. When certificates of ours
change, every worker is replaced by one that has the new ones, and finishes what it has under way.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from typing import ClassVar

from appliance.errors import ApplianceError
from appliance.identity_worker import READY, Orders
from appliance.settings import Settings
from appliance.web.server import bind_tcp

_log = logging.getLogger(__name__)
START_SECONDS = 20.0
STOP_SECONDS = 12.0
"""A little longer than a listener's time to drain."""
_MAX_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 60.0
_SETTLE_SECONDS = 0.5
_BIND_TRIES = 40
_BIND_PAUSE_SECONDS = 0.05


class IdentityWorkerFailed(ApplianceError):
    """A worker of the identity server did not come up; its log lines say why."""

    reason: ClassVar[str] = "identity-worker-failed"


class IdentityWorkers:
    """As many processes as the settings want; bind() before start(), which may be called once."""

    def __init__(self, settings: Settings, passphrase: bytes) -> None:
        self._settings = settings
        self._passphrase = passphrase
        self._socket: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._changed: list[asyncio.Event] = []
        self._pids: dict[int, int] = {}
        self._turn = asyncio.Lock()

    async def bind(self) -> int:
        """Take the port; OSError if somebody else has it."""
        web = self._settings.web
        for tried in range(_BIND_TRIES):
            try:
                self._socket = bind_tcp(web.host, web.identity_port)
                break
            except OSError as error:
                # workers of an appliance that was killed let go of the port a moment after it
                if error.errno != errno.EADDRINUSE or tried == _BIND_TRIES - 1:
                    raise
                await asyncio.sleep(_BIND_PAUSE_SECONDS)
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    async def start(self) -> None:
        """Every worker answers when this returns; raises IdentityWorkerFailed."""
        count = self._settings.identity.workers
        self._changed = [asyncio.Event() for _ in range(count)]
        begun = await asyncio.gather(*(self._begin() for _ in range(count)), return_exceptions=True)
        first = [one for one in begun if isinstance(one, asyncio.subprocess.Process)]
        failed = next((one for one in begun if isinstance(one, BaseException)), None)
        if failed is not None:
            await asyncio.gather(*map(_end, first))
            raise failed
        self._tasks = [asyncio.create_task(self._keep(number, process)) for number, process in enumerate(first)]

    def renew(self) -> None:
        """Certificates of ours have changed."""
        for one in self._changed:
            one.set()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that answer now."""
        return list(self._pids.values())

    async def stop(self) -> None:
        """End every worker; what it has under way is finished."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _keep(self, number: int, process: asyncio.subprocess.Process) -> None:
        """One worker after the other in this place, until cancelled."""
        changed, loop, pause = self._changed[number], asyncio.get_running_loop(), 0.5
        old: set[asyncio.Task[None]] = set()
        try:
            while True:
                begun, self._pids[number] = loop.time(), process.pid
                ended, asked = asyncio.create_task(process.wait()), asyncio.create_task(changed.wait())
                try:
                    await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    asked.cancel()
                    ended.cancel()
                if changed.is_set():
                    await asyncio.sleep(_SETTLE_SECONDS)  # one step of a rollover tells of itself more than once
                    changed.clear()
                    async with self._turn:  # one after the other, and each serves until its successor does
                        successor = await self._begin_again()
                    leaving = asyncio.create_task(_end(process))
                    old.add(leaving)
                    leaving.add_done_callback(old.discard)
                    process = successor
                    continue
                self._pids.pop(number, None)
                _log.error("event=identity-worker-gone pid=%d status=%s", process.pid, process.returncode)
                pause = 0.5 if loop.time() - begun > _STEADY_SECONDS else min(pause * 2, _MAX_PAUSE_SECONDS)
                await asyncio.sleep(pause)
                process = await self._begin_again()
        finally:
            self._pids.pop(number, None)
            await asyncio.gather(_end(process), *old, return_exceptions=True)

    async def _begin_again(self) -> asyncio.subprocess.Process:
        pause = 1.0
        while True:
            try:
                return await self._begin()
            except (IdentityWorkerFailed, OSError) as error:
                _log.error("event=identity-worker-not-started again_in=%.0fs error=%s", pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    async def _begin(self) -> asyncio.subprocess.Process:
        assert self._socket is not None
        descriptor, port = self._socket.fileno(), int(self._socket.getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "appliance.identity_worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=(descriptor,),
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(Orders(self._settings, self._passphrase, descriptor, port).write())
            async with asyncio.timeout(START_SECONDS):
                await process.stdin.drain()
                said = await process.stdout.readline()
        except (TimeoutError, ConnectionError, ValueError):  # the last: a line without end
            said = b""
        except asyncio.CancelledError:
            await _end(process)
            raise
        if said != READY:
            await _end(process)
            raise IdentityWorkerFailed("a worker of the identity server did not come up; see the log above")
        return process


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its standard input ends, then it does; killed if not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
