"""SignedData: the RFC's own examples are read, what we make is read, and every deviation is refused with its reason."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import cms as foreign
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from est import certificates, cms, der
from est.errors import (
    BodyTooLarge,
    CertificateMalformed,
    CmsMalformed,
    CmsNotAccepted,
    CmsSignatureInvalid,
    EstError,
    KeyNotAccepted,
)
from est.signer import KeySigner
from tests.est.pki import campus, damage_each_byte, odd
from tests.support import NOW, key

VECTORS = Path(__file__).parents[1] / "vectors" / "rfc8995"
BOTH = (cms.ID_CT_ANIMA_JSON_VOUCHER, cms.ID_DATA)
CONTENT = b'{"ietf-voucher:voucher":{}}'
EXAMPLES = ("pledge-voucher-request", "registrar-voucher-request", "voucher")
DERIVED = ("pvr", "rvr", "voucher", "voucher-nonceless")


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def sealed(content: bytes = CONTENT, content_type: str = cms.ID_CT_ANIMA_JSON_VOUCHER) -> bytes:
    world = campus()
    return cms.seal(
        content,
        content_type=content_type,
        signer=KeySigner(key("campus proxy")),
        certificate=world.proxy,
        certificates=(world.ca,),
        signing_time=NOW,
    )


def hand_made(
    *,
    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    certificate: x509.Certificate | None = None,
    digest: str = "sha256",
    digest_algorithm: bytes | None = None,
    digests: bytes | None = None,
    signature_algorithm: bytes | None = None,
    content_type: str = cms.ID_DATA,
    signed_type: str | None = None,
    message_digest: bytes | None = None,
    extra_attributes: tuple[bytes, ...] = (),
    sort: bool = True,
    attributes_tag: int | None = 0xA0,
    unsigned: bytes = b"",
    crls: bytes = b"",
    version: int = 1,
    info_version: int = 1,
    sid: bytes | None = None,
    embedded: tuple[bytes, ...] | None = None,
    econtent: bytes | None = None,
    copies: int = 1,
) -> bytes:
    """A SignedData, correctly signed over whatever the arguments say."""
    private = private or key("campus proxy")
    certificate = certificate or campus().proxy
    certificate_der = certificate.public_bytes(Encoding.DER)
    hash_name = {"sha256": hashes.SHA256, "sha384": hashes.SHA384, "sha512": hashes.SHA512, "sha1": hashes.SHA1}[digest]
    digest_oid = {
        "sha256": "2.16.840.1.101.3.4.2.1",
        "sha384": "2.16.840.1.101.3.4.2.2",
        "sha512": "2.16.840.1.101.3.4.2.3",
        "sha1": "1.3.14.3.2.26",
    }[digest]
    digest_algorithm = digest_algorithm or der.sequence(der.oid(digest_oid))
    attributes = [
        der.sequence(der.oid("1.2.840.113549.1.9.3"), der.set_of([der.oid(signed_type or content_type)])),
        der.sequence(
            der.oid("1.2.840.113549.1.9.4"),
            der.set_of([der.tlv(der.OCTET_STRING, message_digest or hashlib.new(digest, CONTENT).digest())]),
        ),
        *extra_attributes,
    ]
    signed = b"".join(sorted(attributes) if sort else sorted(attributes, reverse=True))
    to_sign = der.tlv(der.SET, signed) if attributes_tag is not None else CONTENT
    if isinstance(private, ec.EllipticCurvePrivateKey):
        signature = private.sign(to_sign, ec.ECDSA(hash_name()))
        ecdsa = {"sha256": 2, "sha384": 3, "sha512": 4}.get(digest, 1)
        default = der.sequence(der.oid(f"1.2.840.10045.4.3.{ecdsa}" if digest != "sha1" else "1.2.840.10045.4.1"))
    else:
        signature = private.sign(to_sign, padding.PKCS1v15(), hash_name())
        default = der.sequence(der.oid("1.2.840.113549.1.1.1"), b"\x05\x00")
    sid = sid or der.sequence(certificate.issuer.public_bytes(), der.integer(certificate.serial_number))
    info = der.sequence(
        der.integer(info_version),
        sid,
        digest_algorithm,
        der.tlv(attributes_tag, signed) if attributes_tag is not None else b"",
        signature_algorithm or default,
        der.tlv(der.OCTET_STRING, signature),
        unsigned,
    )
    certificates = (certificate_der,) if embedded is None else embedded
    content = der.tlv(der.OCTET_STRING, CONTENT) if econtent is None else econtent
    return der.sequence(
        der.oid("1.2.840.113549.1.7.2"),
        der.tlv(
            0xA0,
            der.sequence(
                der.integer(version),
                digests if digests is not None else der.tlv(der.SET, digest_algorithm),
                der.sequence(der.oid(content_type), der.tlv(0xA0, content)),
                der.tlv(0xA0, b"".join(certificates)) if certificates else b"",
                crls,
                der.tlv(der.SET, info * copies),
            ),
        ),
    )


def refused(data: bytes, refusal: type[EstError], match: str | None = None) -> None:
    with pytest.raises(refusal, match=match):
        cms.unseal(data, content_types=BOTH)


@pytest.mark.req("B-402", "B-409")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_rfc_examples_are_read_as_id_data(name: str) -> None:
    message = cms.unseal(vector(f"{name}.cms"), content_types=BOTH)
    assert message.content == vector(f"{name}.json")
    assert (message.content_type, message.version) == (cms.ID_DATA, 1)
    assert message.signing_time is not None
    assert message.signing_time.date().isoformat() == "2021-04-13"


@pytest.mark.req("B-402")
@pytest.mark.parametrize("name", DERIVED)
def test_the_derived_examples_are_read_with_the_content_type_of_the_standard(name: str) -> None:
    message = cms.unseal(vector(f"derived/{name}.cms"), content_types=[cms.ID_CT_ANIMA_JSON_VOUCHER])
    assert message.content + b"\n" == vector(f"derived/{name}.json")
    assert message.version == 3
    assert len(message.certificates) == 2
    assert message.certificates[0] == message.signer


@pytest.mark.req("B-402")
def test_tolerance_of_id_data_is_a_switch() -> None:
    with pytest.raises(CmsNotAccepted, match="content type"):
        cms.unseal(vector("voucher.cms"), content_types=[cms.ID_CT_ANIMA_JSON_VOUCHER])


@pytest.mark.req("B-405")
def test_missing_signed_attributes_are_refused_although_openssl_accepts_them() -> None:
    refused(vector("derived/neg-voucher-no-signed-attrs.cms"), CmsNotAccepted, "signed attributes")
    refused(hand_made(attributes_tag=None), CmsNotAccepted, "signed attributes")


@pytest.mark.req("B-401", "B-402", "B-403", "B-405", "B-406", "B-407", "B-408", "B-409")
@pytest.mark.parametrize(("content_type", "version"), [(cms.ID_CT_ANIMA_JSON_VOUCHER, 3), (cms.ID_DATA, 1)])
def test_what_we_seal_we_unseal_and_another_library_reads_the_same(content_type: str, version: int) -> None:
    data = sealed(content_type=content_type)
    der.check(data)
    message = cms.unseal(data, content_types=[content_type])
    assert message == cms.SignedData(CONTENT, content_type, campus().proxy, (campus().proxy, campus().ca), NOW, version)
    seen = foreign.ContentInfo.load(data, strict=True)["content"]
    assert seen["version"].native == f"v{version}"
    assert seen["encap_content_info"]["content"].native is not None
    info = seen["signer_infos"][0]
    assert info["digest_algorithm"]["algorithm"].native == "sha256"
    assert info["signature_algorithm"]["algorithm"].native == "sha256_ecdsa"
    assert {one["type"].native for one in info["signed_attrs"]} == {"content_type", "message_digest", "signing_time"}
    assert info["sid"].name == "issuer_and_serial_number"


@pytest.mark.req("B-407")
def test_p384_keys_sign_with_sha384() -> None:
    private = ec.generate_private_key(ec.SECP384R1())
    certificate = odd("384", private, private)
    data = cms.seal(
        CONTENT, content_type=cms.ID_DATA, signer=KeySigner(private), certificate=certificate, signing_time=NOW
    )
    assert cms.unseal(data, content_types=BOTH).signer == certificate
    seen = foreign.ContentInfo.load(data)["content"]["signer_infos"][0]
    assert seen["digest_algorithm"]["algorithm"].native == "sha384"


@pytest.mark.req("B-407", "B-410")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="plain"),
        pytest.param({"digest": "sha384"}, id="SHA-384 with P-256"),
        pytest.param({"digest": "sha512"}, id="SHA-512 with P-256"),
        pytest.param(
            {"digest_algorithm": der.sequence(der.oid("2.16.840.1.101.3.4.2.1"), b"\x05\x00")}, id="digest with NULL"
        ),
        pytest.param({"unsigned": der.tlv(0xA1, der.sequence(der.oid("1.2.3"), der.set_of([])))}, id="unsigned attr"),
        pytest.param({"crls": der.tlv(0xA1, b"")}, id="empty CRL field"),
        pytest.param({"crls": der.tlv(0xA1, der.sequence(b"\x05\x00"))}, id="CRL, ignored"),
        pytest.param({"version": 3}, id="version 3 with id-data"),
    ],
)
def test_lawful_variants_of_other_signers_are_read(arguments: dict[str, object]) -> None:
    message = cms.unseal(hand_made(**arguments), content_types=BOTH)  # type: ignore[arg-type]
    assert message.content == CONTENT
    assert message.signing_time is None


@pytest.mark.req("B-407")
def test_rsa_signatures_need_2048_bits() -> None:
    for bits in (2048, 1024):
        private = rsa.generate_private_key(65537, bits)
        certificate = odd(f"rsa {bits}", private, private)
        data = hand_made(private=private, certificate=certificate)
        if bits == 2048:
            assert cms.unseal(data, content_types=BOTH).signer == certificate
        else:
            refused(data, KeyNotAccepted)


@pytest.mark.req("B-409")
def test_the_signer_may_be_named_by_subject_key_identifier() -> None:
    identifier = x509.SubjectKeyIdentifier.from_public_key(campus().proxy.public_key()).digest  # type: ignore[arg-type]
    data = hand_made(sid=der.tlv(0x80, identifier), info_version=3, version=3)
    assert cms.unseal(data, content_types=BOTH).signer == campus().proxy
    refused(hand_made(sid=der.tlv(0x80, identifier[::-1]), info_version=3), CmsNotAccepted, "embedded")
    refused(hand_made(sid=der.tlv(0x80, identifier)), CmsMalformed, "identifier")
    refused(hand_made(info_version=3), CmsMalformed, "identifier")


@pytest.mark.req("B-409", "T-23")
@pytest.mark.parametrize("has_identifier", [True, False])
def test_no_other_certificate_is_read_to_find_the_signer(has_identifier: bool) -> None:
    """Names full of oddities cost a reader milliseconds, and a stranger may send 32 of them."""
    own = campus().proxy.public_bytes(Encoding.DER)
    costly = own.replace(b"\x0c\x07proxy 1", b"\x0c\x07\xff\xfe\xfd\xfc\xfb\xfa\xf9")
    identifier = x509.SubjectKeyIdentifier.from_public_key(campus().proxy.public_key()).digest  # type: ignore[arg-type]
    if has_identifier:
        costly = costly.replace(identifier, bytes(20))
        named: dict[str, Any] = {"sid": der.tlv(0x80, identifier), "info_version": 3, "version": 3}
    else:
        costly = costly.replace(b"\x02\x01\x4d", b"\x02\x01\x4e", 1)
        named = {}
    opened = cms.unseal(hand_made(embedded=(own, costly), **named), content_types=BOTH)
    assert opened.signer == campus().proxy and len(opened.certificates) == 2
    with pytest.raises(CertificateMalformed):
        certificates.check_readable(opened.certificates[1])


@pytest.mark.req("B-409")
def test_the_signer_certificate_is_embedded_or_expected_exactly_once() -> None:
    data = hand_made(embedded=())
    refused(data, CmsNotAccepted, "embedded")
    assert cms.unseal(data, content_types=BOTH, expected=[campus().proxy]).signer == campus().proxy
    twin = odd("proxy 1", key("other"), key("campus ca"), issuer=campus().ca, serial=77).public_bytes(Encoding.DER)
    own = campus().proxy.public_bytes(Encoding.DER)
    refused(hand_made(embedded=(own, twin)), CmsNotAccepted, "exactly once")
    refused(hand_made(embedded=(twin,)), CmsSignatureInvalid, "signature")
    assert cms.unseal(hand_made(embedded=(own, own)), content_types=BOTH).certificates == (campus().proxy,)


@pytest.mark.req("B-404")
def test_exactly_one_signer_is_accepted() -> None:
    refused(hand_made(copies=0), CmsNotAccepted, "no signer")
    refused(hand_made(copies=2), CmsNotAccepted, "more than one signer")


@pytest.mark.req("B-405")
def test_signed_content_type_must_be_the_contents_type() -> None:
    refused(hand_made(signed_type=cms.ID_CT_ANIMA_JSON_VOUCHER), CmsNotAccepted, "content-type attribute")


@pytest.mark.req("B-405")
def test_message_digest_must_be_that_of_the_content() -> None:
    refused(hand_made(message_digest=bytes(32)), CmsSignatureInvalid, "message digest")
    refused(hand_made(message_digest=hashlib.sha256(CONTENT).digest()[:20]), CmsSignatureInvalid, "message digest")
    refused(sealed().replace(b"ietf-voucher", b"ietf-vaucher"), CmsSignatureInvalid, "message digest")


@pytest.mark.req("B-407")
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        pytest.param({"digest": "sha1"}, "digest algorithm", id="SHA-1"),
        pytest.param(
            {"digest_algorithm": der.sequence(der.oid("1.2.840.113549.2.5"), b"\x05\x00")}, "digest algorithm", id="MD5"
        ),
        pytest.param(
            {"signature_algorithm": der.sequence(der.oid("1.2.840.10045.4.1"))}, "signature algorithm", id="ECDSA-SHA-1"
        ),
        pytest.param(
            {"signature_algorithm": der.sequence(der.oid("1.2.840.10045.4.3.3"))}, "different", id="hash mismatch"
        ),
        pytest.param(
            {"signature_algorithm": der.sequence(der.oid("1.2.840.113549.1.1.11"), b"\x05\x00")},
            "signer's key",
            id="RSA algorithm with an EC key",
        ),
        pytest.param(
            {"digests": der.set_of([der.sequence(der.oid("2.16.840.1.101.3.4.2.3"))])}, "among those", id="digest list"
        ),
        pytest.param({"digests": der.set_of([])}, "among those", id="empty digest list"),
    ],
)
def test_other_algorithms_are_refused(arguments: dict[str, object], match: str) -> None:
    refused(hand_made(**arguments), CmsNotAccepted, match)  # type: ignore[arg-type]


@pytest.mark.req("B-411")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"sort": False}, id="signed attributes not in DER order"),
        pytest.param(
            {"extra_attributes": (der.sequence(der.oid("1.2.840.113549.1.9.3"), der.set_of([der.oid(cms.ID_DATA)])),)},
            id="attribute twice",
        ),
        pytest.param(
            {"extra_attributes": (der.sequence(der.oid("1.2.3"), der.set_of([b"\x05\x00", b"\x05\x00"])),)},
            id="attribute with two values",
        ),
        pytest.param({"extra_attributes": (der.sequence(der.oid("1.2.3"), der.set_of([])),)}, id="attribute empty"),
        pytest.param({"extra_attributes": (b"\x05\x00",)}, id="attribute not a SEQUENCE"),
        pytest.param(
            {
                "extra_attributes": (
                    der.sequence(der.oid("1.2.840.113549.1.9.5"), der.set_of([der.tlv(0x17, b"260231000000Z")])),
                )
            },
            id="signing time on 31 February",
        ),
        pytest.param(
            {
                "extra_attributes": (
                    der.sequence(der.oid("1.2.840.113549.1.9.5"), der.set_of([der.tlv(0x17, b"2601010000Z")])),
                )
            },
            id="signing time without seconds",
        ),
        pytest.param(
            {"signature_algorithm": der.sequence(der.oid("1.2.840.10045.4.3.2"), b"\x05\x00")},
            id="ECDSA with parameters",
        ),
        pytest.param(
            {"digest_algorithm": der.sequence(der.oid("2.16.840.1.101.3.4.2.1"), b"\x02\x01\x00")},
            id="digest with odd parameters",
        ),
        pytest.param({"version": 2}, id="version 2"),
        pytest.param({"unsigned": b"\x05\x00"}, id="rubbish after the signature"),
        pytest.param({"econtent": der.tlv(0x24, der.tlv(der.OCTET_STRING, CONTENT))}, id="constructed content"),
        pytest.param({"econtent": der.tlv(der.UTF8_STRING, CONTENT)}, id="content not an OCTET STRING"),
        pytest.param({"embedded": (der.tlv(0xA1, b"\x30\x00"),)}, id="attribute certificate"),
        pytest.param({"embedded": (b"\x30\x00",) * 33}, id="33 certificates"),
    ],
)
def test_what_is_not_the_one_der_form_is_malformed(arguments: dict[str, object]) -> None:
    refused(hand_made(**arguments), CmsMalformed)  # type: ignore[arg-type]


@pytest.mark.req("B-411")
def test_ber_trailing_bytes_and_oversize_are_refused() -> None:
    data = sealed()
    refused(data + b"\0", CmsMalformed)
    refused(data[:-1], CmsMalformed)
    refused(b"", CmsMalformed)
    refused(b"\x30\x80" + data[4:] + b"\0\0", CmsMalformed, "indefinite")
    refused(b"\x30\x83\x00" + data[2:], CmsMalformed, "minimal")
    refused(b"\0" * 262145, BodyTooLarge)
    refused(cms.write_certs_only([campus().ca]), CmsNotAccepted, "no content")


@pytest.mark.req("B-403")
def test_detached_content_is_refused() -> None:
    options = [pkcs7.PKCS7Options.DetachedSignature]
    detached = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(CONTENT)
        .add_signer(campus().proxy, key("campus proxy"), hashes.SHA256())
        .sign(Encoding.DER, options)
    )
    refused(detached, CmsNotAccepted, "no content")


def test_a_message_of_another_library_is_read() -> None:
    other = (
        pkcs7.PKCS7SignatureBuilder()
        .set_data(CONTENT)
        .add_signer(campus().proxy, key("campus proxy"), hashes.SHA256())
        .add_certificate(campus().ca)
        .sign(Encoding.DER, [pkcs7.PKCS7Options.Binary])
    )
    message = cms.unseal(other, content_types=BOTH)
    assert message.content == CONTENT
    assert set(message.certificates) == {campus().proxy, campus().ca}


def test_an_embedded_certificate_that_is_none_is_malformed() -> None:
    own = campus().proxy.public_bytes(Encoding.DER)
    refused(hand_made(embedded=(own, der.sequence(b"\x05\x00"))), CertificateMalformed)
    refused(hand_made(embedded=(own, der.sequence(der.tlv(der.OCTET_STRING, bytes(9000))))), CertificateMalformed)


@pytest.mark.req("B-405", "B-406", "B-411")
def test_no_single_bit_of_what_is_signed_can_change() -> None:
    """Only bytes outside the signature's reach may pass: the chain beside the signer, and CMSVersion 1 or 3."""
    data = sealed()
    embedded = [
        range(at := data.index(der_), at + len(der_))
        for der_ in (one.public_bytes(Encoding.DER) for one in (campus().proxy, campus().ca))
    ]
    for at in damage_each_byte(data, lambda damaged: cms.unseal(damaged, content_types=BOTH)):
        assert any(at in span for span in embedded), at


@pytest.mark.req("E-91")
def test_certs_only_is_what_another_library_writes() -> None:
    certificates = [campus().ca, campus().root]
    data = cms.write_certs_only(certificates)
    seen = foreign.ContentInfo.load(data, strict=True)["content"]
    assert seen["version"].native == "v1"
    assert len(seen["digest_algorithms"]) == len(seen["signer_infos"]) == 0
    assert seen["encap_content_info"]["content"].native is None
    assert set(pkcs7.load_der_pkcs7_certificates(data)) == set(certificates)
    assert data == pkcs7.serialize_certificates(certificates, Encoding.DER)


@pytest.mark.req("E-91", "E-125")
def test_certs_only_is_read_and_nothing_else_passes_for_it() -> None:
    certificates = {campus().ca, campus().root, campus().proxy}
    assert set(cms.read_certs_only(cms.write_certs_only(list(certificates)))) == certificates
    for data, refusal in (
        (sealed(), CmsNotAccepted),
        (cms.write_certs_only([]), CmsNotAccepted),
        (cms.write_certs_only([campus().ca]) + b"\0", CmsMalformed),
        (campus().ca.public_bytes(Encoding.DER), CmsMalformed),
        (b"\0" * 262145, BodyTooLarge),
    ):
        with pytest.raises(refusal):
            cms.read_certs_only(data)


def test_signing_times_keep_their_century() -> None:
    for year in (1950, 1999, 2049, 2050, 2999):
        moment = datetime(year, 2, 28, 23, 59, 58, tzinfo=UTC)
        data = cms.seal(
            b"",
            content_type=cms.ID_DATA,
            signer=KeySigner(key("campus proxy")),
            certificate=campus().proxy,
            signing_time=moment,
        )
        assert cms.unseal(data, content_types=BOTH).signing_time == moment
