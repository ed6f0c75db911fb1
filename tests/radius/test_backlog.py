"""Under a flood the logins under way go on first; new ones wait a little, or are dropped unseen."""

from __future__ import annotations

import asyncio

import pytest

from radius.backlog import MAX_NEW, NEW_SECONDS, Backlog, begins
from radius.clients import Nas
from tests.radius.world import SECRET, Desk, radius_server

HERE = ("192.0.2.1", 1812)


def packet(*attributes: tuple[int, bytes], code: int = 1) -> bytes:
    body = b"".join(bytes((kind, len(value) + 2)) + value for kind, value in attributes)
    return bytes((code, 7)) + (20 + len(body)).to_bytes(2, "big") + bytes(16) + body


@pytest.mark.parametrize(
    ("data", "is_new"),
    [
        (packet((1, b"x"), (79, b"eap")), True),
        (packet(), True),
        (packet((1, b"x"), (24, b"state"), (79, b"eap")), False),
        (packet(code=12), False),
        (b"", False),
        (b"\x01", False),
        (packet((1, b"x")) + b"\x18", True),  # cut off
        (packet() + bytes((1, 0)) + packet((24, b"state"))[20:], True),  # a length of nothing ends the walk
    ],
)
def test_a_new_login_is_an_access_request_without_state(data: bytes, is_new: bool) -> None:
    assert begins(data) is is_new


def test_logins_under_way_go_first_whenever_they_came() -> None:
    backlog = Backlog()
    new, later = packet((1, b"new")), packet((24, b"state"))
    backlog.put(new, HERE, 0.0, "sw1")
    backlog.put(later, HERE, 0.1, "sw1")
    assert len(backlog) == 2
    assert backlog.going_on() == (later, HERE)
    assert backlog.going_on() is None
    assert backlog.new(0.1) == (new, HERE)
    assert not len(backlog)


def test_of_too_many_new_ones_the_oldest_are_dropped_and_so_are_those_that_waited_too_long() -> None:
    backlog = Backlog()
    for at in range(MAX_NEW + 3):
        backlog.put(packet((1, str(at).encode())), HERE, 0.0, "sw1")
    assert (len(backlog), backlog.dropped) == (MAX_NEW, 3)
    assert backlog.new(NEW_SECONDS) == (packet((1, b"3")), HERE)
    assert backlog.new(NEW_SECONDS + 0.01) is None
    assert (len(backlog), backlog.dropped) == (0, MAX_NEW + 2)


def test_a_nas_that_floods_crowds_out_only_itself_and_the_others_take_their_turn() -> None:
    backlog = Backlog()
    quiet = [packet((1, bytes([at]))) for at in range(2)]
    backlog.put(quiet[0], HERE, 0.0, "quiet")
    for at in range(2 * MAX_NEW):
        backlog.put(packet((1, str(at).encode())), HERE, 0.0, "loud")
    backlog.put(quiet[1], HERE, 0.0, "quiet")
    assert (len(backlog), backlog.dropped) == (MAX_NEW, MAX_NEW + 2)
    found = [backlog.new(0.0) for _ in range(4)]
    assert [(one, HERE) in found for one in quiet] == [True, True]


class Arrived:
    """A socket with packets waiting in it."""

    def __init__(self, *packets: tuple[bytes, tuple[str, int]]) -> None:
        self._packets = list(packets)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        if not self._packets:
            raise BlockingIOError
        return self._packets.pop(0)


def test_a_stranger_takes_no_place_of_those_who_wait() -> None:
    async def run() -> None:
        known = {HERE[0]: Nas("sw1", SECRET)}
        server = radius_server(Desk(), nas=known.get)
        stranger, here = (packet((1, b"x")), ("203.0.113.9", 1)), (packet((1, b"x")), HERE)
        server._socket = Arrived(stranger, here, stranger, here)  # type: ignore[assignment]
        server.datagram_received(*stranger)
        assert server.counters.unknown_nas == 3
        assert len(server._backlog) == 1  # of two, one had its turn

    asyncio.run(run())
