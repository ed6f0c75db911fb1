"""RADIUS packets of the embedded server: read with suspicion, written by pyrad (RFC 2865, 2548, 3579, 5997)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from pyrad import packet as pyrad_packet
from pyrad.dictionary import Dictionary

from radius.attributes import Attribute
from radius.errors import PacketInvalid
from radius.request import EAP_TLS, MAC_BYPASS, AccessRequest, clean_text

ACCESS_REQUEST: Final = 1
ACCESS_ACCEPT: Final = 2
ACCESS_REJECT: Final = 3
ACCESS_CHALLENGE: Final = 11
STATUS_SERVER: Final = 12

SERVICE_TYPE: Final = 6
CALL_CHECK: Final = b"\x00\x00\x00\x0a"
STATE: Final = 24
EAP_MESSAGE: Final = 79
MESSAGE_AUTHENTICATOR: Final = 80
_TUNNEL: Final = frozenset({64, 65, 81})
_MS_MPPE_SEND_KEY: Final = (311, 16)
_MS_MPPE_RECV_KEY: Final = (311, 17)
_HEADER_BYTES: Final = 20
_MAX_BYTES: Final = 4096


@cache
def dictionary() -> Dictionary:
    """Our own small dictionary: pyrad ships none that is usable."""
    return Dictionary(str(Path(__file__).parent / "dictionary" / "dictionary"))


def read_request(octets: bytes, secret: bytes) -> Any:
    """The authenticated Access-Request or Status-Server in a datagram, as a pyrad packet.

    Raises PacketInvalid for anything that RFC 2865 tells us to drop, and for a packet without exactly one
    Message-Authenticator that verifies (the Blast-RADIUS countermeasure, CVE-2024-3596).
    """
    _check_frame(octets)
    if octets[0] not in (ACCESS_REQUEST, STATUS_SERVER):
        raise PacketInvalid(f"RADIUS code {octets[0]}")
    try:
        packet = pyrad_packet.AuthPacket(secret=secret, packet=octets, dict=dictionary())
    except pyrad_packet.PacketError as cause:
        raise PacketInvalid("the packet cannot be decoded") from cause
    if not packet.verify_message_authenticator():
        raise PacketInvalid(
            "the Message-Authenticator does not verify: wrong shared secret", code="radius-secret-wrong"
        )
    return packet


def _check_frame(octets: bytes) -> None:
    """Attribute lengths add up and there is exactly one Message-Authenticator of 16 octets."""
    if not _HEADER_BYTES <= len(octets) <= _MAX_BYTES:
        raise PacketInvalid(f"a RADIUS packet of {len(octets)} bytes")
    length = int.from_bytes(octets[2:4], "big")
    if not _HEADER_BYTES <= length <= len(octets):
        raise PacketInvalid("the length field does not fit the datagram")
    at, authenticators = _HEADER_BYTES, 0
    while at < length:
        if at + 2 > length or octets[at + 1] < 2 or at + octets[at + 1] > length:
            raise PacketInvalid("an attribute passes the end of the packet")
        if octets[at] == MESSAGE_AUTHENTICATOR:
            authenticators += 1
            if octets[at + 1] != 18:
                raise PacketInvalid("a Message-Authenticator that is not 16 octets")
        at += octets[at + 1]
    if authenticators != 1:
        code = "radius-malformed" if authenticators else "radius-not-authenticated"
        raise PacketInvalid(f"{authenticators} Message-Authenticators where one must be", code=code)


def eap_of(packet: Any) -> bytes:
    """The EAP packet in all EAP-Message attributes, in order (RFC 3579, section 3.1); empty if there is none."""
    return b"".join(packet.get(EAP_MESSAGE, []))


def read_access_request(packet: Any, *, nas: str, nas_address: str) -> AccessRequest:
    """The NAS's words about the login, made fit to print; the credential comes later.

    Call-Check without EAP is a port that asks by MAC address (RFC 2865, section 5.6).
    """
    asks_by_mac = packet.get(SERVICE_TYPE) == [CALL_CHECK] and not packet.get(EAP_MESSAGE)
    port = _text(packet, 87)
    if not port and packet.get(5):
        port = str(int.from_bytes(packet.get(5)[0], "big"))
    return AccessRequest(
        nas=nas,
        nas_address=nas_address,
        nas_port=port,
        calling_station=_text(packet, 31),
        called_station=_text(packet, 30),
        user_name=_text(packet, 1),
        session=_text(packet, 44),
        method=MAC_BYPASS if asks_by_mac else EAP_TLS,
        transport="loopback" if _is_loopback(nas_address) else "udp",
    )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def write_reply(
    request: Any,
    code: int,
    *,
    eap: bytes = b"",
    state: bytes = b"",
    attributes: Iterable[Attribute] = (),
    msk: bytes = b"",
) -> bytes:
    """A reply to `request`, authenticated; `msk` of 64 octets becomes the two MS-MPPE keys (RFC 2548, section 2.4)."""
    reply = request.CreateReply()
    reply.code = code
    reply.add_message_authenticator()
    if state:
        reply[STATE] = [state]
    for attribute in attributes:
        # a reject never names a VLAN or a role
        if code == ACCESS_ACCEPT or (attribute.code not in _TUNNEL and not attribute.vendor):
            reply[(attribute.vendor, attribute.code) if attribute.vendor else attribute.code] = [attribute.octets]
    if eap:
        reply[EAP_MESSAGE] = [eap[at : at + 253] for at in range(0, len(eap), 253)]
    if msk:
        # raw values: pyrad would read octets that happen to start with "0x" as hex
        receive, send = reply.SaltCrypt(msk[:32]), reply.SaltCrypt(msk[32:64])
        while send[:2] == receive[:2]:  # RFC 2548, section 2.4.2: salts are unique within a packet
            send = reply.SaltCrypt(msk[32:64])
        reply[_MS_MPPE_RECV_KEY] = [receive]
        reply[_MS_MPPE_SEND_KEY] = [send]
    octets: bytes = reply.ReplyPacket()
    return octets


def _text(packet: Any, code: int) -> str:
    values = packet.get(code)
    return clean_text(values[0].decode("utf-8", "replace")) if values else ""
