"""CRLs: number, key identifier, reasons, read back by another library."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from est import chains, der, profiles, revocation
from est.errors import CertificateNotAsShaped, ShapeNotPossible
from est.signer import KeySigner
from tests.est.pki import campus
from tests.support import NOW, examples, key

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


def test_a_list_of_many_megabytes_is_signed_like_a_small_one() -> None:
    """Beyond a megabyte the digest is made first; another library sees no difference."""
    write = revocation.EntryWriter().write
    serials = [at.to_bytes(2, "big").lstrip(b"\x00") for at in range(1, 40_000)]
    entries = b"".join(write(serial, 1_767_000_000, "superseded") for serial in serials)
    ca = campus().ca
    tbs = profiles.crl_to_be_signed(
        ca.subject,
        issuer_key=key("campus ca").public_key(),
        issuer_key_identifier=chains.ski_of(ca) or b"",
        number=5,
        this_update=NOW,
        next_update=NOW + WEEK,
        entries=entries,
    )
    assert len(tbs) > 1_048_576
    signature = KeySigner(key("campus ca")).sign(tbs)
    found = x509.load_der_x509_crl(profiles.assemble(tbs, signature, key("campus ca").public_key()))
    assert found.is_signature_valid(key("campus ca").public_key())
    assert len(found) == 39_999
    with pytest.raises(CertificateNotAsShaped):
        profiles.assemble(tbs[:-1] + b"\x01", signature, key("campus ca").public_key())


@examples(200)
@given(
    serial=st.integers(1, (1 << 159) - 1),
    at=st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)),
    reason=st.sampled_from(sorted(revocation.REASONS)),
)
def test_an_entry_is_what_another_library_reads(serial: int, at: datetime, reason: str) -> None:
    at = at.replace(microsecond=0, tzinfo=UTC)
    [entry] = list(crl(profiles.Revoked(serial, at, reason)))
    assert (entry.serial_number, entry.revocation_date_utc) == (serial, at)


@pytest.mark.parametrize("serial", [b"", b"\x00", b"\x00\x00", b"\x11" * 22, b"\xff" * 21])
def test_serials_that_cannot_be_are_refused(serial: bytes) -> None:
    with pytest.raises(ShapeNotPossible):
        revocation.EntryWriter().write(serial, 0, "unspecified")
