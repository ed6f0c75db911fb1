"""Retransmissions as RFC 5080, section 2.2.2 wants them, IPv6, and secrets that are being replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lab.supplicant import authenticate
from radius.clients import Nas, NasClient, NasTable, plain_address
from radius.decide import Decision
from radius.duplicates import KEPT_SECONDS, Duplicates
from radius.request import AccessRequest
from radius.server import RadiusServer
from tests.radius.test_server import run
from tests.radius.world import SECRET, Desk, campus, login, radius_server

KEY: Any = (("192.0.2.1", 1024), 7)


def test_a_request_under_way_is_not_worked_on_twice_and_an_answered_one_gets_its_octets() -> None:
    seen = Duplicates(10)
    assert seen.look(KEY, b"a", 0.0) == "new"
    assert seen.look(KEY, b"a", 0.1) == "underway"
    seen.answered(KEY, b"a", b"answer", 0.2)
    assert seen.look(KEY, b"a", 0.3) == b"answer"


def test_another_authenticator_under_the_same_identifier_is_a_new_request() -> None:
    seen = Duplicates(10)
    seen.look(KEY, b"a", 0.0)
    assert seen.look(KEY, b"b", 0.1) == "new"
    seen.answered(KEY, b"a", b"late answer to the old one", 0.2)
    assert seen.look(KEY, b"b", 0.3) == "underway"
    assert len(seen) == 1


def test_other_source_ports_and_identifiers_are_other_requests() -> None:
    seen = Duplicates(10)
    seen.look(KEY, b"a", 0.0)
    assert seen.look((("192.0.2.1", 1025), 7), b"a", 0.0) == "new"
    assert seen.look((("192.0.2.1", 1024), 8), b"a", 0.0) == "new"


def test_what_got_no_answer_is_looked_at_again_and_what_is_old_is_forgotten() -> None:
    seen = Duplicates(10)
    seen.look(KEY, b"a", 0.0)
    seen.forget(KEY, b"a")
    assert seen.look(KEY, b"a", 1.0) == "new"
    seen.answered(KEY, b"a", b"x", 1.0)
    seen.sweep(1.0 + KEPT_SECONDS / 2)
    assert seen.look(KEY, b"a", 2.0) == b"x"
    seen.sweep(1.0 + KEPT_SECONDS)
    assert len(seen) == 0


def test_a_retransmission_while_the_decision_is_awaited_asks_nobody_again() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    waiting: list[tuple[AccessRequest, Callable[[Decision], None]]] = []

    async def act() -> None:
        server = radius_server(desk, authorize=None, later=lambda request, answer: waiting.append((request, answer)))
        port = await server.start()
        try:
            async with asyncio.timeout(60):
                going = asyncio.create_task(authenticate("127.0.0.1", port, SECRET, **login(agent, send_twice=False)))
                while not waiting:
                    await asyncio.sleep(0.01)
                request, answer = waiting[0]
                before = server.counters.duplicates
                key, (_, authenticator, reply) = next(reversed(server._duplicates._kept.items()))
                assert reply is None
                assert server._duplicates.look(key, authenticator, 0.0) == "underway"
                answer(desk.authorize(request))
                assert (await going).vlan == "20"
                assert len(waiting) == 1 and server.counters.duplicates == before
        finally:
            await server.close()

    asyncio.run(act())


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_login_over_ipv6(version: str) -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)

    async def act() -> None:
        table = NasTable([NasClient("::1", "six", SECRET)])

        def find(address: str) -> Nas | None:
            row = table.find(address)
            return None if row is None else row.at(0)

        server = radius_server(desk, nas=find)
        port = await server.start("::1")
        try:
            outcome = await authenticate("::1", port, SECRET, **login(agent, tls_version=version))
            assert (outcome.code, outcome.vlan) == ("accept", "20")
        finally:
            await server.close()

    asyncio.run(act())
    assert (desk.asked[0].nas, desk.asked[0].nas_address) == ("six", "::1")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("192.0.2.1",) * 2,
    ],
)
def test_an_address_is_one_address_however_the_socket_says_it(text: str, plain: str) -> None:
    assert plain_address(text) == plain


def test_the_longest_prefix_wins_and_an_old_secret_ends() -> None:
    table = NasTable([NasClient("192.0.2.0/24", "all", b"a"), NasClient("192.0.2.7", "one", b"b", b"old", 100.0)])
    one = table.find("192.0.2.7")
    assert one is not None
    assert (one.at(99.0).secrets, one.at(100.0).secrets) == ((b"b", b"old"), (b"b",))
    assert table.find("192.0.2.8").name == "all"  # type: ignore[union-attr]
    assert table.find("::1") is None and table.find("nonsense") is None


def test_both_secrets_of_a_rotation_log_in_and_it_is_said_which_was_used() -> None:
    desk, agent = Desk(), campus().agent()
    desk.admit(agent)
    used: list[tuple[str, str, bool]] = []

    async def act(server: RadiusServer, port: int) -> None:
        for secret in (b"the-new-secret-of-the-switch", SECRET):
            assert (await authenticate("127.0.0.1", port, secret, **login(agent))).code == "accept"
        assert (await authenticate("127.0.0.1", port, b"neither", **login(agent, seconds=0.3))).code == "timeout"

    run(
        desk, act, nas=lambda _: Nas("switch-1", b"the-new-secret-of-the-switch", SECRET),
        on_secret=lambda *what: used.append(what),
    )  # fmt: skip
    assert set(used) == {("switch-1", "127.0.0.1", False), ("switch-1", "127.0.0.1", True)}
