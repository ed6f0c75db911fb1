"""A path held against revocation lists: revoked, unknown, late, forged, partial; and what is no list at all."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from est import profiles
from est.crl import RevocationLists, read_crl
from est.errors import BodyMalformed, CertificateRevoked, RevocationUnknown
from est.signer import KeySigner
from tests.est.pki import CA, campus, odd, sign, terms
from tests.est.test_revocation import WEEK, crl, to_be_signed
from tests.support import NOW, key


def path() -> tuple[x509.Certificate, ...]:
    world = campus()
    return world.proxy, world.ca, world.root


@pytest.mark.req("B-284")
def test_a_path_is_held_against_the_lists_at_hand() -> None:
    proxy = profiles.Revoked(campus().proxy.serial_number, NOW, "keyCompromise")
    RevocationLists([crl()]).check(path(), at=NOW)
    with pytest.raises(CertificateRevoked):
        RevocationLists([crl(), crl(proxy, number=2)]).check(path(), at=NOW)
    # a list that is over, or not begun, or by another key under the same name, says nothing
    for late in (NOW + WEEK, NOW - timedelta(seconds=1)):
        RevocationLists([crl(proxy)]).check(path(), at=late)
    forged_tbs = to_be_signed(proxy, issuer_key=key("somebody").public_key())
    forged = profiles.assemble(forged_tbs, KeySigner(key("somebody")).sign(forged_tbs), key("somebody").public_key())
    RevocationLists([read_crl(forged)]).check(path(), at=NOW)


@pytest.mark.req("B-284")
def test_where_a_list_is_demanded_a_certificate_that_names_one_needs_it() -> None:
    terms_ = terms(campus().ca)._replace(crl_url="http://pki.example/crl/devices.crl")
    shape = profiles.ldevid(terms_, profiles.name("p"), key("p").public_key(), identifier="spiffe://x.example/proxy/1")
    leaf = sign(shape, key("campus ca"))
    chain = (leaf, *path()[1:])
    RevocationLists([crl()], demanded=True).check(chain, at=NOW)
    RevocationLists().check(chain, at=NOW)
    for lists, at in (([], NOW), ([crl()], NOW + WEEK)):
        with pytest.raises(RevocationUnknown):
            RevocationLists(lists, demanded=True).check(chain, at=at)
    # who names no list is asked for none
    RevocationLists(demanded=True).check(path(), at=NOW)


@pytest.mark.parametrize("signs_lists", [True, False])
def test_a_list_counts_only_where_its_issuer_may_sign_lists(signs_lists: bool) -> None:
    usage = x509.KeyUsage(False, False, False, False, False, True, signs_lists, False, False)
    ca = odd("narrow", key("narrow"), key("narrow"), extensions=[CA, (usage, True)])
    leaf = odd("leaf", key("leaf"), key("narrow"), issuer=ca, extensions=[])
    entry = x509.RevokedCertificateBuilder().serial_number(leaf.serial_number).revocation_date(NOW).build()
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.subject).add_revoked_certificate(entry)
    lists = RevocationLists([builder.last_update(NOW).next_update(NOW + WEEK).sign(key("narrow"), hashes.SHA256())])
    if signs_lists:
        with pytest.raises(CertificateRevoked):
            lists.check((leaf, ca), at=NOW)
    else:
        lists.check((leaf, ca), at=NOW)


def test_a_list_for_a_part_of_the_certificates_is_no_list() -> None:
    serial = campus().proxy.serial_number
    entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
    builder = x509.CertificateRevocationListBuilder().issuer_name(campus().ca.subject).add_revoked_certificate(entry)
    builder = builder.last_update(NOW).next_update(NOW + WEEK)
    part = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    whole = builder.sign(key("campus ca"), hashes.SHA256())
    partial = builder.add_extension(part, critical=True).sign(key("campus ca"), hashes.SHA256())
    RevocationLists([partial]).check(path(), at=NOW)
    with pytest.raises(CertificateRevoked):
        RevocationLists([whole]).check(path(), at=NOW)


def test_lists_are_read_as_der_and_pem_and_nothing_else() -> None:
    made = crl()
    der_ = made.public_bytes(Encoding.DER)
    assert read_crl(der_) == read_crl(made.public_bytes(Encoding.PEM)) == made
    for wrong in (b"", b"-----BEGIN X509 CRL-----", der_[:-1], der_[:40] + b"\xff" + der_[41:]):
        with pytest.raises(BodyMalformed):
            read_crl(wrong)
