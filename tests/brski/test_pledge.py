"""The pledge: its request, the checks that end the provisional state, its reports, its patience."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from brski import (
    Assertion,
    AssertionNotAcceptable,
    BrskiError,
    DomainNotPinned,
    NonceInvalid,
    PinMissing,
    Pledge,
    PledgePolicy,
    RegistrarRefused,
    VoucherExpired,
    VoucherForOtherDevice,
    VoucherForOtherRequest,
    VoucherMalformed,
    VoucherNonceless,
    VoucherNotYetValid,
    VoucherPending,
    VoucherSignatureInvalid,
    leaves,
    paths,
    pledge,
    telemetry,
    voucher_request,
)
from brski.idevid import MASA_URI
from est.exchange import Reply
from lab.factory import CMC_RA, Identity, make_intermediate, make_leaf, make_registrar, make_root, make_self_signed
from lab.mock_masa import tamper
from tests.brski.trio import (
    LONG_AGO,
    SERIAL,
    Trio,
    campus,
    content_of,
    device,
    factory,
    seal,
    with_leaf,
)
from tests.support import NOW


def good(trio: Trio) -> dict[str, Any]:
    """The content of a voucher that `trio`'s pledge accepts."""
    exchange = trio.consider()
    return content_of(trio.issue(exchange.call).reply.body)


def pem(certificate: x509.Certificate) -> str:
    text = leaves.write_binary(certificate.public_bytes(Encoding.DER))
    assert text is not None
    return text


@pytest.mark.req(
    "B-201", "B-211", "B-241", "B-242", "B-243", "B-244", "B-245", "B-246", "B-247", "B-401", "B-402", "B-413"
)
def test_request_says_who_asks_and_whom_the_pledge_sees() -> None:
    trio = Trio()
    call = trio.ask()
    assert (call.method, call.path) == ("POST", "/.well-known/brski/requestvoucher")
    assert call.media_type == "application/voucher-cms+json" == call.headers["accept"]
    content = content_of(call.body)
    assert content == {
        "ietf-voucher-request:voucher": {
            "created-on": "2026-01-01T12:00:00Z",
            "assertion": "proximity",
            "serial-number": SERIAL,
            "nonce": "AAECAwQFBgcICQoLDA0ODw==",
            "proximity-registrar-cert": pem(trio.campus.certificate),
        }
    }
    _, opened = voucher_request.unseal(call.body, call.media_type)
    assert opened.signer == trio.device.certificate
    assert set(opened.certificates) == set(trio.device.chain)


@pytest.mark.req("B-148", "B-246")
def test_request_of_a_pledge_without_clock_is_undated() -> None:
    trio = Trio(pledge_policy=PledgePolicy(clock_trusted=False))
    assert "created-on" not in content_of(trio.ask().body)["ietf-voucher-request:voucher"]


@pytest.mark.req("B-242")
@pytest.mark.parametrize("nonce", [b"", bytes(8), bytes(15), bytes(33)])
def test_short_and_long_nonces_are_not_sent(nonce: bytes) -> None:
    with pytest.raises(NonceInvalid):
        Trio(nonce=nonce).ask()


def test_key_of_another_device_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="not that of the key"):
        Pledge(device("PX-2").signer, device().chain, factory().masa_anchors)


@pytest.mark.req("B-321", "B-322", "B-323", "B-326", "B-327")
def test_good_voucher_ends_the_provisional_state() -> None:
    trio = Trio()
    accepted = trio.accept(trio.voucher_reply(good(trio)))
    assert accepted.serial_number == SERIAL
    assert accepted.assertion is Assertion.PROXIMITY
    assert accepted.pin() == trio.campus.ca.certificate


@pytest.mark.req("B-311")
def test_unknown_leaves_in_a_voucher_do_not_matter() -> None:
    trio = Trio()
    assert trio.accept(trio.voucher_reply(with_leaf(good(trio), est_domain="x", more={"a": [1]})))


STRANGER = make_root("Stranger", now=LONG_AGO)


def damage(**leaves_: Any) -> Any:
    return lambda content: with_leaf(content, **leaves_)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        pytest.param(damage(serial_number="PX-2"), VoucherForOtherDevice, marks=pytest.mark.req("B-322", "T-02")),
        pytest.param(
            damage(idevid_issuer=leaves.write_binary(b"\x04\x18\x30\x16\x80\x14" + bytes(20))),
            VoucherForOtherDevice,
            marks=pytest.mark.req("B-324", "T-03"),
        ),
        pytest.param(
            damage(nonce=leaves.write_binary(bytes(16))),
            VoucherForOtherRequest,
            marks=pytest.mark.req("B-323", "B-305", "T-01"),
        ),
        pytest.param(damage(nonce="AAECAwQFBgcICQoLDA0ODw"), VoucherForOtherRequest, marks=pytest.mark.req("B-423")),
        pytest.param(damage(nonce=None), VoucherNonceless, marks=pytest.mark.req("B-323")),
        pytest.param(
            damage(expires_on="2026-01-01T12:00:00Z"), VoucherExpired, marks=pytest.mark.req("B-325", "B-306")
        ),
        pytest.param(damage(created_on="2026-01-01T12:01:01Z"), VoucherNotYetValid, marks=pytest.mark.req("B-148")),
        pytest.param(
            damage(assertion="agent-proximity"), AssertionNotAcceptable, marks=pytest.mark.req("B-326", "B-302")
        ),
        pytest.param(damage(pinned_domain_cert=None), PinMissing, marks=pytest.mark.req("B-304")),
        pytest.param(damage(pinned_domain_cert="AAEC"), VoucherMalformed),
        pytest.param(
            damage(pinned_domain_cert=pem(STRANGER.certificate)),
            DomainNotPinned,
            marks=pytest.mark.req("B-327", "T-06"),
        ),
        pytest.param(
            lambda content: {"ietf-voucher-request:voucher": content["ietf-voucher:voucher"]},
            VoucherMalformed,
            marks=pytest.mark.req("B-421", "T-21"),
        ),
    ],
)
def test_damaged_voucher_is_refused(change: Any, refusal: type[BrskiError]) -> None:
    trio = Trio()
    with pytest.raises(refusal) as refused:
        trio.accept(trio.voucher_reply(change(good(trio))))
    assert type(refused.value) is refusal


@pytest.mark.req("B-324")
def test_voucher_with_the_own_issuer_is_accepted() -> None:
    trio = Trio()
    issuer = leaves.write_binary(trio.pledge.idevid.issuer)
    assert trio.accept(trio.voucher_reply(with_leaf(good(trio), idevid_issuer=issuer)))


@pytest.mark.req("B-321")
@pytest.mark.parametrize("name", ["Acme", "Acme MASA"])
def test_voucher_of_a_foreign_signer_is_refused(name: str) -> None:
    trio = Trio()
    foreign = make_leaf(make_root("Acme Voucher Root", now=LONG_AGO), subject(name), now=LONG_AGO)
    with pytest.raises(VoucherSignatureInvalid):
        trio.accept(trio.voucher_reply(good(trio), by=foreign))


def subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


@pytest.mark.req("B-321")
def test_voucher_signed_by_a_sold_device_is_refused_even_under_a_shared_root() -> None:
    """A maker with one CA for devices and MASA, as in RFC 8995, appendix C."""
    trio = Trio()
    shared = Pledge(trio.device.signer, trio.device.chain, trio.factory.device_anchors)
    sent = shared.voucher_request(trio.campus.certificate, nonce=trio.nonce, now=NOW)
    content = good(trio)
    by_masa = make_leaf(trio.factory.device_ca, subject("MASA"), now=LONG_AGO)
    assert shared.accept_voucher(trio.voucher_reply(content, by=by_masa), sent, trio.campus.tls_chain, now=NOW)
    for sold in (device("PX-2"), device("PX-2", masa="")):
        with pytest.raises(VoucherSignatureInvalid, match="by a device"):
            shared.accept_voucher(trio.voucher_reply(content, by=sold), sent, trio.campus.tls_chain, now=NOW)


@pytest.mark.req("B-148", "B-321")
def test_the_masas_certificate_is_held_against_the_clock_where_there_is_one() -> None:
    for is_trusted in (True, False):
        trio = Trio(pledge_policy=PledgePolicy(clock_trusted=is_trusted))
        once = make_leaf(
            trio.factory.voucher_root, subject("MASA"), now=LONG_AGO, not_after=LONG_AGO + timedelta(days=1)
        )
        reply = trio.voucher_reply(good(trio), by=once)
        if is_trusted:
            with pytest.raises(VoucherSignatureInvalid):
                trio.accept(reply)
        else:
            assert trio.accept(reply)


@pytest.mark.req("B-321", "B-405")
def test_tampered_voucher_is_refused() -> None:
    trio = Trio()
    reply = trio.voucher_reply(good(trio))
    with pytest.raises(VoucherSignatureInvalid):
        trio.accept(replace(reply, body=tamper(reply.body)))


@pytest.mark.req("B-323", "T-01")
def test_old_voucher_does_not_fit_a_new_attempt() -> None:
    trio = Trio()
    reply = trio.voucher_reply(good(trio))
    fresh = trio.pledge.voucher_request(trio.campus.certificate, nonce=bytes(range(1, 17)), now=NOW)
    with pytest.raises(VoucherForOtherRequest):
        trio.accept(reply, fresh)


@pytest.mark.req("B-323", "B-325", "B-306")
def test_nonceless_voucher_is_accepted_by_policy_until_it_expires() -> None:
    trio = Trio(pledge_policy=PledgePolicy(accept_nonceless=True))
    content = with_leaf(good(trio), nonce=None, expires_on="2026-02-01T00:00:00Z")
    assert trio.accept(trio.voucher_reply(content)).nonce is None
    with pytest.raises(VoucherExpired):
        trio.accept(trio.voucher_reply(content), now=NOW + timedelta(days=31))


@pytest.mark.req("B-148")
@pytest.mark.parametrize("clock_trusted", [True, False])
def test_voucher_signed_in_the_future_is_refused_by_whoever_has_a_clock(clock_trusted: bool) -> None:
    trio = Trio(pledge_policy=PledgePolicy(clock_trusted=clock_trusted))
    content = good(trio)
    masa = trio.factory.masa
    body = seal(json.dumps(content).encode(), masa, now=NOW + timedelta(seconds=61))
    reply = Reply(200, "application/voucher-cms+json", body=body)
    if clock_trusted:
        with pytest.raises(VoucherNotYetValid):
            trio.accept(reply)
    else:
        assert trio.accept(reply)


@pytest.mark.req("B-148", "B-325")
def test_pledge_without_clock_judges_no_date_by_what_it_takes_for_now() -> None:
    trio = Trio(pledge_policy=PledgePolicy(clock_trusted=False))
    content = with_leaf(good(trio), expires_on="2020-01-01T00:00:00Z")
    for now in (NOW - timedelta(days=20_000), NOW + timedelta(days=20_000)):
        assert trio.accept(trio.voucher_reply(content), now=now)


@pytest.mark.req("B-148", "B-327")
def test_the_date_of_a_fresh_voucher_bounds_the_time_of_a_pledge_without_clock() -> None:
    trio = Trio(pledge_policy=PledgePolicy(clock_trusted=False, accept_nonceless=True))
    late = with_leaf(good(trio), created_on="2040-01-01T00:00:00Z")
    with pytest.raises(DomainNotPinned, match="expired before the voucher was made"):
        trio.accept(trio.voucher_reply(late), now=NOW - timedelta(days=20_000))
    # one without a nonce may be old, so its date says nothing about now
    old = with_leaf(late, nonce=None, expires_on="2041-01-01T00:00:00Z")
    assert trio.accept(trio.voucher_reply(old), now=NOW - timedelta(days=20_000))


@pytest.mark.req("B-326")
def test_pledge_that_wants_more_than_logged_refuses_logged() -> None:
    trio = Trio(pledge_policy=PledgePolicy(assertions=frozenset({Assertion.PROXIMITY, Assertion.VERIFIED})))
    with pytest.raises(AssertionNotAcceptable):
        trio.accept(trio.voucher_reply(with_leaf(good(trio), assertion="logged")))


@pytest.mark.req("B-326")
@pytest.mark.parametrize("assertion", ["logged", "verified", "proximity"])
def test_every_assertion_of_rfc_8366_is_accepted_by_default(assertion: str) -> None:
    trio = Trio()
    assert trio.accept(trio.voucher_reply(with_leaf(good(trio), assertion=assertion)))


@pytest.mark.req("B-304", "B-327")
@pytest.mark.parametrize("pin", ["registrar", "issuing CA", "root"])
def test_pin_may_be_end_entity_sub_ca_or_root(pin: str) -> None:
    trio = Trio()
    certificates = {
        "registrar": trio.campus.certificate,
        "issuing CA": trio.campus.ca.certificate,
        "root": trio.campus.root.certificate,
    }
    content = with_leaf(good(trio), pinned_domain_cert=pem(certificates[pin]))
    assert trio.accept(trio.voucher_reply(content)).pin() == certificates[pin]


@pytest.mark.req("B-136", "B-327")
def test_self_signed_registrar_can_be_pinned() -> None:
    trio = Trio()
    own = make_self_signed("Small Office", now=LONG_AGO)
    sent = trio.pledge.voucher_request(own.certificate, nonce=trio.nonce, now=NOW)
    content = with_leaf(good(trio), pinned_domain_cert=pem(own.certificate))
    assert trio.accept(trio.voucher_reply(content), sent, tls_chain=own.chain)


@pytest.mark.req("B-327", "T-07")
def test_chain_with_a_missing_or_forged_intermediate_is_refused() -> None:
    trio = Trio()
    content = with_leaf(good(trio), pinned_domain_cert=pem(trio.campus.root.certificate))
    forged = make_intermediate(make_root("Campus Root", now=LONG_AGO), "Campus Devices CA", now=LONG_AGO)
    for chain in (trio.campus.tls_chain[:1], (trio.campus.certificate, forged.certificate)):
        with pytest.raises(DomainNotPinned):
            trio.accept(trio.voucher_reply(content), tls_chain=chain)


@pytest.mark.req("B-138", "B-244", "T-32")
def test_registrar_certificate_that_changed_since_the_request_is_refused() -> None:
    trio = Trio()
    renewed = make_registrar(trio.campus.ca, now=LONG_AGO)
    with pytest.raises(DomainNotPinned, match="made for"):
        trio.accept(trio.voucher_reply(good(trio)), tls_chain=renewed.chain)
    with pytest.raises(DomainNotPinned):
        trio.accept(trio.voucher_reply(good(trio)), tls_chain=())


EKU = x509.ExtendedKeyUsageOID


@pytest.mark.req("B-327", "B-140")
@pytest.mark.parametrize("usages", [(), (EKU.SERVER_AUTH,), (CMC_RA,), (EKU.CLIENT_AUTH,)])
def test_other_certificate_of_the_pinned_ca_cannot_play_registrar(usages: tuple[x509.ObjectIdentifier, ...]) -> None:
    ordinary = make_registrar(campus().ca, now=LONG_AGO, usages=usages)

    def accept(trio: Trio) -> object:
        sent = trio.pledge.voucher_request(ordinary.certificate, nonce=trio.nonce, now=NOW)
        return trio.accept(trio.voucher_reply(good(trio)), sent, tls_chain=ordinary.chain)

    with pytest.raises(DomainNotPinned) as refused:
        accept(Trio())
    assert refused.value.fields["because"] == "certificate-purpose-wrong"
    assert accept(Trio(pledge_policy=PledgePolicy(strict_registrar=False)))


@pytest.mark.req("B-148")
def test_expired_registrar_certificate_is_refused_by_a_pledge_with_a_clock() -> None:
    trio = Trio()
    with pytest.raises(DomainNotPinned):
        trio.accept(trio.voucher_reply(good(trio)), now=NOW + timedelta(days=400))


@pytest.mark.req("B-222", "B-230", "T-16")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5),
        ("60", 60),
        ("86400", 60),
        ("0", 1),
        ("-5", 10),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 10),
        ("soon", 10),
        ("9" * 400, 10),
        (None, 10),
    ],
)
def test_pledge_waits_at_most_a_minute(value: str | None, seconds: int) -> None:
    trio = Trio()
    headers = {} if value is None else {"retry-after": value}
    with pytest.raises(VoucherPending) as pending:
        trio.accept(Reply(202, headers=headers))
    assert pending.value.retry_after_seconds == seconds <= pledge.RETRY_CEILING_SECONDS


@pytest.mark.req("B-232")
def test_pledge_gives_up_waiting_after_four_days() -> None:
    assert not pledge.is_given_up(NOW, NOW + timedelta(days=4, seconds=-1))
    assert pledge.is_given_up(NOW, NOW + timedelta(days=4))


@pytest.mark.req("B-135", "B-233", "T-17")
@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 406, 415, 500, 503, 201, 204])
def test_anything_but_a_voucher_is_a_refusal_and_no_redirect_is_followed(status: int) -> None:
    headers = {"location": "https://other.example/.well-known/brski/requestvoucher"}
    with pytest.raises(RegistrarRefused) as refused:
        Trio().accept(Reply(status, headers=headers))
    assert refused.value.fields == {"status": status}


@pytest.mark.req("B-135", "B-212")
@pytest.mark.parametrize("media_type", ["", "text/html", "application/json", "application/voucher-jws+json"])
def test_answer_in_another_format_is_refused(media_type: str) -> None:
    trio = Trio()
    reply = trio.voucher_reply(good(trio))
    with pytest.raises(VoucherMalformed):
        trio.accept(replace(reply, media_type=media_type))


@pytest.mark.req("B-135", "B-411")
@pytest.mark.parametrize("body", [b"", b"\x30", b"\x30\x80\x00\x00", bytes(300_000), b"<html>", b"{}"])
def test_answer_that_is_no_cms_is_refused(body: bytes) -> None:
    with pytest.raises(VoucherMalformed):
        Trio().accept(Reply(200, paths.VOUCHER_CMS_JSON, body=body))


@pytest.mark.req("B-203", "B-205", "B-351", "B-357", "B-360")
def test_status_messages() -> None:
    trio = Trio()
    good_news = trio.pledge.voucher_status(True)
    bad_news = trio.pledge.voucher_status(False, "voucher-for-other-device")
    assert (good_news.method, good_news.path, good_news.media_type) == (
        "POST",
        "/.well-known/brski/voucher_status",
        "application/json",
    )
    assert json.loads(good_news.body) == {"version": 1, "status": True}
    assert json.loads(bad_news.body) == {"version": 1, "status": False, "reason": "voucher-for-other-device"}
    enrolled = trio.pledge.enroll_status(False, "csr refused", {"status": 400})
    assert enrolled.path == "/.well-known/brski/enrollstatus"
    assert telemetry.read_enroll_status(enrolled.body).reason_context == {"status": 400}


def test_masa_uri_that_cannot_be_read_marks_a_device_too() -> None:
    trio = Trio()
    odd = make_leaf(
        trio.factory.voucher_root,
        subject("odd"),
        now=LONG_AGO,
        extensions=[(x509.UnrecognizedExtension(MASA_URI, b"\x16\x05ab"), False)],
    )
    assert isinstance(odd, Identity)
    with pytest.raises(VoucherSignatureInvalid, match="by a device"):
        trio.accept(trio.voucher_reply(good(trio), by=odd))
