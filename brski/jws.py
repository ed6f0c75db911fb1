"""JWS as vouchers use it: General JSON serialisation, one signature, the signer's chain in x5c.

RFC 7515, section 7.2.1; RFC 7518; draft-ietf-anima-jws-voucher-16, section 3. The algorithm follows from the signer's
key, never from the header alone. Compact and flattened forms are not read, nor is more than one signature. Chains are
the caller's business (`est.chains`).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from brski.errors import JwsMalformed, JwsNotAccepted, JwsSignatureInvalid
from est import jose
from est.certificates import load_certificate, read_certificate
from est.errors import BodyMalformed
from est.keys import PublicKey, public_key_of
from est.signer import Signer
from est.transfer import read_json

TYP = "voucher-jws+json"
MAX_BYTES = 262_144
MAX_DEPTH = 8
MAX_CERTIFICATES = 32

_CURVES: dict[str, tuple[str, int, ec.ECDSA]] = {
    "secp256r1": ("ES256", 32, ec.ECDSA(hashes.SHA256())),
    "secp384r1": ("ES384", 48, ec.ECDSA(hashes.SHA384())),
}
_RSA_PADDINGS: dict[str, padding.AsymmetricPadding] = {
    "RS256": padding.PKCS1v15(),
    "PS256": padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size),
}
# RFC 7515, section 4.1: these say how to verify, so they count only where they are signed themselves
_PROTECTED_ONLY = frozenset({"alg", "jku", "jwk", "kid", "x5u", "x5c", "x5t", "x5t#S256", "typ", "cty", "crit", "b64"})
# RFC 7515, section 7.2.2: members of the flattened form, which must not stand beside "signatures"
_FLATTENED = frozenset({"protected", "header", "signature"})


@dataclass(frozen=True, slots=True)
class Jws:
    """Content whose signature was verified with the key of the first of `certificates`; the chain was not."""

    content: bytes
    certificates: tuple[x509.Certificate, ...]
    algorithm: str


def seal(
    content: bytes,
    *,
    signer: Signer,
    certificate: x509.Certificate,
    certificates: Sequence[x509.Certificate] = (),
) -> bytes:
    """The JWS around `content`, signed by the key of `certificate`; `certificates` is the rest of the chain."""
    algorithm, half, _ = _CURVES[signer.public_key().curve.name]
    chain = dict.fromkeys(one.public_bytes(Encoding.DER) for one in (certificate, *certificates))
    header = {"alg": algorithm, "typ": TYP, "x5c": [base64.b64encode(der).decode("ascii") for der in chain]}
    protected = jose.base64url(json.dumps(header, separators=(",", ":")).encode("ascii"))
    payload = jose.base64url(content)
    signature = jose.base64url(jose.write_ecdsa(signer.sign(f"{protected}.{payload}".encode("ascii")), half))
    document = {"payload": payload, "signatures": [{"protected": protected, "signature": signature}]}
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def unseal(body: bytes, *, max_bytes: int = MAX_BYTES) -> Jws:
    """Read a JWS and verify its one signature with the first certificate of x5c.

    Raises BodyTooLarge, JwsMalformed (not this structure), JwsNotAccepted (header, algorithm, number of signatures),
    JwsSignatureInvalid, KeyNotAccepted, CertificateMalformed.
    """
    document = _read_object(body, "JWS", max_bytes)
    if _FLATTENED & document.keys():
        raise JwsNotAccepted("the JWS is flattened or mixes both JSON forms")
    payload = _member(document, "payload")
    protected, signature, unprotected = _read_signatures(document.get("signatures"))
    header = _read_object(_unbase64url(protected, "protected header"), "protected header", max_bytes)
    if unprotected & header.keys():
        raise JwsNotAccepted("a header parameter is both protected and unprotected")
    certificates = _read_header(header)
    key = public_key_of(certificates[0])
    algorithm = _check_algorithm(key, header.get("alg"))
    _verify(key, algorithm, _unbase64url(signature, "signature"), f"{protected}.{payload}".encode())
    return Jws(_unbase64url(payload, "payload"), certificates, algorithm)


def _read_signatures(value: object) -> tuple[str, str, frozenset[str]]:
    """Of the one signature: protected header and signature, both still base64url, and names that are not protected."""
    if not isinstance(value, list) or not value:
        raise JwsMalformed("the JWS has no signatures, or is in another than the general JSON form")
    if len(value) > 1:
        raise JwsNotAccepted("the JWS has more than one signature")
    one = value[0]
    if not isinstance(one, dict):
        raise JwsMalformed("a signature of the JWS is not an object")
    unprotected = one.get("header", {})
    if not isinstance(unprotected, dict):
        raise JwsMalformed("the unprotected header is not an object")
    if forbidden := sorted(_PROTECTED_ONLY & unprotected.keys()):
        raise JwsNotAccepted(f"the unprotected header carries {', '.join(forbidden)}")
    return _member(one, "protected"), _member(one, "signature"), frozenset(unprotected)


def _read_header(header: Mapping[str, object]) -> tuple[x509.Certificate, ...]:
    """The certificates of a protected header that asks for nothing we do not know."""
    if "crit" in header or "b64" in header:
        raise JwsNotAccepted("the protected header has crit or b64, and no extension is known here")
    if header.get("typ", TYP) != TYP:
        raise JwsNotAccepted(f"typ is not {TYP}")
    x5c = header.get("x5c")
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= MAX_CERTIFICATES:
        raise JwsNotAccepted(f"x5c does not hold 1 to {MAX_CERTIFICATES} certificates")
    ders = dict.fromkeys(_read_der(one) for one in x5c)
    leaf, *rest = ders
    return (read_certificate(leaf), *(load_certificate(one) for one in rest))


def _read_der(value: object) -> bytes:
    """Standard base64 with padding, unlike everything else in a JWS (RFC 7515, section 4.1.6)."""
    if not isinstance(value, str):
        raise JwsMalformed("x5c holds something that is not a string")
    try:
        der = binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise JwsMalformed("x5c is not standard base64") from error
    if base64.b64encode(der).decode("ascii") != value:
        raise JwsMalformed("x5c is not canonical base64")
    return der


def _check_algorithm(key: PublicKey, named: object) -> str:
    """The algorithm in the header, if it is one of this key."""
    allowed = tuple(_RSA_PADDINGS) if isinstance(key, rsa.RSAPublicKey) else (_CURVES[key.curve.name][0],)
    if not isinstance(named, str) or named not in allowed:
        raise JwsNotAccepted("alg is not an algorithm of the signer's key", allowed=allowed)
    return named


def _verify(key: PublicKey, algorithm: str, signature: bytes, signed: bytes) -> None:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, _RSA_PADDINGS[algorithm], hashes.SHA256())
        else:
            _, half, ecdsa = _CURVES[key.curve.name]
            key.verify(jose.read_ecdsa(signature, half), signed, ecdsa)
    except ValueError as error:
        raise JwsMalformed(f"the signature is not one of {algorithm}: r and s of fixed length") from error
    except InvalidSignature as error:
        raise JwsSignatureInvalid("the signature does not match") from error


def _read_object(octets: bytes, what: str, max_bytes: int) -> dict[str, object]:
    try:
        value = read_json(octets, max_bytes=max_bytes, max_depth=MAX_DEPTH)
    except BodyMalformed as error:
        raise JwsMalformed(f"the {what} is not acceptable JSON: {error.detail}") from error
    if not isinstance(value, dict):
        raise JwsMalformed(f"the {what} is not a JSON object")
    return value


def _member(document: Mapping[str, object], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise JwsMalformed(f"{name} is missing or not a string")
    return value


def _unbase64url(text: str, what: str) -> bytes:
    try:
        return jose.unbase64url(text.encode("ascii"))
    except ValueError as error:
        raise JwsMalformed(f"the {what} is not base64url without padding") from error
