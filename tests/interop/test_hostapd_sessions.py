"""A real wired port: hostapd and wpa_supplicant, our RADIUS server and accounting, and its Disconnect (RFC 5176)."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.store.columns import to_micros
from radius.accounting_server import AccountingServer
from radius.coa import send_order
from radius.dynamic import SessionName
from radius.nas_profiles import PROFILES
from tests.appliance.access.test_access_service import ADMIN
from tests.appliance.access.test_sessions import World, world
from tests.interop.radius_tools import free_udp_port
from tests.radius.world import AGENT, ALICE, SERVER_NAME, Desk, Issued, campus, radius_server
from tests.support import stretched

pytestmark = pytest.mark.interop
SECRET = secrets.token_urlsafe(32)


def need_port() -> None:
    for program, package in (("hostapd", "hostapd"), ("wpa_supplicant", "wpasupplicant"), ("ip", "iproute2")):
        if shutil.which(program) is None and shutil.which(program, path="/usr/sbin:/sbin") is None:
            pytest.skip(f"{program} is not installed (Debian: apt install {package})")
    if os.geteuid() != 0:
        pytest.skip("a pair of interfaces takes root")
    if subprocess.run(["ip", "link", "add", "sesprobe", "type", "veth"], capture_output=True).returncode != 0:
        pytest.skip("this kernel or user makes no veth")
    subprocess.run(["ip", "link", "del", "sesprobe"], check=True)


@dataclass
class Port:
    """One switch port with hostapd on it and a supplicant plugged in."""

    folder: Path
    lines: list[str]

    async def until(self, words: str, seconds: float = 60.0, since: int = 0) -> None:
        async with asyncio.timeout(seconds):
            while not any(words in line for line in self.lines[since:]):
                await asyncio.sleep(0.02)

    async def control(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "hostapd_cli", "-p", str(self.folder / "ctrl"), *words, stdout=asyncio.subprocess.PIPE
        )
        return (await process.communicate())[0].decode()

    async def is_authorized(self) -> bool:
        return "[AUTHORIZED]" in await self.control("all_sta")


async def _follow(process: asyncio.subprocess.Process, lines: list[str]) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        lines.append(line.decode(errors="replace").rstrip())


@asynccontextmanager
async def child(*words: str, lines: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    following = asyncio.create_task(_follow(process, lines))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
        following.cancel()


@asynccontextmanager
async def wired_port(folder: Path, *, radius: int, accounting: int, das: int, agent: Issued) -> AsyncIterator[Port]:
    switch, host = f"ssw{os.getpid() % 100_000}", f"ssu{os.getpid() % 100_000}"
    (folder / "hostapd.conf").write_text(
        f"interface={switch}\ndriver=wired\nieee8021x=1\nuse_pae_group_addr=1\neap_reauth_period=0\n"
        f"own_ip_addr=127.0.0.1\nnas_identifier=lab-switch\nctrl_interface={folder / 'ctrl'}\n"
        f"auth_server_addr=127.0.0.1\nauth_server_port={radius}\nauth_server_shared_secret={SECRET}\n"
        f"acct_server_addr=127.0.0.1\nacct_server_port={accounting}\nacct_server_shared_secret={SECRET}\n"
        f"radius_das_port={das}\nradius_das_client=127.0.0.1 {SECRET}\n"
        "radius_das_require_event_timestamp=1\nradius_das_require_message_authenticator=1\n"
    )
    for name, data in (("cert.pem", agent.pem), ("key.pem", agent.key_pem), ("ca.pem", campus().root_pem)):
        (folder / name).write_bytes(data)
    (folder / "wpa.conf").write_text(
        'ap_scan=0\nnetwork={\nkey_mgmt=IEEE8021X\neap=TLS\neapol_flags=0\nidentity="anonymous"\n'
        f'ca_cert="{folder / "ca.pem"}"\nclient_cert="{folder / "cert.pem"}"\nprivate_key="{folder / "key.pem"}"\n'
        f'domain_match="{SERVER_NAME}"\n}}\n'
    )
    lines: list[str] = []
    subprocess.run(["ip", "link", "add", switch, "type", "veth", "peer", "name", host], check=True)
    try:
        for name in (switch, host):
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(child("hostapd", str(folder / "hostapd.conf"), lines=lines))
            port = Port(folder, lines)
            await port.until("AP-ENABLED")
            await stack.enter_async_context(
                child("wpa_supplicant", "-Dwired", f"-i{host}", "-c", str(folder / "wpa.conf"), lines=lines)
            )
            yield port
    finally:
        subprocess.run(["ip", "link", "del", switch], check=False)


def certificate(tx: Any, agent: Issued, state: str) -> dict[str, Any]:
    at = to_micros(tx.now)
    return {
        "issuer_role": "agents", "issuer_aki": agent.aki, "serial": f"{agent.certificate.serial_number:x}",
        "profile": "agent", "subject_id": AGENT, "owner_id": ALICE, "state": state, "not_before": at - 10**9,
        "not_after": at + 10**12, "txn": "txn-of-the-lab", "model": "agent-mediated",
    }  # fmt: skip


def person(tx: Any, department: str = "R&D", state: str = "active") -> None:
    tx.emit("owner", ALICE, {"identifier": ALICE, "state": state, "kind": "person", "department": department})


@asynccontextmanager
async def campus_port(folder: Path, profile: str) -> AsyncIterator[tuple[World, Port, Issued]]:
    agent = campus().agent()
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(world(folder))
        await made.store.write(
            lambda tx: (
                tx.emit("certificate", "x", certificate(tx, agent, "issued")),
                tx.emit("agent", AGENT, {"identifier": AGENT, "state": "registered"}),
                person(tx),
            )
        )
        das = free_udp_port()
        await made.nas.add("lab-switch", "127.0.0.1", SECRET, ADMIN, coa_port=das, profile=profile)
        server = radius_server(
            Desk(), nas=made.nas.lookup, authorize=made.access.authorize, on_failure=made.access.failed,  # type: ignore[arg-type]
            on_accept=made.sessions.accepted,
        )  # fmt: skip
        accounting = AccountingServer(nas=made.nas.lookup, take=made.sessions.account)
        port, acct = await server.start(), await accounting.start("127.0.0.1", 0)
        stack.push_async_callback(server.close)
        stack.push_async_callback(accounting.close)
        wired = await stack.enter_async_context(wired_port(folder, radius=port, accounting=acct, das=das, agent=agent))

        async def opened() -> bool:
            found = await made.all()
            return bool(found) and found[0].state == "open" and await wired.is_authorized()

        try:
            await made.until(opened, 15)
        except AssertionError:
            pytest.fail("\n".join(wired.lines[-40:]))
        yield made, wired, agent


def test_hostapds_accounting_opens_the_session_of_the_certificate(tmp_path: Path) -> None:
    need_port()

    async def story() -> None:
        async with campus_port(tmp_path, "hostapd") as (made, port, agent):
            session = await made.one()
            assert (session.agent_id, session.owner_id, session.vlan, session.nas) == (AGENT, ALICE, "20", "lab-switch")
            assert session.serial == f"{agent.certificate.serial_number:x}"
            assert session.acct_session and session.mac.count("-") == 5
            assert session.request["nas_identifier"] == "lab-switch"
            await port.control("deauthenticate", session.mac.replace("-", ":").lower())

            async def stopped() -> bool:
                return (await made.one()).state == "ended"

            await made.until(stopped)

    asyncio.run(story())


@pytest.mark.req("A-110")
def test_a_revoked_agents_port_closes_within_five_seconds(tmp_path: Path) -> None:
    need_port()

    async def story() -> None:
        async with campus_port(tmp_path, "hostapd") as (made, port, agent):
            session = await made.one()
            await made.store.write(lambda tx: tx.emit("certificate", "x", certificate(tx, agent, "revoked")))

            async def closed() -> bool:
                return not await port.is_authorized()

            assert await made.until(closed) < stretched(5)
            await made.until(made.ended)
            (change,) = await made.sessions.changes(session.id)
            assert (change.state, change.result[:3], change.why) == ("done", "ack", "credential-revoked")

    asyncio.run(story())


@pytest.mark.req("A-111")
def test_hostapd_refuses_a_coa_and_gets_a_disconnect_instead(tmp_path: Path) -> None:
    need_port()

    async def story() -> None:
        async with campus_port(tmp_path, "generic-coa") as (made, port, agent):
            session = await made.one()
            await made.store.write(lambda tx: person(tx, "HR"))

            async def closed() -> bool:
                return not await port.is_authorized()

            assert await made.until(closed) < stretched(5)
            await made.until(made.ended)
            (change,) = await made.sessions.changes(session.id)
            assert (change.state, change.want) == ("done", "end")
            assert change.attempts in (1, 2)  # the port's Stop may be stored before the answer that came with it

    asyncio.run(story())


def test_hostapd_says_that_it_does_not_know_a_session_that_is_gone(tmp_path: Path) -> None:
    need_port()

    async def story() -> None:
        async with campus_port(tmp_path, "hostapd") as (made, port, _):
            session = await made.one()
            target = made.nas.target("127.0.0.1")
            assert target is not None
            name = SessionName("127.0.0.1", "02-00-00-00-00-99", session.acct_session, "lab-switch")
            found = await send_order(
                ("127.0.0.1", target.port), target.secrets[0], PROFILES["hostapd"].end, name, (),
                timestamp=int(time.time()), must_be_signed=True,
            )  # fmt: skip
            assert found.words == "nak 503 session-context-not-found"
            assert await port.is_authorized()

    asyncio.run(story())
