"""One TLS connection: what is known about the server decides what may be said, and nothing reconnects by itself."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.proxy.connection import (
    CMC_RA,
    Connection,
    Target,
    Trust,
    check_authorized,
    has_name,
    open_anchorless,
    open_provisional,
    open_verified,
)
from appliance.proxy.errors import (
    CallNotAllowed,
    ConnectionClosed,
    PeerSilent,
    PeerUnreachable,
    ServerNotAuthorized,
    ServerUntrusted,
    TlsHandshakeFailed,
)
from appliance.proxy.state import ClientFiles
from est import profiles
from est.errors import PinMismatch, Refusal
from est.exchange import Call, Reply
from lab.factory import Domain, make_intermediate, make_leaf, make_root
from tests.appliance.proxy.campus import BORN, CLOSE, Campus, World, make_world, other_domain, server_identity

CACERTS = Call("GET", "/.well-known/est/cacerts")
ENROLL = Call("POST", "/.well-known/est/simpleenroll", "application/pkcs10", body=b"x")
ASK = Call("POST", "/.well-known/brski/requestvoucher", "application/voucher-cms+json", body=b"x")
STATUS = Call("POST", "/.well-known/brski/voucher_status", "application/json", body=b"{}")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def files(world: World) -> ClientFiles:
    assert world.settings.idevid_certificate is not None
    assert world.settings.idevid_key is not None
    return ClientFiles(world.settings.idevid_certificate, world.settings.idevid_key)


def provisional(
    world: World, scenario: Callable[[Campus, Connection], Awaitable[None]], *, domain: Domain | None = None
) -> None:
    async def run() -> None:
        async with Campus(world.factory, domain or world.domain) as campus:
            for path in (ASK.path, STATUS.path, ENROLL.path):
                campus.instead[path] = lambda *_: Reply(200, "text/plain", body=b"ok")
            connection = await open_provisional(Target("127.0.0.1", campus.port), files(world), seconds=30)
            await scenario(campus, connection)
            await connection.close()

    asyncio.run(run())


@pytest.mark.req("B-134", "B-136")
def test_who_answered_is_known_before_anything_is_sent(world: World) -> None:
    async def scenario(campus: Campus, connection: Connection) -> None:
        assert connection.chain == campus.chain
        assert connection.trust is Trust.PROVISIONAL
        assert campus.seen == []

    provisional(world, scenario)


@pytest.mark.req("B-135", "T-06")
@pytest.mark.parametrize("call", [CACERTS, ENROLL, Call("GET", "/"), Call("GET", ASK.path)], ids=lambda c: c.path)
def test_a_provisional_connection_carries_the_two_brski_calls_only(world: World, call: Call) -> None:
    async def scenario(campus: Campus, connection: Connection) -> None:
        with pytest.raises(CallNotAllowed):
            await connection.exchange(call, seconds=30)
        assert campus.seen == []
        # our own mistake does not cost the connection
        assert (await connection.exchange(ASK, seconds=30)).status == 200
        assert (await connection.exchange(STATUS, seconds=30)).body == b"ok"

    provisional(world, scenario)


@pytest.mark.req("B-327", "B-329")
@pytest.mark.parametrize("pin", ["root", "ca", "leaf"])
def test_a_pin_anywhere_on_the_path_ends_the_provisional_state(world: World, pin: str) -> None:
    async def scenario(campus: Campus, connection: Connection) -> None:
        domain = world.domain
        chosen = {"root": domain.root, "ca": domain.ca, "leaf": domain.registrar}[pin].certificate
        connection.upgrade(chosen, at=datetime.now(UTC))
        assert connection.trust is Trust.TRUSTED
        assert (await connection.exchange(ENROLL, seconds=30)).status == 200
        assert {one.connection for one in campus.seen} == {1}
        with pytest.raises(CallNotAllowed):
            connection.upgrade(chosen, at=None)

    provisional(world, scenario)


@pytest.mark.req("B-327", "B-328", "T-06")
@pytest.mark.parametrize("pin", ["root", "ca", "leaf"])
def test_a_foreign_pin_leaves_a_connection_that_hears_the_bad_news_only(world: World, pin: str) -> None:
    async def scenario(campus: Campus, connection: Connection) -> None:
        other = other_domain()
        chosen = {"root": other.root, "ca": other.ca, "leaf": other.registrar}[pin].certificate
        with pytest.raises(PinMismatch):
            connection.upgrade(chosen, at=datetime.now(UTC))
        for call in (ASK, CACERTS, ENROLL):
            with pytest.raises(CallNotAllowed):
                await connection.exchange(call, seconds=30)
        assert (await connection.exchange(STATUS, seconds=30)).status == 200
        # no second chance with the right one
        with pytest.raises(CallNotAllowed):
            connection.upgrade(world.domain.root.certificate, at=datetime.now(UTC))

    provisional(world, scenario)


@pytest.mark.req("B-137")
def test_a_closed_connection_is_an_error_and_never_opened_again(world: World) -> None:
    async def scenario(campus: Campus, connection: Connection) -> None:
        campus.instead[ASK.path] = lambda *_: CLOSE
        with pytest.raises(ConnectionClosed):
            await connection.exchange(ASK, seconds=30)
        for _ in range(3):
            with pytest.raises(ConnectionClosed):
                await connection.exchange(STATUS, seconds=30)
        assert campus.connections == 1

    provisional(world, scenario)


def test_a_connection_that_the_server_gives_up_after_an_answer_is_not_used_again(world: World) -> None:
    async def scenario(campus: Campus, connection: Connection) -> None:
        last = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        campus.instead[ASK.path] = lambda *_: last
        assert (await connection.exchange(ASK, seconds=30)).status == 200
        assert not connection.usable
        with pytest.raises(ConnectionClosed):
            await connection.exchange(STATUS, seconds=30)

    provisional(world, scenario)


def test_calls_at_the_same_time_wait_for_each_other(world: World) -> None:
    async def scenario(campus: Campus, connection: Connection) -> None:
        async def slow(call: Call, client: object, proper: object) -> Reply:
            await asyncio.sleep(0.05)
            return Reply(200, "text/plain", body=call.body)

        campus.instead[ASK.path] = slow
        calls = [Call("POST", ASK.path, body=str(n).encode()) for n in range(5)]
        answers = await asyncio.gather(*(connection.exchange(call, seconds=30) for call in calls))
        assert [one.body for one in answers] == [b"0", b"1", b"2", b"3", b"4"]
        assert connection.exchanges == 5

    provisional(world, scenario)


@pytest.mark.req("B-135")
@pytest.mark.parametrize("drip", [False, True], ids=["silent", "dripping"])
def test_a_slow_peer_is_given_up_at_the_deadline(world: World, drip: bool) -> None:
    async def scenario(campus: Campus, connection: Connection) -> None:
        async def never(call: Call, client: object, proper: object) -> bytes:
            if drip:
                return b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"
            await asyncio.sleep(30)
            return b""

        campus.instead[ASK.path] = never
        started = time.monotonic()
        with pytest.raises(PeerSilent):
            await connection.exchange(ASK, seconds=0.3)
        assert time.monotonic() - started < 25
        assert not connection.usable

    provisional(world, scenario)


@pytest.mark.req("B-131")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_tls_versions_are_spoken(world: World, version: ssl.TLSVersion) -> None:
    class Only(Campus):
        def _context(self) -> ssl.SSLContext:
            context = super()._context()
            context.minimum_version = context.maximum_version = version
            return context

    async def run() -> None:
        async with Only(world.factory, world.domain) as campus:
            connection = await open_provisional(Target("127.0.0.1", campus.port), files(world), seconds=30)
            assert connection.chain == campus.chain
            campus.instead[ASK.path] = lambda call, client, proper: Reply(200 if client else 401)
            assert (await connection.exchange(ASK, seconds=30)).status == 200
            await connection.close()

    asyncio.run(run())


def test_a_registrar_that_does_not_know_the_manufacturer_is_explained(world: World, tmp_path: Path) -> None:
    from lab.factory import Factory

    stranger = world.with_device(Factory.create("Stranger", now=BORN), "X1")

    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            with pytest.raises(Refusal) as caught:
                connection = await open_provisional(Target("127.0.0.1", campus.port), files(stranger), seconds=30)
                await connection.exchange(ASK, seconds=30)
            # TLS 1.3 tells us only after our own handshake is over
            assert caught.value.reason in ("peer-connection-closed", "tls-handshake-failed")
            assert campus.seen == []

    asyncio.run(run())


async def listening(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> asyncio.Server:
    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize("kind", ["nobody", "plain text", "silence", "hangs up"])
def test_what_is_no_tls_server_is_a_typed_refusal_in_time(world: World, kind: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if kind == "plain text":
            writer.write(b"220 mail ready\r\n" * 50)
        if kind != "hangs up":
            await reader.read(100)
            await asyncio.sleep(30)
        writer.close()

    async def run() -> None:
        server = await listening(serve)
        port = server.sockets[0].getsockname()[1]
        if kind == "nobody":
            server.close()
        started = time.monotonic()
        with pytest.raises((PeerUnreachable, TlsHandshakeFailed)):
            await open_provisional(Target("127.0.0.1", port), files(world), seconds=0.5)
        assert time.monotonic() - started < 25
        server.close()

    asyncio.run(run())


def test_a_chain_without_end_is_refused(world: World) -> None:
    root = make_root("r", now=BORN)
    extra = [make_root(f"r{n}", now=BORN).certificate for n in range(6)]
    leaf = make_leaf(root, profiles.name("long"), now=BORN)

    async def run() -> None:
        async with Campus(world.factory, world.domain, identity=leaf, chain=(leaf.certificate, *extra)) as campus:
            with pytest.raises(TlsHandshakeFailed):
                await open_provisional(Target("127.0.0.1", campus.port), files(world), seconds=30)

    asyncio.run(run())


# -- anchorless and verified ---------------------------------------------------------------------------------------


@pytest.mark.req("E-37", "E-38")
def test_a_connection_without_anchors_carries_cacerts_without_credentials_only(world: World) -> None:
    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            connection = await open_anchorless(Target("127.0.0.1", campus.port), seconds=30)
            secret = Call("GET", CACERTS.path, headers={"Authorization": "Basic eA=="})
            for call in (ENROLL, ASK, STATUS, secret):
                with pytest.raises(CallNotAllowed):
                    await connection.exchange(call, seconds=30)
            with pytest.raises(CallNotAllowed):
                connection.upgrade(world.domain.root.certificate, at=None)
            assert campus.seen == []
            assert (await connection.exchange(CACERTS, seconds=30)).status == 200
            assert campus.seen[0].client is None
            await connection.close()

    asyncio.run(run())


@pytest.mark.req("E-30", "E-33", "E-35")
@pytest.mark.parametrize(
    ("anchor", "outcome"),
    [("root", None), ("ca", None), ("leaf", None), ("other", ServerUntrusted)],
)
def test_explicit_anchors_decide(world: World, anchor: str, outcome: type[Exception] | None) -> None:
    domain, other = world.domain, other_domain()

    async def run() -> None:
        async with Campus(world.factory, domain) as campus:
            chosen = {"root": domain.root, "ca": domain.ca, "leaf": domain.registrar, "other": other.root}[anchor]
            opening = open_verified(Target("127.0.0.1", campus.port), (chosen.certificate,), files(world), seconds=30)
            if outcome is None:
                connection = await opening
                assert connection.trust is Trust.TRUSTED
                await connection.close()
            else:
                with pytest.raises(outcome):
                    await opening
            assert campus.seen == []

    asyncio.run(run())


@pytest.mark.req("E-33", "E-56")
def test_a_registration_authority_is_no_est_server_though_it_has_the_mark(world: World) -> None:
    domain = world.domain
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, CMC_RA])
    authority = make_leaf(domain.ca, profiles.name("plant RA"), now=BORN, days=90, extensions=[(usages, False)])

    async def run() -> None:
        async with Campus(world.factory, domain, identity=authority) as campus:
            with pytest.raises(ServerUntrusted, match="purpose"):
                await open_verified(Target("127.0.0.1", campus.port), (domain.root.certificate,), None, seconds=30)
            assert campus.seen == []

    asyncio.run(run())


@pytest.mark.req("B-148")
@pytest.mark.parametrize("trust_clock", [True, False])
def test_without_a_trusted_clock_dates_are_not_judged(world: World, trust_clock: bool) -> None:
    domain = world.domain
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, CMC_RA])
    ended = BORN + timedelta(hours=1)
    old = make_leaf(domain.ca, profiles.name("old"), now=BORN, not_after=ended, extensions=[(usages, False)])

    async def run() -> None:
        async with Campus(world.factory, domain, identity=old) as campus:
            opening = open_verified(
                Target("127.0.0.1", campus.port), (domain.root.certificate,), None, seconds=30, trust_clock=trust_clock
            )
            if trust_clock:
                with pytest.raises(ServerUntrusted, match="expired"):
                    await opening
            else:
                await (await opening).close()

    asyncio.run(run())


NAMES = (
    x509.DNSName("est.campus.example"),
    x509.DNSName("*.pool.campus.example"),
    x509.DNSName("*.example"),
    x509.IPAddress(ipaddress.ip_address("192.0.2.7")),
    x509.IPAddress(ipaddress.ip_address("2001:db8::7")),
)


@pytest.mark.req("E-33")
@pytest.mark.parametrize(
    ("host", "matches"),
    [
        ("est.campus.example", True),
        ("EST.Campus.Example.", True),
        ("a.pool.campus.example", True),
        ("192.0.2.7", True),
        ("2001:db8::7", True),
        ("2001:0db8:0::0007", True),
        ("campus.example", False),
        ("a.b.pool.campus.example", False),
        ("pool.campus.example", False),
        ("example", False),
        ("192.0.2.8", False),
        ("192.0.2.7.est.campus.example", False),
        ("est.campus.example.evil.test", False),
    ],
)
def test_names_match_as_rfc_6125_says(host: str, matches: bool) -> None:
    certificate = server_identity(Domain.create(now=BORN), names=NAMES, ra=False).certificate
    assert has_name(certificate, host) is matches
    if not matches:
        with pytest.raises(ServerNotAuthorized):
            check_authorized(certificate, Target(host, 1, named=True))


@pytest.mark.req("B-117", "E-33")
def test_a_name_that_was_only_announced_is_no_reason_to_trust() -> None:
    certificate = server_identity(Domain.create(now=BORN), names=NAMES, ra=False).certificate
    check_authorized(certificate, Target("192.0.2.7", 1, named=True))
    with pytest.raises(ServerNotAuthorized):
        check_authorized(certificate, Target("192.0.2.7", 1, named=False))


@pytest.mark.parametrize(
    ("url", "target", "authority", "sni"),
    [
        ("https://est.example", Target("est.example", 443, True), "est.example:443", "est.example"),
        ("https://est.example:8443/", Target("est.example", 8443, True), "est.example:8443", "est.example"),
        ("https://192.0.2.7:8443", Target("192.0.2.7", 8443, True), "192.0.2.7:8443", None),
        ("https://[2001:db8::7]:1", Target("2001:db8::7", 1, True), "[2001:db8::7]:1", None),
    ],
)
def test_urls_become_targets(url: str, target: Target, authority: str, sni: str | None) -> None:
    assert Target.read(url) == target
    assert (target.authority, target.server_name) == (authority, sni)
    assert Target(target.host, target.port, named=False).server_name is None


@pytest.mark.req("E-1")
@pytest.mark.parametrize(
    "url", ["", "est.example", "http://est.example", "https://", "https://u@h", "https://h/p", "https://h?q", "https://h:x"]
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"https|[Pp]ort"):
        Target.read(url)


def test_a_deep_but_bounded_chain_is_read(world: World) -> None:
    one = make_intermediate(world.domain.root, "deep", now=BORN)
    assert make_leaf(one, profiles.name("x"), now=BORN).chain[1] == one.certificate
