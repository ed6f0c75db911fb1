"""The embedded RADIUS server against wpa_supplicant's eapol_test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from lab.eapol import run_eapol_test
from tests.interop.radius_tools import need_eapol_test
from tests.radius.world import ALICE, SECRET, Desk, campus, identity, login, owner, radius_server

pytestmark = pytest.mark.interop
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


def run(desk: Desk, act: Callable[[int], Awaitable[None]], **options: object) -> None:
    need_eapol_test()

    async def bounded() -> None:
        server = radius_server(desk, **options)
        port = await server.start()
        try:
            async with asyncio.timeout(60):
                await act(port)
        finally:
            await server.close()

    asyncio.run(bounded())


@VERSIONS
@pytest.mark.req("A-33", "A-111", "W-13")
def test_eapol_test_succeeds_and_prints_the_vlan_of_the_department(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    sizes = [len(one.public_bytes(Encoding.DER)) for one in (agent.certificate, *agent.chain)]
    assert 1600 < sizes[0] <= 2000  # a certificate of the size that the dual identity has
    assert sum(sizes) <= 4000

    async def act(port: int) -> None:
        for department, vlan in (("R&D", "20"), ("HR", "30"), ("Kitchen", "99")):
            desk.owners[ALICE] = owner(department)
            outcome = await run_eapol_test("127.0.0.1", port, SECRET, **login(agent, tls_version=version))
            assert (outcome.code, outcome.vlan, outcome.eap_code) == ("accept", vlan, 3)
            assert (outcome.tls_version, outcome.msk_matches) == (version, True)
            assert outcome.attributes[64] == [bytes.fromhex("0000000d")]
            assert outcome.attributes[65] == [bytes.fromhex("00000006")]
            assert outcome.attributes[81] == [vlan.encode()]

    run(desk, act)


@VERSIONS
def test_eapol_test_is_rejected_with_a_clean_failure(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent, state="revoked")
    stranger = campus("stranger").agent()

    async def act(port: int) -> None:
        for issued in (agent, stranger, campus().ldevid()):
            outcome = await run_eapol_test("127.0.0.1", port, SECRET, **login(issued, tls_version=version))
            assert (outcome.code, outcome.eap_code, outcome.vlan) == ("reject", 4, None)

    run(desk, act)
    assert [decision.reason_code for decision in desk.decisions] == ["credential-revoked"]
    assert [failure.reason_code for failure in desk.failures] == ["tls-unknown-ca"] * 2


@VERSIONS
def test_an_offer_to_resume_becomes_a_full_login_with_a_fresh_decision(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act(port: int) -> None:
        arguments = login(agent, tls_version=version, repeat=2)
        assert (await run_eapol_test("127.0.0.1", port, SECRET, **arguments)).code == "accept"

    run(desk, act)
    assert len(desk.decisions) == 3
    assert all(request.credential is not None for request in desk.asked)


@VERSIONS
def test_eapol_test_that_pins_root_and_name_refuses_an_agent_posing_as_the_server(version: str) -> None:
    desk, agent = Desk(), campus().agent()

    async def act(port: int) -> None:
        outcome = await run_eapol_test("127.0.0.1", port, SECRET, **login(agent, tls_version=version))
        assert outcome.code == "reject"
        assert outcome.trouble

    run(desk, act, identity=identity(campus().agent()))
    assert not desk.asked
    assert {failure.reason_code for failure in desk.failures} == {"tls-refused-by-supplicant"}
