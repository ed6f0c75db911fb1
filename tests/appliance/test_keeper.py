"""`agent run`: a credential that stays fresh, in files that switch as one, through everything that may go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.agent import AgentOptions, request_credential
from appliance.agent.errors import CredentialEnded, CredentialFolderUnusable, IssuanceRefused
from appliance.agent.folder import LINKED as LINKED_FILES
from appliance.agent.folder import CredentialFolder, read_held
from appliance.agent.keeper import Keeper, Notice, check_standing
from appliance.agent.requester import KEY_FILE
from appliance.binding import composite, jws
from appliance.binding.errors import Malformed
from appliance.errors import KeyFileMissing
from tests.appliance.identity.campus import ADMIN, Campus, OwnerHost, Proxy
from tests.appliance.identity.test_standing import SEEN, stand


class Site:
    """An identity server with a proxy's Agent API on a socket, an owner, and a keeper whose pauses move the clock."""

    def __init__(self, campus: Campus, proxy: Proxy, owner: OwnerHost, folder: Path) -> None:
        self.campus, self.proxy, self.owner = campus, proxy, owner
        self.socket, self.out, self.approval = folder / "a.sock", folder / "agent", folder / "approve.py"
        self.events: list[dict[str, Any]] = []
        self.is_down = False
        self.profiles: tuple[str, ...] = ("x509", "wit")
        self.lost = 0
        """How many answers of enroll get lost on their way to the agent."""
        self.enrolled: list[bytes] = []
        self.stop_after = 10**9
        self.on_pause: Callable[[], None] = lambda: None

    async def handle(self, request: web.Request) -> web.Response:
        if self.is_down:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        body = await request.read()
        if request.path == "/v1/trust":
            _, answer, reply = await self.proxy.call("GET", "/v1/trust")
        elif request.path == "/v1/nonce":
            _, answer, reply = await self.proxy.call("POST", "/v1/agents/nonce", body)
        else:
            handed_in = composite.read(body)
            self.enrolled.append(body)
            token = self.proxy.evidence(handed_in.request, agent=SEEN)
            whole = composite.write(handed_in.with_evidence(token))
            _, answer, reply = await self.proxy.call("POST", "/v1/agents/enroll", whole, composite.MEDIA_TYPE)
            if reply.status == 409 and answer["reason"] == "approval-spent":
                path = f"/v1/agents/requests/{jws.s256(handed_in.request)}"
                _, answer, reply = await self.proxy.call("GET", path)
            if self.lost:
                self.lost -= 1
                assert request.transport is not None
                request.transport.abort()
        return web.Response(
            status=reply.status, body=reply.body, content_type="application/json", headers=reply.headers
        )

    async def pause(self, seconds: float) -> None:
        self.on_pause()
        self.campus.clock.advance(seconds)
        await asyncio.sleep(0)

    def tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if self.count("credential-renewed") >= self.stop_after:
            raise asyncio.CancelledError

    def count(self, name: str) -> int:
        return sum(event["event"] == name for event in self.events)

    def options(self, **changed: Any) -> AgentOptions:
        values: dict[str, Any] = {
            "socket": self.socket, "out": self.out, "owner": self.owner.identifier, "ttl_seconds": 3600,
            "wait_seconds": 30.0, "profiles": self.profiles,
        }  # fmt: skip
        return AgentOptions(**(values | changed))

    async def first(self) -> str:
        """A first credential by `agent request`; answers the agent's identifier."""
        waiting = self.out.parent / "approval.jws"

        async def approve(seconds: float) -> None:
            request = self.out / "request.jws"
            if request.exists() and not waiting.exists():
                waiting.write_text(self.owner.approve(request.read_text()))
            await asyncio.sleep(0)

        options = self.options(wait_approval=waiting)
        result = await request_credential(options, clock=self.campus.clock, pause=approve)
        waiting.unlink()
        return result.agent_id

    def keeper(self, *standing: str, notice: Notice | None = None, **changed: Any) -> Keeper:
        return Keeper(
            self.options(**changed), self.campus.clock, self.tell, standing=standing, notice=notice,
            pause=self.pause, chance=lambda: 0.5,
        )  # fmt: skip

    async def keep(self, renewals: int, *standing: str, **changed: Any) -> None:
        """Run a keeper until it has renewed so many times."""
        self.stop_after = self.count("credential-renewed") + renewals
        with contextlib.suppress(asyncio.CancelledError):
            await self.keeper(*standing, **changed).run()


def play(folder: Path, story: Callable[[Site], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        campus = Campus.create(folder, **settings)
        site = Site(campus, await campus.proxy(), await campus.owner(), folder)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", site.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(site.socket)).start()
        try:
            await story(site)
        finally:
            await runner.cleanup()
            campus.close()

    asyncio.run(run())


def standing_file(site: Site, agent_id: str, **changed: Any) -> str:
    path = site.out.parent / "standing.jws"
    path.write_text(stand(site.owner, agent_id, site.proxy, **changed))
    return str(path)


def agree(out: Path) -> x509.Certificate:
    """Key, chain and WIT in a folder belong together; answers the certificate."""
    leaf = x509.load_pem_x509_certificates((out / "chain.pem").read_bytes())[0]
    key = load_pem_private_key((out / KEY_FILE).read_bytes(), None)
    assert leaf.public_key() == key.public_key()
    claims = jws.read_object(jws.read((out / "wit.txt").read_text().strip()).payload, "WIT")
    assert jws.read_ec_jwk(claims["cnf"]["jwk"]) == key.public_key()  # type: ignore[index]
    return leaf


@pytest.mark.req("A-3", "A-105", "A-106", "A-107")
def test_it_renews_at_two_thirds_with_jitter_and_a_new_key_without_anybody(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        started = site.campus.clock.now()
        first = agree(site.out)
        standing = standing_file(site, agent_id)
        serials = {first.serial_number}
        for number in (1, 2, 3):
            await site.keep(1, standing)
            leaf = agree(site.out)
            serials.add(leaf.serial_number)
            passed = site.campus.clock.now() - started
            life = timedelta(seconds=3600)
            assert life * (2 / 3) * number <= passed <= life * 0.78 * number
        assert len(serials) == 4
        rows = await site.campus.store.read(lambda tx: _models(tx, agent_id))
        assert rows == ["agent-mediated", "standing", "standing", "standing"]
        assert json.loads((site.out / "result.json").read_text())["agent_id"] == agent_id
        assert stat.S_IMODE((site.out / KEY_FILE).stat().st_mode) == 0o600
        assert site.count("renewal-failed") == 0
        conf = (site.out / "wpa_supplicant.conf").read_text()
        assert f'private_key="{site.out / KEY_FILE}"' in conf and "pending" not in conf

    play(tmp_path, story)


def _models(tx: Any, agent_id: str) -> list[str]:
    from appliance.store import certificates

    return [row.model for row in certificates.of(tx, "agent_id", agent_id)]


@pytest.mark.req("A-105")
def test_the_time_of_renewal_is_spread_by_chance_between_two_thirds_and_three_quarters(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        await site.first()
        held = read_held(site.out)
        assert held is not None
        life = held.ends - held.begins
        for chance, share in ((0.0, 2 / 3), (1.0, 2 / 3 + 0.1)):
            keeper = Keeper(site.options(), site.campus.clock, site.tell, chance=lambda chance=chance: chance)
            assert abs((keeper.renewal_time(held) - held.begins) / life - share) < 1e-6

    play(tmp_path, story)


def test_what_ends_first_of_certificate_and_wit_decides(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        held = read_held(site.out)
        assert held is not None and (held.ends - site.campus.clock.now()) == timedelta(minutes=10)
        await site.keep(1, standing_file(site, agent_id))
        assert site.campus.clock.now() - held.begins < timedelta(minutes=8)

    play(tmp_path, story, wit_minutes=10)


@pytest.mark.req("A-106")
@pytest.mark.parametrize("profiles", [("wit",), ("x509",)])
def test_an_agent_with_one_kind_of_credential_renews_too(tmp_path: Path, profiles: tuple[str, ...]) -> None:
    async def story(site: Site) -> None:
        site.profiles = profiles
        agent_id = await site.first()
        await site.keep(2, standing_file(site, agent_id))
        assert (site.out / "wit.txt").exists() == ("wit" in profiles)
        assert (site.out / "chain.pem").exists() == ("x509" in profiles)
        (row,) = await site.campus.service.desk.of_owner("alice")
        assert row["uses"] == 2

    play(tmp_path, story)


def test_a_wit_that_ended_keeps_nobody_from_renewing_while_the_certificate_lives(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        site.campus.clock.advance(1200)
        await site.keep(1, standing_file(site, agent_id))
        assert site.count("renewal-failed") == 0

    play(tmp_path, story, wit_minutes=10)


def test_files_switch_as_one_and_the_generation_before_stays_for_who_still_reads_it(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        standing = standing_file(site, agent_id)
        seen = []

        def look() -> None:
            seen.append(
                (
                    os.readlink(site.out / "current") if (site.out / "current").is_symlink() else "",
                    agree(site.out).serial_number,
                )
            )

        site.on_pause = look
        await site.keep(3, standing)
        assert len({serial for _, serial in seen}) == 3
        assert len(set(seen)) == 3  # one credential per generation, never a mixture
        assert sorted(one.name for one in (site.out / "generations").iterdir()) == ["000003", "000004"]
        assert all((site.out / name).is_symlink() for name in LINKED_FILES if name != "request.jws")
        assert not (site.out / "pending").exists()

    play(tmp_path, story)


@pytest.mark.req("A-98")
def test_a_proxy_that_is_away_costs_pauses_with_reasons_and_the_old_credential_stays(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        serial = agree(site.out).serial_number
        site.is_down = True

        def back_after_four() -> None:
            assert agree(site.out).serial_number == serial
            site.is_down = site.count("renewal-failed") < 4

        site.on_pause = back_after_four
        await site.keep(1, standing_file(site, agent_id))
        failed = [event for event in site.events if event["event"] == "renewal-failed"]
        assert [event["reason"] for event in failed] == ["agent-api-unreachable"] * 4
        pauses = [event["again_in"] for event in failed]
        assert pauses == sorted(pauses) and pauses[0] == 5.0 and pauses[-1] > 20
        assert agree(site.out).serial_number != serial

    play(tmp_path, story)


@pytest.mark.req("A-98", "A-107")
def test_an_answer_lost_on_its_way_is_fetched_with_the_same_bytes_and_counted_once(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        standing = standing_file(site, agent_id, max_uses=1)
        site.lost = 2
        await site.keep(1, standing)
        assert len(site.enrolled) == 4 and len(set(site.enrolled[1:])) == 1
        (row,) = await site.campus.service.desk.of_owner("alice")
        assert row["uses"] == 1
        agree(site.out)

    play(tmp_path, story)


@pytest.mark.req("A-107")
@pytest.mark.parametrize("is_lost_for_good", [False, True])
def test_a_keeper_killed_after_handing_in_finishes_the_same_request_when_it_is_back(
    tmp_path: Path, is_lost_for_good: bool
) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        standing = standing_file(site, agent_id)
        site.lost = 1

        def killed() -> None:
            if site.count("renewal-failed"):
                raise KeyboardInterrupt

        site.on_pause = killed
        with pytest.raises(KeyboardInterrupt):
            await site.keeper(standing).run()
        assert (site.out / "pending" / "composite.json").exists()
        if is_lost_for_good:  # the server has issued what nobody holds: the credential at hand still vouches
            shutil.rmtree(site.out / "pending")
        site.on_pause = lambda: None
        await site.keep(1, standing)
        agree(site.out)
        (row,) = await site.campus.service.desk.of_owner("alice")
        assert row["uses"] == (2 if is_lost_for_good else 1)

    play(tmp_path, story)


def test_a_refused_renewal_is_told_with_the_server_s_reason_and_tried_ever_more_slowly(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        standing = standing_file(site, agent_id)
        await site.campus.directory.suspend("alice", actor=ADMIN)
        with pytest.raises(CredentialEnded):
            await site.keeper(standing).run()
        failed = [event for event in site.events if event["event"] == "renewal-failed"]
        assert {event["reason"] for event in failed} == {"owner-not-active"}
        assert 4 < len(failed) < 60
        assert site.count("credential-renewed") == 0

    play(tmp_path, story)


@pytest.mark.req("A-106", "A-40")
def test_without_a_standing_approval_the_owner_is_asked_for_each_and_after_the_end_for_a_first_one(
    tmp_path: Path,
) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        key = site.out.parent / "owner.pem"
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key.write_bytes(site.owner.signer._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        site.approval.write_text(
            "import sys\nfrom datetime import datetime, UTC\n"
            "from cryptography.hazmat.primitives.serialization import load_pem_private_key\n"
            "from appliance.binding import approval, request\nfrom est.signer import KeySigner\n"
            "asked = request.unseal(open(sys.argv[1]).read())\n"
            f"key = KeySigner(load_pem_private_key(open({str(key)!r}, 'rb').read(), None))\n"
            f"token = approval.seal(key, asked, iss={site.owner.identifier!r}, iat=asked.iat,"
            " exp=asked.iat + 600, jti=asked.jti)\n"
            "open(sys.argv[2], 'w').write(token)\n"
        )
        command = f"{sys.executable} {site.approval} {{request}} {{approval}}"
        await site.keep(1, approval_command=command)
        site.campus.clock.advance(10 * 3600)
        await site.keep(1, approval_command=command)
        rows = await site.campus.store.read(lambda tx: _models(tx, agent_id))
        assert rows == ["agent-mediated"] * 3
        agree(site.out)

    play(tmp_path, story)


def test_the_program_hears_of_each_new_credential_by_command_and_by_signal(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        mark, pid_file, heard = tmp_path / "mark $(touch x)", tmp_path / "pid", []
        pid_file.write_text(f"{os.getpid()}\n")
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.append, 1)
        command = (sys.executable, "-c", "import sys; open(sys.argv[1], 'a').write('.')", str(mark))
        notice = Notice(command, None, pid_file, signal.SIGUSR1)
        standing = standing_file(site, agent_id)
        await site.keep(2, standing, notice=notice)
        await asyncio.sleep(0.05)
        assert len(heard) >= 1 and mark.read_text().startswith(".")
        assert not (tmp_path / "x").exists()
        for bad in (Notice(("/nonexistent",)), Notice((sys.executable, "-c", "raise SystemExit(3)")), Notice(pid=1)):
            await site.keep(1, standing, notice=bad)
        assert site.count("credential-renewed") == 5
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    play(tmp_path, story)


def test_a_keeper_that_is_stopped_tells_the_program_of_the_credential_it_has_just_put_in_place(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        begun, mark = tmp_path / "begun", tmp_path / "mark"
        notice = Notice(("sh", "-c", 'touch "$0"; sleep 0.3; touch "$1"', str(begun), str(mark)))
        site.stop_after = 100
        task = asyncio.create_task(site.keeper(standing_file(site, agent_id), notice=notice).run())
        while not begun.exists():
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert mark.exists() and site.count("credential-renewed") == 1 and not site.count("notice-failed")

    play(tmp_path, story)


def test_folders_that_hold_no_whole_credential_are_refused(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        await site.first()
        other = tmp_path / "other"
        shutil.copytree(site.out, other)
        key = other / KEY_FILE
        result = json.loads((other / "result.json").read_text())
        (other / "result.json").write_text(json.dumps({**result, "files": {"key": str(key)}}))
        key.unlink()
        with pytest.raises(CredentialFolderUnusable):
            CredentialFolder(other).prepare()
        shutil.copy(site.out / KEY_FILE, key)
        CredentialFolder(other).prepare()
        assert agree(other)
        (other / "current" / "chain.pem").write_text("damaged")
        with pytest.raises(CredentialFolderUnusable):
            CredentialFolder(other).current()

    play(tmp_path, story)


def test_the_first_credential_may_be_its_own_and_a_no_ends_it(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        site.is_down = True

        def back_after_two() -> None:
            site.is_down = site.count("request-failed") < 2

        site.on_pause = back_after_two
        with pytest.raises(IssuanceRefused):
            await site.keeper().run()
        assert site.count("request-failed") == 2
        assert not (site.out / "pending").exists()

    play(tmp_path, story)


def test_once_renews_now_and_ends(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        agent_id = await site.first()
        first = agree(site.out).serial_number
        await site.keeper(standing_file(site, agent_id)).run(once=True)
        assert agree(site.out).serial_number != first
        assert site.count("credential-renewed") == 1

    play(tmp_path, story)


def test_standing_approvals_on_the_command_line_are_files_or_hashes(tmp_path: Path) -> None:
    check_standing(("A" * 43,))
    with pytest.raises(KeyFileMissing):
        check_standing((str(tmp_path / "nothing"),))
    (tmp_path / "bad").write_text("not a token")
    with pytest.raises(Malformed):
        check_standing((str(tmp_path / "bad"),))
