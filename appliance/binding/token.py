"""The WIT (`wit+jwt`): the workload identity token of an agent, with its owner in one claim of the operator's name.

Digest form carries the approval's hash and is the default; full form carries the approval itself, for verifiers of
another organisation. A WIT has no audience and proves nothing without a proof by the key in `cnf`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws
from appliance.binding.approval import MAX_BYTES as MAX_APPROVAL
from appliance.binding.claims import Claims
from appliance.binding.errors import SignatureInvalid, WitHasAudience, WitKeyWithoutAlgorithm
from appliance.binding.facts import Model
from appliance.binding.identifier import Kind
from appliance.binding.identifier import read as read_identifier
from est.signer import Signer

TYP = "wit+jwt"

_MODELS = {str(model): model for model in Model}
_OWNER_CLAIMS = frozenset({"sub", "jwk", "model", "apv", "apv_s256"})


class WitOwner(NamedTuple):
    """Owner data of a WIT: name, key, issuance model, and the approval (full form) or its hash (digest form)."""

    sub: str
    key: ec.EllipticCurvePublicKey
    model: Model
    apv: str | None = None
    apv_s256: str | None = None


class Wit(NamedTuple):
    """A WIT whose signature has been verified. Times are seconds since 1970; `owner` None is a single identity."""

    token: str
    kid: str
    sub: str
    iss: str | None
    """Always there in ours; other people's may have none."""
    iat: int
    exp: int
    jti: str
    key: jws.PublicKey
    owner: WitOwner | None


def owner_claim_of(trust_domain: str) -> str:
    """The collision-resistant default name of the owner claim (RFC 7519, section 4.2)."""
    return f"{trust_domain}/owner"


def seal(
    signer: Signer,
    *,
    kid: str,
    sub: str,
    iss: str,
    iat: int,
    exp: int,
    jti: str,
    key: ec.EllipticCurvePublicKey,
    owner: WitOwner | None = None,
    owner_claim: str,
) -> str:
    """A WIT signed by the server; `iss` is a URN, so that nobody takes it for an OpenID issuer."""
    claims: dict[str, object] = {"sub": sub, "iss": iss, "iat": iat, "exp": exp, "jti": jti}
    claims["cnf"] = {"jwk": jws.jwk(key, algorithm=True)}
    if owner is not None:
        approval = {"apv": owner.apv} if owner.apv is not None else {"apv_s256": owner.apv_s256}
        claims[owner_claim] = {"sub": owner.sub, "jwk": jws.jwk(owner.key), "model": str(owner.model), **approval}
    return jws.seal(claims, typ=TYP, signer=signer, header={"kid": kid})


def unseal(
    token: str,
    keys: Mapping[str, jws.PublicKey],
    *,
    owner_claim: str,
    algorithms: Collection[str] = jws.ES256,
) -> Wit:
    """Opens a WIT with the issuer key that its `kid` names, and reads it.

    Raises Malformed, SignatureInvalid (also for an unknown kid), AlgorithmNotAllowed, TokenTypeWrong, WitHasAudience,
    WitKeyWithoutAlgorithm, Claim..., Identifier... .
    """
    sealed = jws.read(token)
    key = keys.get(sealed.kid) if sealed.kid is not None else None
    if key is None or sealed.kid is None:
        raise SignatureInvalid("no known issuer key made this signature")
    claims = Claims(sealed.unseal(typ=TYP, key=key, algorithms=algorithms).claims, "WIT")
    if "aud" in claims:
        raise WitHasAudience("a WIT has no audience")
    iat, exp = claims.window()
    return Wit(
        token=token,
        kid=sealed.kid,
        sub=read_identifier(claims.text("sub")).uri,
        iss=claims.text("iss") if "iss" in claims else None,
        iat=iat,
        exp=exp,
        jti=claims.text("jti", max_length=128),
        key=_read_confirmation(claims),
        owner=_read_owner(claims.inner(owner_claim)) if owner_claim in claims else None,
    )


def _read_confirmation(claims: Claims) -> jws.PublicKey:
    confirmation = claims.inner("cnf")
    value = confirmation.value("jwk")
    key = jws.read_jwk(value, what="cnf.jwk")
    if not isinstance(value, dict) or "alg" not in value:
        raise WitKeyWithoutAlgorithm("cnf.jwk lacks alg")
    return key


def _read_owner(claims: Claims) -> WitOwner:
    claims.check_names(_OWNER_CLAIMS)
    if ("apv" in claims) == ("apv_s256" in claims):
        raise claims.malformed("apv", "there beside apv_s256, or instead of it: exactly one of the two is due")
    return WitOwner(
        sub=claims.identifier("sub", Kind.OWNER),
        key=jws.read_ec_jwk(claims.value("jwk"), what="owner jwk"),
        model=_MODELS[claims.choice("model", _MODELS)],
        apv=claims.text("apv", max_length=MAX_APPROVAL) if "apv" in claims else None,
        apv_s256=claims.hash("apv_s256") if "apv_s256" in claims else None,
    )
