"""The published examples of the JWS voucher (draft-ietf-anima-jws-voucher-16, section 8), under their own clock."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from brski import (
    Assertion,
    Device,
    DomainNotPinned,
    Manufacturer,
    Masa,
    MasaPolicy,
    Pledge,
    ProximityMismatch,
    Registrar,
    jws,
    paths,
    voucher,
    voucher_request,
)
from brski.idevid import idevid_issuer, read_idevid
from est import chains
from est.exchange import Call, Reply
from est.signer import KeySigner
from tests.brski.trio import Trio

VECTORS = Path(__file__).parents[1] / "vectors" / "jws-voucher"
JWS = paths.VOUCHER_JWS_JSON
THEN = datetime(2024, 12, 1, tzinfo=UTC)


def artefact(name: str) -> bytes:
    return (VECTORS / f"{name}.jws.json").read_bytes()


def certificate(name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((VECTORS / f"{name}.cert.pem").read_bytes())


def signer(name: str) -> KeySigner:
    return KeySigner(load_pem_private_key((VECTORS / f"{name}.key.pem").read_bytes(), None))  # type: ignore[arg-type]


def call(name: str) -> Call:
    return Call("POST", paths.REQUEST_VOUCHER, JWS, {}, artefact(name))


MANUFACTURER = chains.TrustAnchors([certificate("manufacturer-ca")])
IDEVID = read_idevid(certificate("pledge-idevid"))


class Sold:
    """A MASA that sold the one device of the examples."""

    def find(self, serial_number: str, issuer: bytes | None) -> Device | None:
        is_ours = serial_number == IDEVID.serial_number and issuer in (None, IDEVID.issuer)
        return Device(IDEVID.serial_number, IDEVID.issuer) if is_ours else None


@pytest.mark.req("B-441", "B-442", "B-443", "B-444", "B-445")
@pytest.mark.parametrize(
    ("name", "by"), [("pvr", "pledge-idevid"), ("rvr", "registrar-rvr-signer"), ("voucher", "masa-signer")]
)
def test_published_artefact_verifies(name: str, by: str) -> None:
    opened = jws.unseal(artefact(name))
    assert opened.certificates == (certificate(by),)
    assert opened.algorithm == "ES256"
    assert json.loads(opened.content) == json.loads((VECTORS / f"{name}.payload.json").read_bytes())


@pytest.mark.req("B-443", "B-321", "B-423", "B-424")
def test_published_voucher_leads_to_the_manufacturer_though_x5c_holds_the_signer_alone() -> None:
    read, opened = voucher.unseal(artefact("voucher"), JWS)
    assert read.assertion is Assertion.LOGGED
    assert read.created_on == datetime(2024, 11, 29, 9, 34, 17, 29000, tzinfo=UTC)
    assert read.pin() == certificate("owner-ca")
    assert chains.check(opened.signer, opened.certificates[1:], MANUFACTURER, at=THEN, policy=chains.SIGNER)


@pytest.mark.req("B-448", "B-265")
def test_published_registrar_request_holds_the_pledges_whole_text() -> None:
    request, _ = voucher_request.unseal(artefact("rvr"), JWS)
    assert request.prior_signed_voucher_request == artefact("prior-signed.from-rvr")
    assert json.loads(request.prior_signed_voucher_request) == json.loads(artefact("pvr"))
    prior, opened = voucher_request.unseal(request.prior_signed_voucher_request, JWS)
    assert prior.nonce == request.nonce
    assert request.idevid_issuer == idevid_issuer(opened.signer)
    document = json.loads((VECTORS / "rvr.payload.json").read_bytes())
    leaf = document[voucher_request.KEY]["prior-signed-voucher-request"]
    assert base64.b64encode(artefact("prior-signed.from-rvr")).decode() == leaf


@pytest.mark.req("B-287", "B-289", "T-09")
def test_published_registrar_request_proves_no_proximity_and_is_logged_or_refused() -> None:
    def masa(policy: MasaPolicy) -> Masa:
        return Masa(signer("masa-signer"), [certificate("masa-signer")], MANUFACTURER, policy)

    with pytest.raises(ProximityMismatch):
        masa(MasaPolicy()).issue(call("rvr"), Sold(), now=THEN)
    grant = masa(MasaPolicy(demand_proximity=False)).issue(call("rvr"), Sold(), now=THEN)
    assert grant.voucher.assertion is Assertion.LOGGED
    assert grant.reply.media_type == JWS
    assert grant.voucher.pin() == certificate("registrar-rvr-signer")


@pytest.mark.req("B-289", "T-09")
def test_registrar_that_the_pledge_did_not_see_never_gets_more_than_logged() -> None:
    honest, mallory = Trio(media_type=JWS), Trio(media_type=JWS, domain="Mallory")
    asked = json.loads(jws.unseal(honest.consider().call.body).content)
    call_of_mallory = mallory.registrar_call(asked)
    with pytest.raises(ProximityMismatch):
        mallory.issue(call_of_mallory)
    lenient = Trio(media_type=JWS, domain="Mallory", masa_policy=MasaPolicy(demand_proximity=False))
    assert lenient.issue(call_of_mallory).voucher.assertion is Assertion.LOGGED


@pytest.mark.req("B-321", "B-322", "B-323", "B-327")
def test_pledge_takes_the_published_voucher() -> None:
    pledge = Pledge(signer("pledge-idevid"), [certificate("pledge-idevid")], MANUFACTURER)
    reply = Reply(200, JWS, body=artefact("voucher"))
    accepted = pledge.accept_voucher(reply, call("pvr"), [certificate("registrar-tls")], now=THEN)
    assert accepted.serial_number == "kit-987654321"
    with pytest.raises(DomainNotPinned):
        pledge.accept_voucher(reply, call("pvr"), [certificate("registrar-rvr-signer")], now=THEN)


@pytest.mark.req("B-254")
def test_registrar_refuses_the_published_request_as_it_asserts_nothing() -> None:
    request, _ = voucher_request.unseal(artefact("pvr"), JWS)
    assert request.assertion is None
    seen = certificate("registrar-tls").public_bytes(Encoding.DER)
    assert request.proximity_registrar_cert == seen
    registrar = Registrar(Trio().campus.signer, Trio().campus.certificate)
    with pytest.raises(ProximityMismatch):
        registrar.consider(
            call("pvr"),
            certificate("pledge-idevid"),
            [],
            [Manufacturer("Example", MANUFACTURER, masa="masa-test.xyzmanufacturer.com:9443")],
            tls_certificate=certificate("registrar-tls"),
            now=THEN,
        )
