"""HttpsMasa over real sockets: trust, address guard, deadlines, limits."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from appliance.registrar.errors import MasaBusy, MasaCredentialsUnusable
from appliance.registrar.masa_client import MAX_ANSWER_BYTES, MAX_SESSIONS, HttpsMasa, MasaDestination, check_address
from appliance.registrar.masa_credentials import MasaCredentials
from appliance.settings import RegistrarSettings
from brski.errors import BrskiError, MasaAnswerInvalid, MasaNotAllowed, MasaTimedOut, MasaUnreachable
from est.exchange import Call, Reply
from lab.demo import free_port
from lab.factory import Domain, Factory, Identity

CALL = Call("POST", "/.well-known/brski/requestvoucher", "application/voucher-cms+json", {"accept": "x/y"}, b"RVR")
Serve = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@cache
def factory() -> Factory:
    return Factory.create(now=datetime.now(UTC))


@cache
def campus() -> Domain:
    return Domain.create(now=datetime.now(UTC))


def plain(status: str, body: bytes = b"", *headers: str) -> Serve:
    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return serve


@asynccontextmanager
async def masa(serve: Serve, tmp_path: Path, *, demand: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A TLS server that answers every request by `serve`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, pem in (("cert", factory().masa_tls.chain_pem), ("key", factory().masa_tls.key_pem)):
        (tmp_path / f"{name}.pem").write_bytes(pem)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    if demand:
        context.load_verify_locations(cadata=campus().root.chain_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    heads: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(3)
                heads.append(head)
                await serve(head, writer)
                await writer.drain()
                if b"close" in head:
                    break
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        server.close()


def destination(port: int, *, host: str = "127.0.0.1", trusted: bool = True, listed: bool = True) -> MasaDestination:
    anchors = factory().tls_root if trusted else factory().voucher_root
    return MasaDestination(
        f"https://{host}:{port}", anchors.chain_pem.decode(), False, frozenset({host}) if listed else frozenset()
    )


async def ask(to: MasaDestination, *, seconds: float = 3.0, calls: int = 1, **more: object) -> list[object]:
    client = HttpsMasa(RegistrarSettings(masa_seconds=seconds, masa_concurrency=2), **more)  # type: ignore[arg-type]
    try:
        return await asyncio.gather(*(client.send(CALL, to) for _ in range(calls)), return_exceptions=True)
    finally:
        await client.close()


def one(tmp_path: Path, serve: Serve, **more: object) -> object:
    async def run() -> object:
        async with masa(serve, tmp_path) as (port, _):
            (found,) = await ask(destination(port, **more))  # type: ignore[arg-type]
            return found

    return asyncio.run(run())


@pytest.mark.req("B-145")
def test_a_call_goes_out_as_it_is_and_the_answer_comes_back_as_it_is(tmp_path: Path) -> None:
    async def run() -> None:
        async with masa(plain("403 No", b"because", "content-type: text/plain"), tmp_path) as (port, heads):
            (reply,) = await ask(destination(port))
            assert isinstance(reply, Reply)
            assert (reply.status, reply.media_type, reply.body) == (403, "text/plain", b"because")
            (head,) = heads
            assert head.startswith(b"POST /.well-known/brski/requestvoucher HTTP/1.1\r\n")
            for line in (b"accept: x/y", b"content-type: application/voucher-cms+json", b"accept-encoding: identity"):
                assert line in head.lower()

    asyncio.run(run())


@pytest.mark.req("B-144", "B-145")
def test_only_the_manufacturers_tls_anchors_count_and_the_name_is_checked(tmp_path: Path) -> None:
    assert isinstance(one(tmp_path, plain("200 OK")), Reply)
    assert isinstance(one(tmp_path, plain("200 OK"), host="localhost"), Reply)
    assert isinstance(one(tmp_path, plain("200 OK"), trusted=False), MasaUnreachable)
    assert isinstance(one(tmp_path, plain("200 OK"), host="127.0.0.2"), MasaUnreachable)


@pytest.mark.req("T-24", "B-158")
def test_loopback_is_reached_only_when_it_is_listed_literally(tmp_path: Path) -> None:
    async def run() -> None:
        async with masa(plain("200 OK"), tmp_path) as (port, heads):
            for host in ("127.0.0.1", "localhost"):
                (refusal,) = await ask(destination(port, host=host, listed=False))
                assert isinstance(refusal, MasaNotAllowed)
            assert heads == []

    asyncio.run(run())


@pytest.mark.req("T-24", "B-158")
@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("10.0.0.5", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("100.64.0.1", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::7f00:1", False),
        ("2002:a00:5::1", False),
        ("::10.0.0.5", False),
        ("fec0::1", False),
    ],
)
def test_a_public_name_must_not_lead_to_an_address_inside(address: str, allowed: bool) -> None:
    if allowed:
        check_address(address, "masa.example", frozenset({"masa.example"}))
        return
    with pytest.raises(MasaNotAllowed):
        check_address(address, "masa.example", frozenset({"masa.example"}))


@pytest.mark.req("B-158")
def test_a_private_address_passes_when_it_is_listed_and_link_local_never() -> None:
    check_address("10.0.0.5", "masa.example", frozenset({"10.0.0.5"}))
    check_address("127.0.0.1", "localhost", frozenset({"localhost"}))
    with pytest.raises(MasaNotAllowed):
        check_address("127.0.0.1", "masa.example", frozenset({"localhost"}))
    with pytest.raises(MasaNotAllowed):
        check_address("169.254.169.254", "169.254.169.254", frozenset({"169.254.169.254"}))


@pytest.mark.req("B-158")
def test_a_redirect_is_an_answer_and_not_a_way(tmp_path: Path) -> None:
    reply = one(tmp_path, plain("307 There", b"", "location: https://127.0.0.1:1/"))
    assert isinstance(reply, Reply) and reply.status == 307


@pytest.mark.req("B-204")
def test_the_query_and_the_escapes_of_an_audit_logs_address_are_kept(tmp_path: Path) -> None:
    async def run() -> None:
        async with masa(plain("200 OK"), tmp_path) as (port, heads):
            client = HttpsMasa(RegistrarSettings(masa_seconds=3))
            try:
                # three octets of body: what the server of these tests waits for
                call = Call("GET", "/log/5f%2Fc?slug=a%20b&n=1", headers={"accept": "application/json"}, body=b"RVR")
                await client.send(call, destination(port))
            finally:
                await client.close()
            assert heads[0].startswith(b"GET /log/5f%2Fc?slug=a%20b&n=1 HTTP/1.1\r\n")

    asyncio.run(run())


@pytest.mark.req("B-156")
def test_http_is_never_used() -> None:
    (refusal,) = asyncio.run(ask(MasaDestination("http://127.0.0.1:1", "", False, frozenset({"127.0.0.1"}))))
    assert isinstance(refusal, MasaNotAllowed)


async def _slow(head: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def _dribble(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    for _ in range(100):
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.2)


async def _hang_up(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _endless(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(40):
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


async def _cut(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
    writer.close()


async def _rubbish(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01\x02 not HTTP at all\r\n\r\n")
    writer.close()


@pytest.mark.req("T-30", "B-228", "T-23")
@pytest.mark.parametrize(
    ("serve", "refusal"),
    [
        (_slow, MasaTimedOut),
        (_dribble, MasaTimedOut),
        (_hang_up, MasaUnreachable),
        (_endless, MasaAnswerInvalid),
        (plain("200 OK", b"x" * (MAX_ANSWER_BYTES + 1)), MasaAnswerInvalid),
        (_cut, MasaAnswerInvalid),
        (_rubbish, MasaAnswerInvalid),
    ],
)
def test_a_masa_that_does_not_speak_http_well_is_a_typed_refusal(
    tmp_path: Path, serve: Serve, refusal: type[BrskiError]
) -> None:
    async def run() -> None:
        async with masa(serve, tmp_path) as (port, _):
            (found,) = await ask(destination(port), seconds=1.0)
            assert type(found) is refusal, found

    asyncio.run(run())


@pytest.mark.req("T-30")
def test_a_dead_port_is_unreachable_and_says_when_to_come_back() -> None:
    (found,) = asyncio.run(ask(destination(1)))
    assert isinstance(found, MasaUnreachable)
    assert found.fields["retry_after_seconds"] == 30


@pytest.mark.req("T-36")
def test_no_more_calls_at_once_than_allowed_and_connections_are_kept(tmp_path: Path) -> None:
    async def run() -> None:
        running, most = 0, 0

        async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            await plain("200 OK")(head, writer)

        async with masa(serve, tmp_path) as (port, heads):
            replies = await ask(destination(port), calls=12)
            assert all(isinstance(reply, Reply) for reply in replies)
            assert len(heads) == 12
            assert most == 2

    asyncio.run(run())


@pytest.mark.req("B-147")
def test_the_registrars_certificate_is_shown_to_a_masa_that_asks(tmp_path: Path) -> None:
    def load(context: ssl.SSLContext) -> None:
        (tmp_path / "own.pem").write_bytes(campus().registrar.chain_pem + campus().registrar.key_pem)
        context.load_cert_chain(tmp_path / "own.pem")

    async def run() -> None:
        async with masa(plain("200 OK"), tmp_path, demand=True) as (port, _):
            (with_it,) = await ask(destination(port), load_identity=load)
            (without,) = await ask(destination(port))
            assert isinstance(without, MasaUnreachable)
            assert isinstance(with_it, Reply)

    asyncio.run(run())


def files_for(folder: Path, identity: Identity) -> MasaCredentials:
    contents = {"own.pem": identity.chain_pem, "own.key.pem": identity.key_pem, "basic": b"campus:s3cret-of-the-masa\n"}
    for name, content in contents.items():
        (folder / name).touch(0o600)
        (folder / name).write_bytes(content)
    return MasaCredentials(*(str(folder / name) for name in contents))


@pytest.mark.req("B-144", "B-147")
def test_one_masa_sees_a_certificate_of_its_own_and_basic_credentials_and_another_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        credentials = files_for(tmp_path, campus().registrar)
        async with masa(plain("200 OK"), tmp_path, demand=True) as (port, heads):
            (reply,) = await ask(replace(destination(port), credentials=credentials))
            assert isinstance(reply, Reply)
            assert b"authorization: Basic Y2FtcHVzOnMzY3JldC1vZi10aGUtbWFzYQ==\r\n" in heads[0]
            # a certificate that this MASA does not know
            foreign = files_for(tmp_path, factory().masa_tls)
            (refusal,) = await ask(replace(destination(port), credentials=foreign))
            assert isinstance(refusal, MasaUnreachable)
        async with masa(plain("200 OK"), tmp_path) as (port, heads):
            await ask(destination(port))
            assert b"authorization" not in heads[0].lower()

    with caplog.at_level("DEBUG"):
        asyncio.run(run())
    assert "s3cret" not in caplog.text and "Y2FtcHVz" not in caplog.text


@pytest.mark.req("B-144")
def test_a_secret_that_was_changed_on_disk_is_used_with_the_next_call(tmp_path: Path) -> None:
    async def run() -> None:
        credentials = MasaCredentials(basic_file=files_for(tmp_path, campus().registrar).basic_file)
        async with masa(plain("200 OK"), tmp_path) as (port, heads):
            client = HttpsMasa(RegistrarSettings(masa_seconds=3))
            to = replace(destination(port), credentials=credentials)
            try:
                await client.send(CALL, to)
                (tmp_path / "basic").write_bytes(b"campus:another\n")
                await client.send(CALL, to)
                (tmp_path / "basic").unlink()
                with pytest.raises(MasaCredentialsUnusable):
                    await client.send(CALL, to)
            finally:
                await client.close()
            assert len(heads) == 2 and heads[0] != heads[1]
            assert b"authorization: Basic Y2FtcHVzOmFub3RoZXI=\r\n" in heads[1]

    asyncio.run(run())


@pytest.mark.req("B-144")
def test_the_machines_trust_store_is_not_used_unless_the_destination_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenSSL's own way to name the machine's store: here it holds what signed the MASA's certificate
    store = tmp_path / "store.pem"
    store.write_bytes(factory().tls_root.chain_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(store))

    async def run() -> None:
        async with masa(plain("200 OK"), tmp_path) as (port, _):
            to = replace(destination(port), tls_anchors_pem="")
            (refusal,) = await ask(to)
            assert isinstance(refusal, MasaUnreachable)
            (reply,) = await ask(replace(to, public_anchors=True))
            assert isinstance(reply, Reply)
            # other anchors beside it, and the wrong ones alone
            wrong = replace(to, tls_anchors_pem=factory().voucher_root.chain_pem.decode())
            (both,) = await ask(replace(wrong, public_anchors=True))
            assert isinstance(both, Reply)
            (refusal,) = await ask(wrong)
            assert isinstance(refusal, MasaUnreachable)

    asyncio.run(run())


@pytest.mark.req("T-36")
def test_a_manufacturers_own_limit_of_calls_goes_before_the_sites(tmp_path: Path) -> None:
    async def run() -> None:
        running, most = 0, 0

        async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            await plain("200 OK")(head, writer)

        async with masa(serve, tmp_path) as (port, _):
            replies = await ask(replace(destination(port), concurrency=1), calls=6)
            assert all(isinstance(reply, Reply) for reply in replies) and most == 1

    asyncio.run(run())


@pytest.mark.req("T-36", "B-228")
def test_a_call_that_waits_too_long_for_its_turn_is_told_so_and_is_not_the_masas_fault(tmp_path: Path) -> None:
    async def run() -> None:
        async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.7)
            await plain("200 OK")(head, writer)

        async with masa(serve, tmp_path) as (port, heads):
            found = await ask(replace(destination(port), concurrency=1), seconds=1.0, calls=4)
            kinds = [type(one) for one in found]
            # the second waits 0.7 s for its turn and then has a whole second of its own
            assert kinds == [Reply, Reply, MasaBusy, MasaBusy]
            assert all(one.fields["retry_after_seconds"] == 5 for one in found if isinstance(one, MasaBusy))
            assert len(heads) == 2

    asyncio.run(run())


def test_a_pool_in_use_does_not_give_way_to_others(tmp_path: Path) -> None:
    """A manufacturer's call under way, or waiting for its turn, is not cut off because many others are asked."""

    async def story() -> None:
        going, arrived = asyncio.Event(), asyncio.Event()

        async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
            arrived.set()
            await going.wait()
            await plain("200 OK", b"voucher")(head, writer)

        client = HttpsMasa(RegistrarSettings(masa_seconds=20))
        async with masa(serve, tmp_path) as (port, _):
            slow = replace(destination(port), concurrency=1)
            calls = [asyncio.create_task(client.send(CALL, slow)) for _ in range(2)]
            await arrived.wait()
            for _ in range(MAX_SESSIONS + 1):
                with pytest.raises(MasaUnreachable):
                    await client.send(CALL, destination(free_port()))
            going.set()
            assert [reply.status for reply in await asyncio.gather(*calls)] == [200, 200]
            await client.close()

    asyncio.run(story())
