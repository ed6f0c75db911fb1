"""The proxy as one running thing: ready, serving, stopped, killed, started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.binding import composite, jws
from appliance.clock import SystemClock
from appliance.proxy.errors import BootstrapNotConfigured, ProxyStateLocked
from appliance.proxy.run import run_proxy
from appliance.proxy.timing import Timing
from appliance.settings import ProxySettings
from est.exchange import Call, Reply
from tests.appliance.proxy.campus import CLOSE, PROXY_ID, Campus, World, make_world
from tests.appliance.proxy.test_agent_api import enroll_body
from tests.support import key

QUICK = Timing(connect=30, voucher=30, call=30, spacing=0.2, round=0.3, first_pause=0.1, retry=0.1)
JSON = "application/json"
TRUST = b'{"root": "PEM", "radius_server_name": "radius.campus.example", "trust_domain": "campus.example"}'


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


class Running:
    """A proxy in this process, with its events."""

    def __init__(self, settings: ProxySettings, folder: Path) -> None:
        self.events: list[dict[str, object]] = []
        self._told = asyncio.Event()
        self.task = asyncio.create_task(run_proxy(settings, folder, SystemClock(), self._tell, timing=QUICK))

    def _tell(self, event: dict[str, object]) -> None:
        self.events.append(event)
        self._told.set()

    async def until(self, name: str) -> dict[str, object]:
        async with asyncio.timeout(60):
            while not (found := [one for one in self.events if one["event"] == name]):
                if self.task.done():
                    self.task.result()
                    raise AssertionError(f"ended before {name}: {self.events}")
                self._told.clear()
                waiting = asyncio.create_task(self._told.wait())
                await asyncio.wait((self.task, waiting), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        return found[-1]


@asynccontextmanager
async def running(settings: ProxySettings, folder: Path) -> AsyncIterator[Running]:
    proxy = Running(settings, folder)
    try:
        yield proxy
    finally:
        proxy.task.cancel()
        await asyncio.wait((proxy.task,))


async def ask(socket: object, call: Call) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    head = f"{call.method} {call.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(call.body)}\r\n"
    if call.media_type:
        head += f"Content-Type: {call.media_type}\r\n"
    writer.write(head.encode() + b"\r\n" + call.body)
    answer = await reader.read()
    writer.close()
    top, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def nonce_call() -> Call:
    body = json.dumps({"jkt": jws.jkt(key("agent").public_key()), "purpose": "issue"}).encode()
    return Call("POST", "/v1/nonce", JSON, body=body)


def with_campus(world: World, scenario: Callable[[Campus, ProxySettings], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            campus.routes["/v1/agents/nonce"] = lambda *_: Reply(200, JSON, body=b'{"nonce": "n"}')
            campus.routes["/v1/agents/enroll"] = lambda *_: Reply(201, JSON, body=b'{"certificate": "..."}')
            campus.routes["/v1/trust"] = lambda *_: Reply(200, JSON, body=TRUST)
            await scenario(campus, world.with_settings(registrar_url=campus.url, allow_root_agents=True))

    asyncio.run(run())


@pytest.mark.req("A-12", "A-14", "A-11")
def test_from_the_box_to_an_agents_answer(world: World) -> None:
    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        async with running(settings, world.folder / "state") as proxy:
            ready = await proxy.until("ready")
            assert ready == {
                "event": "ready", "pid": os.getpid(), "proxy": PROXY_ID, "method": "brski",
                "socket": str(world.folder / "state" / "agent.sock"), "registrar": f"127.0.0.1:{campus.port}",
            }  # fmt: skip
            socket = Path(str(ready["socket"]))
            assert stat.S_IMODE(socket.stat().st_mode) == 0o660
            await proxy.until("supplicant-told")
            campus.seen.clear()
            assert (await ask(socket, nonce_call()))[0] == 200
            body, _ = enroll_body()
            status, _, answer = await ask(socket, Call("POST", "/v1/enroll", composite.MEDIA_TYPE, body=body))
            assert (status, answer) == (201, b'{"certificate": "..."}')
            assert (await ask(socket, Call("GET", "/v1/trust")))[2] == TRUST
            asked = [
                "/v1/trust",
                "/v1/agents/nonce",
                "/v1/agents/enroll",
                "/v1/trust",
            ]  # first: whether there are workers
            assert [one.path for one in campus.seen] == asked
            assert {one.client for one in campus.seen} == {campus.issued[0]}
            assert composite.read(campus.seen[2].call.body).evidence is not None
        assert not socket.exists()

    with_campus(world, scenario)


@pytest.mark.req("A-12")
@pytest.mark.skipif(os.getuid() != 0, reason="only root is root")
def test_root_is_refused_at_the_socket(world: World) -> None:
    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        settings = settings.model_copy(update={"allow_root_agents": False})
        async with running(settings, world.folder / "state") as proxy:
            ready = await proxy.until("ready")
            campus.seen.clear()
            status, headers, body = await ask(ready["socket"], nonce_call())
            assert status == 403
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["reason"] == "caller-not-allowed"
            assert campus.seen == []

    with_campus(world, scenario)


@pytest.mark.req("B-113", "A-83")
def test_a_configured_proxy_never_does_brski_again(world: World) -> None:
    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        async with running(settings, world.folder / "state") as proxy:
            await proxy.until("ready")
        campus.seen.clear()
        # neither with its IDevID, nor with the other method, nor without the server
        for changes in ({}, {"idevid_key": None}, {"method": "est"}):
            async with running(settings.model_copy(update=changes), world.folder / "state") as proxy:
                ready = await proxy.until("ready")
                assert ready["method"] == "brski"
                assert [one["event"] for one in proxy.events] == ["ready"]
        assert campus.seen == []
        await campus.__aexit__()
        async with running(settings, world.folder / "state") as proxy:
            ready = await proxy.until("ready")
            status, headers, body = await ask(ready["socket"], nonce_call())
            assert (status, headers["retry-after"]) == (503, "5")
            assert json.loads(body)["reason"] == "identity-server-away"
            assert (await proxy.until("server-away"))["because"] == "peer-unreachable"

    with_campus(world, scenario)


@pytest.mark.req("B-356", "E-222")
def test_the_good_news_is_told_after_a_restart_if_it_could_not_be_told_before(world: World) -> None:
    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        campus.instead["/.well-known/brski/enrollstatus"] = lambda *_: CLOSE
        async with running(settings, world.folder / "state") as proxy:
            await proxy.until("ready")
            while len(campus.of("enrollstatus")) < 3:
                await asyncio.sleep(0.02)
        del campus.instead["/.well-known/brski/enrollstatus"]
        campus.seen.clear()
        async with running(settings, world.folder / "state") as proxy:
            await proxy.until("ready")
            while not json.loads((world.folder / "state" / "proxy.json").read_bytes())["enroll_status_sent"]:
                await asyncio.sleep(0.02)
        assert set(campus.paths()) <= {"enrollstatus", "trust"}
        (told,) = campus.of("enrollstatus")
        assert told.client == campus.issued[0]

    with_campus(world, scenario)


def test_a_refusal_ends_the_run_with_its_own_class(world: World, tmp_path: Path) -> None:
    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        with pytest.raises(BootstrapNotConfigured):
            await run_proxy(
                settings.model_copy(update={"idevid_key": None}), tmp_path / "state", SystemClock(), lambda _: None
            )
        async with running(settings, tmp_path / "state") as proxy:
            await proxy.until("ready")
            with pytest.raises(ProxyStateLocked):
                await run_proxy(settings, tmp_path / "state", SystemClock(), lambda _: None)

    with_campus(world, scenario)


# -- as a process --------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from appliance.clock import SystemClock
from appliance.proxy.run import run_proxy
from appliance.proxy.timing import Timing
from appliance.settings import ProxySettings
settings = ProxySettings(**json.loads(sys.argv[2]))
timing = Timing(connect=2, call=3, spacing=0.2, round=0.3, first_pause=0.1, retry=0.1)
def tell(event):
    print(json.dumps(event), flush=True)
asyncio.run(run_proxy(settings, Path(sys.argv[1]), SystemClock(), tell, timing=timing))
"""


class Process:
    """The proxy as a process of its own."""

    async def start(self, settings: ProxySettings, folder: Path) -> Process:
        given = settings.model_dump_json(exclude_defaults=True)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, str(folder), given, stdout=asyncio.subprocess.PIPE
        )
        return self

    async def event(self) -> dict[str, object] | None:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            line = await self.process.stdout.readline()
        return json.loads(line) if line else None

    async def until(self, name: str) -> dict[str, object]:
        while (event := await self.event()) is not None:
            if name in (event["event"], event.get("step")):
                return event
        raise AssertionError(f"ended before {name}")

    async def end(self, number: int) -> int:
        if self.process.returncode is None:
            os.kill(self.process.pid, number)
        return await self.process.wait()


@pytest.mark.slow
def test_sigterm_ends_it_cleanly_while_it_waits_and_while_it_serves(world: World) -> None:
    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        folder = world.folder / "state"
        campus.instead["/.well-known/brski/requestvoucher"] = lambda *_: Reply(202, headers={"retry-after": "60"})
        process = await Process().start(settings.model_copy(update={"give_up_seconds": 0}), folder)
        await process.until("voucher-pending")
        assert await process.end(signal.SIGTERM) == 0
        assert json.loads((folder / "bootstrap.json").read_bytes())["outcome"] == "interrupted"
        del campus.instead["/.well-known/brski/requestvoucher"]
        process = await Process().start(settings, folder)
        ready = await process.until("ready")
        assert ready["pid"] == process.process.pid
        assert await process.end(signal.SIGTERM) == 0
        assert not (folder / "agent.sock").exists()

    with_campus(world, scenario)


@pytest.mark.slow
@pytest.mark.req("B-113")
def test_kill_9_after_every_step_and_the_next_start_gets_there(world: World) -> None:
    """Whatever the moment: the next start ends ready, with one identity, and what was stored is not asked for again."""

    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        steps = ["voucher-requested", "voucher-verified", "anchors-fetched", "ldevid-received", "ldevid-stored",
                 "enroll-status-sent"]  # fmt: skip
        for number, step in enumerate(steps):
            folder = world.folder / f"state-{number}"
            process = await Process().start(settings, folder)
            await process.until(step)
            await process.end(signal.SIGKILL)
            configured = (folder / "ldevid.pem").exists()
            campus.seen.clear()
            process = await Process().start(settings, folder)
            ready = await process.until("ready")
            assert ready["proxy"] == PROXY_ID
            assert ("requestvoucher" in campus.paths()) is not configured
            # the socket left behind by the killed process does not stop the new one
            assert (await ask(ready["socket"], Call("GET", "/v1/trust")))[0] == 200
            assert await process.end(signal.SIGKILL) == -signal.SIGKILL

    with_campus(world, scenario)


def test_without_the_main_thread_there_are_no_signal_handlers_and_it_runs_all_the_same(world: World) -> None:
    outcome: list[object] = []

    def target() -> None:
        async def scenario(campus: Campus, settings: ProxySettings) -> None:
            async with running(settings, world.folder / "state") as proxy:
                outcome.append((await proxy.until("ready"))["proxy"])

        with_campus(world, scenario)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(20)
    assert outcome == [PROXY_ID]


def test_no_key_or_secret_is_logged_or_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        async with running(settings, world.folder / "state") as proxy:
            ready = await proxy.until("ready")
            await ask(ready["socket"], nonce_call())
            told = json.dumps(proxy.events)
        for text in (caplog.text, told):
            assert "PRIVATE KEY" not in text
            assert "BEGIN CERT" not in text
        for name in ("ldevid.key.pem", "proxy.json", "anchors.pem", "bootstrap.json", "callers.json"):
            assert stat.S_IMODE((world.folder / "state" / name).stat().st_mode) == 0o600

    with_campus(world, scenario)
