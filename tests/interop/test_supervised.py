"""FreeRADIUS as our child: its own user, restarts, the way back to what served last, words instead of riddles."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from appliance.access.freeradius import FreeRadius, RadiusFiles
from appliance.access.nas import NasService
from appliance.access.raddb_folder import (
    FreeRadiusRefused,
    RunAs,
    check_reachable,
    in_words,
    knows,
    owner_of,
    redacted,
    run_as,
    secrets_in,
    token_in,
)
from appliance.access.running import run_here
from appliance.access.service import AccessService
from appliance.access.supervisor import Supervisor, check_folder
from appliance.errors import TokenRequired
from appliance.settings import AccessSettings, RadiusSettings
from lab.supplicant import Outcome, Wire, authenticate
from lab.supplicant import _Datagrams as Datagrams
from radius.render import NasEntry, render, write_raddb
from tests.appliance.access.test_access_service import ADMIN, Box
from tests.interop.radius_tools import (
    LIBRARIES,
    TOKEN,
    DecisionService,
    decision_service,
    free_udp_port,
    need_freeradius,
    raddb_values,
)
from tests.radius.test_packets import GOOD
from tests.radius.world import OWNER_ID_OID, SECRET, Desk, Issued, campus, login
from tests.stores import open_store
from tests.support import FixedClock

pytestmark = pytest.mark.interop
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user to become")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users may pass through: pytest's own are shut, and FreeRADIUS is another user."""
    with tempfile.TemporaryDirectory(prefix="raddb-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@functools.cache
def server() -> Issued:
    return campus().server()


@functools.cache
def the_agent() -> Issued:
    return campus().agent()


class Raddb:
    """A folder that FreeRADIUS is run on, any number of times, and the agent that logs in there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = place / "raddb"
        self.port = free_udp_port()
        self.who = run_as("freerad")

    def write(self, decision_port: int = 1, **changes: Any) -> dict[str, str]:
        """Render it anew; answers the files."""
        same = {"certificate_chain_pem": server().pem.decode(), "key_pem": server().key_pem.decode()}
        files = render(raddb_values(self.folder, decision_port, **({"port": self.port} | same | changes)))
        write_raddb(files, self.folder, owner=owner_of(self.who))
        return files

    @asynccontextmanager
    async def decided(self) -> AsyncIterator[DecisionService]:
        """Who decides lets the agent in."""
        desk = Desk()
        desk.admit(the_agent())
        async with decision_service(desk, self.place) as service:
            yield service

    def supervisor(self, on_ready: Callable[[], None] = lambda: None) -> Supervisor:
        return Supervisor(self.folder, who=self.who, on_ready=on_ready, ready_seconds=5.0)

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[tuple[Supervisor, Callable[[], Awaitable[None]]]]:
        """A supervisor that serves, and how to wait until it serves again."""
        ready = asyncio.Event()
        supervisor = self.supervisor(ready.set)
        task = asyncio.create_task(supervisor.run())

        async def served() -> None:
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait((waiting, task), timeout=15, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if task.done():
                task.result()
            assert ready.is_set()
            ready.clear()

        try:
            await served()
            yield supervisor, served
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def serving(
        self, **changes: Any
    ) -> AsyncIterator[tuple[DecisionService, Supervisor, Callable[[], Awaitable[None]]]]:
        """All of it: who decides, and a supervisor on what was rendered for that."""
        async with self.decided() as service:
            self.write(service.port, **changes)
            async with self.supervised() as (supervisor, served):
                yield service, supervisor, served

    async def log_in(self, port: int = 0, *, wire: Wire | None = None, **changes: Any) -> Outcome:
        """The agent's login, at the port that all began with unless it says another."""
        given: dict[str, Any] = login(the_agent(), **changes)
        return await authenticate("127.0.0.1", port or self.port, SECRET, **given, wire=wire)


@pytest.fixture
def raddb(place: Path) -> Raddb:
    need_freeradius()
    return Raddb(place)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@AS_ROOT
def test_it_runs_as_its_own_user_and_its_files_are_for_that_users_group_only(raddb: Raddb) -> None:
    folder, who = raddb.folder, raddb.who
    assert who is not None

    async def act() -> None:
        async with raddb.serving() as (_, supervisor, _):
            seen = status_of(supervisor.pid)
            assert set(seen["Uid"].split()) == {str(who.uid)} and set(seen["Gid"].split()) == {str(who.gid)}
            assert seen["Groups"] == "" and seen["NoNewPrivs"] == "1" and int(seen["CapEff"], 16) == 0
            assert (await raddb.log_in()).vlan == "20"
            for path in folder.rglob("*"):
                found = path.stat()
                assert not stat.S_IMODE(found.st_mode) & 0o007, path
                if "run" not in path.relative_to(folder).parts:
                    assert (found.st_uid, found.st_gid) == (0, who.gid), path
                    assert not stat.S_IMODE(found.st_mode) & 0o020, path

    asyncio.run(act())


def test_a_dead_one_is_started_again_and_a_reload_takes_the_new_folder(raddb: Raddb) -> None:
    async def act() -> None:
        async with raddb.serving() as (service, supervisor, served):
            os.kill(supervisor.pid, signal.SIGKILL)
            await served()
            assert (await raddb.log_in()).vlan == "20"
            other = free_udp_port()
            raddb.write(service.port, port=other)
            supervisor.reload()
            await served()
            assert (await raddb.log_in(other)).vlan == "20"
            assert supervisor.rollbacks == 0

    asyncio.run(act())


def test_what_does_not_come_up_is_replaced_by_what_served_last(raddb: Raddb) -> None:
    folder = raddb.folder

    async def act() -> None:
        async with raddb.decided() as service:
            good = raddb.write(service.port)
            async with raddb.supervised() as (supervisor, served):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
                    taken.bind(("127.0.0.1", 0))
                    raddb.write(service.port, port=taken.getsockname()[1])  # the check cannot see that
                    await check_folder(folder, raddb.who)
                    supervisor.reload()
                    await served()
                assert supervisor.rollbacks == 1
                assert (await raddb.log_in()).vlan == "20"
            # also over a restart of ours, and when the folder was broken by hand meanwhile
            (folder / "clients.conf").write_text("client {")
            async with raddb.supervised() as (supervisor, _):
                assert supervisor.rollbacks == 1
                assert (folder / "clients.conf").read_text() == good["clients.conf"]

    asyncio.run(act())


@asynccontextmanager
async def rendering(raddb: Raddb, key_pem: list[bytes]) -> AsyncIterator[tuple[FreeRadius, AccessService]]:
    """What the appliance renders, with the last of these keys, and who then checks the tokens."""
    store = open_store(f"sqlite:///{raddb.place / 'a.db'}", FixedClock())
    access, nas = AccessService(AccessSettings(), store, FixedClock()), NasService(store, Box(), engine="none")
    await access.start()
    await nas.add("switch-1", "127.0.0.1", SECRET.decode(), ADMIN)
    try:
        async with raddb.decided() as service:

            def knows(token: str) -> bool:
                try:
                    access.served_with(access.check_token(token), token)
                except TokenRequired:
                    return False
                return True

            def files() -> RadiusFiles:
                cas = {name: campus().cas[name].pem.decode() for name in ("agents", "infrastructure")}
                return RadiusFiles(
                    certificate_chain_pem=server().pem.decode(), key_pem=key_pem[-1].decode(),
                    agents_cas_pem=cas["agents"], devices_cas_pem="", infrastructure_cas_pem=cas["infrastructure"],
                    decision_ca_pem=cas["infrastructure"], origin="spiffe://campus.example",
                    decision_base=lambda: f"https://127.0.0.1:{service.port}",
                )  # fmt: skip

            service.knows = knows
            settings = RadiusSettings(host="127.0.0.1", port=raddb.port, accounting_port=free_udp_port())
            yield FreeRadius(settings, nas, files, lambda: None, owner_id_oid=OWNER_ID_OID), access
    finally:
        await access.stop()
        store.close()


@pytest.mark.parametrize("first", ["a look", "a login"])
@pytest.mark.parametrize("fault", ["refused by the check", "does not come up"])
def test_what_it_goes_back_to_has_a_token_that_counts_until_the_newer_one_serves(
    raddb: Raddb, fault: str, first: str
) -> None:
    folder, keys = raddb.folder, [server().key_pem]

    async def act() -> None:
        async with rendering(raddb, keys) as (freeradius, access):
            await freeradius.render(folder, ADMIN)
            good = token_in(folder)
            async with raddb.supervised():
                assert (await raddb.log_in()).vlan == "20"

            # started anew, as `appliance radius run` does, and again for good measure
            refused = []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
                taken.bind(("127.0.0.1", 0))
                if fault == "refused by the check":
                    keys.append(campus().agent().key_pem)
                for _ in range(2):
                    elsewhere = taken.getsockname()[1] if fault == "does not come up" else raddb.port
                    await freeradius.render(folder, ADMIN, port=elsewhere)
                    refused.append(token_in(folder))
                    async with raddb.supervised() as (supervisor, _):
                        assert (supervisor.rollbacks, token_in(folder)) == (1, good)
                        assert (await raddb.log_in()).vlan == "20"
                        assert not await freeradius.refresh(folder, ADMIN)
                        assert (await raddb.log_in()).vlan == "20"
            assert len({good, *refused}) == 3
            with pytest.raises(TokenRequired):
                access.check_token(refused[0])

            # the fault is mended
            keys.append(server().key_pem)
            await freeradius.render(folder, ADMIN, port=raddb.port)
            newest = token_in(folder)
            async with raddb.supervised() as (supervisor, _):
                assert supervisor.rollbacks == 0 and access.check_token(good) == access.check_token(newest)
                if first == "a look":
                    assert not await freeradius.refresh(folder, ADMIN)
                    with pytest.raises(TokenRequired):
                        access.check_token(good)
                assert (await raddb.log_in()).vlan == "20"
                await until_refused(access, good)
                await access.reload()
                await until_refused(access, good)
                assert (await raddb.log_in()).vlan == "20"

            # what ended before never counts again, and going back leads to what served last
            keys.append(campus().agent().key_pem)
            await freeradius.render(folder, ADMIN)
            async with raddb.supervised() as (supervisor, _):
                assert (supervisor.rollbacks, token_in(folder)) == (1, newest)
                assert (await raddb.log_in()).vlan == "20"
            for old in (good, *refused):
                with pytest.raises(TokenRequired):
                    access.check_token(old)

    asyncio.run(act())


def test_a_mended_rendering_comes_up_beside_the_one_that_was_gone_back_to(raddb: Raddb) -> None:
    folder, keys = raddb.folder, [server().key_pem]

    async def act() -> None:
        async with rendering(raddb, keys) as (freeradius, access):
            await freeradius.render(folder, ADMIN)
            good = token_in(folder)
            async with raddb.supervised():
                pass
            keys.append(campus().agent().key_pem)
            await freeradius.render(folder, ADMIN)
            newer = token_in(folder)
            async with raddb.supervised() as (supervisor, served):
                assert token_in(folder) == good
                keys.append(server().key_pem)
                assert await freeradius.refresh(folder, ADMIN)  # as the next look of `appliance radius run` does
                assert token_in(folder) == newer and access.check_token(good)
                supervisor.reload()
                await served()
                await freeradius.refresh(folder, ADMIN)
                with pytest.raises(TokenRequired):
                    access.check_token(good)
                assert (await raddb.log_in()).vlan == "20"

    asyncio.run(act())


async def until_refused(access: AccessService, token: str) -> None:
    for _ in range(100):
        try:
            access.check_token(token)
        except TokenRequired:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the older token still counts")


class Held:
    """A wire whose third packet waits until the test lets it go."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.answers = wire.answers
        self.waits, self.go_on = asyncio.Event(), asyncio.Event()
        self._sent = 0
        self._later: asyncio.Task[None] | None = None

    def send(self, octets: bytes) -> None:
        self._sent += 1
        if self._sent == 3:
            self.waits.set()
            self._later = asyncio.create_task(self._send_later(octets))
        else:
            self._wire.send(octets)

    async def _send_later(self, octets: bytes) -> None:
        await self.go_on.wait()
        self._wire.send(octets)


def test_what_virtual_servers_do_changes_by_hup_and_logins_under_way_go_on(raddb: Raddb) -> None:
    async def act() -> None:
        async with raddb.serving(fail_mode="guest", guest_vlan=99) as (service, supervisor, served):

            def render_anew(guest_vlan: int, **more: Any) -> None:
                raddb.write(service.port, fail_mode="guest", guest_vlan=guest_vlan, **more)
                supervisor.reload()

            pid = supervisor.pid
            held = Held(await Datagrams.open("127.0.0.1", raddb.port))
            under_way = asyncio.create_task(raddb.log_in(wire=held))
            await held.waits.wait()
            await asyncio.sleep(1.1)  # FreeRADIUS knows a changed file by the second
            render_anew(98)
            await served()
            assert (supervisor.pid, supervisor.reloads) == (pid, 1)
            held.go_on.set()
            assert (await under_way).vlan == "20"
            service.instead = lambda: web.Response(status=500)
            assert (await raddb.log_in()).vlan == "98"

            # FreeRADIUS ignores a HUP that follows another too soon: ours waits
            render_anew(97)
            await served()
            assert (supervisor.pid, supervisor.reloads) == (pid, 2)
            assert (await raddb.log_in()).vlan == "97"

            # what needs a restart does not wait for it
            render_anew(96)
            await asyncio.sleep(0.3)
            begun = time.monotonic()
            render_anew(96, session_seconds=20)
            await served()
            assert time.monotonic() - begun < 4 and supervisor.pid != pid and supervisor.reloads == 2
            assert (await raddb.log_in()).vlan == "96"

    asyncio.run(act())


def test_packets_that_it_drops_are_told_to_the_appliance_where_it_runs_in_a_process_of_its_own(raddb: Raddb) -> None:
    async def act() -> None:
        ready, wrong = asyncio.Event(), b"another secret of thirty characters"
        async with raddb.decided() as service:
            url = f"https://127.0.0.1:{service.port}/radius/failure"
            raddb.write(service.port, failure_url=url)
            running = asyncio.create_task(
                run_here(raddb.folder, raddb.who, on_ready=ready.set, refresh=lambda: False, every=60.0)
            )
            try:
                async with asyncio.timeout(20):
                    await ready.wait()
                given: dict[str, Any] = login(the_agent())
                assert (await authenticate("127.0.0.1", raddb.port, wrong, **given, seconds=1.0)).code == "timeout"
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                    stranger.bind(("127.0.0.2", 0))
                    stranger.sendto(GOOD, ("127.0.0.1", raddb.port))
                wanted = {("radius-secret-wrong", "switch-1", "127.0.0.1"), ("nas-unknown", "", "127.0.0.2")}
                async with asyncio.timeout(20):
                    while told(service.failures) != wanted:
                        await asyncio.sleep(0.05)
                assert (await raddb.log_in()).code == "accept"
                assert not running.done()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(act())


def told(failures: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(one["reason"], one["nas"], one["address"]) for body in failures for one in body.get("dropped", ())}


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_login_that_a_restart_cuts_ends_authentically_and_succeeds_when_tried_again(
    raddb: Raddb, version: str
) -> None:
    async def act() -> None:
        async with raddb.serving() as (service, supervisor, served):
            held = Held(await Datagrams.open("127.0.0.1", raddb.port))
            under_way = asyncio.create_task(raddb.log_in(wire=held, tls_version=version))
            await held.waits.wait()
            other = NasEntry("switch-2", "127.0.0.2", SECRET.decode())
            known = NasEntry("switch-1", "127.0.0.1", SECRET.decode())
            raddb.write(service.port, nas=[known, other])
            supervisor.reload()
            begun = time.monotonic()
            # one that begins while nobody listens: the NAS says it again, as every NAS does
            between = asyncio.create_task(repeating(raddb, version))
            await served()
            assert time.monotonic() - begun < 3
            held.go_on.set()
            outcome = await under_way
            # EAP-Failure with Message-Authenticator (RFC 3579, section 3.2): a NAS drops anything less
            assert (outcome.code, outcome.eap_code, outcome.trouble) == ("reject", 4, "")
            assert (await between).vlan == "20"
            assert (await raddb.log_in(tls_version=version)).vlan == "20"
            assert supervisor.reloads == 0

    asyncio.run(act())


async def repeating(raddb: Raddb, version: str) -> Outcome:
    """A login whose packets are sent again until something answers."""
    wire = await Datagrams.open("127.0.0.1", raddb.port)
    last = b""

    class Again:
        answers = wire.answers

        def send(self, octets: bytes) -> None:
            nonlocal last
            last = octets
            wire.send(octets)

    async def again() -> None:
        while True:
            await asyncio.sleep(0.5)
            wire.send(last)

    task = asyncio.create_task(again())
    try:
        return await raddb.log_in(wire=Again(), tls_version=version)
    finally:
        task.cancel()


def test_a_folder_that_never_served_is_refused_in_words(raddb: Raddb) -> None:
    async def act() -> None:
        for name, text, words in (
            ("clients.conf", "client {", "changed by hand or is cut short"),
            ("certs/server.pem", "nothing", "certificate or key file cannot be read"),
            ("mods-enabled/rest", "rast {\n}\n", "a module of FreeRADIUS is not installed"),
            ("certs/server.key", campus().agent().key_pem.decode(), "does not belong to its certificate"),
        ):
            raddb.write()
            (raddb.folder / name).write_text(text)
            with pytest.raises(FreeRadiusRefused, match=words) as caught:
                await raddb.supervisor().run()
            assert TOKEN not in caught.value.detail and SECRET.decode() not in caught.value.detail

    asyncio.run(act())


@AS_ROOT
def test_a_folder_that_its_user_cannot_enter_and_a_user_that_is_not_there_are_named(place: Path) -> None:
    shut = place / "shut"
    shut.mkdir(mode=0o700)
    with pytest.raises(FreeRadiusRefused, match=f"cannot enter {shut}"):
        check_reachable(shut / "raddb", run_as("freerad"))
    check_reachable(place / "raddb", run_as("freerad"))
    for user in ("nobody-of-that-name", "root"):
        with pytest.raises(FreeRadiusRefused):
            run_as(user)
    assert owner_of(RunAs("x", 1, 2)) == (1, 2)


def test_secrets_never_get_into_a_log_line(tmp_path: Path) -> None:
    files = render(raddb_values(tmp_path / "raddb", 1, 1812))
    secrets = secrets_in(files)
    assert secrets == {TOKEN, SECRET.decode()}
    for line in (f"secret = {SECRET.decode()}", f'Authorization: Bearer {TOKEN}"', 'User-Password = "hunter2"'):
        shown = redacted(line, secrets)
        assert "<secret>" in shown
        assert not any(word in shown for word in (*secrets, "hunter2"))
    assert redacted("a\x1b[31m\nb" + "x" * 9999, ()) == ("a?[31m?b" + "x" * 9999)[:500]


def test_errors_have_words_and_keep_freeradius_own() -> None:
    assert in_words("x\nFailed binding to auth address 1.2.3.4: Address already in use\n").startswith("another program")
    assert in_words("").endswith("no output")
    assert in_words("a strange error of its own") == "FreeRADIUS says: a strange error of its own"


def test_an_option_is_written_only_where_this_freeradius_has_a_word_for_it(tmp_path: Path) -> None:
    program = need_freeradius()
    assert knows(program, str(LIBRARIES), "require_message_authenticator")
    assert not knows(program, str(LIBRARIES), "an_option_of_the_far_future")
    for known in (False, True):
        text = render(raddb_values(tmp_path, 1, 1812, limit_proxy_state=known))["clients.conf"]
        assert ("limit_proxy_state = yes" in text) is known
