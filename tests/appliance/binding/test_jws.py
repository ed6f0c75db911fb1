"""Compact JWS: one serialisation, the key decides the algorithm, the type is exact."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jws as other_jws
from joserfc.jwk import ECKey

from appliance.binding import approval, ear, evidence, jws, possession, request, token
from appliance.binding.errors import (
    AlgorithmNotAllowed,
    BindingError,
    CriticalHeaderUnknown,
    KeyIdMismatch,
    Malformed,
    PrivateKeyExposed,
    SignatureInvalid,
    TokenTypeWrong,
)
from est.keys import spki_sha256
from est.signer import KeySigner
from tests.appliance.binding.example import EXAMPLE, KEYS, VECTORS, flips, part, private, resign, signer

TYP = "test+jwt"


def _b64(value: object) -> str:
    octets = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _signed(header: object, payload: object, *, der: bool = False) -> str:
    """A token with a good signature over whatever header and payload."""
    text = f"{_b64(header)}.{_b64(payload)}"
    if der:
        return f"{text}.{_b64(private('agent').sign(text.encode(), ec.ECDSA(hashes.SHA256())))}"
    sealed = jws.seal({}, typ=TYP, signer=_Fixed(text))
    return f"{text}.{sealed.rpartition('.')[2]}"


class _Fixed:
    """Signs this text, whatever it is asked to sign."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return private("agent").public_key()

    def sign(self, data: bytes) -> bytes:
        return private("agent").sign(self._text, ec.ECDSA(hashes.SHA256()))


def _open(text: str, **options: object) -> jws.Jws:
    return jws.unseal(text, typ=TYP, key=KEYS["agent"], **options)


def test_a_signature_opens_whatever_its_two_numbers_begin_with() -> None:
    seen = set()
    for n in range(4000):
        text = jws.seal({"n": n}, typ=TYP, signer=signer("agent"))
        octets = jws.read(text).signature
        kinds = [(at, "zero" if not octets[at] else "high" if octets[at] & 0x80 else "low") for at in (0, 32)]
        if n < 20 or not seen.issuperset(kinds):
            assert _open(text).claims == {"n": n}
        seen.update(kinds)
        if len(seen) == 6:
            return
    raise AssertionError(f"4000 signatures began in these ways only: {seen}")


@pytest.mark.parametrize("octets", [bytes(64), b"\xff" * 64, bytes(32) + b"\xff" * 32])
def test_numbers_that_are_no_signature_are_refused_as_one(octets: bytes) -> None:
    text = jws.seal({"a": 1}, typ=TYP, signer=signer("agent"))
    with pytest.raises(SignatureInvalid):
        _open(f"{text.rpartition('.')[0]}.{_b64(octets)}")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_a_key_in_a_header_comes_with_both_of_its_names(curve: ec.EllipticCurve) -> None:
    made = KeySigner(ec.generate_private_key(curve))
    key = made.public_key()
    text = jws.seal({}, typ=TYP, signer=made, header={"jwk": jws.jwk(key)})
    assert jws.read(text).own_key() == (key, jws.jkt(key), spki_sha256(key))


def test_a_token_keeps_its_own_header_though_another_had_a_like_one() -> None:
    first = jws.read(jws.seal({}, typ=TYP, signer=signer("agent"), header={"kid": "a"}))
    second = jws.read(jws.seal({}, typ=TYP, signer=signer("agent"), header={"kid": "b"}))
    assert (first.kid, second.kid) == ("a", "b")
    with pytest.raises(TypeError):
        first.header["kid"] = "b"  # type: ignore[index]


def test_what_is_sealed_opens_again() -> None:
    opened = _open(jws.seal({"a": 1}, typ=TYP, signer=signer("agent"), header={"kid": "k"}))
    assert opened.claims == {"a": 1}
    assert opened.header == {"alg": "ES256", "typ": TYP, "kid": "k"}


def test_p384_keys_sign_es384_where_that_is_allowed() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    text = jws.seal({"a": 1}, typ=TYP, signer=KeySigner(key))
    assert jws.unseal(text, typ=TYP, key=key.public_key(), algorithms=jws.OWNER_ALGORITHMS).claims == {"a": 1}
    with pytest.raises(AlgorithmNotAllowed):
        jws.unseal(text, typ=TYP, key=key.public_key())


def test_another_implementation_opens_ours_and_we_open_theirs() -> None:
    pem = private("agent").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = ECKey.import_key(pem)
    ours = jws.seal({"a": 1}, typ=TYP, signer=signer("agent"))
    assert json.loads(other_jws.deserialize_compact(ours, key).payload) == {"a": 1}
    theirs = other_jws.serialize_compact({"alg": "ES256", "typ": TYP}, b'{"a":1}', key)
    assert _open(theirs).claims == {"a": 1}
    assert key.thumbprint() == jws.jkt(KEYS["agent"])
    assert key.as_dict(private=False).items() >= jws.jwk(KEYS["agent"]).items()


@pytest.mark.parametrize("name", ["agent", "owner", "proxy"])
def test_thumbprints_are_those_published(name: str) -> None:
    assert jws.jkt(KEYS[name]) == EXAMPLE["jkt"][name]


@pytest.mark.req("A-101")
def test_algorithm_none_is_refused() -> None:
    with pytest.raises(AlgorithmNotAllowed):
        _open(f"{_b64({'alg': 'none', 'typ': TYP})}.{_b64({})}.")
    with pytest.raises(AlgorithmNotAllowed):
        _open(_signed({"alg": "none", "typ": TYP}, {}))


@pytest.mark.req("A-101")
@pytest.mark.parametrize(
    "algorithm", ["HS256", "RS1", "RS256", "PS256", "ES384", "ES256K", "EdDSA", "es256", "", None, 7]
)
def test_other_algorithms_are_refused_even_over_a_good_signature(algorithm: object) -> None:
    with pytest.raises(AlgorithmNotAllowed):
        _open(_signed({"alg": algorithm, "typ": TYP}, {}))


@pytest.mark.req("A-101")
def test_mac_with_the_public_key_as_secret_is_refused() -> None:
    secret = KEYS["agent"].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    text = f"{_b64({'alg': 'HS256', 'typ': TYP})}.{_b64({})}"
    with pytest.raises(AlgorithmNotAllowed):
        _open(f"{text}.{_b64(hmac.digest(secret, text.encode(), hashlib.sha256))}")


@pytest.mark.req("A-101")
def test_der_signature_is_refused() -> None:
    with pytest.raises(Malformed):
        _open(_signed({"alg": "ES256", "typ": TYP}, {}, der=True))


@pytest.mark.req("A-101")
def test_crit_is_refused() -> None:
    for crit in (["exp"], [], "b64"):
        with pytest.raises(CriticalHeaderUnknown):
            _open(_signed({"alg": "ES256", "typ": TYP, "crit": crit}, {}))


@pytest.mark.req("A-101")
@pytest.mark.parametrize("typ", [None, "", "jwt", "TEST+JWT", "application/test+jwt", " test+jwt", ["test+jwt"]])
def test_other_types_are_refused(typ: object) -> None:
    with pytest.raises(TokenTypeWrong):
        _open(_signed({"alg": "ES256", "typ": typ}, {}))


@pytest.mark.req("A-101")
@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (b'{"alg":"ES256","alg":"ES256","typ":"test+jwt"}', {}),
        (b'{"alg":"ES256","typ":"test+jwt","typ":"other+jwt"}', {}),
        ({"alg": "ES256", "typ": TYP}, b'{"sub":"a","sub":"b"}'),
        ({"alg": "ES256", "typ": TYP}, b'{"cnf":{"jkt":"a","jkt":"b"}}'),
        ({"alg": "ES256", "typ": TYP}, b'{"n":NaN}'),
        ({"alg": "ES256", "typ": TYP}, b"[]"),
        ({"alg": "ES256", "typ": TYP}, b"7"),
        ({"alg": "ES256", "typ": TYP}, b""),
        ({"alg": "ES256", "typ": TYP}, b"\xff"),
        ({"alg": "ES256", "typ": TYP}, b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
        ({"alg": "ES256", "typ": TYP}, b'{"a":1}{"a":1}'),
        (b"[]", {}),
        (b"null", {}),
    ],
)  # fmt: skip
def test_json_that_two_readers_could_read_differently_is_malformed(header: object, payload: object) -> None:
    with pytest.raises(Malformed):
        _open(_signed(header, payload))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c.d",
        "ä.b.c",
        "e30.e30",
        "e30=.e30.e30",
        "e30.e30.e3 0",
        "e30.e30.e3+0",
        " e30.e30.e30",
    ],
)
def test_what_is_no_token_is_malformed(text: str) -> None:
    with pytest.raises((Malformed, AlgorithmNotAllowed)):
        _open(text)


def test_token_of_more_than_16_kib_is_malformed() -> None:
    with pytest.raises(Malformed):
        _open(jws.seal({"a": "x" * 16_384}, typ=TYP, signer=signer("agent")))


def test_stray_bits_and_padding_are_malformed() -> None:
    text = jws.seal({"a": 1}, typ=TYP, signer=signer("agent"))
    last = text[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = alphabet[alphabet.index(last) + 1]
    for damaged in (text[:-1] + twin, text + "=", text + "==", text + "\n"):
        with pytest.raises(Malformed):
            _open(damaged)


def test_every_flipped_bit_is_signature_invalid_or_malformed() -> None:
    text = jws.seal({"sub": "somebody", "n": 12}, typ=TYP, signer=signer("agent"), header={"kid": "k"})
    for damaged in flips(text):
        with pytest.raises((SignatureInvalid, Malformed)):
            _open(damaged, kid="k")


def test_kid_must_name_the_key_where_one_is_expected() -> None:
    text = jws.seal({}, typ=TYP, signer=signer("agent"), header={"kid": "a"})
    with pytest.raises(KeyIdMismatch):
        _open(text, kid="b")


@pytest.mark.req("A-101")
def test_a_signed_object_never_opens_as_another_type() -> None:
    """Every object of the example, opened as every other, with the key that made it."""
    key_of = {
        "agent_request": "agent",
        "approval": "owner",
        "evidence_eat": "proxy",
        "ear": "verifier",
        "wit_min": "issuer",
    }
    types = {
        "agent_request": request.TYP,
        "approval": approval.TYP,
        "evidence_eat": evidence.TYP,
        "ear": ear.TYP,
        "wit_min": token.TYP,
        "statement": possession.TYP,
    }
    for name, key in key_of.items():
        for other, typ in types.items():
            if typ != types[name]:
                with pytest.raises(TokenTypeWrong):
                    jws.unseal(EXAMPLE[name], typ=typ, key=KEYS[key])


@pytest.mark.req("A-101")
def test_an_attestation_result_never_opens_as_evidence_nor_the_reverse() -> None:
    with pytest.raises(BindingError) as refusal:
        evidence.unseal(EXAMPLE["ear"], KEYS["verifier"])
    assert refusal.value.reason == "evidence-profile-unknown"
    with pytest.raises(BindingError) as refusal:
        ear.unseal(EXAMPLE["evidence_eat"], KEYS["proxy"])
    assert refusal.value.reason == "ear-profile-unknown"


def test_jwk_with_a_private_member_is_refused() -> None:
    for member in ("d", "p", "k"):
        with pytest.raises(PrivateKeyExposed):
            jws.read_jwk({**jws.jwk(KEYS["agent"]), member: "AA"})
    exposed = {**part(EXAMPLE["agent_request"], 0)["jwk"], "d": "AA"}
    with pytest.raises(PrivateKeyExposed):
        request.unseal(resign(EXAMPLE["agent_request"], "agent", header={"jwk": exposed}))


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "RSA"},
        {"crv": "P-384"},
        {"crv": "P-521"},
        {"crv": ["P-256"]},
        {"x": "AAAA"},
        {"x": 7},
        {"x": None},
        {"y": "A" * 43},
        {"x": "B" * 43},
        {"alg": "ES384"},
        {"alg": None},
        {"alg": "none"},
    ],
)
def test_jwk_that_is_not_a_whole_key_is_malformed(change: dict) -> None:
    with pytest.raises(Malformed):
        jws.read_jwk({**jws.jwk(KEYS["agent"]), **change})


@pytest.mark.parametrize("value", [None, [], "x", 7])
def test_jwk_that_is_no_object_is_malformed(value: object) -> None:
    with pytest.raises(Malformed):
        jws.read_jwk(value)


def test_ed25519_verifies_where_allowed_and_is_never_certified() -> None:
    keys = json.loads((VECTORS / "wit" / "wimse-s2s-draft" / "keys.json").read_text())
    text = (VECTORS / "wit" / "wimse-s2s-draft" / "wpt.txt").read_text().strip()
    public = {k: v for k, v in keys["workload_private_for_wpt_txt"].items() if k != "d"}
    key = jws.read_jwk(public)
    assert isinstance(key, ed25519.Ed25519PublicKey)
    opened = jws.unseal(text, typ="wpt+jwt", key=key, algorithms=jws.FOREIGN_ALGORITHMS)
    wit = (VECTORS / "wit" / "wimse-s2s-draft" / "wit.txt").read_text().strip()
    assert opened.claims["wth"] == jws.s256(wit)
    with pytest.raises(AlgorithmNotAllowed):
        jws.unseal(text, typ="wpt+jwt", key=key)
    with pytest.raises(Malformed):
        jws.read_ec_jwk(public)


def test_keys_on_other_curves_are_not_taken() -> None:
    key = ec.generate_private_key(ec.SECP521R1())
    with pytest.raises(AlgorithmNotAllowed):
        jws.seal({}, typ=TYP, signer=KeySigner(key))
    with pytest.raises(AlgorithmNotAllowed):
        jws.jkt(key.public_key())
