"""The port agent's edges: hostapd's words, the kernel's, the RADIUS server's, and the switch's bridges."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from pyrad import packet as pyrad_packet

from lab import port_agent
from lab.wired import bypass, das, fabric, hostapd, links
from radius import packets

SECRET = b"a secret of this test"
STATION = "02:66:00:00:00:02"
NOW = 1_800_000_000.0


# -- hostapd


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (f"<3>AP-STA-CONNECTED {STATION}", ("AP-STA-CONNECTED", STATION)),
        (f"<3>AP-STA-DISCONNECTED {STATION}", ("AP-STA-DISCONNECTED", STATION)),
        (f"<3>CTRL-EVENT-EAP-SUCCESS2 {STATION}", ("CTRL-EVENT-EAP-SUCCESS", STATION)),
        (f"<3>CTRL-EVENT-EAP-FAILURE2 {STATION}", ("CTRL-EVENT-EAP-FAILURE", STATION)),
        ("<3>CTRL-EVENT-EAP-STARTED " + STATION, None),
        ("<3>AP-STA-CONNECTED nobody", None),
        ("PONG", None),
        ("", None),
    ],
)
def test_events_of_hostapd(text: str, event: tuple[str, str] | None) -> None:
    assert hostapd.read_event(text) == event


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{STATION}\nflags=[AUTH][ASSOC][AUTHORIZED]\naid=0\nvlan_id=20\n", (True, 20)),
        (f"{STATION}\nflags=[AUTH][ASSOC]\nvlan_id=20\n", (False, 20)),
        (f"{STATION}\nflags=[AUTHORIZED]\n", (True, 0)),
        (f"{STATION}\nflags=[AUTHORIZED]\nvlan_id=x\n", (True, 0)),
        ("FAIL\n", (False, 0)),
        ("", (False, 0)),
    ],
)
def test_what_hostapd_says_of_a_station(text: str, found: tuple[bool, int]) -> None:
    assert hostapd.read_station(text) == found


# -- the kernel


def link_message(name: str, flags: int, *, kind: int = 16, family: int = 0) -> bytes:
    text = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(text), 3) + text
    attribute += bytes(-len(attribute) % 4)
    body = struct.pack("=BxHiII", family, 1, 7, flags, 0) + attribute
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


UP, RUNNING_UP = 0x1, 0x10001


def test_carrier_is_read_from_the_kernels_messages() -> None:
    octets = link_message("swp1", RUNNING_UP) + link_message("swp2", UP) + link_message("swp3", 0x10000)
    assert list(links.read_links(octets)) == [("swp1", True), ("swp2", False), ("swp3", False)]
    assert list(links.read_links(link_message("swp1", RUNNING_UP, kind=17))) == [("swp1", False)]
    # what a bridge says of its ports is not about the carrier
    assert list(links.read_links(link_message("swp1", UP, family=socket.AF_BRIDGE))) == []


def test_a_message_that_is_cut_anywhere_does_no_harm() -> None:
    octets = link_message("swp1", RUNNING_UP)
    for length in range(len(octets)):
        assert list(links.read_links(octets[:length])) == []
    for length in (0, 8, 16, 31, 65_535):
        list(links.read_links(struct.pack("=I", length) + octets[4:]))


# -- the bridges


class Recorder:
    def __init__(self, refuse: str = "") -> None:
        self.commands: list[str] = []
        self._refuse = refuse

    def __call__(self, command: Sequence[str]) -> None:
        self.commands.append(" ".join(command))
        if self._refuse and self._refuse in self.commands[-1]:
            raise fabric.FabricFailed("not here")


def test_a_port_leaves_its_old_vlan_before_it_enters_the_new_one_and_is_locked_to_its_station() -> None:
    run = Recorder()
    fabric.BridgePerVlan(run).open("swp1", 20, STATION)
    assert run.commands == [
        "ip link set swp1 nomaster",
        "ip link set swp1 master vl20",
        f"bridge fdb replace {STATION} dev swp1 master static",
        "bridge link set dev swp1 locked on learning off",
    ]
    run = Recorder()
    fabric.FilteringBridge(run).open("swp1", 20, STATION)
    assert run.commands == [
        "ip link set swp1 nomaster",
        "ip link set swp1 master brvlan",
        "bridge vlan add dev swp1 vid 20 pvid untagged",
        f"bridge fdb replace {STATION} dev swp1 master static vlan 20",
        "bridge link set dev swp1 locked on learning off",
    ]


@pytest.mark.parametrize(
    ("refuse", "kind", "locks"),
    [
        ("", fabric.FilteringBridge, True),
        ("vlan_filtering", fabric.BridgePerVlan, True),
        ("bridge vlan", fabric.BridgePerVlan, True),
        ("locked", fabric.BridgePerVlan, False),
    ],
)
def test_what_the_kernel_cannot_do_is_found_out_and_nothing_is_left(refuse: str, kind: type, locks: bool) -> None:
    run = Recorder(refuse)
    found = fabric.probe(run)
    assert isinstance(found, kind) and found.locks is locks
    assert run.commands[-2:] == ["ip link delete trybridge", "ip link delete tryport"]


def test_a_bridge_with_vlan_filtering_gives_a_new_port_no_vlan() -> None:
    run = Recorder()
    bridge = fabric.FilteringBridge(run, locks=False)
    bridge.set_up([10, 20])
    bridge.attach("uplink", 10)
    bridge.open("swp1", 20, STATION)
    bridge.close("swp1")
    assert run.commands == [
        "ip link add brvlan type bridge mcast_snooping 0 vlan_filtering 1 vlan_default_pvid 0",
        "ip link set brvlan up",
        "ip link add vl10 type bridge",  # hostapd looks for it; nothing is ever in it
        "ip link add vl20 type bridge",
        "ip link set uplink master brvlan",
        "bridge vlan add dev uplink vid 10 pvid untagged",
        "ip link set swp1 nomaster",
        "ip link set swp1 master brvlan",
        "bridge vlan add dev swp1 vid 20 pvid untagged",
        "ip link set swp1 nomaster",
    ]


# -- the RADIUS server's requests (RFC 5176)


class Site:
    """A switch with one station at port 2, and what it was asked to do."""

    def __init__(self) -> None:
        self.acts: list[tuple[bool, str, str]] = []
        self.das = das.DynamicAuthorization(SECRET, "lab-switch", self._act)

    def _act(self, is_disconnect: bool, station: str, port: str) -> bool:
        self.acts.append((is_disconnect, station, port))
        return station == STATION and port in ("", "swp2", "2")

    def ask(self, octets: bytes, *, now: float = NOW, source: str = "10.66.1.1:50000") -> tuple[int, int]:
        answer = self.das.answer(octets, source, now)
        check_reply(octets, answer)
        cause = answer[-4:] if answer[0] in (das.DISCONNECT_NAK, das.COA_NAK) else bytes(4)
        return answer[0], int.from_bytes(cause, "big")


def request(code: int, *attributes: tuple[int, bytes], stamp: float | None = NOW, secret: bytes = SECRET,
            authenticated: bool = True) -> bytes:  # fmt: skip
    """Written by pyrad, that is, not by us."""
    made = pyrad_packet.CoAPacket(code=code, secret=secret, id=7, dict=packets.dictionary())
    if authenticated:
        made.add_message_authenticator()
    for kind, value in attributes:
        made[kind] = [*made.get(kind, []), value]
    if stamp is not None:
        made[55] = [int(stamp).to_bytes(4, "big")]
    octets: bytes = made.RequestPacket()
    return octets


def check_reply(sent: bytes, reply: bytes) -> None:
    assert reply[1] == sent[1] and int.from_bytes(reply[2:4], "big") == len(reply)
    assert reply[4:20] == hashlib.md5(reply[:4] + sent[4:20] + reply[20:] + SECRET).digest()
    assert reply[20:22] == b"\x50\x12"
    blank = reply[:4] + sent[4:20] + reply[20:22] + bytes(16) + reply[38:]
    assert reply[22:38] == hmac.new(SECRET, blank, hashlib.md5).digest()


WHO = (31, b"02-66-00-00-00-02")
NAS = (32, b"lab-switch")


@pytest.mark.parametrize(
    ("code", "attributes", "answer", "acts"),
    [
        (40, (WHO, NAS), (41, 0), [(True, STATION, "")]),
        (43, (WHO, NAS, (5, (2).to_bytes(4, "big"))), (44, 0), [(False, STATION, "2")]),
        (43, (WHO, NAS, (87, b"swp2"), (44, b"A1"), (1, b"anonymous")), (44, 0), [(False, STATION, "swp2")]),
        (40, ((31, b"0266.0000.0002"),), (41, 0), [(True, STATION, "")]),
        (43, (WHO, (87, b"swp3")), (45, 503), [(False, STATION, "swp3")]),
        (40, ((31, b"02-66-00-00-00-03"), NAS), (42, 503), [(True, "02:66:00:00:00:03", "")]),
        (40, (NAS, (1, b"anonymous@campus.example")), (42, 402), []),
        (40, ((31, b"the one by the window"),), (42, 404), []),
        (40, (WHO, (32, b"another-switch")), (42, 403), []),
        (43, (WHO, NAS, (81, b"20")), (45, 401), []),
        (43, (WHO, NAS, (6, (17).to_bytes(4, "big"))), (45, 401), []),
    ],
)
def test_requests_are_acted_on_or_refused_with_an_error_cause(
    code: int, attributes: tuple[tuple[int, bytes], ...], answer: tuple[int, int], acts: list[tuple[bool, str, str]]
) -> None:
    site = Site()
    assert site.ask(request(code, *attributes)) == answer
    assert site.acts == acts


def test_what_is_not_authentic_or_not_of_now_gets_no_answer_and_does_nothing() -> None:
    site = Site()
    good = request(40, WHO, NAS)
    bad = {
        "another secret": request(40, WHO, NAS, secret=b"x" * 20),
        "no Message-Authenticator": request(40, WHO, NAS, authenticated=False),
        "no Event-Timestamp": request(40, WHO, NAS, stamp=None),
        "an old one": request(40, WHO, NAS, stamp=NOW - 301),
        "one of the future": request(40, WHO, NAS, stamp=NOW + 301),
        "an Access-Request": bytes((1,)) + good[1:],
        "a changed octet": good[:-1] + bytes((good[-1] ^ 1,)),
        "cut short": good[:-1],
        "too long": good + b"\0",
        "nothing": b"",
    }
    for octets in bad.values():
        with pytest.raises(das.NotForUs):
            site.das.answer(octets, "10.66.1.1:50000", NOW)
    assert site.acts == []


def test_a_repeated_request_is_answered_alike_and_acted_on_once() -> None:
    site = Site()
    octets = request(40, WHO, NAS)
    first = site.das.answer(octets, "10.66.1.1:50000", NOW)
    assert site.das.answer(octets, "10.66.1.1:50000", NOW + 3) == first
    assert len(site.acts) == 1


def test_proxy_state_comes_back_as_it_was() -> None:
    octets = request(40, WHO, (33, b"one"), (33, b"two"))
    answer = Site().das.answer(octets, "10.66.1.1:50000", NOW)
    assert answer[-10:] == b"\x21\x05one\x21\x05two"


# -- MAC bypass


def answer_once(reply: object, secret: bytes = SECRET) -> tuple[int, list[object]]:
    """A RADIUS server on loopback that answers one request with `reply(request)`."""
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.bind(("127.0.0.1", 0))
    wire.settimeout(5)
    seen: list[object] = []

    def serve() -> None:
        with wire:
            octets, source = wire.recvfrom(4096)
            found = pyrad_packet.AuthPacket(secret=secret, packet=octets, dict=packets.dictionary())
            assert found.verify_message_authenticator()
            seen.append(found)
            wire.sendto(reply(found), source)  # type: ignore[operator]

    threading.Thread(target=serve, daemon=True).start()
    return wire.getsockname()[1], seen


def accept(
    request: object,
    vlan: bytes = b"10",
    kinds: Sequence[bytes] = (b"\0\0\0\x0d",),
    *,
    code: int = packets.ACCESS_ACCEPT,
) -> bytes:
    reply = request.CreateReply()  # type: ignore[attr-defined]
    reply.code = code
    if vlan:
        reply[64], reply[65], reply[81] = list(kinds), [b"\0\0\0\x06"], [vlan]
    octets: bytes = reply.ReplyPacket()
    return octets


def ask(port: int) -> int:
    return bypass.ask(bypass.Loopback(port, SECRET), STATION, nas="lab-switch", port="swp1", number=1)


def test_mac_bypass_asks_with_call_check_and_the_address_and_reads_the_vlan() -> None:
    port, seen = answer_once(accept)
    assert ask(port) == 10
    (asked,) = seen
    assert asked.get(6) == [(10).to_bytes(4, "big")] and asked.get(1) == [b"026600000002"]  # type: ignore[attr-defined]
    assert asked.get(31) == [b"02-66-00-00-00-02"] and asked.get(32) == [b"lab-switch"]  # type: ignore[attr-defined]
    assert 79 not in asked and asked.get(87) == [b"swp1"]  # type: ignore[operator, attr-defined]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(lambda found: accept(found, code=packets.ACCESS_REJECT), id="reject"),
        pytest.param(lambda found: accept(found, b""), id="accept without VLAN"),
        pytest.param(lambda found: accept(found, b"a name"), id="a VLAN name that the switch does not know"),
        pytest.param(lambda found: accept(found, kinds=(b"\0\0\0\x03",)), id="a tunnel that is no VLAN"),
        pytest.param(lambda found: accept(found, kinds=(b"\0\0\0\x0d", b"\0\0\0\x0d")), id="two of them"),
    ],
)
def test_any_other_answer_leaves_the_port_closed(reply: object) -> None:
    port, _ = answer_once(reply)
    assert ask(port) == 0


def test_an_answer_of_somebody_else_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bypass, "SECONDS", 0.4)
    port, _ = answer_once(lambda found: accept(found)[:-1] + b"9")
    with pytest.raises(bypass.BypassFailed, match="not authentic"):
        ask(port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(bypass.BypassFailed, match="no answer"):
            ask(silent.getsockname()[1])


def test_mac_bypass_in_the_clear_goes_over_loopback_only() -> None:
    with pytest.raises(ValueError, match="RadSec"):
        bypass.Loopback(1812, SECRET, "10.66.1.1")


# -- the program


def test_a_configuration_that_does_not_read_ends_the_program_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "config.json"
    whole = {"nas": "s", "ports": [{"interface": "swp1", "number": 1}], "vlans": [20], "control": "c", "run": "r"}
    config.write_text(json.dumps(whole))
    read = port_agent.read_config(config)
    assert read.ports == [port_agent.PortConfig("swp1", 1)] and read.way is None
    for damaged in (whole | {"colour": "blue"}, whole | {"ports": [{}]}, {}, whole | {"mac_bypass": {"over": "udp"}}):
        config.write_text(json.dumps(damaged))
        caplog.clear()
        assert port_agent.main([str(config)]) == 1
        assert len(caplog.records) == 1
