"""The ports of a real FreeRADIUS with everything turned on: RadSec, accounting, failures, MAC bypass, IPv6."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pyrad import packet as pyrad_packet

from lab.supplicant import authenticate
from radius import packets
from radius.failures import read_failure
from radius.render import NasEntry, RadSec
from tests.interop.radius_tools import (
    DecisionService,
    RadSecWire,
    decision_service,
    free_tcp_port,
    free_udp_port,
    freeradius,
    need_freeradius,
    raddb_values,
)
from tests.radius.world import ALICE, OWNER_ID_OID, SECRET, Desk, Issued, campus, login, now, owner
from tests.support import stretched

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("freeradius-ports")]
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])
NAS = "spiffe://campus.example/nas/hall-switch"


@dataclass
class Site:
    port: int
    accounting_port: int
    radsec_port: int
    service: DecisionService
    desk: Desk
    agent: Issued
    nas: Issued
    folder: Path
    log: Path


Story = Callable[[Site], Awaitable[None]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Story], None]]:
    need_freeradius()
    folder = tmp_path_factory.mktemp("ports")
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()

    async def begin() -> Site:
        desk, agent, nas = Desk(), campus().agent(), campus().named(NAS)
        desk.admit(agent)
        service = await stack.enter_async_context(decision_service(desk, folder))
        at = f"https://127.0.0.1:{service.port}/radius"
        port, accounting_port, radsec_port = free_udp_port(), free_udp_port(), free_tcp_port()
        radsec = RadSec(
            "127.0.0.1",
            campus().cas["infrastructure"].pem.decode(),
            "spiffe://campus.example",
            # those that must be refused for another reason are on the list, so that only that reason is left
            [format(one.certificate.serial_number, "x") for one in (nas, *(strange(True)))],
            radsec_port,
        )
        values = raddb_values(
            folder / "raddb", service.port, port, failure_url=f"{at}/failure", accounting_url=f"{at}/accounting",
            accounting_port=accounting_port, radsec=radsec, mac_bypass=True, more_addresses=["::1"],
            nas=[NasEntry("switch-1", "127.0.0.1", SECRET.decode()), NasEntry("six", "::1", SECRET.decode()),
                 NasEntry("elsewhere", "127.0.0.8/30", SECRET.decode())],
        )  # fmt: skip
        log = await stack.enter_async_context(freeradius(values))
        return Site(port, accounting_port, radsec_port, service, desk, agent, nas, folder, log)

    site = loop.run_until_complete(begin())

    def run(story: Story) -> None:
        site.service.failures.clear()
        site.service.accounting.clear()
        site.service.delay_seconds = 0.0
        site.service.instead = None
        site.service.accounting_status = 204
        site.desk.owners[ALICE] = owner()
        site.desk.admit(site.agent)
        loop.run_until_complete(asyncio.wait_for(story(site), 60))

    yield run
    loop.run_until_complete(stack.aclose())
    loop.close()


_STRANGE: list[Issued] = []


def strange(listed: bool) -> list[Issued]:
    """Certificates that must not act as a NAS, although their serial numbers are on the list."""
    if not _STRANGE:
        _STRANGE.extend(
            [
                campus().named("spiffe://campus.example/radius/other-site"),
                campus().named("spiffe://campus.example/nas/a/b"),
                campus().named("spiffe://other.example/nas/hall-switch"),
                campus().named("spiffe://campus.example/nas/server", server=True),
                campus().named("spiffe://campus.example/nas/device", ca="devices"),
                campus().named(NAS, not_before=now() - timedelta(days=9), not_after=now() - timedelta(days=1)),
                campus().agent(),
                campus().ldevid(),
            ]
        )
    return _STRANGE


def status_server(secret: bytes) -> Any:
    request = pyrad_packet.AuthPacket(code=12, secret=secret, id=7, authenticator=bytes(16), dict=packets.dictionary())
    request.add_message_authenticator()
    return request.RequestPacket()


@VERSIONS
def test_a_nas_with_a_live_certificate_of_its_own_logs_agents_in_over_tls(
    play: Callable[[Story], None], version: str
) -> None:
    async def story(site: Site) -> None:
        wire = await RadSecWire.open(site.radsec_port, site.nas, site.folder, version)
        try:
            for eap_version in ("1.2", "1.3"):
                outcome = await authenticate(
                    "127.0.0.1", site.radsec_port, RadSecWire.SECRET, wire=wire,
                    **login(site.agent, tls_version=eap_version),
                )  # fmt: skip
                assert (outcome.code, outcome.vlan, outcome.msk_matches) == ("accept", "20", True)
            # who asked stands in the NAS's own certificate, not in what it says
            assert {request.nas for request in site.desk.asked[-2:]} == {"hall-switch"}
            assert site.desk.asked[-1].nas_address == "127.0.0.1"
        finally:
            await wire.close()

    play(story)


@VERSIONS
def test_nobody_else_can_pose_as_a_nas(play: Callable[[Story], None], version: str) -> None:
    async def answer(site: Site, own: Issued | None) -> bytes | None:
        try:
            wire = await RadSecWire.open(site.radsec_port, own, site.folder, version)
        except (ssl.SSLError, OSError):
            return None
        try:
            answers = [await wire.ask(octets, 0.3) for octets in (call_check(b"radsec"), accounting_packet(b"radsec"))]
            return next((one for one in answers if one is not None), None)
        except OSError:
            return None
        finally:
            await wire.close()

    async def story(site: Site) -> None:
        assert await answer(site, site.nas) is not None
        revoked = campus().named(NAS)  # the same name; its serial number is not on the list
        for one in (None, revoked, *strange(True)):
            assert await answer(site, one) is None, one and one.certificate
        assert await answer(site, site.nas) is not None

    play(story)


def accounting_packet(secret: bytes, kind: int = 1, session: bytes = b"s-1") -> bytes:
    request = pyrad_packet.AcctPacket(secret=secret, id=9, dict=packets.dictionary())
    request[40] = [kind.to_bytes(4, "big")]
    request[44] = [session]
    request[1] = [b"anonymous"]
    request[31] = [b"02-00-00-00-00-01"]
    octets: bytes = request.RequestPacket()
    return octets


async def udp(port: int, octets: bytes, seconds: float = 1.0, host: str = "127.0.0.1") -> bytes | None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    class Catch(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            if not got.done():
                got.set_result(data)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Catch, remote_addr=(host, port))
    try:
        transport.sendto(octets)
        return await asyncio.wait_for(got, seconds)
    except TimeoutError:
        return None
    finally:
        transport.close()


def test_accounting_is_acknowledged_when_the_appliance_has_taken_it_and_only_then(
    play: Callable[[Story], None],
) -> None:
    async def story(site: Site) -> None:
        octets = accounting_packet(SECRET)
        answer = await udp(site.accounting_port, octets)
        assert answer is not None and answer[0] == 5
        (told,) = site.service.accounting
        assert told["Acct-Status-Type"]["value"] in (["Start"], [1])
        assert told["Acct-Session-Id"]["value"] == ["s-1"]
        assert told["Tmp-String-0"]["value"] == ["switch-1"]
        site.service.accounting_status = 503
        assert await udp(site.accounting_port, accounting_packet(SECRET, session=b"s-2")) is None
        wire = await RadSecWire.open(site.radsec_port, site.nas, site.folder)
        try:
            site.service.accounting_status = 204
            answer = await wire.ask(accounting_packet(RadSecWire.SECRET, 2))
            assert answer is not None and answer[0] == 5
            assert site.service.accounting[-1]["Tmp-String-0"]["value"] == ["hall-switch"]
        finally:
            await wire.close()

    play(story)


@VERSIONS
def test_a_login_that_fails_before_policy_is_told_with_its_reason_and_a_decision_is_not(
    play: Callable[[Story], None], version: str
) -> None:
    async def ask(site: Site, agent: Issued) -> str:
        return (await authenticate("127.0.0.1", site.port, SECRET, **login(agent, tls_version=version))).code

    async def story(site: Site) -> None:
        assert await ask(site, site.agent) == "accept"
        site.desk.owners[ALICE] = owner(state="suspended")
        assert await ask(site, site.agent) == "reject"
        assert site.service.failures == []
        assert await ask(site, campus("stranger").agent()) == "reject"
        (told,) = site.service.failures
        assert told["Tmp-String-0"]["value"] == ["switch-1"]
        assert told["Calling-Station-Id"]["value"] == ["02-00-00-00-00-01"]
        assert "unknown ca" in " ".join(told["Module-Failure-Message"]["value"]).lower() or any(
            "issuer certificate" in one for one in told["Module-Failure-Message"]["value"]
        ), told["Module-Failure-Message"]
        site.service.delay_seconds = 60.0  # an appliance that hangs must not hold the reject up
        begun = time.monotonic()
        assert await ask(site, campus("stranger").agent()) == "reject"
        assert time.monotonic() - begun < stretched(3.0)

    play(story)


def call_check(secret: bytes, mac: bytes = b"02-00-00-00-00-99") -> bytes:
    request = pyrad_packet.AuthPacket(secret=secret, id=11, authenticator=bytes(range(16)), dict=packets.dictionary())
    request.add_message_authenticator()
    request[1] = [mac]
    request[6] = [(10).to_bytes(4, "big")]
    request[31] = [mac]
    octets: bytes = request.RequestPacket()
    return octets


def test_mac_bypass_is_asked_for_from_this_machine_and_over_tls_only(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        for host in ("127.0.0.1", "::1"):
            answer = await udp(site.port, call_check(SECRET), host=host)
            assert answer is not None and answer[0] == 2 and b"77" in answer
        wire = await RadSecWire.open(site.radsec_port, site.nas, site.folder)
        try:
            answer = await wire.ask(call_check(RadSecWire.SECRET))
            assert answer is not None and answer[0] == 2
        finally:
            await wire.close()
        # without EAP and without Call-Check there is nothing
        plain = call_check(SECRET).replace(bytes([6, 6, 0, 0, 0, 10]), bytes([6, 6, 0, 0, 0, 2]))
        answer = await udp(site.port, sign_again(plain))
        assert answer is not None and answer[0] == 3

    play(story)


def test_mac_bypass_without_a_decision_is_told_and_a_decided_no_is_not(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        said = {"control:Auth-Type": {"value": ["Reject"], "do_xlat": False}}
        site.service.instead = lambda: web.json_response(said)
        assert (await udp(site.port, call_check(SECRET)) or b"?")[0] == 3
        assert site.service.failures == []
        for status in (500, 403):
            site.service.instead = lambda status=status: web.Response(status=status)  # type: ignore[misc]
            assert (await udp(site.port, call_check(SECRET, f"02-00-00-00-{status // 100:02}-00".encode())) or b"?")[
                0
            ] == 3
            failure = read_failure(site.service.failures.pop(), owner_id_oid=OWNER_ID_OID)
            assert (failure.code, failure.request.method) == ("decision-not-asked", "mac-bypass")
            assert site.service.failures == []

    play(story)


def sign_again(octets: bytes) -> bytes:
    import hmac

    at = octets.index(bytes([80, 18]))
    blank = octets[: at + 2] + bytes(16) + octets[at + 18 :]
    return octets[: at + 2] + hmac.new(SECRET, blank, "md5").digest() + octets[at + 18 :]


def test_a_nas_elsewhere_gets_no_mac_bypass_over_udp(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        calls = site.service.calls
        got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        class Catch(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                got.set_result(data)

        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            Catch, local_addr=("127.0.0.9", 0), remote_addr=("127.0.0.1", site.port)
        )
        try:
            transport.sendto(call_check(SECRET))
            assert (await asyncio.wait_for(got, 60))[0] == 3
            assert site.service.calls == calls
        finally:
            transport.close()

    play(story)


def test_ipv6_serves_as_well(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        outcome = await authenticate("::1", site.port, SECRET, **login(site.agent))
        assert (outcome.code, outcome.vlan) == ("accept", "20")
        assert (site.desk.asked[-1].nas, site.desk.asked[-1].nas_address) == ("six", "::1")

    play(story)


@VERSIONS
def test_packets_without_message_authenticator_are_dropped(play: Callable[[Story], None], version: str) -> None:
    async def story(site: Site) -> None:
        outcome = await authenticate(
            "127.0.0.1", site.port, SECRET, seconds=0.5, message_authenticator=False,
            **login(site.agent, tls_version=version),
        )  # fmt: skip
        assert outcome.code == "timeout"
        assert "does not contain required Message-Authenticator" in site.log.read_text(errors="replace")

    play(story)


@VERSIONS
def test_the_outer_identity_and_large_extensions_change_nothing(play: Callable[[Story], None], version: str) -> None:
    async def story(site: Site) -> None:
        large = campus().agent(padding=3000)
        site.desk.admit(large)
        for agent in (site.agent, large):
            for identity in ("ceo", "%{exec:/bin/id}", "x" * 253):
                outcome = await authenticate(
                    "127.0.0.1", site.port, SECRET, **login(agent, tls_version=version, identity=identity)
                )
                assert (outcome.code, outcome.vlan) == ("accept", "20")
                assert outcome.attributes[1] == [site.desk.decisions[-1].agent_id.encode()]

    play(story)


HOSTILE = (
    "%{exec:/usr/bin/touch /tmp/owned}",
    '"; DROP TABLE owners; --',
    "R" * 300,
    "\u202eD&R",
    "${run_dir}",
    "\r\n",
)


def test_hostile_departments_are_inert(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        for department in HOSTILE:
            site.desk.owners[ALICE] = owner(department)
            outcome = await authenticate("127.0.0.1", site.port, SECRET, **login(site.agent))
            assert (outcome.code, outcome.vlan) == ("accept", "99")  # no rule names it
            assert not any(department.encode() in b"".join(values) for values in outcome.attributes.values())
        assert not Path("/tmp/owned").exists()

    play(story)
