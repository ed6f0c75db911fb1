"""Compact JWS as every signed object here uses it (RFC 7515, RFC 7518), and public keys as JWK (RFC 7517, RFC 7638).

Small on purpose: one serialisation, three algorithms, each fixed by the key that verifies and never by the token. The
signature is verified before anything in header or payload is believed, so a damaged token is `signature-invalid` or
`malformed` and nothing else. `typ` is compared exactly, which keeps one object's signature from passing for another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.binding.errors import (
    AlgorithmNotAllowed,
    CriticalHeaderUnknown,
    KeyIdMismatch,
    Malformed,
    PrivateKeyExposed,
    SignatureFormWrong,
    SignatureInvalid,
    TokenTypeWrong,
)
from est import jose
from est.errors import EstError
from est.jose import base64url as base64url
from est.json_text import encoder_of
from est.kept import KEPT, keep, kept_by_identity
from est.keys import is_ec, read_spki, spki_of_point
from est.signer import Signer
from est.transfer import read_json

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

MAX_BYTES = 16_384
ES256 = frozenset({"ES256"})
OWNER_ALGORITHMS = frozenset({"ES256", "ES384"})
FOREIGN_ALGORITHMS = frozenset({"ES256", "ES384", "EdDSA"})
"""With Ed25519, which we verify in other people's tokens and never make."""

_CURVES: dict[str, tuple[str, int, ec.EllipticCurve, str]] = {
    "secp256r1": ("P-256", 32, ec.SECP256R1(), "ES256"),
    "secp384r1": ("P-384", 48, ec.SECP384R1(), "ES384"),
}
_BY_JWK_NAME = {row[0]: row for row in _CURVES.values()}
_encode = encoder_of(ensure_ascii=True)
_ECDSA = {"ES256": ec.ECDSA(hashes.SHA256()), "ES384": ec.ECDSA(hashes.SHA384())}
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_KID = frozenset({"kid"})
_SHORT_HEADER = 160
"""Length in base64url of a header that names its key by kid; the next token by that key has the same one."""


class Jws(NamedTuple):
    """An opened token: its signature is good, its type the expected one."""

    token: str
    header: Mapping[str, object]
    claims: Mapping[str, object]


class OwnKey(NamedTuple):
    """A key out of a token's header, with its two names: thumbprint and SHA-256 of its SubjectPublicKeyInfo."""

    key: ec.EllipticCurvePublicKey
    jkt: str
    spki_sha256: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """A token taken apart but not believed: only the header is readable, to find the key; `unseal` opens it."""

    token: str
    header: Mapping[str, object]
    signing_input: bytes
    payload: bytes
    signature: bytes

    def own_key(self) -> OwnKey:
        """The key in the token's own header, for proofs of possession; raises like read_ec_jwk."""
        value = self.header.get("jwk")
        key = read_ec_jwk(value)
        assert isinstance(value, dict)
        return OwnKey(key, jkt_of(value), _read_point(value["crv"], value["x"], value["y"])[1])

    @property
    def kid(self) -> str | None:
        """The key that the token says it was signed with."""
        kid = self.header.get("kid")
        return kid if isinstance(kid, str) else None

    @property
    def sign_count(self) -> int | None:
        """The counter of the authenticator that signed; None in this form, which has none."""
        return None

    def unseal(
        self,
        *,
        typ: str,
        key: PublicKey,
        algorithms: Collection[str] = ES256,
        kid: str | None = None,
        passkey: Any = None,
    ) -> Jws:
        """Verifies with `key`, then checks header and JSON; with `kid`, the header must name exactly that key.

        `passkey` says that the key is registered as one, whose signatures have another form (webauthn.py).

        Raises SignatureInvalid, Malformed, AlgorithmNotAllowed, CriticalHeaderUnknown, TokenTypeWrong, KeyIdMismatch,
        SignatureFormWrong.
        """
        self.check(typ=typ, key=key, algorithms=algorithms, kid=kid, passkey=passkey)
        return Jws(self.token, self.header, read_object(self.payload, "payload"))

    def check(
        self,
        *,
        typ: str,
        key: PublicKey,
        algorithms: Collection[str] = ES256,
        kid: str | None = None,
        passkey: Any = None,
    ) -> None:
        """`unseal` for a payload that is not read here; raises the same."""
        if passkey is not None:
            raise SignatureFormWrong("a passkey does not sign in this form")
        algorithm = algorithm_of(key)
        if algorithm not in algorithms:
            raise AlgorithmNotAllowed(f"{algorithm} is not allowed here", allowed=sorted(algorithms))
        self._verify(key, algorithm, self.header.get("alg"))
        self._check_header(typ, algorithm, kid)

    def _check_header(self, typ: str, algorithm: str, kid: str | None) -> None:
        """What the header must say once the signature was verified."""
        if self.header.get("alg") != algorithm:
            raise AlgorithmNotAllowed("the header names another algorithm than the key's", allowed=[algorithm])
        if "crit" in self.header:
            raise CriticalHeaderUnknown("the header has crit, and no extension is known here")
        if self.header.get("typ") != typ:
            raise TokenTypeWrong(f"this is not a {typ}", expected=typ, found=str(self.header.get("typ"))[:64])
        if kid is not None and self.header.get("kid") != kid:
            raise KeyIdMismatch("kid names another key than the one that signed")

    def _verify(self, key: PublicKey, algorithm: str, named: object) -> None:
        half = 48 if algorithm == "ES384" else 32
        if len(self.signature) != 2 * half:
            # nothing that could be verified: say so if the reason is alg none or a MAC, and not a damaged token
            if named != algorithm:
                raise AlgorithmNotAllowed("the header names no algorithm that is allowed here", allowed=[algorithm])
            raise Malformed(f"an {algorithm} signature has {2 * half} bytes", object="signature")
        try:
            if is_ec(key):
                key.verify(jose.read_ecdsa(self.signature, half), self.signing_input, _ECDSA[algorithm])
            else:
                assert isinstance(key, ed25519.Ed25519PublicKey)  # algorithm_of knows no third kind
                key.verify(self.signature, self.signing_input)
        except InvalidSignature as error:
            raise SignatureInvalid("the signature does not verify") from error


def read(token: str, *, max_bytes: int = MAX_BYTES) -> Sealed:
    """Takes a compact JWS apart without believing it; raises Malformed."""
    if len(token) > max_bytes:
        raise Malformed(f"a token has at most {max_bytes} bytes", object="token")
    try:
        header, payload, signature = (octets := token.encode("ascii")).split(b".")
    except (UnicodeEncodeError, ValueError) as error:
        raise Malformed("a token has three parts, in ASCII", object="token") from error
    return Sealed(
        token,
        _read_short_header(header) if len(header) <= _SHORT_HEADER else _read_header(header),
        octets[: len(header) + 1 + len(payload)],
        _unbase64url(payload, "payload"),
        _unbase64url(signature, "signature"),
    )


def unseal(token: str, *, typ: str, key: PublicKey, algorithms: Collection[str] = ES256, kid: str | None = None) -> Jws:
    """Opens a token signed with `key`; raises what `read` and `Sealed.unseal` raise."""
    return read(token).unseal(typ=typ, key=key, algorithms=algorithms, kid=kid)


def seal(claims: Mapping[str, object], *, typ: str, signer: Signer, header: Mapping[str, object] | None = None) -> str:
    """The compact JWS over these claims, with ES256 or ES384 as the signer's curve says."""
    algorithm = algorithm_of(signer.public_key())
    half = 48 if algorithm == "ES384" else 32
    signed = signing_input(claims, typ=typ, algorithm=algorithm, header=header)
    return f"{signed}.{base64url(jose.write_ecdsa(signer.sign(signed.encode('ascii')), half))}"


def signing_input(
    claims: Mapping[str, object], *, typ: str, algorithm: str, header: Mapping[str, object] | None = None
) -> str:
    """Header and payload as they are signed (RFC 7515, section 5.1)."""
    head = {"alg": algorithm, "typ": typ, **(header or {})}
    protected = _write_short_header(*head.items()) if header is None or header.keys() == _KID else _compact(head)
    return f"{protected}.{_compact(claims)}"


def algorithm_of(key: object) -> str:
    """The one JWS algorithm for this key; raises AlgorithmNotAllowed for keys that we do not take."""
    if is_ec(key):
        curve = _CURVES.get(key.curve.name)
        if curve is not None:
            return curve[3]
    elif isinstance(key, ed25519.Ed25519PublicKey):
        return "EdDSA"
    raise AlgorithmNotAllowed("only P-256 and P-384 keys sign here")


def jwk(key: ec.EllipticCurvePublicKey, *, algorithm: bool = False) -> dict[str, str]:
    """The public key as JWK (RFC 7518, section 6.2.1), on request with its `alg`."""
    return {**_members(key), "alg": algorithm_of(key)} if algorithm else {**_members(key)}


@kept_by_identity
def jkt(key: ec.EllipticCurvePublicKey) -> str:
    """The key's thumbprint (RFC 7638): base64url SHA-256 of the JWK's required members, in order of their names."""
    return jkt_of(_members(key))


def jkt_of(members: Mapping[str, object]) -> str:
    """The thumbprint of an elliptic curve JWK that `read_ec_jwk` has accepted."""
    return s256(f'{{"crv":"{members["crv"]}","kty":"EC","x":"{members["x"]}","y":"{members["y"]}"}}')


def read_jwk(value: object, *, what: str = "jwk") -> PublicKey:
    """The key in a public JWK: EC on P-256 or P-384, or Ed25519; raises Malformed, PrivateKeyExposed.

    `alg`, where present, must be the key's own.
    """
    if not isinstance(value, dict):
        raise Malformed("a JWK is an object", object=what)
    key = _read_public(value, what)
    if value.keys() & _PRIVATE_MEMBERS:
        raise PrivateKeyExposed("the JWK carries a private key", object=what)
    if "alg" in value and value["alg"] != algorithm_of(key):
        raise Malformed("the JWK's alg is not its key's", object=what)
    return key


def read_ec_jwk(value: object, *, what: str = "jwk") -> ec.EllipticCurvePublicKey:
    """Like read_jwk, elliptic curves only."""
    key = read_jwk(value, what=what)
    if not is_ec(key):
        raise Malformed("the JWK is not an elliptic curve key", object=what)
    return key


def unbase64url(text: str, what: str) -> bytes:
    """The octets of canonical base64url: no padding, no other character, no stray bits; raises Malformed."""
    try:
        return _unbase64url(text.encode("ascii"), what)
    except UnicodeEncodeError as error:
        raise Malformed(f"the {what} is not base64url", object=what) from error


def s256(data: bytes | str) -> str:
    """base64url of SHA-256; of a token: over the ASCII of its compact form."""
    return base64url(hashlib.sha256(data.encode("ascii") if isinstance(data, str) else data).digest())


def _read_header(header: bytes) -> Mapping[str, object]:
    return MappingProxyType(read_object(_unbase64url(header, "header"), "header"))


_read_short_header = lru_cache(maxsize=KEPT)(_read_header)


@lru_cache(maxsize=64)
def _write_short_header(*members: tuple[str, object]) -> str:
    return _compact(dict(members))


def read_object(octets: bytes, what: str) -> dict[str, object]:
    """A JSON object with everything refused that two readers could read differently; raises Malformed."""
    try:
        value = read_json(octets, max_bytes=MAX_BYTES)
    except EstError as error:
        raise Malformed(f"the {what} is not acceptable JSON: {error.detail}", object=what) from error
    if not isinstance(value, dict):
        raise Malformed(f"the {what} is not a JSON object", object=what)
    return value


def _read_public(value: Mapping[str, object], what: str) -> PublicKey:
    kind, name, x, y = value.get("kty"), value.get("crv"), value.get("x"), value.get("y")
    try:
        if (
            kind == "EC"
            and isinstance(name, str)
            and name in _BY_JWK_NAME
            and isinstance(x, str)
            and isinstance(y, str)
        ):
            return _read_point(name, x, y)[0]
        if kind == "OKP" and name == "Ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(_coordinate(x, "x", 32))
    except Malformed as error:
        raise Malformed(error.detail, object=what) from error
    except ValueError as error:
        raise Malformed("the JWK's point is not on its curve", object=what) from error
    raise Malformed("the JWK is neither P-256, P-384 nor Ed25519, or has no coordinates", object=what)


@lru_cache(maxsize=KEPT)
def _read_point(name: str, x: str, y: str) -> tuple[ec.EllipticCurvePublicKey, bytes]:
    """The key of a point, which must be on the curve, and the SHA-256 of its SubjectPublicKeyInfo.

    Owners' keys come again and again, an agent's comes in its request and in what is made for it.
    """
    _, size, curve, _ = _BY_JWK_NAME[name]
    der = spki_of_point(curve.name, b"\x04" + _coordinate(x, "x", size) + _coordinate(y, "y", size))
    key = read_spki(der)
    assert is_ec(key)  # the octets before the point say so
    keep(_kept_members, key, {"crv": name, "kty": "EC", "x": x, "y": y})
    return key, hashlib.sha256(der).digest()


def _coordinate(text: object, name: str, size: int) -> bytes:
    octets = unbase64url(text, "jwk") if isinstance(text, str) else b""
    if len(octets) != size:
        raise Malformed(f"the JWK's {name} does not have {size} bytes", object="jwk")
    return octets


def _make_members(key: ec.EllipticCurvePublicKey) -> Mapping[str, str]:
    if key.curve.name not in _CURVES:
        raise AlgorithmNotAllowed("only P-256 and P-384 keys sign here")
    name, size, _, _ = _CURVES[key.curve.name]
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return {"crv": name, "kty": "EC", "x": base64url(point[1 : size + 1]), "y": base64url(point[size + 1 :])}


_kept_members: dict[int, tuple[object, Mapping[str, str]]] = {}
_members = kept_by_identity(_make_members, _kept_members)


def _compact(value: Mapping[str, object]) -> str:
    return base64url(_encode(value).encode("ascii"))


def _unbase64url(text: bytes, what: str) -> bytes:
    try:
        return jose.unbase64url(text)
    except ValueError as error:
        raise Malformed(f"the {what} is {error}", object=what) from error
