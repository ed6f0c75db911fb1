"""The registrar: checks on a pledge's request, its own request, and what it makes of the MASA's answers."""

from __future__ import annotations

from base64 import b64encode, encodebytes
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from brski import (
    AuditLogMalformed,
    BrskiError,
    ClientCertificateMissing,
    DeviceSerialMissing,
    FormatNotAcceptable,
    ManufacturerUnknown,
    MasaAnswerInvalid,
    MasaAuthenticationRequired,
    MasaFormatRefused,
    MasaNotAllowed,
    MasaRefused,
    MasaUnavailable,
    MediaTypeUnsupported,
    NonceInvalid,
    NonceMissing,
    PinMissing,
    ProximityMismatch,
    Registrar,
    RegistrarCertificateUnfit,
    RegistrarPolicy,
    RequestSignerForeign,
    SerialNumberMismatch,
    VoucherMalformed,
    VoucherRequestMalformed,
    VoucherRequestSignatureInvalid,
    VoucherSignatureInvalid,
    audit_log,
    leaves,
    paths,
    voucher_request,
)
from est.exchange import Reply
from lab.factory import make_leaf, make_registrar
from lab.mock_masa import tamper
from tests.brski.trio import LONG_AGO, MASA, SERIAL, Trio, campus, content_of, device, with_leaf
from tests.support import NOW

ASKED = content_of(Trio().ask().body)


def der_text(certificate: x509.Certificate) -> str | None:
    return leaves.write_binary(certificate.public_bytes(Encoding.DER))


@pytest.mark.req(
    "B-202", "B-211", "B-241", "B-255", "B-261", "B-262", "B-263", "B-264", "B-265", "B-267", "B-268", "B-269", "B-405"
)
def test_registrar_request_repeats_what_was_proven() -> None:
    trio = Trio()
    sent = trio.ask()
    exchange = trio.consider(sent)
    assert exchange.url == f"https://{MASA}/.well-known/brski/requestvoucher"
    assert exchange.call.path == "/.well-known/brski/requestvoucher"
    assert exchange.call.media_type == exchange.call.headers["accept"] == sent.media_type
    assert content_of(exchange.call.body) == {
        "ietf-voucher-request:voucher": {
            "created-on": "2026-01-01T12:00:00Z",
            "assertion": "proximity",
            "serial-number": SERIAL,
            "idevid-issuer": leaves.write_binary(exchange.idevid.issuer),
            "nonce": "AAECAwQFBgcICQoLDA0ODw==",
            "prior-signed-voucher-request": leaves.write_binary(sent.body),
        }
    }
    assert exchange.idevid.issuer[:6] == bytes.fromhex("041830168014")
    _, opened = voucher_request.unseal(exchange.call.body, exchange.call.media_type)
    assert opened.signer == trio.campus.certificate
    assert set(opened.certificates) == {trio.campus.certificate, *trio.campus.chain}


@pytest.mark.req("B-204")
def test_audit_log_is_asked_for_with_the_same_request() -> None:
    exchange = Trio().consider()
    assert exchange.audit_log_url == f"https://{MASA}/.well-known/brski/requestauditlog"
    assert exchange.audit_log_call.body == exchange.call.body
    assert exchange.audit_log_call.media_type == exchange.call.media_type


@pytest.mark.req("B-234")
def test_repeated_request_is_the_same_transaction_and_a_new_one_is_not() -> None:
    trio = Trio()
    sent = trio.ask()
    assert trio.consider(sent).transaction == trio.consider(sent).transaction
    assert trio.consider(sent).transaction != trio.consider(Trio(nonce=bytes(16)).ask()).transaction


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        pytest.param(
            with_leaf(ASKED, serial_number="PX-2"), SerialNumberMismatch, marks=pytest.mark.req("B-253", "T-14")
        ),
        pytest.param(with_leaf(ASKED, assertion="logged"), ProximityMismatch, marks=pytest.mark.req("B-254")),
        pytest.param(with_leaf(ASKED, assertion=None), ProximityMismatch, marks=pytest.mark.req("B-254")),
        pytest.param(
            with_leaf(ASKED, proximity_registrar_cert=None), ProximityMismatch, marks=pytest.mark.req("B-254")
        ),
        pytest.param(
            with_leaf(ASKED, proximity_registrar_cert=der_text(campus("Mallory").certificate)),
            ProximityMismatch,
            marks=pytest.mark.req("B-254", "T-04"),
        ),
        pytest.param(
            with_leaf(ASKED, proximity_registrar_cert=der_text(campus().ca.certificate)),
            ProximityMismatch,
            marks=pytest.mark.req("B-244"),
        ),
        pytest.param(with_leaf(ASKED, nonce=None), NonceMissing, marks=pytest.mark.req("B-255")),
        pytest.param(with_leaf(ASKED, nonce="AAEC"), NonceInvalid, marks=pytest.mark.req("B-255")),
        pytest.param(
            with_leaf(ASKED, nonce=leaves.write_binary(bytes(7))), NonceInvalid, marks=pytest.mark.req("B-255")
        ),
        pytest.param(
            with_leaf(ASKED, nonce=leaves.write_binary(bytes(33))), NonceInvalid, marks=pytest.mark.req("B-255")
        ),
        pytest.param(
            with_leaf(ASKED, prior_signed_voucher_request="AAEC"),
            VoucherRequestMalformed,
            marks=pytest.mark.req("B-249"),
        ),
        pytest.param(
            {"ietf-voucher:voucher": ASKED["ietf-voucher-request:voucher"]},
            VoucherRequestMalformed,
            marks=pytest.mark.req("B-421", "T-21"),
        ),
        pytest.param(b"not json", VoucherRequestMalformed),
    ],
)
def test_damaged_request_is_refused(content: Any, refusal: type[BrskiError]) -> None:
    trio = Trio()
    with pytest.raises(refusal) as refused:
        trio.consider(trio.pledge_call(content))
    assert type(refused.value) is refusal


@pytest.mark.req("B-255")
@pytest.mark.parametrize("nonce", [bytes(8), bytes(32)])
def test_nonces_at_the_limits_are_taken_and_kept(nonce: bytes) -> None:
    trio = Trio()
    text = leaves.write_binary(nonce)
    assert trio.consider(trio.pledge_call(with_leaf(ASKED, nonce=text))).request.nonce == text


@pytest.mark.req("B-248")
def test_leaves_without_meaning_in_a_request_change_nothing() -> None:
    trio = Trio()
    content = with_leaf(ASKED, pinned_domain_cert="AAEC", last_renewal_date="x", domain_cert_revocation_checks=1)
    assert content_of(trio.consider(trio.pledge_call(content)).call.body)["ietf-voucher-request:voucher"].keys() == {
        "created-on",
        "assertion",
        "serial-number",
        "idevid-issuer",
        "nonce",
        "prior-signed-voucher-request",
    }


@pytest.mark.req("B-252", "T-13")
def test_request_signed_by_another_device_is_refused() -> None:
    trio = Trio()
    with pytest.raises(RequestSignerForeign):
        trio.consider(trio.pledge_call(ASKED, by=device("PX-2")))


@pytest.mark.req("B-252")
def test_request_signed_under_a_reissued_certificate_of_the_same_key_is_taken() -> None:
    trio = Trio()
    again = make_leaf(trio.factory.device_ca, trio.device.certificate.subject, now=LONG_AGO, key=trio.device.key)
    assert trio.consider(trio.pledge_call(ASKED, by=again)).idevid.serial_number == SERIAL


@pytest.mark.req("B-241")
def test_request_with_a_broken_signature_is_refused() -> None:
    trio = Trio()
    call = trio.ask()
    with pytest.raises(VoucherRequestSignatureInvalid):
        trio.consider(replace(call, body=tamper(call.body)))


@pytest.mark.req("B-411")
@pytest.mark.parametrize("body", [b"", b"\x30\x00", b"MIIB", bytes(262_145), b"\x30\x80\x00\x00"])
def test_body_that_is_no_cms_is_refused(body: bytes) -> None:
    trio = Trio()
    with pytest.raises(VoucherRequestMalformed):
        trio.consider(replace(trio.ask(), body=body))


@pytest.mark.req("E-28")
def test_request_in_base64_is_no_request() -> None:
    trio = Trio()
    call = trio.ask()
    trio.consider(call)
    for encoded in (b64encode(call.body), encodebytes(call.body)):
        with pytest.raises(VoucherRequestMalformed):
            trio.consider(replace(call, body=encoded, headers={"content-transfer-encoding": "base64"}))


@pytest.mark.req("B-402")
def test_id_data_can_be_switched_off() -> None:
    from est import cms

    trio = Trio(registrar_policy=RegistrarPolicy(accept_id_data=False))
    body = cms.seal(
        voucher_request.write(voucher_request.unseal(trio.ask().body, paths.VOUCHER_CMS_JSON)[0]),
        content_type=cms.ID_DATA,
        signer=trio.device.signer,
        certificate=trio.device.certificate,
        signing_time=NOW,
    )
    with pytest.raises(VoucherRequestMalformed):
        trio.consider(replace(trio.ask(), body=body))
    assert Trio().consider(replace(trio.ask(), body=body))


@pytest.mark.req("B-212")
@pytest.mark.parametrize(
    "media_type", ["", "application/json", "application/voucher-cose+cbor", "application/pkcs7-mime", "text/plain"]
)
def test_other_formats_are_not_guessed(media_type: str) -> None:
    trio = Trio()
    with pytest.raises(MediaTypeUnsupported):
        trio.consider(replace(trio.ask(), media_type=media_type))


@pytest.mark.req("B-211")
@pytest.mark.parametrize(
    "accept", ["application/json", "application/voucher-jws+json", "*/*;q=0", "application/voucher-cms+json;q=0, */*"]
)
def test_pledge_that_accepts_other_formats_only_is_refused(accept: str) -> None:
    trio = Trio()
    with pytest.raises(FormatNotAcceptable):
        trio.consider(replace(trio.ask(), headers={"accept": accept}))


@pytest.mark.req("B-211")
@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/*",
        "application/voucher-cms+json",
        "application/json, application/voucher-cms+json;q=0.5",
        "Application/Voucher-CMS+JSON; charset=utf-8",
    ],
)
def test_accept_headers_of_the_field_are_understood(accept: str) -> None:
    trio = Trio()
    call = replace(trio.ask(), headers={"accept": accept}, media_type="Application/voucher-cms+json; charset=utf-8")
    assert trio.consider(call).call.media_type == "application/voucher-cms+json"


@pytest.mark.req("B-251", "B-133")
def test_connection_without_client_certificate_is_refused() -> None:
    with pytest.raises(ClientCertificateMissing):
        Trio().consider(peer_certificate=None)


@pytest.mark.req("B-251", "B-256")
def test_device_of_an_unknown_manufacturer_is_refused_and_nobody_is_admitted_by_default() -> None:
    other = Trio(maker="Other")
    with pytest.raises(ManufacturerUnknown) as refused:
        Trio().consider(other.ask(), peer_certificate=other.device.certificate, peer_chain=other.device.issuers)
    assert refused.value.fields["because"] == "chain-not-trusted"
    with pytest.raises(ManufacturerUnknown):
        Trio().consider(manufacturers=[])


@pytest.mark.req("B-251")
def test_device_that_sends_no_intermediate_is_refused_where_only_the_root_is_known() -> None:
    with pytest.raises(ManufacturerUnknown):
        Trio().consider(peer_chain=())


@pytest.mark.req("B-151")
def test_certificate_without_device_serial_is_refused() -> None:
    trio = Trio()
    nameless = make_leaf(trio.factory.device_ca, x509.Name([]), now=LONG_AGO)
    with pytest.raises(DeviceSerialMissing):
        trio.consider(peer_certificate=nameless.certificate)


@pytest.mark.req("B-149", "T-25")
def test_expired_idevid_is_a_matter_of_the_manufacturer() -> None:
    trio = Trio()
    old = trio.factory.make_device("PX-OLD", masa=MASA, now=LONG_AGO, not_after=NOW - timedelta(days=1))
    call = trio.pledge_call(with_leaf(ASKED, serial_number="PX-OLD"), by=old)
    facts: dict[str, Any] = {"peer_certificate": old.certificate, "peer_chain": old.issuers}
    with pytest.raises(ManufacturerUnknown) as refused:
        trio.consider(call, **facts)
    assert refused.value.fields["because"] == "certificate-outside-validity"
    lenient = replace(trio.manufacturer, ignores_expiry=True)
    assert trio.consider(call, manufacturers=[lenient], **facts).idevid.serial_number == "PX-OLD"


@pytest.mark.req("B-158", "T-24")
@pytest.mark.parametrize(
    "masa", ["127.0.0.1:9443", "[::1]:9443", "169.254.169.254", "masa.example:9444", "other.example:9443"]
)
def test_device_cannot_steer_the_registrar_to_another_host(masa: str) -> None:
    trio = Trio()
    odd = trio.factory.make_device("PX-ODD", masa=masa, now=LONG_AGO)
    call = trio.pledge_call(with_leaf(ASKED, serial_number="PX-ODD"), by=odd)
    with pytest.raises(MasaNotAllowed):
        trio.consider(call, peer_certificate=odd.certificate)


@pytest.mark.req("B-264", "B-265", "T-35")
def test_same_serial_of_two_makers_is_two_devices() -> None:
    first, second = Trio(), Trio(maker="Other")
    both = [first.manufacturer, second.manufacturer]
    one, two = first.consider(manufacturers=both), second.consider(manufacturers=both)
    assert one.idevid.serial_number == two.idevid.serial_number == SERIAL
    assert one.idevid.device != two.idevid.device
    assert one.pledge.manufacturer is first.manufacturer
    assert two.pledge.manufacturer is second.manufacturer


@pytest.mark.req("B-271", "B-254")
def test_connection_certificate_must_be_of_the_chain_that_signs() -> None:
    trio = Trio()
    foreign = campus("Mallory").certificate
    content = with_leaf(ASKED, proximity_registrar_cert=der_text(foreign))
    with pytest.raises(RegistrarCertificateUnfit):
        trio.consider(trio.pledge_call(content), tls_certificate=foreign)


@pytest.mark.req("B-254", "B-271")
def test_renewed_registrar_certificate_of_the_same_key_serves_connections_made_with_the_old_one() -> None:
    trio = Trio()
    old = trio.campus.registrar
    renewed = make_leaf(
        trio.campus.ca,
        old.certificate.subject,
        now=NOW,
        key=old.key,
        extensions=[(one.value, one.critical) for one in old.certificate.extensions if _is_usage(one)],
    )
    registrar = Registrar(renewed.signer, renewed.certificate, trio.campus.chain)
    asked = trio.ask()
    assert registrar.consider(
        asked,
        trio.device.certificate,
        trio.device.issuers,
        [trio.manufacturer],
        tls_certificate=old.certificate,
        now=NOW,
    )
    with pytest.raises(ProximityMismatch):
        registrar.consider(
            asked,
            trio.device.certificate,
            trio.device.issuers,
            [trio.manufacturer],
            tls_certificate=renewed.certificate,
            now=NOW,
        )


def _is_usage(extension: x509.Extension[Any]) -> bool:
    return isinstance(extension.value, (x509.KeyUsage, x509.ExtendedKeyUsage))


@pytest.mark.req("B-139")
@pytest.mark.parametrize("usages", [(), (x509.ExtendedKeyUsageOID.SERVER_AUTH,)])
def test_registrar_without_the_registration_authority_usage_does_not_start(usages: Any) -> None:
    ordinary = make_registrar(campus().ca, now=LONG_AGO, usages=usages)
    with pytest.raises(RegistrarCertificateUnfit):
        Registrar(ordinary.signer, ordinary.certificate)


def test_registrar_with_the_wrong_key_does_not_start() -> None:
    with pytest.raises(RegistrarCertificateUnfit):
        Registrar(device().signer, campus().certificate)


@pytest.mark.req("B-255", "B-263", "B-270")
def test_nonceless_request_is_taken_by_policy_only_and_stays_nonceless() -> None:
    trio = Trio(registrar_policy=RegistrarPolicy(accept_nonceless=True))
    exchange = trio.consider(trio.pledge_call(with_leaf(ASKED, nonce=None)))
    assert "nonce" not in content_of(exchange.call.body)["ietf-voucher-request:voucher"]


# conclude


def granted(trio: Trio) -> tuple[Any, Reply, dict[str, Any]]:
    exchange = trio.consider()
    reply = trio.issue(exchange.call).reply
    return exchange, reply, content_of(reply.body)


@pytest.mark.req("B-221", "B-313", "E-28")
def test_voucher_passes_through_unchanged() -> None:
    trio = Trio()
    exchange, reply, _ = granted(trio)
    accepted = exchange.conclude(reply, NOW)
    answer = exchange.reply(accepted)
    assert (answer.status, answer.media_type, answer.body) == (200, "application/voucher-cms+json", reply.body)


@pytest.mark.req("B-313")
def test_voucher_without_nonce_is_the_pledges_decision() -> None:
    trio = Trio()
    exchange, _, content = granted(trio)
    reply = trio.voucher_reply(with_leaf(content, nonce=None, expires_on="2026-02-01T00:00:00Z"))
    assert exchange.conclude(reply, NOW).nonce is None


@pytest.mark.req("B-313", "T-30")
@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda c: with_leaf(c, serial_number="PX-2"), MasaAnswerInvalid),
        (lambda c: with_leaf(c, nonce="AAAAAAAAAAAAAAAAAAAAAA=="), MasaAnswerInvalid),
        (lambda c: with_leaf(c, expires_on="2025-12-31T00:00:00Z"), MasaAnswerInvalid),
        (lambda c: with_leaf(c, idevid_issuer="AAEC"), MasaAnswerInvalid),
        (lambda c: with_leaf(c, pinned_domain_cert=der_text(campus("Mallory").certificate)), MasaAnswerInvalid),
        (lambda c: with_leaf(c, pinned_domain_cert=None), PinMissing),
        (lambda c: with_leaf(c, pinned_domain_cert="AAEC"), VoucherMalformed),
        (lambda c: {"ietf-voucher-request:voucher": c["ietf-voucher:voucher"]}, VoucherMalformed),
        (lambda c: b"[]", VoucherMalformed),
    ],
)
def test_wrong_voucher_of_a_masa_goes_no_further(change: Any, refusal: type[BrskiError]) -> None:
    trio = Trio()
    exchange, _, content = granted(trio)
    with pytest.raises(refusal) as refused:
        exchange.conclude(trio.voucher_reply(change(content)), NOW)
    assert type(refused.value) is refusal


@pytest.mark.req("B-313")
def test_tampered_voucher_goes_no_further() -> None:
    trio = Trio()
    exchange, _, content = granted(trio)
    reply = trio.voucher_reply(content)
    with pytest.raises(VoucherSignatureInvalid):
        exchange.conclude(replace(reply, body=tamper(reply.body)), NOW)


@pytest.mark.req("B-146", "T-30")
@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        (Reply(401), MasaAuthenticationRequired),
        (Reply(403, "text/plain", body=b"no"), MasaRefused),
        (Reply(404), MasaRefused),
        (Reply(406), MasaFormatRefused),
        (Reply(415), MasaFormatRefused),
        (Reply(500), MasaUnavailable),
        (Reply(503), MasaUnavailable),
        (Reply(599), MasaUnavailable),
        (Reply(202), MasaAnswerInvalid),
        (Reply(302, headers={"location": "https://elsewhere"}), MasaAnswerInvalid),
        (Reply(400), MasaAnswerInvalid),
        (Reply(200, "text/html", body=b"<html>"), MasaAnswerInvalid),
        (Reply(200, "", body=b""), MasaAnswerInvalid),
        (Reply(200, paths.VOUCHER_CMS_JSON, body=b"<html>"), VoucherMalformed),
        (Reply(200, paths.VOUCHER_CMS_JSON, body=bytes(10_000_000)), VoucherMalformed),
    ],
)
def test_every_other_answer_of_a_masa_has_its_own_refusal(reply: Reply, refusal: type[BrskiError]) -> None:
    with pytest.raises(refusal) as refused:
        Trio().consider().conclude(reply, NOW)
    assert type(refused.value) is refusal


# audit log


@pytest.mark.req("B-204", "B-331")
def test_audit_log_is_read() -> None:
    trio = Trio()
    exchange, _, _ = granted(trio)
    log = exchange.read_audit_log(trio.masa.audit_log(exchange.audit_log_call, trio, now=NOW))
    (entry,) = log.events
    assert entry.domain_id in trio.registrar.domain_ids
    assert entry.domain_id == audit_log.domain_id(trio.campus.ca.certificate)
    assert entry.nonce == "AAECAwQFBgcICQoLDA0ODw=="


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        (Reply(404), MasaRefused),
        (Reply(500), MasaUnavailable),
        (Reply(200, "text/html", body=b"<html>"), MasaAnswerInvalid),
        (Reply(200, "application/json", body=b"[]"), AuditLogMalformed),
    ],
)
def test_wrong_audit_answers_have_their_own_refusals(reply: Reply, refusal: type[BrskiError]) -> None:
    with pytest.raises(refusal):
        Trio().consider().read_audit_log(reply)


@pytest.mark.req("B-204")
@pytest.mark.parametrize(
    ("location", "path"),
    [
        (f"https://{MASA}/log/5f1c", "/log/5f1c"),
        ("/log/5f1c", "/log/5f1c"),
        (f"https://{MASA.upper()}/log?slug=5f1c", "/log?slug=5f1c"),
    ],
)
def test_log_offered_at_the_same_masa_is_fetched(location: str, path: str) -> None:
    call = Trio().consider().follow_audit_log(Reply(201, headers={"location": location}))
    assert call is not None
    assert (call.method, call.path) == ("GET", path)


@pytest.mark.req("T-29")
@pytest.mark.parametrize(
    "location",
    [
        "https://elsewhere.example/log",
        "https://masa.example/log",
        "https://masa.example:9444/log",
        f"http://{MASA}/log",
        "//elsewhere.example/log",
        f"https://user@{MASA}/log",
        f"https://{MASA}:99999/log",
        "log",
        "",
        "/log\r\nhost: x",
        "/log HTTP/1.1",
        "https://[::1/log",
    ],
)
def test_log_offered_elsewhere_is_not_fetched(location: str) -> None:
    with pytest.raises(MasaAnswerInvalid):
        Trio().consider().follow_audit_log(Reply(201, headers={"location": location}))


def test_log_in_the_answer_needs_no_second_call() -> None:
    assert Trio().consider().follow_audit_log(Reply(200, "application/json", body=b"{}")) is None
