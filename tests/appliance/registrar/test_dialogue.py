"""A whole bootstrap over sockets: the device port, a MASA in its own process, a raw client on one connection."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.proxy import asking
from appliance.proxy.connection import Connection, Target, open_verified
from appliance.registrar.masa_client import HttpsMasa
from appliance.settings import RegistrarSettings
from appliance.web.server import Listener
from appliance.web.tls import TlsFront
from brski import Pledge
from est import csr
from est.client import EstClient
from est.csrattrs import CsrAttrs
from est.exchange import Call, Reply
from est.linking import binding_text
from lab import factory as lab_factory
from lab.factory import Factory, Identity
from tests.appliance.registrar.world import ADMIN, World, basic, campus_keys, certificate_in, enroll_call

BORN = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)


@contextmanager
def masa_process(folder: Path, *broken: str) -> Iterator[int]:
    """A mock MASA of the manufacturer in `folder`; the port that it listens on."""
    words = [sys.executable, "-m", "lab", "masa", "--dir", str(folder), "--port", "0"]
    if broken:
        words += ["--break", ",".join(broken)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["port"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


class RawClient:
    """One TLS connection on which nothing reconnects by itself (tls-notes: auto_open)."""

    def __init__(self, port: int, identity: Identity | None, version: ssl.TLSVersion) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        if identity is not None:
            with tempfile.NamedTemporaryFile() as file:
                file.write(identity.chain_pem + identity.key_pem)
                file.flush()
                context.load_cert_chain(file.name)
        self.connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
        self.connection.connect()
        self.connection.auto_open = 0
        der = self.connection.sock.getpeercert(True)
        self.server = x509.load_der_x509_certificate(der)

    def send(self, call: Call) -> Reply:
        headers = {**call.headers, "content-type": call.media_type} if call.media_type else dict(call.headers)
        self.connection.request(call.method, call.path, call.body, headers)
        answer = self.connection.getresponse()
        body = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found.get("content-type", ""), found, body)

    def close(self) -> None:
        self.connection.close()


class Site:
    """The registrar behind the device port's own listener, and a manufacturer on disk."""

    def __init__(self, world: World, port: int, listener: Listener, masa_port: int) -> None:
        self.world = world
        self.port = port
        self.listener = listener
        self.masa_port = masa_port

    def make_device(self, serial: str) -> Identity:
        world = self.world
        device = world.factory.make_device(serial, masa=f"127.0.0.1:{self.masa_port}", now=BORN)
        lab_factory.save_device(world.factory, world.folder / "maker", serial, device)
        return device

    async def client(self, identity: Identity | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> RawClient:
        return await asyncio.to_thread(RawClient, self.port, identity, version)


async def open_site(folder: Path, masa_port: int, maker: Factory, **settings: object) -> Site:
    options = RegistrarSettings(masa_seconds=2.0)
    world = await World.create(
        folder,
        born=BORN,
        factory=maker,
        masa=lambda maker, clock: HttpsMasa(options),
        masa_url=f"https://127.0.0.1:{masa_port}/.well-known/brski",
        **settings,
    )
    *_, server = campus_keys(BORN)
    listener = Listener("device", world.app, tls=TlsFront(server.key, server.certificate, server.chain[:1]))
    return Site(world, await listener.open_tcp("127.0.0.1", 0), listener, masa_port)


def run_with_masa(tmp_path: Path, story: object, *broken: str, **settings: object) -> None:
    maker_folder = tmp_path / "maker"
    maker = lab_factory.load_or_create(maker_folder, now=BORN)

    async def run(masa_port: int) -> None:
        site = await open_site(tmp_path, masa_port, maker, **settings)
        try:
            await story(site)  # type: ignore[operator]
        finally:
            await site.listener.close(1.0)
            await site.world.part.close()
            site.world.close()

    with masa_process(maker_folder, *broken) as masa_port:
        asyncio.run(run(masa_port))


@pytest.mark.lab
@pytest.mark.req("B-133", "B-137", "B-201", "B-202", "B-204", "E-220", "B-356")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_device_bootstraps_on_one_connection_with_a_masa_in_another_process(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    async def story(site: Site) -> None:
        world = site.world
        device = site.make_device("PX-1")
        pledge = Pledge(device.signer, device.chain, world.factory.masa_anchors)
        client = await site.client(device, version)
        send = partial(asyncio.to_thread, client.send)
        assert client.server == world.registrar_certificate
        asked = pledge.voucher_request(client.server, nonce=bytes(range(16)), now=datetime.now(UTC))
        reply = await send(asked)
        assert reply.status == 200, reply
        received = pledge.accept_voucher(reply, asked, world.tls_chain, now=datetime.now(UTC))
        assert received.assertion.value == "proximity"
        assert (await send(pledge.voucher_status(True))).status == 200
        assert (await send(Call("GET", "/.well-known/est/cacerts"))).status == 200
        wanted = EstClient().read_csrattrs(await send(EstClient().csrattrs_call()))
        key = ec.generate_private_key(ec.SECP256R1())
        reply = await send(enroll_call(asking.first(wanted).request(key)))
        assert reply.status == 200, reply
        client.close()
        ldevid = Identity(key, certificate_in(reply), world.ca.chain("devices")[:1])
        again = await site.client(ldevid, version)
        assert (await asyncio.to_thread(again.send, pledge.enroll_status(True))).status == 200
        names = {"subject": ldevid.certificate.subject, "san": _san(ldevid.certificate)}
        renewal = enroll_call(csr.build(key=key, **names), again=True)  # type: ignore[arg-type]
        assert (await asyncio.to_thread(again.send, renewal)).status == 200
        again.close()
        row = await world.row()
        assert row["state"] == "confirmed"
        assert row["masa"] == f"https://127.0.0.1:{site.masa_port}/.well-known/brski/requestvoucher"

    run_with_masa(tmp_path, story)


@pytest.mark.lab
@pytest.mark.req("E-71", "E-74", "E-76", "E-81")
@pytest.mark.parametrize(
    ("version", "status"), [(ssl.TLSVersion.TLSv1_2, 200), (ssl.TLSVersion.TLSv1_3, 400)], ids=["1.2", "1.3"]
)
def test_tls_unique_of_the_standard_library_links_on_tls_1_2_and_means_nothing_on_tls_1_3(
    tmp_path: Path, version: ssl.TLSVersion, status: int
) -> None:
    async def story(site: Site) -> None:
        made = await site.world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        headers, key = basic(made["credentials"]), ec.generate_private_key(ec.SECP256R1())

        async def ask(client: RawClient, unique: bytes) -> Reply:
            der = csr.build(subject=x509.Name([]), key=key, challenge_password=binding_text(unique))
            return await asyncio.to_thread(client.send, enroll_call(der, headers=headers))

        client, other = await site.client(None, version), await site.client(None, version)
        elsewhere = other.connection.sock.get_channel_binding("tls-unique")
        assert (await ask(client, elsewhere)).status == 400
        assert (await ask(client, client.connection.sock.get_channel_binding("tls-unique"))).status == status
        client.close()
        other.close()
        linked = [entry["fields"]["linked"] for entry in await site.world.audited("ldevid-issued")]
        assert linked == ([True] if status == 200 else [])

    run_with_masa(tmp_path, story, est={"linking": "required"})


@pytest.mark.lab
@pytest.mark.req("E-15", "E-75", "E-77", "E-126", "E-134")
def test_the_proxy_s_client_binds_its_request_to_each_connection_and_gets_one_certificate(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        made = await site.world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        key = ec.generate_private_key(ec.SECP256R1())
        target, anchors = Target("127.0.0.1", site.port), [site.world.ca.chain("devices")[-1]]

        async def ask(connection: Connection, binding: bytes) -> Reply:
            der = asking.first(CsrAttrs()).request(key, binding=binding_text(binding))
            return await connection.exchange(enroll_call(der, headers=basic(made["credentials"])), seconds=20)

        first = await open_verified(target, anchors, None, seconds=20)
        second = await open_verified(target, anchors, None, seconds=20)
        one, other = first.binding(), second.binding()
        assert one is not None and other is not None and one != other
        assert (await ask(second, one)).status == 400
        replies = [await ask(first, one), await ask(second, other)]
        assert [reply.status for reply in replies] == [200, 200]
        assert replies[0].body == replies[1].body
        await first.close()
        await second.close()
        (issued,) = await site.world.audited("ldevid-issued")
        assert issued["fields"]["linked"] is True

    run_with_masa(tmp_path, story, est={"linking": "required"})


@pytest.mark.lab
@pytest.mark.req("T-04", "B-223")
def test_after_a_request_for_another_registrar_the_server_closes_the_connection(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        device = site.make_device("PX-1")
        pledge = Pledge(device.signer, device.chain, site.world.factory.masa_anchors)
        client = await site.client(device)
        other = site.world.factory.masa_tls.certificate
        reply = await asyncio.to_thread(
            client.send, pledge.voucher_request(other, nonce=bytes(range(16)), now=datetime.now(UTC))
        )
        assert reply.status == 401
        with pytest.raises((http.client.HTTPException, OSError)):
            await asyncio.to_thread(client.send, Call("GET", "/.well-known/est/cacerts"))

    run_with_masa(tmp_path, story)


@pytest.mark.lab
@pytest.mark.req("T-30", "T-05", "T-28", "B-146", "B-332", "B-339")
@pytest.mark.parametrize(
    ("knob", "voucher_status", "enroll_status"),
    [
        ("http-500", 503, 403),
        ("http-401", 502, 403),
        ("html", 502, 403),
        ("slow=6", 504, 403),
        ("tampered", 502, 403),
        ("wrong-serial", 502, 403),
        ("wrong-nonce", 502, 403),
        ("wrong-pin", 502, 403),
        ("string-numbers", 200, 200),
        ("foreign-history", 200, 403),
        ("nonceless-history", 200, 403),
    ],
)
def test_a_misbehaving_masa_leads_to_its_status_and_to_no_certificate(
    tmp_path: Path, knob: str, voucher_status: int, enroll_status: int
) -> None:
    async def story(site: Site) -> None:
        device = site.make_device("PX-1")
        pledge = Pledge(device.signer, device.chain, site.world.factory.masa_anchors)
        client = await site.client(device)
        send = partial(asyncio.to_thread, client.send)
        reply = await send(pledge.voucher_request(client.server, nonce=bytes(range(16)), now=datetime.now(UTC)))
        assert reply.status == voucher_status, reply
        assert (await send(pledge.voucher_status(True))).status == 200
        key = ec.generate_private_key(ec.SECP256R1())
        reply = await send(enroll_call(csr.build(subject=x509.Name([]), key=key)))
        assert reply.status == enroll_status, reply
        client.close()

    run_with_masa(tmp_path, story, knob)


@pytest.mark.lab
@pytest.mark.req("B-224", "B-133")
def test_strangers_and_people_without_a_certificate_get_an_answer_over_tls(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        stranger = Factory.create("Other", now=BORN).make_device("PX-1", now=BORN)
        pledge = Pledge(stranger.signer, stranger.chain, site.world.factory.masa_anchors)
        for identity, status in ((stranger, 403), (None, 401)):
            client = await site.client(identity)
            asked = pledge.voucher_request(client.server, nonce=bytes(range(16)), now=datetime.now(UTC))
            assert (await asyncio.to_thread(client.send, asked)).status == status
            client.close()
        (row,) = await site.world.part.knocks.every()
        assert not row["known"]
        assert await site.world.part.inventory.pledges() == []

    run_with_masa(tmp_path, story)


def _san(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.lab
@pytest.mark.req("T-05", "B-340", "B-371")
def test_a_bad_history_shuts_est_on_the_open_connection_until_an_override_and_again_after_it_is_withdrawn(
    tmp_path: Path,
) -> None:
    async def story(site: Site) -> None:
        inventory, device = site.world.part.inventory, site.make_device("PX-1")
        pledge = Pledge(device.signer, device.chain, site.world.factory.masa_anchors)
        client = await site.client(device)
        send = partial(asyncio.to_thread, client.send)
        key = ec.generate_private_key(ec.SECP256R1())
        enroll = enroll_call(csr.build(subject=x509.Name([]), key=key))

        async def ask(first: int) -> int:
            asked = pledge.voucher_request(client.server, nonce=bytes([first] * 16), now=datetime.now(UTC))
            status = (await send(asked)).status
            if status == 200:
                assert (await send(pledge.voucher_status(True))).status == 200
            return status

        assert await ask(1) == 200
        reply = await send(enroll)
        assert (reply.status, reply.body[:19]) == (403, b"enrollment-not-open")
        assert await ask(2) == 403
        await inventory.override("PX-1", actor=ADMIN, reason="second-hand, the seller is known")
        assert (await send(enroll)).status == 403
        assert await ask(3) == 200
        reply = await send(enroll)
        assert reply.status == 200, reply
        ldevid = Identity(key, certificate_in(reply), site.world.ca.chain("devices")[:1])
        proxy = await site.client(ldevid)
        names = {"subject": ldevid.certificate.subject, "san": _san(ldevid.certificate)}
        renewal = enroll_call(csr.build(key=key, **names), again=True)  # type: ignore[arg-type]
        assert (await asyncio.to_thread(proxy.send, renewal)).status == 200
        await inventory.withdraw("PX-1", actor=ADMIN, reason="the seller was not the owner")
        # both connections were open all the time
        other = ec.generate_private_key(ec.SECP256R1())
        assert (await send(enroll_call(csr.build(subject=x509.Name([]), key=other)))).status == 403
        again = enroll_call(csr.build(key=other, **names), again=True)  # type: ignore[arg-type]
        assert (await asyncio.to_thread(proxy.send, again)).status == 403
        assert await ask(4) == 403
        client.close()
        proxy.close()

    run_with_masa(tmp_path, story, "foreign-history")


@pytest.mark.lab
@pytest.mark.req("B-222", "T-15")
def test_two_connections_that_wait_for_an_administrator_get_one_voucher(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        device = site.make_device("PX-1")
        pledge = Pledge(device.signer, device.chain, site.world.factory.masa_anchors)
        clients = [await site.client(device) for _ in range(2)]
        asked = pledge.voucher_request(clients[0].server, nonce=bytes(range(16)), now=datetime.now(UTC))

        async def both() -> list[Reply]:
            return list(await asyncio.gather(*(asyncio.to_thread(one.send, asked) for one in clients)))

        for _ in range(3):
            assert [(reply.status, reply.headers["retry-after"]) for reply in await both()] == [(202, "5")] * 2
        await site.world.part.inventory.admit("PX-1", actor=ADMIN)
        first, second = await both()
        assert (first.status, second.status) == (200, 200) and first.body == second.body
        steps = {one["step"]: one["times"] for one in (await site.world.row())["timeline"]}
        assert steps["masa-asked"] == 1
        for one in clients:
            one.close()

    run_with_masa(tmp_path, story, admission="manual")
