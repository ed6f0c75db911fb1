"""EAP-TLS framing as a state machine without IO: RFC 3748 packets, RFC 5216, section 3.1 fragments, RFC 9190 versions.

`Conversation` is the authentication server's side of one login. It takes EAP packets and says what they mean; TLS
itself happens elsewhere. Bytes of a peer cost at most MAX_MESSAGE_BYTES of memory and MAX_ROUNDS packets, whatever its
length and more-fragments flags claim.

    identity --Identity--> (start) --Flight--> (send) --Answer...--> Acknowledged --> (success | failure)

A packet that breaks a rule raises EapMalformed or EapTooLarge: the login is over. One that does not answer our last
request raises EapOutOfTurn: discard it silently (RFC 3748, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from radius.errors import EapMalformed, EapOutOfTurn, EapTooLarge

REQUEST: Final = 1
RESPONSE: Final = 2
SUCCESS: Final = 3
FAILURE: Final = 4
IDENTITY: Final = 1
NAK: Final = 3
TLS: Final = 13
EXPANDED: Final = 254

LENGTH_INCLUDED: Final = 0x80
MORE_FRAGMENTS: Final = 0x40
START: Final = 0x20

MAX_PACKET_BYTES: Final = 4096
MAX_MESSAGE_BYTES: Final = 65_536
MAX_ROUNDS: Final = 128
PROTECTED_SUCCESS: Final = b"\x00"  # RFC 9190, section 2.5: one octet of application data commits to success


@dataclass(frozen=True, slots=True)
class Eap:
    """One EAP packet; `type` is 0 and `data` empty for Success and Failure."""

    code: int
    identifier: int
    type: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Identity:
    """The peer gave its outer identity: free text, good for nothing but a log."""

    name: bytes


@dataclass(frozen=True, slots=True)
class MethodRefused:
    """The peer answered Nak; `wanted` holds the EAP method numbers that it offers instead."""

    wanted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Send `packet`: the fragments need another round and nothing new is known."""

    packet: bytes


@dataclass(frozen=True, slots=True)
class Flight:
    """A whole TLS message of the peer has arrived."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The peer has all of our last message and says nothing more."""


Received = Identity | MethodRefused | Answer | Flight | Acknowledged


def read_eap(octets: bytes) -> Eap:
    """The EAP packet in `octets`, which must be exactly one (RFC 3748, section 4). Raises EapMalformed."""
    if not 4 <= len(octets) <= MAX_PACKET_BYTES:
        raise EapMalformed(f"an EAP packet of {len(octets)} bytes")
    code, identifier, length = octets[0], octets[1], int.from_bytes(octets[2:4], "big")
    if length != len(octets):
        raise EapMalformed(f"EAP length says {length}, {len(octets)} bytes came")
    if code in (SUCCESS, FAILURE):
        if length != 4:
            raise EapMalformed("EAP Success or Failure with data")
        return Eap(code, identifier)
    if code not in (REQUEST, RESPONSE):
        raise EapMalformed(f"EAP code {code}")
    if length < 5:
        raise EapMalformed("EAP request or response without a type")
    return Eap(code, identifier, octets[4], octets[5:])


def write_eap(packet: Eap) -> bytes:
    """The octets of `packet`."""
    body = b"" if packet.code in (SUCCESS, FAILURE) else bytes([packet.type]) + packet.data
    return bytes([packet.code, packet.identifier]) + (4 + len(body)).to_bytes(2, "big") + body


class Reassembler:
    """Puts the fragments of one TLS message together; either side may use it."""

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._declared: int | None = None
        self._parts = bytearray()
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether more fragments of a begun message must come."""
        return self._open

    def add(self, data: bytes) -> bytes | None:
        """Take the type-data of one EAP-TLS packet; the whole message when it is complete, else None.

        Rules of RFC 5216, section 2.1.5 and 3.1: the first of several fragments declares the total length, a fragment
        with more to come is not empty, no fragment passes the declared length and the last one reaches it.
        Raises EapMalformed or EapTooLarge.
        """
        flags, body = split_type_data(data)
        declared: int | None = None
        if flags & LENGTH_INCLUDED:
            declared, body = int.from_bytes(body[:4], "big"), body[4:]
        more = bool(flags & MORE_FRAGMENTS)
        if declared is not None:
            if declared > self._max_bytes:
                raise EapTooLarge(f"a TLS message of {declared} bytes is announced")
            if self._open and declared != self._declared:
                raise EapMalformed("the announced TLS message length changes between fragments")
            self._declared = declared
        if more and not body:
            raise EapMalformed("an empty fragment that announces more")
        if more and self._declared is None:
            raise EapMalformed("the first fragment does not announce the length")
        if len(self._parts) + len(body) > (self._max_bytes if self._declared is None else self._declared):
            raise EapMalformed("the fragments pass the announced length")
        self._parts += body
        self._open = more
        if more:
            if len(self._parts) == self._declared:
                raise EapMalformed("the announced length is reached, yet more is announced")
            return None
        if self._declared is not None and len(self._parts) != self._declared:
            raise EapMalformed("the last fragment does not reach the announced length")
        whole = bytes(self._parts)
        self._parts.clear()
        self._declared = None
        return whole


class Fragmenter:
    """Cuts one TLS message into type-data of at most `size` TLS bytes; the first fragment announces the length."""

    def __init__(self, message: bytes, size: int) -> None:
        self._message = message
        self._size = size
        self._at = 0

    @property
    def is_done(self) -> bool:
        """Whether every fragment has been taken."""
        return self._at >= len(self._message)

    def take(self) -> bytes:
        """The next fragment's type-data."""
        first = self._at == 0
        part = self._message[self._at : self._at + self._size]
        self._at += len(part)
        flags = 0 if self.is_done else MORE_FRAGMENTS
        if first:
            return bytes([flags | LENGTH_INCLUDED]) + len(self._message).to_bytes(4, "big") + part
        return bytes([flags]) + part


def split_type_data(data: bytes) -> tuple[int, bytes]:
    """(flags, rest) of the type-data of an EAP-TLS packet. The five reserved flag bits are ignored (RFC 5216, 3.1)."""
    if not data:
        raise EapMalformed("an EAP-TLS packet without flags")
    if data[0] & LENGTH_INCLUDED and len(data) < 5:
        raise EapMalformed("an EAP-TLS packet that ends inside its length field")
    return data[0], data[1:]


class Conversation:
    """The server's side of one EAP-TLS login, from the peer's identity to Success or Failure."""

    def __init__(self, *, fragment_bytes: int = 1000) -> None:
        self._fragment_bytes = fragment_bytes
        self._identifier = 0
        self._rounds = 0
        self._state = "identity"
        self._incoming = Reassembler()
        self._outgoing = Fragmenter(b"", fragment_bytes)

    @property
    def rounds(self) -> int:
        """Packets received so far."""
        return self._rounds

    def receive(self, octets: bytes) -> Received:
        """What the peer's packet means. Raises EapMalformed, EapTooLarge or EapOutOfTurn."""
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise EapTooLarge(f"more than {MAX_ROUNDS} rounds")
        packet = read_eap(octets)
        if packet.code != RESPONSE:
            raise EapMalformed(f"EAP code {packet.code} from a peer")
        if self._state == "identity":
            if packet.type != IDENTITY:
                raise EapMalformed(f"EAP type {packet.type} where the identity belongs")
            self._identifier = packet.identifier
            return Identity(packet.data)
        if self._state == "over" or packet.identifier != self._identifier:
            raise EapOutOfTurn(f"EAP identifier {packet.identifier} does not answer {self._identifier}")
        if packet.type in (NAK, EXPANDED) and self._state == "started":
            return MethodRefused(tuple(packet.data) if packet.type == NAK else (EXPANDED,))
        if packet.type != TLS:
            raise EapMalformed(f"EAP type {packet.type} inside EAP-TLS")
        return self._receive_tls(packet.data)

    def _receive_tls(self, data: bytes) -> Received:
        flags, body = split_type_data(data)
        if flags & START:
            raise EapMalformed("a start flag from a peer")
        is_empty = not flags & MORE_FRAGMENTS and (not body or (flags & LENGTH_INCLUDED and body == bytes(4)))
        if is_empty and not self._incoming.is_open:
            if self._state == "started":
                raise EapMalformed("an empty answer to the start")
            if not self._outgoing.is_done:
                return Answer(self._request(self._outgoing.take()))
            return Acknowledged()
        if not self._outgoing.is_done:
            raise EapMalformed("data where an acknowledgement of our fragment belongs")
        whole = self._incoming.add(data)
        self._state = "underway"
        if whole is None:
            return Answer(self._request(b"\x00"))
        return Flight(whole)

    def start(self) -> bytes:
        """The EAP-TLS start request."""
        self._state = "started"
        return self._request(bytes([START]))

    def send(self, message: bytes) -> bytes:
        """The first packet of a TLS message of ours; `receive` hands out the others as Answer."""
        self._state = "underway"
        self._outgoing = Fragmenter(message, self._fragment_bytes)
        return self._request(self._outgoing.take())

    def success(self) -> bytes:
        """EAP-Success; nothing is accepted afterwards."""
        self._state = "over"
        return write_eap(Eap(SUCCESS, self._identifier))

    def failure(self) -> bytes:
        """EAP-Failure; nothing is accepted afterwards."""
        self._state = "over"
        return write_eap(Eap(FAILURE, self._identifier))

    def _request(self, data: bytes) -> bytes:
        self._identifier = (self._identifier + 1) & 0xFF
        return write_eap(Eap(REQUEST, self._identifier, TLS, data))
