"""FreeRADIUS in production: render its configuration from our state, let it check itself, run and supervise it.

The rendered folder holds secrets (the NAS' shared secrets, the token of the decision port, the server key) and is
readable by its owner and group only.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from appliance.access.nas import NasService
from appliance.audit import Actor
from appliance.errors import ApplianceError, NotFound
from appliance.settings import RadiusSettings
from radius.render import NasEntry, RaddbValues, render, write_raddb

_log = logging.getLogger(__name__)

TOKEN_NAME = "freeradius"  # noqa: S105 - the name under which the token is kept, not the token
CHECK_SECONDS = 20.0
STOP_SECONDS = 10.0
MAX_PAUSE_SECONDS = 30.0
_READY = b"Ready to process requests"


class FreeRadiusMissing(ApplianceError):
    """The FreeRADIUS program is not installed (Debian: apt-get install freeradius freeradius-rest)."""

    reason: ClassVar[str] = "freeradius-missing"


class FreeRadiusRefused(ApplianceError):
    """FreeRADIUS refuses its configuration; `detail` is its own last word."""

    reason: ClassVar[str] = "freeradius-refused"


@dataclass(frozen=True, slots=True)
class RadiusFiles:
    """What FreeRADIUS needs of our PKI, as PEM, and where it finds the decision port."""

    certificate_chain_pem: str
    key_pem: str
    agents_ca_pem: str
    decision_ca_pem: str
    decision_url: Callable[[], str]


def find_program() -> str:
    """Path of FreeRADIUS; raises FreeRadiusMissing."""
    for name in ("freeradius", "radiusd"):
        if found := shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin"):
            return found
    raise FreeRadiusMissing("FreeRADIUS is not installed (Debian: apt-get install freeradius freeradius-rest)")


class FreeRadius:
    """Renders and checks configurations for the FreeRADIUS on this machine."""

    def __init__(
        self, settings: RadiusSettings, nas: NasService, files: RadiusFiles, *, owner_id_oid: str, port: int = 0
    ) -> None:
        self._settings = settings
        self._nas = nas
        self._files = files
        self._owner_id_oid = owner_id_oid
        self._port = port or settings.port
        self._token = ""

    async def render(self, folder: Path, actor: Actor, *, port: int = 0) -> dict[str, Any]:
        """Write a complete configuration to `folder`, with a fresh token; an older one of this folder dies with it."""
        # one token per folder: rendering for another machine must not silence the FreeRADIUS that runs here
        name = f"{TOKEN_NAME}-{sha256(str(folder).encode()).hexdigest()[:8]}"
        self._token = await self._nas.new_token(name, actor)
        self._port = port or self._port or 1812
        return self._write(folder, self._token, self._port)

    async def refresh(self, folder: Path) -> None:
        """Write `folder` again with what changed since render(), if FreeRADIUS takes it; else leave it as it is."""
        with tempfile.TemporaryDirectory(prefix="raddb-") as name:
            self._write(Path(name), self._token, self._port)
            await check_folder(Path(name))
        self._write(folder, self._token, self._port)

    async def check(self, folder: Path | None, actor: Actor) -> dict[str, Any]:
        """FreeRADIUS' own check of a rendered folder, or of a throw-away rendering; raises what it refuses."""
        if folder is not None:
            if not (folder / "radiusd.conf").exists():
                raise NotFound(f"{folder} holds no rendered configuration")
            return await check_folder(folder)
        await self._nas.reload()
        with tempfile.TemporaryDirectory(prefix="raddb-") as name:
            self._write(Path(name), "x" * 43, self._port or 1812)
            return await check_folder(Path(name))

    def _write(self, folder: Path, token: str, port: int) -> dict[str, Any]:
        files = self._files
        values = RaddbValues(
            directory=str(folder),
            address=self._settings.host,
            port=port,
            decision_url=files.decision_url(),
            decision_ca_pem=files.decision_ca_pem,
            token=token,
            certificate_chain_pem=files.certificate_chain_pem,
            key_pem=files.key_pem,
            client_ca_pem=files.agents_ca_pem,
            owner_id_oid=self._owner_id_oid,
            nas=[NasEntry(name, address, secret) for name, address, secret in self._nas.clients()],
            tls_min=self._settings.tls_min,
            tls_max=self._settings.tls_max,
            fragment_bytes=self._settings.fragment_bytes,
            session_seconds=max(1, int(self._settings.session_seconds)),
            max_sessions=self._settings.max_sessions,
        )
        write_raddb(render(values), folder)
        return {"folder": str(folder), "listen": f"{self._settings.host}:{port}", "clients": len(values.nas)}


async def check_folder(folder: Path) -> dict[str, Any]:
    """`freeradius -C` on a folder; raises FreeRadiusMissing or FreeRadiusRefused."""
    process = await asyncio.create_subprocess_exec(
        find_program(),
        "-C",
        "-X",
        "-d",
        str(folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), CHECK_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise FreeRadiusRefused("the configuration check did not end") from None
    if process.returncode != 0:
        raise FreeRadiusRefused(_last_word(output))
    return {"ok": True, "folder": str(folder)}


def _last_word(output: bytes) -> str:
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line or "ailed" in line]
    return (errors or lines or ["no output"])[-1][:300]


async def supervise(
    folder: Path,
    *,
    on_ready: Callable[[], None],
    restart: asyncio.Event | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Check and run FreeRADIUS on a folder until cancelled; when it dies it is started again, ever more slowly.

    Setting `restart` starts it anew at once: it reads its clients only when it starts. `on_line` hears what it logs.
    """
    await check_folder(folder)
    program, pause, wanted = find_program(), 1.0, restart or asyncio.Event()
    loop = asyncio.get_running_loop()
    while True:
        wanted.clear()
        process = await asyncio.create_subprocess_exec(
            *_ends_with_us(), program, "-f", "-l", "stdout", "-d", str(folder), stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        begun = loop.time()
        following = asyncio.create_task(_follow(process, on_ready, on_line))
        asked = asyncio.create_task(wanted.wait())
        try:
            await asyncio.wait((following, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            await _stop(process)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        if wanted.is_set():
            _log.info("event=freeradius-restart why=configuration-changed")
            continue
        pause = 1.0 if loop.time() - begun > 60 else min(pause * 2, MAX_PAUSE_SECONDS)
        _log.error("FreeRADIUS ended with status %s; it is started again in %.0f s", process.returncode, pause)
        await asyncio.sleep(pause)


def _ends_with_us() -> list[str]:
    """Words before a command that make the kernel end it when we die, also by kill -9: it would hold the port."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


async def _follow(
    process: asyncio.subprocess.Process, on_ready: Callable[[], None], on_line: Callable[[str], None]
) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        if _READY in line:
            on_ready()
        text = line.decode("utf-8", "replace").rstrip()[:500]
        _log.info("freeradius: %s", text)
        on_line(text)
    await process.wait()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
