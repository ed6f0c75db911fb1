"""What a login gets when the decision port is down, slow or talks nonsense: the three fail modes of a real FreeRADIUS.

Fault row F15: the decision port killed, hung for 5 s, answering garbage, with another certificate.

The table is measured behaviour of rlm_rest: what counts as silence, and what is a no in every mode. Three servers, one
per mode, run beside one another and ask one decision service. What they tell of failures goes to another service, which
is always there: each login that is rejected without a decision is told, once, and no other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from lab.supplicant import Outcome, authenticate
from radius.failures import read_failure
from radius.render import NasEntry
from tests.interop.radius_tools import (
    DecisionService,
    decision_service,
    free_tcp_port,
    free_udp_port,
    freeradius,
    need_freeradius,
    raddb_values,
)
from tests.radius.world import OWNER_ID_OID, SECRET, Desk, Issued, campus, login
from tests.support import stretched

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("failure-modes")]
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])
MODES = ("closed", "guest", "last-known-good")
GUEST, OWN, NO = "99", "20", None
CACHE_SECONDS = 3
SESSION_TIMEOUT, TERMINATION_ACTION = 27, 29
AGAIN = [(1).to_bytes(4, "big")]
"""Termination-Action RADIUS-Request (RFC 3580, section 3.17)."""


@dataclass
class Site:
    """The three servers' ports by mode, a decision service that can go away, one that takes failures and stays.

    `known` is an agent that every server has let in before. `outcomes` are those of the last vlans(), by mode.
    """

    ports: dict[str, int]
    decision_port: int
    desk: Desk
    known: Issued
    folder: Path
    logs: dict[str, Path]
    hook: DecisionService
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0

    def service(self, server: Issued | None = None) -> AbstractAsyncContextManager[DecisionService]:
        return decision_service(self.desk, self.folder, server, port=self.decision_port)

    def new(self) -> Issued:
        """An agent that no server has seen."""
        name = f"spiffe://campus.example/agent/{secrets.token_hex(8)}"
        agent = campus().agent(agent_id=name)
        self.desk.admit(agent, agent_id=name)
        return agent

    async def ask(self, mode: str, agent: Issued, version: str) -> Outcome:
        return await authenticate("127.0.0.1", self.ports[mode], SECRET, **login(agent, tls_version=version))

    async def vlans(self, agent: Issued, version: str) -> dict[str, str | None]:
        """The VLAN in each mode, None for a reject; all are asked at once, and none waits for a port that hangs."""
        self.hook.failures.clear()
        begun = time.monotonic()
        outcomes = await asyncio.gather(*(self.ask(mode, agent, version) for mode in MODES))
        self.seconds = time.monotonic() - begun
        assert self.seconds < stretched(3.0)
        self.outcomes = dict(zip(MODES, outcomes, strict=True))
        for outcome in outcomes:
            assert (outcome.code, outcome.eap_code) in (("accept", 3), ("reject", 4)), outcome
            assert (outcome.vlan is None) == (outcome.code == "reject")
        return {mode: outcome.vlan for mode, outcome in self.outcomes.items()}

    def told(self, agent: Issued) -> list[str]:
        """Which modes told a failure in the last vlans(), as often as they did; each says the same of the agent."""
        failures = [read_failure(one, owner_id_oid=OWNER_ID_OID) for one in self.hook.failures]
        for failure in failures:
            assert failure.code == "decision-not-asked", failure
            assert failure.request.credential == (agent.aki, agent.certificate.serial_number)
        return sorted(failure.request.nas for failure in failures)

    async def silence(self, agent: Issued, version: str) -> dict[str, str | None]:
        """vlans() of an appliance that says nothing: whoever is rejected is told of, whoever is let in asks again."""
        found = await self.vlans(agent, version)
        assert self.told(agent) == sorted(mode for mode in MODES if found[mode] is NO)
        for outcome in self.outcomes.values():
            if outcome.vlan is not NO:
                assert outcome.attributes[SESSION_TIMEOUT] == [(300).to_bytes(4, "big")]
                assert outcome.attributes[TERMINATION_ACTION] == AGAIN
        return found

    async def decided(self, agent: Issued, version: str) -> dict[str, str | None]:
        """vlans() of an appliance that answers: no failure is told, and FreeRADIUS adds nothing of its own."""
        found = await self.vlans(agent, version)
        assert self.told(agent) == []
        for outcome in self.outcomes.values():
            assert not {SESSION_TIMEOUT, TERMINATION_ACTION} & outcome.attributes.keys()
        return found


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
        desk, known = Desk(), campus().agent()
        desk.admit(known)
        decision_port, ports, logs = free_tcp_port(), {}, {}
        (folder / "hook").mkdir()
        hook = await stack.enter_async_context(decision_service(desk, folder / "hook"))
        for mode in MODES:
            ports[mode] = free_udp_port()
            values = raddb_values(folder / mode, decision_port, ports[mode], fail_mode=mode, guest_vlan=99,
                                  cache_seconds=CACHE_SECONDS, nas=[NasEntry(mode, "127.0.0.1", SECRET.decode())],
                                  failure_url=f"https://127.0.0.1:{hook.port}/radius/failure")  # fmt: skip
            logs[mode] = await stack.enter_async_context(freeradius(values))
        return Site(ports, decision_port, desk, known, folder, logs, hook)

    site = loop.run_until_complete(begin())

    def run(story: Story) -> None:
        loop.run_until_complete(asyncio.wait_for(story(site), 60))

    yield run
    loop.run_until_complete(stack.aclose())
    loop.close()


SILENCE = {"closed": NO, "guest": GUEST, "last-known-good": OWN}
"""What an agent that was let in before gets from an appliance that says nothing."""
MISSED = SILENCE | {"last-known-good": GUEST}
"""And one that was not, or too long ago."""


@VERSIONS
def test_a_refused_connection_is_silence_and_the_first_request_after_the_outage_is_answered(
    play: Callable[[Story], None], version: str
) -> None:
    async def story(site: Site) -> None:
        new = site.new()
        assert await site.silence(new, version) == MISSED
        async with site.service():
            assert await site.decided(site.known, version) == everywhere(OWN)
        assert await site.silence(site.known, version) == SILENCE
        async with site.service():
            assert await site.decided(new, version) == everywhere(OWN)

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


NOT_TOLD = "text"
"""FreeRADIUS takes it for a decision, and nothing in it says yes. An appliance sends no text with a 200."""


@VERSIONS
def test_every_answer_has_its_outcome_in_each_mode_and_every_reject_without_a_decision_is_told(
    play: Callable[[Story], None], version: str
) -> None:
    async def story(site: Site) -> None:
        found: dict[str, dict[str, str | None]] = {}
        async with site.service() as service:
            for name, (answer, _) in ANSWERS.items():
                service.instead = None
                assert await site.decided(site.known, version) == everywhere(OWN)  # the next after each is in order
                service.instead = answer
                found[name] = await site.vlans(site.known, version)
                rejected = [] if name == NOT_TOLD else [mode for mode in MODES if found[name][mode] is NO]
                assert site.told(site.known) == sorted(rejected), name
        assert found == {name: wanted for name, (_, wanted) in ANSWERS.items()}

    play(story)


@VERSIONS
def test_a_hung_decision_port_costs_a_second_and_is_silence(play: Callable[[Story], None], version: str) -> None:
    async def story(site: Site) -> None:
        async with site.service() as service:
            assert await site.decided(site.known, version) == everywhere(OWN)
            service.delay_seconds = 60.0
            assert await site.silence(site.known, version) == SILENCE
            assert 0.9 <= site.seconds < stretched(2.0)
            service.delay_seconds = 0.0
            assert await site.decided(site.known, version) == everywhere(OWN)

    play(story)


@VERSIONS
def test_an_accept_that_came_too_late_is_told_as_a_failure(play: Callable[[Story], None], version: str) -> None:
    """The appliance has an accept in its log for a login that was rejected: the failure behind it says so."""

    async def story(site: Site) -> None:
        new = site.new()
        async with site.service() as service:
            service.delay_seconds = 1.5
            assert await site.silence(new, version) == MISSED
            late = site.desk.decisions[-len(MODES) :]
            assert {one.verdict for one in late} == {"accept"}
            assert {one.request.nas for one in late} == set(MODES)
            assert site.told(new) == ["closed"]

    play(story)


@VERSIONS
def test_a_decided_reject_is_not_told_again(play: Callable[[Story], None], version: str) -> None:
    async def story(site: Site) -> None:
        gone = site.new()
        site.desk.admit(gone, state="revoked")
        async with site.service():
            assert await site.decided(gone, version) == everywhere(NO)

    play(story)


def _let_in(session_seconds: int) -> web.Response:
    said = {"control:Auth-Type": "Accept", "reply:Tunnel-Type": "VLAN", "reply:Tunnel-Medium-Type": "IEEE-802",
            "reply:Tunnel-Private-Group-Id": OWN}  # fmt: skip
    if session_seconds:
        said |= {"reply:Session-Timeout": str(session_seconds), "reply:Termination-Action": "RADIUS-Request"}
    return web.json_response({name: {"value": [value], "do_xlat": False} for name, value in said.items()})


@VERSIONS
def test_what_was_known_is_given_for_five_minutes_at_most(play: Callable[[Story], None], version: str) -> None:
    async def story(site: Site) -> None:
        for remembered, given in ((0, 300), (120, 120), (300, 300), (86_400, 300)):
            async with site.service() as service:
                service.instead = lambda seconds=remembered: _let_in(seconds)  # type: ignore[misc]
                assert await site.vlans(site.known, version) == everywhere(OWN)
            assert await site.vlans(site.known, version) == SILENCE
            told = site.outcomes["last-known-good"].attributes
            assert told[SESSION_TIMEOUT] == [given.to_bytes(4, "big")]
            assert told[TERMINATION_ACTION] == AGAIN

    play(story)


def test_a_certificate_that_changed_is_silence_until_the_right_one_is_back(play: Callable[[Story], None]) -> None:
    async def story(site: Site) -> None:
        async with site.service():
            assert await site.decided(site.known, "1.3") == everywhere(OWN)
        async with site.service(campus("stranger").decision_port()) as service:
            assert await site.silence(site.known, "1.3") == SILENCE
            assert service.calls == 0
        async with site.service():
            assert await site.decided(site.known, "1.3") == everywhere(OWN)

    play(story)


@VERSIONS
def test_what_was_known_is_forgotten_by_a_no_and_in_time(play: Callable[[Story], None], version: str) -> None:
    async def story(site: Site) -> None:
        new, gone = site.new(), site.new()
        async with site.service():
            assert await site.decided(gone, version) == everywhere(OWN)
            assert await site.decided(new, version) == everywhere(OWN)
            site.desk.admit(gone, state="revoked")
            assert await site.decided(gone, version) == everywhere(NO)  # a revocation that FreeRADIUS has heard of
        assert await site.silence(gone, version) == MISSED
        assert await site.silence(new, version) == SILENCE
        await asyncio.sleep(CACHE_SECONDS + 1)
        assert await site.silence(new, version) == MISSED

    play(story)


@VERSIONS
def test_a_certificate_without_an_issuer_key_is_never_taken_from_memory(
    play: Callable[[Story], None], version: str
) -> None:
    """The memory is keyed by issuer key and serial number. Nobody has issued a certificate without the first."""

    async def story(site: Site) -> None:
        nameless = campus().agent(names_issuer_key=False)
        async with site.service() as service:
            service.instead = lambda: _let_in(0)  # so that there is something to remember
            assert await site.vlans(nameless, version) == everywhere(OWN)
        assert await site.vlans(nameless, version) == {"closed": NO, "guest": GUEST, "last-known-good": NO}

    play(story)


@VERSIONS
def test_a_certificate_of_another_ca_is_refused_in_every_mode_of_an_outage(
    play: Callable[[Story], None], version: str
) -> None:
    async def story(site: Site) -> None:
        assert await site.vlans(campus("stranger").agent(), version) == everywhere(NO)
        codes = [read_failure(one, owner_id_oid=OWNER_ID_OID).code for one in site.hook.failures]
        assert codes == ["tls-unknown-ca"] * len(MODES)

    play(story)
