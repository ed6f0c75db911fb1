"""The device port's TLS: any client certificate is seen, none is trusted, sessions are never resumed."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from appliance.ca import Issued
from appliance.errors import HttpMalformed
from appliance.web import tls
from appliance.web.peer import Peer
from appliance.web.server import Listener, Timing
from appliance.web.tls import demand_client_certificate, https_context
from est.chains import REGISTRAR, SERVER, TrustAnchors, check, check_pin
from tests.appliance.authority import PASSPHRASE, authority, home, issue_ldevid, issuing
from tests.appliance.web.front import (
    Client,
    Seen,
    app,
    certify,
    client_context,
    front,
    get,
    identity,
    listening,
    post,
)
from tests.support import NOW, key

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
QUICK = Timing(handshake_seconds=1.0)


def ask(context: ssl.SSLContext) -> Peer:
    """One request over one connection; who the endpoint saw."""

    async def run() -> Peer:
        seen = Seen()
        async with listening(tls=True, seen=seen) as (_, port):
            client = await Client.connect(port, context)
            assert (await client.ask(get("/who"))).status == 200
            assert (await client.ask(get("/who"))).status == 200
            await client.close()
        assert seen.peers[0] is seen.peers[1]
        return seen.peers[0]

    return asyncio.run(run())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_without_certificate_gets_in_and_is_nobody(version: ssl.TLSVersion) -> None:
    peer = ask(client_context(version=version))
    assert (peer.certificate, peer.chain, peer.certificate_der, peer.address) == (None, (), None, "127.0.0.1")
    assert peer.tls_version == ("TLSv1.2" if version == ssl.TLSVersion.TLSv1_2 else "TLSv1.3")
    assert peer.server_certificate == identity().certificate


@pytest.mark.parametrize("version", VERSIONS)
def test_a_certificate_of_an_unknown_maker_is_seen(tmp_path: Path, version: ssl.TLSVersion) -> None:
    own = certify("stranger")
    peer = ask(client_context(tmp_path, own, version))
    assert peer.certificate == own[0]
    assert peer.chain == (own[0],)
    assert peer.certificate_der == own[0].public_bytes(Encoding.DER)


@pytest.mark.parametrize(("age_days", "days"), [(30, 1), (-30, 60)], ids=["expired", "not yet valid"])
def test_an_expired_or_future_certificate_is_seen(tmp_path: Path, age_days: int, days: int) -> None:
    own = certify("stranger", age_days=age_days, days=days)
    assert ask(client_context(tmp_path, own)).certificate == own[0]


def odd(
    extensions: list[tuple[x509.ExtensionType, bool]], private: Any = None, years: int = 1
) -> tuple[x509.Certificate, Any]:
    private = private or key("odd")
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "1")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Maker")]))
        .public_key(private.public_key())
        .serial_number(5)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key("maker"), hashes.SHA256()), private


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.9"), b"\x05\x00")
ODD = {
    "no extensions, year 9999": [],
    "server purpose only": [(x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1")]), True)],
    "unknown critical extension": [(UNKNOWN, True)],
    "key agreement only": [
        (x509.KeyUsage(False, False, False, False, True, False, False, False, False), True),
    ],
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("version", VERSIONS)
def test_odd_device_certificates_are_seen(tmp_path: Path, name: str, version: ssl.TLSVersion) -> None:
    own = odd(ODD[name])
    assert ask(client_context(tmp_path, own, version)).certificate == own[0]


def test_a_weak_rsa_certificate_is_seen(tmp_path: Path) -> None:
    own = odd([], rsa.generate_private_key(65537, 1024))
    context = client_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    pem = own[0].public_bytes(Encoding.PEM)
    pem += own[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "weak.pem").write_bytes(pem)
    context.load_cert_chain(tmp_path / "weak.pem")
    assert ask(context).certificate == own[0]


def ldevid_with_chain(folder: Path) -> tuple[Issued, ssl.SSLContext]:
    """A device certificate of our CA, and a client that shows it with all its issuers."""
    with authority(folder) as (ca, _):
        issued = asyncio.run(issue_ldevid(ca, "device"))
    return issued, showing(folder, [one.public_bytes(Encoding.DER) for one in (issued.certificate, *issued.chain)])


def showing(folder: Path, chain: list[bytes]) -> ssl.SSLContext:
    """A client that shows these certificates with the key "device"."""
    pem = "".join(ssl.DER_cert_to_PEM_cert(one) for one in chain).encode()
    pem += key("device").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "chain.pem").write_bytes(pem)
    context = client_context()
    context.load_cert_chain(folder / "chain.pem")
    return context


@pytest.mark.req("E-40")
def test_the_chain_that_the_client_sent_is_given_leaf_first(tmp_path: Path) -> None:
    issued, context = ldevid_with_chain(tmp_path)
    assert ask(context).chain == (issued.certificate, *issued.chain)


def test_the_handshake_itself_looks_at_the_clients_own_certificate_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depths = set()

    @SSL._ffi.callback("int (*)(int, X509_STORE_CTX *)")  # type: ignore[attr-defined, untyped-decorator]
    def accept(ok: int, store: Any) -> int:
        depths.add(SSL._lib.X509_STORE_CTX_get_error_depth(store))  # type: ignore[attr-defined]
        return 1

    monkeypatch.setattr(tls, "_accept", accept)
    issued, context = ldevid_with_chain(tmp_path)
    assert ask(context).certificate == issued.certificate
    assert depths == {0}


def test_an_issuer_that_cannot_be_read_is_refused_where_somebody_asks_for_it(tmp_path: Path) -> None:
    own = certify("device")
    version = bytes.fromhex("a003020102")
    der = own[0].public_bytes(Encoding.DER)
    odd_issuer = der.replace(version, version[:-1] + b"\x07", 1)
    context = showing(tmp_path, [der, odd_issuer])
    peer = ask(context)
    assert peer.certificate == own[0]
    with pytest.raises(HttpMalformed):
        _ = peer.chain


@cache
def pyopenssl_context(version: int, options: int = 0) -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_options(options)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    certificate, private = certify("stranger")
    context.use_certificate(certificate)
    context.use_privatekey(private)
    return context


def connection(port: int, version: int, *, session: SSL.Session | None = None, options: int = 0) -> SSL.Connection:
    raw = socket.create_connection(("127.0.0.1", port))
    made = SSL.Connection(pyopenssl_context(version, options), raw)
    if session is not None:
        made.set_session(session)
    made.set_connect_state()
    made.do_handshake()
    return made


@pytest.mark.req("E-40")
@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_resuming_gives_a_full_handshake_with_the_certificate(version: int) -> None:
    def talk(port: int) -> None:
        first = connection(port, version)
        first.sendall(get("/who"))
        assert b"200 OK" in first.recv(4096)
        session = first.get_session()
        first.shutdown()
        assert session is not None
        second = connection(port, version, session=session)
        second.sendall(get("/who"))
        assert b"200 OK" in second.recv(4096)
        assert not SSL._lib.SSL_session_reused(second._ssl)  # type: ignore[attr-defined]
        second.shutdown()

    async def run() -> list[Peer]:
        seen = Seen()
        async with listening(tls=True, seen=seen) as (_, port):
            await asyncio.to_thread(talk, port)
        return seen.peers

    first, second = asyncio.run(run())
    assert first.connection_id != second.connection_id
    assert first.certificate is not None
    assert first.certificate == second.certificate


NO_EXTENDED_MASTER_SECRET = 1  # SSL_OP_NO_EXTENDED_MASTER_SECRET, which pyOpenSSL does not name


@pytest.mark.req("E-76", "E-77", "E-81", "E-82")
@pytest.mark.parametrize(
    ("version", "options", "kinds"),
    [
        (SSL.TLS1_2_VERSION, 0, {"empty", "none", "unique"}),
        (SSL.TLS1_3_VERSION, 0, {"empty", "none"}),
        (SSL.TLS1_2_VERSION, NO_EXTENDED_MASTER_SECRET, set()),
    ],
)
def test_both_ends_know_the_channel_bindings_of_their_session_and_no_others(
    version: int, options: int, kinds: set[str]
) -> None:
    label = b"EXPORTER-Channel-Binding"

    def talk(port: int) -> dict[str, bytes | None]:
        client = connection(port, version, options=options)
        client.sendall(get("/who"))
        assert b"200 OK" in client.recv(4096)
        found = {
            "empty": client.export_keying_material(label, 32, b""),
            "none": client.export_keying_material(label, 32),
            "unique": client.get_finished(),  # on TLS 1.3 there is one as well, and it means nothing (E-81)
        }
        client.shutdown()
        return found

    async def run() -> None:
        seen = Seen()
        known: list[tuple[bytes, ...]] = []
        original = seen.peers

        class Recorder(list):  # type: ignore[type-arg]
            def append(self, peer: Peer) -> None:
                known.append(peer.bindings())
                super().append(peer)

        seen.peers = Recorder(original)
        async with listening(tls=True, seen=seen) as (_, port):
            ours = await asyncio.to_thread(talk, port)
        assert set(known[0]) == {ours[kind] for kind in kinds}

    asyncio.run(run())


def test_the_server_presents_a_chain_that_leads_to_the_root_and_to_a_pin() -> None:
    async def run() -> tuple[x509.Certificate, ...]:
        async with listening(tls=True) as (_, port):
            client = await Client.connect(port, client_context())
            side = client.writer.get_extra_info("ssl_object")
            raw = side._sslobj.get_unverified_chain()
            chain = tuple(x509.load_der_x509_certificate(ssl.PEM_cert_to_DER_cert(one.public_bytes(1))) for one in raw)
            await client.close()
            return chain

    chain = asyncio.run(run())
    root, cas = issuing()
    assert chain == (identity().certificate, cas["devices"].certificate)
    check(chain[0], chain[1:], TrustAnchors((root,)), at=NOW, policy=SERVER)
    check(chain[0], chain[1:], TrustAnchors((root,)), at=NOW, policy=REGISTRAR)
    for pin in (root, *chain):
        check_pin(chain, pin, at=NOW)


def test_a_rotated_certificate_serves_new_connections_and_old_ones_keep_theirs() -> None:
    from appliance.hierarchy import read_server

    other = read_server(home(), "https", PASSPHRASE)

    async def run() -> list[x509.Certificate | None]:
        seen = Seen()
        tls = front()
        listener = Listener("device", app(seen), tls=tls)
        port = await listener.open_tcp("127.0.0.1", 0)
        old = await Client.connect(port, client_context())
        assert (await old.ask(get("/who"))).status == 200
        tls.rotate(other.key, other.certificate, other.chain[:1])
        new = await Client.connect(port, client_context())
        assert (await new.ask(get("/who"))).status == 200
        assert (await old.ask(get("/who"))).status == 200
        assert new.writer.get_extra_info("ssl_object").getpeercert(True) == other.certificate.public_bytes(Encoding.DER)
        await old.close()
        await new.close()
        await listener.close()
        return [peer.server_certificate for peer in seen.peers]

    own = identity().certificate
    assert asyncio.run(run()) == [own, other.certificate, own]


def test_a_refused_handshake_is_told_to_the_client_and_logged_in_words(caplog: pytest.LogCaptureFixture) -> None:
    def talk(port: int) -> str:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(b"AES128-SHA256")
        raw = socket.create_connection(("127.0.0.1", port))
        client = SSL.Connection(context, raw)
        client.set_connect_state()
        try:
            client.do_handshake()
        except SSL.Error as error:
            return str(error)
        finally:
            raw.close()
        return "no error"

    async def run() -> str:
        async with listening(tls=True) as (listener, port):
            told = await asyncio.to_thread(talk, port)
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)
            return told

    caplog.set_level(logging.INFO)
    assert "handshake failure" in asyncio.run(run())
    assert "handshake-refused" in caplog.text and "no shared cipher" in caplog.text and "127.0.0.1" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.req("E-1", "E-202")
@pytest.mark.parametrize(
    "data",
    [b"", b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(5), bytes(500)],
    ids=["nothing", "plain HTTP", "broken record", "zeroes"],
)
def test_what_is_not_tls_is_dropped_by_the_deadline(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listening(tls=True, timing=QUICK) as (listener, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            await asyncio.wait_for(reader.read(), 60)
            writer.close()
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)
            client = await Client.connect(port, client_context())
            assert (await client.ask(get("/who"))).status == 200
            await client.close()

    caplog.set_level(logging.INFO)
    asyncio.run(run())
    assert "handshake-refused" in caplog.text and "Traceback" not in caplog.text


def hello(version: int, *suites: int) -> bytes:
    """A ClientHello without the extension that names TLS 1.3, so that `version` is the most it offers."""
    groups, hashes = b"\0\x0a\0\x04\0\x02\0\x17", b"\0\x0d\0\x08\0\x06\x04\x03\x02\x03\x08\x04"
    offered = b"".join(suite.to_bytes(2, "big") for suite in suites)
    body = version.to_bytes(2, "big") + bytes(32) + b"\0" + len(offered).to_bytes(2, "big") + offered + b"\1\0"
    body += len(groups + hashes).to_bytes(2, "big") + groups + hashes
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


async def told(port: int, data: bytes) -> tuple[int, int]:
    """The first record of the answer: its type (21 alert, 22 handshake) and the alert's description or the message."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(60):
        record = await reader.readexactly(7)
    writer.close()
    return record[0], record[6] if record[0] == 21 else record[5]


SERVER_HELLO = (22, 2)
PROTOCOL_VERSION = (21, 70)
HANDSHAKE_FAILURE = (21, 40)
GOOD_SUITE, OLD_SUITE = 0xC02B, 0xC009  # ECDHE-ECDSA with AES-128-GCM; the same with CBC, which older versions have


@pytest.mark.req("E-2", "B-132")
def test_tls_before_1_2_is_refused() -> None:
    async def run() -> None:
        async with listening(tls=True) as (_, port):
            assert await told(port, hello(0x0303, GOOD_SUITE)) == SERVER_HELLO
            for version in (0x0300, 0x0301, 0x0302):
                assert await told(port, hello(version, GOOD_SUITE, OLD_SUITE)) == PROTOCOL_VERSION

    asyncio.run(run())


NO_AUTHENTICATION = [0x0018, 0x0034, 0x006C, 0x00A6, 0xC018, 0x00A8, 0x008C, 0xC035, 0xC01D, 0xC020]  # DH, PSK, SRP
NO_SECRECY = [0x0001, 0x0002, 0x003B, 0xC006, 0xC010, 0xC02D, 0x00B0]
EXPORT_AND_DES = [0x0003, 0x0006, 0x0008, 0x0009, 0x000A, 0x0014, 0x0015, 0x0016, 0xC008, 0xC012]


@pytest.mark.req("E-3", "E-53")
@pytest.mark.parametrize("suites", [NO_AUTHENTICATION, NO_SECRECY, EXPORT_AND_DES], ids=["auth", "null", "des"])
def test_suites_without_authentication_or_secrecy_are_refused(suites: list[int]) -> None:
    async def run() -> None:
        async with listening(tls=True) as (_, port):
            assert await told(port, hello(0x0303, *suites)) == HANDSHAKE_FAILURE
            assert await told(port, hello(0x0303, *suites, GOOD_SUITE)) == SERVER_HELLO

    asyncio.run(run())


@pytest.mark.req("T-34", "B-142")
@pytest.mark.parametrize("name", [b"", b"192.0.2.7", b"nobody.example", b"..%00..", b"x" * 255, b"\xff\xfe"])
def test_a_server_name_of_any_kind_is_ignored(name: bytes) -> None:
    def talk(port: int) -> x509.Certificate:
        raw = socket.create_connection(("127.0.0.1", port))
        made = SSL.Connection(pyopenssl_context(SSL.TLS1_3_VERSION), raw)
        if name:
            made.set_tlsext_host_name(name)
        made.set_connect_state()
        made.do_handshake()
        shown = made.get_peer_certificate(as_cryptography=True)
        made.sendall(get("/who"))
        assert b"200 OK" in made.recv(4096)
        made.shutdown()
        assert shown is not None
        return shown

    async def run() -> x509.Certificate:
        async with listening(tls=True) as (_, port):
            return await asyncio.to_thread(talk, port)

    assert asyncio.run(run()) == identity().certificate


def test_a_large_answer_does_not_block_the_loop() -> None:
    async def run() -> float:
        async with listening(tls=True) as (_, port):
            client = await Client.connect(port, client_context())
            longest = 0.0

            async def watch() -> None:
                nonlocal longest
                while True:
                    begun = time.thread_time()  # what others take of the processor meanwhile does not count
                    await asyncio.sleep(0.001)
                    longest = max(longest, time.thread_time() - begun)

            watcher = asyncio.create_task(watch())
            assert len((await client.ask(get("/big"))).body) == 8_000_000
            watcher.cancel()
            await client.close()
            return longest

    assert asyncio.run(run()) < 0.4


def test_a_large_upload_arrives_whole() -> None:
    async def run() -> None:
        async with listening(tls=True) as (_, port):
            client = await Client.connect(port, client_context())
            body = bytes(range(256)) * 256
            assert (await client.ask(post("/echo", body))).body == body
            assert (await client.ask(post("/echo", bytes(65_537)))).status == 413
            await client.close()

    asyncio.run(run())


def test_bad_tls_and_broken_connections_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def bad(port: int, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01" + bytes((number % 256,)) * 60)
        if number % 2:
            writer.transport.abort()  # type: ignore[attr-defined]
        else:
            writer.close()

    async def reset(port: int) -> None:
        client = await Client.connect(port, client_context())
        await client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab")
        client.writer.transport.abort()  # type: ignore[attr-defined]

    async def run() -> None:
        async with listening(tls=True) as (listener, port):
            await asyncio.gather(*(bad(port, number) for number in range(60)), *(reset(port) for _ in range(40)))
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)
            client = await Client.connect(port, client_context())
            assert (await client.ask(get("/who"))).status == 200
            await client.close()

    asyncio.run(run())
    assert "Traceback" not in caplog.text


def test_the_console_context_takes_no_client_certificates_and_no_old_tls(tmp_path: Path) -> None:
    context = https_context(home() / "certificates" / "https.pem", home() / "keys" / "https.key", PASSPHRASE)

    async def run() -> Peer:
        seen = Seen()
        listener = Listener("console", app(seen), tls=context)
        port = await listener.open_tcp("127.0.0.1", 0)
        client = await Client.connect(port, client_context(tmp_path, certify("stranger")))
        assert (await client.ask(get("/who"))).status == 200
        await client.close()
        await listener.close()
        return seen.peers[0]

    peer = asyncio.run(run())
    assert peer.certificate is None and peer.tls_version == "TLSv1.3"
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_remote_decision_client_needs_a_certificate_of_its_issuing_ca(tmp_path: Path) -> None:
    context = https_context(home() / "certificates" / "https.pem", home() / "keys" / "https.key", PASSPHRASE)
    demand_client_certificate(context, (issuing()[1]["infrastructure"].certificate,))

    async def refused(client: ssl.SSLContext) -> None:
        listener = Listener("decision", app(), tls=context)
        port = await listener.open_tcp("127.0.0.1", 0)
        try:
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                connected = await Client.connect(port, client)
                await connected.ask(get("/who"))
        finally:
            await listener.close()

    asyncio.run(refused(client_context()))
    asyncio.run(refused(client_context(tmp_path, certify("stranger"))))


def test_a_unix_socket_tells_uid_and_pid(tmp_path: Path) -> None:
    import os
    import stat

    path = tmp_path / "admin.sock"

    async def run() -> Peer:
        seen = Seen()
        listener = Listener("admin", app(seen))
        await listener.open_unix(path, 0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = Client(*await asyncio.open_unix_connection(str(path)))
        assert (await client.ask(get("/who"))).status == 200
        from appliance.errors import Conflict

        with pytest.raises(Conflict):
            await Listener("again", app()).open_unix(path)
        await client.close()
        await listener.close()
        assert not path.exists()
        return seen.peers[0]

    peer = asyncio.run(run())
    assert (peer.uid, peer.pid, peer.certificate) == (os.getuid(), os.getpid(), None)


def test_a_unix_socket_left_behind_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()

    async def run() -> None:
        listener = Listener("admin", app())
        await listener.open_unix(path)
        client = Client(*await asyncio.open_unix_connection(str(path)))
        assert (await client.ask(get("/who"))).status == 200
        await client.close()
        await listener.close()

    asyncio.run(run())


def test_a_port_that_is_taken_is_an_os_error() -> None:
    async def run() -> None:
        async with listening() as (_, port):
            other = Listener("other", app())
            with pytest.raises(OSError, match="in use"):
                await other.open_tcp("127.0.0.1", port)
            await other.close()

    asyncio.run(run())
