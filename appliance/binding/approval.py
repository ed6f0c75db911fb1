"""The owner approval (`owner-approval+jwt`): an owner's signature over exactly one agent request.

All issuance models end in this object and in `check`: the model is a field, never another way of checking. The owner's
key comes from the registry by `kid`, never from the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws, webauthn
from appliance.binding.claims import Claims, check_window
from appliance.binding.errors import (
    ApprovalDenied,
    ApprovalExpired,
    ApprovalForOtherAgent,
    ApprovalForOtherKey,
    ApprovalForOtherModel,
    ApprovalForOtherProxy,
    ApprovalForOtherPurpose,
    ApprovalForOtherRequest,
    ApprovalNonceMismatch,
    ApprovalNotYetValid,
    ApprovalWidened,
    ApprovalWindowTooLong,
    ApprovalWrongAudience,
    Malformed,
    OrgMaterialMismatch,
    OwnerMismatch,
    ProfileNotApproved,
    ProxyNotAllowed,
    SelfApproval,
    SignatureInvalid,
)
from appliance.binding.facts import PROFILES, PURPOSES, REQUEST_MODELS, Limits, Model, OwnerKey, OwnerRecord, seconds
from appliance.binding.identifier import Kind
from appliance.binding.jws import Sealed
from appliance.binding.request import MAX_TTL_SECONDS, AgentRequest
from appliance.binding.webauthn import Authenticator, Passkey
from est.signer import Signer

TYP = "owner-approval+jwt"
MAX_BYTES = 4096

_CLAIMS = frozenset(
    {"iss", "sub", "aud", "iat", "exp", "jti", "nonce", "cnf", "rqh", "purpose", "model", "profiles", "ttl", "proxy"}
    | {"decision", "org"}
)


class Bounds(Protocol):
    """What every form of approval bounds."""

    @property
    def iat(self) -> int: ...
    @property
    def profiles(self) -> tuple[str, ...]: ...
    @property
    def ttl(self) -> int: ...


class OwnerApproval(NamedTuple):
    """An approval whose signature has been verified. Times are seconds since 1970; the last four are upper bounds."""

    token: str
    kid: str
    iss: str
    sub: str
    aud: str
    iat: int
    exp: int
    jti: str
    nonce: str
    jkt: str
    """Thumbprint of the agent key that is approved."""
    rqh: str
    proxy: str | None
    is_denial: bool
    purpose: str
    model: Model
    profiles: tuple[str, ...]
    ttl: int
    org: str | None = None
    """Hash of the organisational material that the owner's gateway sends along."""
    sign_count: int | None = None
    """The counter of the passkey that signed; None where it was a JWS."""


def seal(
    signer: Signer | Authenticator,
    request: AgentRequest,
    *,
    iss: str,
    iat: int,
    exp: int,
    jti: str,
    nonce: str | None = None,
    profiles: Sequence[str] | None = None,
    ttl: int | None = None,
    proxy: str | None = None,
    deny: bool = False,
    org: str | None = None,
) -> str:
    """An owner's answer to a request: its fields copied, narrowed by `profiles` and `ttl` where given.

    `nonce` is the server's challenge where there is one, else the request's; `org` is the hash of organisational
    material (A-36). Raises ApprovalWidened.
    """
    profiles = request.profiles if profiles is None else tuple(profiles)
    ttl = request.ttl if ttl is None else ttl
    _check_no_wider(profiles, ttl, request)
    claims: dict[str, object] = {"iss": iss, "sub": request.sub, "aud": request.aud, "iat": iat, "exp": exp, "jti": jti}
    claims |= {"nonce": nonce or request.nonce, "cnf": {"jkt": request.jkt}, "rqh": request.rqh}
    claims |= {"purpose": request.purpose, "model": str(request.model), "profiles": list(profiles), "ttl": ttl}
    if proxy is not None:
        claims["proxy"] = proxy
    if deny:
        claims["decision"] = "deny"
    if org is not None:
        claims["org"] = org
    return webauthn.seal(claims, typ=TYP, signer=signer, header={"kid": jws.jkt(signer.public_key())})


def kid_of(token: str) -> str:
    """The key that the approval says it is signed with, to look it up; nothing is believed yet. Raises Malformed."""
    return _kid_of(read(token))


def read(token: str) -> Sealed:
    """An approval taken apart and not believed: its `kid` names the key to look up. Raises Malformed."""
    return _take_apart(token)


def signer_of(token: str) -> tuple[str, str]:
    """Which owner and key a token says it is by, to show one that was verified when it came. Raises Malformed."""
    sealed = read(token)
    return str(jws.read_object(sealed.payload, "approval").get("iss", "")), _kid_of(sealed)


def unseal(
    token: str | Sealed, key: ec.EllipticCurvePublicKey, *, kid: str | None = None, passkey: Passkey | None = None
) -> OwnerApproval:
    """Opens an approval with the owner's registered key (ES256 or ES384), whose thumbprint `kid` must be.

    `passkey` says where it is registered as one, if it is.

    Raises Malformed, SignatureInvalid, AlgorithmNotAllowed, TokenTypeWrong, CriticalHeaderUnknown, KeyIdMismatch,
    Claim..., TokenIdTooShort, Identifier... .
    """
    kid = kid or jws.jkt(key)
    sealed = read(token) if isinstance(token, str) else token
    sealed.check(typ=TYP, key=key, algorithms=jws.OWNER_ALGORITHMS, kid=kid, passkey=passkey)
    return _read_claims(sealed.token, sealed.payload, kid, sealed.sign_count)


# An approval is opened when it comes, and again in the credential that holds it: its signature is verified each time,
# its text is read once.
@lru_cache(maxsize=128)
def _take_apart(token: str) -> Sealed:
    return webauthn.read(token, max_bytes=MAX_BYTES)


@lru_cache(maxsize=128)
def _read_claims(token: str, payload: bytes, kid: str, sign_count: int | None) -> OwnerApproval:
    claims = Claims(jws.read_object(payload, "payload"), "approval")
    claims.check_names(_CLAIMS)
    iat, exp = claims.window()
    return OwnerApproval(
        token=token,
        kid=kid,
        iss=claims.identifier("iss", Kind.OWNER),
        sub=claims.identifier("sub", Kind.AGENT),
        aud=claims.text("aud"),
        iat=iat,
        exp=exp,
        jti=claims.token_id(),
        nonce=claims.nonce("nonce"),
        jkt=claims.jkt(),
        rqh=claims.hash("rqh"),
        proxy=claims.identifier("proxy", Kind.PROXY) if "proxy" in claims else None,
        is_denial="decision" in claims and claims.choice("decision", ("approve", "deny")) == "deny",
        purpose=claims.choice("purpose", PURPOSES),
        model=REQUEST_MODELS[claims.choice("model", REQUEST_MODELS)],
        profiles=claims.choices("profiles", PROFILES),
        ttl=claims.whole("ttl", low=1, high=MAX_TTL_SECONDS),
        org=claims.hash("org") if "org" in claims else None,
        sign_count=sign_count,
    )


def check(
    token: str | Sealed,
    request: AgentRequest,
    owner: OwnerRecord | None,
    *,
    server_id: str,
    proxy_id: str,
    now: datetime,
    limits: Limits | None = None,
    nonce: str | None = None,
    signer_is_agent: bool = False,
    org: str | None = None,
    beside: str | None = None,
) -> OwnerApproval:
    """The approval, if it is this owner's yes to this request, usable now through this proxy.

    `token` is the compact form, or what `read` made of it, so that looking its key up does not take it apart twice.
    `owner` is the registry record that holds the key `kid_of(token)` (None: nobody does), `nonce` the server's
    challenge (None: the request's own), `signer_is_agent` whether that key is some agent's, `org` the hash of the
    organisational material that came along. `beside` is the owner whose approval is wanted beside that of the agent's
    own owner, where several must approve (None: the agent's own). Whether its `jti` was spent is for the transaction
    that spends it. Raises SignatureInvalid also for a key that nobody registered, so that the answer does not tell
    which owners exist.
    """
    limits = limits or Limits()
    sealed = read(token) if isinstance(token, str) else token
    if _kid_of(sealed) == request.jkt:
        unseal(sealed, request.key, kid=request.jkt)
        raise SelfApproval("the approval is signed by the agent that asks")
    owner, registered = check_signer(sealed, owner, signer_is_agent=signer_is_agent)
    approval = unseal(sealed, registered.public_key, kid=registered.jkt, passkey=registered.passkey)
    owner.check_signed(approval.iss, registered, approval.iat, software_allowed=limits.software_owner_keys)
    if approval.aud != server_id:
        raise ApprovalWrongAudience("the approval is addressed to another server")
    check_window(
        approval.iat,
        approval.exp,
        seconds(now),
        skew_seconds=limits.skew_seconds,
        longest_seconds=limits.window_seconds,
        early=ApprovalNotYetValid,
        late=ApprovalExpired,
        long=ApprovalWindowTooLong,
    )
    _check_same_request(approval, request, nonce or request.nonce, beside)
    if approval.org != org:
        raise OrgMaterialMismatch("the organisational material is not what the owner signed for")
    if approval.proxy is not None and approval.proxy != proxy_id:
        raise ApprovalForOtherProxy("the approval names another proxy")
    if owner.proxies is not None and proxy_id not in owner.proxies:
        raise ProxyNotAllowed("this proxy may not submit for this owner")
    if approval.is_denial:
        raise ApprovalDenied("the owner said no")
    return approval


def check_signer(
    sealed: Sealed, owner: OwnerRecord | None, *, signer_is_agent: bool = False
) -> tuple[OwnerRecord, OwnerKey]:
    """The owner who has the key that an approval names, and that key; the start of every approval's check.

    Raises Malformed, SelfApproval, SignatureInvalid.
    """
    kid = _kid_of(sealed)
    if signer_is_agent:
        raise SelfApproval("the approval is signed by an agent's key")
    registered = owner.key(kid) if owner is not None else None
    if owner is None or registered is None:
        raise SignatureInvalid("no registered owner key made this signature")
    return owner, registered


def check_approver(iss: str, owner: str | None, beside: str | None) -> None:
    """Refuses (OwnerMismatch) the approval of anybody but the request's owner, or of the one wanted beside it."""
    if owner is None or iss != (beside or owner):
        raise OwnerMismatch("the request names another owner, or none")


def bounds(request: AgentRequest, approval: Bounds, *caps_seconds: int) -> tuple[tuple[str, ...], int]:
    """What may be issued: the profiles both asked and approved, and the shortest of all lives in seconds.

    Raises ProfileNotApproved if no profile is left.
    """
    profiles = tuple(profile for profile in request.profiles if profile in approval.profiles)
    if not profiles:
        raise ProfileNotApproved("the owner approved none of the profiles that were asked")
    return profiles, min(request.ttl, approval.ttl, *caps_seconds)


def not_before(approval: Bounds, now: datetime, limits: Limits | None = None) -> datetime:
    """Where a credential's life may begin: backdated for slow clocks, but not to before the approval could be used."""
    limits = limits or Limits()
    return max(
        now - timedelta(seconds=limits.backdating_seconds),
        datetime.fromtimestamp(approval.iat - limits.skew_seconds, UTC),
    )


def _kid_of(sealed: Sealed) -> str:
    if sealed.kid is None:
        raise Malformed("the approval has no kid", object="approval")
    return sealed.kid


def _check_same_request(approval: OwnerApproval, request: AgentRequest, nonce: str, beside: str | None) -> None:
    check_approver(approval.iss, request.owner, beside)
    if approval.sub != request.sub:
        raise ApprovalForOtherAgent("the approval names another agent")
    if approval.jkt != request.jkt:
        raise ApprovalForOtherKey("the approval binds another agent key")
    if approval.nonce != nonce:
        raise ApprovalNonceMismatch("the approval carries another nonce")
    if approval.purpose != request.purpose:
        raise ApprovalForOtherPurpose("the approval was given for another purpose")
    if approval.model != request.model:
        raise ApprovalForOtherModel("the approval was given for another issuance model")
    _check_no_wider(approval.profiles, approval.ttl, request)
    if approval.rqh != request.rqh:
        raise ApprovalForOtherRequest("the approval was given for other request bytes")


def _check_no_wider(profiles: Sequence[str], ttl: int, request: AgentRequest) -> None:
    if not set(profiles) <= set(request.profiles):
        raise ApprovalWidened("more profiles than the agent asked for", claim="profiles")
    if ttl > request.ttl:
        raise ApprovalWidened("a longer life than the agent asked for", claim="ttl")
