"""Registration authorities: who may ask for others, for whom, and what is written down about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.console.devices import EstOperations
from appliance.errors import KeyInUse, RequestMalformed
from est import csr, profiles
from est.chains import CMC_RA
from est.exchange import Call, Reply
from est.linking import binding_text
from lab.factory import Domain, Identity, make_leaf
from tests.appliance.registrar.test_est_labels import under
from tests.appliance.registrar.test_est_service import san_of
from tests.appliance.registrar.world import ADMIN, World, certificate_in, enroll_call, play
from tests.support import NOW

LABELS: Mapping[str, Any] = {
    "labels": {
        "plant": {"authorities": True},
        "annex": {"authorities": True},
        "bound": {"authorities": True, "linking": "required"},
    }
}


async def authority(world: World, name: str = "plant RA") -> tuple[Identity, dict[str, Any]]:
    """A registration authority that an administrator had certified."""
    private = ec.generate_private_key(ec.SECP256R1())
    request = x509.load_der_x509_csr(csr.build(subject=profiles.name("whatever"), key=private))
    pem = request.public_bytes(Encoding.PEM).decode()
    made = await EstOperations(world.part, ADMIN).authority(name, pem)
    first, *rest = x509.load_pem_x509_certificates(made["chain_pem"].encode())
    return Identity(private, first, tuple(rest)), dict(made)


def told(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.body.decode().partition(":")[0]


def asked(private: ec.EllipticCurvePrivateKey, **more: Any) -> bytes:
    return csr.build(**{"subject": profiles.name("valve 12"), "key": private, **more})


@pytest.mark.req("E-57")
def test_an_administrator_certifies_an_authority_and_the_certificate_serves_no_tls(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        ra, made = await authority(world)
        usages = ra.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert {one.dotted_string for one in usages} == {"1.3.6.1.5.5.7.3.2", CMC_RA}
        assert ra.certificate.subject == profiles.name("plant RA")
        assert san_of(ra.certificate).get_values_for_type(x509.UniformResourceIdentifier) == [made["identifier"]]
        assert made["identifier"].startswith(f"{world.settings.origin}/ra/")
        (added,) = await world.audited("authority-added")
        assert (added["actor"]["identifier"], added["fields"]["name"]) == ("ada", "plant RA")
        for bad in ({"name": ""}, {"name": "x" * 65}, {"days": 0}, {"days": 10_000}):
            with pytest.raises(RequestMalformed):
                await EstOperations(world.part, ADMIN).authority(**{"name": "a", "request": "", **bad})

    play(tmp_path, story)


@pytest.mark.req("E-204")
def test_the_key_of_another_certificate_makes_no_authority(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        ra, _ = await authority(world)
        peer, device = world.peer(ra), ec.generate_private_key(ec.SECP256R1())
        assert (await world.handle(under("plant", enroll_call(asked(device))), peer)).status == 200
        for taken in (device, ra.key):
            request = x509.load_der_x509_csr(csr.build(subject=profiles.name("x"), key=taken))
            pem = request.public_bytes(Encoding.PEM).decode()
            with pytest.raises(KeyInUse):
                await EstOperations(world.part, ADMIN).authority("another", pem)
        assert len(await world.audited("authority-added")) == 1

    play(tmp_path, story, est=LABELS)


@pytest.mark.req("E-56", "E-119", "E-55")
def test_an_authority_enrols_and_renews_for_others_under_labels_that_want_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        ra, made = await authority(world)
        peer, private = world.peer(ra), ec.generate_private_key(ec.SECP256R1())
        call = enroll_call(asked(private))
        assert told(await world.handle(call, peer)) == (403, "authority-not-wanted")
        reply = await world.handle(under("plant", call), peer)
        old = certificate_in(reply)
        assert old.public_key() == private.public_key()
        (proxy,) = await world.part.inventory.proxies()
        assert (proxy["method"], proxy["name"], proxy["identifier"]) == (
            "ra", "valve 12", *san_of(old).get_values_for_type(x509.UniformResourceIdentifier),
        )  # fmt: skip
        # who asked, and for whom
        for event, field in (("proxy-added-by-authority", "object"), ("ldevid-issued", "fields")):
            (entry,) = await world.audited(event)
            assert (entry["actor"]["kind"], entry["actor"]["identifier"]) == (
                "registration-authority", made["identifier"],
            )  # fmt: skip
            assert proxy["identifier"] in (entry[field] if field == "object" else entry[field]["proxy"])
        # the same request once more is the same certificate, another is another proxy
        assert (await world.handle(under("plant", call), peer)).body == reply.body
        other = under("plant", enroll_call(asked(ec.generate_private_key(ec.SECP256R1()))))
        assert (await world.handle(other, peer)).status == 200
        assert len(await world.part.inventory.proxies()) == 2
        # renewal: names as in the certificate that the proxy holds, whoever holds the key now
        names = {"subject": old.subject, "san": san_of(old)}
        again = enroll_call(asked(ec.generate_private_key(ec.SECP256R1()), **names), again=True)
        assert told(await world.handle(again, peer)) == (403, "authority-not-wanted")
        assert told(await world.handle(under("annex", again), peer)) == (403, "authority-not-wanted")
        new = certificate_in(await world.handle(under("plant", again), peer))
        assert (new.subject, san_of(new)) == (old.subject, san_of(old))
        wrong = enroll_call(asked(private, san=san_of(old)), again=True)
        assert told(await world.handle(under("plant", wrong), peer)) == (403, "names-changed")
        # and the proxy itself renews as any other
        own = enroll_call(asked(private, **names), again=True)
        device = world.peer(Identity(private, old, ra.issuers))
        assert (await world.handle(under("plant", own), device)).status == 200

    play(tmp_path, story, est=LABELS)


@pytest.mark.req("E-56", "E-119", "E-118")
def test_what_an_authority_may_not(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        ra, made = await authority(world)
        peer, private = world.peer(ra), ec.generate_private_key(ec.SECP256R1())
        device = world.device()
        old = await device.bootstrap()

        async def ask(call: Call, label: str = "plant", who: Any = peer) -> tuple[int, str]:
            return told(await world.handle(under(label, call), who))

        # a proxy that came by BRSKI, or that does not exist
        names = {"subject": old.subject, "san": san_of(old)}
        assert await ask(enroll_call(asked(private, **names), again=True)) == (403, "authority-not-wanted")
        assert await ask(enroll_call(asked(private), again=True)) == (403, "authority-not-wanted")
        # a name that is ours to give, a key of somebody else, no possession
        assert await ask(enroll_call(asked(private, san=san_of(old)))) == (403, "names-not-justified")
        assert await ask(enroll_call(asked(device.key))) == (403, "key-in-use")
        broken = asked(private)[:-1] + bytes([asked(private)[-1] ^ 1])
        assert (await ask(enroll_call(broken)))[0] == 400
        # certificates that only look like an authority's
        forged = make_leaf(Domain.create(now=NOW).ca, ra.certificate.subject, now=NOW)
        assert await ask(enroll_call(asked(private)), who=world.peer(forged)) == (401, "")
        registrar = Identity(private, world.registrar_certificate, ())
        assert (await ask(enroll_call(asked(private)), who=world.peer(registrar)))[0] in (401, 403)
        # it is no proxy
        assert (await ask(Call("POST", "/.well-known/est/serverkeygen", "application/pkcs10", {}, b"")))[0] == 404
        assert (await ask(enroll_call(asked(private))))[0] == 200
        await world.ca.revoke("devices", int(made["serial"], 16), actor=ADMIN)
        assert await ask(enroll_call(asked(private))) == (403, "ldevid-not-accepted")
        assert await ask(enroll_call(asked(ec.generate_private_key(ec.SECP256R1())))) == (403, "ldevid-not-accepted")

    play(tmp_path, story, est=LABELS)


@pytest.mark.req("E-56", "E-74")
def test_an_authority_passes_on_a_binding_of_another_session(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        ra, _ = await authority(world)
        peer, private = world.peer(ra, bind=lambda: (b"r" * 32,)), ec.generate_private_key(ec.SECP256R1())
        bare = await world.handle(under("bound", enroll_call(asked(private))), peer)
        assert told(bare) == (400, "tls-linking-failed")
        bound = asked(private, challenge_password=binding_text(b"d" * 32))
        assert (await world.handle(under("bound", enroll_call(bound)), peer)).status == 200
        (issued,) = await world.audited("ldevid-issued")
        assert issued["fields"]["linked"] is False

    play(tmp_path, story, est=LABELS)


def test_a_revoked_proxy_of_an_authority_stays_out(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        ra, _ = await authority(world)
        peer, private = world.peer(ra), ec.generate_private_key(ec.SECP256R1())
        call = under("plant", enroll_call(asked(private)))
        old = certificate_in(await world.handle(call, peer))
        (proxy,) = await world.part.inventory.proxies()
        await world.part.inventory.revoke_proxy(proxy["identifier"], actor=ADMIN)
        assert told(await world.handle(call, peer)) == (403, "proxy-revoked")
        again = enroll_call(asked(private, subject=old.subject, san=san_of(old)), again=True)
        assert told(await world.handle(under("plant", again), peer)) == (403, "ldevid-not-accepted")

    play(tmp_path, story, est=LABELS)
