"""Foreign programs of the RADIUS tests: skip rules, FreeRADIUS as a child process, a decision service over HTTPS."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from est import transfer
from lab.eapol import find_eapol_test
from radius.hook import read_hook, write_answer
from radius.render import NasEntry, RaddbValues, render, write_raddb
from tests.radius.world import OWNER_ID_OID, SECRET, Desk, Issued, campus

TOKEN = "token-of-the-test-campus-0123456789"
LIBRARIES = Path("/usr/lib/freeradius")


def _must_run() -> bool:
    return os.environ.get("CI") == "true" and os.geteuid() == 0


def need_eapol_test() -> None:
    if find_eapol_test() is None and not _must_run():
        pytest.skip("eapol_test is not installed (Debian: apt install eapoltest)")


def need_freeradius() -> str:
    program = shutil.which("freeradius") or shutil.which("radiusd") or shutil.which("freeradius", path="/usr/sbin")
    if program is None or not (LIBRARIES / "rlm_rest.so").exists():
        if _must_run():
            pytest.fail("FreeRADIUS with rlm_rest must be installed here")
        pytest.skip("FreeRADIUS is not installed (Debian: apt install freeradius freeradius-rest)")
    return program


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class DecisionService:
    """The decision port of a test: answers from a Desk, or with whatever `instead` makes."""

    desk: Desk
    port: int = 0
    calls: int = 0
    documents: list[object] = field(default_factory=list)
    instead: Callable[[], web.Response] | None = None
    delay_seconds: float = 0.0

    async def decide(self, request: web.Request) -> web.Response:
        self.calls += 1
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        document = transfer.read_json(await request.read())
        self.documents.append(document)
        await asyncio.sleep(self.delay_seconds)
        if self.instead is not None:
            return self.instead()
        answer = write_answer(self.desk.authorize(read_hook(document, owner_id_oid=OWNER_ID_OID)))
        return web.Response(body=answer, content_type="application/json")


@asynccontextmanager
async def decision_service(desk: Desk, folder: Path, server: Issued | None = None) -> AsyncIterator[DecisionService]:
    server = server or campus().decision_port()
    (folder / "decision.pem").write_bytes(server.pem)
    (folder / "decision.key").write_bytes(server.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "decision.pem", folder / "decision.key")
    service = DecisionService(desk)
    app = web.Application()
    app.router.add_post("/v1/decide", service.decide)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    service.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield service
    finally:
        await runner.cleanup()


def raddb_values(directory: Path, decision_port: int, port: int, **changes: object) -> RaddbValues:
    server = campus().server()
    given: dict[str, object] = {
        "directory": str(directory),
        "address": "127.0.0.1",
        "port": port,
        "decision_url": f"https://127.0.0.1:{decision_port}/v1/decide",
        "decision_ca_pem": campus().cas["infrastructure"].pem.decode(),
        "token": TOKEN,
        "certificate_chain_pem": server.pem.decode(),
        "key_pem": server.key_pem.decode(),
        "client_ca_pem": campus().cas["agents"].pem.decode(),
        "owner_id_oid": OWNER_ID_OID,
        "nas": [NasEntry("switch-1", "127.0.0.1", SECRET.decode())],
        "reject_delay_seconds": 0,
        "library_directory": str(LIBRARIES),
    }
    return RaddbValues(**(given | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def freeradius(
    values: RaddbValues, change: Callable[[dict[str, str]], dict[str, str]] = dict
) -> AsyncIterator[Path]:
    """FreeRADIUS on a rendered folder, changed where a test wants that, until the block ends; yields its debug log."""
    directory = Path(values.directory)
    write_raddb(change(render(values)), directory)
    log = directory / "run" / "debug.log"
    process = await asyncio.create_subprocess_exec(
        need_freeradius(), "-fxx", "-d", str(directory), "-l", str(log), stderr=asyncio.subprocess.STDOUT,
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(15):
            while not (log.exists() and "Ready to process requests" in log.read_text(errors="replace")):
                if process.returncode is not None:
                    pytest.fail(f"FreeRADIUS ended: {log.read_text(errors='replace')[-3000:] if log.exists() else ''}")
                await asyncio.sleep(0.05)
        yield log
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
