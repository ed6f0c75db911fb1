"""The shapes: exactly these extensions, exactly the bytes that were checked, nothing that must not be."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from est import chains, profiles, shapes
from est.errors import CertificateNotAsShaped, KeyNotAccepted, ShapeNotPossible
from est.signer import KeySigner
from tests.est.pki import DAY, YEAR, campus, sign, terms
from tests.support import NOW, key

URI = "spiffe://campus.example/agent/0b6f0c1e-6a1e-4a8e-9a63-1c0a4c0f2a11"
NAME = profiles.name("x")
PUBLIC = key("subject").public_key()
DUAL = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.2026.1.1"), b"\x30\x00"), False)
OWNER = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.2026.1.2"), b"\x16\x01a"), False)
BC, KU, EKU, SAN, SKI, AKI = (
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
)
CRL, AIA = ExtensionOID.CRL_DISTRIBUTION_POINTS, ExtensionOID.AUTHORITY_INFORMATION_ACCESS
SERVER, CLIENT, RA = chains.SERVER_AUTH, chains.CLIENT_AUTH, chains.CMC_RA


def under_ca() -> profiles.Terms:
    return terms(campus().ca)._replace(
        crl_url="http://pki.example/crl/devices.crl",
        issuer_url="http://pki.example/ca",
        ocsp_url="http://pki.example/ocsp",
    )


END_ENTITIES = {
    "registrar": (
        profiles.registrar(
            under_ca(), NAME, PUBLIC, dns_names=["registrar.example"], addresses=[ip_address("192.0.2.1")]
        ),
        {SERVER, CLIENT, RA},
        [x509.DNSName("registrar.example"), x509.IPAddress(ip_address("192.0.2.1"))],
    ),
    "radius server": (
        profiles.radius_server(under_ca(), NAME, PUBLIC, dns_names=["radius.example"]),
        {SERVER},
        [x509.DNSName("radius.example")],
    ),
    "https server": (
        profiles.https_server(under_ca(), NAME, PUBLIC, dns_names=["localhost"], addresses=[ip_address("::1")]),
        {SERVER},
        [x509.DNSName("localhost"), x509.IPAddress(ip_address("::1"))],
    ),
    "ldevid": (
        profiles.ldevid(under_ca(), NAME, PUBLIC, identifier=URI),
        {CLIENT},
        [x509.UniformResourceIdentifier(URI)],
    ),
    "agent": (
        profiles.agent(under_ca(), NAME, PUBLIC, identifier=URI, extra_extensions=[DUAL, OWNER]),
        {CLIENT, SERVER},
        [x509.UniformResourceIdentifier(URI)],
    ),
    "infrastructure client": (
        profiles.infrastructure_client(under_ca(), NAME, PUBLIC, identifier=URI),
        {CLIENT},
        [x509.UniformResourceIdentifier(URI)],
    ),
    "registration authority": (
        profiles.registration_authority(under_ca(), NAME, PUBLIC, identifier=URI),
        {CLIENT, RA},
        [x509.UniformResourceIdentifier(URI)],
    ),
}


@pytest.mark.req("E-36", "E-57", "E-205", "E-224", "B-139", "B-140")
@pytest.mark.parametrize("kind", END_ENTITIES)
def test_an_end_entity_has_exactly_its_extensions(kind: str) -> None:
    shape, purposes, names = END_ENTITIES[kind]
    certificate = sign(shape, key("campus ca"))
    found = {one.oid: one for one in certificate.extensions}
    wanted = {BC: True, KU: True, EKU: False, SAN: False, SKI: False, AKI: False, CRL: False, AIA: False}
    if kind == "agent":
        del wanted[SKI]
        wanted |= {DUAL[0].oid: False, OWNER[0].oid: False}
    assert {oid: one.critical for oid, one in found.items()} == wanted
    assert found[BC].value == x509.BasicConstraints(ca=False, path_length=None)
    usage = found[KU].value
    assert isinstance(usage, x509.KeyUsage)
    assert usage.digital_signature
    assert not any((usage.key_cert_sign, usage.crl_sign, usage.key_encipherment, usage.key_agreement))
    assert {one.dotted_string for one in found[EKU].value} == purposes  # type: ignore[attr-defined]
    assert list(found[SAN].value) == names  # type: ignore[call-overload]
    assert chains.aki_of(certificate) == chains.ski_of(campus().ca)
    policy = chains.EndEntityPolicy(all_eku=frozenset(purposes))
    chains.check(certificate, [campus().ca], chains.TrustAnchors([campus().root]), at=NOW, policy=policy)


@pytest.mark.req("B-141")
def test_only_the_registrar_gets_cmcra_and_it_has_a_key_identifier() -> None:
    for kind, (shape, purposes, _) in END_ENTITIES.items():
        certificate = sign(shape, key("campus ca"))
        assert (RA in purposes) is (kind in ("registrar", "registration authority"))
        if kind == "registrar":
            assert chains.ski_of(certificate)


def test_addresses_of_crl_issuer_and_ocsp_stand_where_readers_look() -> None:
    certificate = sign(END_ENTITIES["ldevid"][0], key("campus ca"))
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [one.value for one in point.full_name] == ["http://pki.example/crl/devices.crl"]
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert [(one.access_method, one.access_location.value) for one in access] == [
        (AuthorityInformationAccessOID.OCSP, "http://pki.example/ocsp"),
        (AuthorityInformationAccessOID.CA_ISSUERS, "http://pki.example/ca"),
    ]


def test_an_ocsp_signer_may_sign_answers_and_nothing_else() -> None:
    certificate = sign(profiles.ocsp_signer(under_ca(), NAME, PUBLIC), key("campus ca"))
    found = {one.oid: one for one in certificate.extensions}
    assert {oid: one.critical for oid, one in found.items()} == {
        BC: True, KU: True, EKU: False, SKI: False, AKI: False, CRL: False, AIA: False, x509.OCSPNoCheck.oid: False
    }  # fmt: skip
    assert [one.dotted_string for one in found[EKU].value] == ["1.3.6.1.5.5.7.3.9"]  # type: ignore[attr-defined]
    certificate.verify_directly_issued_by(campus().ca)


def test_cas_have_their_path_length_and_nothing_for_end_entities() -> None:
    for certificate, length in ((campus().root, 1), (campus().ca, 0)):
        found = {one.oid: one for one in certificate.extensions}
        assert found[BC].value == x509.BasicConstraints(ca=True, path_length=length)
        usage = found[KU].value
        assert isinstance(usage, x509.KeyUsage)
        assert usage.key_cert_sign and usage.crl_sign and not usage.digital_signature
        assert found[BC].critical and found[KU].critical
        assert EKU not in found and SAN not in found
    assert chains.is_self_signed(campus().root)
    assert chains.aki_of(campus().ca) == chains.ski_of(campus().root)


def test_what_is_signed_is_byte_for_byte_what_another_builder_would_sign() -> None:
    for shape, _, _ in END_ENTITIES.values():
        builder = x509.CertificateBuilder(
            shape.issuer,
            shape.subject,
            shape.public_key,
            shape.serial,
            shape.not_before.replace(tzinfo=None),
            shape.not_after.replace(tzinfo=None),
        )
        for one in shape.extensions:
            builder = builder.add_extension(one.value, one.critical)
        other = builder.sign(key("campus ca"), hashes.SHA256())
        tbs = profiles.to_be_signed(shape, issuer_key=key("campus ca").public_key())
        assert tbs == other.tbs_certificate_bytes
        assert sign(shape, key("campus ca")).tbs_certificate_bytes == tbs


def test_an_issuer_on_p384_signs_with_sha384() -> None:
    private = ec.generate_private_key(ec.SECP384R1())
    shape = profiles.root_ca(
        profiles.name("root"), private.public_key(), serial=1, not_before=NOW, not_after=NOW + YEAR
    )
    certificate = sign(shape, private)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA384)
    assert chains.is_self_signed(certificate)


def test_dates_from_2050_on_and_fractions_of_seconds_are_encoded_as_they_must_be() -> None:
    shape = replace(
        END_ENTITIES["ldevid"][0],
        not_before=NOW + timedelta(microseconds=999999),
        not_after=NOW.replace(year=2060),
    )
    certificate = sign(shape, key("campus ca"))
    assert certificate.not_valid_before_utc == NOW
    assert certificate.not_valid_after_utc.year == 2060


@pytest.mark.req("E-205")
def test_no_certificate_outlives_its_issuer() -> None:
    ca = campus().ca
    for not_before, not_after in (
        (NOW, ca.not_valid_after_utc + timedelta(seconds=1)),
        (ca.not_valid_before_utc - timedelta(seconds=1), NOW),
    ):
        with pytest.raises(ShapeNotPossible):
            profiles.Terms.under(ca, serial=1, not_before=not_before, not_after=not_after)


@pytest.mark.req("E-205")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"serial": 0}, id="serial 0"),
        pytest.param({"serial": -1}, id="negative serial"),
        pytest.param({"serial": 2**159}, id="serial of 160 bits"),
        pytest.param({"not_after": NOW - 2 * DAY}, id="dates out of order"),
        pytest.param({"not_before": NOW.replace(tzinfo=None)}, id="naive date"),
        pytest.param({"extensions": (profiles.Extension(*DUAL),) * 2}, id="extension twice"),
    ],
)
def test_shapes_that_must_not_be_are_refused(change: dict[str, object]) -> None:
    shape = replace(END_ENTITIES["ldevid"][0], **change)  # type: ignore[arg-type]
    with pytest.raises((ShapeNotPossible, CertificateNotAsShaped)):
        profiles.to_be_signed(shape, issuer_key=key("campus ca").public_key())


@pytest.mark.req("E-204")
def test_weak_keys_get_no_certificate() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key()
    shape = profiles.ldevid(terms(campus().ca), NAME, weak, identifier=URI)
    with pytest.raises(KeyNotAccepted):
        profiles.to_be_signed(shape, issuer_key=key("campus ca").public_key())


@pytest.mark.req("E-205")
def test_an_extension_that_was_read_back_is_settled_and_written_the_same_again() -> None:
    value = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI + "/once")])
    shape = replace(END_ENTITIES["ldevid"][0], extensions=(profiles.Extension(value, False),))
    (names,) = shape.extensions
    assert not names.settled
    first = profiles.to_be_signed(shape, issuer_key=key("campus ca").public_key())
    assert names.settled == names.encode() == profiles.Extension(value, False).encode()
    assert profiles.to_be_signed(shape, issuer_key=key("campus ca").public_key()) == first


@pytest.mark.req("E-205")
def test_our_own_reader_knows_the_extensions_that_differ_in_each_certificate_from_others() -> None:
    uri, private = x509.UniformResourceIdentifier, x509.UnrecognizedExtension
    san = x509.SubjectAlternativeName
    values: list[x509.ExtensionType] = [
        san([uri(URI)]), san([uri(URI), uri(URI)]), san([uri(URI + "x" * 200)]), san([]), san([x509.DNSName("a")]),
        private(DUAL[0].oid, b"\x05\x00"), private(DUAL[0].oid, b"\x05\x01\x00"), private(DUAL[0].oid, b"a" * 300),
        private(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), x509.SubjectKeyIdentifier(b"abc"),
    ]  # fmt: skip
    ways = [profiles.Extension(value, critical) for value in values for critical in (False, True)]
    plain = [one for one in ways if shapes._is_plainly(one, one.encode())]
    assert len(plain) == 2 * 6  # all but the host name, the key identifier, two names and no name at all
    for one in plain:
        for other in ways:
            assert shapes._is_plainly(one, other.encode()) is (one is other)
        der = one.encode()
        for broken in (der[:-1], der + b"\x00", b"", b"\x31" + der[1:], der[:-1] + bytes((der[-1] ^ 1,))):
            assert not shapes._is_plainly(one, broken)


@pytest.mark.req("E-205")
@pytest.mark.parametrize(
    ("oid", "octets"),
    [
        (ExtensionOID.BASIC_CONSTRAINTS, b"\x30\x03\x01\x01\xff"),
        (ExtensionOID.KEY_USAGE, b"rubbish"),
        (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x00"),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER, b"\x04\x01a"),
    ],
)
def test_an_extension_that_the_library_knows_is_not_signed_as_a_private_one(
    oid: x509.ObjectIdentifier, octets: bytes
) -> None:
    good = END_ENTITIES["ldevid"][0]
    shape = replace(good, extensions=(profiles.Extension(x509.UnrecognizedExtension(oid, octets), False),))
    with pytest.raises((ShapeNotPossible, CertificateNotAsShaped)):
        profiles.to_be_signed(shape, issuer_key=key("campus ca").public_key())


@pytest.mark.req("E-205")
@pytest.mark.parametrize("der", [NAME.public_bytes(), b"\x30\x00", b"\x30\x01"])
def test_a_name_or_extension_that_reads_back_as_another_one_is_not_signed(der: bytes) -> None:
    class OddName(x509.Name):
        def public_bytes(self, backend: object = None) -> bytes:
            return der

    class OddNames(x509.SubjectAlternativeName):
        def public_bytes(self) -> bytes:
            return x509.SubjectAlternativeName([x509.DNSName("other.example")]).public_bytes()

    good = END_ENTITIES["ldevid"][0]
    names = profiles.Extension(OddNames([x509.UniformResourceIdentifier(URI)]), False)
    for change in ({"subject": OddName(profiles.name("another"))}, {"extensions": (names,)}):
        for _ in range(2):
            with pytest.raises((ShapeNotPossible, CertificateNotAsShaped)):
                profiles.to_be_signed(replace(good, **change), issuer_key=key("campus ca").public_key())  # type: ignore[arg-type]
    assert not names.settled


def test_parts_that_cannot_be_encoded_are_refused() -> None:
    with pytest.raises(ShapeNotPossible):
        profiles.ldevid(terms(campus().ca), NAME, PUBLIC, identifier="spiffe://campus.example/proxy/é")
    with pytest.raises(ShapeNotPossible):
        profiles.https_server(terms(campus().ca), NAME, PUBLIC, dns_names=["é.example"])
    with pytest.raises(ShapeNotPossible):
        profiles.https_server(terms(campus().ca), NAME, PUBLIC, dns_names=[])
    with pytest.raises(ShapeNotPossible):
        profiles.name("x" * 65)
    with pytest.raises(ShapeNotPossible):
        profiles.agent(terms(campus().ca), NAME, PUBLIC, identifier=URI, extra_extensions=[(DUAL[0], True)])
    with pytest.raises(ShapeNotPossible):
        shape = END_ENTITIES["ldevid"][0]
        profiles.to_be_signed(shape, issuer_key=ec.generate_private_key(ec.SECP521R1()).public_key())


def test_a_foreign_signature_is_not_assembled() -> None:
    shape = END_ENTITIES["ldevid"][0]
    tbs = profiles.to_be_signed(shape, issuer_key=key("campus ca").public_key())
    for signature in (KeySigner(key("thief")).sign(tbs), KeySigner(key("campus ca")).sign(tbs + b"\0"), b""):
        with pytest.raises(CertificateNotAsShaped):
            profiles.assemble(tbs, signature, key("campus ca").public_key())


@pytest.mark.parametrize(
    "change",
    [
        {"subject": profiles.name("y")},
        {"issuer": profiles.name("y")},
        {"serial": 78},
        {"not_before": NOW},
        {"not_after": NOW},
        {"public_key": key("thief").public_key()},
        {"extensions": ()},
        {"extensions": tuple(reversed(END_ENTITIES["ldevid"][0].extensions))},
        {
            "extensions": tuple(
                profiles.Extension(one.value, not one.critical) for one in END_ENTITIES["ldevid"][0].extensions
            )
        },
    ],
    ids=lambda change: next(iter(change)),
)
def test_check_sees_every_difference_from_the_shape(change: dict[str, object]) -> None:
    shape = END_ENTITIES["ldevid"][0]
    certificate = sign(shape, key("campus ca"))
    profiles.check(certificate, shape)
    with pytest.raises(CertificateNotAsShaped):
        profiles.check(certificate, replace(shape, **change))  # type: ignore[arg-type]


@pytest.mark.req("W-13")
def test_an_agents_certificate_without_private_extensions_is_small() -> None:
    shape = profiles.agent(terms(campus().ca), profiles.name(URI[-36:]), PUBLIC, identifier=URI)
    assert len(sign(shape, key("campus ca")).public_bytes(Encoding.DER)) < 600


def test_names_can_carry_a_device_serial_number() -> None:
    assert profiles.name("a", "b", serial_number="c").rfc4514_string() == "2.5.4.5=c,CN=a,O=b"
