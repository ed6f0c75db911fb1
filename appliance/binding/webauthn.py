"""The second form of a signature: a passkey's, by a WebAuthn assertion (W3C Web Authentication Level 2, section 7.2).

FIDO2 keys sign no bytes of others, only their own data and the hash of a browser-like client data. So the challenge in
the client data is the SHA-256 of the very signing input that a JWS would have signed, and the compact text is

    header.payload~authenticatorData~clientDataJSON~signature        (each part in base64url)

Everything that is said stands in header and payload, as in the first form. A key has one form for ever: what a passkey
signed never passes as a JWS, nor the other way round.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws
from appliance.binding.errors import (
    Malformed,
    PasskeyChallengeMismatch,
    PasskeyOriginMismatch,
    PasskeyUserNotVerified,
    SignatureFormWrong,
    SignatureInvalid,
)
from appliance.binding.jws import PublicKey, Sealed
from est.keys import is_ec
from est.signer import Signer

SEPARATOR = "~"
MAX_CLIENT_DATA = 1024
_AUTHENTICATOR_DATA = 37
_UP, _UV, _BE, _BS, _AT, _ED = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80
_ECDSA = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Passkey:
    """Where a passkey was registered: it signs for this relying party and origin alone."""

    rp_id: str
    origin: str


@dataclass(frozen=True, slots=True)
class Assertion:
    """What an authenticator gives back, octet for octet."""

    authenticator_data: bytes
    client_data: bytes
    signature: bytes
    """ECDSA with SHA-256, DER."""


@runtime_checkable
class Authenticator(Protocol):
    """A passkey at hand: asks its user, and signs."""

    passkey: Passkey

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key's public half, on P-256."""
        ...

    def assertion(self, challenge: bytes) -> Assertion:
        """An assertion over this challenge, with the user verified."""
        ...


@dataclass(frozen=True, slots=True)
class SealedByPasskey(Sealed):
    """A token of the second form, taken apart and not believed. `signature` is the DER one."""

    authenticator_data: bytes
    client_data: bytes

    @property
    def sign_count(self) -> int:
        """The authenticator's signature counter; 0 where it has none."""
        return int.from_bytes(self.authenticator_data[33:37], "big")

    def check(
        self,
        *,
        typ: str,
        key: PublicKey,
        algorithms: Collection[str] = jws.ES256,
        kid: str | None = None,
        passkey: Passkey | None = None,
    ) -> None:
        """As Sealed.check; `passkey` says where the key was registered.

        Raises SignatureFormWrong for a key that is no passkey, Passkey..., and what Sealed.check raises.
        """
        if passkey is None:
            raise SignatureFormWrong("a passkey's signature by a key that is registered as none")
        self._check_signature(key)
        self._check_ceremony(passkey)
        self._check_header(typ, "ES256", kid)

    def _check_signature(self, key: PublicKey) -> None:
        if not is_ec(key) or key.curve.name != "secp256r1":
            raise SignatureFormWrong("passkeys sign with P-256 keys here")
        try:
            key.verify(self.signature, self.authenticator_data + hashlib.sha256(self.client_data).digest(), _ECDSA)
        except InvalidSignature as error:
            raise SignatureInvalid("the passkey's signature does not verify") from error

    def _check_ceremony(self, passkey: Passkey) -> None:
        data = self.authenticator_data
        client = jws.read_object(self.client_data, "client data")
        if client.get("type") != "webauthn.get":
            raise PasskeyChallengeMismatch("the client data is not an assertion's")
        if client.get("challenge") != jws.base64url(hashlib.sha256(self.signing_input).digest()):
            raise PasskeyChallengeMismatch("the passkey signed another challenge than the hash of this text")
        if client.get("origin") != passkey.origin or client.get("crossOrigin", False) is not False:
            raise PasskeyOriginMismatch("the passkey was used from another origin")
        if data[:32] != hashlib.sha256(passkey.rp_id.encode()).digest():
            raise PasskeyOriginMismatch("the passkey was used for another relying party")
        flags = data[32]
        if not flags & _UP or not flags & _UV:
            raise PasskeyUserNotVerified("the passkey did not verify that its user is there (UP and UV)")
        if flags & (_AT | _ED) or (flags & _BS and not flags & _BE):
            raise Malformed("the assertion's flags do not fit together or to its length", object="passkey")


def read(token: str, *, max_bytes: int = jws.MAX_BYTES) -> Sealed:
    """Takes a token of either form apart without believing it; raises Malformed."""
    if SEPARATOR not in token:
        return jws.read(token, max_bytes=max_bytes)
    if len(token) > max_bytes:
        raise Malformed(f"a token has at most {max_bytes} bytes", object="token")
    parts = token.split(SEPARATOR)
    if len(parts) != 4:
        raise Malformed("a passkey's token has four parts between tildes", object="token")
    inner = jws.read(f"{parts[0]}.", max_bytes=max_bytes)
    data, client, signature = (jws.unbase64url(part, "passkey") for part in parts[1:])
    if len(data) != _AUTHENTICATOR_DATA:
        raise Malformed(f"authenticator data of an assertion has {_AUTHENTICATOR_DATA} octets here", object="passkey")
    if not 0 < len(client) <= MAX_CLIENT_DATA or not 0 < len(signature) <= 80:
        raise Malformed("client data or signature is empty or too long", object="passkey")
    return SealedByPasskey(token, inner.header, inner.signing_input, inner.payload, signature, data, client)


def seal(
    claims: Mapping[str, object],
    *,
    typ: str,
    signer: Signer | Authenticator,
    header: Mapping[str, object] | None = None,
) -> str:
    """The compact text over these claims, in the form that the signer has."""
    if not isinstance(signer, Authenticator):
        return jws.seal(claims, typ=typ, signer=signer, header=header)
    signing_input = jws.signing_input(claims, typ=typ, algorithm="ES256", header=header)
    made = signer.assertion(hashlib.sha256(signing_input.encode("ascii")).digest())
    parts = (made.authenticator_data, made.client_data, made.signature)
    return SEPARATOR.join((signing_input, *(jws.base64url(part) for part in parts)))


def passkey_of(signer: Signer | Authenticator) -> Passkey | None:
    """Where a signer's key is registered, if it is a passkey."""
    return signer.passkey if isinstance(signer, Authenticator) else None
