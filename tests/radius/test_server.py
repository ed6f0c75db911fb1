"""The embedded RADIUS server against the pip-only peer, over real sockets."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from lab.supplicant import Outcome, authenticate
from radius.eap_tls import Eap, read_eap, write_eap
from radius.server import Nas, RadiusServer
from tests.radius.test_packets import attribute, pyrad_request, request_octets
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
    assert not outcome.reply_message  # RFC 3579, section 2.6.5
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
        (lambda: campus().without_client_purpose(), "tls-certificate-unsuitable"),
        (_expired, "tls-certificate-expired"),
        (_future, "tls-certificate-not-yet-valid"),
    ],
    ids=["stranger", "ldevid", "agent-of-devices-ca", "radius-server", "no-client-purpose", "expired", "future"],
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


class Port(asyncio.DatagramProtocol):
    """A switch port that sends what it is told."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()
        self.state = b""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.answers.put_nowait(data)

    @classmethod
    async def to(cls, port: int) -> Port:
        loop = asyncio.get_running_loop()
        transport, made = await loop.create_datagram_endpoint(cls, remote_addr=("127.0.0.1", port))
        made.transport = transport
        return made

    async def ask(self, *attributes: bytes, code: int = 1, seconds: float = 1.0) -> dict[int, list[bytes]] | None:
        """The attributes of the answer (0: its code), or None where none came."""
        octets = request_octets(*attributes, code=code, authenticator=secrets.token_bytes(16))
        self.transport.sendto(octets)
        try:
            answer = await asyncio.wait_for(self.answers.get(), seconds)
        except TimeoutError:
            return None
        request = pyrad_request(octets)
        reply = request.CreateReply(packet=answer)
        assert request.VerifyReply(reply, answer, enforce_ma=True)
        return {0: [bytes([reply.code])], **{key: reply.get(key) for key in dict.keys(reply)}}

    async def eap(self, packet: Eap, **options: float) -> tuple[int, Eap] | None:
        """(RADIUS code, EAP packet) of the answer to an EAP packet in this login."""
        octets = write_eap(packet)
        parts = [attribute(79, octets[at : at + 253]) for at in range(0, len(octets), 253)]
        state = [attribute(24, self.state)] if self.state else []
        answer = await self.ask(*parts, *state, **options)
        if answer is None:
            return None
        self.state = answer.get(24, [self.state])[0]
        return answer[0][0][0], read_eap(b"".join(answer[79]))


def on_port(desk: Desk, act: Callable[[RadiusServer, Port], Awaitable[None]], **options: object) -> None:
    async def with_port(server: RadiusServer, port: int) -> None:
        plug = await Port.to(port)
        try:
            await act(server, plug)
        finally:
            plug.transport.close()

    run(desk, with_port, **options)


def test_status_server_is_answered() -> None:
    async def act(server: RadiusServer, port: Port) -> None:
        answer = await port.ask(code=12)
        assert answer is not None
        assert answer[0] == [b"\x02"]
        assert answer.keys() == {0, 80}

    on_port(Desk(), act)


def test_a_login_without_eap_is_rejected_and_logged() -> None:
    desk = Desk()

    async def act(server: RadiusServer, port: Port) -> None:
        answer = await port.ask(attribute(1, b"bob"), attribute(2, bytes(16)))
        assert answer is not None
        assert answer[0] == [b"\x03"]

    on_port(desk, act)
    assert [failure.reason_code for failure in desk.failures] == ["eap-not-offered"]


def test_a_supplicant_of_another_method_is_rejected_and_logged() -> None:
    desk = Desk()

    async def act(server: RadiusServer, port: Port) -> None:
        assert await port.eap(Eap(2, 1, 1, b"bob")) == (11, Eap(1, 2, 13, b"\x20"))
        assert await port.eap(Eap(2, 2, 3, b"\x19")) == (3, Eap(4, 2))
        assert server.sessions == 0

    on_port(desk, act)
    (failure,) = desk.failures
    assert (failure.reason_code, failure.steps[0].evidence) == ("eap-method-refused", "offers EAP methods 25")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xc0\xff\xff\xff\xffx", "eap-malformed"),
        (b"\x40x", "eap-malformed"),
        (b"", "eap-malformed"),
        (b"\x00" + b"GET / HTTP/1.1\r\n", "tls-handshake-failed"),
        (b"\x00" + b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "tls-handshake-failed"),
        (b"\x00" + b"\x15\x03\x03\x00\x02\x02\x30", "tls-handshake-failed"),
        (b"\x00" + b"\x16\x03\x01\x02\x00\x01", "eap-malformed"),
    ],
)
def test_rubbish_in_the_handshake_ends_the_login_with_its_reason(data: bytes, code: str) -> None:
    desk = Desk()

    async def act(server: RadiusServer, port: Port) -> None:
        await port.eap(Eap(2, 1, 1, b"bob"))
        answer = await port.eap(Eap(2, 2, 13, data))
        if answer is not None and answer[0] == 11:  # an alert, to be acknowledged
            assert answer[1].data[5:6] == b"\x15"
            answer = await port.eap(Eap(2, answer[1].identifier, 13, b"\x00"))
        assert answer is not None
        assert (answer[0], answer[1].code) == (3, 4)
        assert server.sessions == 0

    on_port(desk, act)
    assert [failure.reason_code for failure in desk.failures] == [code]
    assert not desk.asked


def test_an_answer_to_an_older_request_is_discarded_in_silence() -> None:
    async def act(server: RadiusServer, port: Port) -> None:
        await port.eap(Eap(2, 1, 1, b"bob"))
        assert await port.eap(Eap(2, 9, 13, b"\x00x"), seconds=0.2) is None
        assert server.counters.discarded == 1
        assert server.sessions == 1

    on_port(Desk(), act)


def test_the_state_of_no_login_is_rejected_at_once_and_logged() -> None:
    desk = Desk()

    async def act(server: RadiusServer, port: Port) -> None:
        port.state = bytes(16)
        assert await port.eap(Eap(2, 5, 13, b"\x00")) == (3, Eap(4, 5))
        assert (server.sessions, server.counters.rejects, server.counters.accepts) == (0, 1, 0)

    on_port(desk, act)
    (failure,) = desk.failures
    assert (failure.reason_code, failure.request.nas) == ("eap-login-unknown", "switch-1")
    assert not desk.asked


def test_what_goes_on_with_a_login_of_before_a_restart_is_one_row_however_often_it_is_sent() -> None:
    old, new, answers = Desk(), Desk(), []

    async def begin(server: RadiusServer, port: Port) -> None:
        assert (await port.eap(Eap(2, 1, 1, b"bob")))[0] == 11  # type: ignore[index]
        answers.append(port.state)

    async def go_on(server: RadiusServer, port: Port) -> None:
        octets = write_eap(Eap(2, 2, 13, b"\x00x"))
        parts = attribute(79, octets), attribute(24, answers[0]), attribute(31, b"02-00-00-00-00-01")
        same = request_octets(*parts, authenticator=secrets.token_bytes(16))
        for _ in range(3):
            port.transport.sendto(same)
            assert (await asyncio.wait_for(port.answers.get(), 1.0))[0] == 3
        assert server.counters.duplicates == 2

    on_port(old, begin)
    on_port(new, go_on)
    (failure,) = new.failures
    assert (failure.reason_code, failure.request.calling_station) == ("eap-login-unknown", "02-00-00-00-00-01")


def test_one_nas_cannot_go_on_with_the_login_of_another() -> None:
    desk = Desk()

    async def act(server: RadiusServer, port: Port) -> None:
        await port.eap(Eap(2, 1, 1, b"bob"))
        transport, other = await asyncio.get_running_loop().create_datagram_endpoint(
            Port, remote_addr=port.transport.get_extra_info("peername"), local_addr=("127.0.0.2", 0)
        )
        other.transport, other.state = transport, port.state
        assert await other.eap(Eap(2, 2, 13, b"\x00x")) == (3, Eap(4, 2))
        transport.close()
        assert server.sessions == 1

    on_port(desk, act)
    (failure,) = desk.failures
    assert (failure.reason_code, failure.request.nas_address) == ("eap-login-unknown", "127.0.0.2")
    assert "another NAS" in failure.steps[0].evidence


@pytest.mark.slow
def test_random_packets_of_a_known_nas_never_stop_the_server() -> None:
    desk, agent, chance = Desk(), campus().agent(), random.Random(1)
    desk.admit(agent)

    async def act(server: RadiusServer, port: Port) -> None:
        for _ in range(3000):
            length = chance.choice([0, 1, 4, 5, 6, 10, 200, 253])
            body = chance.choice([attribute(79, chance.randbytes(length)), attribute(79, b"\x02\x01\x00\x06\x01x")])
            state = [attribute(24, port.state)] if chance.random() < 0.8 and port.state else []
            port.transport.sendto(request_octets(body, *state, authenticator=chance.randbytes(16)))
            port.transport.sendto(chance.randbytes(length))
            if chance.random() < 0.1:
                await asyncio.sleep(0)
                while not port.answers.empty():
                    answer = port.answers.get_nowait()
                    port.state = answer[-16:] if answer[0] == 11 else port.state
        while not port.answers.empty():
            port.answers.get_nowait()
        await asyncio.sleep(1.2)
        port_number = server._transport.get_extra_info("sockname")[1]  # type: ignore[union-attr]
        assert (await authenticate("127.0.0.1", port_number, SECRET, **login(agent))).code == "accept"

    on_port(desk, act, max_sessions=100, session_seconds=1.0)


def test_many_logins_at_once_each_get_their_own_answer() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    revoked = campus().agent()
    desk.admit(revoked, state="revoked")

    async def act(server: RadiusServer, port: int) -> None:
        logins = [
            authenticate("127.0.0.1", port, SECRET, **login(issued, tls_version=version))
            for issued in (agent, revoked)
            for version in ("1.2", "1.3")
            for _ in range(8)
        ]
        outcomes = await asyncio.gather(*logins)
        assert [outcome.vlan for outcome in outcomes] == ["20"] * 16 + [None] * 16
        assert all(outcome.msk_matches for outcome in outcomes[:16])
        assert (server.counters.accepts, server.counters.rejects, server.sessions) == (16, 16, 0)

    run(desk, act)


def test_packets_of_logins_under_way_are_looked_at_before_new_ones_that_came_earlier() -> None:
    looked_at: list[bytes] = []

    async def act(server: RadiusServer, port: int) -> None:
        server.receive = lambda data, addr, **_: looked_at.append(data)  # type: ignore[method-assign]
        new = [request_octets(attribute(1, b"new%d" % at), authenticator=secrets.token_bytes(16)) for at in range(9)]
        later = request_octets(attribute(24, b"state"), authenticator=secrets.token_bytes(16))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for one in (*new, later):
                sender.sendto(one, ("127.0.0.1", port))
        while len(looked_at) < 10:
            await asyncio.sleep(0.01)
        assert looked_at == [later, *new]

    run(Desk(), act)
