"""Captured exchanges of two other implementations, replayed under their own clock with the dialect that each needs."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import cms as asn1
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from brski import (
    STRICT,
    Assertion,
    BrskiError,
    Dialect,
    Manufacturer,
    Masa,
    MasaExchange,
    MasaPolicy,
    Pledge,
    PledgePolicy,
    Registrar,
    idevid,
    leaves,
    paths,
    read_dialect,
    telemetry,
    voucher,
    voucher_request,
)
from brski.masa import Device
from est import chains
from est.exchange import Call, Reply
from tests.brski.trio import campus, factory

VECTORS = Path(__file__).parents[1] / "vectors" / "peers"
THEN = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
CMS = paths.VOUCHER_CMS_JSON
NQMINDS = read_dialect("base64-bodies,legacy-key")
NQMINDS_MASA = read_dialect("base64-bodies,legacy-key,untyped-answers")
RUN1, RUN2, SECSY = "nqminds-brski/run1-default-config", "nqminds-brski/run2-pvr-signed-by-idevid", "secsy-pki"


@dataclass(frozen=True)
class Capture:
    """One signed body on the wire, and who signed it."""

    folder: str
    name: str
    by: str
    dialect: Dialect

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def wire(self) -> bytes:
        return (VECTORS / self.folder / f"{self.name}.bin").read_bytes()

    @property
    def der(self) -> bytes:
        return base64.b64decode(self.wire) if self.dialect.base64_bodies else self.wire

    @property
    def content(self) -> Any:
        name = self.name.replace("01-registrar-masa.resp", "02-pledge-registrar.resp")  # the same bytes passed on
        return json.loads((VECTORS / self.folder / f"{name}.json").read_bytes())

    def read(self, body: bytes | None = None, dialect: Dialect | None = None) -> Any:
        unseal = voucher.unseal if self.name.endswith("resp") else voucher_request.unseal
        found, opened = unseal(body or self.wire, CMS, dialect=self.dialect if dialect is None else dialect)  # type: ignore[operator]
        return found, opened


CAPTURES = [
    Capture(SECSY, "02-pledge-registrar.req", "P1", STRICT),
    Capture(SECSY, "01-registrar-masa.req", "reg", STRICT),
    Capture(SECSY, "01-registrar-masa.resp", "masa", STRICT),
    Capture(SECSY, "02-pledge-registrar.resp", "masa", STRICT),
    *(
        capture
        for run, pledge in ((RUN1, "pledge-cms"), (RUN2, "idevid"))
        for capture in (
            Capture(run, "02-pledge-registrar.req", pledge, NQMINDS),
            Capture(run, "01-registrar-masa.req", "registrar-cms", NQMINDS),
            Capture(run, "01-registrar-masa.resp", "masa-cms", NQMINDS),
            Capture(run, "02-pledge-registrar.resp", "masa-cms", NQMINDS),
        )
    ),
]
each = pytest.mark.parametrize("capture", CAPTURES, ids=str)


@cache
def certificate(peer: str, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((VECTORS / peer.partition("/")[0] / "certs" / f"{name}.crt").read_bytes())


def body(folder: str, name: str) -> bytes:
    return (VECTORS / folder / f"{name}.bin").read_bytes()


def call(folder: str, name: str) -> Call:
    return Call("POST", paths.REQUEST_VOUCHER, CMS, {"accept": "*/*"}, body(folder, name))


def reason(refused: pytest.ExceptionInfo[BrskiError]) -> str:
    return refused.value.reason


class PublicHalf:
    """The key of a foreign device, of which only the certificate is known: it cannot sign."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self._certificate = certificate

    def public_key(self) -> ec.EllipticCurvePublicKey:
        key = self._certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    def sign(self, data: bytes) -> bytes:
        raise AssertionError("nothing is signed in a replay")


class Sold:
    """A MASA that sold the one device of a capture."""

    def __init__(self, device: x509.Certificate) -> None:
        self.device = Device(idevid.read_serial_number(device), idevid.idevid_issuer(device))

    def find(self, serial_number: str, issuer: bytes | None) -> Device | None:
        return self.device if serial_number == self.device.serial_number else None


# -- every artefact ------------------------------------------------------------------------------------------------


@each
@pytest.mark.req("B-402", "B-407", "B-409", "B-424", "B-311")
def test_captured_artefact_is_read_and_verifies(capture: Capture) -> None:
    found, opened = capture.read()
    assert json.loads(opened.content) == capture.content
    assert opened.signer == certificate(capture.folder, capture.by)
    ((_, members),) = capture.content.items()
    assert (found.serial_number, found.nonce) == (members["serial-number"], members["nonce"])
    assert found.sealed == capture.der


@each
def test_strict_reading_takes_what_keeps_to_the_documents_and_nothing_else(capture: Capture) -> None:
    if capture.dialect == STRICT:
        assert capture.read()[0] == capture.read(dialect=NQMINDS)[0]
        return
    for lacking in (STRICT, Dialect(base64_bodies=True), Dialect(legacy_key=True)):
        # a voucher stands under its own key in both worlds, only its wrapping differs
        if capture.name.endswith("resp") and lacking.base64_bodies:
            continue
        with pytest.raises(BrskiError) as refused:
            capture.read(dialect=lacking)
        assert reason(refused) in ("voucher-malformed", "voucher-request-malformed")


@each
@pytest.mark.req("B-421", "T-21")
def test_in_no_dialect_is_a_voucher_a_request_or_the_other_way_round(capture: Capture) -> None:
    other = voucher_request.unseal if capture.name.endswith("resp") else voucher.unseal
    for dialect in (STRICT, NQMINDS):
        with pytest.raises(BrskiError):
            other(capture.wire, CMS, dialect=dialect)  # type: ignore[operator]


@each
@pytest.mark.req("B-405", "B-406", "B-313")
def test_artefact_with_any_byte_of_its_signed_part_flipped_is_refused(capture: Capture) -> None:
    der = capture.der
    info = asn1.ContentInfo.load(der)["content"]["signer_infos"][0]
    signed = [capture.read()[1].content, info["signed_attrs"].contents, info["signature"].native]
    for part in signed:
        start = der.index(part)
        for at in range(start, start + len(part)):
            for bits in (0x01, 0xFF):
                flipped = der[:at] + bytes([der[at] ^ bits]) + der[at + 1 :]
                wire = base64.b64encode(flipped) if capture.dialect.base64_bodies else flipped
                with pytest.raises(BrskiError):
                    capture.read(wire)


@pytest.mark.slow
@each
def test_a_byte_flipped_anywhere_never_changes_what_is_read(capture: Capture) -> None:
    wire = capture.wire
    _, honest = capture.read()
    for at in range(len(wire)):
        try:
            _, opened = capture.read(wire[:at] + bytes([wire[at] ^ 0x01]) + wire[at + 1 :])
        except BrskiError:
            continue
        assert opened.content == honest.content
        assert chains.spki_sha256(opened.signer) == chains.spki_sha256(honest.signer)


# -- secsy-pki: the documents' own form ----------------------------------------------------------------------------


def secsy_exchange() -> MasaExchange:
    maker = Manufacturer("Mfg A", chains.TrustAnchors([certificate(SECSY, "mfgA")]), masa="127.0.0.1:21444")
    ours = campus()
    registrar = Registrar(ours.signer, ours.certificate, [certificate(SECSY, "reg")])
    return registrar.consider(
        call(SECSY, "02-pledge-registrar.req"),
        certificate(SECSY, "P1"),
        [],
        [maker],
        tls_certificate=certificate(SECSY, "reg"),
        now=THEN,
    )


@pytest.mark.req("B-251", "B-252", "B-253", "B-254", "B-160")
def test_registrar_takes_the_request_and_the_voucher_of_secsy() -> None:
    exchange = secsy_exchange()
    granted = exchange.conclude(Reply(200, CMS, body=body(SECSY, "01-registrar-masa.resp")), THEN)
    assert granted.assertion is Assertion.LOGGED
    answer = exchange.reply(granted)
    assert answer.body == body(SECSY, "02-pledge-registrar.resp")


@pytest.mark.req("B-282", "B-283", "B-287", "B-288", "B-289", "B-290")
def test_masa_takes_the_registrar_request_of_secsy_and_its_bare_key_identifier() -> None:
    anchors = chains.TrustAnchors([certificate(SECSY, "mfgA")])
    masa = Masa(factory().masa_signer, factory().masa_chain, anchors)
    grant = masa.issue(call(SECSY, "01-registrar-masa.req"), Sold(certificate(SECSY, "P1")), now=THEN)
    assert grant.voucher.assertion is Assertion.PROXIMITY
    assert grant.voucher.pin() == certificate(SECSY, "reg")


@pytest.mark.req("B-321", "B-322", "B-323", "B-327")
def test_pledge_takes_the_voucher_of_secsy() -> None:
    device = certificate(SECSY, "P1")
    pledge = Pledge(PublicHalf(device), [device], chains.TrustAnchors([certificate(SECSY, "mfgA")]))
    accepted = pledge.accept_voucher(
        Reply(200, CMS, body=body(SECSY, "02-pledge-registrar.resp")),
        call(SECSY, "02-pledge-registrar.req"),
        [certificate(SECSY, "reg"), certificate(SECSY, "domsub")],
        now=THEN,
    )
    assert accepted.pin() == certificate(SECSY, "reg")


@pytest.mark.req("B-351")
def test_status_message_of_secsy_is_read() -> None:
    status = telemetry.read_voucher_status(body(SECSY, "03-pledge-registrar.req"))
    assert (status.status, status.reason) == (True, "ok")


# -- nqminds: a dialect --------------------------------------------------------------------------------------------


def nqminds_exchange(run: str, dialect: Dialect = NQMINDS_MASA) -> MasaExchange:
    maker = Manufacturer(
        "nqminds", chains.TrustAnchors([certificate(run, "idevid-ca")]), masa="masa.example", dialect=dialect
    )
    ours = campus()
    theirs = [certificate(run, "registrar-tls"), certificate(run, "registrar-tls-ca")]
    return Registrar(ours.signer, ours.certificate, theirs).consider(
        call(run, "02-pledge-registrar.req"),
        certificate(run, "idevid"),
        [],
        [maker],
        tls_certificate=certificate(run, "registrar-tls"),
        now=THEN,
    )


@pytest.mark.req("B-157", "B-252", "B-313")
def test_registrar_with_their_dialect_takes_their_pledge_to_their_masa_and_back() -> None:
    exchange = nqminds_exchange(RUN2)
    # asked in base64, under their key, with a date of whole seconds
    asked = base64.b64decode(exchange.call.body, validate=True)
    request, _ = voucher_request.unseal(asked, CMS, dialect=NQMINDS)
    with pytest.raises(BrskiError):
        voucher_request.unseal(asked, CMS)
    assert request.prior_signed_voucher_request == base64.b64decode(body(RUN2, "02-pledge-registrar.req"))
    granted = exchange.conclude(Reply(200, "text/plain", body=body(RUN2, "01-registrar-masa.resp")), THEN)
    # answered in base64, because it was asked so
    assert exchange.reply(granted).body == body(RUN2, "02-pledge-registrar.resp")


@pytest.mark.req("B-228")
def test_answers_without_their_type_are_refused_unless_the_dialect_says_so() -> None:
    with pytest.raises(BrskiError) as refused:
        nqminds_exchange(RUN2, NQMINDS).conclude(
            Reply(200, "text/plain", body=body(RUN2, "01-registrar-masa.resp")), THEN
        )
    assert reason(refused) == "masa-answer-invalid"


@pytest.mark.req("B-252", "T-13")
def test_request_signed_by_a_key_that_is_not_the_idevids_is_refused_in_any_dialect() -> None:
    with pytest.raises(BrskiError) as refused:
        nqminds_exchange(RUN1, read_dialect("base64-bodies,legacy-key,loose-dates,long-nonces,untyped-answers"))
    assert reason(refused) == "request-signer-foreign"


@pytest.mark.req("B-283", "T-08")
def test_masa_refuses_their_registrar_as_its_signer_is_no_registration_authority() -> None:
    anchors = chains.TrustAnchors([certificate(RUN2, "idevid-ca")])
    masa = Masa(factory().masa_signer, factory().masa_chain, anchors, MasaPolicy(dialect=NQMINDS))
    with pytest.raises(BrskiError) as refused:
        masa.issue(call(RUN2, "01-registrar-masa.req"), Sold(certificate(RUN2, "idevid")), now=THEN)
    assert reason(refused) == "registrar-not-authorized"


@pytest.mark.req("B-321", "B-323", "B-327")
def test_pledge_with_their_dialect_takes_their_voucher() -> None:
    device = certificate(RUN2, "idevid")
    # their intermediates are no CAs, so what a device could have built in is the signer itself
    anchors = chains.TrustAnchors([certificate(RUN2, "masa-cms")])
    reply = Reply(200, CMS, body=body(RUN2, "02-pledge-registrar.resp"))
    tls_chain = [certificate(RUN2, "registrar-tls"), certificate(RUN2, "registrar-tls-ca")]

    def accept(policy: PledgePolicy) -> voucher.Voucher:
        pledge = Pledge(PublicHalf(device), [device], anchors, policy)
        return pledge.accept_voucher(reply, call(RUN2, "02-pledge-registrar.req"), tls_chain, now=THEN)

    assert accept(PledgePolicy(dialect=NQMINDS, strict_registrar=False)).pin() == tls_chain[1]
    with pytest.raises(BrskiError) as refused:
        accept(PledgePolicy(dialect=NQMINDS))
    assert reason(refused) == "domain-not-pinned"
    with pytest.raises(BrskiError) as refused:
        accept(PledgePolicy())
    assert reason(refused) == "voucher-malformed"


@pytest.mark.req("B-255")
def test_long_nonces_are_a_matter_of_dialect() -> None:
    nonce = json.loads((VECTORS / RUN1 / "02-pledge-registrar.req.json").read_bytes())[voucher.KEY]["nonce"]
    octets = leaves.nonce_octets(nonce)
    assert octets == 44
    assert octets not in leaves.nonce_lengths(STRICT)
    assert octets in leaves.nonce_lengths(read_dialect("long-nonces"))
