"""The owner key statement: an owner's new key says whose it is, for whom, and where it lives.

An approval key states itself as `owner-key+jwt`, the client key of an owner's tool as `owner-client-key+jwt`: neither
can be taken in as the other, nor as the server key of an owner's gateway, `owner-gateway-key+jwt`. Signed by that key
itself, so a statement proves possession and nothing more: that the owner really is the owner is for the administrator
who takes it in.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws, webauthn
from appliance.binding.claims import Claims, check_window
from appliance.binding.errors import (
    SignatureFormWrong,
    StatementExpired,
    StatementForOtherOwner,
    StatementNotYetValid,
    StatementWindowTooLong,
    StatementWrongAudience,
)
from appliance.binding.facts import PROTECTIONS, Limits, seconds
from appliance.binding.webauthn import Authenticator, Passkey
from est.signer import Signer

TYP = "owner-key+jwt"
CLIENT_TYP = "owner-client-key+jwt"
GATEWAY_TYP = "owner-gateway-key+jwt"
MAX_WINDOW_SECONDS = 30 * 86_400
"""Longest life of a statement: it travels to an administrator by hand."""

_CLAIMS = frozenset({"sub", "aud", "iat", "exp", "jti", "protection", "rp_id", "origin", "credential"})
_PASSKEY_CLAIMS = frozenset({"rp_id", "origin", "credential"})


@dataclass(frozen=True, slots=True)
class KeyStatement:
    """A statement whose signature has been verified with the key in it. Times are seconds since 1970."""

    token: str
    key: ec.EllipticCurvePublicKey
    jkt: str
    sub: str
    """The owner as the directory calls it (`ref`), or the owner's identifier."""
    aud: str
    """Origin of the trust domain that is to know the key."""
    iat: int
    exp: int
    jti: str
    protection: str
    passkey: Passkey | None = None
    """Where it is registered, if it is a passkey."""
    credential: str | None = None
    """The passkey's credential id, base64url."""
    sign_count: int | None = None


def seal(
    signer: Signer | Authenticator,
    *,
    sub: str,
    aud: str,
    iat: int,
    exp: int,
    jti: str,
    protection: str = "software",
    typ: str = TYP,
    credential: str | None = None,
) -> str:
    """A statement signed by the key that it is about; `credential` is a passkey's credential id, base64url."""
    claims: dict[str, object] = {"sub": sub, "aud": aud, "iat": iat, "exp": exp, "jti": jti, "protection": protection}
    passkey = webauthn.passkey_of(signer)
    if passkey is not None:
        claims |= {"protection": "passkey", "rp_id": passkey.rp_id, "origin": passkey.origin, "credential": credential}
    return webauthn.seal(claims, typ=typ, signer=signer, header={"jwk": jws.jwk(signer.public_key(), algorithm=True)})


def unseal(token: str, *, typ: str = TYP) -> KeyStatement:
    """Proof of possession: opens the statement with the key in its own header and reads it.

    Raises Malformed, SignatureInvalid, PrivateKeyExposed, AlgorithmNotAllowed, TokenTypeWrong, Claim... .
    """
    sealed = webauthn.read(token)
    key, jkt, _ = sealed.own_key()
    passkey = None if sealed.sign_count is None else _passkey(sealed)
    opened = sealed.unseal(typ=typ, key=key, algorithms=jws.OWNER_ALGORITHMS, passkey=passkey)
    claims = Claims(opened.claims, "owner key statement")
    claims.check_names(_CLAIMS if passkey is not None else _CLAIMS - _PASSKEY_CLAIMS)
    if (claims.value("protection") == "passkey") != (passkey is not None):
        raise SignatureFormWrong("a passkey states itself in its own form, and no other key does")
    iat, exp = claims.window()
    return KeyStatement(
        token=token,
        key=key,
        jkt=jkt,
        sub=claims.text("sub", max_length=256),
        aud=claims.text("aud", max_length=512),
        iat=iat,
        exp=exp,
        jti=claims.token_id(),
        protection=claims.choice("protection", PROTECTIONS),
        passkey=passkey,
        credential=None if passkey is None else claims.text("credential", max_length=1400),
        sign_count=sealed.sign_count,
    )


def _passkey(sealed: jws.Sealed) -> Passkey:
    """Where the statement says that the passkey is registered; whether that is so, its signature will show."""
    said = Claims(jws.read_object(sealed.payload, "payload"), "owner key statement")
    return Passkey(said.text("rp_id", max_length=253), said.text("origin", max_length=300))


def check(
    statement: KeyStatement,
    *,
    names: Collection[str],
    audience: str,
    now: datetime,
    limits: Limits | None = None,
) -> None:
    """Refuses a statement for another owner (`names`: ref and identifier), trust domain or time."""
    limits = limits or Limits()
    if statement.aud != audience:
        raise StatementWrongAudience("the statement is addressed to another trust domain")
    if statement.sub not in names:
        raise StatementForOtherOwner("the statement is another owner's")
    check_window(
        statement.iat,
        statement.exp,
        seconds(now),
        skew_seconds=limits.skew_seconds,
        longest_seconds=MAX_WINDOW_SECONDS,
        early=StatementNotYetValid,
        late=StatementExpired,
        long=StatementWindowTooLong,
    )
