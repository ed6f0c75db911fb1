from __future__ import annotations

import hashlib
import hmac
import secrets

import pytest
from pyrad.packet import AuthPacket

from radius import packets
from radius.attributes import to_attributes
from radius.errors import PacketInvalid
from tests.radius.test_decide import ask
from tests.radius.world import SECRET


def request_octets(
    *attributes: bytes, code: int = 1, secret: bytes = SECRET, authenticator: bytes = bytes(16)
) -> bytes:
    """An Access-Request made by hand, its Message-Authenticator first."""
    body = b"\x50\x12" + bytes(16) + b"".join(attributes)
    head = bytes([code, 7]) + (20 + len(body)).to_bytes(2, "big") + authenticator
    digest = hmac.new(secret, head + body, hashlib.md5).digest()
    return head + body[:2] + digest + body[18:]


def attribute(code: int, value: bytes) -> bytes:
    return bytes([code, len(value) + 2]) + value


def pyrad_request(octets: bytes) -> AuthPacket:
    """The request as another implementation sees it, to judge our replies by."""
    return AuthPacket(secret=SECRET, packet=octets, dict=packets.dictionary())


def test_a_request_is_read_and_its_texts_are_fit_to_print() -> None:
    octets = request_octets(
        attribute(1, b"bob\n\xff"), attribute(5, (3).to_bytes(4, "big")), attribute(31, b"02-00"),
        attribute(79, b"abc"), attribute(79, b"def"),
    )  # fmt: skip
    packet = packets.read_request(octets, SECRET)
    assert packets.eap_of(packet) == b"abcdef"
    request = packets.read_access_request(packet, nas="switch-1", nas_address="192.0.2.1")
    assert (request.nas_port, request.calling_station) == ("3", "02-00")
    assert request.user_name == "bob?\ufffd"


def test_padding_behind_the_packet_is_ignored() -> None:
    assert packets.read_request(request_octets() + b"\x00\x01", SECRET).id == 7


GOOD = request_octets(attribute(1, b"bob"))
BROKEN = {
    "empty": b"",
    "header only": GOOD[:20],
    "cut": GOOD[:-1],
    "length below header": GOOD[:2] + b"\x00\x13" + GOOD[4:],
    "no message-authenticator": b"\x01\x07\x00\x19" + bytes(16) + attribute(1, b"bob"),
    "two message-authenticators": request_octets(attribute(80, bytes(16))),
    "short message-authenticator": b"\x01\x07\x00\x18" + bytes(16) + attribute(80, b"xx"),
    "attribute of length 0": request_octets(b"\x01\x00"),
    "attribute of length 1": request_octets(b"\x01\x01"),
    "attribute past the end": request_octets(b"\x01\x09bob"),
    "attribute without length": request_octets(b"\x01"),
    "wrong secret": request_octets(secret=b"other"),
    "flipped": GOOD[:-1] + b"c",
    "accounting": request_octets(code=4),
    "accept": request_octets(code=2),
    "coa": request_octets(code=43),
    "too large": request_octets(*[attribute(1, bytes(253))] * 17),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_authentic_or_not_radius_is_dropped(name: str) -> None:
    with pytest.raises(PacketInvalid):
        packets.read_request(BROKEN[name], SECRET)


def test_an_accept_carries_keys_and_vlan_and_is_authentic() -> None:
    asked = request_octets(authenticator=secrets.token_bytes(16))
    request = packets.read_request(asked, SECRET)
    msk = b"0x" + b"41" * 15 + bytes(range(32))  # octets that look like hex stay what they are
    octets = packets.write_reply(request, 2, eap=b"x" * 600, attributes=to_attributes(ask()), msk=msk, state=b"s")
    judge = pyrad_request(asked)
    reply = judge.CreateReply(packet=octets)
    assert judge.VerifyReply(reply, octets, enforce_ma=True)
    reply.request_authenticator = request.authenticator
    assert reply.SaltDecrypt(reply.get((311, 17))[0]) == msk[:32]
    assert reply.SaltDecrypt(reply.get((311, 16))[0]) == msk[32:]
    assert [len(part) for part in reply.get(79)] == [253, 253, 94]
    assert reply.get(81) == [b"20"]
    assert octets[20] == 80  # the Message-Authenticator comes first


def test_a_reject_never_names_a_vlan() -> None:
    asked = request_octets()
    octets = packets.write_reply(packets.read_request(asked, SECRET), 3, attributes=to_attributes(ask()))
    reply = pyrad_request(asked).CreateReply(packet=octets)
    assert not {64, 65, 81} & set(dict.keys(reply))


def test_a_proxys_state_comes_back() -> None:
    asked = request_octets(attribute(33, b"one"), attribute(33, b"two"))
    reply = pyrad_request(asked).CreateReply(packet=packets.write_reply(packets.read_request(asked, SECRET), 3))
    assert reply.get(33) == [b"one", b"two"]
