"""MAC authentication bypass, asked by the switch itself: hostapd's wired driver has none.

The Accept of such a request carries no EAP, and the RADIUS server of Debian 12 puts no Message-Authenticator into it,
so it is asked only where nobody can write on the way: over loopback, or inside TLS (RadSec, RFC 6614).
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyrad import packet as pyrad_packet

from lab.wired.das import write_station_id
from radius import packets

SECONDS: Final = 4.0
_CALL_CHECK: Final = 10
_ETHERNET: Final = 15
_RADSEC_SECRET: Final = b"radsec"
_VLAN, _IEEE_802 = 13, 6


class BypassFailed(Exception):
    """No answer that counts; the text says why."""


@dataclass(frozen=True, slots=True)
class Loopback:
    """RADIUS over UDP on this very machine."""

    port: int
    secret: bytes
    address: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if not ipaddress.ip_address(self.address).is_loopback:
            raise ValueError(f"{self.address} is not loopback: MAC bypass needs RadSec there")


@dataclass(frozen=True, slots=True)
class RadSec:
    """RADIUS over TLS: our certificate with its key, the issuing CAs that we accept, the server's name."""

    address: str
    port: int
    certificate: Path
    key: Path
    anchors: Path
    server_name: str


def ask(way: Loopback | RadSec, station: str, *, nas: str, port: str, number: int) -> int:
    """The VLAN that a MAC address may use; 0 if it may not come in. Raises BypassFailed."""
    secret = way.secret if isinstance(way, Loopback) else _RADSEC_SECRET
    request = _request(station, nas, port, number, secret)
    sent = request.RequestPacket()
    try:
        octets = _over_udp(way, sent) if isinstance(way, Loopback) else _over_tls(way, sent)
    except (OSError, ValueError) as error:
        raise BypassFailed(f"no answer: {error or type(error).__name__}") from error
    try:
        reply = request.CreateReply(packet=octets)
        authentic = request.VerifyReply(reply, octets)
    except pyrad_packet.PacketError as error:
        raise BypassFailed(f"the answer does not read: {error}") from error
    if not authentic:
        raise BypassFailed("the answer is not authentic")
    return _vlan_of(reply) if reply.code == packets.ACCESS_ACCEPT else 0


def _request(station: str, nas: str, port: str, number: int, secret: bytes) -> Any:
    request = pyrad_packet.AuthPacket(
        secret=secret, id=secrets.randbelow(256), authenticator=secrets.token_bytes(16), dict=packets.dictionary()
    )
    request.add_message_authenticator()
    request[1] = [station.replace(":", "").encode()]
    request[6] = [_CALL_CHECK.to_bytes(4, "big")]
    request[31] = [write_station_id(station).encode()]
    request[32] = [nas.encode()]
    request[87] = [port.encode()]
    request[5] = [number.to_bytes(4, "big")]
    request[61] = [_ETHERNET.to_bytes(4, "big")]
    return request


def _vlan_of(reply: Any) -> int:
    """The VLAN of RFC 3580, section 3.31; 0 unless all three attributes are there and agree."""
    kinds, media, groups = reply.get(64, []), reply.get(65, []), reply.get(81, [])
    if len(kinds) != 1 or len(media) != 1 or len(groups) != 1:
        return 0
    if int.from_bytes(kinds[0][-3:], "big") != _VLAN or int.from_bytes(media[0][-3:], "big") != _IEEE_802:
        return 0
    text = groups[0].lstrip(b"\x00\x01\x02\x03\x04\x05\x06\x07\x08").decode("ascii", "replace")
    return int(text) if text.isdecimal() and len(text) <= 4 else 0


def _over_udp(way: Loopback, octets: bytes) -> bytes:
    with socket.socket(socket.AF_INET6 if ":" in way.address else socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.settimeout(SECONDS / 2)
        wire.connect((way.address, way.port))
        for attempt in range(2):
            wire.send(octets)
            try:
                return wire.recv(4096)
            except TimeoutError:
                if attempt:
                    raise
    raise TimeoutError


def _over_tls(way: RadSec, octets: bytes) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(way.anchors)
    # the file may hold an issuing CA alone: it is an anchor of its own
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(way.certificate, way.key)
    with (
        socket.create_connection((way.address, way.port), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=way.server_name) as wire,
    ):
        wire.sendall(octets)
        head = _exactly(wire.recv, 4)
        return head + _exactly(wire.recv, min(4096, int.from_bytes(head[2:4], "big")) - 4)


def _exactly(receive: Callable[[int], bytes], count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = receive(count - len(found))
        if not part:
            raise ConnectionResetError("the server closed the connection")
        found += part
    return found
