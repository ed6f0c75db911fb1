"""Every certificate, CRL and OCSP shape that we issue passes pkilint: no warning and no error but the accepted ones."""

from __future__ import annotations

import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from pkilint import loader, pkix
from pkilint.pkix import certificate as certificates
from pkilint.pkix import crl as crls
from pkilint.pkix import extension, name
from pkilint.pkix import ocsp as ocsps
from pkilint.validation import ValidationFindingSeverity

from est import ocsp, profiles
from est.revocation import REASONS, Revoked
from est.signer import KeySigner
from tests.est.pki import DAY, campus, sign
from tests.est.test_ocsp import request
from tests.est.test_profiles import END_ENTITIES, NAME, PUBLIC, under_ca
from tests.support import NOW, key

ACCEPTED = {
    # the linter's URI library has a fixed list of schemes; test_identifiers_are_uris holds ours against RFC 3986
    'pkix.invalid_uri_syntax: Invalid URI syntax: "spiffe://campus.example/',
    # and wants a dot in every domain name; the decision port of one machine is named localhost (RFC 6761, section 6.3)
    'pkix.invalid_domain_name_syntax: Invalid domain name syntax: "localhost"',
    # an agent's certificate leaves its own key identifier out on purpose: EAP-TLS has a small budget
    "pkix.certificate_skid_end_entity_missing: ",
}
"""Findings that stand on purpose, by how they begin."""


@cache
def _certificate_linter() -> Any:
    return certificates.create_pkix_certificate_validator_container(
        certificates.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificates.create_issuer_validator_container([]),
            certificates.create_validity_validator_container(),
            certificates.create_subject_validator_container([]),
            certificates.create_extensions_validator_container([]),
            certificates.create_spki_validator_container([]),
        ],
    )


@cache
def _ocsp_linter() -> Any:
    return ocsps.create_pkix_ocsp_response_validator_container(
        [
            ocsps.create_response_decoder(),
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [],
    )


@cache
def _crl_linter() -> Any:
    return crls.create_pkix_crl_validator_container(
        [
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [
            crls.create_issuer_validator_container([]),
            crls.create_validity_validator_container([]),
            crls.create_extensions_validator_container([]),
        ],
    )


def findings(linter: Any, document: Any) -> list[str]:
    """Findings of warning or above that are not accepted."""
    found = [
        f"{one.finding.code}: {one.message or ''}"
        for result in linter.validate(document.root)
        for one in result.finding_descriptions
        if one.finding.severity <= ValidationFindingSeverity.WARNING
    ]
    return [one for one in found if not one.startswith(tuple(ACCEPTED))]


def lint(certificate: x509.Certificate) -> list[str]:
    read = loader.RFC5280CertificateDocumentLoader().load_der_document
    document = read(certificate.public_bytes(Encoding.DER), "certificate")
    return findings(_certificate_linter(), document)


@pytest.mark.req("E-205")
@pytest.mark.parametrize("kind", sorted(END_ENTITIES))
def test_an_end_entity_passes_pkilint(kind: str) -> None:
    assert lint(sign(END_ENTITIES[kind][0], key("campus ca"))) == []


@pytest.mark.parametrize("kind", ["agent", "ldevid", "infrastructure client"])
def test_identifiers_are_uris_by_rfc_3986(kind: str) -> None:
    (name_,) = END_ENTITIES[kind][2]
    parts = urlsplit(name_.value)
    assert (parts.scheme, parts.netloc) == ("spiffe", "campus.example")
    assert re.fullmatch(r"/(agent|proxy|nas|radius)/[A-Za-z0-9._~-]+", parts.path)
    assert not parts.query + parts.fragment


def test_root_and_issuing_ca_pass_pkilint() -> None:
    assert lint(campus().root) == []
    assert lint(campus().ca) == []


def test_the_links_between_two_keys_of_a_root_pass_pkilint() -> None:
    old, new, subject = key("campus root"), key("next root"), campus().root.subject
    for signer, other in ((new, old), (old, new)):  # OldWithNew, NewWithOld
        shape = profiles.root_link(
            subject, other.public_key(), signer.public_key(), serial=77, not_before=NOW, not_after=NOW + DAY
        )
        tbs = profiles.to_be_signed(shape, issuer_key=signer.public_key())
        der = profiles.assemble(tbs, KeySigner(signer).sign(tbs), signer.public_key())
        assert lint(x509.load_der_x509_certificate(der)) == []


def test_the_linter_finds_what_is_wrong() -> None:
    """No authority key identifier, an empty subject, and a SAN that is not critical."""
    broken = (
        x509.CertificateBuilder(campus().ca.subject, x509.Name([]), key("x").public_key(), 5, NOW, NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("x.example")]), False)
        .sign(key("campus ca"), hashes.SHA256())
    )
    assert lint(broken) != []


def test_a_crl_with_every_reason_passes_pkilint() -> None:
    ca = campus().ca
    tbs = profiles.crl_to_be_signed(
        ca.subject,
        issuer_key=key("campus ca").public_key(),
        issuer_key_identifier=profiles.key_identifier(key("campus ca").public_key()),
        number=5,
        this_update=NOW,
        next_update=NOW + DAY,
        entries=[Revoked(1000 + at, NOW, reason) for at, reason in enumerate(REASONS)],
    )
    der = profiles.assemble(tbs, KeySigner(key("campus ca")).sign(tbs), key("campus ca").public_key())
    document = loader.RFC5280CertificateListDocumentLoader().load_der_document(der, "crl")
    assert findings(_crl_linter(), document) == []


def test_the_certificate_of_an_ocsp_signer_passes_pkilint() -> None:
    assert lint(sign(profiles.ocsp_signer(under_ca(), NAME, PUBLIC), key("campus ca"))) == []


@pytest.mark.parametrize("delegated", [True, False])
@pytest.mark.parametrize("nonce", [None, bytes(32)])
def test_an_ocsp_response_of_every_status_passes_pkilint(delegated: bool, nonce: bytes | None) -> None:
    (asked,) = ocsp.read_request(request()).certificates
    signer = KeySigner(key("x" if delegated else "campus ca"))
    own = sign(profiles.ocsp_signer(under_ca(), NAME, signer.public_key()), key("campus ca"))
    for status in (True, None, *(ocsp.Revocation(NOW - DAY, reason) for reason in REASONS)):
        data = ocsp.response_data(
            [ocsp.Single(asked, status)],
            responder=ocsp.key_hash(signer.public_key()),
            this_update=NOW,
            next_update=NOW + DAY,
            nonce=nonce,
        )
        certificate = own.public_bytes(Encoding.DER) if delegated else b""
        der = ocsp.assemble(data, signer.sign(data), signer.public_key(), certificate)
        document = loader.RFC6960OCSPResponseDocumentLoader().load_der_document(der, "ocsp")
        assert findings(_ocsp_linter(), document) == []
