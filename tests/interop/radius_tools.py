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
from typing import Any

import pytest
from aiohttp import web

from appliance.web.tls import demand_client_certificate
from est import transfer
from lab.eapol import find_eapol_test
from radius.hook import read_hook, write_answer
from radius.render import NasEntry, RaddbValues, render, write_raddb
from tests.radius.world import OWNER_ID_OID, SECRET, SERVER_NAME, Desk, Issued, campus

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


def free_tcp_port() -> int:
    with socket.socket() as probe:
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
    failures: list[dict[str, Any]] = field(default_factory=list)
    accounting: list[dict[str, Any]] = field(default_factory=list)
    accounting_status: int = 204
    knows: Callable[[str], bool] = TOKEN.__eq__

    async def decide(self, request: web.Request) -> web.Response:
        self.calls += 1
        if not self.knows(request.headers.get("Authorization", "").removeprefix("Bearer ")):
            return web.Response(status=401)
        document = transfer.read_json(await request.read())
        self.documents.append(document)
        # decided at once and told late: the appliance has the decision in its log, whoever waits for it or not
        answer = self._answer(document) if self.instead is None else self.instead()
        await asyncio.sleep(self.delay_seconds)
        return answer

    def _answer(self, document: Any) -> web.Response:
        if document.get("Service-Type", {}).get("value") in (["Call-Check"], [10]):
            answer = {"control:Auth-Type": {"op": ":=", "value": ["Accept"], "do_xlat": False}}
            vlan = {"op": ":=", "value": ["77"], "do_xlat": False}
            return web.json_response(answer | {"reply:Tunnel-Private-Group-Id": vlan})
        answer = write_answer(self.desk.authorize(read_hook(document, owner_id_oid=OWNER_ID_OID)))
        return web.Response(body=answer, content_type="application/json")

    async def take_failure(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        await asyncio.sleep(self.delay_seconds)
        self.failures.append(transfer.read_json(await request.read()))
        return web.Response(status=204)

    async def take_accounting(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        self.accounting.append(transfer.read_json(await request.read()))
        return web.Response(status=self.accounting_status)


@asynccontextmanager
async def decision_service(
    desk: Desk, folder: Path, server: Issued | None = None, *, port: int = 0, clients: Issued | None = None
) -> AsyncIterator[DecisionService]:
    """`clients`: the CA whose certificates a caller must show."""
    server = server or campus().decision_port()
    (folder / "decision.pem").write_bytes(server.pem)
    (folder / "decision.key").write_bytes(server.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "decision.pem", folder / "decision.key")
    if clients is not None:
        demand_client_certificate(context, [clients.certificate])
    service = DecisionService(desk)
    app = web.Application()
    app.router.add_post("/v1/decide", service.decide)
    app.router.add_post("/radius/failure", service.take_failure)
    app.router.add_post("/radius/accounting", service.take_accounting)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
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
        async with asyncio.timeout(60):
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


class RadSecWire:
    """RADIUS over TLS (RFC 6614) as a NAS: packets of lab.supplicant and of the tests go through one connection."""

    SECRET = b"radsec"

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, port: int, own: Issued | None, folder: Path, version: str = "1.3") -> RadSecWire:
        if own is None:
            return await cls.open_files(port, None, None, campus().root_pem.decode(), SERVER_NAME, version)
        (folder / "nas.pem").write_bytes(own.pem)
        (folder / "nas.key").write_bytes(own.key_pem)
        root = campus().root_pem.decode()
        return await cls.open_files(port, folder / "nas.pem", folder / "nas.key", root, SERVER_NAME, version)

    @classmethod
    async def open_files(
        cls,
        port: int,
        certificate: Path | None,
        key: Path | None,
        root: str,
        name: str,
        version: str,
        host: str = "127.0.0.1",
    ) -> RadSecWire:
        """Raises OSError when the server does not want us."""
        context = ssl.create_default_context(cadata=root)
        context.minimum_version = context.maximum_version = (
            ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3
        )
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return cls(*await asyncio.open_connection(host, port, ssl=context, server_hostname=name))

    def send(self, octets: bytes) -> None:
        self._writer.write(octets)

    async def ask(self, octets: bytes, seconds: float = 3.0) -> bytes | None:
        """The answer to a packet; None when the server closes the connection or says nothing."""
        self.send(octets)
        answering = asyncio.create_task(self.answers.get())
        await asyncio.wait((answering, self._reading), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        if answering.done():
            return answering.result()
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        return None

    async def close(self) -> None:
        self._writer.transport.abort()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(4)
                self.answers.put_nowait(head + await self._reader.readexactly(int.from_bytes(head[2:]) - 4))
        except (asyncio.IncompleteReadError, OSError, ssl.SSLError):
            return
