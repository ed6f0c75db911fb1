"""What a switch sees of its ports: carrier, by rtnetlink, and the first frames of a station, by a packet socket."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

EAPOL: Final = 0x888E
_RTMGRP_LINK: Final = 1
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFLA_IFNAME: Final = 3
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_NETLINK_HEADER: Final = struct.Struct("=IHHII")
_LINK_HEADER: Final = struct.Struct("=BxHiII")
_ETH_P_ALL: Final = 3
_PACKET_OUTGOING: Final = 4


def link_socket() -> socket.socket:
    """Non-blocking; readable whenever a link of this network namespace changes."""
    found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    found.bind((0, _RTMGRP_LINK))
    return found


def read_links(octets: bytes) -> Iterator[tuple[str, bool]]:
    """(interface, has carrier) of each link in a datagram of rtnetlink; what does not read ends it."""
    at = 0
    while at + _NETLINK_HEADER.size + _LINK_HEADER.size <= len(octets):
        length, kind, _, _, _ = _NETLINK_HEADER.unpack_from(octets, at)
        if length < _NETLINK_HEADER.size + _LINK_HEADER.size or at + length > len(octets):
            return
        family, _, _, flags, _ = _LINK_HEADER.unpack_from(octets, at + _NETLINK_HEADER.size)
        if kind in (_RTM_NEWLINK, _RTM_DELLINK) and family == socket.AF_UNSPEC:
            name = _name(octets[at + _NETLINK_HEADER.size + _LINK_HEADER.size : at + length])
            if name:
                yield name, kind == _RTM_NEWLINK and bool(flags & _IFF_UP) and bool(flags & _IFF_LOWER_UP)
        at += (length + 3) & ~3


def _name(attributes: bytes) -> str:
    at = 0
    while at + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if length < 4 or at + length > len(attributes):
            return ""
        if kind == _IFLA_IFNAME:
            return attributes[at + 4 : at + length].rstrip(b"\0").decode("ascii", "replace")
        at += (length + 3) & ~3
    return ""


def frame_socket(interface: str) -> socket.socket:
    """Non-blocking; every frame that comes in at the interface, also while it forwards nothing."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL))
    found.bind((interface, _ETH_P_ALL))
    return found


def read_frame(heard: socket.socket) -> tuple[str, bool] | None:
    """(source MAC address, is EAPOL) of the next frame that came in; None for one that went out.

    Raises BlockingIOError when there is no more.
    """
    octets, address = heard.recvfrom(64)
    if address[2] == _PACKET_OUTGOING or len(octets) < 14:
        return None
    return ":".join(f"{octet:02x}" for octet in octets[6:12]), int.from_bytes(octets[12:14], "big") == EAPOL
