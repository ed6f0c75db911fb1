"""What richer policies mean to the embedded server: MAC bypass, proxies, roles and timeouts on the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pyrad import packet as pyrad_packet

from lab.supplicant import Outcome, authenticate
from radius import AccessRequest, Credential, Decision, Facts, decide, packets, read_policy
from tests.radius.test_packets import attribute, request_octets
from tests.radius.world import SECRET, Desk, campus, login, now, radius_server

PROXY = "spiffe://campus.example/proxy/2b0f1a36-3b0f-4f0e-9d1c-0d8a7a1c0003"
TEXT = """
version = 2
[vlans]
research = "research-net"
infrastructure = 5
onboarding = 70
guest = 99
[mac_bypass]
vlan = "onboarding"
session_timeout = 300
[[rule]]
name = "research"
department = "R&D"
nas = "switch-*"
vlan = "research"
role = "researcher"
filter_id = "acl-7"
session_timeout = 600
[[rule]]
name = "proxies"
credential = "proxy"
vlan = "infrastructure"
"""
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


def desk_of(text: str = TEXT) -> Desk:
    return Desk(policy=read_policy(text, revision=1))


class Wire:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def sendto(self, octets: bytes, address: object) -> None:
        self.sent.append(octets)

    def is_closing(self) -> bool:
        return False


def asked_by_mac(desk: Desk, address: str = "127.0.0.1", *more: bytes) -> tuple[int, dict[int, Any]]:
    """Code and attributes of the answer to a port that asks by MAC address."""
    server, wire = radius_server(desk), Wire()
    server.connection_made(wire)  # type: ignore[arg-type]
    server._transport = wire  # type: ignore[assignment]
    octets = request_octets(attribute(6, (10).to_bytes(4, "big")), attribute(31, b"02-00-00-00-00-01"), *more)
    server.datagram_received(octets, (address, 1024))
    (answer,) = wire.sent
    found = pyrad_packet.Packet(packet=answer, secret=SECRET, dict=packets.dictionary())
    return found.code, {code: found.get(code) for code in found}  # type: ignore[misc]


def test_a_port_that_asks_by_mac_address_over_loopback_gets_the_onboarding_vlan() -> None:
    desk = desk_of()
    code, found = asked_by_mac(desk)
    assert code == 2
    assert found[81] == [b"70"]
    assert found[27] == [(300).to_bytes(4, "big")]
    assert 80 in found  # ours carries a Message-Authenticator
    assert 79 not in found
    assert 1 not in found
    assert desk.asked[0].method == "mac-bypass"


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_from_the_network_a_mac_address_opens_nothing(address: str) -> None:
    desk = desk_of()
    code, found = asked_by_mac(desk, address)
    assert code == 3
    assert not {64, 65, 81, 27} & set(found)
    assert desk.decisions[0].reason_code == "mac-bypass-unprotected"


def test_without_mac_bypass_in_the_policy_a_mac_address_opens_nothing() -> None:
    desk = desk_of(TEXT.replace('[mac_bypass]\nvlan = "onboarding"\nsession_timeout = 300\n', ""))
    code, found = asked_by_mac(desk)
    assert (code, 81 in found) == (3, False)
    assert desk.decisions[0].reason_code == "mac-bypass-off"


def run(desk: Desk, issued: Any, version: str, **options: object) -> Outcome:
    async def bounded() -> Outcome:
        server = radius_server(desk, **options)
        port = await server.start()
        try:
            async with asyncio.timeout(20):
                return await authenticate("127.0.0.1", port, SECRET, **login(issued, tls_version=version))
        finally:
            await server.close()

    return asyncio.run(bounded())


@VERSIONS
def test_a_rules_outcomes_reach_the_switch(version: str) -> None:
    desk, agent = desk_of(), campus().agent()
    desk.admit(agent)
    outcome = run(desk, agent, version)
    assert (outcome.code, outcome.vlan) == ("accept", "research-net")
    assert outcome.attributes[11] == [b"acl-7"]
    assert outcome.attributes[27] == [(600).to_bytes(4, "big")]
    assert outcome.attributes[29] == [(1).to_bytes(4, "big")]
    assert outcome.role == "researcher"


@VERSIONS
def test_a_proxy_gets_through_tls_and_policy_only_while_its_ca_is_an_anchor(version: str) -> None:
    ldevid = campus().ldevid()
    both = [campus().agents_ca, campus().cas["devices"].certificate]

    class Proxies(Desk):
        def authorize(self, request: AccessRequest) -> Decision:
            self.asked.append(request)
            ref = request.credential
            assert ref is not None
            held = Credential("ldevid", PROXY, None, ref.serial, "devices", "issued", now(), now().replace(year=2099))
            decision = decide(request._replace(tls_version=version), held, Facts(now()), self.policy)
            self.decisions.append(decision)
            return decision

    desk = Proxies(policy=read_policy(TEXT))
    outcome = run(desk, ldevid, version, anchors=both)
    assert (outcome.code, outcome.vlan) == ("accept", "5")
    assert desk.asked[0].san == f"URI:{PROXY}"
    strict = Proxies(policy=read_policy(TEXT))
    assert run(strict, ldevid, version).code == "reject"
    assert strict.failures[0].reason_code == "tls-unknown-ca"


def test_anchors_change_for_the_next_login_without_a_restart() -> None:
    ldevid = campus().ldevid()
    desk = desk_of()

    async def story() -> None:
        server = radius_server(desk)
        port = await server.start()
        try:
            async with asyncio.timeout(20):
                await authenticate("127.0.0.1", port, SECRET, **login(ldevid, tls_version="1.3"))
                assert desk.failures[-1].reason_code == "tls-unknown-ca"
                server.use_anchors([campus().agents_ca, campus().cas["devices"].certificate])
                await authenticate("127.0.0.1", port, SECRET, **login(ldevid, tls_version="1.3"))
                assert desk.decisions[-1].reason_code == "credential-unknown"  # through TLS, and not in the store
                server.use_anchors([campus().agents_ca])
                await authenticate("127.0.0.1", port, SECRET, **login(ldevid, tls_version="1.3"))
                assert len(desk.failures) == 2
        finally:
            await server.close()

    asyncio.run(story())
