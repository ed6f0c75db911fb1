"""Requests linked to their TLS session: what is compared, and that everything there must pass."""

from __future__ import annotations

from base64 import b64encode

import pytest
from cryptography import x509

from est import csr, der, profiles
from est.csr import CHALLENGE_PASSWORD
from est.csrattrs import IDENTITY_LINKING, OTP_CHALLENGE, REVOCATION_CHALLENGE
from est.errors import LinkingFailed
from est.linking import asked_sha256, binding_text, check
from tests.support import key

NAME = profiles.name("device 7")
BINDING = bytes(range(32))


def linked(challenge: bytes | None) -> csr.Csr:
    return csr.read(csr.build(subject=NAME, key=key("csr"), challenge_password=challenge))


@pytest.mark.req("E-71", "E-72", "E-73")
def test_the_channel_binding_links_the_request_to_its_session() -> None:
    assert binding_text(BINDING) == b64encode(BINDING)
    assert check(linked(binding_text(BINDING)), [BINDING])
    assert not check(linked(None), [BINDING])
    assert not check(linked(None), [])


@pytest.mark.req("E-73", "E-78", "E-80")
@pytest.mark.parametrize(
    "challenge",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b64encode(BINDING)[:-1], id="prefix of the right one"),
        pytest.param(b64encode(BINDING[:12]), id="shorter binding"),
        pytest.param(b64encode(BINDING) + b"A", id="longer"),
        pytest.param(b64encode(bytes(32)), id="of another session"),
        pytest.param(b"one-time password", id="not a binding at all"),
    ],
)
def test_another_challenge_password_is_refused(challenge: bytes) -> None:
    with pytest.raises(LinkingFailed):
        check(linked(challenge), [BINDING])
    with pytest.raises(LinkingFailed):
        check(linked(challenge), [])


@pytest.mark.req("E-74")
def test_linking_can_be_demanded_and_the_refusal_says_so() -> None:
    with pytest.raises(LinkingFailed, match="challengePassword"):
        check(linked(None), [BINDING], required=True)


UNIQUE = b"finished-msg"


def text(value: bytes) -> bytes:
    return der.tlv(der.UTF8_STRING, value)


def with_attributes(more: dict[str, tuple[bytes, ...]], challenge: bytes | None = None) -> csr.Csr:
    return csr.read(csr.build(subject=NAME, key=key("csr"), challenge_password=challenge, attributes=more))


RIGHT = text(binding_text(BINDING))
WRONG = text(binding_text(bytes(32)))


@pytest.mark.req("E-71", "E-76", "E-77")
@pytest.mark.parametrize("which", [BINDING, UNIQUE])
def test_each_binding_that_the_session_has_will_do(which: bytes) -> None:
    assert check(linked(binding_text(which)), [BINDING, UNIQUE], required=True)
    with pytest.raises(LinkingFailed):
        check(linked(binding_text(which)), [bytes(32)])


@pytest.mark.req("E-79")
def test_the_attributes_of_their_own_are_taken() -> None:
    asked = with_attributes({IDENTITY_LINKING: (RIGHT,), OTP_CHALLENGE: (text(b"rosebud"),)})
    assert check(asked, [BINDING], required=True, is_password=lambda offered: offered == b"rosebud")
    assert not check(with_attributes({REVOCATION_CHALLENGE: (text(b"later"),)}), [])


@pytest.mark.req("E-79", "E-74", "E-80")
@pytest.mark.parametrize(
    ("more", "challenge", "words"),
    [
        ({IDENTITY_LINKING: (WRONG,)}, binding_text(BINDING), "estIdentityLinking is not"),
        ({IDENTITY_LINKING: (RIGHT,)}, b"wrong", "challengePassword is not"),
        ({OTP_CHALLENGE: (text(b"guess"),)}, binding_text(BINDING), "otpChallenge is not"),
        ({OTP_CHALLENGE: (text(b"rosebud"),)}, None, "must carry the channel binding"),
        ({REVOCATION_CHALLENGE: (b"\x02\x01\x05",)}, binding_text(BINDING), "revocationChallenge must be one string"),
        ({IDENTITY_LINKING: (RIGHT, RIGHT + b"")[:1] + (text(b"second"),)}, None, "must be one string"),
        ({IDENTITY_LINKING: (text(b"x" * 256),)}, None, "must be one string"),
    ],
)
def test_one_wrong_attribute_is_not_made_good_by_others(
    more: dict[str, tuple[bytes, ...]], challenge: bytes | None, words: str
) -> None:
    with pytest.raises(LinkingFailed, match=words):
        check(with_attributes(more, challenge), [BINDING], required=True, is_password=lambda one: one == b"rosebud")


@pytest.mark.req("E-134")
def test_a_bound_request_is_known_by_key_and_names_and_another_by_its_bytes() -> None:
    first, second = (linked(binding_text(value)) for value in (BINDING, UNIQUE))
    assert first.der != second.der
    assert asked_sha256(first) == asked_sha256(second)
    other_key = csr.read(csr.build(subject=NAME, key=key("other"), challenge_password=b"x"))
    other_name = csr.read(csr.build(subject=profiles.name("b"), key=key("csr"), challenge_password=b"x"))
    san = x509.SubjectAlternativeName([x509.DNSName("b")])
    other_san = csr.read(csr.build(subject=NAME, key=key("csr"), san=san, challenge_password=b"x"))
    plain = [linked(None), linked(None)]
    found = {asked_sha256(one) for one in (first, other_key, other_name, other_san, *plain)}
    assert len(found) == 6
    assert CHALLENGE_PASSWORD in first.attributes
