"""CSR attributes: published examples, both encodings, and the check of a request against them."""

from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from est import csr, csrattrs, der, profiles
from est.csrattrs import (
    CHALLENGE_PASSWORD,
    COMMON_NAME,
    CURVES,
    EC_PUBLIC_KEY,
    RSA_ENCRYPTION,
    SUBJECT_ALT_NAME,
    CsrAttrs,
    ExtensionDemand,
    KeyDemand,
    NameDemand,
)
from est.errors import CsrAttributeMissing, CsrAttributesMalformed, EstError
from tests.support import key

# RFC 7030 as corrected by RFC 8951 (and 9908), base64 as printed there; the first one is malformed (RFC 9908, 5.2).
EXAMPLES = {
    "RFC 7030": "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw==",
    "corrected": "MDIGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiBgcrBgEBAQEWBggqhkjOPQQDAw==",
    "RSA-4096": "MCkGCSqGSIb3DQEJBzARBgkqhkiG9w0BAQExBAICEAAGCSqGSIb3DQEBCw==",
    "P-384": "MC4GCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiBgNVBAUGCCqGSM49BAMD",
    "exact SAN": "MGgwZgYJKoZIhvcNAQkOMVkwVzBVBgNVHREBAf8ESzBJoEcGCCsGAQUFBwgKoDsWOXJmYzg5OTQrZmQ3MzlmYzIzYzM0NDAx"
    "MTIyMzM0NDU1MDAwMDAwMDArQGFjcC5leGFtcGxlLmNvbQ==",
}
P384 = KeyDemand(EC_PUBLIC_KEY, curve=CURVES["secp384r1"])
P256 = KeyDemand(EC_PUBLIC_KEY, curve=CURVES["secp256r1"])
SHA384 = "1.2.840.10045.4.3.3"
MAC_ADDRESS = "1.3.6.1.1.1.1.22"
URI = "spiffe://campus.example/proxy/1"
SAN = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI)])
DICTATED = CsrAttrs(
    P256, (NameDemand(COMMON_NAME),), (ExtensionDemand(SUBJECT_ALT_NAME, value=SAN.public_bytes()),)
)  # fmt: skip


def read(text: str) -> CsrAttrs:
    return csrattrs.read(base64.b64decode(text))


@pytest.mark.req("E-152", "E-154", "E-162")
def test_the_published_examples_are_read_the_malformed_one_too() -> None:
    wanted = CsrAttrs(P384, None, (), (CHALLENGE_PASSWORD,), (SHA384,), (MAC_ADDRESS,))
    assert read(EXAMPLES["corrected"]) == wanted
    assert read(EXAMPLES["RFC 7030"]) == CsrAttrs(P384, None, (), (CHALLENGE_PASSWORD,), (SHA384,))
    rsa_4096 = read(EXAMPLES["RSA-4096"])
    assert rsa_4096.key == KeyDemand(RSA_ENCRYPTION, bits=4096)
    assert rsa_4096.algorithms == ("1.2.840.113549.1.1.11",)
    assert read(EXAMPLES["P-384"]).subject == (NameDemand("2.5.4.5"),)


@pytest.mark.req("E-155", "E-156")
def test_the_example_that_dictates_a_name_has_its_exact_value() -> None:
    (san,) = read(EXAMPLES["exact SAN"]).extensions
    assert san.kind == SUBJECT_ALT_NAME
    assert san.critical
    assert san.value is not None
    assert b"rfc8994+fd739fc23c3440112233445500000000+@acp.example.com" in san.value


@pytest.mark.req("E-151")
def test_an_empty_sequence_demands_nothing() -> None:
    assert not read("MAA=")
    assert csrattrs.write(CsrAttrs()) == b"\x30\x00"


@pytest.mark.req("E-154")
def test_what_the_corrected_example_says_is_written_as_it_is_printed() -> None:
    wanted = CsrAttrs(KeyDemand(RSA_ENCRYPTION, bits=4096), None, (), (CHALLENGE_PASSWORD,), ("1.2.840.113549.1.1.11",))
    assert set(_items(csrattrs.write(wanted, template=False))) == set(_items(base64.b64decode(EXAMPLES["RSA-4096"])))


def _items(value: bytes) -> list[bytes]:
    return [value[at:stop] for _, at, _, stop in der.elements(value, *der.only(value, 0, len(value), der.SEQUENCE))]


@pytest.mark.req("E-157", "E-158", "E-159")
@pytest.mark.parametrize(
    "wanted",
    [
        DICTATED,
        CsrAttrs(P256),
        CsrAttrs(KeyDemand(RSA_ENCRYPTION, bits=3072)),
        CsrAttrs(KeyDemand(RSA_ENCRYPTION)),
        CsrAttrs(KeyDemand(EC_PUBLIC_KEY)),
        CsrAttrs(subject=()),
        CsrAttrs(subject=(NameDemand(COMMON_NAME, b"\x0c\x01x"), NameDemand("2.5.4.5"))),
        CsrAttrs(
            extensions=(ExtensionDemand(SUBJECT_ALT_NAME), ExtensionDemand("2.5.29.15", True, b"\x03\x02\x07\x80"))
        ),
        CsrAttrs(attributes=(CHALLENGE_PASSWORD,)),
    ],
)
def test_a_template_is_read_back_as_it_was_meant(wanted: CsrAttrs) -> None:
    assert csrattrs.read(csrattrs.write(wanted, old=False)) == wanted


@pytest.mark.req("E-161")
def test_whoever_gets_both_forms_reads_the_template_only() -> None:
    both = csrattrs.write(DICTATED)
    assert csrattrs.read(both) == DICTATED
    old = csrattrs.read(csrattrs.write(DICTATED, template=False))
    assert (old.key, old.extensions) == (DICTATED.key, DICTATED.extensions)
    contradicting = der.sequence(
        *_items(csrattrs.write(CsrAttrs(P384), template=False)), *_items(csrattrs.write(DICTATED, old=False))
    )
    assert csrattrs.read(contradicting) == DICTATED


@pytest.mark.req("E-160")
def test_open_values_stand_in_the_extension_template_and_full_ones_in_the_extension_request() -> None:
    full = csrattrs.write(DICTATED, old=False)
    assert der.oid(csrattrs.EXTENSION_REQUEST) in full
    assert der.oid(csrattrs.EXTENSION_TEMPLATE) not in full
    open_ = csrattrs.write(CsrAttrs(extensions=(ExtensionDemand(SUBJECT_ALT_NAME),)), old=False)
    assert der.oid(csrattrs.EXTENSION_TEMPLATE) in open_
    rebuilt = _template(
        der.tlv(
            0xA1,
            _attribute(
                csrattrs.EXTENSION_TEMPLATE, der.sequence(der.sequence(der.oid(SUBJECT_ALT_NAME), b"\x04\x02\x30\x00"))
            ),
        )
    )
    assert csrattrs.read(rebuilt).extensions == (ExtensionDemand(SUBJECT_ALT_NAME),)


def _attribute(kind: str, *values: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.set_of(values))


def _template(*parts: bytes) -> bytes:
    return der.sequence(_attribute(csrattrs.TEMPLATE, der.sequence(der.integer(0), *parts)))


EXTENSION = der.sequence(der.oid(SUBJECT_ALT_NAME), der.tlv(der.OCTET_STRING, SAN.public_bytes()))


@pytest.mark.req("E-155", "E-160", "E-200")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x30\x02\x02\x00", id="broken"),
        pytest.param(der.sequence(der.integer(1)), id="an integer"),
        pytest.param(
            der.sequence(_attribute(EC_PUBLIC_KEY, der.oid("1.3.132.0.34"), der.oid("1.3.132.0.35"))), id="two curves"
        ),
        pytest.param(
            der.sequence(_attribute(csrattrs.EXTENSION_REQUEST, der.sequence(EXTENSION, EXTENSION))),
            id="extension twice",
        ),
        pytest.param(_template(), id="template without attributes"),
        pytest.param(
            _template(
                der.tlv(
                    0xA1,
                    _attribute(csrattrs.EXTENSION_REQUEST, der.sequence(EXTENSION))
                    + _attribute(csrattrs.EXTENSION_TEMPLATE, der.sequence(EXTENSION)),
                )
            ),
            id="both extension lists",
        ),
        pytest.param(
            der.sequence(_attribute(csrattrs.TEMPLATE, der.sequence(der.integer(1), der.tlv(0xA1, b"")))),
            id="version 1",
        ),
        pytest.param(_template(der.sequence(der.sequence()), der.tlv(0xA1, b"")), id="subject of sequences"),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(CsrAttributesMalformed):
        csrattrs.read(body)


@pytest.mark.req("E-152", "E-207")
@given(st.binary(max_size=80), st.integers(0, 200))
def test_damaged_answers_raise_nothing_but_refusals(noise: bytes, at: int) -> None:
    whole = csrattrs.write(DICTATED)
    for damaged in (noise, whole[:at] + noise[:1] + whole[at + 1 :]):
        try:
            csrattrs.read(damaged)
        except EstError:
            pass


def request(**more: object) -> csr.Csr:
    asked: dict[str, object] = {"subject": profiles.name("proxy"), "key": key("csr"), "san": SAN, **more}
    return csr.read(csr.build(**asked))  # type: ignore[arg-type]


@pytest.mark.req("E-164", "E-150")
@pytest.mark.parametrize(
    ("change", "wanted", "item"),
    [
        ({"key": ec.generate_private_key(ec.SECP384R1())}, DICTATED, "P-256"),
        ({}, CsrAttrs(KeyDemand(RSA_ENCRYPTION, bits=3072)), "RSA with 3072 bits"),
        ({}, CsrAttrs(algorithms=(SHA384,)), "ecdsa-with-SHA384"),
        ({"subject": x509.Name([])}, DICTATED, "commonName"),
        ({}, CsrAttrs(subject=(NameDemand(COMMON_NAME, b"\x0c\x01x"),)), "commonName"),
        ({}, CsrAttrs(attributes=(CHALLENGE_PASSWORD,)), "challengePassword"),
        ({"san": None}, DICTATED, "subjectAltName"),
        ({"san": x509.SubjectAlternativeName([x509.DNSName("x.example")])}, DICTATED, "subjectAltName"),
        ({}, CsrAttrs(extensions=(ExtensionDemand("2.5.29.15"),)), "keyUsage"),
    ],
)  # fmt: skip
def test_the_first_thing_that_lacks_is_named(change: dict[str, object], wanted: CsrAttrs, item: str) -> None:
    with pytest.raises(CsrAttributeMissing) as refused:
        csrattrs.check(request(**change), wanted)
    assert refused.value.fields["item"] == item
    assert item in refused.value.detail


@pytest.mark.req("E-164", "E-153")
def test_a_request_that_has_everything_passes() -> None:
    csrattrs.check(request(), DICTATED)
    csrattrs.check(request(), CsrAttrs(algorithms=(SHA384, "2.16.840.1.101.3.4.2.1")))
    csrattrs.check(request(challenge_password=b"x"), CsrAttrs(attributes=(CHALLENGE_PASSWORD,)))
    common_name = der.tlv(der.UTF8_STRING, b"proxy")
    csrattrs.check(request(), CsrAttrs(subject=(NameDemand(COMMON_NAME, common_name),)))
    csrattrs.check(request(), CsrAttrs(KeyDemand(EC_PUBLIC_KEY), extensions=(ExtensionDemand(SUBJECT_ALT_NAME),)))
    big = csr.read(
        x509.CertificateSigningRequestBuilder(profiles.name("x"))
        .sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    csrattrs.check(big, CsrAttrs(KeyDemand(RSA_ENCRYPTION, bits=2048), algorithms=("1.2.840.113549.1.1.11",)))
