"""The agent request (`agent-request+jwt`): what an agent asks for, signed by the key that it wants certified.

The signature over a server nonce, an audience and an expiry is the proof of possession; PKCS#10 has none of the three
and travels beside it for X.509, bound in by its hash (same idea as RFC 9449 and RFC 8555).
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws, renewal
from appliance.binding.claims import Claims, check_window
from appliance.binding.errors import (
    AgentOwnerMismatch,
    CsrKeyMismatch,
    CsrMismatch,
    CsrMissing,
    CsrNamesMismatch,
    CsrNotExpected,
    KeyReused,
    ModelNotOffered,
    NonceExpired,
    NonceForOtherKey,
    NonceForOtherProxy,
    NonceForOtherPurpose,
    NonceSpent,
    NonceUnknown,
    OriginMismatch,
    RenewalProofMissing,
    RenewalProofNotExpected,
    RequestExpired,
    RequestForOtherAgent,
    RequestNotYetValid,
    RequestWindowTooLong,
    RequestWrongAudience,
    StandingApprovalNotForFirstIssue,
)
from appliance.binding.facts import PROFILES, PURPOSES, REQUEST_MODELS, Limits, Model, NonceRecord, seconds
from appliance.binding.identifier import Kind, read_kind
from est.csr import Csr
from est.signer import Signer

TYP = "agent-request+jwt"
MAX_TTL_SECONDS = 90 * 86_400
MAX_STANDING = 8

_REQUIRED = ("sub", "aud", "iat", "exp", "jti", "nonce", "model", "purpose", "profiles", "ttl")
_CLAIMS = frozenset((*_REQUIRED, "owner", "csr_s256", "txn", "label", "prev", "standing"))


class AgentRequest(NamedTuple):
    """An agent request whose signature has been verified with the key in it. Times are seconds since 1970."""

    token: str
    key: ec.EllipticCurvePublicKey
    jkt: str
    """Thumbprint of the agent's key."""
    key_sha256: bytes
    """SHA-256 of the key's SubjectPublicKeyInfo: how certificates are found by their key."""
    rqh: str
    """Hash of the token: what approval and evidence name."""
    sub: str
    owner: str | None
    aud: str
    iat: int
    exp: int
    jti: str
    nonce: str
    model: Model
    purpose: str
    profiles: tuple[str, ...]
    ttl: int
    csr_s256: str | None
    txn: str | None
    label: str | None
    """Text that the agent chose; shown to people as such, never part of a decision."""
    prev: str | None
    standing: tuple[str, ...] = ()
    """Hashes of the standing approvals under which this renewal asks; none: it brings fresh ones."""


def seal(
    signer: Signer,
    *,
    sub: str,
    aud: str,
    iat: int,
    exp: int,
    jti: str,
    nonce: str,
    profiles: Sequence[str],
    ttl: int,
    owner: str | None = None,
    csr_der: bytes | None = None,
    model: str = Model.AGENT_MEDIATED,
    purpose: str = "issue",
    txn: str | None = None,
    label: str | None = None,
    prev: str | None = None,
    standing: Sequence[str] = (),
) -> str:
    """A request signed by the agent's key; what it says is checked by whoever opens it."""
    claims: dict[str, object] = {"sub": sub}
    if owner is not None:
        claims["owner"] = owner
    claims |= {"aud": aud, "iat": iat, "exp": exp, "jti": jti, "nonce": nonce, "model": str(model)}
    claims |= {"purpose": purpose, "profiles": list(profiles), "ttl": ttl}
    if csr_der is not None:
        claims["csr_s256"] = jws.s256(csr_der)
    claims |= {name: value for name, value in (("txn", txn), ("label", label), ("prev", prev)) if value is not None}
    if standing:
        claims["standing"] = list(standing)
    return jws.seal(claims, typ=TYP, signer=signer, header={"jwk": jws.jwk(signer.public_key(), algorithm=True)})


def unseal(token: str) -> AgentRequest:
    """Proof of possession: opens the request with the key in its own header, ES256 only, and reads it.

    Raises Malformed, SignatureInvalid, PrivateKeyExposed, AlgorithmNotAllowed, TokenTypeWrong, CriticalHeaderUnknown,
    Claim..., TokenIdTooShort, Identifier..., CsrMissing, CsrNotExpected, RenewalProof... .
    """
    sealed = jws.read(token)
    key, jkt, key_sha256 = sealed.own_key()
    claims = Claims(sealed.unseal(typ=TYP, key=key).claims, "agent request")
    claims.check_names(_CLAIMS)
    iat, exp = claims.window()
    request = AgentRequest(
        token=token,
        key=key,
        jkt=jkt,
        key_sha256=key_sha256,
        rqh=jws.s256(token),
        sub=claims.identifier("sub", Kind.AGENT),
        owner=claims.identifier("owner", Kind.OWNER) if "owner" in claims else None,
        aud=claims.text("aud"),
        iat=iat,
        exp=exp,
        jti=claims.token_id(),
        nonce=claims.nonce("nonce"),
        model=REQUEST_MODELS[claims.choice("model", REQUEST_MODELS)],
        purpose=claims.choice("purpose", PURPOSES),
        profiles=claims.choices("profiles", PROFILES),
        ttl=claims.whole("ttl", low=1, high=MAX_TTL_SECONDS),
        csr_s256=claims.hash("csr_s256") if "csr_s256" in claims else None,
        txn=claims.reference("txn") if "txn" in claims else None,
        label=claims.label("label") if "label" in claims else None,
        prev=claims.text("prev", max_length=4096) if "prev" in claims else None,
        standing=claims.hashes("standing", most=MAX_STANDING) if "standing" in claims else (),
    )
    _check_shape(request)
    return request


def check(
    request: AgentRequest,
    *,
    csr: Csr | None,
    nonce: NonceRecord | None,
    server_id: str,
    origin: str,
    proxy_id: str,
    now: datetime,
    limits: Limits | None = None,
    models: Collection[str] = (Model.AGENT_MEDIATED,),
    key_holder: str | None = None,
    agent_owner: str | None = None,
    live_key: jws.PublicKey | None = None,
) -> None:
    """Everything that a server checks about a request, in its decision order, with the facts that it looked up.

    `nonce` is the record of the request's nonce (None: never issued), `proxy_id` who submits, `key_holder` who already
    has the request's key (None: nobody), `agent_owner` the owner to whom the agent is registered (None: first issue),
    `live_key` the key of the agent's live credential, for renewals. Raises one of the leaves that it imports.
    """
    limits = limits or Limits()
    _check_address(request, server_id, origin, now, limits)
    _check_nonce(request, nonce, proxy_id, now)
    check_csr(request, csr)
    if request.model not in models:
        raise ModelNotOffered(f"{request.model} is not offered here", offered=[str(model) for model in models])
    if key_holder is not None:
        raise KeyReused("the agent's key is already in use; every credential needs a key of its own")
    if agent_owner is not None and request.owner != agent_owner:
        raise AgentOwnerMismatch("the agent is registered to another owner")
    if request.purpose == "renew":
        if live_key is None or request.prev is None:
            raise RenewalProofMissing("the agent has no live credential that could vouch for a renewal")
        renewal.check(
            request.prev,
            live_key,
            sub=request.sub,
            jkt=request.jkt,
            nonce=request.nonce,
            server_id=server_id,
            now=now,
            limits=limits,
        )


def check_csr(request: AgentRequest, csr: Csr | None) -> None:
    """The CSR is the one that the agent signed for, holds the same key, and names nobody but the agent."""
    if request.csr_s256 is None:
        if csr is not None:
            raise CsrNotExpected("the request asks for no certificate")
        return
    if csr is None:
        raise CsrMissing("the request asks for a certificate and brings no CSR")
    if jws.s256(csr.der) != request.csr_s256:
        raise CsrMismatch("the CSR is not the one whose hash the agent signed")
    if csr.key_sha256 != request.key_sha256:
        raise CsrKeyMismatch("the CSR holds another key than the one that signed the request")
    if csr.san is not None and list(csr.san) != [x509.UniformResourceIdentifier(request.sub)]:
        raise CsrNamesMismatch("the CSR's subjectAltName is not exactly the agent's identifier")


def check_times(request: AgentRequest, now: datetime, limits: Limits) -> None:
    """Refuses a request that is over, comes from the future or would be usable for too long."""
    check_window(
        request.iat,
        request.exp,
        seconds(now),
        skew_seconds=limits.skew_seconds,
        longest_seconds=limits.window_seconds,
        early=RequestNotYetValid,
        late=RequestExpired,
        long=RequestWindowTooLong,
    )


def short_code(rqh: str) -> str:
    """What people compare on two screens: the first 40 bits of a request's hash in base32, as XXXX-XXXX."""
    code = base64.b32encode(jws.unbase64url(rqh, "request hash")[:5]).decode("ascii")
    return f"{code[:4]}-{code[4:]}"


def _check_shape(request: AgentRequest) -> None:
    if "x509" in request.profiles and request.csr_s256 is None:
        raise CsrMissing("a request for a certificate must carry csr_s256")
    if "x509" not in request.profiles and request.csr_s256 is not None:
        raise CsrNotExpected("csr_s256 without the profile x509")
    if request.purpose == "renew" and request.prev is None:
        raise RenewalProofMissing("a renewal must carry prev, signed by the key of the live credential")
    if request.purpose != "renew" and request.prev is not None:
        raise RenewalProofNotExpected("prev belongs to renewals only")
    if request.purpose != "renew" and request.standing:
        raise StandingApprovalNotForFirstIssue("standing approvals cover renewals only")


def _check_address(request: AgentRequest, server_id: str, origin: str, now: datetime, limits: Limits) -> None:
    if request.aud != server_id:
        raise RequestWrongAudience("the request is addressed to another server")
    for uri, kind in ((request.sub, Kind.AGENT), (request.owner, Kind.OWNER)):
        if uri is not None and (found := read_kind(uri, kind).origin) != origin:
            raise OriginMismatch(f"this {kind} belongs to another trust domain", expected=origin, found=found)
    check_times(request, now, limits)


def _check_nonce(request: AgentRequest, nonce: NonceRecord | None, proxy_id: str, now: datetime) -> None:
    if nonce is None or nonce.value != request.nonce:
        raise NonceUnknown("the nonce is not one that this server issued")
    if nonce.jkt != request.jkt:
        raise NonceForOtherKey("the nonce was issued for another key")
    if nonce.proxy_id != proxy_id:
        raise NonceForOtherProxy("the nonce was issued to another submitter")
    if nonce.purpose != request.purpose:
        raise NonceForOtherPurpose("the nonce was issued for another purpose")
    if nonce.agent_id != request.sub:
        raise RequestForOtherAgent("the request's sub is not the identifier that came with its nonce")
    if nonce.is_spent:
        raise NonceSpent("the nonce was used before")
    if now >= nonce.expires_at:
        raise NonceExpired("the nonce is too old: ask for another")
