"""The switch's answers to its RADIUS server: a dynamic authorization server (RFC 5176), without sockets.

It takes Disconnect-Request, and CoA-Request as "have this station log in again": a CoA-Request that brings
authorization attributes is refused, because this switch learns a VLAN from an Access-Accept only.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

DISCONNECT_REQUEST, DISCONNECT_ACK, DISCONNECT_NAK = 40, 41, 42
COA_REQUEST, COA_ACK, COA_NAK = 43, 44, 45
UNSUPPORTED_ATTRIBUTE, MISSING_ATTRIBUTE, NAS_MISMATCH, INVALID_REQUEST, SESSION_NOT_FOUND = 401, 402, 403, 404, 503

_NAS_IP, _NAS_PORT, _STATE, _CLASS, _CALLING_STATION, _NAS_IDENTIFIER, _PROXY_STATE = 4, 5, 24, 25, 31, 32, 33
_ACCT_SESSION, _EVENT_TIMESTAMP, _MESSAGE_AUTHENTICATOR, _NAS_PORT_ID, _ERROR_CAUSE = 44, 55, 80, 87, 101
_USER_NAME, _NAS_PORT_TYPE, _ACCT_MULTI_SESSION = 1, 61, 50
_IDENTIFIES: Final = frozenset({
    _USER_NAME, _NAS_IP, _NAS_PORT, _CALLING_STATION, _NAS_IDENTIFIER, _PROXY_STATE, _ACCT_SESSION, _ACCT_MULTI_SESSION,
    _EVENT_TIMESTAMP, _MESSAGE_AUTHENTICATOR, _NAS_PORT_ID, _NAS_PORT_TYPE, _STATE, _CLASS,
})  # fmt: skip
_WINDOW_SECONDS: Final = 300
_MAX_KEPT: Final = 256
_HEADER: Final = 20

Act = Callable[[bool, str, str], bool]
"""act(is_disconnect, station, port): whether the station has a port (that port, if one is named)."""


class NotForUs(Exception):
    """A packet that gets no answer; the text says why."""


@dataclass(slots=True)
class DynamicAuthorization:
    """One RADIUS server that may ask. `now` arguments are seconds since 1970."""

    secret: bytes
    nas: str
    act: Act
    _kept: dict[tuple[str, int, bytes], bytes] = field(default_factory=dict)

    def answer(self, octets: bytes, source: str, now: float) -> bytes:
        """The reply. Raises NotForUs for what RFC 5176 has dropped in silence: not authentic, or not of now."""
        attributes = self._open(octets, now)
        key = (source, octets[1], octets[4:20])
        if key not in self._kept:  # RFC 5176, section 6.3: a repeated packet is answered alike and acted on once
            cause = self._consider(octets[0] == DISCONNECT_REQUEST, attributes)
            while len(self._kept) >= _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._reply(octets, attributes, cause)
        return self._kept[key]

    def _open(self, octets: bytes, now: float) -> list[tuple[int, bytes]]:
        if len(octets) < _HEADER or octets[0] not in (DISCONNECT_REQUEST, COA_REQUEST):
            raise NotForUs("not a request of RFC 5176")
        if int.from_bytes(octets[2:4], "big") != len(octets):
            raise NotForUs("the length field does not fit the datagram")
        attributes = _read(octets)
        wanted = hashlib.md5(octets[:4] + bytes(16) + octets[20:] + self.secret).digest()  # noqa: S324 - RFC 5176
        if not hmac.compare_digest(wanted, octets[4:20]):
            raise NotForUs("the Request Authenticator does not verify")
        found = [value for kind, value in attributes if kind == _MESSAGE_AUTHENTICATOR]
        if len(found) != 1 or not hmac.compare_digest(found[0], _sign(octets, bytes(16), self.secret)):
            raise NotForUs("no Message-Authenticator that verifies")
        stamps = [int.from_bytes(value, "big") for kind, value in attributes if kind == _EVENT_TIMESTAMP]
        if len(stamps) != 1 or abs(stamps[0] - now) > _WINDOW_SECONDS:  # RFC 5176, section 6.3
            raise NotForUs("no Event-Timestamp of now")
        return attributes

    def _consider(self, is_disconnect: bool, attributes: list[tuple[int, bytes]]) -> int:
        """0, or the Error-Cause."""
        values = dict(attributes)
        if values.get(_NAS_IDENTIFIER, self.nas.encode()) != self.nas.encode():
            return NAS_MISMATCH
        if not values.keys() <= _IDENTIFIES:
            return UNSUPPORTED_ATTRIBUTE
        if _CALLING_STATION not in values:
            return MISSING_ATTRIBUTE
        station = read_station_id(values[_CALLING_STATION])
        if not station:
            return INVALID_REQUEST
        port = values.get(_NAS_PORT_ID, b"").decode("utf-8", "replace")
        if not port and _NAS_PORT in values:
            port = str(int.from_bytes(values[_NAS_PORT], "big"))
        return 0 if self.act(is_disconnect, station, port) else SESSION_NOT_FOUND

    def _reply(self, octets: bytes, attributes: list[tuple[int, bytes]], cause: int) -> bytes:
        code = octets[0] + (2 if cause else 1)
        body = bytes((_MESSAGE_AUTHENTICATOR, 18)) + bytes(16)
        if cause:
            body += bytes((_ERROR_CAUSE, 6)) + cause.to_bytes(4, "big")
        for kind, value in attributes:
            if kind == _PROXY_STATE:
                body += bytes((kind, len(value) + 2)) + value
        head = bytes((code, octets[1])) + (_HEADER + len(body)).to_bytes(2, "big")
        # RFC 5176, section 3.4: over the reply with the request's authenticator in place
        body = body[:2] + _sign(head + octets[4:20] + body, octets[4:20], self.secret) + body[18:]
        return head + hashlib.md5(head + octets[4:20] + body + self.secret).digest() + body  # noqa: S324 - RFC 5176


def read_station_id(octets: bytes) -> str:
    """A Calling-Station-Id as a MAC address in lower case with colons; empty if it is none (RFC 3580, 3.21)."""
    digits = octets.decode("ascii", "replace").lower().translate({ord(mark): None for mark in ":-."})
    if len(digits) != 12 or any(digit not in "0123456789abcdef" for digit in digits):
        return ""
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def write_station_id(station: str) -> str:
    """A MAC address as RFC 3580, section 3.21 wants it."""
    return station.upper().replace(":", "-")


def _read(octets: bytes) -> list[tuple[int, bytes]]:
    found, at = [], _HEADER
    while at < len(octets):
        if at + 2 > len(octets) or octets[at + 1] < 2 or at + octets[at + 1] > len(octets):
            raise NotForUs("an attribute passes the end of the packet")
        found.append((octets[at], octets[at + 2 : at + octets[at + 1]]))
        at += octets[at + 1]
    return found


def _sign(octets: bytes, authenticator: bytes, secret: bytes) -> bytes:
    """The Message-Authenticator of a packet: its own value and the authenticator are replaced (RFC 5176, 2.3)."""
    blank, at = bytearray(octets[:4] + authenticator + octets[20:]), _HEADER
    while at < len(blank):
        if blank[at] == _MESSAGE_AUTHENTICATOR and blank[at + 1] == 18:
            blank[at + 2 : at + 18] = bytes(16)
        at += blank[at + 1]
    return hmac.new(secret, bytes(blank), hashlib.md5).digest()
