"""Listener: caps and deadlines that hold also for clients that hang up, and a process that runs out of descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.web.http import HttpConnection
from appliance.web.server import Timing
from appliance.web.tls_transport import TlsTransport
from appliance.web.wire import Wire
from est import der as tlv
from est import profiles
from tests.appliance.web.front import Client, client_context, get, listening
from tests.support import key


@pytest.mark.slow
@pytest.mark.req("E-202")
def test_hanging_up_frees_neither_deadline_nor_place_of_what_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="appliance.web")

    async def run() -> None:
        async with listening(timing=Timing(max_connections_per_address=2)) as (listener, port):
            for _ in range(2):
                client = await Client.connect(port)
                await client.send(get("/patient"))  # sleeps 30 s; the route allows 3
                await asyncio.sleep(0.05)
                client.writer.transport.abort()
            await asyncio.sleep(0.05)
            assert listener.connections == 2
            assert await (await Client.connect(port)).is_closed()
            async with asyncio.timeout(60):
                while listener.connections:
                    await asyncio.sleep(0.02)
            assert (await (await Client.connect(port)).ask(get("/who"))).status == 200

    asyncio.run(run())
    assert caplog.text.count("reason=answer-too-slow") == 2


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.web.server._SWEEP_SECONDS", 0.01)  # the sweep sees it, too

    def parts() -> int:
        return sum(type(one) in (HttpConnection, TlsTransport, Wire) for one in gc.get_objects())

    async def run() -> None:
        async with listening(tls=tls) as (listener, port):
            for _ in range(3):
                client = await Client.connect(port, client_context() if tls else None)
                assert (await client.ask(get("/who"))).status == 200
                await asyncio.sleep(0.05)
                await client.close()
            async with asyncio.timeout(60):  # the collector may not help, and what earlier tests left may go as well
                while listener.connections or parts() > before:
                    await asyncio.sleep(0.02)

    gc.collect()
    before = parts()
    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hogs: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                hogs.append(os.dup(2))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for hog in hogs:
            os.close(hog)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors by /proc")
def test_a_process_without_descriptors_waits_instead_of_spinning(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listening() as (_, port):
            knocking = socket.socket()
            knocking.setblocking(False)
            with no_more_descriptors():
                with contextlib.suppress(BlockingIOError):
                    knocking.connect(("127.0.0.1", port))
                async with asyncio.timeout(60):
                    while not (refused := caplog.text.count("event=accept-failed")):
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.5)
                refused = caplog.text.count("event=accept-failed")
            assert refused <= 3
            reader, writer = await asyncio.open_connection(sock=knocking)
            assert (await Client(reader, writer).ask(get("/who"))).status == 200
            writer.close()

    asyncio.run(run())


def with_version(number: int) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A self-signed certificate whose version field holds `number`; PEM."""
    own = key("odd version")
    now = datetime.now(UTC)
    shape = profiles.root_ca(
        profiles.name("odd"), own.public_key(), serial=7, not_before=now - timedelta(1), not_after=now + timedelta(1)
    )
    tbs = profiles.to_be_signed(shape, issuer_key=own.public_key())
    tbs = tbs.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01" + bytes([number]), 1)
    algorithm = tlv.sequence(tlv.oid("1.2.840.10045.4.3.2"))
    signature = own.sign(tbs, ec.ECDSA(hashes.SHA256()))
    der = tlv.sequence(tbs, algorithm, tlv.tlv(tlv.BIT_STRING, b"\x00" + signature))
    with pytest.raises(x509.InvalidVersion):
        x509.load_der_x509_certificate(der)
    return ssl.DER_cert_to_PEM_cert(der).encode(), own


@pytest.mark.parametrize("number", [1, 3])
def test_a_client_certificate_of_an_impossible_version_is_refused_in_words(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    pem, own = with_version(number)
    (tmp_path / "odd.pem").write_bytes(pem + own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = client_context()
    context.load_cert_chain(tmp_path / "odd.pem")

    async def run() -> None:
        async with listening(tls=True) as (_, port):
            assert (await (await Client.connect(port, context)).ask(get("/who"))).status == 400

    asyncio.run(run())
    assert "Traceback" not in caplog.text
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
