"""Vouchers without a nonce, asked for before the device comes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from brski import MasaAnswerInvalid, MasaPolicy, RegistrarUnauthenticated, paths, voucher, voucher_request
from brski.ahead import AheadExchange, ask_ahead
from brski.idevid import idevid_issuer, read_masa_address
from est.chains import TrustAnchors
from est.exchange import Reply
from tests.brski.trio import MASA, SERIAL, Trio, campus
from tests.support import NOW


def known() -> Trio:
    return Trio(masa_policy=MasaPolicy(registrar_anchors=TrustAnchors([campus().root.certificate])))


def ask(trio: Trio, serial: str = SERIAL) -> AheadExchange:
    issuer = idevid_issuer(trio.device.certificate).hex()
    return ask_ahead(trio.registrar, (issuer, serial), read_masa_address(MASA), paths.VOUCHER_CMS_JSON, now=NOW)


@pytest.mark.req("B-270", "B-285", "B-304", "B-306")
def test_a_registrar_that_the_masa_knows_gets_a_voucher_that_ends() -> None:
    trio = known()
    exchange = ask(trio)
    asked, _ = voucher_request.unseal(exchange.call.body, paths.VOUCHER_CMS_JSON)
    assert (asked.serial_number, asked.nonce, asked.prior_signed_voucher_request) == (SERIAL, None, None)
    assert asked.idevid_issuer == idevid_issuer(trio.device.certificate)
    grant = trio.masa.issue(exchange.call, trio, now=NOW)
    granted = exchange.conclude(grant.reply, NOW)
    assert granted.nonce is None and granted.expires_on is not None and granted.sealed == grant.reply.body
    device = replace(grant.device, log=replace(grant.device.log, events=(grant.entry,)), owners=(grant.owner,))
    trio.events[SERIAL, device.issuer] = device
    reply = trio.masa.audit_log(exchange.audit_log_call, trio, now=NOW)
    (entry,) = exchange.read_audit_log(reply).events
    assert entry.nonce is None
    assert exchange.follow_audit_log(reply) is None


@pytest.mark.req("B-285")
def test_a_registrar_that_the_masa_does_not_know_gets_none() -> None:
    trio = Trio()
    with pytest.raises(RegistrarUnauthenticated):
        trio.masa.issue(ask(trio).call, trio, now=NOW)


@pytest.mark.req("B-306", "B-313")
@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"serial_number": "PX-2"}, "another device"),
        ({"nonce": "AAAAAAAAAAAAAAAAAAAAAA==", "expires_on": None}, "a nonce that nobody sent"),
        ({"expires_on": None}, "no end"),
        ({"expires_on": NOW}, "has ended"),
        ({"idevid_issuer": b"\x04\x02ab"}, "another issuer"),
    ],
)
def test_a_voucher_that_is_not_what_was_asked_for_is_not_kept(change: dict[str, object], because: str) -> None:
    trio = known()
    exchange = ask(trio)
    grant = trio.masa.issue(exchange.call, trio, now=NOW)
    wrong = replace(grant.voucher, **change)  # type: ignore[arg-type]
    body = trio.masa.seal(wrong, paths.VOUCHER_CMS_JSON, now=NOW)
    voucher.unseal(body, paths.VOUCHER_CMS_JSON)
    with pytest.raises(MasaAnswerInvalid, match=because):
        exchange.conclude(Reply(200, paths.VOUCHER_CMS_JSON, body=body), NOW)
    assert exchange.conclude(grant.reply, NOW + timedelta(days=1)).serial_number == SERIAL


@pytest.mark.req("B-313")
def test_a_pin_of_another_domain_is_not_kept() -> None:
    trio = known()
    exchange = ask(trio)
    other = ask(replace(trio, domain="Elsewhere"))
    grant = trio.masa.issue(exchange.call, trio, now=NOW)
    with pytest.raises(MasaAnswerInvalid, match="not ours"):
        other.conclude(grant.reply, NOW)
