"""The standing approval: an owner's signature over bounds, within which an agent's renewals need no further signature.

The same signed object as every approval (`owner-approval+jwt`), with `purpose` and `model` "standing" and other claims:
it names no request, nonce or key, because those are fresh at each renewal, and instead the agent, its proxies, and what
the proxy's evidence must have measured. It is counted, not spent, and its `exp` is its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws, webauthn
from appliance.binding.approval import TYP, check_approver, check_signer, read
from appliance.binding.claims import Claims, check_window
from appliance.binding.errors import (
    ApprovalForOtherAgent,
    ApprovalForOtherProxy,
    ApprovalWrongAudience,
    ProxyNotAllowed,
    StandingApprovalEnded,
    StandingApprovalNotYetValid,
    StandingApprovalTooLong,
    StandingClassMismatch,
    StandingPlatformMismatch,
    StandingReferenceMismatch,
)
from appliance.binding.evidence import Evidence
from appliance.binding.facts import PROFILES, Limits, OwnerRecord, seconds
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.jws import Sealed
from appliance.binding.request import MAX_TTL_SECONDS, AgentRequest
from appliance.binding.webauthn import Authenticator, Passkey
from est.signer import Signer

PURPOSE = "standing"
MAX_PROXIES = 8
MAX_EXECUTABLES = 16
MAX_USES = 1_000_000

_CLAIMS = frozenset(
    {"iss", "sub", "aud", "iat", "exp", "jti", "purpose", "model", "profiles", "max_ttl", "max_uses", "proxies"}
    | {"class", "platform"}
)
_PLATFORM = frozenset({"ueid", "executables", "uid"})


@dataclass(frozen=True, slots=True)
class Platform:
    """What the proxy must have measured: its device, the agent's program (any of these digests) and its user."""

    ueid: bytes
    executables: tuple[str, ...]
    """SHA-256 of each program, base64url."""
    uid: int


@dataclass(frozen=True, slots=True)
class StandingApproval:
    """A standing approval whose signature has been verified. Times are seconds since 1970; the rest are bounds."""

    token: str
    kid: str
    iss: str
    sub: str
    aud: str
    iat: int
    exp: int
    jti: str
    profiles: tuple[str, ...]
    ttl: int
    """Longest life of one credential (`max_ttl`)."""
    max_uses: int | None
    proxies: tuple[str, ...]
    agent_class: str | None
    platform: Platform
    sign_count: int | None = None

    @property
    def s256(self) -> str:
        """The hash by which requests, records and certificates name it."""
        return jws.s256(self.token)


def draft(
    *,
    iss: str,
    sub: str,
    aud: str,
    iat: int,
    exp: int,
    jti: str,
    max_ttl: int,
    proxies: Sequence[str],
    platform: Platform,
    profiles: Sequence[str] = PROFILES,
    max_uses: int | None = None,
    agent_class: str | None = None,
) -> dict[str, object]:
    """The claims of a standing approval, to be shown before they are signed."""
    claims: dict[str, object] = {"iss": iss, "sub": sub, "aud": aud, "iat": iat, "exp": exp, "jti": jti}
    claims |= {"purpose": PURPOSE, "model": PURPOSE, "profiles": list(profiles), "max_ttl": max_ttl}
    if max_uses is not None:
        claims["max_uses"] = max_uses
    claims["proxies"] = list(proxies)
    if agent_class is not None:
        claims["class"] = agent_class
    claims["platform"] = {
        "ueid": jws.base64url(platform.ueid),
        "executables": list(platform.executables),
        "uid": platform.uid,
    }
    return claims


def seal(signer: Signer | Authenticator, claims: Mapping[str, object]) -> str:
    """A standing approval with the claims of a draft, signed by the owner's key; its opener checks what it says."""
    return webauthn.seal(claims, typ=TYP, signer=signer, header={"kid": jws.jkt(signer.public_key())})


def is_standing(sealed: Sealed) -> bool:
    """Whether an approval says that it is a standing one, to choose its reader; nothing is believed yet."""
    return jws.read_object(sealed.payload, "approval").get("purpose") == PURPOSE


def unseal(
    token: str | Sealed, key: ec.EllipticCurvePublicKey, *, kid: str | None = None, passkey: Passkey | None = None
) -> StandingApproval:
    """Opens a standing approval with the owner's registered key, whose thumbprint `kid` must be.

    Raises Malformed, SignatureInvalid, AlgorithmNotAllowed, TokenTypeWrong, CriticalHeaderUnknown, KeyIdMismatch,
    Claim..., TokenIdTooShort, Identifier... .
    """
    kid = kid or jws.jkt(key)
    sealed = read(token) if isinstance(token, str) else token
    opened = sealed.unseal(typ=TYP, key=key, algorithms=jws.OWNER_ALGORITHMS, kid=kid, passkey=passkey)
    return of_claims(opened.claims, token=sealed.token, kid=kid, sign_count=sealed.sign_count)


def of_claims(
    values: Mapping[str, object], *, token: str = "", kid: str = "", sign_count: int | None = None
) -> StandingApproval:
    """What claims say, be they signed or a draft. Raises Claim..., TokenIdTooShort, Identifier... ."""
    claims = Claims(values, "standing approval")
    claims.check_names(_CLAIMS)
    claims.choice("purpose", (PURPOSE,))
    claims.choice("model", (PURPOSE,))
    iat, exp = claims.window()
    return StandingApproval(
        token=token,
        kid=kid,
        iss=claims.identifier("iss", Kind.OWNER),
        sub=claims.identifier("sub", Kind.AGENT),
        aud=claims.text("aud"),
        iat=iat,
        exp=exp,
        jti=claims.token_id(),
        profiles=claims.choices("profiles", PROFILES),
        ttl=claims.whole("max_ttl", low=1, high=MAX_TTL_SECONDS),
        max_uses=claims.whole("max_uses", low=1, high=MAX_USES) if "max_uses" in claims else None,
        proxies=_proxies(claims),
        agent_class=claims.reference("class") if "class" in claims else None,
        platform=_platform(claims.inner("platform")),
        sign_count=sign_count,
    )


def check(
    token: str | Sealed,
    owner: OwnerRecord | None,
    *,
    server_id: str,
    now: datetime,
    limits: Limits | None = None,
    signer_is_agent: bool = False,
) -> StandingApproval:
    """The standing approval, if its signer may give one and it is in force now: what is asked when it is handed in.

    `owner` is the registry record that holds the key that it names (None: nobody does). Raises what
    `approval.check_signer` raises, ApprovalWrongAudience, StandingApproval... .
    """
    limits = limits or Limits()
    sealed = read(token) if isinstance(token, str) else token
    owner, registered = check_signer(sealed, owner, signer_is_agent=signer_is_agent)
    standing = unseal(sealed, registered.public_key, kid=registered.jkt, passkey=registered.passkey)
    owner.check_signed(standing.iss, registered, standing.iat, software_allowed=limits.software_owner_keys)
    # it is used long after it was signed, so its key must be good now as well
    registered.check(int(seconds(now)), software_allowed=limits.software_owner_keys, new=True)
    if standing.aud != server_id:
        raise ApprovalWrongAudience("the standing approval is addressed to another server")
    check_window(
        standing.iat,
        standing.exp,
        seconds(now),
        skew_seconds=limits.skew_seconds,
        longest_seconds=limits.standing_seconds,
        early=StandingApprovalNotYetValid,
        late=StandingApprovalEnded,
        long=StandingApprovalTooLong,
    )
    return standing


def check_use(
    standing: StandingApproval,
    request: AgentRequest,
    owner: OwnerRecord,
    *,
    proxy_id: str,
    agent_class: str,
    evidence: Evidence,
    beside: str | None = None,
) -> None:
    """Refuses a renewal that the bounds do not cover; `evidence` is the appraised one of this very request.

    `beside` is the owner whose approval is wanted beside that of the agent's own, where several must approve.

    Raises StandingReferenceMismatch, OwnerMismatch, ApprovalForOtherAgent, ApprovalForOtherProxy, ProxyNotAllowed,
    StandingClassMismatch, StandingPlatformMismatch (field `claim`).
    """
    if standing.s256 not in request.standing:
        raise StandingReferenceMismatch("the request does not refer to this standing approval")
    check_approver(standing.iss, request.owner, beside)
    if standing.sub != request.sub:
        raise ApprovalForOtherAgent("the standing approval names another agent")
    if proxy_id not in standing.proxies:
        raise ApprovalForOtherProxy("the standing approval does not name this proxy")
    if owner.proxies is not None and proxy_id not in owner.proxies:
        raise ProxyNotAllowed("this proxy may not submit for this owner")
    if standing.agent_class is not None and standing.agent_class != agent_class:
        raise StandingClassMismatch("the standing approval is for another agent class")
    platform = standing.platform
    seen: Mapping[str, bool] = {
        "ueid": evidence.ueid == platform.ueid,
        "executables": _digest_of(evidence) in platform.executables,
        "uid": evidence.agent.get("uid") == platform.uid,
    }
    for claim, fits in seen.items():
        if not fits:
            raise StandingPlatformMismatch(f"the evidence shows another {claim} than was approved", claim=claim)


def _digest_of(evidence: Evidence) -> str | None:
    digest = evidence.agent.get("executable_digest")
    if not isinstance(digest, dict) or digest["alg"] != "sha-256":
        return None
    return str(digest["hash"])


def _proxies(claims: Claims) -> tuple[str, ...]:
    value = claims.value("proxies")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_PROXIES or len(set(map(str, value))) != len(value):
        raise claims.malformed("proxies", f"a list of 1 to {MAX_PROXIES} different proxies")
    if any(not isinstance(one, str) for one in value):
        raise claims.malformed("proxies", "a list of identifiers")
    return tuple(read_kind(one, Kind.PROXY).uri for one in value)


def _platform(claims: Claims) -> Platform:
    claims.check_names(_PLATFORM)
    ueid = claims.octets("ueid", max_length=44)
    if not 7 <= len(ueid) <= 33:
        raise claims.malformed("ueid", "7 to 33 octets (RFC 9711, section 4.2.1)")
    digests = claims.hashes("executables", most=MAX_EXECUTABLES)
    return Platform(ueid, digests, claims.whole("uid", high=2**32 - 1))
