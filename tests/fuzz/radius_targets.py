"""RADIUS under fuzz: packets, EAP-TLS fragments, tunnel attributes, accounting, answers to CoA, rlm_rest's JSON.

Behind an authenticator mutation gets nowhere, so what the fuzzer makes is signed with the NAS's secret here. The
oracle of the login targets: nothing but a whole handshake with a certificate of ours may reach the decision, so no
input may. A genuine supplicant whose messages are damaged on the way is the target that gets furthest.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from cryptography import x509
from OpenSSL import SSL

from est.transfer import read_json, read_json_pairs
from lab.supplicant import _Peer
from radius import packets, wire
from radius.accounting import read_accounting, read_accounting_json, read_accounting_request
from radius.attributes import to_attributes
from radius.clients import Nas
from radius.decide import Decision, refuse
from radius.dropped import MAX_TIMES, Dropped, read_dropped, write_dropped
from radius.dynamic import SessionName, read_answer, write_order
from radius.eap_tls import IDENTITY, RESPONSE, TLS, Eap, read_eap, write_eap
from radius.errors import EapOutOfTurn, RadiusError
from radius.handshake import TlsFront
from radius.hook import read_hook, write_answer
from radius.login import Ask, Challenge, Login, Verdict
from radius.nas_profiles import PROFILES
from radius.request import AccessRequest
from radius.server import RadiusServer
from tests.fuzz.target import Target
from tests.radius.test_decide import ask
from tests.radius.world import OWNER_ID_OID, SECRET, SERVER_NAME, Desk, campus, identity

MAX_MESSAGES = 24


class WrongAccept(Exception):
    """An input without a good certificate came to a decision or an Access-Accept."""


@cache
def _front() -> TlsFront:
    return TlsFront(identity(campus().server()), [campus().agents_ca])


@cache
def _agent() -> tuple[bytes, bytes]:
    agent = campus().agent()
    return agent.pem, agent.key_pem


# ---- packets


def _raw(data: bytes) -> None:
    """A datagram of a stranger."""
    for read in (packets.read_request, read_accounting_request):
        try:
            read(data, SECRET)
        except RadiusError:
            continue
        raise WrongAccept("a datagram whose maker does not know the secret was taken")


class _Wire:
    """Where a server's answers go."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def sendto(self, octets: bytes, addr: Any) -> None:
        self.sent.append(octets)


def _server() -> tuple[RadiusServer, _Wire, Desk]:
    desk = Desk()
    server = RadiusServer(
        identity=identity(campus().server()), anchors=[campus().agents_ca], nas=lambda address: Nas("s", SECRET),
        authorize=desk.authorize, on_failure=desk.on_failure, owner_id_oid=OWNER_ID_OID, max_sessions=64,
    )  # fmt: skip
    wired = _Wire()
    server._transport = wired  # type: ignore[assignment]
    return server, wired, desk


_SERVER: list[tuple[RadiusServer, _Wire, Desk]] = []


def _signed(data: bytes) -> None:
    """Attributes of a NAS that knows the secret; packets are divided by two zero octets where a State may go on."""
    if not _SERVER:
        _SERVER.append(_server())
    server, wired, desk = _SERVER[0]
    wired.sent.clear()
    server._duplicates.clear()
    server._sessions.clear()
    state = b""
    for number, attributes in enumerate(data.split(b"\x00\x00")[:MAX_MESSAGES]):
        body = wire.attribute(packets.STATE, state) + attributes if state else attributes
        server.receive(signed_request(body[:4000], number), ("192.0.2.1", 1))
        for octets in wired.sent:
            reply = wire.read_packet(octets)
            if reply.code == wire.ACCESS_ACCEPT or {64, 65, 81} & set(reply.attributes):
                raise WrongAccept("an Access-Accept without a handshake")
            state = next(iter(reply.get(packets.STATE)), b"")
        wired.sent.clear()
    if desk.asked:
        desk.asked.clear()
        raise WrongAccept("a decision without a handshake")
    desk.failures.clear()


def signed_request(attributes: bytes, identifier: int = 7, code: int = 1) -> bytes:
    """An Access-Request that is authentic, whatever its attributes are."""
    mark = b"\x50\x12" + bytes(16)
    body = mark + attributes
    head = bytes([code, identifier & 0xFF]) + (20 + len(body)).to_bytes(2, "big") + bytes(16)
    return head + mark[:2] + hmac.digest(SECRET, head + body, "md5") + attributes


# ---- EAP-TLS


def _login() -> Login:
    return Login(_front(), AccessRequest(nas="s"), owner_id_oid=OWNER_ID_OID, fragment_bytes=1000)


def _messages(data: bytes) -> Iterator[bytes]:
    """Two octets of length, then the type-data of an EAP-TLS packet."""
    for _ in range(MAX_MESSAGES):
        if len(data) < 2:
            return
        size = int.from_bytes(data[:2], "big") % 1500
        yield data[2 : 2 + size]
        data = data[2 + size :]


def _take(login: Login, octets: bytes) -> Challenge | None:
    """One packet; None once the login is over. WrongAccept for anything but a challenge or a reject."""
    try:
        result = login.receive(octets)
    except EapOutOfTurn:
        return None
    if isinstance(result, Ask) or (isinstance(result, Verdict) and result.decision.verdict != "reject"):
        raise WrongAccept("a login without a good certificate came to a decision")
    return result if isinstance(result, Challenge) else None


def _fragments(data: bytes) -> None:
    """Type-data of the fuzzer's with identifiers that fit."""
    login = _login()
    answer = _take(login, write_eap(Eap(RESPONSE, 1, IDENTITY, b"x")))
    for message in _messages(data):
        if answer is None:
            return
        answer = _take(login, write_eap(Eap(RESPONSE, read_eap(answer.eap).identifier, TLS, message)))


def _eap_packets(data: bytes) -> None:
    """Whole EAP packets of the fuzzer's."""
    login = _login()
    for message in _messages(data):
        try:
            _take(login, message)
        except RadiusError:
            return


def _damaged(data: bytes) -> None:
    """A genuine agent's login in which one message is damaged: which, where and how the input says.

    Damage that changes nothing may pass, and so may damage to EAP framing that comes to the same. What must not happen
    is a decision on another certificate than the agent's.
    """
    if len(data) < 4:
        return
    chain, key = _agent()
    version = "1.3" if data[0] & 1 else "1.2"
    peer = _Peer("x", chain, key, campus().root_pem, SERVER_NAME, version, 1000)  # type: ignore[arg-type]
    which, at, change = data[0] >> 1 & 15, int.from_bytes(data[1:3], "big"), data[3:]
    login = _login()
    octets = peer.identity_response()
    for number in range(MAX_MESSAGES):
        if number == which and octets:
            place = at % len(octets)
            octets = octets[:place] + change + octets[place + len(change) :]
        try:
            result: Any = login.receive(octets)
        except EapOutOfTurn:
            return
        if isinstance(result, Ask):
            found = result.request.credential
            if found is None and not result.request.defect:
                raise WrongAccept("a decision is asked for without a credential")
            if found is not None and found.serial != _serial():
                raise WrongAccept("another certificate than the agent's came to a decision")
            return
        if isinstance(result, Verdict):
            if result.decision.verdict != "reject":
                raise WrongAccept("an accept without a decision")
            return
        try:
            octets = peer.answer(result.eap)
        except (RadiusError, SSL.Error):
            return


@cache
def _serial() -> int:
    return x509.load_pem_x509_certificates(_agent()[0])[0].serial_number


# ---- what is written and read besides


def _tunnel(data: bytes) -> None:
    """Any decision's attributes fit, are untagged, and name a VLAN in range or none."""
    if len(data) < 3:
        return
    text = data[3:].decode("utf-8", "replace")
    vlan = int.from_bytes(data[:2], "big") - 100
    verdict = ("accept", "guest", "reject")[data[2] % 3]
    decision: Decision = ask()._replace(
        vlan=vlan,
        verdict=verdict,
        agent_id=text,
        txn=text,
        vlan_name=text,
        reason_code="rule-matched",  # type: ignore[arg-type]
    )
    octets = b"".join(wire.attribute(one.code, one.octets) for one in to_attributes(decision))
    request = packets.read_request(signed_request(b""), SECRET)
    for code in (wire.ACCESS_ACCEPT, wire.ACCESS_REJECT):
        reply = wire.read_packet(packets.write_reply(request, code, attributes=to_attributes(decision)))
        groups = reply.get(81)
        if groups:
            (group,) = groups
            if code == wire.ACCESS_REJECT or verdict == "reject" or not 1 <= int(group) <= 4094 or group[0] < 0x20:
                raise WrongAccept("a VLAN where none may be, out of range, or tagged")
            assert reply.get(64) == [b"\x00\x00\x00\x0d"] and reply.get(65) == [b"\x00\x00\x00\x06"]
    assert len(octets) < 2000
    json.loads(write_answer(decision))


def _accounting(data: bytes) -> None:
    octets = wire.write_request(wire.ACCOUNTING_REQUEST, 7, data[:4000], SECRET)
    read_accounting(read_accounting_request(octets, SECRET), nas="s", nas_address="192.0.2.1")


_ORDER = write_order(
    PROFILES["hostapd"].end, SessionName("192.0.2.1", "02-00-00-00-00-01"), (), secret=SECRET, identifier=7, timestamp=1
)


def _coa_raw(data: bytes) -> None:
    try:
        read_answer(data, _ORDER, SECRET)
    except RadiusError:
        return
    raise WrongAccept("an answer of somebody who does not know the secret was believed")


def _coa_signed(data: bytes) -> None:
    code = 41 + (data[0] if data else 0) % 2
    octets = wire.write_reply(code, 7, _ORDER[4:20], data[1:4000], SECRET)
    if read_answer(octets, _ORDER, SECRET).is_ack != (code == 41):
        raise WrongAccept("a no was taken for a yes")


def _hook(data: bytes) -> None:
    request = read_hook(read_json(data, max_bytes=65_536, max_depth=256), owner_id_oid=OWNER_ID_OID)
    decision = Desk().authorize(request)
    if decision.verdict != "reject":
        raise WrongAccept("a credential that nobody issued was accepted")
    json.loads(write_answer(decision))


def _hook_accounting(data: bytes) -> None:
    read_accounting_json(read_json(data, max_bytes=65_536, max_depth=256))


def _hook_dropped(data: bytes) -> None:
    for failure, times in read_dropped(read_json_pairs(data, max_bytes=65_536)) or ():
        refuse(failure.request, failure.code, failure.detail)
        if not 1 <= times <= MAX_TIMES:
            raise WrongAccept("a number beyond all bounds was taken")


def _json_seeds() -> tuple[bytes, ...]:
    body = {
        "TLS-Client-Cert-X509v3-Authority-Key-Identifier": {"type": "string", "value": ["77:C1:00"]},
        "TLS-Client-Cert-Serial": {"type": "string", "value": ["0beef"]},
        "TLS-Client-Cert-X509v3-Subject-Alternative-Name": {"type": "string", "value": ["URI:spiffe://x/agent/1"]},
        f"TLS-Client-Cert-{OWNER_ID_OID}": {"type": "octets", "value": ["0x16026162"]},
        "User-Name": {"type": "string", "value": ["%{exec:x}"]},
        "NAS-Port": {"type": "integer", "value": [7]},
        "Acct-Status-Type": {"type": "integer", "value": ["Interim-Update"]},
        "Class": {"type": "octets", "value": ["0x616263"]},
        "Acct-Input-Gigawords": {"type": "integer", "value": [1]},
    }
    dropped = write_dropped({Dropped("radius-secret-wrong", "switch-1", "192.0.2.1"): 7})
    return (json.dumps(body).encode(), b"{}", json.dumps({"a": {"value": []}}).encode(), dropped)


def _packet_seeds() -> tuple[bytes, ...]:
    identity_response = write_eap(Eap(RESPONSE, 1, IDENTITY, b"bob"))
    login = wire.attribute(1, b"bob") + wire.attribute(31, b"02-00-00-00-00-01") + wire.attribute(79, identity_response)
    nak = wire.attribute(79, write_eap(Eap(RESPONSE, 2, 3, b"\x19")))
    tls = wire.attribute(79, write_eap(Eap(RESPONSE, 2, TLS, _hello()[:200])))
    return (login, login + b"\x00\x00" + nak, login + b"\x00\x00" + tls)


@cache
def _hello() -> bytes:
    """The type-data of a genuine ClientHello."""
    peer = _Peer("x", *_agent(), campus().root_pem, SERVER_NAME, "1.3", 1000)
    return read_eap(peer.answer(write_eap(Eap(1, 2, TLS, b"\x20")))).data


def _accounting_seeds() -> tuple[bytes, ...]:
    return tuple(
        wire.joined([(40, number.to_bytes(4, "big")), (44, b"A1"), (31, b"02-00-00-00-00-01"), (25, b"txn"),
                     (42, b"\0\0\0\7"), (52, b"\0\0\0\1"), (49, b"\0\0\0\2")])
        for number in (1, 2, 3, 7, 8)
    )  # fmt: skip


def radius_targets() -> Mapping[str, Target]:
    """All of them, by name."""
    hello = _hello()
    framed = len(hello).to_bytes(2, "big") + hello
    eap = write_eap(Eap(RESPONSE, 1, IDENTITY, b"bob"))
    cause = wire.attribute(101, b"\0\0\1\xf7")
    places = [(which << 1 | version, at) for which in range(6) for version in (0, 1) for at in (1, 9, 40)]
    damage = [bytes([which, 0, at, 0xFF]) for which, at in places]
    return {
        "radius-datagram": Target((_raw,), (signed_request(b"")[:19], signed_request(b"")[:-1], b"\x01" * 40)),
        "radius-packet": Target((_signed,), _packet_seeds()),
        "radius-fragments": Target((_fragments, _eap_packets), (framed, len(eap).to_bytes(2, "big") + eap + framed)),
        "radius-damage": Target((_damaged,), tuple(damage)),
        "radius-tunnel": Target((_tunnel,), (b"\x00\x78\x00agent", b"\xff\xff\x01x", b"\x00\x64\x02")),
        "radius-accounting": Target((_accounting,), _accounting_seeds()),
        "radius-coa": Target((_coa_raw, _coa_signed), (b"\x29\x07\x00\x14" + bytes(16), b"\x00" + cause)),
        "radius-hook": Target((_hook, _hook_accounting, _hook_dropped), _json_seeds()),
    }
