"""Disconnect and CoA as another implementation reads them, and answers of every bad kind (RFC 5176)."""

from __future__ import annotations

import asyncio
import time

import pytest

from radius import to_attributes, wire
from radius.coa import Exchange, send_order
from radius.dynamic import SessionName, read_answer, write_order
from radius.errors import NasProfileUnknown, PacketInvalid
from radius.nas_profiles import PROFILES, Order, profile
from tests.radius.das import Das, das
from tests.radius.test_decide import ask
from tests.radius.world import SECRET
from tests.support import stretched

NAME = SessionName("127.0.0.1", "02-00-00-00-00-01", "A1B2", "switch-1")
DISCONNECT = PROFILES["hostapd"].end


def exchange(*plan: str, order: Order = DISCONNECT, **more: object) -> tuple[Exchange, Das, float]:
    async def story() -> tuple[Exchange, Das, float]:
        async with das(SECRET, plan) as nas:
            given = {"timestamp": int(time.time()), "first_seconds": 0.1} | more
            begun = time.monotonic()
            found = await send_order(
                ("127.0.0.1", nas.port),
                SECRET,
                order,
                NAME,
                to_attributes(ask()),
                **given,  # type: ignore[arg-type]
            )
            return found, nas, time.monotonic() - begun

    return asyncio.run(story())


def test_a_session_is_named_by_nas_station_and_acct_session_and_never_by_user_name() -> None:
    found, nas, _ = exchange()
    assert found.answer is not None and found.answer.is_ack and found.words == "ack"
    (request,) = nas.done
    assert request.code == 40
    assert (
        request.get(31) == [b"02-00-00-00-00-01"] and request.get(44) == [b"A1B2"] and request.get(32) == [b"switch-1"]
    )
    assert abs(int.from_bytes(request.get(55)[0], "big") - time.time()) < 60
    assert not {1, 25, 64, 65, 81} & {code for code in dict.keys(request) if isinstance(code, int)}


@pytest.mark.parametrize(("address", "code"), [("192.0.2.7", 4), ("2001:db8::7", 95)])
def test_a_nas_without_a_name_is_named_by_its_address(address: str, code: int) -> None:
    octets = write_order(DISCONNECT, SessionName(address, "x"), (), secret=SECRET, identifier=1, timestamp=1)
    assert len(wire.read_packet(octets).get(code)) == 1


def test_a_coa_carries_the_vlan_of_the_new_decision() -> None:
    found, nas, _ = exchange(order=PROFILES["generic-coa"].change)
    assert found.words == "ack"
    (request,) = nas.done
    assert (request.code, request.get(81), request.get(64)) == (43, [b"20"], [bytes.fromhex("0000000d")])


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("want", ["change", "reauthenticate", "end"])
def test_every_order_of_every_profile_is_well_formed(name: str, want: str) -> None:
    order = profile(name).order(want)  # type: ignore[arg-type]
    found, nas, _ = exchange(order=order)
    assert found.words == "ack"
    assert nas.done[0].code == order.code
    assert (nas.done[0].get(81) is not None) == order.with_attributes


def test_cisco_is_asked_in_its_own_words() -> None:
    octets = write_order(PROFILES["cisco"].change, NAME, (), secret=SECRET, identifier=1, timestamp=1)
    values = wire.read_packet(octets).get(26)
    assert [value[6:] for value in values] == [
        b"subscriber:command=reauthenticate",
        b"subscriber:reauthenticate-type=last",
    ]
    assert {value[:5] for value in values} == {(9).to_bytes(4, "big") + b"\x01"}


def test_a_profile_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(NasProfileUnknown, match="no NAS profile"):
        profile("toaster")


@pytest.mark.parametrize(("plan", "sent"), [(["drop"], 2), (["drop", "drop", "drop"], 4)])
def test_a_lost_packet_is_sent_again_with_the_same_octets(plan: list[str], sent: int) -> None:
    found, nas, seconds = exchange(*plan)
    assert found.words == "ack"
    assert found.sent == sent == len(nas.seen)
    assert len(set(nas.seen)) == 1
    assert len(nas.done) == 1
    assert seconds < stretched(2)


def test_silence_ends_after_bounded_time() -> None:
    found, nas, seconds = exchange(*["drop"] * 9)
    assert (found.answer, found.words, found.sent) == (None, "no answer", 4)
    assert 1.2 < seconds < stretched(3)


@pytest.mark.parametrize("fault", ["forged", "garbage", "wrong-id"])
def test_an_answer_that_is_not_the_nass_is_waited_past(fault: str) -> None:
    found, nas, _ = exchange(fault)
    assert found.words == "ack"
    assert (found.foreign, found.sent) == (1, 2)


def test_only_forged_answers_are_no_answer() -> None:
    found, _, _ = exchange(*["forged"] * 9)
    assert (found.answer, found.words, found.foreign) == (None, "no authentic answer", 4)


def test_an_unsigned_answer_counts_only_where_the_nas_signs_none() -> None:
    assert exchange("unsigned")[0].words == "ack"
    assert exchange(*["unsigned"] * 9, must_be_signed=True)[0].answer is None


def test_a_second_copy_of_an_answer_does_no_harm() -> None:
    assert exchange("twice")[0].words == "ack"


@pytest.mark.parametrize(
    ("cause", "words"),
    [(503, "nak 503 session-context-not-found"), (401, "nak 401 unsupported-attribute"), (999, "nak 999")],
)
def test_a_no_comes_with_its_cause(cause: int, words: str) -> None:
    found, _, _ = exchange(f"nak {cause}")
    assert found.answer is not None and not found.answer.is_ack
    assert (found.answer.cause, found.words) == (cause, words)


def test_a_nas_that_does_not_listen_is_told_apart_from_silence() -> None:
    async def story() -> Exchange:
        return await send_order(
            ("127.0.0.1", 9), SECRET, DISCONNECT, NAME, (), timestamp=1, first_seconds=0.05, sendings=2
        )

    assert "refused" in asyncio.run(story()).words


def test_an_answer_of_the_other_kind_is_no_answer() -> None:
    request = write_order(DISCONNECT, NAME, (), secret=SECRET, identifier=9, timestamp=1)
    for code, identifier in ((44, 9), (41, 8), (40, 9), (2, 9)):
        octets = wire.write_reply(code, identifier, request[4:20], b"", SECRET)
        with pytest.raises(PacketInvalid):
            read_answer(octets, request, SECRET)
    assert read_answer(wire.write_reply(41, 9, request[4:20], b"", SECRET), request, SECRET).is_ack
    replayed = wire.write_reply(41, 9, bytes(16), b"", SECRET)  # an ACK to another request of ours
    with pytest.raises(PacketInvalid):
        read_answer(replayed, request, SECRET)
