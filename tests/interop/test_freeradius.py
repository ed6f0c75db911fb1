"""FreeRADIUS 3.2 on the rendered folder, asking a decision service over HTTPS."""

from __future__ import annotations

import asyncio
import stat
import subprocess
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from lab.eapol import run_eapol_test
from lab.supplicant import Outcome, authenticate
from radius import AccessRequest, Decision
from radius.render import render, write_raddb
from tests.bench import decide
from tests.interop.radius_tools import (
    DecisionService,
    decision_service,
    free_udp_port,
    freeradius,
    need_eapol_test,
    need_freeradius,
    raddb_values,
)
from tests.radius.world import ALICE, SECRET, Desk, Issued, campus, login, now, owner

pytestmark = pytest.mark.interop
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])
Act = Callable[[DecisionService, int, Path], Awaitable[None]]


def run(tmp_path: Path, desk: Desk, act: Act, **values: object) -> None:
    need_freeradius()

    async def bounded() -> None:
        port = free_udp_port()
        async with decision_service(desk, tmp_path) as service:
            async with freeradius(raddb_values(tmp_path / "rad db", service.port, port, **values)) as log:
                async with asyncio.timeout(60):
                    await act(service, port, log)

    asyncio.run(bounded())


async def ask(port: int, issued: Issued, **changes: object) -> Outcome:
    return await authenticate("127.0.0.1", port, SECRET, **login(issued, **changes))


def test_the_rendered_folder_passes_the_config_check_and_is_not_for_everybody(tmp_path: Path) -> None:
    directory = tmp_path / "raddb"
    write_raddb(render(raddb_values(directory, 8444, 1812)), directory)
    for path in directory.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path
    checked = subprocess.run([need_freeradius(), "-C", "-X", "-d", str(directory)], capture_output=True, timeout=20)
    output = checked.stdout.decode()
    assert checked.returncode == 0, output[-2000:]
    assert "WARNING" not in output.upper().replace("WARNING: NO", "")
    assert "unused" not in output.lower()


def test_the_config_check_finds_a_broken_folder(tmp_path: Path) -> None:
    directory = tmp_path / "raddb"
    files = render(raddb_values(directory, 8444, 1812))
    write_raddb(files | {"clients.conf": "client {"}, directory)
    checked = subprocess.run([need_freeradius(), "-C", "-d", str(directory)], capture_output=True, timeout=20)
    assert checked.returncode == 1


@VERSIONS
@pytest.mark.req("A-33", "A-111", "W-12")
def test_both_supplicants_get_the_vlan_of_the_department(tmp_path: Path, version: str) -> None:
    need_eapol_test()
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act(service: DecisionService, port: int, log: Path) -> None:
        for department, vlan in (("R&D", "20"), ("HR", "30"), ("Kitchen", "99")):
            desk.owners[ALICE] = owner(department)
            for outcome in (
                await ask(port, agent, tls_version=version),
                await run_eapol_test("127.0.0.1", port, SECRET, **login(agent, tls_version=version)),
            ):
                assert (outcome.code, outcome.vlan, outcome.eap_code) == ("accept", vlan, 3)
                assert (outcome.tls_version, outcome.msk_matches) == (version, True)
                assert outcome.attributes[64] == [bytes.fromhex("0000000d")]
                assert outcome.attributes[65] == [bytes.fromhex("00000006")]
                assert outcome.attributes[25] == [b"txn-1"]
        request = desk.asked[0]
        assert (request.nas, request.nas_address) == ("switch-1", "127.0.0.1")
        assert (request.nas_port, request.calling_station) == ("swp1", "02-00-00-00-00-01")
        assert request.owner_id_hint == ALICE  # the small extension arrived whole
        assert request.san == f"URI:{desk.decisions[0].agent_id}"
        assert request.tls_version == version
        assert service.calls == 6  # once per login, not per round

    run(tmp_path, desk, act)


def test_what_is_not_read_is_not_posted(tmp_path: Path) -> None:
    """And the bench of the decision port asks with the same attributes."""
    need_eapol_test()
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    switch = {
        5: 17,
        12: 1400,
        30: "02-00-00-00-00-FF:campus",
        32: "lab-switch",
        44: "8a1f",
        61: 15,
        77: "CONNECT",
        87: "17",
    }

    async def act(service: DecisionService, port: int, log: Path) -> None:
        for version in ("1.2", "1.3"):
            given = login(agent, tls_version=version, attributes=switch)
            assert (await run_eapol_test("127.0.0.1", port, SECRET, **given)).code == "accept"
            posted = service.documents.pop()
            assert isinstance(posted, dict) and set(posted) == decide.POSTED

    run(tmp_path, desk, act)


@VERSIONS
@pytest.mark.req("A-33")
def test_refusals_are_a_clean_failure(tmp_path: Path, version: str) -> None:
    desk, agent = Desk(), campus().agent()

    async def act(service: DecisionService, port: int, log: Path) -> None:
        desk.admit(agent, state="revoked")
        outcome = await ask(port, agent, tls_version=version)
        assert (outcome.code, outcome.eap_code, outcome.vlan) == ("reject", 4, None)
        assert "credential-revoked" in outcome.reply_message
        desk.admit(agent)
        desk.owners[ALICE] = owner(state="suspended")
        assert (await ask(port, agent, tls_version=version)).code == "reject"
        calls = service.calls
        expired = campus().agent(not_before=now() - timedelta(hours=9), not_after=now() - timedelta(hours=1))
        for stranger in (campus("stranger").agent(), campus().ldevid(), campus().agent(ca="devices"), expired):
            desk.admit(stranger)
            outcome = await ask(port, stranger, tls_version=version)
            assert (outcome.code, outcome.eap_code) == ("reject", 4)
        assert service.calls == calls  # TLS refused them before policy

    run(tmp_path, desk, act)


@VERSIONS
@pytest.mark.slow
def test_a_failing_decision_port_rejects_and_recovers_at_once(tmp_path: Path, version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    answers = {
        "500": lambda: web.Response(status=500),
        "404": lambda: web.Response(status=404),
        "403": lambda: web.Response(status=403),
        "401": lambda: web.Response(status=401),
        "204": lambda: web.Response(status=204),
        "text": lambda: web.Response(text="Accept"),
        "empty object": lambda: web.json_response({}),
        "garbage": lambda: web.Response(body=b"{\x00garbage", content_type="application/json"),
        "wrong form": lambda: web.json_response({"control:Auth-Type": {"nonsense": ["Accept"]}}),
    }

    async def act(service: DecisionService, port: int, log: Path) -> None:
        for name, answer in answers.items():
            service.instead = answer
            outcome = await ask(port, agent, tls_version=version)
            assert (outcome.code, outcome.eap_code, outcome.vlan) == ("reject", 4, None), name
        service.instead = None
        service.delay_seconds = 2.0
        assert (await ask(port, agent, tls_version=version)).code == "reject"
        service.delay_seconds = 0.0
        assert (await ask(port, agent, tls_version=version)).code == "accept"

    run(tmp_path, desk, act)


def _without_decision_port(tmp_path: Path, **values: object) -> Outcome:
    need_freeradius()
    outcomes = []

    async def bounded() -> None:
        port = free_udp_port()
        async with freeradius(raddb_values(tmp_path / "raddb", free_udp_port(), port, **values)):
            outcomes.append(await ask(port, campus().agent()))

    asyncio.run(bounded())
    return outcomes[0]


def test_a_refused_connection_rejects(tmp_path: Path) -> None:
    outcome = _without_decision_port(tmp_path)
    assert (outcome.code, outcome.eap_code, outcome.vlan) == ("reject", 4, None)


def test_a_site_may_choose_the_guest_vlan_for_a_silent_appliance(tmp_path: Path) -> None:
    outcome = _without_decision_port(tmp_path, fail_mode="guest", guest_vlan=99)
    assert (outcome.code, outcome.eap_code, outcome.vlan) == ("accept", 3, "99")


def test_a_decision_port_with_another_name_or_of_another_ca_is_not_asked(tmp_path: Path) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def bounded() -> None:
        port = free_udp_port()
        for server in (
            campus().server("localhost.campus.example"),
            campus().agent(),
            campus("stranger").decision_port(),
        ):
            async with decision_service(desk, tmp_path, server) as service:
                async with freeradius(raddb_values(tmp_path / f"raddb-{service.port}", service.port, port)):
                    assert (await ask(port, agent)).code == "reject"
                    assert service.calls == 0

    need_freeradius()
    asyncio.run(bounded())


@VERSIONS
def test_a_session_is_never_resumed_and_a_revoked_agent_is_refused_at_its_next_login(
    tmp_path: Path, version: str
) -> None:
    need_eapol_test()
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act(service: DecisionService, port: int, log: Path) -> None:
        given = login(agent, tls_version=version, repeat=1, keep=tmp_path)
        outcome = await run_eapol_test("127.0.0.1", port, SECRET, **given)
        assert outcome.code == "accept"
        said = (tmp_path / "eapol_test.log").read_text()
        assert said.count("resumed=0") >= 2 and "resumed=1" not in said
        assert service.calls == 2
        assert all(request.credential is not None for request in desk.asked)
        # revoked between the first login and the one that would resume it
        made = desk.authorize

        def authorize(request: AccessRequest) -> Decision:
            decision = made(request)
            desk.admit(agent, state="revoked")
            return decision

        desk.authorize = authorize  # type: ignore[method-assign]
        outcome = await run_eapol_test("127.0.0.1", port, SECRET, **given)
        assert (outcome.code, outcome.eap_code, outcome.vlan) == ("reject", 4, None)
        said = (tmp_path / "eapol_test.log").read_text()
        assert "resumed=1" not in said
        assert [one.reason_code for one in desk.decisions[-2:]] == ["rule-matched", "credential-revoked"]

    run(tmp_path, desk, act)


def test_a_value_of_the_service_is_never_expanded(tmp_path: Path) -> None:
    desk, agent = Desk(), campus().agent()

    async def act(service: DecisionService, port: int, log: Path) -> None:
        desk.admit(agent, txn="%{md5:x}")
        outcome = await ask(port, agent)
        assert outcome.attributes[25] == [b"%{md5:x}"]

    run(tmp_path, desk, act)


@VERSIONS
def test_a_supplicant_that_pins_root_and_name_refuses_an_agent_posing_as_the_server(
    tmp_path: Path, version: str
) -> None:
    need_eapol_test()
    poser, agent = campus().agent(), campus().agent()
    desk = Desk()
    desk.admit(agent)

    async def act(service: DecisionService, port: int, log: Path) -> None:
        for outcome in (
            await ask(port, agent, tls_version=version),
            await run_eapol_test("127.0.0.1", port, SECRET, **login(agent, tls_version=version)),
        ):
            assert outcome.code == "reject"
            assert outcome.trouble
        assert service.calls == 0

    run(tmp_path, desk, act, certificate_chain_pem=poser.pem.decode(), key_pem=poser.key_pem.decode())
