"""RADIUS packets of the embedded server: read with suspicion, written with Message-Authenticator first.

RFC 2865, 2548, 3579, 5997. Attributes that nobody here reads are carried as octets.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from radius import wire
from radius.attributes import Attribute
from radius.errors import PacketInvalid
from radius.request import EAP_TLS, MAC_BYPASS, AccessRequest, clean_text
from radius.wire import ACCESS_ACCEPT, ACCESS_CHALLENGE, ACCESS_REJECT, ACCESS_REQUEST, STATUS_SERVER

__all__ = [
    "ACCESS_ACCEPT",
    "ACCESS_CHALLENGE",
    "ACCESS_REJECT",
    "ACCESS_REQUEST",
    "STATUS_SERVER",
    "Request",
    "dictionary",
    "eap_of",
    "read_access_request",
    "read_request",
    "write_reply",
]

SERVICE_TYPE: Final = 6
CALL_CHECK: Final = b"\x00\x00\x00\x0a"
STATE: Final = 24
EAP_MESSAGE: Final = 79
_TUNNEL: Final = frozenset({64, 65, 81})
_MICROSOFT: Final = 311
_MS_MPPE_SEND_KEY: Final = 16
_MS_MPPE_RECV_KEY: Final = 17


@cache
def dictionary() -> Any:
    """Our own small dictionary for pyrad, with which the laboratory's peers are written."""
    from pyrad.dictionary import Dictionary

    return Dictionary(str(Path(__file__).parent / "dictionary" / "dictionary"))


@dataclass(frozen=True, slots=True)
class Request:
    """An authentic request: the packet and the secret that proved it, with which it is answered."""

    packet: wire.Packet
    secret: bytes

    @property
    def code(self) -> int:
        return self.packet.code

    @property
    def id(self) -> int:
        return self.packet.id

    @property
    def authenticator(self) -> bytes:
        return self.packet.authenticator

    def get(self, code: int) -> list[bytes]:
        return self.packet.get(code)


def read_request(octets: bytes, *accepted: bytes) -> Request:
    """The authenticated Access-Request or Status-Server in a datagram; several secrets are tried in turn.

    Raises PacketInvalid for anything that RFC 2865 tells us to drop, and for a packet without exactly one
    Message-Authenticator that verifies (the Blast-RADIUS countermeasure, CVE-2024-3596).
    """
    packet = wire.read_packet(octets)
    if packet.code not in (ACCESS_REQUEST, STATUS_SERVER):
        raise PacketInvalid(f"RADIUS code {packet.code}")
    if not packet.mark:
        raise PacketInvalid("no Message-Authenticator where one must be", code="radius-not-authenticated")
    for secret in accepted:
        if wire.is_signed(packet, secret):
            return Request(packet, secret)
    raise PacketInvalid("the Message-Authenticator does not verify: wrong shared secret", code="radius-secret-wrong")


def eap_of(packet: Any) -> bytes:
    """The EAP packet in all EAP-Message attributes, in order (RFC 3579, section 3.1); empty if there is none."""
    return b"".join(packet.get(EAP_MESSAGE) or ())


def read_access_request(packet: Any, *, nas: str, nas_address: str) -> AccessRequest:
    """The NAS's words about the login, made fit to print; the credential comes later.

    Call-Check without EAP is a port that asks by MAC address (RFC 2865, section 5.6).
    """
    asks_by_mac = packet.get(SERVICE_TYPE) == [CALL_CHECK] and not packet.get(EAP_MESSAGE)
    return AccessRequest(
        nas=nas,
        nas_address=nas_address,
        nas_port=port_of(packet),
        calling_station=text_of(packet, 31),
        called_station=text_of(packet, 30),
        user_name=text_of(packet, 1),
        session=text_of(packet, 44),
        method=MAC_BYPASS if asks_by_mac else EAP_TLS,
        transport="loopback" if _is_loopback(nas_address) else "udp",
        nas_identifier=text_of(packet, 32),
    )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def write_reply(
    request: Request,
    code: int,
    *,
    eap: bytes = b"",
    state: bytes = b"",
    attributes: Iterable[Attribute] = (),
    msk: bytes = b"",
) -> bytes:
    """A reply to `request`, authenticated; `msk` of 64 octets becomes the two MS-MPPE keys (RFC 2548, section 2.4)."""
    parts = [wire.attribute(STATE, state)] if state else []
    parts += [
        octets_of(one)
        for one in attributes
        if code == ACCESS_ACCEPT or (one.code not in _TUNNEL and not one.vendor)  # a reject never names a VLAN or role
    ]
    parts += [wire.attribute(EAP_MESSAGE, eap[at : at + 253]) for at in range(0, len(eap), 253)]
    if msk:
        parts += _keys(request, msk)
    parts += [wire.attribute(wire.PROXY_STATE, value) for value in request.get(wire.PROXY_STATE)]
    return wire.write_reply(code, request.id, request.authenticator, b"".join(parts), request.secret)


def octets_of(one: Attribute) -> bytes:
    """A reply attribute on the wire."""
    if one.vendor:
        return wire.vendor_attribute(one.vendor, one.code, one.octets)
    return wire.attribute(one.code, one.octets)


def _keys(request: Request, msk: bytes) -> list[bytes]:
    """RFC 2548, section 2.4.2: each salt has its highest bit set and is unique within the packet."""
    drawn = secrets.token_bytes(2)
    first = bytes((drawn[0] | 0x80, drawn[1]))
    second = bytes((first[0], first[1] ^ 1))
    return [
        wire.vendor_attribute(_MICROSOFT, code, wire.salted(part, salt, request.authenticator, request.secret))
        for code, part, salt in ((_MS_MPPE_RECV_KEY, msk[:32], first), (_MS_MPPE_SEND_KEY, msk[32:64], second))
    ]


def port_of(packet: Any) -> str:
    """NAS-Port-Id, else NAS-Port as a number."""
    port = text_of(packet, 87)
    if not port and (numbers := packet.get(5)):
        port = str(int.from_bytes(numbers[0], "big"))
    return port[:253]


def text_of(packet: Any, code: int) -> str:
    """The first value of an attribute as text fit to print; empty if there is none."""
    values = packet.get(code)
    return clean_text(values[0].decode("utf-8", "replace")) if values else ""
