"""The MASA: whom it believes, what it asserts, what it pins, what it remembers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from brski import (
    Assertion,
    BrskiError,
    Device,
    DeviceBlocked,
    DeviceClaimed,
    DeviceUnknown,
    FormatNotAcceptable,
    MasaPolicy,
    MediaTypeUnsupported,
    NeverOwner,
    NonceMismatch,
    PinForbidden,
    PriorRequestInvalid,
    ProximityMismatch,
    RegistrarChainBroken,
    RegistrarNotAuthorized,
    RegistrarUnauthenticated,
    SerialNumberMismatch,
    VoucherRequestMalformed,
    VoucherRequestSignatureInvalid,
    audit_log,
    leaves,
    masa,
    paths,
)
from brski.states import DeviceState
from est import chains
from est.crl import RevocationLists
from est.exchange import Call
from lab.certificates import common_name
from lab.factory import CMC_RA, Identity, make_intermediate, make_leaf, make_registrar, make_root
from lab.mock_masa import tamper
from tests.brski.trio import LONG_AGO, SERIAL, Trio, campus, content_of, device, seal, with_leaf, without_leaf
from tests.support import NOW

EKU = x509.ExtendedKeyUsageOID
ASKED = content_of(Trio().consider().call.body)


def registrar_with_chain(registrar: Identity, *chain: x509.Certificate) -> Identity:
    return replace(registrar, issuers=chain)


@pytest.mark.req("B-221", "B-281", "B-282", "B-283", "B-286", "B-287", "B-288", "B-301", "B-305", "B-306", "B-310")
def test_voucher_repeats_the_nonce_and_pins_the_domain() -> None:
    trio = Trio()
    grant = trio.issue(trio.consider().call)
    assert (grant.reply.status, grant.reply.media_type) == (200, "application/voucher-cms+json")
    content = content_of(grant.reply.body)["ietf-voucher:voucher"]
    assert content == {
        "created-on": "2026-01-01T12:00:00Z",
        "assertion": "proximity",
        "serial-number": SERIAL,
        "pinned-domain-cert": leaves.write_binary(trio.campus.ca.certificate.public_bytes(Encoding.DER)),
        "domain-cert-revocation-checks": False,
        "nonce": "AAECAwQFBgcICQoLDA0ODw==",
    }


@pytest.mark.req("B-294", "B-333", "B-334")
def test_grant_carries_the_log_entry_to_be_stored_with_it() -> None:
    trio = Trio()
    grant = trio.issue(trio.consider().call)
    assert grant.entry.domain_id == audit_log.domain_id(trio.campus.ca.certificate)
    assert grant.entry.nonce == "AAECAwQFBgcICQoLDA0ODw=="
    assert grant.entry.assertion == "proximity"
    assert grant.state is DeviceState.CLAIMED
    assert grant.owner == chains.spki_sha256(trio.campus.ca.certificate)


@pytest.mark.req("B-307")
def test_issuer_is_named_where_serials_are_not_unique() -> None:
    trio = Trio(masa_policy=MasaPolicy(serials_are_unique=False))
    grant = trio.issue(trio.consider().call)
    assert grant.voucher.idevid_issuer == trio.pledge.idevid.issuer
    assert trio.run().serial_number == SERIAL


@pytest.mark.req("B-283", "T-08")
@pytest.mark.parametrize("usages", [(), (EKU.SERVER_AUTH, EKU.CLIENT_AUTH)])
def test_ordinary_certificate_of_the_domain_gets_no_voucher(usages: tuple[x509.ObjectIdentifier, ...]) -> None:
    trio = Trio()
    ldevid = registrar_with_chain(make_registrar(campus().ca, now=LONG_AGO, usages=usages), *campus().chain)
    with pytest.raises(RegistrarNotAuthorized):
        trio.issue(trio.registrar_call(ASKED, by=ldevid))


@pytest.mark.req("B-282")
def test_broken_signature_is_refused() -> None:
    trio = Trio()
    call = trio.consider().call
    with pytest.raises(VoucherRequestSignatureInvalid):
        trio.issue(replace(call, body=tamper(call.body)))


@pytest.mark.req("B-281", "B-282")
def test_chain_with_a_forged_ca_is_refused_even_if_the_names_fit() -> None:
    trio = Trio()
    forged = make_intermediate(make_root("Campus Root", now=LONG_AGO), "Campus Devices CA", now=LONG_AGO)
    other = make_root("Campus Devices CA", now=LONG_AGO)
    for ca in (forged.certificate, other.certificate):
        by = registrar_with_chain(campus().registrar, ca)
        # what does not belong is left out, so only the end entity can be pinned
        assert trio.issue(trio.registrar_call(ASKED, by=by)).voucher.pin() == campus().certificate


@pytest.mark.req("B-281", "B-282", "B-287")
def test_ca_that_copies_name_and_key_identifier_breaks_the_chain() -> None:
    """Otherwise a stranger's CA would count as one of the registrar's."""
    trio, victim, key = Trio(), campus().ca.certificate, ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder()
        .subject_name(victim.subject)
        .issuer_name(victim.subject)
        .public_key(key.public_key())
        .serial_number(victim.serial_number)
        .not_valid_before(victim.not_valid_before_utc)
        .not_valid_after(victim.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(victim.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value, critical=False)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(RegistrarChainBroken):
        trio.issue(trio.registrar_call(ASKED, by=registrar_with_chain(campus().registrar, forged)))


@pytest.mark.req("B-282")
@pytest.mark.parametrize("chain", [campus().chain, ()], ids=["with its CAs", "alone"])
def test_expired_registrar_is_refused(chain: tuple[x509.Certificate, ...]) -> None:
    trio = Trio()
    call = trio.registrar_call(with_prior(trio, device()), by=registrar_with_chain(campus().registrar, *chain))
    assert trio.issue(call)
    with pytest.raises(RegistrarChainBroken):
        trio.issue(call, now=NOW + timedelta(days=400))


@pytest.mark.req("B-284")
def test_registrar_that_leaves_its_issuer_out_does_not_evade_revocation_lists() -> None:
    trio = Trio()
    list_ = x509.DistributionPoint([x509.UniformResourceIdentifier("http://ca.example/crl")], None, None, None)
    extensions = [
        (x509.ExtendedKeyUsage([CMC_RA]), False),
        (x509.CRLDistributionPoints([list_]), False),
    ]
    ca, key = campus().ca, campus().registrar.key
    named = make_leaf(ca, common_name("registrar"), now=LONG_AGO, key=key, extensions=extensions)
    call = trio.registrar_call(with_prior(trio, device()), by=registrar_with_chain(named))
    assert trio.issue(call, revocation=RevocationLists())
    with pytest.raises(RegistrarChainBroken) as refused:
        trio.issue(call, revocation=RevocationLists(demanded=True))
    assert refused.value.fields["because"] == "chain-revocation-unknown"


@pytest.mark.req("B-287", "T-09")
def test_request_with_the_pledge_request_of_another_registrar_is_refused() -> None:
    trio, mallory = Trio(), campus("Mallory")
    by = registrar_with_chain(mallory.registrar, *mallory.chain)
    with pytest.raises(ProximityMismatch):
        trio.issue(trio.registrar_call(ASKED, by=by))


@pytest.mark.req("B-287", "T-09")
def test_foreign_ca_beside_the_own_chain_proves_nothing() -> None:
    """Mallory embeds the victim's certificates as dead weight."""
    trio, mallory = Trio(), campus("Mallory")
    by = registrar_with_chain(mallory.registrar, *mallory.chain, *campus().tls_chain)
    with pytest.raises(ProximityMismatch):
        trio.issue(trio.registrar_call(ASKED, by=by))


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        pytest.param(
            with_leaf(ASKED, nonce="AAAAAAAAAAAAAAAAAAAAAA=="), NonceMismatch, marks=pytest.mark.req("B-288", "T-10")
        ),
        pytest.param(with_leaf(ASKED, nonce=None), NonceMismatch, marks=pytest.mark.req("B-288", "T-11")),
        pytest.param(with_leaf(ASKED, serial_number="PX-2"), SerialNumberMismatch, marks=pytest.mark.req("B-287")),
        pytest.param(with_leaf(ASKED, idevid_issuer="AAEC"), SerialNumberMismatch, marks=pytest.mark.req("B-265")),
        pytest.param(
            with_leaf(ASKED, prior_signed_voucher_request=None), PriorRequestInvalid, marks=pytest.mark.req("B-287")
        ),
        pytest.param(with_leaf(ASKED, prior_signed_voucher_request="AAEC"), PriorRequestInvalid),
        pytest.param(
            with_leaf(ASKED, proximity_registrar_cert="AAEC"),
            VoucherRequestMalformed,
            marks=pytest.mark.req("B-269"),
        ),
        pytest.param(
            {"ietf-voucher:voucher": ASKED["ietf-voucher-request:voucher"]},
            VoucherRequestMalformed,
            marks=pytest.mark.req("B-421", "T-21"),
        ),
    ],
)
def test_damaged_request_is_refused(content: Any, refusal: type[BrskiError]) -> None:
    trio = Trio()
    with pytest.raises(refusal) as refused:
        trio.issue(trio.registrar_call(content), is_authenticated=True)
    assert type(refused.value) is refusal


def with_prior(trio: Trio, by: Identity, **leaves_: Any) -> dict[str, Any]:
    prior = with_leaf(content_of(trio.ask().body), **leaves_)
    text = leaves.write_binary(seal(json.dumps(prior).encode(), by))
    return with_leaf(ASKED, prior_signed_voucher_request=text)


@pytest.mark.req("B-287")
@pytest.mark.parametrize(
    ("by", "change", "refusal"),
    [
        (device("PX-2"), {}, SerialNumberMismatch),
        (device(maker="Other"), {}, PriorRequestInvalid),
        (device(), {"serial_number": "PX-2"}, SerialNumberMismatch),
        (device(), {"proximity_registrar_cert": None}, ProximityMismatch),
        (device(), {"proximity_registrar_cert": "AAEC"}, PriorRequestInvalid),
        (device(), {"nonce": "AAAAAAAAAAAAAAAAAAAAAA=="}, NonceMismatch),
    ],
)
def test_prior_request_that_does_not_fit_is_refused(
    by: Identity, change: dict[str, Any], refusal: type[BrskiError]
) -> None:
    trio = Trio()
    with pytest.raises(refusal) as refused:
        trio.issue(trio.registrar_call(with_prior(trio, by, **change)))
    assert type(refused.value) is refusal


@pytest.mark.req("B-289")
@pytest.mark.parametrize("asked", ["verified", "logged", None])
def test_requested_assertion_is_not_echoed(asked: str | None) -> None:
    trio = Trio()
    grant = trio.issue(trio.registrar_call(with_leaf(ASKED, assertion=asked)))
    assert grant.voucher.assertion is Assertion.PROXIMITY
    assert grant.entry.assertion == "proximity"


@pytest.mark.req("B-289")
def test_pledge_that_asserts_nothing_gets_logged() -> None:
    trio = Trio()
    grant = trio.issue(trio.registrar_call(with_prior(trio, device(), assertion=None)))
    assert grant.voucher.assertion is Assertion.LOGGED


@pytest.mark.req("B-289")
def test_verified_is_for_the_domain_the_device_was_sold_to() -> None:
    trio = Trio()
    known = chains.spki_sha256(trio.campus.root.certificate)
    sold = trio.find(SERIAL, None)
    assert sold is not None
    trio.events[SERIAL, sold.issuer] = replace(sold, sold_to=frozenset({known}))
    assert trio.issue(trio.consider().call).voucher.assertion is Assertion.VERIFIED


@pytest.mark.req("B-289")
def test_domain_that_copies_the_owners_key_identifier_is_not_verified() -> None:
    trio = Trio()
    sold = trio.find(SERIAL, None)
    assert sold is not None
    trio.events[SERIAL, sold.issuer] = replace(
        sold, sold_to=frozenset({audit_log.domain_id(trio.campus.root.certificate)})
    )
    assert trio.issue(trio.consider().call).voucher.assertion is Assertion.PROXIMITY


NONCELESS = without_leaf(ASKED, "nonce", "prior-signed-voucher-request")


@pytest.mark.req("B-285", "T-11")
def test_nonceless_request_of_a_stranger_is_refused() -> None:
    trio = Trio()
    with pytest.raises(RegistrarUnauthenticated):
        trio.issue(trio.registrar_call(NONCELESS))


@pytest.mark.req("B-285", "B-289", "B-290", "B-306", "B-334")
def test_nonceless_request_of_a_known_registrar_gives_an_expiring_logged_voucher_for_the_highest_ca() -> None:
    anchors = chains.TrustAnchors([campus().root.certificate])
    trio = Trio(masa_policy=MasaPolicy(registrar_anchors=anchors))
    grant = trio.issue(trio.registrar_call(NONCELESS))
    assert grant.voucher.nonce is None is grant.entry.nonce
    assert grant.voucher.assertion is Assertion.LOGGED
    assert grant.voucher.pin() == campus().root.certificate
    assert grant.voucher.expires_on == NOW + timedelta(days=365)
    stranger = campus("Mallory")
    with pytest.raises(RegistrarUnauthenticated):
        trio.issue(trio.registrar_call(NONCELESS, by=registrar_with_chain(stranger.registrar, *stranger.chain)))


@pytest.mark.req("B-285", "B-306")
def test_nonceless_voucher_ends_with_the_registrars_certificate_at_the_latest() -> None:
    trio = Trio(masa_policy=MasaPolicy(nonceless_lifetime=timedelta(days=36_500)))
    grant = trio.issue(trio.registrar_call(NONCELESS), is_authenticated=True)
    assert grant.voucher.expires_on == campus().certificate.not_valid_after_utc


@pytest.mark.req("B-290")
def test_nonced_request_pins_the_lowest_ca_that_was_sent_or_the_end_entity() -> None:
    trio = Trio()
    everything = campus().chain
    for chain, pin in [
        (everything, campus().ca.certificate),
        (everything[:1], campus().ca.certificate),
        ((), campus().certificate),
    ]:
        by = registrar_with_chain(campus().registrar, *chain)
        content = with_prior(trio, device())
        assert trio.issue(trio.registrar_call(content, by=by)).voucher.pin() == pin


@pytest.mark.req("B-291")
def test_ca_that_strangers_share_is_never_pinned() -> None:
    shared = frozenset({chains.spki_sha256(campus().ca.certificate)})
    trio = Trio(masa_policy=MasaPolicy(forbidden_pins=shared))
    with pytest.raises(PinForbidden):
        trio.issue(trio.consider().call)


@pytest.mark.req("B-292")
def test_device_that_was_never_sold_is_unknown() -> None:
    trio = Trio(serial="PX-GONE")
    del trio.factory.sold["PX-GONE"]
    with pytest.raises(DeviceUnknown):
        trio.issue(trio.consider().call)
    trio.factory.sold["PX-GONE"] = Device("PX-GONE", trio.pledge.idevid.issuer)


@pytest.mark.req("B-292", "B-293", "B-295")
def test_first_registrar_wins_where_the_policy_says_so() -> None:
    policy = MasaPolicy(override=False)
    first = Trio(masa_policy=policy)
    second = Trio(masa_policy=policy, domain="Mallory")
    second.events = first.events
    first.run()
    first.run()  # again for the same domain: granted, and logged
    with pytest.raises(DeviceClaimed):
        second.run()
    (known,) = first.events.values()
    assert len(known.log.events) == 2


@pytest.mark.req("B-292", "B-295")
def test_a_former_owner_has_no_claim_any_more_where_the_first_registrar_wins() -> None:
    former = Trio(masa_policy=MasaPolicy(override=False))
    former.run()
    ((key, known),) = former.events.items()
    former.events[key] = replace(known, owners=(*known.owners, chains.spki_sha256(campus("New").ca.certificate)))
    with pytest.raises(DeviceClaimed):
        former.run()


@pytest.mark.req("B-286", "T-05")
def test_audit_only_masa_gives_the_device_to_whoever_has_it_and_logs_that() -> None:
    first, second = Trio(), Trio(domain="Mallory")
    second.events = first.events
    first.run()
    second.run()
    (known,) = first.events.values()
    assert [entry.domain_id for entry in known.log.events] == [
        audit_log.domain_id(first.campus.ca.certificate),
        audit_log.domain_id(second.campus.ca.certificate),
    ]


def test_blocked_device_gets_no_voucher() -> None:
    trio = Trio()
    sold = trio.find(SERIAL, None)
    assert sold is not None
    trio.events[SERIAL, sold.issuer] = replace(sold, state=DeviceState.BLOCKED)
    with pytest.raises(DeviceBlocked):
        trio.issue(trio.consider().call)


@pytest.mark.req("B-265", "B-266")
def test_request_without_issuer_is_a_matter_of_policy() -> None:
    content = without_leaf(NONCELESS, "idevid-issuer")
    trio = Trio()
    assert trio.issue(trio.registrar_call(content), is_authenticated=True)
    strict = Trio(masa_policy=MasaPolicy(demand_issuer=True))
    with pytest.raises(VoucherRequestMalformed):
        strict.issue(strict.registrar_call(content), is_authenticated=True)


@pytest.mark.req("B-266")
@pytest.mark.parametrize("whose", ["device", "issuer"])
def test_both_readings_of_the_issuer_of_a_device_without_key_identifier_are_taken(whose: str) -> None:
    trio = Trio()
    bare = trio.factory.make_device("PX-BARE", now=LONG_AGO, has_aki=False)
    key = bare.certificate if whose == "device" else trio.factory.device_ca.certificate
    digest = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    prior = with_leaf(content_of(trio.ask().body), serial_number="PX-BARE")
    content = with_leaf(
        ASKED,
        serial_number="PX-BARE",
        idevid_issuer=leaves.write_binary(b"\x04\x18\x30\x16\x80\x14" + digest),
        prior_signed_voucher_request=leaves.write_binary(seal(json.dumps(prior).encode(), bare)),
    )
    assert trio.issue(trio.registrar_call(content)).voucher.serial_number == "PX-BARE"


@pytest.mark.req("B-212")
def test_formats_are_negotiated() -> None:
    trio = Trio()
    call = trio.consider().call
    with pytest.raises(MediaTypeUnsupported):
        trio.issue(replace(call, media_type="application/voucher-cose+cbor"))
    with pytest.raises(FormatNotAcceptable):
        trio.issue(replace(call, headers={"accept": "application/voucher-jws+json"}))
    with pytest.raises(FormatNotAcceptable):
        trio.masa.audit_log(replace(call, headers={"accept": "text/csv"}), trio, now=NOW)


@pytest.mark.req("B-204", "B-334")
def test_audit_log_of_the_device_for_its_owner() -> None:
    trio = Trio()
    trio.run()
    reply = trio.masa.audit_log(trio.consider().audit_log_call, trio, now=NOW)
    assert (reply.status, reply.media_type) == (200, paths.JSON)
    assert len(audit_log.read(reply.body).events) == 1


@pytest.mark.req("B-335")
def test_audit_log_leaves_pruned() -> None:
    trio = Trio()
    trio.run()
    trio.run()
    told = audit_log.read(trio.masa.audit_log(trio.consider().audit_log_call, trio, now=NOW).body)
    assert [entry.truncated for entry in told.events] == [1] and told.truncation.nonced_duplicates == 1


@pytest.mark.req("B-336")
def test_audit_log_is_not_for_strangers_and_stays_open_to_former_owners() -> None:
    first, second = Trio(), Trio(domain="Mallory")
    second.events = first.events
    first.run()
    with pytest.raises(NeverOwner):
        second.masa.audit_log(second.consider().audit_log_call, second, now=NOW)
    second.run()
    for trio in (first, second):
        reply = trio.masa.audit_log(trio.consider().audit_log_call, trio, now=NOW)
        assert len(audit_log.read(reply.body).events) == 2


@pytest.mark.req("B-283")
def test_audit_log_request_is_checked_like_a_voucher_request() -> None:
    trio = Trio()
    trio.run()
    ordinary = make_registrar(campus().ca, now=LONG_AGO, usages=(EKU.CLIENT_AUTH,))
    call: Call = trio.registrar_call(ASKED, by=registrar_with_chain(ordinary, *campus().chain))
    with pytest.raises(RegistrarNotAuthorized):
        trio.masa.audit_log(replace(call, headers={}), trio, now=NOW)


def test_presented_path_follows_names_and_key_identifiers() -> None:
    domain, other = campus(), make_root("Campus Devices CA", now=LONG_AGO)
    everything = [other.certificate, domain.root.certificate, domain.ca.certificate, domain.certificate]
    assert masa.presented_path(domain.certificate, everything) == (domain.certificate, *domain.chain)
    assert masa.presented_path(domain.certificate, []) == (domain.certificate,)
    lone = make_leaf(other, x509.Name([]), now=LONG_AGO, extensions=[(x509.ExtendedKeyUsage([CMC_RA]), False)])
    assert masa.presented_path(lone.certificate, everything) == (lone.certificate, other.certificate)
