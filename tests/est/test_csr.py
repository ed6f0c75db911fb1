"""Certification requests: proof of possession first, key policy, exact names, channel binding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from est import csr, der, keys, profiles
from est.errors import BodyMalformed, CsrMalformed, EstError, KeyNotAccepted, ProofOfPossessionFailed
from est.signer import KeySigner
from tests.support import key

NAME = profiles.name("proxy 1", "campus")
SAN = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://campus.example/proxy/1")])


def foreign(
    private: object = None,
    digest: hashes.HashAlgorithm | None = hashes.SHA256(),
    *,
    san: x509.SubjectAlternativeName | None = None,
) -> bytes:
    """A request made by cryptography's builder."""
    builder = x509.CertificateSigningRequestBuilder(NAME)
    if san is not None:
        builder = builder.add_extension(san, False)
    request = builder.sign(private or key("csr"), digest)  # type: ignore[arg-type]
    return request.public_bytes(Encoding.DER)


def hand_made(
    *,
    attributes: bytes = b"",
    version: int = 0,
    algorithm: str = "1.2.840.10045.4.3.2",
    subject: bytes = NAME.public_bytes(),
) -> bytes:
    """A correctly signed request with these raw attributes."""
    info = der.sequence(
        der.integer(version),
        subject,
        key("csr").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der.tlv(0xA0, attributes),
    )
    signature = KeySigner(key("csr")).sign(info)
    return der.sequence(info, der.sequence(der.oid(algorithm)), der.tlv(der.BIT_STRING, b"\0" + signature))


def attribute(kind: str, *values: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.tlv(der.SET, b"".join(values)))


@pytest.mark.req("E-70")
def test_a_request_is_read_after_its_possession_was_proved() -> None:
    request = csr.read(foreign(san=SAN))
    assert request.subject == NAME
    assert request.subject_der == NAME.public_bytes()
    assert request.san == SAN
    assert request.san_der == SAN.public_bytes()
    assert request.challenge_password is None
    assert (
        request.key_sha256
        == hashlib.sha256(
            key("csr").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).digest()
    )


@pytest.mark.req("E-70", "E-112")
def test_what_we_build_another_library_reads() -> None:
    made = csr.build(
        subject=NAME,
        key=key("csr"),
        san=SAN,
        challenge_password=b"abc",
        extensions=[x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.2")])],
        attributes={"1.2.840.113549.1.9.16.2.58": [der.tlv(der.UTF8_STRING, b"x")]},
    )
    seen = x509.load_der_x509_csr(made)
    assert seen.is_signature_valid
    assert seen.subject == NAME
    assert seen.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == SAN
    assert seen.attributes.get_attribute_for_oid(x509.ObjectIdentifier(csr.CHALLENGE_PASSWORD)).value == b"abc"
    request = csr.read(made)
    assert request.challenge_password == b"abc"
    assert request.attributes["1.2.840.113549.1.9.16.2.58"] == (b"\x0c\x01x",)


def test_a_request_can_be_signed_by_any_signer_and_with_p384() -> None:
    private = ec.generate_private_key(ec.SECP384R1())
    assert isinstance(csr.read(csr.build(subject=NAME, key=KeySigner(private))).public_key.curve, ec.SECP384R1)  # type: ignore[union-attr]
    assert csr.read(csr.build(subject=x509.Name([]), key=private)).subject_der == b"\x30\x00"


@pytest.mark.req("E-70")
def test_a_request_not_signed_by_its_own_key_is_refused() -> None:
    made = foreign()
    own = key("csr").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    other = key("thief").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for damaged in (made.replace(own, other), made.replace(b"proxy 1", b"proxy 2"), made[:-1] + bytes([made[-1] ^ 1])):
        with pytest.raises(ProofOfPossessionFailed):
            csr.read(damaged)


@pytest.mark.req("E-204")
@pytest.mark.parametrize(
    "private",
    [
        pytest.param(rsa.generate_private_key(65537, 1024), id="RSA-1024"),
        pytest.param(rsa.generate_private_key(3, 2048), id="RSA with exponent 3"),
        pytest.param(ec.generate_private_key(ec.SECP521R1()), id="P-521"),
        pytest.param(ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
    ],
)
def test_keys_outside_the_policy_are_refused(private: object) -> None:
    digest = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    with pytest.raises(KeyNotAccepted):
        csr.read(foreign(private, digest))


@pytest.mark.req("E-204")
def test_keys_inside_the_policy_are_accepted() -> None:
    for private in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        assert csr.read(foreign(private)).public_key == private.public_key()


def test_sha1_does_not_prove_possession() -> None:
    with pytest.raises((KeyNotAccepted, ProofOfPossessionFailed)):
        csr.read(hand_made(algorithm="1.2.840.10045.4.1"))


@pytest.mark.req("E-200", "E-140")
@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param(attribute(csr.CHALLENGE_PASSWORD, b"\x0c\x01a") * 2, id="attribute twice"),
        pytest.param(attribute(csr.CHALLENGE_PASSWORD), id="challengePassword without value"),
        pytest.param(attribute(csr.CHALLENGE_PASSWORD, b"\x0c\x01a", b"\x0c\x01b"), id="challengePassword twice"),
        pytest.param(attribute(csr.CHALLENGE_PASSWORD, b"\x02\x01\x01"), id="challengePassword a number"),
        pytest.param(
            attribute(csr.CHALLENGE_PASSWORD, der.tlv(der.UTF8_STRING, b"a" * 256)), id="challengePassword too long"
        ),
        pytest.param(b"\x05\x00", id="attribute not a SEQUENCE"),
        pytest.param(attribute(csr.EXTENSION_REQUEST, b"\x05\x00"), id="extension request not a SEQUENCE"),
        pytest.param(
            attribute(csr.EXTENSION_REQUEST, der.sequence(der.sequence(der.oid("2.5.29.17"), b"\x04\x02\x30\x00"))),
            id="subjectAltName empty",
        ),
        pytest.param(
            attribute(
                csr.EXTENSION_REQUEST,
                der.sequence(
                    *(
                        der.sequence(der.oid("2.5.29.17"), der.tlv(der.OCTET_STRING, SAN.public_bytes()))
                        for _ in range(2)
                    )
                ),
            ),
            id="subjectAltName twice",
        ),
    ],
)
def test_attributes_that_cannot_be_meant_are_refused(attributes: bytes) -> None:
    with pytest.raises(CsrMalformed):
        csr.read(hand_made(attributes=attributes))


@pytest.mark.req("E-117", "E-200")
def test_requests_that_differ_in_one_part_are_each_read_as_they_are() -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [profiles.name("proxy 1"), profiles.name("proxy 2")]
    sans = [None, SAN, x509.SubjectAlternativeName([x509.DNSName(".".join(["h" * 60] * 4))] * 16)]
    for _ in range(2):
        for one in keys:
            public = one.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for subject in names:
                for san in sans:
                    found = csr.read(csr.build(subject=subject, key=one, san=san))
                    assert found.public_key == one.public_key()
                    assert found.key_sha256 == hashlib.sha256(public).digest()
                    assert (found.subject, found.subject_der) == (subject, subject.public_bytes())
                    assert (found.san, found.san_der) == (san, None if san is None else san.public_bytes())


def test_a_key_on_a_curve_is_one_object_wherever_it_comes_and_a_long_one_is_not_kept() -> None:
    own = keys.spki(key("csr").public_key())
    assert csr.read(foreign()).public_key is csr.read(foreign(san=SAN)).public_key is keys.read_spki(own)
    assert csr.read(foreign(key("csr of another"))).public_key is not keys.read_spki(own)
    long = keys.spki(rsa.generate_private_key(65537, 2048).public_key())
    assert keys.read_spki(long) is not keys.read_spki(long)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_key_that_was_read_is_written_in_the_same_octets(curve: ec.EllipticCurve) -> None:
    public = ec.generate_private_key(curve).public_key()
    octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert keys.is_plain_spki(octets) is (curve.name != "secp521r1")
    assert keys.spki(keys.read_spki(octets)) == octets  # type: ignore[arg-type]
    assert not keys.is_plain_spki(octets[:-1]) and not keys.is_plain_spki(octets + b"\x00")


def test_more_than_16_names_are_refused() -> None:
    names = [x509.DNSName(f"h{n}.example") for n in range(17)]
    assert csr.read(foreign(san=x509.SubjectAlternativeName(names[:16]))).san
    with pytest.raises(CsrMalformed):
        csr.read(foreign(san=x509.SubjectAlternativeName(names)))


@pytest.mark.req("E-200")
def test_der_of_another_kind_is_no_request() -> None:
    for data in (b"\x30\x00", der.sequence(der.integer(1)), hand_made(version=1)):
        with pytest.raises(CsrMalformed):
            csr.read(data)
    with pytest.raises(BodyMalformed):
        csr.read(foreign() + b"\0")


@pytest.mark.req("E-200")
@pytest.mark.parametrize("value", [b"\x03\x02\x00a", b"\x05\x00", b"\x0c\x01\xff", b"\x1e\x01a", b"\x30\x00"])
def test_names_that_the_library_fails_at_in_its_own_ways_are_malformed(value: bytes) -> None:
    subject = der.sequence(der.set_of([der.sequence(der.oid("2.5.4.3"), value)]))
    with pytest.raises(CsrMalformed):
        csr.read(hand_made(subject=subject))


@pytest.mark.req("E-21")
@pytest.mark.parametrize("challenge", [None, b"linked"])
@pytest.mark.parametrize("curve", ["p256", "p384"])
@pytest.mark.slow
def test_a_plain_request_and_one_like_an_earlier_one_are_looked_at_as_strictly_as_any(
    curve: str, challenge: bytes | None
) -> None:
    """Octets changed in two ways, taken away and put in: the same verdict whichever way it is read."""
    keys_ = [ec.generate_private_key(ec.SECP384R1() if curve == "p384" else ec.SECP256R1()) for _ in range(2)]
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://campus.example/proxy/1")])
    first, second = (
        csr.build(subject=profiles.name("proxy 1"), key=one, san=san, challenge_password=challenge) for one in keys_
    )

    def verdict(read: Callable[[bytes], csr.Csr], der_: bytes) -> str:
        try:
            found = read(der_)
        except EstError as refusal:
            return f"{type(refusal).__name__} {refusal.detail}"
        told = found.subject, found.subject_der, found.san, found.san_der, list(found.extensions), found.key_sha256
        return repr((*told, dict(found.attributes), found.challenge_password))

    changed = [second, second + b"\x00", b""]
    for at in range(0, len(second), 1 if curve == "p256" else 5):
        changed += [second[:at] + bytes((second[at] ^ mask,)) + second[at + 1 :] for mask in (0x01, 0x80)]
        changed += [second[:at] + second[at + 1 :], second[:at] + b"\x00" + second[at:]]
    for one in changed:
        csr._kept.clear()
        alone = verdict(csr.read, one)
        csr._kept.clear()
        csr.read(first)
        assert verdict(csr.read, one) == alone == verdict(csr._read_any, one)

    def is_any(der_: bytes) -> bool:
        outline = csr._plain_outline(der_)
        return outline is None or not (csr._read_plain(outline) or (outline.subject, outline.attributes) in csr._kept)

    csr._kept.clear()
    assert is_any(second) is (challenge is not None)
    csr.read(first)
    assert not is_any(second)
    assert is_any(second + b"\x00")
