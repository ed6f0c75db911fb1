"""One named test per class of bug that RADIUS servers and access control products have had."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from appliance.access.routes import AccessRoutes
from appliance.errors import TokenRequired
from appliance.web.peer import Peer
from est.exchange import Call
from lab.supplicant import _Peer, authenticate
from radius import packets, to_attributes, wire
from radius.clients import MAX_REMEMBERED, NasClient, NasTable
from radius.decide import Decision
from radius.dynamic import SessionName, read_answer, write_order
from radius.eap_tls import FAILURE, IDENTITY, NAK, REQUEST, RESPONSE, SUCCESS, TLS, Eap, read_eap, write_eap
from radius.errors import EapOutOfTurn, PacketInvalid, RaddbValueInvalid
from radius.handshake import TlsFront
from radius.login import Ask, Challenge, Login, Verdict
from radius.nas_profiles import PROFILES
from radius.render import NasEntry, check_nas
from radius.request import AccessRequest
from radius.server import RadiusServer
from tests.radius.test_decide import ask
from tests.radius.test_packets import attribute, request_octets
from tests.radius.test_server import Port, on_port, once, run
from tests.radius.world import ALICE, OWNER_ID_OID, SECRET, SERVER_NAME, Desk, campus, identity, login, owner

ROOT = Path(__file__).parents[2]

# ---- RADIUS forgery (CVE-2024-3596, Blast-RADIUS)


def test_blast_radius_nothing_unsigned_is_answered_and_every_answer_is_signed_first() -> None:
    async def act(server: RadiusServer, port: Port) -> None:
        unsigned = b"\x01\x07\x00\x19" + bytes(16) + attribute(1, b"bob")
        port.transport.sendto(unsigned)
        await asyncio.sleep(0.1)
        assert port.answers.empty() and server.counters.invalid == 1
        for attributes in (
            (attribute(79, write_eap(Eap(2, 1, 1, b"bob"))),),  # Challenge
            (attribute(1, b"bob"),),  # Reject
            (attribute(79, b"\x02\x01\x00\x05\x0d"), attribute(24, b"no such state")),  # Reject
        ):
            port.transport.sendto(request_octets(*attributes, authenticator=hashlib.md5(attributes[0]).digest()))
            assert (await asyncio.wait_for(port.answers.get(), 60))[20:22] == b"\x50\x12"

    on_port(Desk(), act)


def test_blast_radius_a_flood_of_proxy_state_is_dropped_and_some_comes_back() -> None:
    """The attack hides its collision in Proxy-State, which a server has to give back."""
    many = request_octets(*[attribute(33, b"x")] * (wire.MAX_ATTRIBUTES + 1))
    with pytest.raises(PacketInvalid, match="attributes"):
        packets.read_request(many, SECRET)
    few = packets.read_request(request_octets(attribute(33, b"one"), attribute(33, b"two")), SECRET)
    assert wire.read_packet(packets.write_reply(few, 3)).get(33) == [b"one", b"two"]


def test_blast_radius_answers_to_our_own_requests_are_held_to_it_too() -> None:
    order = write_order(
        PROFILES["hostapd"].end, SessionName("192.0.2.1", "x"), (), secret=SECRET, identifier=1, timestamp=1
    )
    bare = wire.write_reply(41, 1, order[4:20], b"", SECRET, signed=False)
    with pytest.raises(PacketInvalid):
        read_answer(bare, order, SECRET, must_be_signed=True)
    broken = bytearray(wire.write_reply(41, 1, order[4:20], b"", SECRET))
    broken[25] ^= 1
    broken[4:20] = hashlib.md5(bytes(broken[:4]) + order[4:20] + bytes(broken[20:]) + SECRET).digest()
    with pytest.raises(PacketInvalid, match="Message-Authenticator"):
        read_answer(bytes(broken), order, SECRET)


def test_blast_radius_the_rendered_clients_of_freeradius_demand_it() -> None:
    from radius.render import render
    from tests.interop.radius_tools import raddb_values

    clients = render(raddb_values(Path("/tmp/raddb"), 8444, 1812))["clients.conf"]
    assert clients.count("client ") == clients.count("require_message_authenticator = yes") > 0


# ---- tagged tunnel attributes (CVE-2003-0967, CVE-2017-10981, CVE-2017-10984)


@pytest.mark.parametrize("vlan", [-1, 0, 1, 4094, 4095, 4096, None])
def test_tagged_attributes_only_a_vlan_in_range_is_sent_and_never_with_a_tag(vlan: int | None) -> None:
    found = {one.code: one.octets for one in to_attributes(ask()._replace(vlan=vlan))}
    if vlan in (1, 4094):
        assert found[81] == str(vlan).encode() and found[81][0] > 0x1F
        assert (found[64], found[65]) == (b"\0\0\0\x0d", b"\0\0\0\x06")
    else:
        assert not {64, 65, 81} & found.keys()


def test_tagged_attributes_of_every_length_and_tag_do_no_harm_in_a_request() -> None:
    async def act(server: RadiusServer, port: Port) -> None:
        identity_response = attribute(79, write_eap(Eap(2, 1, 1, b"bob")))
        for code in (64, 65, 69, 81):
            values = [bytes(length) for length in range(5)] + [bytes([tag, 49]) for tag in range(33)]
            for value in values:
                answer = await port.ask(identity_response, attribute(code, value))
                assert answer is not None and answer[0] == [b"\x0b"]
                assert not {64, 65, 81} & answer.keys()

    on_port(Desk(), act)


# ---- session resumption that skips policy (CVE-2017-9148)


class Resuming(_Peer):
    """A supplicant that offers the session that it had before."""

    def offer(self, before: Resuming) -> None:
        session = before._tls.get_session()
        self._tls = SSL.Connection(before._tls.get_context(), None)
        self._tls.set_connect_state()
        if session is not None:
            self._tls.set_session(session)


def _log_in(
    version: str, before: Resuming | None, front: TlsFront, desk: Desk, agent: Any
) -> tuple[Decision, Resuming]:
    peer = Resuming("x", agent.pem, agent.key_pem, campus().root_pem, SERVER_NAME, version, 1000)  # type: ignore[arg-type]
    if before is not None:
        peer.offer(before)
    flow = Login(front, AccessRequest(), owner_id_oid=OWNER_ID_OID, fragment_bytes=1000)
    result: Any = flow.receive(peer.identity_response())
    while not isinstance(result, Verdict):
        if isinstance(result, Ask):
            result = flow.decided(desk.authorize(result.request))
        else:
            result = flow.receive(peer.answer(result.eap))
    return result.decision, peer


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda desk, agent: desk.admit(agent, state="revoked"), "credential-revoked"),
        (lambda desk, agent: desk.owners.update({ALICE: owner(state="suspended")}), "owner-suspended"),
        (lambda desk, agent: desk.owners.update({ALICE: owner("HR")}), "rule-matched"),
    ],
    ids=["revoked", "suspended", "department"],
)
def test_resumption_every_login_shows_its_certificate_and_is_decided(version: str, change: Any, code: str) -> None:
    desk, agent, front = Desk(), campus().agent(), TlsFront(identity(campus().server()), [campus().agents_ca])
    desk.admit(agent)
    decision, peer = _log_in(version, None, front, desk, agent)
    assert decision.vlan == 20
    change(desk, agent)
    decision, _ = _log_in(version, peer, front, desk, agent)
    assert decision.reason_code == code
    assert decision.vlan == (30 if code == "rule-matched" else None)
    assert [one.credential.serial for one in desk.asked] == [agent.certificate.serial_number] * 2  # type: ignore[union-attr]


def test_resumption_after_a_first_session_that_failed_gives_nothing() -> None:
    desk, agent, front = Desk(), campus().agent(), TlsFront(identity(campus().server()), [campus().agents_ca])
    desk.admit(agent, state="revoked")
    for _ in range(2):
        decision, peer = _log_in("1.2", None, front, desk, agent)
        assert decision.verdict == "reject"
        decision, _ = _log_in("1.2", peer, front, desk, agent)
        assert decision.verdict == "reject"


# ---- EAP methods and their states (CVE-2015-8763, CVE-2019-11234, CVE-2019-11235)

METHODS = {"MD5": 4, "OTP": 5, "GTC": 6, "SIM": 18, "TTLS": 21, "AKA": 23, "PEAP": 25, "MSCHAPv2": 26, "FAST": 43,
           "PWD": 52, "TEAP": 55, "expanded": 254, "zero": 0}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", ["first", "after start", "in the handshake"])
def test_eap_methods_nothing_but_tls_comes_to_a_decision(method: str, at: str) -> None:
    front = TlsFront(identity(campus().server()), [campus().agents_ca])
    flow = Login(front, AccessRequest(), owner_id_oid=OWNER_ID_OID, fragment_bytes=1000)
    answer: Any = None
    if at != "first":
        answer = flow.receive(write_eap(Eap(RESPONSE, 1, IDENTITY, b"bob")))
    if at == "in the handshake":
        agent = campus().agent()
        peer = _Peer("x", agent.pem, agent.key_pem, campus().root_pem, SERVER_NAME, "1.3", 1000)
        answer = flow.receive(peer.answer(answer.eap))
    number = 1 if answer is None else read_eap(answer.eap).identifier
    result = flow.receive(write_eap(Eap(RESPONSE, number, METHODS[method], b"\x00" * 20)))
    assert isinstance(result, Verdict) and result.decision.verdict == "reject" and not result.msk


@pytest.mark.parametrize("code", [REQUEST, SUCCESS, FAILURE, 0, 5])
def test_eap_states_a_peer_cannot_play_the_server(code: int) -> None:
    front = TlsFront(identity(campus().server()), [campus().agents_ca])
    flow = Login(front, AccessRequest(), owner_id_oid=OWNER_ID_OID, fragment_bytes=1000)
    started = flow.receive(write_eap(Eap(RESPONSE, 1, IDENTITY, b"bob")))
    assert isinstance(started, Challenge)
    result = flow.receive(bytes([code, read_eap(started.eap).identifier, 0, 4]))
    assert isinstance(result, Verdict) and result.decision.reason_code == "eap-malformed"


def test_eap_states_nothing_is_taken_while_a_decision_is_awaited_nor_afterwards() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    front = TlsFront(identity(campus().server()), [campus().agents_ca])
    flow = Login(front, AccessRequest(), owner_id_oid=OWNER_ID_OID, fragment_bytes=1000)
    peer = _Peer("x", agent.pem, agent.key_pem, campus().root_pem, SERVER_NAME, "1.3", 1000)
    result: Any = flow.receive(peer.identity_response())
    last = b""
    while isinstance(result, Challenge):
        last = peer.answer(result.eap)
        result = flow.receive(last)
    assert isinstance(result, Ask)
    for octets in (last, write_eap(Eap(RESPONSE, read_eap(last).identifier, NAK, b"\x19"))):
        with pytest.raises(EapOutOfTurn):
            flow.receive(octets)
    result = flow.decided(desk.authorize(result.request))
    assert isinstance(result, Challenge)  # the commitment octet of TLS 1.3
    with pytest.raises(RuntimeError):
        flow.decided(desk.decisions[0])
    result = flow.receive(peer.answer(result.eap))
    assert isinstance(result, Verdict) and result.decision.vlan == 20
    with pytest.raises(EapOutOfTurn):
        flow.receive(write_eap(Eap(RESPONSE, read_eap(last).identifier, TLS, b"\x00")))


# ---- a certificate of one party presented as another's (CVE-2012-4523)


@pytest.mark.parametrize("who", ["devices", "infrastructure"])
def test_trust_stores_are_apart_a_certificate_of_another_ca_of_ours_is_a_strangers(who: str) -> None:
    desk, issued = Desk(), campus().agent(ca=who)
    desk.admit(issued)
    outcome = once(desk, issued)
    assert (outcome.code, desk.asked) == ("reject", [])
    assert [failure.reason_code for failure in desk.failures] == ["tls-unknown-ca"]


# ---- caches that strangers fill (CVE-2021-41991)


def test_caches_of_logins_answers_and_addresses_are_bounded() -> None:
    async def act(server: RadiusServer, port: int) -> None:
        eap = attribute(79, write_eap(Eap(2, 1, 1, b"bob")))
        for number in range(3000):
            octets = request_octets(eap, authenticator=number.to_bytes(16, "big"))
            server.receive(octets, ("192.0.2.1", number))
        assert server.sessions == 100
        assert len(server._duplicates) <= 264
        assert server.counters.sessions_refused == 2900

    run(Desk(), act, max_sessions=100)
    table = NasTable([NasClient("10.0.0.0/8", "big", SECRET)])
    for number in range(3 * MAX_REMEMBERED):
        assert table.find(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}") is not None
    assert len(table._remembered) <= MAX_REMEMBERED


# ---- access control products (CVE-2011-4068, CVE-2012-4740, CVE-2012-4742, CVE-2024-39024)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic cm9vdDo=", "bearer  ", "Bearer \x00"])
@pytest.mark.parametrize("route", ["decide", "accounting"])
def test_nac_an_empty_or_absent_credential_opens_nothing(header: str | None, route: str) -> None:
    class Service:
        def check_token(self, token: str) -> str:
            raise TokenRequired("unknown")

    routes = AccessRoutes(Service(), None, owner_id_oid=OWNER_ID_OID, reply_message=True)  # type: ignore[arg-type]
    headers = {} if header is None else {"authorization": header}
    call = Call("POST", "/", "application/json", headers, b"{}")

    async def ask_it() -> None:
        answer = getattr(routes, route)(call, Peer(), {})
        if asyncio.iscoroutine(answer):
            await answer

    with pytest.raises(TokenRequired):
        asyncio.run(ask_it())


FORBIDDEN = {"eval", "exec", "compile", "os.system", "os.popen", "pickle.loads", "marshal.loads"}


@pytest.mark.parametrize("package", ["radius", "appliance/access", "appliance/console", "appliance/web"])
def test_nac_no_shell_and_no_eval_anywhere_near_the_network(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in (
                    "eval",
                    "exec",
                    "compile",
                    "os.system",
                    "os.popen",
                    "pickle.loads",
                    "marshal.loads",
                ), path
                assert "subprocess_shell" not in name, path
                assert not any(word.arg == "shell" for word in node.keywords), path


@pytest.mark.parametrize("name", ["a b", "x;id", "$(id)", "`id`", "a\nb", "../x", "<script>", "%{exec:id}", ""])
def test_nac_names_that_mean_something_elsewhere_are_refused_or_inert(name: str) -> None:
    with pytest.raises(RaddbValueInvalid):
        check_nas(NasEntry(name, "192.0.2.1", SECRET.decode()))
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act(server: RadiusServer, port: int) -> None:
        outcome = await authenticate(
            "127.0.0.1", port, SECRET, **login(agent, identity=name or "x", nas_port=name or "x")
        )
        assert (outcome.code, outcome.vlan) == ("accept", "20")

    run(desk, act)
    assert "\n" not in desk.asked[0].user_name and "\n" not in desk.asked[0].nas_port
    assert json.dumps(desk.decisions[0].steps)
