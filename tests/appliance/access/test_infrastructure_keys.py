"""One key, one subject (E-204) for what the infrastructure CA certifies: NAS, and RADIUS servers on other machines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.access.freeradius import FreeRadius
from appliance.access.nas import NasService
from appliance.access.nas_certificates import NasCertificates
from appliance.access.routes import est_endpoints
from appliance.access.service import AccessService
from appliance.access.sites import LABEL, RadiusSites
from appliance.console.devices import EstOperations
from appliance.errors import KeyInUse
from appliance.settings import AccessSettings, RadiusSettings
from appliance.store import certificates
from appliance.web.app import build_app
from appliance.web.routes import ROUTES
from est import csr, profiles
from est.exchange import Reply
from est.keys import spki_sha256
from lab.factory import Identity
from tests.appliance.access.test_access_service import OID, Box
from tests.appliance.registrar.test_est_labels import under
from tests.appliance.registrar.world import ADMIN, World, basic, certificate_in, enroll_call, play

Key: TypeAlias = ec.EllipticCurvePrivateKey
ISSUED = "infrastructure-certificate-issued"


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def request_of(private: Key) -> bytes:
    return csr.build(subject=profiles.name("whatever"), key=private)


def as_pem(private: Key) -> str:
    return x509.load_der_x509_csr(request_of(private)).public_bytes(Encoding.PEM).decode()


class Campus:
    """A registrar beside which NAS and RADIUS servers are certified."""

    def __init__(self, world: World) -> None:
        self.world = world
        origin, days = world.settings.origin, world.settings.ca.server_days
        self.nas = NasService(world.store, Box(), engine="none")
        self.certificates = NasCertificates(world.ca, world.store, origin=origin, days=days)
        self.sites = RadiusSites(
            world.ca, world.store, world.clock, AccessService(AccessSettings(), world.store, world.clock), self.nas,
            FreeRadius(RadiusSettings(), self.nas, _not_rendered, lambda: None, owner_id_oid=OID),
            origin=origin, server_name="radius.campus.example", days=days,
        )  # fmt: skip
        endpoints = est_endpoints(self.sites, world.part.endpoints)
        self.app = build_app("device", endpoints, routes=[one for one in ROUTES if one.endpoint in endpoints])

    async def certify(self, name: str, private: Key) -> Mapping[str, Any]:
        """`appliance nas certify`, for a NAS on the list."""
        return await self.certificates.certify(name, as_pem(private), ADMIN)

    async def secret(self, name: str) -> dict[str, str]:
        """Headers with a new one-time secret of a RADIUS server."""
        made = await self.world.part.inventory.new_est_secret(name, actor=ADMIN, label=LABEL)
        return basic(made["credentials"])

    async def enrol(self, private: Key, secret: Mapping[str, str]) -> Reply:
        """A RADIUS server's first certificate."""
        call = under(LABEL, enroll_call(request_of(private), headers=secret))
        return await self.app.handle(call, self.world.peer())

    async def renew(self, holder: Identity, private: Key) -> Reply:
        """A RADIUS server's next one."""
        call = under(LABEL, enroll_call(request_of(private), again=True))
        return await self.app.handle(call, self.world.peer(holder))

    async def site(self, name: str, private: Key) -> Identity:
        """A RADIUS server that is in."""
        reply = await self.enrol(private, await self.secret(name))
        assert reply.status == 200, reply
        return Identity(private, certificate_in(reply), self.world.ca.chain("infrastructure")[:1])

    async def issued(self) -> int:
        """How many certificates of NAS and RADIUS servers there are."""
        return len(await self.world.audited(ISSUED))

    async def known(self) -> int:
        """How many certificates were ever begun."""
        return len(await self.world.store.read(lambda tx: certificates.page(tx)))


def _not_rendered() -> Any:
    raise AssertionError("nothing is rendered here")


def play_with(folder: Path, story: Callable[[Campus], Awaitable[None]]) -> None:
    async def begin(world: World) -> None:
        made = Campus(world)
        await made.sites.start()
        for number, name in enumerate(("hall", "roof"), 1):
            await made.nas.add(name, f"192.0.2.{number}", "shared-secret-of-the-switch-0001", ADMIN)
        await story(made)

    play(folder, begin)


# ---- whose key it is


async def of_a_proxy(campus: Campus) -> Key:
    device = campus.world.device()
    await device.bootstrap()
    return device.key


async def of_a_revoked_proxy(campus: Campus) -> Key:
    device = campus.world.device()
    certificate = await device.bootstrap()
    await campus.world.ca.revoke("devices", certificate.serial_number, actor=ADMIN)
    return device.key


async def of_an_authority(campus: Campus) -> Key:
    private = new_key()
    await EstOperations(campus.world.part, ADMIN).authority("plant RA", as_pem(private))
    return private


async def of_a_nas(campus: Campus) -> Key:
    private = new_key()
    await campus.certify("roof", private)
    return private


async def of_a_site(campus: Campus) -> Key:
    private = new_key()
    await campus.site("south", private)
    return private


async def of_a_server_of_ours(campus: Campus) -> Key:
    private, world = new_key(), campus.world
    aki, now = world.ca.issuing("infrastructure").key_identifier, world.clock.now()
    row = certificates.Pending(
        "infrastructure", aki, 77, bytes(32), spki_sha256(private.public_key()), now, now, {"profile": "https"}
    )
    await world.store.write(lambda tx: certificates.add(tx, row))
    return private


SOMEBODY_ELSES = pytest.mark.parametrize(
    "somebody_elses",
    [of_a_proxy, of_a_revoked_proxy, of_an_authority, of_a_nas, of_a_site, of_a_server_of_ours],
)
Holder: TypeAlias = Callable[[Campus], Awaitable[Key]]


# ---- NAS


@pytest.mark.req("E-204")
@SOMEBODY_ELSES
def test_a_nas_gets_no_certificate_for_a_key_that_is_somebody_elses(tmp_path: Path, somebody_elses: Holder) -> None:
    async def story(campus: Campus) -> None:
        taken = await somebody_elses(campus)
        issued, known = await campus.issued(), await campus.known()
        with pytest.raises(KeyInUse):
            await campus.certify("hall", taken)
        assert (await campus.issued(), await campus.known()) == (issued, known)
        assert (await campus.certify("hall", new_key()))["name"] == "hall"

    play_with(tmp_path, story)


@pytest.mark.req("E-204")
def test_a_nas_may_have_its_own_key_certified_again(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        own = new_key()
        first = await campus.certify("hall", own)
        await campus.world.ca.revoke("infrastructure", int(first["serial"], 16), actor=ADMIN)
        again = await campus.certify("hall", own)
        assert again["identifier"] == first["identifier"] and again["serial"] != first["serial"]
        with pytest.raises(KeyInUse):
            await campus.certify("roof", own)

    play_with(tmp_path, story)


# ---- RADIUS servers


def refused(reply: Reply) -> bool:
    return reply.status == 403 and b"key-in-use" in reply.body


@pytest.mark.req("E-204")
@SOMEBODY_ELSES
def test_a_radius_server_gets_no_certificate_for_a_key_that_is_somebody_elses(
    tmp_path: Path, somebody_elses: Holder
) -> None:
    async def story(campus: Campus) -> None:
        taken = await somebody_elses(campus)
        secret = await campus.secret("north")
        issued, known = await campus.issued(), await campus.known()
        assert refused(await campus.enrol(taken, secret))
        assert (await campus.issued(), await campus.known()) == (issued, known)
        # the secret was not spent on it
        assert (await campus.enrol(new_key(), secret)).status == 200

    play_with(tmp_path, story)


@pytest.mark.req("E-204")
@SOMEBODY_ELSES
def test_nor_when_it_renews_its_certificate(tmp_path: Path, somebody_elses: Holder) -> None:
    async def story(campus: Campus) -> None:
        taken, holder = await somebody_elses(campus), await campus.site("north", new_key())
        issued, known = await campus.issued(), await campus.known()
        assert refused(await campus.renew(holder, taken))
        assert (await campus.issued(), await campus.known()) == (issued, known)

    play_with(tmp_path, story)


@pytest.mark.req("E-204")
def test_a_radius_server_renews_with_its_own_key_or_a_new_one_and_both_stay_its_own(tmp_path: Path) -> None:
    async def story(campus: Campus) -> None:
        first, second = new_key(), new_key()
        holder = await campus.site("north", first)
        for private in (first, second, first):
            reply = await campus.renew(holder, private)
            assert reply.status == 200 and certificate_in(reply).public_key() == private.public_key()
        for old in (first, second):
            assert refused(await campus.enrol(old, await campus.secret("east")))
            with pytest.raises(KeyInUse):
                await campus.certify("hall", old)

    play_with(tmp_path, story)
