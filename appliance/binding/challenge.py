"""The binding challenge (`binding-challenge+jwt`): the server asks an owner about exactly one agent request.

The owner's answer is an owner approval (or denial) that carries the challenge's nonce. What the challenge says about
the request is only good when it says the same as the request's own bytes, which the owner's tool reads itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws
from appliance.binding.claims import Claims, check_window
from appliance.binding.errors import (
    ChallengeExpired,
    ChallengeForOtherRequest,
    ChallengeInconsistent,
    ChallengeNotYetValid,
    ChallengeWindowTooLong,
    ChallengeWrongOwner,
    ChallengeWrongServer,
)
from appliance.binding.facts import PROFILES, PURPOSES, SERVER_MEDIATED_SECONDS, Limits, seconds
from appliance.binding.identifier import Kind
from appliance.binding.request import MAX_TTL_SECONDS, AgentRequest
from est.signer import Signer

TYP = "binding-challenge+jwt"
MAX_BYTES = 4096

_CLAIMS = frozenset(
    {"iss", "aud", "sub", "cnf", "rqh", "nonce", "iat", "exp", "jti", "proxy", "purpose", "profiles", "ttl"}
)


@dataclass(frozen=True, slots=True)
class BindingChallenge:
    """A challenge whose signature has been verified. Times are seconds since 1970; `jti` is the challenge's id."""

    token: str
    iss: str
    aud: str
    sub: str
    jkt: str
    rqh: str
    nonce: str
    iat: int
    exp: int
    jti: str
    proxy: str
    purpose: str
    profiles: tuple[str, ...]
    ttl: int


def seal(
    signer: Signer, request: AgentRequest, *, iss: str, owner: str, proxy: str, iat: int, exp: int, jti: str, nonce: str
) -> str:
    """The server's question to `owner` about a request that came in through `proxy`."""
    claims: dict[str, object] = {"iss": iss, "aud": owner, "sub": request.sub, "cnf": {"jkt": request.jkt}}
    claims |= {"rqh": request.rqh, "nonce": nonce, "iat": iat, "exp": exp, "jti": jti, "proxy": proxy}
    claims |= {"purpose": request.purpose, "profiles": list(request.profiles), "ttl": request.ttl}
    return jws.seal(claims, typ=TYP, signer=signer, header={"kid": jws.jkt(signer.public_key())})


def unseal(token: str, key: ec.EllipticCurvePublicKey) -> BindingChallenge:
    """Opens a challenge with the server's key, which the owner has pinned.

    Raises Malformed, SignatureInvalid, AlgorithmNotAllowed, TokenTypeWrong, CriticalHeaderUnknown, KeyIdMismatch,
    Claim..., TokenIdTooShort, Identifier... .
    """
    sealed = jws.read(token, max_bytes=MAX_BYTES)
    opened = sealed.unseal(typ=TYP, key=key, algorithms=jws.OWNER_ALGORITHMS, kid=jws.jkt(key))
    claims = Claims(opened.claims, "binding challenge")
    claims.check_names(_CLAIMS)
    iat, exp = claims.window()
    return BindingChallenge(
        token=token,
        iss=claims.text("iss"),
        aud=claims.identifier("aud", Kind.OWNER),
        sub=claims.identifier("sub", Kind.AGENT),
        jkt=claims.jkt(),
        rqh=claims.hash("rqh"),
        nonce=claims.nonce("nonce"),
        iat=iat,
        exp=exp,
        jti=claims.token_id(),
        proxy=claims.identifier("proxy", Kind.PROXY),
        purpose=claims.choice("purpose", PURPOSES),
        profiles=claims.choices("profiles", PROFILES),
        ttl=claims.whole("ttl", low=1, high=MAX_TTL_SECONDS),
    )


def check(
    challenge: BindingChallenge,
    request: AgentRequest,
    *,
    owner_id: str,
    server_id: str,
    now: datetime,
    limits: Limits | None = None,
) -> None:
    """Refuses a challenge that is not this server's question to this owner about these very request bytes, now."""
    limits = limits or Limits()
    if challenge.iss != server_id or request.aud != server_id:
        raise ChallengeWrongServer("challenge and request are not both of the server that you work with")
    if challenge.aud != owner_id:
        raise ChallengeWrongOwner("the challenge is addressed to another owner")
    check_window(
        challenge.iat,
        challenge.exp,
        seconds(now),
        skew_seconds=limits.skew_seconds,
        longest_seconds=SERVER_MEDIATED_SECONDS,
        early=ChallengeNotYetValid,
        late=ChallengeExpired,
        long=ChallengeWindowTooLong,
    )
    if (challenge.rqh, challenge.sub, challenge.jkt) != (request.rqh, request.sub, request.jkt):
        raise ChallengeForOtherRequest("the challenge is about another request")
    for claim in ("purpose", "profiles", "ttl"):
        if getattr(challenge, claim) != getattr(request, claim):
            raise ChallengeInconsistent(f"challenge and request differ in {claim}", claim=claim)
