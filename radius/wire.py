"""RADIUS on the wire: header, attributes, authenticators (RFC 2865, section 3; RFC 2866; RFC 3579, section 3.2).

What every packet has in common, read with suspicion: accounting, logins and dynamic authorization (RFC 5176) are
written with it. No sockets and no clocks; salts and authenticators of requests come from the caller.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from radius.errors import PacketInvalid

ACCESS_REQUEST: Final = 1
ACCESS_ACCEPT: Final = 2
ACCESS_REJECT: Final = 3
ACCOUNTING_REQUEST: Final = 4
ACCOUNTING_RESPONSE: Final = 5
ACCESS_CHALLENGE: Final = 11
STATUS_SERVER: Final = 12
DISCONNECT_REQUEST: Final = 40
DISCONNECT_ACK: Final = 41
DISCONNECT_NAK: Final = 42
COA_REQUEST: Final = 43
COA_ACK: Final = 44
COA_NAK: Final = 45

MESSAGE_AUTHENTICATOR: Final = 80
PROXY_STATE: Final = 33
HEADER_BYTES: Final = 20
MAX_BYTES: Final = 4096
MAX_VALUE: Final = 253
MAX_ATTRIBUTES: Final = 200  # what FreeRADIUS takes as well
_NO_AUTHENTICATOR: Final = bytes(16)
_MARK: Final = bytes((MESSAGE_AUTHENTICATOR, 18)) + _NO_AUTHENTICATOR


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet whose lengths add up; `octets` is the packet without padding, nothing is authenticated yet."""

    code: int
    id: int
    authenticator: bytes
    attributes: dict[int, list[bytes]]
    octets: bytes
    mark: int = 0
    """Where the value of Message-Authenticator stands in `octets`; 0 = there is none."""

    def get(self, code: int) -> list[bytes]:
        """Every value of an attribute, in order."""
        return self.attributes.get(code, [])


def read_packet(octets: bytes) -> Packet:
    """The packet in a datagram; octets behind its length are padding (RFC 2865, section 3). Raises PacketInvalid."""
    if not HEADER_BYTES <= len(octets) <= MAX_BYTES:
        raise PacketInvalid(f"a RADIUS packet of {len(octets)} bytes")
    length = octets[2] << 8 | octets[3]
    if not HEADER_BYTES <= length <= len(octets):
        raise PacketInvalid("the length field does not fit the datagram")
    attributes: dict[int, list[bytes]] = {}
    at, mark, count = HEADER_BYTES, 0, 0
    while at < length:
        end = at + octets[at + 1] if at + 2 <= length else at
        if end < at + 2 or end > length:
            raise PacketInvalid("an attribute passes the end of the packet")
        code = octets[at]
        if code == MESSAGE_AUTHENTICATOR:
            if mark:
                raise PacketInvalid("more than one Message-Authenticator")
            if end - at != 18:
                raise PacketInvalid("a Message-Authenticator that is not 16 octets")
            mark = at + 2
        count += 1
        attributes.setdefault(code, []).append(octets[at + 2 : end])
        at = end
    if count > MAX_ATTRIBUTES:
        raise PacketInvalid(f"{count} attributes")
    return Packet(octets[0], octets[1], octets[4:20], attributes, octets[:length], mark)


def attribute(code: int, value: bytes) -> bytes:
    """One attribute; ValueError for a value that does not fit."""
    if len(value) > MAX_VALUE:
        raise ValueError(f"attribute {code} has {len(value)} octets")
    return bytes((code, len(value) + 2)) + value


def vendor_attribute(vendor: int, code: int, value: bytes) -> bytes:
    """One vendor's attribute in Vendor-Specific (RFC 2865, section 5.26)."""
    return attribute(26, vendor.to_bytes(4, "big") + attribute(code, value))


def is_signed(packet: Packet, secret: bytes, authenticator: bytes | None = None) -> bool:
    """Whether the Message-Authenticator verifies; `authenticator` is what stood in the header when it was made."""
    if not packet.mark:
        return False
    octets = packet.octets
    given = octets[packet.mark : packet.mark + 16]
    head = octets[:4] + (packet.authenticator if authenticator is None else authenticator)
    body = octets[HEADER_BYTES : packet.mark] + _NO_AUTHENTICATOR + octets[packet.mark + 16 :]
    return hmac.compare_digest(given, hmac.digest(secret, head + body, "md5"))


def is_request_authentic(packet: Packet, secret: bytes) -> bool:
    """Whether the Request Authenticator is that of the packet and the secret (RFC 2866, section 3; RFC 5176)."""
    octets = packet.octets
    digest = hashlib.md5(octets[:4] + _NO_AUTHENTICATOR + octets[HEADER_BYTES:] + secret, usedforsecurity=False)
    return hmac.compare_digest(packet.authenticator, digest.digest())


def is_reply_to(packet: Packet, authenticator: bytes, secret: bytes) -> bool:
    """Whether the Response Authenticator belongs to the request with this authenticator (RFC 2865, section 3)."""
    octets = packet.octets
    digest = hashlib.md5(octets[:4] + authenticator + octets[HEADER_BYTES:] + secret, usedforsecurity=False).digest()
    return hmac.compare_digest(packet.authenticator, digest)


def write_reply(
    code: int, identifier: int, authenticator: bytes, attributes: bytes, secret: bytes, *, signed: bool = True
) -> bytes:
    """A reply to the request with `authenticator`; its Message-Authenticator, if `signed`, comes first."""
    body = _MARK + attributes if signed else attributes
    head = bytes((code, identifier)) + (HEADER_BYTES + len(body)).to_bytes(2, "big")
    if signed:
        body = body[:2] + hmac.digest(secret, head + authenticator + body, "md5") + attributes
    digest = hashlib.md5(head + authenticator + body + secret, usedforsecurity=False).digest()
    return head + digest + body


def write_request(code: int, identifier: int, attributes: bytes, secret: bytes) -> bytes:
    """A request whose authenticator is computed (RFC 2866, section 3; RFC 5176, section 2.3), signed first."""
    body = _MARK + attributes
    head = bytes((code, identifier)) + (HEADER_BYTES + len(body)).to_bytes(2, "big")
    body = body[:2] + hmac.digest(secret, head + _NO_AUTHENTICATOR + body, "md5") + attributes
    digest = hashlib.md5(head + _NO_AUTHENTICATOR + body + secret, usedforsecurity=False).digest()
    return head + digest + body


def salted(value: bytes, salt: bytes, authenticator: bytes, secret: bytes) -> bytes:
    """`value` hidden as RFC 2548, section 2.4.2 says; `salt` is two octets, the first with its highest bit set."""
    text = bytes((len(value),)) + value
    text += bytes(-len(text) % 16)
    last, hidden = authenticator + salt, salt
    for at in range(0, len(text), 16):
        key = hashlib.md5(secret + last, usedforsecurity=False).digest()
        last = bytes(one ^ other for one, other in zip(text[at : at + 16], key, strict=True))
        hidden += last
    return hidden


def joined(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    """Attributes one after the other."""
    return b"".join(attribute(code, value) for code, value in attributes)
