from __future__ import annotations

import pytest

from radius.eap_tls import (
    FAILURE,
    IDENTITY,
    MAX_MESSAGE_BYTES,
    MAX_ROUNDS,
    NAK,
    REQUEST,
    RESPONSE,
    SUCCESS,
    TLS,
    Acknowledged,
    Answer,
    Conversation,
    Eap,
    Flight,
    Fragmenter,
    Identity,
    MethodRefused,
    Reassembler,
    read_eap,
    write_eap,
)
from radius.errors import EapMalformed, EapOutOfTurn, EapTooLarge

L, M, S = 0x80, 0x40, 0x20


def response(sent: bytes, data: bytes, type_: int = TLS) -> bytes:
    """The answer to the request `sent`."""
    return write_eap(Eap(RESPONSE, read_eap(sent).identifier, type_, data))


def started(**options: int) -> tuple[Conversation, bytes]:
    conversation = Conversation(**options)
    assert conversation.receive(write_eap(Eap(RESPONSE, 7, IDENTITY, b"anonymous"))) == Identity(b"anonymous")
    return conversation, conversation.start()


def fragment(flags: int, body: bytes, declared: int | None = None) -> bytes:
    return bytes([flags | (L if declared is not None else 0)]) + (
        b"" if declared is None else declared.to_bytes(4, "big")
    ) + body  # fmt: skip


def test_a_login_of_small_messages_runs_through() -> None:
    conversation, sent = started()
    assert read_eap(sent) == Eap(REQUEST, 8, TLS, bytes([S]))
    assert conversation.receive(response(sent, fragment(0, b"hello"))) == Flight(b"hello")
    sent = conversation.send(b"server")
    assert read_eap(sent) == Eap(REQUEST, 9, TLS, fragment(0, b"server", 6))
    assert conversation.receive(response(sent, fragment(0, b"finished", 8))) == Flight(b"finished")
    sent = conversation.send(b"done")
    assert conversation.receive(response(sent, b"\x00")) == Acknowledged()
    assert read_eap(conversation.success()) == Eap(SUCCESS, 10)
    with pytest.raises(EapOutOfTurn):
        conversation.receive(response(sent, b"\x00"))


def test_fragments_of_the_peer_are_acknowledged_and_joined() -> None:
    conversation, sent = started()
    message = bytes(range(256)) * 10
    parts = Fragmenter(message, 1000)
    while True:
        received = conversation.receive(response(sent, parts.take()))
        if isinstance(received, Flight):
            break
        assert isinstance(received, Answer)
        sent = received.packet
        assert read_eap(sent).data == b"\x00"
    assert received.octets == message


@pytest.mark.parametrize("size", [1, 2, 999, 1000, 1001, 2000, 5000])
def test_our_fragments_come_one_by_one(size: int) -> None:
    conversation, sent = started(fragment_bytes=1000)
    conversation.receive(response(sent, fragment(0, b"hello")))
    message = bytes(size)
    sent = conversation.send(message)
    peer = Reassembler()
    while True:
        whole = peer.add(read_eap(sent).data)
        assert len(read_eap(sent).data) <= 1005
        if whole is not None:
            break
        received = conversation.receive(response(sent, b"\x00"))
        assert isinstance(received, Answer)
        sent = received.packet
    assert whole == message
    assert conversation.receive(response(sent, b"\x00")) == Acknowledged()


BROKEN = {
    "empty": b"",
    "no length": b"\x02\x08\x00",
    "length too long": b"\x02\x08\x00\x07\x0d\x00",
    "length too short": b"\x02\x08\x00\x05\x0d\x00",
    "no type": b"\x02\x08\x00\x04",
    "code 0": b"\x00\x08\x00\x06\x0d\x00",
    "code 5": b"\x05\x08\x00\x06\x0d\x00",
    "request from a peer": b"\x01\x08\x00\x06\x0d\x00",
    "success from a peer": b"\x03\x08\x00\x04",
    "success with data": b"\x03\x08\x00\x05\x00",
    "no flags": b"\x02\x08\x00\x05\x0d",
    "half a length field": b"\x02\x08\x00\x08\x0d\x80\x00\x00",
    "start flag": b"\x02\x08\x00\x06\x0d\x20",
    "empty answer to the start": b"\x02\x08\x00\x06\x0d\x00",
    "other method": b"\x02\x08\x00\x06\x19\x00",
    "identity again": b"\x02\x08\x00\x06\x01\x00",
    "more without length": b"\x02\x08\x00\x07\x0d\x40x",
    "more without data": b"\x02\x08\x00\x0a\x0d\xc0\x00\x00\x00\x09",
    "data past the length": b"\x02\x08\x00\x0c\x0d\x80\x00\x00\x00\x01xy",
    "data short of the length": b"\x02\x08\x00\x0c\x0d\x80\x00\x00\x00\x03xy",
    "more although complete": b"\x02\x08\x00\x0c\x0d\xc0\x00\x00\x00\x02xy",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_packet_that_breaks_a_rule_is_malformed(name: str) -> None:
    conversation, _ = started()
    with pytest.raises(EapMalformed):
        conversation.receive(BROKEN[name])


def test_a_conversation_begins_with_the_identity() -> None:
    with pytest.raises(EapMalformed):
        Conversation().receive(write_eap(Eap(RESPONSE, 7, TLS, b"\x00")))
    with pytest.raises(EapMalformed):
        Conversation().receive(write_eap(Eap(RESPONSE, 7, NAK, b"\x19")))


def test_an_announced_length_may_be_repeated_but_not_changed() -> None:
    reassembler = Reassembler()
    assert reassembler.add(fragment(M, b"ab", 6)) is None
    assert reassembler.add(fragment(M, b"cd", 6)) is None
    with pytest.raises(EapMalformed):
        reassembler.add(fragment(0, b"ef", 7))
    assert reassembler.add(fragment(0, b"ef")) == b"abcdef"


def test_an_empty_packet_in_the_middle_of_a_message_is_malformed() -> None:
    conversation, sent = started()
    received = conversation.receive(response(sent, fragment(M, b"ab", 6)))
    assert isinstance(received, Answer)
    with pytest.raises(EapMalformed):
        conversation.receive(response(received.packet, b"\x00"))


def test_a_lie_about_the_length_costs_no_memory() -> None:
    with pytest.raises(EapTooLarge):
        Reassembler().add(fragment(M, b"x", 0xFFFFFFFF))
    with pytest.raises(EapTooLarge):
        Reassembler().add(fragment(M, b"x", MAX_MESSAGE_BYTES + 1))


def test_fragments_without_end_stop_at_the_announced_length() -> None:
    reassembler = Reassembler()
    with pytest.raises(EapMalformed):
        for _ in range(1000):
            reassembler.add(fragment(M, bytes(1000), MAX_MESSAGE_BYTES))


def test_rounds_without_end_stop() -> None:
    conversation, sent = started()
    with pytest.raises(EapTooLarge):
        for number in range(MAX_ROUNDS + 1):
            received = conversation.receive(response(sent, fragment(M, b"x", MAX_MESSAGE_BYTES)))
            assert isinstance(received, Answer), number
            sent = received.packet


def test_data_instead_of_an_acknowledgement_is_malformed() -> None:
    conversation, sent = started(fragment_bytes=200)
    conversation.receive(response(sent, fragment(0, b"hello")))
    sent = conversation.send(bytes(500))
    with pytest.raises(EapMalformed):
        conversation.receive(response(sent, fragment(0, b"data")))


def test_an_answer_to_an_older_request_is_out_of_turn_and_changes_nothing() -> None:
    conversation, sent = started()
    for wrong in (7, 9, 0, 255):
        with pytest.raises(EapOutOfTurn):
            conversation.receive(write_eap(Eap(RESPONSE, wrong, TLS, fragment(0, b"hello"))))
    assert conversation.receive(response(sent, fragment(0, b"hello"))) == Flight(b"hello")
    assert conversation.rounds == 6


@pytest.mark.parametrize(
    ("type_", "data", "wanted"), [(NAK, b"\x19\x15", (25, 21)), (NAK, b"", ()), (254, bytes(7), (254,))]
)
def test_a_peer_that_offers_another_method_is_told_apart(type_: int, data: bytes, wanted: tuple[int, ...]) -> None:
    conversation, sent = started()
    assert conversation.receive(response(sent, data, type_)) == MethodRefused(wanted)
    assert read_eap(conversation.failure()) == Eap(FAILURE, 8)


def test_a_nak_after_the_handshake_began_is_malformed() -> None:
    conversation, sent = started()
    conversation.receive(response(sent, fragment(0, b"hello")))
    with pytest.raises(EapMalformed):
        conversation.receive(response(conversation.send(b"server"), b"\x19", NAK))


def test_identifiers_wrap() -> None:
    conversation = Conversation()
    conversation.receive(write_eap(Eap(RESPONSE, 255, IDENTITY, b"")))
    assert read_eap(conversation.start()).identifier == 0


def test_reserved_flag_bits_are_ignored() -> None:
    conversation, sent = started()
    assert conversation.receive(response(sent, fragment(0x1F, b"hello"))) == Flight(b"hello")
