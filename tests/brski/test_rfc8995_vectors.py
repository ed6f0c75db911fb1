"""The artefacts of RFC 8995, appendix C, and the derived ones, under their own clocks."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from brski import (
    Assertion,
    Device,
    Manufacturer,
    Masa,
    Pledge,
    PledgePolicy,
    ProximityMismatch,
    Registrar,
    SerialNumberMismatch,
    VoucherMalformed,
    audit_log,
    paths,
    voucher,
    voucher_request,
)
from brski.idevid import idevid_issuer, read_idevid
from est import chains
from est.exchange import Call, Reply
from est.signer import KeySigner
from tests.brski.trio import with_leaf  # noqa: F401

VECTORS = Path(__file__).parents[1] / "vectors" / "rfc8995"
DERIVED = VECTORS / "derived"
JWS = VECTORS.parent / "jws-voucher"
THEN = datetime(2021, 5, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 15, 8, 0, 5, tzinfo=UTC)
NONCE = "-_XE9zK9q8Ll1qylMtLKeg"


def certificate(name: str, folder: Path = VECTORS) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.cert.pem").read_bytes())


def signer(name: str) -> KeySigner:
    return KeySigner(load_pem_private_key((VECTORS / f"{name}.key.pem").read_bytes(), None))  # type: ignore[arg-type]


def sealed(name: str, folder: Path = VECTORS) -> bytes:
    return (folder / f"{name}.cms").read_bytes()


def call(body: bytes) -> Call:
    return Call("POST", paths.REQUEST_VOUCHER, paths.VOUCHER_CMS_JSON, {}, body)


def pledge(policy: PledgePolicy | None = None) -> Pledge:
    anchors = chains.TrustAnchors([certificate("vendor-ca")])
    return Pledge(signer("pledge-idevid"), [certificate("pledge-idevid")], anchors, policy)


class Sold:
    """A MASA that sold exactly the device of a certificate."""

    def __init__(self, device: x509.Certificate) -> None:
        idevid = read_idevid(device)
        self.device = Device(idevid.serial_number, idevid.issuer)

    def find(self, serial_number: str, issuer: bytes | None) -> Device | None:
        return self.device if serial_number == self.device.serial_number else None


@pytest.mark.req("B-151", "B-152", "B-154", "B-155", "B-160")
def test_published_idevid_is_read() -> None:
    read = read_idevid(certificate("pledge-idevid"))
    assert read.serial_number == "00-D0-E5-F2-00-02"
    assert read.masa_uri == "highway-test.example.com:9443"
    embedded = read_idevid(certificate("pledge-idevid-embedded-in-pvr"))
    assert embedded.serial_number == read.serial_number


@pytest.mark.req("B-402", "B-405", "B-406", "B-407", "B-409", "B-423", "B-424")
def test_published_pledge_request_is_read() -> None:
    request, opened = voucher_request.unseal(sealed("pledge-voucher-request"), paths.VOUCHER_CMS_JSON)
    assert request.serial_number == "00-D0-E5-F2-00-02"
    assert request.nonce == NONCE
    assert request.assertion is Assertion.PROXIMITY
    assert request.created_on == datetime(2021, 4, 13, 21, 43, 23, 747000, tzinfo=UTC)
    assert request.proximity_registrar_cert == certificate("registrar").public_bytes(Encoding.DER)
    assert opened.signer == certificate("pledge-idevid-embedded-in-pvr")


@pytest.mark.req("B-402")
def test_published_artefacts_are_refused_where_id_data_is_switched_off() -> None:
    with pytest.raises(VoucherMalformed):
        voucher.unseal(sealed("voucher"), paths.VOUCHER_CMS_JSON, accept_id_data=False)


@pytest.mark.req("B-251", "B-252", "B-253", "B-254", "B-255", "B-152", "B-160")
def test_registrar_takes_the_published_pledge_request_to_the_published_masa() -> None:
    registrar = Registrar(signer("registrar"), certificate("registrar"), [certificate("owner-ca")])
    maker = Manufacturer(
        "Sandelman",
        chains.TrustAnchors([certificate("vendor-ca")]),
        allowed_masas=frozenset({"highway-test.example.com:9443"}),
    )
    exchange = registrar.consider(
        call(sealed("pledge-voucher-request")),
        certificate("pledge-idevid"),
        [],
        [maker],
        tls_certificate=certificate("registrar"),
        now=THEN,
    )
    assert exchange.url == "https://highway-test.example.com:9443/.well-known/brski/requestvoucher"
    granted = exchange.conclude(Reply(200, paths.VOUCHER_CMS_JSON, body=sealed("voucher")), THEN)
    assert granted.assertion is Assertion.LOGGED
    assert granted.sealed == sealed("voucher")


@pytest.mark.req("B-281", "B-282", "B-283", "B-287", "B-288", "B-289")
def test_masa_takes_the_published_registrar_request() -> None:
    masa = Masa(signer("masa"), [certificate("masa")], chains.TrustAnchors([certificate("vendor-ca")]))
    grant = masa.issue(call(sealed("registrar-voucher-request")), Sold(certificate("pledge-idevid")), now=THEN)
    # its registrar certificate is the one the pledge saw, so proximity is proven
    assert grant.voucher.assertion is Assertion.PROXIMITY
    assert grant.voucher.nonce == NONCE
    assert grant.entry.domain_id == audit_log.domain_id(certificate("owner-ca"))


@pytest.mark.req("B-321", "B-322", "B-323", "B-327")
def test_pledge_takes_the_published_voucher() -> None:
    accepted = pledge().accept_voucher(
        Reply(200, paths.VOUCHER_CMS_JSON, body=sealed("voucher")),
        call(sealed("pledge-voucher-request")),
        [certificate("registrar")],
        now=THEN,
    )
    assert accepted.pin() == certificate("registrar")


@pytest.mark.req("B-148")
def test_pledge_without_clock_takes_the_expired_voucher_chain_and_one_with_a_clock_does_not() -> None:
    reply = Reply(200, paths.VOUCHER_CMS_JSON, body=sealed("voucher"))
    sent = call(sealed("pledge-voucher-request"))
    clockless = pledge(PledgePolicy(clock_trusted=False))
    assert clockless.accept_voucher(reply, sent, [certificate("registrar")], now=LATER).nonce == NONCE
    with pytest.raises(Exception) as refused:
        pledge().accept_voucher(reply, sent, [certificate("registrar")], now=LATER)
    assert refused.value.fields["because"] == "certificate-outside-validity"  # type: ignore[attr-defined]


@pytest.mark.req("B-333")
def test_domain_ids_of_the_published_certificates() -> None:
    registrar_id, owner_id = audit_log.domain_id(certificate("registrar")), audit_log.domain_id(certificate("owner-ca"))
    assert base64.b64encode(registrar_id) == b"Oy6w2vS8ar8m/FtEHuzs7sl7LSD3pW9yTCgCecoIL3M="
    assert base64.b64encode(owner_id) == b"uaX2yxHhB6RJLKcIxnwQvIezdCY="


@pytest.mark.req("B-265")
def test_idevid_issuer_is_the_whole_octet_string_of_the_extension() -> None:
    octets = idevid_issuer(certificate("pledge-idevid", JWS))
    request, _ = voucher_request.unseal(sealed("rvr", DERIVED), paths.VOUCHER_CMS_JSON)
    assert octets == request.idevid_issuer
    assert octets[:6] == bytes.fromhex("041830168014")
    assert len(octets) == 26


@pytest.mark.req("B-402")
@pytest.mark.parametrize("name", ["pvr", "rvr"])
def test_derived_requests_are_read_with_the_voucher_content_type_demanded(name: str) -> None:
    request, _ = voucher_request.unseal(sealed(name, DERIVED), paths.VOUCHER_CMS_JSON, accept_id_data=False)
    assert request.serial_number == "kit-987654321"
    assert request.nonce == "AAECAwQFBgcICQoLDA0ODw=="


@pytest.mark.req("B-402")
@pytest.mark.parametrize(
    ("name", "assertion"), [("voucher", Assertion.PROXIMITY), ("voucher-nonceless", Assertion.LOGGED)]
)
def test_derived_vouchers_are_read_and_lead_to_the_maker(name: str, assertion: Assertion) -> None:
    read, opened = voucher.unseal(sealed(name, DERIVED), paths.VOUCHER_CMS_JSON, accept_id_data=False)
    assert read.assertion is assertion
    assert read.pin() == certificate("owner-ca", JWS)
    anchors = chains.TrustAnchors([certificate("manufacturer-ca", JWS)])
    assert chains.check(opened.signer, opened.certificates[1:], anchors, at=LATER, policy=chains.SIGNER)


@pytest.mark.req("B-287", "B-289")
def test_masa_finds_proximity_in_the_derived_registrar_request() -> None:
    masa = Masa(signer("masa"), [certificate("masa")], chains.TrustAnchors([certificate("manufacturer-ca", JWS)]))
    sold = Sold(certificate("pledge-idevid", JWS))
    grant = masa.issue(call(sealed("rvr", DERIVED)), sold, now=LATER)
    assert grant.voucher.assertion is Assertion.PROXIMITY
    assert grant.voucher.pin() == certificate("owner-ca", JWS)


@pytest.mark.req("B-405", "T-18")
def test_voucher_without_signed_attributes_is_refused() -> None:
    with pytest.raises(VoucherMalformed):
        voucher.unseal(sealed("neg-voucher-no-signed-attrs", DERIVED), paths.VOUCHER_CMS_JSON)


@pytest.mark.req("B-254", "T-04")
def test_registrar_refuses_the_published_request_on_a_connection_with_another_certificate() -> None:
    registrar = Registrar(signer("registrar"), certificate("registrar"), [certificate("owner-ca")])
    maker = Manufacturer("Sandelman", chains.TrustAnchors([certificate("vendor-ca")]), masa="masa.example")
    with pytest.raises(ProximityMismatch):
        registrar.consider(
            call(sealed("pledge-voucher-request")),
            certificate("pledge-idevid"),
            [],
            [maker],
            tls_certificate=certificate("owner-ca"),
            now=THEN,
        )


def test_masa_does_not_mix_devices_of_two_makers() -> None:
    masa = Masa(signer("masa"), [certificate("masa")], chains.TrustAnchors([certificate("vendor-ca")]))
    with pytest.raises(Exception) as refused:
        masa.issue(call(sealed("rvr", DERIVED)), Sold(certificate("pledge-idevid")), now=LATER)
    assert not isinstance(refused.value, SerialNumberMismatch)
    assert refused.value.fields["because"] == "chain-not-trusted"  # type: ignore[attr-defined]
