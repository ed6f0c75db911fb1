"""CRLs: number, key identifier, reasons, read back by another library."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from est import chains, der, profiles, revocation
from est.errors import (
    BodyMalformed,
    CertificateNotAsShaped,
    CertificateRevoked,
    RevocationUnknown,
    ShapeNotPossible,
)
from est.signer import KeySigner
from tests.est.pki import campus, sign, terms
from tests.support import NOW, key

WEEK = timedelta(days=7)


def to_be_signed(
    *entries: revocation.Revoked,
    number: int = 1,
    issuer_key: ec.EllipticCurvePublicKey | None = None,
    next_update: timedelta = WEEK,
) -> bytes:
    ca = campus().ca
    return profiles.crl_to_be_signed(
        ca.subject,
        issuer_key=issuer_key or key("campus ca").public_key(),
        issuer_key_identifier=chains.ski_of(ca) or b"",
        number=number,
        this_update=NOW,
        next_update=NOW + next_update,
        entries=entries,
    )


def crl(*entries: revocation.Revoked, number: int = 1) -> x509.CertificateRevocationList:
    tbs = to_be_signed(*entries, number=number)
    der_ = profiles.assemble(tbs, KeySigner(key("campus ca")).sign(tbs), key("campus ca").public_key())
    der.check(der_)
    return x509.load_der_x509_crl(der_)


def test_a_crl_says_what_was_put_in() -> None:
    found = crl(
        profiles.Revoked(77, NOW, "keyCompromise"),
        profiles.Revoked(2**158, NOW - WEEK),
        profiles.Revoked(5, NOW, "cessationOfOperation"),
        number=2**64,
    )
    assert found.is_signature_valid(key("campus ca").public_key())
    assert found.issuer == campus().ca.subject
    assert (found.last_update_utc, found.next_update_utc) == (NOW, NOW + WEEK)
    assert found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 2**64
    identifier = found.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert identifier.key_identifier == chains.ski_of(campus().ca)
    assert not any(one.critical for one in found.extensions)
    compromised = found.get_revoked_certificate_by_serial_number(77)
    assert compromised is not None
    assert (
        compromised.extensions.get_extension_for_class(x509.CRLReason).value.reason == x509.ReasonFlags.key_compromise
    )
    without = found.get_revoked_certificate_by_serial_number(2**158)
    assert without is not None
    assert len(without.extensions) == 0
    assert without.revocation_date_utc == NOW - WEEK


@pytest.mark.parametrize("reason", revocation.REASONS)
def test_every_reason_is_the_one_that_readers_know(reason: str) -> None:
    [entry] = list(crl(profiles.Revoked(1, NOW, reason)))
    if reason == "unspecified":
        assert len(entry.extensions) == 0
    else:
        assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value == reason


def test_an_empty_crl_has_no_list_at_all() -> None:
    assert len(list(crl())) == 0


def test_impossible_crls_are_refused() -> None:
    for call in (
        lambda: to_be_signed(profiles.Revoked(1, NOW, "boredom")),
        lambda: to_be_signed(profiles.Revoked(0, NOW)),
        lambda: to_be_signed(number=-1),
        lambda: to_be_signed(number=2**159),
        lambda: to_be_signed(next_update=timedelta(0)),
        lambda: to_be_signed(issuer_key=ec.generate_private_key(ec.SECP521R1()).public_key()),
    ):
        with pytest.raises(ShapeNotPossible):
            call()


def test_a_crl_signed_by_another_key_is_not_assembled() -> None:
    tbs = to_be_signed()
    with pytest.raises(CertificateNotAsShaped):
        profiles.assemble(tbs, KeySigner(key("thief")).sign(tbs), key("campus ca").public_key())


def path() -> tuple[x509.Certificate, ...]:
    world = campus()
    return world.proxy, world.ca, world.root


@pytest.mark.req("B-284")
def test_a_path_is_held_against_the_lists_at_hand() -> None:
    proxy = profiles.Revoked(campus().proxy.serial_number, NOW, "keyCompromise")
    revocation.RevocationLists([crl()]).check(path(), at=NOW)
    with pytest.raises(CertificateRevoked):
        revocation.RevocationLists([crl(), crl(proxy, number=2)]).check(path(), at=NOW)
    # a list that is over, or not begun, or by another key under the same name, says nothing
    for late in (NOW + WEEK, NOW - timedelta(seconds=1)):
        revocation.RevocationLists([crl(proxy)]).check(path(), at=late)
    forged_tbs = to_be_signed(proxy, issuer_key=key("somebody").public_key())
    forged = profiles.assemble(forged_tbs, KeySigner(key("somebody")).sign(forged_tbs), key("somebody").public_key())
    revocation.RevocationLists([revocation.read_crl(forged)]).check(path(), at=NOW)


@pytest.mark.req("B-284")
def test_where_a_list_is_demanded_a_certificate_that_names_one_needs_it() -> None:
    terms_ = replace(terms(campus().ca), crl_url="http://pki.example/crl/devices.crl")
    shape = profiles.ldevid(terms_, profiles.name("p"), key("p").public_key(), identifier="spiffe://x.example/proxy/1")
    leaf = sign(shape, key("campus ca"))
    chain = (leaf, *path()[1:])
    revocation.RevocationLists([crl()], demanded=True).check(chain, at=NOW)
    revocation.RevocationLists().check(chain, at=NOW)
    for lists, at in (([], NOW), ([crl()], NOW + WEEK)):
        with pytest.raises(RevocationUnknown):
            revocation.RevocationLists(lists, demanded=True).check(chain, at=at)
    # who names no list is asked for none
    revocation.RevocationLists(demanded=True).check(path(), at=NOW)


def test_a_list_for_a_part_of_the_certificates_is_no_list() -> None:
    serial = campus().proxy.serial_number
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
    builder = x509.CertificateRevocationListBuilder().issuer_name(campus().ca.subject).add_revoked_certificate(entry)
    builder = builder.last_update(NOW).next_update(NOW + WEEK)
    part = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    whole = builder.sign(key("campus ca"), hashes.SHA256())
    partial = builder.add_extension(part, critical=True).sign(key("campus ca"), hashes.SHA256())
    revocation.RevocationLists([partial]).check(path(), at=NOW)
    with pytest.raises(CertificateRevoked):
        revocation.RevocationLists([whole]).check(path(), at=NOW)


def test_lists_are_read_as_der_and_pem_and_nothing_else() -> None:
    made = crl()
    der_ = made.public_bytes(Encoding.DER)
    assert revocation.read_crl(der_) == revocation.read_crl(made.public_bytes(Encoding.PEM)) == made
    for wrong in (b"", b"-----BEGIN X509 CRL-----", der_[:-1], der_[:40] + b"\xff" + der_[41:]):
        with pytest.raises(BodyMalformed):
            revocation.read_crl(wrong)
