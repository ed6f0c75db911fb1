"""A running appliance, its command line, and a NAS of another making: sessions come, are shown, and go."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.supplicant import authenticate
from tests.bench.campus import environment
from tests.bench.plan import Plan
from tests.bench.radius_logins import SECRET, SUPPLICANTS, Site
from tests.radius.das import das
from tests.radius.test_accounting import Client, message
from tests.support import stretched

pytestmark = [pytest.mark.lab, pytest.mark.slow]


class Cli:
    """`appliance` beside the running one."""

    def __init__(self, site: Site) -> None:
        self._home = site.campus.home

    async def __call__(self, *words: str, fails: bool = False) -> Any:
        command = [sys.executable, "-m", "appliance", *words, "--home", str(self._home), "-o", "json"]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, env=environment(), timeout=60
        )
        assert (done.returncode != 0) is fails, done.stderr
        return done.stderr if fails else json.loads(done.stdout)


async def until(check: Any, seconds: float) -> float:
    begun = time.monotonic()
    while not check():
        assert time.monotonic() - begun < seconds, "not within its time"
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


@pytest.fixture(params=[0, 2], ids=["one process", "two workers"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made = Site(tmp_path, "embedded", Plan(), f"radius.workers={request.param}")
    try:
        yield made
    finally:
        children = psutil.Process(made.campus.pid).children(recursive=True)
        made.campus.stop()
        assert not [one for one in children if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.req("A-110")
def test_thirty_two_sessions_are_listed_accounted_for_and_ended_with_their_owner(site: Site) -> None:
    appliance = Cli(site)

    async def story() -> None:
        async with das(SECRET.encode()) as nas, asyncio.timeout(300):
            await appliance("nas", "set", "bench", "--coa-port", str(nas.port), "--profile", "hostapd")
            await asyncio.to_thread(site.logins, 1, "1.3")
            found = await appliance("sessions", "list")
            assert len(found) == SUPPLICANTS and {one["state"] for one in found} == {"assumed"}
            owner = found[0]["owner"]
            draft = site.campus.home.parent / "draft.toml"
            draft.write_text((await appliance("policy", "show"))["text"].replace("20", "21"))
            impact = await appliance("policy", "impact", str(draft))
            assert (impact["sessions"], impact["sessions_changed"]) == (SUPPLICANTS, SUPPLICANTS)
            assert {(one["vlan_now"], one["vlan_then"]) for one in impact["session_changes"]} == {("20", "21")}
            host, port = site.campus.address("accounting")
            loop = asyncio.get_running_loop()
            transport, client = await loop.create_datagram_endpoint(Client, remote_addr=(host, port))
            client.transport = transport
            start = message(
                (40, b"\0\0\0\1"), (44, b"S-1"), (31, b"02-00-00-00-00-05"), (87, b"swp5"), secret=SECRET.encode()
            )
            assert await client.ask(start, 60) is not None
            transport.close()
            (one,) = await appliance("sessions", "list", "--mac", "02:00:00:00:00:05")
            assert (one["state"], one["acct_session"], one["vlan"]) == ("open", "S-1", "20")
            await appliance("sessions", "disconnect", one["id"])
            await until(lambda: len(nas.done) == 1, 60)
            assert (nas.done[0].get(44), nas.done[0].get(31)) == ([b"S-1"], [b"02-00-00-00-00-05"])
            shown = await appliance("sessions", "show", one["id"])
            assert shown["changes"][0]["want"] == "end"
            assert len(await appliance("sessions", "list", "--owner", owner)) == SUPPLICANTS - 1
            assert len(await appliance("sessions", "list", "--all")) == SUPPLICANTS
            await appliance("owners", "suspend", "bench")
            assert await until(lambda: len(nas.done) == SUPPLICANTS, 60) < stretched(5)
            await asyncio.sleep(0.5)
            assert await appliance("sessions", "list") == []
            assert "session-unknown" in await appliance("sessions", "disconnect", "--owner", owner, fails=True)
            events = [row["event"] for row in await appliance("audit", "list", "--limit", "500")]
            assert events.count("session-changed") == SUPPLICANTS

    asyncio.run(story())


def test_a_secret_is_rotated_while_logins_go_on(site: Site) -> None:
    appliance = Cli(site)

    async def log_in(secret: bytes) -> str:
        chain, key = site.credentials[0]
        outcome = await authenticate(
            *site.address, secret, identity="x", certificate_chain_pem=chain, key_pem=key, ca_pem=site.root_pem,
            server_name="radius.campus.example", seconds=15,
        )  # fmt: skip
        return outcome.code

    async def story() -> None:
        assert await log_in(SECRET.encode()) == "accept"
        made = await appliance("nas", "rotate-secret", "bench", "--overlap", "1h")
        new = made["shared_secret"].encode()
        assert [await log_in(SECRET.encode()), await log_in(new)] == ["accept", "accept"]
        assert await log_in(SECRET.encode()) == "accept"
        (row,) = await appliance("nas", "list")
        assert row["still_old"] == ["127.0.0.1"]
        assert await log_in(new) == "accept"
        assert (await appliance("nas", "list"))[0]["still_old"] == []
        await appliance("nas", "rotate-secret", "bench", "--overlap", "0s")
        assert await log_in(new) == "timeout"
        assert "nas-profile-unknown" in await appliance("nas", "set", "bench", "--profile", "toaster", fails=True)

    asyncio.run(story())
