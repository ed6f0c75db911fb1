"""The proxy's evidence about an agent: an EAT as JWT (RFC 9711, RFC 9782), wrapped as a CMW JSON record.

Bound to the nonce, the agent's key and the request's hash: one evidence, one request. Claim names of the AI profile
stand in one table here, because their draft still moves; all of them are the agent's own word unless endorsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws, tpm_quote
from appliance.binding.claims import Claims, check_window
from appliance.binding.errors import (
    EvidenceExpired,
    EvidenceForOtherKey,
    EvidenceForOtherOwner,
    EvidenceForOtherRequest,
    EvidenceNonceMismatch,
    EvidenceNotYetValid,
    EvidenceProfileUnknown,
    EvidenceTooOld,
    EvidenceWindowTooLong,
    EvidenceWrongProxy,
    Malformed,
)
from appliance.binding.facts import Limits, seconds
from appliance.binding.identifier import Kind
from appliance.binding.request import AgentRequest
from appliance.binding.tpm_quote import TpmQuote
from est.signer import Signer

TYP = "eat+jwt"
MEDIA_TYPE = "application/eat+jwt"
PROFILE = "urn:ietf:eat:profile:ai-agent:1"
CMW_EVIDENCE = 4
"""Indicator bit 2 of a CMW record: evidence."""
DEBUG_STATES = (
    "enabled",
    "disabled",
    "disabled-since-boot",
    "disabled-permanently",
    "disabled-fully-and-permanently",
)

BY_PROXY = "proxy"
KEY_ORIGINS = (BY_PROXY,)
"""Who made the agent's key, where it was not the agent: the proxy, for callers of the SPIFFE Workload API."""

_CLAIMS = frozenset(
    {"iss", "iat", "exp", "eat_nonce", "eat_profile", "ueid", "oemid", "hwmodel", "dbgstat", "rqh", "submods"}
)
_PARTS = frozenset({"agent", "tpm"})
_DIGEST = frozenset({"alg", "hash"})


def _words(claims: Claims, name: str) -> None:
    value = claims.value(name)
    if (
        not isinstance(value, list)
        or len(value) > 64
        or any(not isinstance(one, str) or len(one) > 256 for one in value)
    ):
        raise claims.malformed(name, "a list of at most 64 short texts")


def _digest(claims: Claims, name: str) -> None:
    inner = claims.inner(name)
    inner.check_names(_DIGEST)
    inner.choice("alg", ("sha-256", "sha-384", "sha-512"))
    octets = jws.unbase64url(inner.text("hash", max_length=88), name)
    if len(octets) not in (32, 48, 64):
        raise claims.malformed(name, "a digest of 32, 48 or 64 octets")


def _number(claims: Claims, name: str) -> None:
    claims.whole(name, high=2**32 - 1)


def _text(claims: Claims, name: str) -> None:
    claims.text(name, max_length=512)


def _origin(claims: Claims, name: str) -> None:
    claims.choice(name, KEY_ORIGINS)


AGENT_CLAIMS: Mapping[str, Callable[[Claims, str], None]] = MappingProxyType(
    {
        # measured by the proxy
        "executable": _text,
        "executable_digest": _digest,
        "uid": _number,
        "gid": _number,
        "pid": _number,
        "cgroup": _text,
        "container": _text,
        "boot_id": _text,
        "key_origin": _origin,
        # RFC 9711
        "swname": _text,
        "swversion": _words,
        # EAT profile for AI agents; names in self_asserted are the agent's own word
        "self_asserted": _words,
        "ai_model_id": _text,
        "ai_model_hash": _digest,
        "input_policy_digest": _digest,
        "capabilities": _words,
        "allowed_apis": _words,
        "data_retention_policy": _text,
        "owner_id": _text,
        "ai_sbom_ref": _text,
    }
)
"""Claims of `submods.agent` beside `cnf`, all optional, each with the check of its shape."""

SELF_ASSERTED = frozenset(
    {
        "swversion",
        "ai_model_id",
        "ai_model_hash",
        "input_policy_digest",
        "capabilities",
        "allowed_apis",
        "data_retention_policy",
        "ai_sbom_ref",
    }
)
"""Claims that an agent may make about itself; a proxy passes them on under the name `self_asserted`."""

MAX_SELF_ASSERTED_BYTES = 4096

_AGENT = frozenset({"cnf", *AGENT_CLAIMS})


class Evidence(NamedTuple):
    """Evidence whose signature has been verified with the proxy's key. Times are seconds since 1970."""

    token: str
    iss: str
    iat: int
    exp: int
    nonce: str
    rqh: str
    jkt: str
    """Thumbprint of the key of the agent that is described."""
    dbgstat: str
    ueid: bytes | None
    oemid: str | None
    hwmodel: str | None
    agent: Mapping[str, object]
    """The claims of `AGENT_CLAIMS` that are there."""
    quote: TpmQuote | None = None
    """What the proxy's TPM says of its machine, if there is one."""


def seal(
    signer: Signer,
    *,
    iss: str,
    iat: int,
    exp: int,
    nonce: str,
    rqh: str,
    jkt: str,
    ueid: bytes | None = None,
    oemid: str | None = None,
    hwmodel: str | None = None,
    dbgstat: str = "disabled-since-boot",
    agent: Mapping[str, object] | None = None,
    quote: TpmQuote | None = None,
) -> str:
    """Evidence signed by the proxy's attestation key."""
    claims: dict[str, object] = {"iss": iss, "iat": iat, "exp": exp, "eat_nonce": nonce, "eat_profile": PROFILE}
    if ueid is not None:
        claims["ueid"] = jws.base64url(ueid)
    claims |= {name: value for name, value in (("oemid", oemid), ("hwmodel", hwmodel)) if value is not None}
    parts: dict[str, object] = {"agent": {"cnf": {"jkt": jkt}, **(agent or {})}}
    if quote is not None:
        parts["tpm"] = quote.write()
    claims |= {"dbgstat": dbgstat, "rqh": rqh, "submods": parts}
    return jws.seal(claims, typ=TYP, signer=signer, header={"kid": jws.jkt(signer.public_key())})


def unseal(token: str, key: ec.EllipticCurvePublicKey, *, kid: str | None = None) -> Evidence:
    """Opens evidence with the key of the proxy that submits it, whose thumbprint `kid` must be; reads every claim.

    Raises Malformed, SignatureInvalid, AlgorithmNotAllowed, TokenTypeWrong, KeyIdMismatch, EvidenceProfileUnknown,
    Claim..., Identifier... .
    """
    opened = jws.read(token).unseal(typ=TYP, key=key, kid=kid or jws.jkt(key))
    claims = Claims(opened.claims, "evidence")
    if claims.text("eat_profile") != PROFILE:
        raise EvidenceProfileUnknown("the evidence follows another profile")
    claims.check_names(_CLAIMS)
    iat, exp = claims.window()
    submodules = claims.inner("submods")
    submodules.check_names(_PARTS)
    agent = submodules.inner("agent")
    agent.check_names(_AGENT)
    present = {}
    for name, value in agent.items():
        if name != "cnf":
            AGENT_CLAIMS[name](agent, name)
            present[name] = value
    return Evidence(
        token=token,
        iss=claims.identifier("iss", Kind.PROXY),
        iat=iat,
        exp=exp,
        nonce=claims.nonce("eat_nonce"),
        rqh=claims.hash("rqh"),
        jkt=agent.jkt(),
        dbgstat=claims.choice("dbgstat", DEBUG_STATES),
        ueid=_read_ueid(claims),
        oemid=claims.text("oemid", max_length=64) if "oemid" in claims else None,
        hwmodel=claims.text("hwmodel", max_length=64) if "hwmodel" in claims else None,
        agent=MappingProxyType(present),
        quote=tpm_quote.read(submodules.inner("tpm")) if "tpm" in submodules else None,
    )


def check(
    evidence: Evidence,
    request: AgentRequest,
    *,
    proxy_id: str,
    now: datetime,
    limits: Limits | None = None,
) -> None:
    """Refuses evidence that is not this proxy's fresh word about exactly this request and its key."""
    limits = limits or Limits()
    at = seconds(now)
    if evidence.iss != proxy_id:
        raise EvidenceWrongProxy("the evidence comes from another proxy than its submitter")
    if at > evidence.iat + limits.evidence_seconds + limits.skew_seconds:
        raise EvidenceTooOld(f"evidence may be {limits.evidence_seconds} s old", limit=limits.evidence_seconds)
    check_window(
        evidence.iat,
        evidence.exp,
        at,
        skew_seconds=limits.skew_seconds,
        longest_seconds=limits.evidence_seconds,
        early=EvidenceNotYetValid,
        late=EvidenceExpired,
        long=EvidenceWindowTooLong,
    )
    if evidence.nonce != request.nonce:
        raise EvidenceNonceMismatch("the evidence was made for another nonce")
    if evidence.jkt != request.jkt:
        raise EvidenceForOtherKey("the evidence describes the holder of another key")
    if evidence.agent.get("owner_id", request.owner) != request.owner:
        raise EvidenceForOtherOwner("the evidence names another owner than the request")
    if evidence.rqh != request.rqh:
        raise EvidenceForOtherRequest("the evidence was made for other request bytes")
    if evidence.quote is not None:
        tpm_quote.check(evidence.quote, nonce=evidence.nonce, rqh=evidence.rqh)


def read_self_asserted(claims: Claims) -> Mapping[str, object]:
    """What an agent says about itself, each claim in its shape; raises Claim..., Malformed."""
    claims.check_names(SELF_ASSERTED)
    said = dict(claims.items())
    for name in said:
        AGENT_CLAIMS[name](claims, name)
    if len(json.dumps(said, separators=(",", ":"))) > MAX_SELF_ASSERTED_BYTES:
        raise Malformed(f"an agent says at most {MAX_SELF_ASSERTED_BYTES} bytes about itself", object="self_asserted")
    return MappingProxyType(said)


def write_cmw(token: str) -> list[object]:
    """The CMW JSON record around an evidence token."""
    return [MEDIA_TYPE, jws.base64url(token.encode("ascii")), CMW_EVIDENCE]


def read_cmw(value: object) -> str:
    """The evidence token in a CMW JSON record; collections and other messages are Malformed."""
    match value:
        case [str(media_type), str(content), int(indicator)] if (
            media_type == MEDIA_TYPE and type(indicator) is int and indicator == CMW_EVIDENCE
        ):
            octets = jws.unbase64url(content, "evidence record")
        case _:
            raise Malformed(f"not a CMW record of {MEDIA_TYPE} that is evidence", object="evidence record")
    try:
        return octets.decode("ascii")
    except UnicodeDecodeError as error:
        raise Malformed("the evidence record holds no token", object="evidence record") from error


def _read_ueid(claims: Claims) -> bytes | None:
    if "ueid" not in claims:
        return None
    octets = claims.octets("ueid", max_length=44)
    # RFC 9711, section 4.2.1: a type octet of 1 to 3, then 6 to 32 octets
    if not 7 <= len(octets) <= 33 or octets[0] not in (1, 2, 3):
        raise claims.malformed("ueid", "a type octet of 1 to 3 and 6 to 32 octets more")
    return octets
