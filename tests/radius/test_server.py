"""The embedded RADIUS server against the pip-only peer, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from lab.supplicant import Outcome, authenticate
from radius.server import Nas, RadiusServer
from tests.radius.world import ALICE, SECRET, Desk, Issued, campus, identity, login, now, owner, radius_server

VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


def run(desk: Desk, act: Callable[[RadiusServer, int], Awaitable[None]], **options: object) -> None:
    """Start a server, act on it, close it; never longer than 20 s."""

    async def bounded() -> None:
        server = radius_server(desk, **options)
        port = await server.start()
        try:
            async with asyncio.timeout(20):
                await act(server, port)
        finally:
            await server.close()

    asyncio.run(bounded())


def once(desk: Desk, issued: Issued, **changes: object) -> Outcome:
    """One login of `issued`."""
    outcomes: list[Outcome] = []
    options = {name: changes.pop(name) for name in ("options",) if name in changes}

    async def act(server: RadiusServer, port: int) -> None:
        outcomes.append(await authenticate("127.0.0.1", port, SECRET, **login(issued, **changes)))

    run(desk, act, **options.get("options", {}))
    return outcomes[0]


@VERSIONS
@pytest.mark.req("A-33")
def test_an_agent_of_research_lands_in_vlan_20_and_the_keys_match(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    outcome = once(desk, agent, tls_version=version)
    assert (outcome.code, outcome.vlan, outcome.eap_code, outcome.tls_version) == ("accept", "20", 3, version)
    assert outcome.msk_matches
    assert outcome.protected_success is (version == "1.3")
    assert outcome.attributes[64] == [bytes.fromhex("0000000d")]
    assert outcome.attributes[65] == [bytes.fromhex("00000006")]
    assert outcome.attributes[81] == [b"20"]
    assert outcome.attributes[25] == [b"txn-1"]
    assert outcome.reply_message.startswith("VLAN 20: rule-matched")
    (request,) = desk.asked
    assert (request.nas, request.nas_port, request.user_name) == ("switch-1", "swp1", "anonymous")
    assert request.owner_id_hint == ALICE
    assert request.tls_version == version
    assert not desk.failures


@VERSIONS
@pytest.mark.req("A-111")
def test_the_department_of_now_counts_for_an_unchanged_certificate(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    vlans = []

    async def act(server: RadiusServer, port: int) -> None:
        for department in ("R&D", "HR", "", "Kitchen"):
            desk.owners[ALICE] = owner(department)
            outcome = await authenticate("127.0.0.1", port, SECRET, **login(agent, tls_version=version))
            vlans.append(outcome.vlan)

    run(desk, act)
    assert vlans == ["20", "30", "99", "99"]


@VERSIONS
@pytest.mark.req("A-33", "A-110")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda desk, agent: desk.admit(agent, state="revoked"), "credential-revoked"),
        (lambda desk, agent: desk.admit(agent, state="pending"), "credential-pending"),
        (lambda desk, agent: desk.rows.clear(), "credential-unknown"),
        (lambda desk, agent: desk.owners.clear(), "owner-unknown"),
        (lambda desk, agent: desk.owners.update({ALICE: owner(state="suspended")}), "owner-suspended"),
        (lambda desk, agent: desk.owners.update({ALICE: owner(state="revoked")}), "owner-revoked"),
        (lambda desk, agent: desk.admit(agent, owner_id="spiffe://campus.example/owner/other"), "credential-mismatch"),
        (lambda desk, agent: desk.admit(agent, agent_id="spiffe://campus.example/agent/other"), "credential-mismatch"),
    ],
)
def test_what_policy_refuses_is_a_clean_failure_without_a_vlan(version: str, change: Callable, code: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    change(desk, agent)
    outcome = once(desk, agent, tls_version=version)
    assert (outcome.code, outcome.eap_code, outcome.vlan) == ("reject", 4, None)
    assert not {64, 65, 81} & outcome.attributes.keys()
    assert not outcome.msk_matches
    assert code in outcome.reply_message
    assert [decision.reason_code for decision in desk.decisions] == [code]


def _expired() -> Issued:
    return campus().agent(not_before=now() - timedelta(hours=9), not_after=now() - timedelta(hours=1))


def _future() -> Issued:
    return campus().agent(not_before=now() + timedelta(hours=1), not_after=now() + timedelta(hours=9))


@VERSIONS
@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: campus("stranger").agent(), "tls-unknown-ca"),
        (lambda: campus().ldevid(), "tls-unknown-ca"),
        (lambda: campus().agent(ca="devices"), "tls-unknown-ca"),
        (lambda: campus().server(), "tls-unknown-ca"),
        (_expired, "tls-certificate-expired"),
        (_future, "tls-certificate-not-yet-valid"),
    ],
    ids=["stranger", "ldevid", "agent-of-devices-ca", "radius-server", "expired", "future"],
)
def test_a_certificate_that_tls_refuses_never_reaches_policy_but_the_log(
    version: str, make: Callable, code: str
) -> None:
    desk, issued = Desk(), make()
    desk.admit(issued)
    outcome = once(desk, issued, tls_version=version)
    assert (outcome.code, outcome.eap_code, outcome.vlan) == ("reject", 4, None)
    assert "alert" in outcome.trouble  # the alert was delivered before the Failure
    assert not desk.asked
    (failure,) = desk.failures
    assert failure.reason_code == code
    assert failure.steps[0].outcome == "fail"
    assert "issued by" in failure.steps[0].evidence
    if code != "tls-unknown-ca":  # OpenSSL stops at the unknown CA and does not show us what is below it
        assert failure.request.credential is not None
        assert failure.request.credential.serial == issued.certificate.serial_number


@VERSIONS
def test_a_supplicant_that_pins_the_name_refuses_another_certificate_of_the_campus(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    outcome = once(desk, agent, tls_version=version, options={"identity": identity(campus().agent())})
    assert outcome.code == "reject"
    assert "server certificate refused" in outcome.trouble
    assert [failure.reason_code for failure in desk.failures] == ["tls-refused-by-supplicant"]
    assert not desk.asked


@VERSIONS
def test_a_supplicant_refuses_a_server_of_a_stranger(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    outcome = once(desk, agent, tls_version=version, options={"identity": identity(campus("stranger").server())})
    assert outcome.code == "reject"
    assert "server certificate refused" in outcome.trouble


def test_a_version_that_the_site_does_not_allow_is_refused_in_words() -> None:
    desk, agent = Desk(), campus().agent()
    outcome = once(desk, agent, tls_version="1.2", options={"tls_min": "1.3"})
    assert outcome.code == "reject"
    assert [failure.reason_code for failure in desk.failures] == ["tls-handshake-failed"]


@pytest.mark.req("A-33")
def test_a_request_without_message_authenticator_gets_no_answer() -> None:
    desk, agent = Desk(), campus().agent()
    outcome = once(desk, agent, message_authenticator=False, seconds=0.5)
    assert outcome.code == "timeout"


def test_a_wrong_shared_secret_and_an_unknown_nas_get_no_answer() -> None:
    desk, agent = Desk(), campus().agent()
    assert once(desk, agent, seconds=0.5, options={"nas": lambda _: Nas("switch-1", b"other")}).code == "timeout"
    assert once(desk, agent, seconds=0.5, options={"nas": lambda _: None}).code == "timeout"


@VERSIONS
def test_a_retransmission_gets_the_same_octets_and_no_second_decision(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    counted = []

    async def act(server: RadiusServer, port: int) -> None:
        outcome = await authenticate("127.0.0.1", port, SECRET, **login(agent, tls_version=version, send_twice=True))
        assert (outcome.code, outcome.vlan, outcome.duplicates_identical) == ("accept", "20", True)
        counted.append((server.counters.duplicates, outcome.rounds, server.sessions))

    run(desk, act)
    assert len(desk.decisions) == 1
    assert counted[0][0] == counted[0][1]
    assert counted[0][2] == 0


@VERSIONS
def test_small_fragments_both_ways_work(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    outcome = once(desk, agent, tls_version=version, fragment_bytes=100, options={"fragment_bytes": 200})
    assert (outcome.code, outcome.vlan) == ("accept", "20")
    assert outcome.rounds > 25


def test_logins_past_the_cap_are_dropped_and_the_others_finish() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act(server: RadiusServer, port: int) -> None:
        for _ in range(4):
            await authenticate("127.0.0.1", port, SECRET, **login(agent), stop_after=1)
        assert server.sessions == 4
        assert (await authenticate("127.0.0.1", port, SECRET, **login(agent, seconds=0.3))).code == "timeout"
        assert server.counters.sessions_refused == 1
        await asyncio.sleep(1.6)
        assert server.sessions == 0
        assert (await authenticate("127.0.0.1", port, SECRET, **login(agent))).code == "accept"

    run(desk, act, max_sessions=4, session_seconds=1.0)


def test_a_login_that_stops_half_way_is_logged_as_timeout() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act(server: RadiusServer, port: int) -> None:
        await authenticate("127.0.0.1", port, SECRET, **login(agent), stop_after=3)
        await asyncio.sleep(1.0)
        assert server.sessions == 0
        assert server.counters.timeouts == 1

    run(desk, act, session_seconds=0.4)
    assert [failure.reason_code for failure in desk.failures] == ["eap-timeout"]


def test_a_certificate_with_a_broken_owner_extension_is_refused() -> None:
    desk = Desk()
    agent = campus().agent(owner_id="")
    desk.admit(agent)
    outcome = once(desk, agent)
    assert outcome.code == "reject"
    assert "credential-unreadable" in outcome.reply_message


def test_a_renewed_server_certificate_serves_the_next_login() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act(server: RadiusServer, port: int) -> None:
        server.use_identity(identity(campus().server("radius2.campus.example")))
        outcome = await authenticate("127.0.0.1", port, SECRET, **login(agent, server_name="radius2.campus.example"))
        assert outcome.code == "accept"

    run(desk, act)


def test_no_vlan_is_given_when_the_decision_function_breaks() -> None:
    desk, agent = Desk(), campus().agent()

    def broken(_: object) -> None:
        raise RuntimeError("a defect")

    async def act(server: RadiusServer, port: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        assert (await authenticate("127.0.0.1", port, SECRET, **login(agent, seconds=0.5))).code == "timeout"

    run(desk, act, authorize=broken)
