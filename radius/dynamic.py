"""Dynamic authorization: Disconnect-Request and CoA-Request, and what a NAS answers (RFC 5176), without sockets.

A session is named by the NAS's identity, Calling-Station-Id and, where there is one, Acct-Session-Id; never by
User-Name, which is free text of the supplicant's. Every request has an Event-Timestamp, so that a recorded one is
worth nothing later, and a Message-Authenticator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from radius import wire
from radius.attributes import Attribute
from radius.errors import PacketInvalid
from radius.nas_profiles import Order
from radius.packets import octets_of
from radius.wire import COA_ACK, COA_NAK, COA_REQUEST, DISCONNECT_ACK, DISCONNECT_NAK, DISCONNECT_REQUEST

ERROR_CAUSE: Final = 101
EVENT_TIMESTAMP: Final = 55
_ANSWERS: Final = {
    DISCONNECT_REQUEST: (DISCONNECT_ACK, DISCONNECT_NAK),
    COA_REQUEST: (COA_ACK, COA_NAK),
}
_NOT_FOR_COA: Final = frozenset({1, 18, 25})  # names of the session and words for the user change nothing at a port

CAUSES: Final = {
    201: "residual-session-context-removed",
    202: "invalid-eap-packet",
    401: "unsupported-attribute",
    402: "missing-attribute",
    403: "nas-identification-mismatch",
    404: "invalid-request",
    405: "unsupported-service",
    406: "unsupported-extension",
    407: "invalid-attribute-value",
    501: "administratively-prohibited",
    502: "request-not-routable",
    503: "session-context-not-found",
    504: "session-context-not-removable",
    505: "other-proxy-processing-error",
    506: "resources-unavailable",
    507: "request-initiated",
    508: "multiple-session-selection-unsupported",
}
"""Error-Cause values (RFC 5176, section 3.6)."""
SESSION_NOT_FOUND: Final = 503
CANNOT: Final = frozenset({401, 402, 404, 405, 406, 407, 501})
"""Causes that say that the NAS will never do this for us, whenever it is asked again."""


@dataclass(frozen=True, slots=True)
class SessionName:
    """How a session is named to its NAS; empty texts are left out."""

    nas_address: str
    calling_station: str
    acct_session: str = ""
    nas_identifier: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the NAS said: yes, or no with an Error-Cause (0 = it gave none)."""

    is_ack: bool
    cause: int = 0

    @property
    def words(self) -> str:
        """`ack`, or `nak` with the cause."""
        if self.is_ack:
            return "ack"
        return f"nak {self.cause} {CAUSES.get(self.cause, '')}".rstrip() if self.cause else "nak"


def write_order(
    order: Order,
    name: SessionName,
    attributes: Sequence[Attribute],
    *,
    secret: bytes,
    identifier: int,
    timestamp: int,
) -> bytes:
    """The octets of a request; `attributes` are those of the new decision, `timestamp` is seconds since 1970."""
    parts = [_nas(name)]
    if name.calling_station:
        parts.append(wire.attribute(31, _octets(name.calling_station)))
    if name.acct_session:
        parts.append(wire.attribute(44, _octets(name.acct_session)))
    if order.with_attributes:
        parts += [octets_of(one) for one in attributes if one.vendor or one.code not in _NOT_FOR_COA]
    parts += [wire.vendor_attribute(vendor, code, value) for vendor, code, value in order.vendor]
    parts.append(wire.attribute(EVENT_TIMESTAMP, (timestamp & 0xFFFFFFFF).to_bytes(4, "big")))
    return wire.write_request(order.code, identifier, b"".join(parts), secret)


def read_answer(octets: bytes, request: bytes, secret: bytes, *, must_be_signed: bool = False) -> Answer:
    """The NAS's answer to `request`. Raises PacketInvalid for one that is not, or not surely, an answer to it."""
    packet = wire.read_packet(octets)
    if packet.code not in _ANSWERS[request[0]] or packet.id != request[1]:
        raise PacketInvalid(f"code {packet.code}, identifier {packet.id} is no answer to ours")
    if not wire.is_reply_to(packet, request[4:20], secret):
        raise PacketInvalid("the Response Authenticator does not verify")
    if (packet.mark or must_be_signed) and not wire.is_signed(packet, secret, request[4:20]):
        raise PacketInvalid("the Message-Authenticator of the answer is missing or does not verify")
    causes = packet.get(ERROR_CAUSE)
    cause = int.from_bytes(causes[0], "big") if causes and len(causes[0]) == 4 else 0
    return Answer(packet.code in (DISCONNECT_ACK, COA_ACK), cause)


def _nas(name: SessionName) -> bytes:
    if name.nas_identifier:
        return wire.attribute(32, _octets(name.nas_identifier))
    address = ip_address(name.nas_address)
    return wire.attribute(95 if isinstance(address, IPv6Address) else 4, address.packed)


def _octets(text: str) -> bytes:
    return text.encode()[: wire.MAX_VALUE]
