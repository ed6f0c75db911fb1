"""EST labels: rules of their own, and proxies that belong to one of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.console.devices import EstOperations
from appliance.errors import RequestMalformed
from appliance.proxy import asking
from appliance.settings import EstSettings, SettingsInvalid, load_settings
from est import csr, csrattrs
from est.client import EstClient
from est.csrattrs import IDENTITY_LINKING, OTP_CHALLENGE
from est.exchange import Call, Reply
from est.linking import binding_text
from tests.appliance.registrar.test_est_service import san_of
from tests.appliance.registrar.world import ADMIN, World, basic, certificate_in, enroll_call, play
from tests.support import NOW

LAB = {"labels": {"lab": {"life_days": 7, "key": "p-384", "linking": "required"}, "annex": {}}}
EXPORTER, UNIQUE = b"e" * 32, b"u" * 12


def under(label: str, call: Call) -> Call:
    return replace(call, path=call.path.replace("/est/", f"/est/{label}/"))


def text(value: bytes) -> bytes:
    return b"\x0c" + bytes([len(value)]) + value


@pytest.mark.req("E-7", "E-9", "E-55", "E-74", "E-153")
def test_a_label_has_its_own_life_key_and_linking_and_the_plain_path_keeps_its_own(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN, label="lab")
        headers = basic(made["credentials"])
        peer = world.peer(bind=lambda: (EXPORTER, UNIQUE))
        asked = under("lab", Call("GET", "/.well-known/est/csrattrs", headers=headers))
        wanted = EstClient().read_csrattrs(await world.handle(asked, peer))
        assert wanted.attributes == (csrattrs.CHALLENGE_PASSWORD,)
        key = ec.generate_private_key(ec.SECP384R1())

        async def ask(der: bytes) -> Reply:
            return await world.handle(under("lab", enroll_call(der, headers=headers)), peer)

        unbound = await ask(asking.first(wanted).request(key))
        assert (unbound.status, b"in challengePassword" in unbound.body) == (400, True)
        small = csr.build(subject=x509.Name([]), key=world.device().key, challenge_password=binding_text(EXPORTER))
        refused = await ask(small)
        assert (refused.status, b"P-384 only" in refused.body) == (400, True)
        reply = await ask(asking.first(wanted).request(key, binding=binding_text(UNIQUE)))
        certificate = certificate_in(reply)
        assert certificate.not_valid_after_utc - NOW == timedelta(days=7)
        (issued,) = await world.audited("ldevid-issued")
        assert (issued["fields"]["label"], issued["fields"]["linked"]) == ("lab", True)
        # without a label nothing of this counts
        plain = await world.device("PX-2").bootstrap()
        assert plain.not_valid_after_utc - NOW == timedelta(days=world.settings.ca.ldevid_days)

    play(tmp_path, story, est=LAB)


@pytest.mark.req("E-10", "E-7")
@pytest.mark.parametrize(
    ("label", "status"),
    [("annex", 200), ("%61nnex", 200), ("Annex", 404), ("annex%2f", 404), ("anne", 404), ("%2561nnex", 404)],
)
def test_a_label_is_decoded_once_and_matched_exactly(tmp_path: Path, label: str, status: int) -> None:
    async def story(world: World) -> None:
        call = under(label, Call("GET", "/.well-known/est/cacerts"))
        reply = await world.handle(call, world.peer())
        assert reply.status == status
        assert status == 200 or reply.media_type.startswith("text/plain")

    play(tmp_path, story, est=LAB)


@pytest.mark.req("E-8")
@pytest.mark.parametrize("label", ["cacerts", "serverkeygen", "fullcmc", "simplereenroll", "", "a/b", ".."])
def test_a_label_with_an_operation_s_name_stops_the_start(tmp_path: Path, label: str) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text(f'[est.labels."{label}"]\nlife_days = 3\n')
    with pytest.raises(SettingsInvalid, match="cannot be an EST label"):
        load_settings(tmp_path, file=file)
    file.write_text('[est]\nlinking = "required"\n[est.labels.lab]\nlife_days = 3\n')
    settings = load_settings(tmp_path, file=file).settings
    assert (settings.est.linking, settings.est.labels["lab"].life_days) == ("required", 3)
    file.write_text("[est.labels.lab]\nlive_days = 3\n")
    with pytest.raises(SettingsInvalid, match="est.labels.lab.live_days"):
        load_settings(tmp_path, file=file)


@pytest.mark.req("E-49", "E-7")
def test_a_secret_is_good_under_its_own_label_only(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        operations = EstOperations(world.part, ADMIN, LAB["labels"])
        made = await operations.secret("rack-7", label="annex")
        call = enroll_call(world.device().csr(), headers=basic(made["credentials"]))
        peer = world.peer(bind=lambda: (EXPORTER,))
        assert [(await world.handle(one, peer)).status for one in (call, under("lab", call))] == [401, 401]
        assert (await world.handle(under("annex", call), peer)).status == 200
        with pytest.raises(RequestMalformed, match="no EST label attic"):
            await operations.secret("rack-8", label="attic")

    play(tmp_path, story, est=LAB)


@pytest.mark.req("E-118")
def test_a_certificate_of_another_label_is_not_renewed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN, label="annex")
        device = world.device()
        first = under("annex", enroll_call(device.csr(), headers=basic(made["credentials"])))
        old = certificate_in(await world.handle(first, world.peer()))
        again = enroll_call(device.csr(subject=old.subject, san=san_of(old)), again=True)
        peer = replace(device.with_ldevid(old), bind=lambda: (EXPORTER,))
        for call in (again, under("lab", again)):
            refused = await world.handle(call, peer)
            assert (refused.status, refused.body[:19]) == (403, b"est-label-not-yours")
        assert (await world.handle(under("annex", again), peer)).status == 200
        # nor does a device enrol under a label that it was not admitted to
        pledge = world.device("PX-2")
        await pledge.voucher()
        await pledge.status()
        assert (await world.handle(under("annex", enroll_call(pledge.csr())), pledge.peer)).status == 403
        names = await world.handle(under("annex", EstClient().csrattrs_call()), pledge.peer)
        assert EstClient().read_csrattrs(names).extensions == ()

    play(tmp_path, story, est=LAB)


@pytest.mark.req("E-73", "E-79", "E-80")
def test_attributes_of_rfc_7894_count_each_on_its_own(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        headers, device = basic(made["credentials"]), world.device()
        peer = world.peer(bind=lambda: (EXPORTER,))
        right = (text(binding_text(EXPORTER)),)

        async def ask(**attributes: tuple[bytes, ...]) -> int:
            kinds = {"link": IDENTITY_LINKING, "otp": OTP_CHALLENGE}
            der = device.csr(attributes={kinds[name]: value for name, value in attributes.items()})
            return (await world.handle(enroll_call(der, headers=headers), peer)).status

        assert await ask(link=(text(b"wrong"),)) == 400
        assert await ask(link=right, otp=(text(b"guess"),)) == 400
        assert await ask(link=right, otp=(text(made["secret"].encode()),)) == 200
        (issued,) = await world.audited("ldevid-issued")
        assert issued["fields"]["linked"] is True

    play(tmp_path, story)


@pytest.mark.req("E-126", "E-134")
def test_a_bound_request_signed_anew_for_the_next_connection_gets_the_same_certificate(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        bodies = set()
        for session in (b"a" * 32, b"b" * 32):
            peer = world.peer(device.identity, bind=lambda session=session: (session,))
            der = device.csr(challenge_password=binding_text(session))
            reply = await device.enroll(der, peer=peer)
            assert reply.status == 200
            bodies.add(reply.body)
        assert len(bodies) == 1
        assert len(await world.audited("ldevid-issued")) == 1

    play(tmp_path, story)


@pytest.mark.req("E-73")
def test_where_linking_is_off_a_challenge_password_is_not_looked_at(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        assert (await device.enroll(device.csr(challenge_password=b"what a SCEP client sends"))).status == 200
        (issued,) = await world.audited("ldevid-issued")
        assert issued["fields"]["linked"] is False

    play(tmp_path, story, est={"linking": "off"})


def test_where_csrattrs_only_tells_a_device_that_asked_is_not_held_to_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        assert (await world.handle(EstClient().csrattrs_call(), device.peer)).status == 200
        assert (await device.enroll()).status == 200

    play(tmp_path, story, est={"csrattrs": "tell"})


@pytest.mark.req("E-204")
def test_a_label_for_one_curve_refuses_rsa(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        key = rsa.generate_private_key(65537, 2048)
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        der = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        reply = await world.handle(enroll_call(der, headers=basic(made["credentials"])), world.peer())
        assert (reply.status, b"P-256 only" in reply.body) == (400, True)

    play(tmp_path, story, est=EstSettings(key="p-256").model_dump())
