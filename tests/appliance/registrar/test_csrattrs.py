"""csrattrs: what a caller is told, and that a device which asked is held to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.proxy import asking
from est import csrattrs, transfer
from est.client import EstClient
from est.csrattrs import CURVES, EC_PUBLIC_KEY, CsrAttrs, ExtensionDemand, KeyDemand, NameDemand
from lab.factory import make_self_signed
from tests.appliance.registrar.world import ADMIN, Device_, World, basic, certificate_in, enroll_call, play

CLIENT = EstClient()
KEY = KeyDemand(EC_PUBLIC_KEY, curve=CURVES["secp256r1"])


def san(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def demanded(uri: str) -> CsrAttrs:
    """The default answer of the requirement sheet: CN open, P-256, the identifier dictated."""
    return CsrAttrs(
        key=KEY,
        subject=(NameDemand(csrattrs.COMMON_NAME),),
        extensions=(ExtensionDemand(csrattrs.SUBJECT_ALT_NAME, value=san(uri).public_bytes()),),
    )


async def told(world: World, peer: Any, headers: dict[str, str] | None = None) -> CsrAttrs:
    call = CLIENT.csrattrs_call()
    reply = await world.handle(type(call)(call.method, call.path, headers=headers or {}), peer)
    assert (reply.status, reply.media_type) == (200, "application/csrattrs")
    return CLIENT.read_csrattrs(reply)


async def admitted(world: World) -> tuple[Device_, str]:
    device = world.device()
    await device.voucher()
    await device.status()
    (proxy,) = await world.part.inventory.proxies()
    return device, proxy["identifier"]


@pytest.mark.req("E-150", "E-151", "E-153", "E-156", "E-163", "B-373")
def test_a_device_hears_its_names_after_its_admission_and_strangers_the_key_alone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        for peer in (device.peer, world.peer(), world.peer(make_self_signed("x", now=world.clock.now()))):
            assert await told(world, peer) == CsrAttrs(key=KEY)
        device, identifier = await admitted(world)
        assert await told(world, device.peer) == demanded(identifier)
        reply = await world.handle(CLIENT.csrattrs_call(), device.peer)
        # beside the template the old form says the same to clients that do not know it, in one line that libest reads
        assert transfer.read_base64(reply.body) == csrattrs.write(demanded(identifier), old=True, template=True)
        assert reply.body.count(b"\n") == 1
        assert len(reply.body) <= 1000

    play(tmp_path, story)


@pytest.mark.req("E-163", "E-223")
def test_the_holder_of_a_one_time_secret_hears_its_names_and_a_guess_is_401(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        headers = basic(made["credentials"])
        wanted = await told(world, world.peer(), headers)
        key = ec.generate_private_key(ec.SECP256R1())
        der = asking.first(wanted).request(key)
        reply = await world.handle(enroll_call(der, headers=headers), world.peer())
        (proxy,) = await world.part.inventory.proxies()
        assert wanted == demanded(proxy["identifier"])
        certificate = certificate_in(reply)
        assert CLIENT.read_enrolled(reply, key.public_key(), csr_der=der) == certificate
        call = CLIENT.csrattrs_call()
        guess = type(call)(call.method, call.path, headers=basic("rack-7:guess"))
        refused = await world.handle(guess, world.peer())
        assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Basic realm="enrollment"')

    play(tmp_path, story)


@pytest.mark.req("E-150", "B-373", "B-374")
def test_a_device_that_follows_the_answer_gets_its_certificate(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device, identifier = await admitted(world)
        der = asking.first(await told(world, device.peer)).request(device.key)
        reply = await device.enroll(der)
        certificate = CLIENT.read_enrolled(reply, device.key.public_key(), csr_der=der)
        assert isinstance(certificate, x509.Certificate)
        assert certificate.subject.rfc4514_string() == "CN=proxy " + identifier.rpartition("/")[2]
        ldevid = device.with_ldevid(certificate)
        assert await told(world, ldevid) == demanded(identifier)

    play(tmp_path, story)


CN = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "px")])


@pytest.mark.req("E-150", "E-164", "B-373")
@pytest.mark.parametrize(
    ("lack", "item"),
    [
        ({}, "subjectAltName"),
        ({"subject": x509.Name([])}, "commonName"),
        ({"key": ec.generate_private_key(ec.SECP384R1())}, "P-256"),
    ],
    ids=["san", "cn", "key"],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_device_that_asked_is_held_to_the_answer_also_after_a_restart(
    tmp_path: Path, lack: dict[str, Any], item: str, restarted: bool
) -> None:
    async def story(world: World) -> None:
        device, _ = await admitted(world)
        await told(world, device.peer)
        if restarted:
            world.close()
            world = await World.create(tmp_path, reopen=world)
            device.world = world
        reply = await device.enroll(device.csr(**{"subject": CN, **lack}))
        assert (reply.status, item in reply.body.decode()) == (400, True)
        assert reply.body.startswith(b"csr-attribute-missing")
        der = asking.first(await told(world, device.peer)).request(device.key)
        assert (await device.enroll(der)).status == 200
        if restarted:
            world.close()

    play(tmp_path, story)


@pytest.mark.req("E-150")
def test_who_never_asked_is_held_to_nothing_new_and_a_new_bootstrap_forgets_the_answer(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device, _ = await admitted(world)
        assert (await device.enroll()).status == 200
        await told(world, device.peer)
        device.key = ec.generate_private_key(ec.SECP256R1())
        assert (await device.bootstrap()).public_key() == device.key.public_key()

    play(tmp_path, story)


def test_a_repeated_question_writes_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device, _ = await admitted(world)
        await told(world, device.peer)
        before = (tmp_path / "appliance.db-wal").read_bytes()
        await told(world, device.peer)
        assert (tmp_path / "appliance.db-wal").read_bytes() == before

    play(tmp_path, story)
