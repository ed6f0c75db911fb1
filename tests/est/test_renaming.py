"""ChangeSubjectName: read in both spellings, nothing but the two fields, and never more than was said."""

from __future__ import annotations

import pytest
from cryptography import x509

from est import csr, der, profiles, renaming
from est.errors import CsrMalformed
from est.renaming import CHANGE_SUBJECT_NAME, NewNames
from tests.support import key

NAME = profiles.name("proxy 2")
SAN = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://campus.example/proxy/1")])


def read(*values: bytes) -> NewNames | None:
    attributes = {CHANGE_SUBJECT_NAME: values} if values else {}
    return renaming.read(csr.read(csr.build(subject=profiles.name("proxy 1"), key=key("csr"), attributes=attributes)))


@pytest.mark.req("E-116", "E-120")
def test_either_name_may_be_asked_for_and_the_other_one_would_be_taken_away() -> None:
    assert read() is None
    assert read(renaming.write(NAME, SAN)) == NewNames(NAME.public_bytes(), SAN.public_bytes())
    assert read(renaming.write(NAME, None)) == NewNames(NAME.public_bytes(), None)
    assert read(renaming.write(None, SAN)) == NewNames(None, SAN.public_bytes())


@pytest.mark.req("E-120")
def test_subject_alt_is_read_with_the_tag_of_the_erratum_and_without() -> None:
    untagged = der.sequence(NAME.public_bytes(), SAN.public_bytes())
    assert read(untagged) == read(renaming.write(NAME, SAN))
    assert read(der.sequence(SAN.public_bytes())) == read(renaming.write(None, SAN))


@pytest.mark.req("E-120", "E-200")
@pytest.mark.parametrize(
    "value",
    [
        der.sequence(),
        der.sequence(NAME.public_bytes(), NAME.public_bytes()),
        der.sequence(SAN.public_bytes(), NAME.public_bytes()),
        der.sequence(SAN.public_bytes(), SAN.public_bytes()),
        der.sequence(der.tlv(0xA1, b"")),
        der.sequence(NAME.public_bytes(), der.integer(1)),
        der.integer(5),
    ],
)
def test_anything_else_is_malformed(value: bytes) -> None:
    with pytest.raises(CsrMalformed):
        read(value)


def test_two_values_are_malformed() -> None:
    with pytest.raises(CsrMalformed, match="exactly one"):
        read(renaming.write(NAME, None), renaming.write(NAME, SAN))


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (profiles.name("proxy 2"), "proxy 2"),
        (profiles.name("proxy 2", "campus"), None),
        (x509.Name([]), None),
        (profiles.name("ä"), "ä"),
        (x509.Name.from_rfc4514_string("O=campus"), None),
        (x509.Name.from_rfc4514_string("CN=a+O=b"), None),
    ],
)
def test_a_common_name_is_one_and_alone(subject: x509.Name, expected: str | None) -> None:
    assert NewNames(subject.public_bytes(), None).common_name == expected
