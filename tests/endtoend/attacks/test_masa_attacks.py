"""Attacks on the MASA, over HTTPS: registrars that lie about who asks and for what."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from brski import Assertion, Pledge, leaves, paths, voucher
from brski.idevid import read_serial_number
from est.exchange import Call, Reply
from lab.certificates import Domain, Identity, make_registrar
from tests.endtoend.attacks.site import Maker, Site, reason, registrar_call, sign

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("attacks")]
BORN = datetime.now(UTC) - timedelta(hours=1)
CAMPUS, MALLORY = Domain.create("Campus", now=BORN), Domain.create("Mallory", now=BORN)


def ask(maker: Maker, call: Call) -> Reply:
    line = maker.line()
    reply = line.send(call)
    line.close()
    return reply


def pledge_request(maker: Maker, device: Identity, domain: Domain) -> bytes:
    """What the device sends to the registrar of this domain."""
    pledge = Pledge(device.signer, device.chain, maker.factory.masa_anchors)
    return pledge.voucher_request(domain.certificate, nonce=secrets.token_bytes(16), now=datetime.now(UTC)).body


def serial_of(device: Identity) -> str:
    return read_serial_number(device.certificate)


@pytest.mark.req("T-08", "B-283")
def test_t08_an_ordinary_certificate_of_a_domain_gets_no_voucher_and_leaves_no_trace_in_the_log(site: Site) -> None:
    device = site.acme.device()
    prior = pledge_request(site.acme, device, CAMPUS)
    client = ExtendedKeyUsageOID.CLIENT_AUTH
    ldevid = make_registrar(CAMPUS.ca, now=BORN, usages=(client, ExtendedKeyUsageOID.SERVER_AUTH))
    by = Identity(ldevid.key, ldevid.certificate, CAMPUS.chain)
    refused = ask(site.acme, registrar_call(CAMPUS, device, prior, by=by))
    assert (refused.status, reason(refused)) == (403, "registrar-not-authorized")
    assert site.acme.history(serial_of(device)) == []
    # the same request by the registrar of that domain is in order
    assert ask(site.acme, registrar_call(CAMPUS, device, prior)).status == 200
    assert len(site.acme.history(serial_of(device))) == 1


@pytest.mark.req("T-09", "B-287", "B-289")
def test_t09_a_pledge_request_made_for_another_registrar_never_becomes_proximity(site: Site) -> None:
    device = site.acme.device()
    prior = pledge_request(site.acme, device, CAMPUS)
    refused = ask(site.acme, registrar_call(MALLORY, device, prior))
    assert (refused.status, reason(refused)) == (403, "proximity-mismatch")
    assert site.acme.history(serial_of(device)) == []
    # a claim of proximity without the pledge's own word is not believed either
    refused = ask(
        site.acme,
        registrar_call(MALLORY, device, None, nonce=secrets.token_hex(8), assertion=Assertion.PROXIMITY),
    )
    assert (refused.status, reason(refused)) == (403, "prior-request-invalid")


@pytest.mark.req("T-10", "B-288")
def test_t10_another_nonce_than_the_pledges_is_refused(site: Site) -> None:
    device = site.acme.device()
    prior = pledge_request(site.acme, device, CAMPUS)
    for nonce in (leaves.write_binary(bytes(16)), None):
        refused = ask(site.acme, registrar_call(CAMPUS, device, prior, nonce=nonce))
        assert refused.status == 403
        assert reason(refused) in ("nonce-mismatch", "registrar-unauthenticated")
    assert site.acme.history(serial_of(device)) == []


@pytest.mark.req("T-11", "B-285")
def test_t11_a_request_without_nonce_by_a_registrar_that_nobody_knows_is_refused(
    own_site: Callable[..., Site],
) -> None:
    site = own_site()
    known = site.campus.folder / "known-registrars.pem"
    known.write_bytes(CAMPUS.root.chain_pem)
    maker = site.add_maker("zenith", "--registrars", known)
    device = maker.device()
    refused = ask(maker, registrar_call(MALLORY, device, None))
    assert (refused.status, reason(refused)) == (403, "registrar-unauthenticated")
    assert maker.history(serial_of(device)) == []
    granted = ask(maker, registrar_call(CAMPUS, device, None))
    assert granted.status == 200
    found, opened = voucher.unseal(granted.body, granted.media_type)
    assert (found.nonce, found.assertion) == (None, Assertion.LOGGED)
    assert opened.signer == maker.factory.masa_lasting.certificate
    (entry,) = maker.history(serial_of(device))
    assert entry["nonce"] is None


@pytest.mark.req("T-21", "B-421")
def test_t21_a_voucher_is_no_request_at_the_masa(site: Site) -> None:
    device = site.acme.device()
    prior = pledge_request(site.acme, device, CAMPUS)
    granted = ask(site.acme, registrar_call(CAMPUS, device, prior))
    assert granted.status == 200
    # as it came, and signed anew by a true registrar: the key of the document decides
    content = json.loads(voucher.write(voucher.unseal(granted.body, granted.media_type)[0]))
    by = Identity(CAMPUS.registrar.key, CAMPUS.certificate, CAMPUS.chain)
    as_it_came = Call("POST", paths.REQUEST_VOUCHER, granted.media_type, {}, granted.body)
    for call in (as_it_came, sign(json.dumps(content).encode(), by)):
        refused = ask(site.acme, call)
        assert (refused.status, reason(refused)) == (400, "voucher-request-malformed")
    assert len(site.acme.history(serial_of(device))) == 1
