"""What a login gets when the decision port is down, slow or talks nonsense: the three fail modes of a real FreeRADIUS.

Fault row F15: the decision port killed, hung for 5 s, answering garbage, with another certificate.

The table is measured behaviour of rlm_rest: what counts as silence, and what is a no in every mode. Three servers, one
per mode, run beside one another and ask one decision service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from lab.supplicant import Outcome, authenticate
from tests.interop.radius_tools import (
    decision_service,
    free_tcp_port,
    free_udp_port,
    freeradius,
    need_freeradius,
    raddb_values,
)
from tests.radius.world import SECRET, Desk, Issued, campus, login

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("failure-modes")]
MODES = ("closed", "guest", "last-known-good")
GUEST, OWN, NO = "99", "20", None
CACHE_SECONDS = 3


@dataclass
class Site:
    """The three servers' ports by mode, a decision service that can go away, and two agents.

    `known` has been let in before by every server, `new` has not.
    """

    ports: dict[str, int]
    decision_port: int
    desk: Desk
    known: Issued
    new: Issued
    folder: Path
    logs: dict[str, Path]

    async def ask(self, mode: str, agent: Issued, **changes: object) -> Outcome:
        return await authenticate("127.0.0.1", self.ports[mode], SECRET, **login(agent, **changes))

    async def vlans(self, agent: Issued, **changes: object) -> dict[str, str | None]:
        """The VLAN in each mode, None for a reject; all are asked at once, and none waits for a port that hangs."""
        begun = time.monotonic()
        outcomes = await asyncio.gather(*(self.ask(mode, agent, **changes) for mode in MODES))
        assert time.monotonic() - begun < 30.0
        for outcome in outcomes:
            assert (outcome.code, outcome.eap_code) in (("accept", 3), ("reject", 4)), outcome
            assert (outcome.vlan is None) == (outcome.code == "reject")
        return dict(zip(MODES, (outcome.vlan for outcome in outcomes), strict=True))


def everywhere(vlan: str | None) -> dict[str, str | None]:
    return dict.fromkeys(MODES, vlan)


Story = Callable[[Site], Awaitable[None]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Story], None]]:
    need_freeradius()
    folder = tmp_path_factory.mktemp("modes")
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()

    async def begin() -> Site:
        desk = Desk()
        known, new = campus().agent(), campus().agent(agent_id="spiffe://campus.example/agent/new")
        desk.admit(known)
        desk.admit(new, agent_id="spiffe://campus.example/agent/new")
        decision_port, ports, logs = free_tcp_port(), {}, {}
        for mode in MODES:
            ports[mode] = free_udp_port()
            values = raddb_values(folder / mode, decision_port, ports[mode], fail_mode=mode, guest_vlan=99,
                                  cache_seconds=CACHE_SECONDS)  # fmt: skip
            logs[mode] = await stack.enter_async_context(freeradius(values))
        return Site(ports, decision_port, desk, known, new, folder, logs)

    site = loop.run_until_complete(begin())

    def run(story: Story) -> None:
        loop.run_until_complete(asyncio.wait_for(story(site), 60))

    yield run
    loop.run_until_complete(stack.aclose())
    loop.close()


def _service(site: Site) -> object:
    return decision_service(site.desk, site.folder, port=site.decision_port)


SILENCE = {"closed": NO, "guest": GUEST, "last-known-good": OWN}
"""What an agent that was let in before gets from an appliance that says nothing."""


def test_a_refused_connection_is_silence_and_the_first_request_after_the_outage_is_answered(
    play: Callable[[Story], None],
) -> None:
    async def story(site: Site) -> None:
        assert await site.vlans(site.new) == {"closed": NO, "guest": GUEST, "last-known-good": GUEST}
        async with decision_service(site.desk, site.folder, port=site.decision_port):
            assert await site.vlans(site.known) == everywhere(OWN)
        assert await site.vlans(site.known) == SILENCE
        assert await site.vlans(site.known, tls_version="1.2") == SILENCE
        async with decision_service(site.desk, site.folder, port=site.decision_port):
            assert await site.vlans(site.new) == everywhere(OWN)
            await site.vlans(site.known)

    play(story)


ANSWERS: dict[str, tuple[Callable[[], web.Response], dict[str, str | None]]] = {
    "500": (lambda: web.Response(status=500), SILENCE),
    "503": (lambda: web.Response(status=503, headers={"Retry-After": "1"}), SILENCE),
    "broken JSON": (lambda: web.Response(body=b"{\x00garbage", content_type="application/json"), SILENCE),
    "half of a JSON": (lambda: web.Response(body=b'{"control:Auth-Type"', content_type="application/json"), SILENCE),
    "404": (lambda: web.Response(status=404), everywhere(NO)),
    "400": (lambda: web.Response(status=400), everywhere(NO)),
    "429": (lambda: web.Response(status=429, headers={"Retry-After": "1"}), everywhere(NO)),
    "403": (lambda: web.Response(status=403), everywhere(NO)),
    "401": (lambda: web.Response(status=401), everywhere(NO)),
    "401 that nobody can read": (
        lambda: web.Response(status=401, body=b"{\x00", content_type="application/json"),
        everywhere(NO),
    ),
    "401 in problem words": (
        lambda: web.json_response({"type": "about:blank"}, status=401, content_type="application/problem+json"),
        everywhere(NO),
    ),
    "204": (lambda: web.Response(status=204), everywhere(NO)),
    "text": (lambda: web.Response(text="Accept"), everywhere(NO)),
    "an empty object": (lambda: web.json_response({}), everywhere(NO)),
    "another form": (lambda: web.json_response({"control:Auth-Type": {"nonsense": ["Accept"]}}), everywhere(NO)),
}


def test_every_answer_has_its_outcome_in_each_mode(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        found: dict[str, dict[str, str | None]] = {}
        async with decision_service(site.desk, site.folder, port=site.decision_port) as service:
            for name, (answer, _) in ANSWERS.items():
                service.instead = None
                assert await site.vlans(site.known) == everywhere(OWN)  # the next request after each is in order
                service.instead = answer
                found[name] = await site.vlans(site.known)
        assert found == {name: wanted for name, (_, wanted) in ANSWERS.items()}

    play(story)


def test_a_hung_decision_port_costs_a_second_and_is_silence(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        async with decision_service(site.desk, site.folder, port=site.decision_port) as service:
            assert await site.vlans(site.known) == everywhere(OWN)
            service.delay_seconds = 60.0
            begun = time.monotonic()
            assert await site.vlans(site.known) == SILENCE
            assert time.monotonic() - begun < 30.0
            service.delay_seconds = 0.0
            assert await site.vlans(site.known) == everywhere(OWN)

    play(story)


def test_a_certificate_that_changed_is_silence_until_the_right_one_is_back(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        async with decision_service(site.desk, site.folder, port=site.decision_port):
            assert await site.vlans(site.known) == everywhere(OWN)
        stranger = campus("stranger").decision_port()
        async with decision_service(site.desk, site.folder, stranger, port=site.decision_port) as service:
            assert await site.vlans(site.known) == SILENCE
            assert service.calls == 0
        async with decision_service(site.desk, site.folder, port=site.decision_port):
            assert await site.vlans(site.known) == everywhere(OWN)

    play(story)


def test_what_was_known_is_forgotten_by_a_no_and_in_time(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        async with decision_service(site.desk, site.folder, port=site.decision_port):
            assert await site.vlans(site.known) == everywhere(OWN)
            assert await site.vlans(site.new) == everywhere(OWN)
            site.desk.admit(site.known, state="revoked")
            assert await site.vlans(site.known) == everywhere(NO)  # a revocation that FreeRADIUS has heard of
        missed = SILENCE | {"last-known-good": GUEST}
        assert await site.vlans(site.known) == missed
        assert await site.vlans(site.new) == SILENCE
        await asyncio.sleep(CACHE_SECONDS + 1)
        assert await site.vlans(site.new) == missed
        site.desk.admit(site.known)

    play(story)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_certificate_without_its_names_is_never_taken_from_memory(
    play: Callable[[Story], None], version: str
) -> None:
    """The memory is keyed by issuer key and serial number; the TLS layer has checked both."""

    async def story(site: Site) -> None:
        expired_ca = campus("stranger").agent()
        for mode in MODES:
            assert (await site.ask(mode, expired_ca, tls_version=version)).code == "reject"

    play(story)
