"""cacerts, simpleenroll, simplereenroll: who gets an LDevID."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from appliance.hierarchy import Role
from appliance.registrar.applicants import RenewalApplicant
from appliance.registrar.caller import APPLIANCE
from appliance.registrar.errors import LdevidNotAccepted
from appliance.store import certificates
from est import csr, transfer
from est.client import EstClient
from est.cms import read_certs_only
from est.csrattrs import CURVES, EC_PUBLIC_KEY, CsrAttrs, KeyDemand
from est.exchange import Call
from est.keys import spki_sha256
from est.linking import binding_text
from est.server import EstServer
from lab.factory import Domain, Identity, make_leaf, make_self_signed
from tests.appliance.registrar.world import ADMIN, Device_, World, basic, certificate_in, enroll_call, play
from tests.est.test_weak import close_primes, roca
from tests.support import NOW, key

KEY = key("a server of ours")


def san_of(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.req("E-58", "E-91", "E-92", "E-93", "B-206", "E-59", "E-190")
def test_anybody_gets_the_ca_certificates(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        reply = await world.handle(Call("GET", "/.well-known/est/cacerts"), world.peer())
        assert (reply.status, reply.media_type) == (200, "application/pkcs7-mime; smime-type=certs-only")
        assert set(read_certs_only(transfer.read_base64(reply.body))) == set(world.ca.chain("devices"))
        wanted = EstClient().read_csrattrs(await world.handle(EstClient().csrattrs_call(), world.peer()))
        assert wanted == CsrAttrs(key=KeyDemand(EC_PUBLIC_KEY, curve=CURVES["secp256r1"]))
        assert (await world.handle(Call("GET", "/.well-known/est/no-such-label/cacerts"), world.peer())).status == 404
        refused = await world.handle(Call("POST", "/.well-known/est/fullcmc"), world.peer())
        assert refused.status == 404 and b"use simpleenroll and simplereenroll" in refused.body
        assert (await world.handle(Call("POST", "/.well-known/est/no-such-label/fullcmc"), world.peer())).status == 404

    play(tmp_path, story)


@pytest.mark.req("B-208", "B-371", "B-374", "E-43", "E-123", "E-124", "E-220", "E-224", "E-45")
def test_a_pledge_after_brski_gets_a_client_certificate_with_its_proxy_identifier(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        certificate = await device.bootstrap()
        (proxy,) = await world.part.inventory.proxies()
        assert list(san_of(certificate)) == [x509.UniformResourceIdentifier(proxy["identifier"])]
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [one.dotted_string for one in usages] == ["1.3.6.1.5.5.7.3.2"]
        assert certificate.public_key() == device.key.public_key()
        (issued,) = await world.audited("ldevid-issued")
        assert issued["fields"]["proxy"] == proxy["identifier"]
        assert (await world.row())["state"] == "enrolled"

    play(tmp_path, story)


@pytest.mark.req("B-371")
def test_without_voucher_telemetry_and_history_there_is_no_certificate(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        assert (await device.enroll()).status == 403
        await device.voucher()
        assert (await device.enroll()).status == 403
        await device.status()
        assert (await device.enroll()).status == 200
        assert len(await world.audited("enrolment-refused")) == 2

    play(tmp_path, story)


@pytest.mark.req("E-126", "B-375")
def test_a_repeated_request_gets_the_same_certificate_and_another_one_none(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        der = device.csr()
        replies = await asyncio.gather(*(device.enroll(der) for _ in range(8)))
        assert {reply.status for reply in replies} == {200}
        assert len({reply.body for reply in replies}) == 1
        assert (await device.enroll(device.csr(key=ec.generate_private_key(ec.SECP256R1())))).status == 403
        world.clock.advance(601)
        assert (await device.enroll(der)).status == 403
        assert len(await world.audited("ldevid-issued")) == 1

    play(tmp_path, story)


@pytest.mark.req("B-138")
def test_another_certificate_of_the_same_device_cannot_use_its_voucher(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        reissued = make_leaf(
            world.factory.device_ca, device.identity.certificate.subject, now=NOW, key=device.identity.key
        )
        assert (await device.enroll(peer=world.peer(reissued))).status == 403
        assert (await device.enroll(peer=world.peer(device.identity))).status == 200

    play(tmp_path, story)


@pytest.mark.req("B-374", "E-115")
@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"subject": x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "PX-1")])}, 200),
        ({"subject": x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anything")])}, 200),
        ({"subject": x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "PX-2")])}, 403),
        (
            {
                "san": x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier("spiffe://campus.example/proxy/someone-else")]
                )
            },
            403,
        ),
        ({"extensions": [x509.BasicConstraints(ca=True, path_length=None)]}, 400),
        ({"extensions": [x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")])]}, 400),
    ],
)
def test_a_csr_carries_only_what_its_sender_has_a_right_to(
    tmp_path: Path, more: dict[str, object], status: int
) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        reply = await device.enroll(device.csr(**more))
        assert reply.status == status
        if status == 200:
            assert certificate_in(reply).subject.rfc4514_string().startswith("CN=proxy ")

    play(tmp_path, story)


@pytest.mark.req("E-204")
def test_a_key_of_another_subject_is_refused(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        first, second = world.device("PX-1"), world.device("PX-2")
        await first.bootstrap()
        await second.voucher()
        await second.status()
        second.key = first.key
        reply = await second.enroll()
        assert (reply.status, b"key-in-use" in reply.body) == (403, True)
        assert (await world.row("PX-2"))["state"] == "audit-passed"

    play(tmp_path, story)


@pytest.mark.req("E-204")
@pytest.mark.parametrize("role", ["agents", "devices", "infrastructure"])
def test_a_key_that_another_ca_of_ours_has_certified_is_refused(tmp_path: Path, role: Role) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        row = certificates.Pending(
            role, world.ca.issuing(role).key_identifier, 77, bytes(32), spki_sha256(device.key.public_key()),
            NOW, NOW + timedelta(days=1), {"profile": "agent", "subject_id": "spiffe://campus.example/agent/7"},
        )  # fmt: skip
        await world.store.write(lambda tx: certificates.add(tx, row))
        reply = await device.enroll()
        assert (reply.status, b"key-in-use" in reply.body) == (403, True)
        # nor a key of one of our own servers, whoever holds a copy
        own = certificates.Pending(
            "devices", world.ca.issuing("devices").key_identifier, 78, bytes(32), spki_sha256(KEY.public_key()),
            NOW, NOW + timedelta(days=1), {"profile": "registrar"},
        )  # fmt: skip
        await world.store.write(lambda tx: certificates.add(tx, own))
        assert (await device.enroll(device.csr(key=KEY))).status == 403
        assert len(await world.audited("ldevid-issued")) == 0

    play(tmp_path, story)


@pytest.mark.req("E-204")
@pytest.mark.slow
def test_a_weak_key_is_refused_by_name(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        for private, text in ((roca(), b"ROCA"), (close_primes(), b"too close")):
            builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
            reply = await device.enroll(builder.sign(private, hashes.SHA256()).public_bytes(Encoding.DER))
            assert (reply.status, reply.body[:9], text in reply.body) == (400, b"key-weak:", True)
        assert (await world.row())["what_to_do"].startswith("the device's key can be computed by others")
        assert (await device.enroll()).status == 200

    play(tmp_path, story)


@pytest.mark.req("E-73", "E-77", "E-80", "E-83")
def test_a_challenge_password_must_be_the_channel_binding(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        bound = world.peer(device.identity, bind=lambda: (b"e" * 32, b"u" * 12))
        right = binding_text(b"u" * 12)
        refused = await device.enroll(device.csr(challenge_password=b"guess"), peer=bound)
        assert (refused.status, b"challengePassword is not the channel binding" in refused.body) == (400, True)
        assert (await device.enroll(device.csr(challenge_password=right))).status == 400
        assert (await device.enroll(device.csr(challenge_password=right), peer=bound)).status == 200
        (issued,) = await world.audited("ldevid-issued")
        assert issued["fields"]["linked"] is True

    play(tmp_path, story)


@pytest.mark.req("E-206")
def test_the_audit_log_says_who_enrolled_how_and_with_what_result(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        refused = await device.enroll()
        assert refused.status == 403
        await device.voucher()
        await device.status()
        der = device.csr()
        certificate = certificate_in(await device.enroll(der))
        (no,), (yes,) = await world.audited("enrolment-refused"), await world.audited("ldevid-issued")
        fingerprint = hashlib.sha256(device.identity.certificate.public_bytes(Encoding.DER)).hexdigest()
        assert no["actor"]["fingerprint"] == yes["actor"]["fingerprint"] == fingerprint
        assert no["actor"]["address"] == yes["actor"]["address"] == device.peer.address
        assert (no["reason"], no["outcome"]) == ("enrollment-not-open", "refused")
        assert len(no["fields"]["body_sha256"]) == 64
        assert (yes["actor"]["kind"], yes["actor"]["identifier"]) == ("pledge", "PX-1")
        assert yes["object"] == format(certificate.serial_number, "x")
        assert yes["fields"]["csr_sha256"] == hashlib.sha256(der).hexdigest()
        (uri,) = san_of(certificate).get_values_for_type(x509.UniformResourceIdentifier)
        assert (yes["fields"]["proxy"], yes["fields"]["linked"], bool(yes["time"])) == (uri, False, True)

    play(tmp_path, story)


@pytest.mark.req("E-60", "E-46", "E-44", "E-54")
def test_who_shows_nothing_is_asked_for_credentials(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        for peer in (world.peer(), world.peer(Domain.create(now=NOW).registrar)):
            reply = await world.handle(enroll_call(device.csr()), peer)
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Basic ")
            assert reply.body == b""

    play(tmp_path, story)


@pytest.mark.req("E-49", "E-51", "E-223", "E-50")
def test_a_one_time_secret_gives_one_certificate(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        device = world.device()
        headers = basic(made["credentials"])
        reply = await world.handle(enroll_call(device.csr(), headers=headers), world.peer())
        assert reply.status == 200
        (proxy,) = await world.part.inventory.proxies()
        assert (proxy["method"], proxy["name"], proxy["state"]) == ("est", "rack-7", "active")
        assert list(san_of(certificate_in(reply))) == [x509.UniformResourceIdentifier(proxy["identifier"])]
        # again for somebody else: spent
        other = device.csr(key=ec.generate_private_key(ec.SECP256R1()))
        again = await world.handle(enroll_call(other, headers=headers), world.peer())
        assert (again.status, again.headers["www-authenticate"]) == (401, 'Basic realm="enrollment"')
        for file in tmp_path.glob("appliance.db*"):
            assert made["secret"].encode() not in file.read_bytes()
        assert len(await world.audited("est-secret-spent")) == 1

    play(tmp_path, story)


@pytest.mark.req("E-126")
def test_a_lost_answer_to_a_one_time_secret_is_fetched_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        call = enroll_call(world.device().csr(), headers=basic(made["credentials"]))
        first, second = await world.handle(call, world.peer()), await world.handle(call, world.peer())
        assert first.status == second.status == 200
        assert first.body == second.body
        world.clock.advance(601)
        assert (await world.handle(call, world.peer())).status == 401

    play(tmp_path, story)


@pytest.mark.req("E-49")
def test_a_crash_between_spending_and_issuing_does_not_cost_the_secret(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        device = world.device()
        call = enroll_call(device.csr(), headers=basic(made["credentials"]))
        world.token.is_broken = True
        assert (await world.handle(call, world.peer())).status == 500
        world.token.is_broken = False
        other = device.csr(key=ec.generate_private_key(ec.SECP256R1()))
        stolen = await world.handle(enroll_call(other, headers=basic(made["credentials"])), world.peer())
        assert stolen.status == 401
        assert (await world.handle(call, world.peer())).status == 200
        assert (await world.handle(call, world.peer())).status == 200
        assert len(await world.audited("ldevid-issued")) == 1

    play(tmp_path, story)


@pytest.mark.req("E-49")
def test_of_many_that_race_for_one_secret_one_wins(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        device = world.device()
        calls = [
            enroll_call(device.csr(key=ec.generate_private_key(ec.SECP256R1())), headers=basic(made["credentials"]))
            for _ in range(12)
        ]
        replies = await asyncio.gather(*(world.handle(call, world.peer()) for call in calls))
        assert sorted(reply.status for reply in replies) == [200] + [401] * 11
        assert len(await world.part.inventory.proxies()) == 1

    play(tmp_path, story)


@pytest.mark.req("E-49", "E-46")
@pytest.mark.parametrize(
    "damage",
    [
        lambda made: made["name"] + ":" + made["secret"][:-1],
        lambda made: "rack-8:" + made["secret"],
        lambda made: made["name"] + ":",
        lambda made: "",
        lambda made: ":" + made["secret"],
        lambda made: made["credentials"] + "x" * 600,
    ],
)
def test_wrong_credentials_are_401_with_a_challenge(tmp_path: Path, damage: object) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        call = enroll_call(world.device().csr(), headers=basic(damage(made)))  # type: ignore[operator]
        reply = await world.handle(call, world.peer())
        assert reply.status == 401
        assert "www-authenticate" in reply.headers
        for header in ("Basic", "Basic ===", "Bearer abc", "Basic " + "A" * 10_000):
            call = enroll_call(world.device("PX-2").csr(), headers={"authorization": header})
            assert (await world.handle(call, world.peer())).status == 401

    play(tmp_path, story)


def test_a_secret_expires_and_a_newer_one_voids_the_older(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        old = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        new = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN, life=timedelta(minutes=5))
        call = enroll_call(world.device().csr(), headers=basic(old["credentials"]))
        assert (await world.handle(call, world.peer())).status == 401
        world.clock.advance(301)
        call = enroll_call(world.device("PX-2").csr(), headers=basic(new["credentials"]))
        assert (await world.handle(call, world.peer())).status == 401

    play(tmp_path, story)


@pytest.mark.req("E-110", "E-117", "E-118", "E-121")
def test_a_proxy_renews_with_its_certificate_and_the_same_names(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        old = await device.bootstrap()
        peer = device.with_ldevid(old)
        new_key = ec.generate_private_key(ec.SECP256R1())
        names = {"subject": old.subject, "san": san_of(old)}
        reply = await world.handle(enroll_call(device.csr(**names, key=new_key), again=True), peer)
        assert reply.status == 200
        new = certificate_in(reply)
        assert (new.subject, san_of(new)) == (old.subject, san_of(old))
        assert new.public_key() == new_key.public_key()
        assert len(await world.audited("ldevid-renewed")) == 1
        # the same key again is a renewal, and the old certificate still works: the reply might have been lost
        assert (await world.handle(enroll_call(device.csr(**names), again=True), peer)).status == 200

    play(tmp_path, story)


@pytest.mark.req("E-117", "E-118", "E-41")
def test_renewal_needs_equal_names_and_a_live_certificate_of_ours(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        old = await device.bootstrap()
        peer = device.with_ldevid(old)
        right = device.csr(subject=old.subject, san=san_of(old))

        async def renew(der: bytes, who: object = peer) -> int:
            return (await world.handle(enroll_call(der, again=True), who)).status  # type: ignore[arg-type]

        assert await renew(device.csr(subject=old.subject)) == 403
        assert await renew(device.csr(san=san_of(old))) == 403
        assert await renew(right, world.peer()) == 401
        assert await renew(right, device.peer) == 403
        # our own CA, but no proxy's certificate: an agent's and the registrar's
        server = Identity(device.key, world.registrar_certificate, ())
        assert await renew(right, world.peer(server)) == 403
        assert (await device.enroll(peer=peer)).status == 403
        forged = make_leaf(Domain.create(now=NOW).ca, old.subject, now=NOW, key=device.key)
        assert await renew(right, world.peer(forged)) == 403
        assert await renew(right) == 200
        world.clock.advance(91 * 86400)
        assert await renew(right) == 403

    play(tmp_path, story)


@pytest.mark.req("E-118")
def test_a_revoked_proxy_neither_renews_nor_comes_back(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        old = await device.bootstrap()
        (proxy,) = await world.part.inventory.proxies()
        answer = await world.part.inventory.revoke_proxy(proxy["identifier"], actor=ADMIN)
        assert answer["certificates"] == 1
        right = device.csr(subject=old.subject, san=san_of(old))
        assert (await world.handle(enroll_call(right, again=True), device.with_ldevid(old))).status == 403
        assert (await device.voucher()).status == 403
        assert (await world.row())["state"] == "refused"
        assert len(await world.audited("proxy-revoked")) == 1

    play(tmp_path, story)


def test_a_certificate_revoked_after_it_was_looked_at_is_refused_in_the_transaction(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        old = await device.bootstrap()
        live = await world.part.ldevids.find(device.with_ldevid(old))
        assert live is not None
        await world.ca.revoke("devices", old.serial_number, actor=ADMIN)
        applicant = RenewalApplicant(live, EstServer(), APPLIANCE, 8)
        asked = csr.read(device.csr(subject=old.subject, san=san_of(old)))
        with pytest.raises(LdevidNotAccepted):
            await world.store.write(lambda tx: applicant.begin(tx, asked, 0))

    play(tmp_path, story)


@pytest.mark.req("E-118")
def test_a_certificate_that_renewed_before_is_refused_on_a_new_connection_once_it_is_revoked_or_expired(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        device, other = world.device(), world.device("PX-9")
        old, late = await device.bootstrap(), await other.bootstrap()

        async def renew(who: Device_, certificate: x509.Certificate) -> int:
            asked = who.csr(
                key=ec.generate_private_key(ec.SECP256R1()), subject=certificate.subject, san=san_of(certificate)
            )
            return (await world.handle(enroll_call(asked, again=True), who.with_ldevid(certificate))).status

        assert [await renew(device, old), await renew(other, late)] == [200, 200]
        await world.ca.revoke("devices", old.serial_number, actor=ADMIN)
        assert await renew(device, old) == 403
        world.clock.advance((late.not_valid_after_utc - world.clock.now()).total_seconds() + 1)
        assert await renew(other, late) == 403

    play(tmp_path, story)


def test_a_device_that_was_reset_bootstraps_again_under_its_identifier_and_the_old_certificate_ends(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        device = world.device()
        old = await device.bootstrap()
        device.key = ec.generate_private_key(ec.SECP256R1())
        new = await device.bootstrap()
        assert san_of(new) == san_of(old)
        (revoked,) = await world.audited("credential-revoked")
        assert revoked["object"] == format(old.serial_number, "x")
        assert len(await world.part.inventory.proxies()) == 1

    play(tmp_path, story)


def test_nothing_leaves_when_the_issuance_fails_in_its_last_step(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        der = device.csr()
        world.token.is_broken = True
        assert (await device.enroll(der)).status == 500
        assert (await world.row())["state"] == "audit-passed"
        world.token.is_broken = False
        assert (await device.enroll(der)).status == 200

    play(tmp_path, story)


@pytest.mark.req("E-203", "E-206")
@pytest.mark.parametrize("guessing", [False, True])
def test_a_stranger_with_ever_new_certificates_is_noted_as_one(tmp_path: Path, guessing: bool) -> None:
    async def story(world: World) -> None:
        der = world.device().csr()
        call = enroll_call(der, headers=basic("somebody:guess") if guessing else {})
        for number in range(50):
            stranger = make_self_signed(f"stranger {number}", now=world.clock.now())
            assert (await world.handle(call, world.peer(stranger))).status == 401
        assert 1 <= len(await world.audited("enrolment-refused")) <= 20

    play(tmp_path, story)


def test_a_refused_enrolment_stands_on_the_timeline_of_its_device(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        wrong = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "PX-9")])
        assert (await device.enroll(device.csr(subject=wrong))).status == 403
        row = await world.row()
        assert (row["timeline"][-1]["step"], row["timeline"][-1]["code"]) == (
            "enrolment-refused",
            "names-not-justified",
        )
        assert row["what_to_do"] == row["timeline"][-1]["hint"] != ""
        assert (await device.enroll()).status == 200
        assert (await world.row())["what_to_do"] == ""

    play(tmp_path, story)
