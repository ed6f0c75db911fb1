"""FreeRADIUS as our child: checked before every start, started again when it dies, put back when it does not come up.

What was running last without complaint is kept beside the configuration. A configuration that FreeRADIUS takes in its
check and then does not come up with (a port is taken, an address is gone) is replaced by that one.

Where a change concerns virtual servers alone FreeRADIUS gets a HUP, and logins under way and RadSec connections go on;
every other change is a restart, and so is a HUP that FreeRADIUS does not confirm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from appliance.access.raddb_folder import (
    LAST_GOOD,
    FreeRadiusRefused,
    RunAs,
    check_reachable,
    find_program,
    in_words,
    own_folder,
    owner_of,
    redacted,
    secrets_in,
)
from radius.reload import is_taken_by_hup
from radius.render import read_raddb, write_raddb

_log = logging.getLogger(__name__)

CHECK_SECONDS = 20.0
READY_SECONDS = 20.0
STOP_SECONDS = 10.0
MAX_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
HUP_SECONDS = 3.0
HUP_PAUSE_SECONDS = 5.1  # FreeRADIUS ignores one that comes less than 5 s after another
_READY = b"Ready to process requests"
_SERVER_LOADED = b"Loaded virtual server"
_HUP_IGNORED = b"gnoring"  # too soon after another, or no file was changed in another second than before
_KEPT_LINES = 50


async def check_folder(folder: Path, who: RunAs | None = None) -> dict[str, Any]:
    """FreeRADIUS' own check of a folder, as the user that will run it; raises FreeRadiusMissing, FreeRadiusRefused."""
    check_reachable(folder, who)
    # not -X, which turns threads off and so refuses RadSec
    process = await asyncio.create_subprocess_exec(
        find_program(), "-C", "-xx", "-l", "stdout", "-d", str(folder),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, **_as(who),
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), CHECK_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise FreeRadiusRefused("the configuration check did not end") from None
    if process.returncode != 0:
        text = output.decode("utf-8", "replace")
        raise FreeRadiusRefused(redacted(in_words(text), secrets_in(_files(folder))))
    return {"ok": True, "folder": str(folder)}


class Supervisor:
    """Runs FreeRADIUS on a folder; `on_ready` hears of every time that it serves, `on_line` gets its log lines."""

    def __init__(
        self,
        folder: Path,
        *,
        who: RunAs | None = None,
        on_ready: Callable[[], None],
        on_line: Callable[[str], None] | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self._folder = folder
        self._who = who
        self._on_ready = on_ready
        self._on_line = on_line
        self._ready_seconds = ready_seconds
        self._wanted = asyncio.Event()
        self._secrets: frozenset[str] = frozenset()
        self._last: list[str] = []
        self._loaded = 0
        self._ignored = False
        self._said = asyncio.Event()
        self._hup_at = float("-inf")
        self.rollbacks = 0
        self.reloads = 0
        self.pid = 0
        self.is_serving = False
        self.rolled_back_why = ""
        """Why what was rendered last does not serve; empty while it does."""

    def reload(self) -> None:
        """Let FreeRADIUS serve what the folder holds now: by a HUP where that is enough, else started anew."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled. Raises FreeRadiusMissing, and FreeRadiusRefused when not even a last good folder serves."""
        try:
            await check_folder(self._folder, self._who)
        except FreeRadiusRefused as refused:
            if not self._go_back(refused.detail):
                raise
            await check_folder(self._folder, self._who)
        pause, loop = 1.0, asyncio.get_running_loop()
        while True:
            self._wanted.clear()
            begun = loop.time()
            served = await self._serve()
            if self._wanted.is_set():
                self.rolled_back_why = ""
                _log.info("event=freeradius-restart why=configuration-changed")
                continue
            if not served and self._go_back(in_words("\n".join(self._last))):
                continue
            pause = 1.0 if loop.time() - begun > STEADY_SECONDS else min(pause * 2, MAX_PAUSE_SECONDS)
            _log.error("event=freeradius-ended again_in=%.0fs why=%r", pause, in_words("\n".join(self._last)))
            await asyncio.sleep(pause)

    async def _serve(self) -> bool:
        """One life of FreeRADIUS, until it ends or a reload is asked for; whether it came to serving."""
        files = _files(self._folder)
        self._secrets = secrets_in(files)
        self._last = []
        self._loaded, self._hup_at = 0, float("-inf")
        process = await asyncio.create_subprocess_exec(
            *_ends_with_us(), find_program(), "-f", "-l", "stdout", "-d", str(self._folder),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, **_as(self._who),
        )  # fmt: skip
        self.pid = process.pid
        ready = asyncio.Event()
        following = asyncio.create_task(self._follow(process, ready))
        asked = asyncio.create_task(self._wanted.wait())
        serving = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait(
                (following, asked, serving), timeout=self._ready_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if ready.is_set():
                self._served(files)
                await self._until_restart(process, files, following)
            return ready.is_set()
        finally:
            self.is_serving = False
            asked.cancel()
            serving.cancel()
            await _stop(process)
            following.cancel()
            await asyncio.gather(following, asked, serving, return_exceptions=True)

    async def _until_restart(
        self, process: asyncio.subprocess.Process, files: dict[str, str], following: asyncio.Task[None]
    ) -> None:
        """Until FreeRADIUS ends, or what the folder holds takes more than a HUP."""
        servers = self._loaded
        while True:
            await self._asked(following)
            if following.done():
                return
            self._wanted.clear()  # before the folder is read: what is written later is looked at again
            fresh = _files(self._folder)
            if fresh == files:  # changed, and changed back
                self.rolled_back_why = ""
                continue
            by_hup = is_taken_by_hup(files, fresh)
            if by_hup and await self._asked(following, self._hup_at + HUP_PAUSE_SECONDS):
                self._wanted.set()  # something else came meanwhile: it may not wait as long
                continue
            if by_hup:
                self._touch([name for name in fresh if fresh[name] != files[name]])
            if not by_hup or not await self._hup(process, servers):
                self._wanted.set()
                return
            files, self._secrets = fresh, self._secrets | secrets_in(fresh)
            self.reloads += 1
            self.rolled_back_why = ""
            _log.info("event=freeradius-reload why=configuration-changed")
            self._served(files)

    def _touch(self, names: Iterable[str]) -> None:
        """FreeRADIUS knows by the second whether a file has changed."""
        for name in names:
            with contextlib.suppress(OSError):  # rendered anew just now
                os.utime(self._folder / name)

    async def _asked(self, following: asyncio.Task[None], until: float = float("inf")) -> bool:
        """Whether a reload was asked for, or FreeRADIUS ended, before a time of the loop's clock."""
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        asked = asyncio.create_task(self._wanted.wait())
        try:
            timeout = None if left == float("inf") else left
            await asyncio.wait((following, asked), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return asked.done() or following.done()
        finally:
            asked.cancel()

    async def _hup(self, process: asyncio.subprocess.Process, servers: int) -> bool:
        """Whether FreeRADIUS has read its virtual servers anew, all of them."""
        self._hup_at, self._loaded, self._ignored = asyncio.get_running_loop().time(), 0, False
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(HUP_SECONDS):
                while self._loaded < servers and not self._ignored:
                    self._said.clear()
                    await self._said.wait()
        return self._loaded >= servers

    def _served(self, files: dict[str, str]) -> None:
        self._keep(files)
        self.is_serving = True
        self._on_ready()

    async def _follow(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond all bounds
                continue
            if not line:
                break
            if _READY in line:
                ready.set()
            self._loaded += _SERVER_LOADED in line
            self._ignored |= _HUP_IGNORED in line
            self._said.set()
            shown = redacted(line.decode("utf-8", "replace").rstrip(), self._secrets)
            self._last = [*self._last[-_KEPT_LINES:], shown]
            _log.info("freeradius: %s", shown)
            if self._on_line is not None:
                self._on_line(shown)
        await process.wait()

    def _keep(self, files: dict[str, str]) -> None:
        own_folder(self._folder / LAST_GOOD, self._who)
        write_raddb(files, self._folder / LAST_GOOD, owner=owner_of(self._who))

    def _go_back(self, why: str) -> bool:
        """Put the last good configuration in place of one that does not serve; whether there was another one."""
        kept = _files(self._folder / LAST_GOOD)
        if not kept or kept == _files(self._folder):
            return False
        _log.error("event=freeradius-rolled-back why=%r", why)
        write_raddb(kept, self._folder, owner=owner_of(self._who))
        self.rollbacks += 1
        self.rolled_back_why = why
        return True


def _files(folder: Path) -> dict[str, str]:
    try:
        return read_raddb(folder)
    except OSError:
        return {}


def _as(who: RunAs | None) -> dict[str, Any]:
    """Words of subprocess that leave root and all its groups behind."""
    return {} if who is None else {"user": who.uid, "group": who.gid, "extra_groups": [], "umask": 0o027}


def _ends_with_us() -> list[str]:
    """Words before a command that make the kernel end it when we die, also by kill -9: it would hold the port."""
    setpriv = shutil.which("setpriv")
    more = ["--no-new-privs"] if os.geteuid() == 0 else []
    return [setpriv, "--pdeathsig", "TERM", *more] if setpriv else []


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
