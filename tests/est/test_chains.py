"""Paths, end-entity rules and pins: what may stand where, when, under whom."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from est import chains, cms, profiles
from est.errors import (
    CertificateMalformed,
    CertificateOutsideValidity,
    CertificatePurposeWrong,
    ChainNotTrusted,
    ChainTooLong,
    KeyNotAccepted,
    PinMismatch,
)
from tests.est.pki import CA, DAY, YEAR, campus, odd, sign, terms
from tests.support import NOW, key

RFC = Path(__file__).parents[1] / "vectors" / "rfc8995"
THEN = datetime(2021, 5, 1, tzinfo=UTC)


def pem(name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((RFC / f"{name}.cert.pem").read_bytes())


def usage(*set_: str) -> tuple[x509.ExtensionType, bool]:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in set_ for name in names}), True


def purposes(*dotted: str) -> tuple[x509.ExtensionType, bool]:
    return x509.ExtendedKeyUsage([x509.ObjectIdentifier(one) for one in dotted]), False


def x509_extension(dotted: str, value: bytes) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), value), False


def anchors(*certificates: x509.Certificate) -> chains.TrustAnchors:
    return chains.TrustAnchors(certificates)


# A manufacturer as they are: no AKI, no key usage on the root, an intermediate.
MAKER = odd("maker", key("maker"), key("maker"), extensions=[CA], not_before=NOW - 3 * YEAR, not_after=NOW + YEAR)
FACTORY = odd("factory", key("factory"), key("maker"), issuer=MAKER, extensions=[CA], not_before=NOW - 2 * YEAR)


def idevid(
    *extensions: tuple[x509.ExtensionType, bool],
    not_before: datetime = NOW - YEAR,
    not_after: datetime = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    serial: int = 5,
) -> x509.Certificate:
    return odd(
        "device",
        key("device"),
        key("factory"),
        issuer=FACTORY,
        extensions=extensions,
        not_before=not_before,
        not_after=not_after,
        serial=serial,
    )


@pytest.mark.req("B-159", "B-160", "B-412")
@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param((), id="nothing at all, until 9999"),
        pytest.param((usage("key_agreement"),), id="key agreement only"),
        pytest.param((usage("digital_signature"), purposes(chains.CLIENT_AUTH)), id="clientAuth"),
        pytest.param((purposes(chains.SERVER_AUTH),), id="another purpose"),
        pytest.param(((x509.BasicConstraints(False, None), True),), id="cA false"),
        pytest.param(
            ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.32"), b"\x16\x01a"), False),),
            id="MASA URI",
        ),
    ],
)
def test_idevids_as_they_are_have_a_path(extensions: tuple[tuple[x509.ExtensionType, bool], ...]) -> None:
    device = idevid(*extensions)
    path = chains.check(device, [FACTORY], anchors(MAKER), at=NOW, policy=chains.IDEVID)
    assert path == (device, FACTORY, MAKER)
    assert chains.check(device, [], anchors(FACTORY), at=NOW, policy=chains.IDEVID) == (device, FACTORY)
    assert chains.check(device, [MAKER, FACTORY], anchors(MAKER), at=NOW, policy=chains.IDEVID) == path


def test_a_single_device_may_be_its_own_anchor() -> None:
    device = odd("alone", key("alone"), key("alone"))
    assert chains.check(device, [], anchors(device), at=NOW, policy=chains.IDEVID) == (device,)


@pytest.mark.req("B-160", "B-412")
def test_the_rfc_example_chains_check_at_their_own_time() -> None:
    vendor, owner = pem("vendor-ca"), pem("owner-ca")
    for name, anchor, policy in (
        ("pledge-idevid", vendor, chains.IDEVID),
        ("masa", vendor, chains.SIGNER),
        ("registrar", owner, chains.REGISTRAR),
    ):
        assert chains.check(pem(name), [], anchors(anchor), at=THEN, policy=policy)[-1] == anchor
    for name in ("pledge-voucher-request", "registrar-voucher-request", "voucher"):
        message = cms.unseal((RFC / f"{name}.cms").read_bytes(), content_types=[cms.ID_DATA])
        anchor = owner if name.startswith("registrar") else vendor
        chains.check(message.signer, message.certificates[1:], anchors(anchor), at=THEN, policy=chains.SIGNER)


@pytest.mark.parametrize(
    ("leaf", "between", "store"),
    [
        pytest.param(idevid(), [], [MAKER], id="intermediate missing"),
        pytest.param(idevid(), [FACTORY], [campus().root], id="foreign anchor"),
        pytest.param(idevid(), [FACTORY], [], id="no anchors"),
        pytest.param(odd("alone", key("alone"), key("alone")), [], [MAKER], id="self-signed stranger"),
        pytest.param(
            odd("device", key("device"), key("thief"), issuer=FACTORY), [FACTORY], [MAKER], id="right names, other key"
        ),
        pytest.param(
            odd("x", key("x"), key("device"), issuer=idevid()), [idevid(), FACTORY], [MAKER], id="end entity as issuer"
        ),
        pytest.param(
            idevid((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)),
            [FACTORY],
            [MAKER],
            id="unknown critical extension",
        ),
        pytest.param(
            odd("device", key("device"), key("campus ca"), issuer=campus().ca), [campus().ca], [MAKER], id="other tree"
        ),
    ],
)
def test_without_a_path_there_is_no_trust(
    leaf: x509.Certificate, between: list[x509.Certificate], store: list[x509.Certificate]
) -> None:
    with pytest.raises(ChainNotTrusted):
        chains.check(leaf, between, anchors(*store), at=NOW, policy=chains.IDEVID)
    with pytest.raises(ChainNotTrusted):
        chains.check(leaf, between, anchors(*store), at=NOW, policy=chains.IDEVID, ignore_expiry=True)


@pytest.mark.req("E-200")
@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param((purposes(),), id="empty extended key usage"),
        pytest.param((x509_extension("2.5.29.17", b"\x30\x05\x00"),), id="subjectAltName cut off"),
        pytest.param((x509_extension("2.5.29.19", b"\x30\x80\x00\x00"),), id="basicConstraints in BER"),
    ],
)
def test_extensions_that_cannot_be_read_are_refused(
    extensions: tuple[tuple[x509.ExtensionType, bool], ...],
) -> None:
    with pytest.raises(CertificateMalformed):
        chains.check(idevid(*extensions), [FACTORY], anchors(MAKER), at=NOW, policy=chains.IDEVID)


@pytest.mark.parametrize("place", ["intermediate", "anchor"])
def test_an_issuer_whose_key_usage_has_no_certificate_signing_ends_the_path(place: str) -> None:
    """RFC 5280, section 6.1.4 (n); cA alone is not enough."""
    bits = {one: usage("crl_sign") if one == place else usage("key_cert_sign") for one in ("intermediate", "anchor")}
    top = odd("top", key("maker"), key("maker"), extensions=[CA, bits["anchor"]])
    between = odd("between", key("factory"), key("maker"), issuer=top, extensions=[CA, bits["intermediate"]])
    device = odd("device", key("device"), key("factory"), issuer=between)
    with pytest.raises(CertificatePurposeWrong):
        chains.check(device, [between], anchors(top), at=NOW, policy=chains.IDEVID)


def test_path_length_is_kept_also_under_an_anchor_that_is_a_sub_ca() -> None:
    world = campus()
    below = sign(
        profiles.issuing_ca(terms(world.ca), profiles.name("too deep"), key("deep").public_key()), key("campus ca")
    )
    leaf = sign(
        profiles.ldevid(terms(below), profiles.name("x"), key("x").public_key(), identifier="spiffe://c/proxy/1"),
        key("deep"),
    )
    for anchor in (world.root, world.ca):
        with pytest.raises(ChainNotTrusted):
            chains.check(leaf, [below, world.ca], anchors(anchor), at=NOW, policy=chains.CLIENT)


@pytest.mark.req("B-149")
@pytest.mark.parametrize(
    ("at", "why"),
    [
        (NOW + 2 * YEAR, "root and intermediate expired"),
        (NOW - 10 * YEAR, "nothing valid yet"),
        (NOW + 60 * DAY, "intermediate expired"),
    ],
)
def test_outside_its_dates_a_chain_is_refused_unless_expiry_is_ignored(at: datetime, why: str) -> None:
    device = idevid()
    with pytest.raises(CertificateOutsideValidity):
        chains.check(device, [FACTORY], anchors(MAKER), at=at, policy=chains.IDEVID)
    path = chains.check(device, [FACTORY], anchors(MAKER), at=at, policy=chains.IDEVID, ignore_expiry=True)
    assert path == (device, FACTORY, MAKER)


@pytest.mark.req("B-149")
def test_the_same_anchors_are_asked_about_one_moment_after_another() -> None:
    ends, trusted, zone = NOW + DAY, anchors(MAKER), timezone(timedelta(hours=14))
    device = idevid(not_after=ends)
    for at, is_valid in (
        (NOW, True),
        (ends + timedelta(seconds=1), False),
        (ends + timedelta(microseconds=999_999), True),  # dates in certificates are whole seconds
        (ends.astimezone(zone), True),
        ((ends + timedelta(seconds=1)).astimezone(zone), False),
        (NOW, True),
    ):
        with contextlib.nullcontext() if is_valid else pytest.raises(CertificateOutsideValidity):
            chains.check(device, [FACTORY], trusted, at=at, policy=chains.IDEVID)


@pytest.mark.req("B-149")
def test_an_expired_device_is_told_apart_from_a_stranger() -> None:
    device = idevid(not_after=NOW - DAY)
    with pytest.raises(CertificateOutsideValidity):
        chains.check(device, [FACTORY], anchors(MAKER), at=NOW, policy=chains.IDEVID)
    with pytest.raises(ChainNotTrusted):
        chains.check(device, [FACTORY], anchors(campus().root), at=NOW, policy=chains.IDEVID)


@pytest.mark.parametrize(
    ("extensions", "policy"),
    [
        pytest.param((CA,), chains.IDEVID, id="CA flag"),
        pytest.param((usage("digital_signature", "key_cert_sign"),), chains.IDEVID, id="keyCertSign"),
        pytest.param((usage("key_agreement"),), chains.SIGNER, id="no digitalSignature"),
        pytest.param((), chains.CLIENT, id="extended key usage missing"),
        pytest.param((purposes(chains.SERVER_AUTH),), chains.CLIENT, id="serverAuth is no clientAuth"),
        pytest.param((purposes(chains.ANY_PURPOSE),), chains.CLIENT, id="anyExtendedKeyUsage is no clientAuth"),
        pytest.param((purposes(chains.SERVER_AUTH, chains.CLIENT_AUTH),), chains.REGISTRAR, id="no cmcRA"),
        pytest.param(
            (purposes(chains.SERVER_AUTH),),
            chains.EndEntityPolicy(all_eku=frozenset({chains.SERVER_AUTH, chains.CMC_RA})),
            id="one of two",
        ),
    ],
)
def test_a_certificate_for_another_purpose_is_refused(
    extensions: tuple[tuple[x509.ExtensionType, bool], ...], policy: chains.EndEntityPolicy
) -> None:
    with pytest.raises(CertificatePurposeWrong):
        chains.check(idevid(*extensions), [FACTORY], anchors(MAKER), at=NOW, policy=policy)


def test_optional_purposes_may_be_absent_but_not_wrong() -> None:
    policy = chains.EndEntityPolicy(any_eku=frozenset({chains.CLIENT_AUTH}), eku_optional=True)
    chains.check_end_entity(idevid(), policy)
    chains.check_end_entity(idevid(purposes(chains.CLIENT_AUTH)), policy)
    with pytest.raises(CertificatePurposeWrong):
        chains.check_end_entity(idevid(purposes(chains.SERVER_AUTH)), policy)


def test_serial_numbers_have_at_most_20_octets() -> None:
    chains.check_end_entity(idevid(serial=2**159 - 1), chains.IDEVID)
    with pytest.raises(CertificatePurposeWrong):
        chains.check_end_entity(idevid(serial=2**159), chains.IDEVID)


@pytest.mark.req("E-204")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP521R1()), id="P-521"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP192R1()), id="P-192"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
        pytest.param(lambda: rsa.generate_private_key(65537, 1024), id="RSA-1024"),
        pytest.param(lambda: rsa.generate_private_key(3, 2048), id="RSA with exponent 3"),
        pytest.param(ed25519.Ed25519PrivateKey.generate, id="Ed25519"),
        pytest.param(lambda: dsa.generate_private_key(2048), id="DSA"),
    ],
)
def test_weak_and_exotic_keys_are_refused(make: Callable[[], object]) -> None:
    leaf = odd("weak", make(), key("factory"), issuer=FACTORY)  # type: ignore[arg-type]
    with pytest.raises(KeyNotAccepted):
        chains.check(leaf, [FACTORY], anchors(MAKER), at=NOW, policy=chains.IDEVID)


def test_a_weak_issuer_is_refused_although_the_library_takes_it() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    root = odd("weak root", weak, weak, extensions=[CA])
    with pytest.raises(KeyNotAccepted):
        anchors(root)
    between = odd("weak between", weak, key("maker"), issuer=MAKER, extensions=[CA])
    leaf = odd("leaf", key("leaf"), weak, issuer=between)
    with pytest.raises((KeyNotAccepted, ChainNotTrusted)):
        chains.check(leaf, [between], anchors(MAKER), at=NOW, policy=chains.IDEVID)


def test_chains_and_certificates_have_a_size_limit() -> None:
    with pytest.raises(ChainTooLong):
        chains.check(idevid(), [FACTORY] * 7, anchors(MAKER), at=NOW, policy=chains.IDEVID)
    fat = idevid((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), bytes(8200)), False))
    with pytest.raises(CertificateMalformed):
        chains.check(fat, [FACTORY], anchors(MAKER), at=NOW, policy=chains.IDEVID)


def test_an_issuing_ca_alone_can_be_the_anchor_of_its_role() -> None:
    world = campus()
    assert chains.check(world.proxy, [], anchors(world.ca), at=NOW, policy=chains.CLIENT) == (world.proxy, world.ca)
    assert anchors(world.ca).key_identifiers == {chains.ski_of(world.ca)} == {chains.aki_of(world.proxy)}
    assert chains.aki_of(MAKER) is None
    assert chains.ski_of(idevid()) is None


# Pins, by the table of where a pinned certificate may stand.

REGISTRAR = sign(
    profiles.registrar(
        terms(campus().ca), profiles.name("registrar"), key("registrar").public_key(), dns_names=["registrar.example"]
    ),
    key("campus ca"),
)
RENEWED = sign(
    profiles.registrar(
        terms(campus().ca, 78), profiles.name("registrar"), key("registrar").public_key(), dns_names=["r.example"]
    ),
    key("campus ca"),
)
SELF_SIGNED = odd("self-signed registrar", key("self"), key("self"))
SELF_SIGNED_CA = odd("self-signed CA registrar", key("selfca"), key("selfca"), extensions=[CA])
FORGED_CA = odd("campus devices", key("forger"), key("forger"), issuer=campus().root, extensions=[CA])
FORGED = odd("registrar", key("forged registrar"), key("forger"), issuer=FORGED_CA)


@pytest.mark.req("B-327", "B-136", "B-143", "B-148")
@pytest.mark.parametrize("clock", [NOW, None], ids=["clock", "no clock"])
@pytest.mark.parametrize(
    ("chain", "pin"),
    [
        pytest.param([REGISTRAR, campus().ca], campus().root, id="root, chain complete"),
        pytest.param([REGISTRAR, campus().ca, campus().root], campus().root, id="root, root sent too"),
        pytest.param([REGISTRAR, campus().ca], campus().ca, id="sub CA"),
        pytest.param([REGISTRAR], campus().ca, id="sub CA, nothing else sent"),
        pytest.param([REGISTRAR], REGISTRAR, id="end entity"),
        pytest.param([REGISTRAR, campus().ca], REGISTRAR, id="end entity, chain sent"),
        pytest.param([RENEWED], REGISTRAR, id="end entity, renewed with the same key"),
        pytest.param([SELF_SIGNED], SELF_SIGNED, id="self-signed end entity"),
        pytest.param([SELF_SIGNED_CA], SELF_SIGNED_CA, id="self-signed with the CA flag"),
    ],
)
def test_the_pin_may_be_root_sub_ca_or_end_entity(
    chain: list[x509.Certificate], pin: x509.Certificate, clock: datetime | None
) -> None:
    chains.check_pin(chain, pin, at=clock)


@pytest.mark.req("B-327", "T-06", "T-07")
@pytest.mark.parametrize("clock", [NOW, None], ids=["clock", "no clock"])
@pytest.mark.parametrize(
    ("chain", "pin"),
    [
        pytest.param([REGISTRAR], campus().root, id="root, sub CA not sent"),
        pytest.param([REGISTRAR, campus().ca], MAKER, id="other CA"),
        pytest.param([REGISTRAR, campus().ca], campus("second").root, id="other campus"),
        pytest.param([REGISTRAR, campus().ca], SELF_SIGNED, id="other end entity"),
        pytest.param([REGISTRAR, FORGED_CA], campus().root, id="forged sub CA for a true leaf"),
        pytest.param([FORGED, FORGED_CA], campus().root, id="leaf of a forged sub CA"),
        pytest.param([FORGED, FORGED_CA, campus().ca], campus().ca, id="leaf of a forged sub CA, sub CA pinned"),
        pytest.param(
            [odd("x", key("x"), key("registrar"), issuer=REGISTRAR), REGISTRAR, campus().ca],
            REGISTRAR,
            id="pinned end entity as issuer",
        ),
        pytest.param(
            [odd("x", key("x"), key("registrar"), issuer=REGISTRAR), REGISTRAR, campus().ca],
            campus().root,
            id="end entity as issuer under the pinned root",
        ),
        pytest.param(
            [odd("self-signed registrar", key("y"), key("y"))], SELF_SIGNED, id="same names as a self-signed pin"
        ),
        pytest.param([], campus().root, id="no certificate"),
    ],
)
def test_a_chain_that_does_not_end_in_the_pin_is_refused(
    chain: list[x509.Certificate], pin: x509.Certificate, clock: datetime | None
) -> None:
    with pytest.raises(PinMismatch):
        chains.check_pin(chain, pin, at=clock)


@pytest.mark.req("B-148")
@pytest.mark.parametrize("pin", [campus().root, campus().ca, REGISTRAR], ids=["root", "sub CA", "end entity"])
def test_dates_count_only_with_a_trusted_clock(pin: x509.Certificate) -> None:
    chain = [REGISTRAR, campus().ca]
    for at in (NOW + 60 * DAY, NOW - 2 * YEAR):
        with pytest.raises(CertificateOutsideValidity):
            chains.check_pin(chain, pin, at=at)
    chains.check_pin(chain, pin, at=None)


def test_path_length_counts_under_a_pinned_root() -> None:
    below = sign(
        profiles.issuing_ca(terms(campus().ca), profiles.name("too deep"), key("deep").public_key()), key("campus ca")
    )
    leaf = odd("x", key("x"), key("deep"), issuer=below)
    with pytest.raises(PinMismatch):
        chains.check_pin([leaf, below, campus().ca], campus().root, at=NOW)


@pytest.mark.req("B-139", "B-140", "B-327")
def test_the_strict_dialect_asks_the_end_entity_for_serverauth_and_cmcra() -> None:
    strict = chains.EndEntityPolicy(all_eku=frozenset({chains.SERVER_AUTH, chains.CMC_RA}))
    chains.check_pin([REGISTRAR, campus().ca], campus().root, at=NOW, policy=strict)
    with pytest.raises(CertificatePurposeWrong):
        chains.check_pin([campus().proxy, campus().ca], campus().root, at=NOW, policy=strict)
    with pytest.raises(CertificatePurposeWrong):
        chains.check_pin([SELF_SIGNED], SELF_SIGNED, at=NOW, policy=strict)


@pytest.mark.req("B-327", "B-148")
def test_the_rfc_voucher_pins_the_rfc_registrar() -> None:
    registrar, owner = pem("registrar"), pem("owner-ca")
    chains.check_pin([registrar], registrar, at=THEN)
    chains.check_pin([registrar], owner, at=None)
    with pytest.raises(CertificateOutsideValidity):
        chains.check_pin([registrar], owner, at=NOW)
    with pytest.raises(PinMismatch):
        chains.check_pin([registrar], pem("vendor-ca"), at=None)


def test_fingerprints_are_over_the_public_key_alone() -> None:
    assert chains.spki_sha256(REGISTRAR) == chains.spki_sha256(RENEWED)
    assert chains.spki_sha256(REGISTRAR) == chains.spki_sha256(key("registrar").public_key())
    assert chains.is_self_signed(campus().root)
    assert not chains.is_self_signed(campus().ca)
