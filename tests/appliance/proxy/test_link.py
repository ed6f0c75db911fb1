"""The kept line to the identity server, and the renewal of the LDevID over it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from appliance.clock import SystemClock
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.connection import Target
from appliance.proxy.enrol import EnrolPhase
from appliance.proxy.errors import IdentityServerAway
from appliance.proxy.link import ServerLink
from appliance.proxy.renew import Renewal, renewal_time
from appliance.proxy.report import Reporter
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from appliance.proxy.workers_line import WorkersLine
from est import EstServer, profiles
from est.errors import EnrollmentRefused, ReplyNotAccepted
from est.exchange import Call, Reply
from lab.factory import Identity, make_leaf, make_root
from tests.appliance.proxy.campus import BORN, CLOSE, Campus, World, asked, make_world, other_domain, server_identity
from tests.support import FixedClock

QUICK = Timing(connect=2, voucher=3, call=1, spacing=0.2, round=0.3, first_pause=0.1, retry=10, longest_retry=60)
PING = Call("GET", "/v1/ping")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


async def enrolled(world: World, campus: Campus) -> ProxyState:
    state = ProxyState.open(world.folder / "state")
    settings = world.with_settings(registrar_url=campus.url)
    await Bootstrap(settings, state, SystemClock(), timing=QUICK).run()
    campus.routes["/v1/ping"] = lambda call, client: Reply(200, "application/json", body=b"{}")
    campus.seen.clear()
    return state


def link_to(state: ProxyState, target: Target | None = None, **options: object) -> ServerLink:
    record = state.record()
    return ServerLink(state, target or Target(record.host, record.port, record.named), SystemClock(), QUICK, **options)  # type: ignore[arg-type]


def with_proxy(world: World, scenario: Callable[[Campus, ProxyState], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            await scenario(campus, await enrolled(world, campus))

    asyncio.run(run())


@pytest.mark.req("A-11")
def test_calls_go_out_over_one_kept_connection_with_the_ldevid(world: World) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        link = link_to(state)
        for _ in range(3):
            assert (await link.send(PING)).status == 200
        assert len({one.connection for one in campus.seen}) == 1
        assert {one.client for one in campus.seen} == {state.ldevid_chain()[0]}
        await link.close()

    with_proxy(world, scenario)


def test_callers_at_the_same_time_get_a_connection_each_up_to_the_bound(world: World) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        async def slow(call: Call, client: object, proper: Callable[[], Reply]) -> Reply:
            await asyncio.sleep(0.1)
            return proper()

        campus.instead["/v1/ping"] = slow
        link = link_to(state)
        answers = await asyncio.gather(*(link.send(PING) for _ in range(30)))
        assert {one.status for one in answers} == {200}
        assert len({one.connection for one in campus.seen}) == 8
        await link.close()

    with_proxy(world, scenario)


def test_an_idle_connection_that_the_server_closed_is_replaced(world: World) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        link = link_to(state)
        campus.instead["/v1/ping"] = lambda call, client, proper: CLOSE if len(campus.seen) == 2 else proper()
        assert (await link.send(PING)).status == 200
        # the server hangs up on the second call of the first connection: asked again once, on a new one
        assert (await link.send(PING)).status == 200
        assert [one.connection - campus.seen[0].connection for one in campus.seen] == [0, 0, 1]
        await link.close()

    with_proxy(world, scenario)


@pytest.mark.parametrize("answer", [CLOSE, b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nhalf"], ids=["none", "half"])
def test_a_server_that_breaks_off_is_away_and_is_not_asked_twice(world: World, answer: object) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        link = link_to(state)
        campus.instead["/v1/ping"] = lambda *_: answer
        with pytest.raises(IdentityServerAway) as caught:
            await link.send(PING)
        assert caught.value.fields["retry_after_seconds"] == 5
        assert len(campus.seen) == 1

    with_proxy(world, scenario)


def test_away_and_back_are_told_once_each(world: World) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        told: list[tuple[bool, str]] = []
        link = link_to(state, on_change=lambda away, why: told.append((away, why)))
        port = campus.port
        await campus.__aexit__()
        for _ in range(3):
            with pytest.raises(IdentityServerAway):
                await link.send(PING)
        await campus.open(port)
        assert (await link.send(PING)).status == 200
        assert told == [(True, "peer-unreachable"), (False, "")]
        await link.close()

    with_proxy(world, scenario)


@pytest.mark.req("E-33", "E-35", "B-329")
@pytest.mark.parametrize("foreign", [True, False], ids=["other CA", "no RA mark"])
def test_another_server_at_that_address_gets_nothing(world: World, foreign: bool) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        domain = other_domain() if foreign else world.domain
        async with Campus(world.factory, domain, identity=server_identity(domain, ra=foreign)) as impostor:
            link = link_to(state, Target("127.0.0.1", impostor.port))
            with pytest.raises(IdentityServerAway) as caught:
                await link.send(PING)
            assert caught.value.fields["because"] == ("server-untrusted" if foreign else "server-not-authorized")
            # of the other CA's server it was asked whether it has a new root, without a name and with nothing else
            assert [(one.call.path, one.client) for one in impostor.seen] == [
                ("/.well-known/est/cacerts", None)
            ] * foreign
            assert not [one for one in impostor.seen if "authorization" in one.call.headers or one.call.body]

    with_proxy(world, scenario)


# -- renewal -------------------------------------------------------------------------------------------------------


def renewal_of(state: ProxyState, link: ServerLink, events: list[dict[str, object]], **options: object) -> Renewal:
    clock = options.pop("clock", SystemClock())
    enrol = EnrolPhase(state, SystemClock(), Reporter("renewal", SystemClock()), QUICK)
    return Renewal(state, link, enrol, clock, QUICK, after=link.renewed, on_event=events.append, **options)  # type: ignore[arg-type]


@pytest.mark.req("E-98", "E-117", "E-121", "E-42")
def test_renewal_takes_a_new_key_keeps_the_names_and_drops_old_connections(world: World) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        link, events = link_to(state), list[dict[str, object]]()
        await link.send(PING)
        old, old_key = state.ldevid_chain()[0], state.ldevid_key()
        await renewal_of(state, link, events).once()
        new = state.ldevid_chain()[0]
        assert new.serial_number != old.serial_number
        assert state.ldevid_key().public_key() == new.public_key() != old_key.public_key()
        asked = campus.of("simplereenroll")[0]
        assert asked.client == old
        from est import EstServer

        EstServer().check_reenroll(EstServer().read_enroll(asked.call).csr, old)
        assert campus.paths()[1:] == ["cacerts", "simplereenroll"]
        assert [one["event"] for one in events] == ["ldevid-renewed"]
        await link.send(PING)
        assert campus.seen[-1].client == new
        await link.close()

    with_proxy(world, scenario)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [(Reply(403, "text/plain", body=b"revoked\n"), EnrollmentRefused), (Reply(200, "text/plain"), ReplyNotAccepted)],
)
def test_a_failed_renewal_changes_nothing_and_repeats_the_same_request(
    world: World, answer: Reply, refusal: type[Exception]
) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        link, old = link_to(state), state.ldevid_chain()
        renewal = renewal_of(state, link, [])
        campus.instead["/.well-known/est/simplereenroll"] = lambda *_: answer
        for _ in range(2):
            with pytest.raises(refusal):
                await renewal.once()
        assert state.ldevid_chain() == old
        assert state.ldevid_key().public_key() == old[0].public_key()
        first, second = campus.of("simplereenroll")
        assert asked(first) == asked(second)
        del campus.instead["/.well-known/est/simplereenroll"]
        await renewal.once()
        assert state.ldevid_chain() != old

    with_proxy(world, scenario)


def test_a_renewal_that_names_another_proxy_is_not_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        old = state.ldevid_chain()
        from dataclasses import replace

        state.write_record(replace(state.record(), identifier=state.record().identifier.replace("11", "22")))
        with pytest.raises(ReplyNotAccepted, match="another proxy"):
            await renewal_of(state, link_to(state), []).once()
        assert state.ldevid_chain() == old

    with_proxy(world, scenario)


def test_renewal_falls_between_two_thirds_and_a_little_later() -> None:
    root = make_root("root", now=BORN)
    certificate = make_leaf(root, profiles.name("x"), now=BORN, days=90).certificate
    at = [renewal_time(certificate, jitter) for jitter in (0.0, 1.0)]
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert [round((one - certificate.not_valid_before_utc) / life, 3) for one in at] == [0.667, 0.717]


def test_renewal_waits_by_the_wall_clock_backs_off_and_says_when_life_is_over(world: World) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        clock = FixedClock(datetime.now(UTC))
        events: list[dict[str, object]] = []
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            assert seconds <= 60
            slept.append(seconds)
            clock.advance(seconds)
            await asyncio.sleep(0)
            if len(campus.of("simplereenroll")) >= 4:
                clock.advance(40 * 86_400)

        campus.instead["/.well-known/est/simplereenroll"] = lambda *_: Reply(503)
        # move close to the moment without making thousands of steps
        clock.advance(19.9 * 86_400)
        task = asyncio.create_task(renewal_of(state, link_to(state), events, clock=clock, sleep=sleep).run())
        async with asyncio.timeout(20):
            while not any(one["event"] == "ldevid-expired" for one in events):
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        failed = [one for one in events if one["event"] == "ldevid-renewal-failed"]
        assert [one["again_in_seconds"] for one in failed[:4]] == [10, 20, 40, 60]
        assert all(one["code"] == "enrollment-refused" for one in failed)

    with_proxy(world, scenario)


def test_times_of_certificates_are_aware() -> None:
    assert renewal_time(make_root("r", now=BORN).certificate, 0).utcoffset() == timedelta(0)
    assert isinstance(make_root("r", now=BORN).certificate, x509.Certificate)


def new_with_old(new: Identity, old: Identity) -> x509.Certificate:
    """The key of the new root, certified by the old one (RFC 4210, section 4.4.1)."""
    public = new.key.public_key()
    return (
        x509.CertificateBuilder(old.certificate.subject, new.certificate.subject, public, 4711)
        .not_valid_before(BORN)
        .not_valid_after(old.certificate.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(new.certificate.extensions.get_extension_for_class(x509.KeyUsage).value, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(old.key.public_key()), False)
        .sign(old.key, hashes.SHA256())
    )


@pytest.mark.req("E-95", "E-98")
@pytest.mark.parametrize("vouched", ["by the old root", "by another root", "not at all"])
def test_a_server_under_a_new_root_is_followed_if_the_old_root_vouches_for_it(world: World, vouched: str) -> None:
    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            state = await enrolled(world, campus)
        old, moved = world.domain.root, other_domain()
        link = new_with_old(moved.root, other_domain().root if vouched == "by another root" else old)
        bag = [moved.root.certificate, moved.ca.certificate, *([link] if vouched != "not at all" else [])]
        async with Campus(world.factory, world.domain, identity=server_identity(moved)) as later:
            later.instead["/.well-known/est/cacerts"] = lambda *_: EstServer().cacerts_reply(bag, PING)
            later.routes["/v1/ping"] = lambda call, client: Reply(200, "application/json", body=b"{}")
            line = link_to(state, Target("127.0.0.1", later.port))
            if vouched == "by the old root":
                assert (await line.send(PING)).status == 200
                assert state.anchors() == (moved.root.certificate,)
                # over the first connection nothing else was asked, and nobody was told who asks
                assert [(one.call.path.rpartition("/")[2], one.client is None) for one in later.seen] == [
                    ("cacerts", True), ("ping", False),
                ]  # fmt: skip
            else:
                for _ in range(3):
                    with pytest.raises(IdentityServerAway):
                        await line.send(PING)
                assert state.anchors() == (old.certificate,)
                assert [one.call.path.rpartition("/")[2] for one in later.seen] == ["cacerts"]
            await line.close()

    asyncio.run(run())


def trust(port: object) -> Callable[[Call, object], Reply]:
    body = json.dumps({"identity_port": port}).encode()
    return lambda call, client: Reply(200, "application/json", body=body)


def test_calls_for_the_workers_go_to_the_port_that_the_trust_document_names(world: World) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        link, made = link_to(state), []

        def make(target: Target) -> ServerLink:
            made.append(target)
            return link_to(state, target)

        line = WorkersLine(link, make, SystemClock())
        campus.routes["/v1/trust"] = trust(link.target.port)
        for _ in range(3):
            assert (await line.send(PING)).status == 200
        assert made == [link.target]
        assert [one.call.path for one in campus.seen] == ["/v1/trust", *["/v1/ping"] * 3]
        await line.close()
        await link.close()

    with_proxy(world, scenario)


@pytest.mark.parametrize("port", [None, 0, 65_536, True, "8445", 1])
def test_without_workers_that_answer_the_server_itself_is_asked(world: World, port: object) -> None:
    async def scenario(campus: Campus, state: ProxyState) -> None:
        link = link_to(state)
        line = WorkersLine(link, lambda target: link_to(state, target), SystemClock())
        campus.routes["/v1/trust"] = trust(port)
        for _ in range(3):
            assert (await line.send(PING)).status == 200
        assert [one.call.path for one in campus.seen].count("/v1/trust") == 1
        await line.close()
        await link.close()

    with_proxy(world, scenario)
