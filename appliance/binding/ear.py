"""The attestation result: an EAR, as JWT of one pinned profile, with a submodule each for platform and agent.

Tiers: affirming, warning, contraindicated, none; the whole is as good as its worst part. A status may be worse than
its trustworthiness vector, never better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws
from appliance.binding.claims import Claims, check_window
from appliance.binding.errors import (
    ClaimMissing,
    EarExpired,
    EarForOtherEvidence,
    EarInconsistent,
    EarNonceMismatch,
    EarNotYetValid,
    EarProfileUnknown,
    EarTooOld,
    EarWindowTooLong,
    EarWrongVerifier,
)
from appliance.binding.facts import Limits, seconds
from est.signer import Signer

TYP = "eat+jwt"
PROFILE = "tag:ietf.org,2026:rats/ear#03"
SUBMODULES = ("platform", "agent")
MAX_WINDOW_SECONDS = 86_400
VECTOR = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
"""The AR4SI trustworthiness vector."""

_CLAIMS = frozenset(
    {"eat_profile", "iat", "exp", "eat_nonce", "ear_verifier_id", "ear_raw_evidence", "ear_status", "submods"}
)
_VERIFIER = frozenset({"developer", "build"})
_SUBMODULE = frozenset({"ear_status", "ear_trustworthiness_vector", "ear_appraisal_policy_ids"})


class Tier(StrEnum):
    """How far to trust, as the word in JSON (numbers are CBOR's)."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


_BADNESS = {Tier.AFFIRMING: 0, Tier.WARNING: 1, Tier.NONE: 2, Tier.CONTRAINDICATED: 3}


class Submodule(NamedTuple):
    """Result for one part: its tier, the vector behind it (claim -> -128..127) and the policies that were applied."""

    status: Tier
    vector: Mapping[str, int]
    policy_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ear:
    """An attestation result whose signature has been verified. Times are seconds since 1970."""

    token: str
    iat: int
    exp: int
    nonce: str
    developer: str
    build: str
    submodules: Mapping[str, Submodule]
    raw_evidence: str | None = None
    """The evidence that was appraised, where the verifier says which."""

    @property
    def status(self) -> Tier:
        """The worst tier of all parts."""
        return worst(part.status for part in self.submodules.values())

    @property
    def digest(self) -> bytes:
        """SHA-256 of the token: `earDigest` of the certificate."""
        return hashlib.sha256(self.token.encode("ascii")).digest()


def worst(tiers: Iterable[Tier]) -> Tier:
    """The worst of some tiers; none at all are worth `none`."""
    return max(tiers, key=_BADNESS.__getitem__, default=Tier.NONE)


def tier_of(value: int) -> Tier:
    """The tier of one vector value (AR4SI, section 2.3.2)."""
    size = abs(value)
    if -1 <= value <= 1:
        return Tier.NONE
    if size <= (31 if value > 0 else 32):
        return Tier.AFFIRMING
    if size <= (95 if value > 0 else 96):
        return Tier.WARNING
    return Tier.CONTRAINDICATED


def seal(
    signer: Signer,
    *,
    iat: int,
    exp: int,
    nonce: str,
    developer: str,
    build: str,
    submodules: Mapping[str, Submodule],
    kid: str | None = None,
    raw_evidence: str | None = None,
) -> str:
    """A result signed by the verifier's key; `kid` is that key's thumbprint, where it is at hand.

    `raw_evidence` is the evidence as it was submitted; with it the result is about this evidence and no other.
    """
    claims: dict[str, object] = {"eat_profile": PROFILE, "iat": iat, "exp": exp}
    claims["ear_verifier_id"] = {"developer": developer, "build": build}
    claims["eat_nonce"] = nonce
    if raw_evidence is not None:
        claims["ear_raw_evidence"] = jws.base64url(raw_evidence.encode("ascii"))
    claims["submods"] = {
        name: {
            "ear_status": str(part.status),
            "ear_trustworthiness_vector": dict(part.vector),
            "ear_appraisal_policy_ids": list(part.policy_ids),
        }
        for name, part in submodules.items()
    }
    return jws.seal(claims, typ=TYP, signer=signer, header={"kid": kid or jws.jkt(signer.public_key())})


def unseal(token: str, key: ec.EllipticCurvePublicKey) -> Ear:
    """Opens a result with the verifier's key and reads it.

    Raises Malformed, SignatureInvalid, AlgorithmNotAllowed, TokenTypeWrong, KeyIdMismatch, EarProfileUnknown,
    EarInconsistent, Claim... .
    """
    opened = jws.read(token).unseal(typ=TYP, key=key, kid=jws.jkt(key))
    claims = Claims(opened.claims, "attestation result")
    if claims.text("eat_profile") != PROFILE:
        raise EarProfileUnknown("the attestation result follows another profile or version")
    claims.check_names(_CLAIMS)
    iat, exp = claims.window()
    verifier = claims.inner("ear_verifier_id")
    verifier.check_names(_VERIFIER)
    parts = claims.inner("submods")
    parts.check_names(frozenset(SUBMODULES))
    for name in SUBMODULES:
        if name not in parts:
            raise ClaimMissing(f"the attestation result says nothing about {name}", object="submods", claim=name)
    return Ear(
        token=token,
        iat=iat,
        exp=exp,
        nonce=claims.nonce("eat_nonce"),
        developer=verifier.text("developer", max_length=256),
        build=verifier.text("build", max_length=256),
        submodules=MappingProxyType({name: read_submodule(parts, name) for name in SUBMODULES}),
        raw_evidence=_raw_evidence(claims) if "ear_raw_evidence" in claims else None,
    )


def read_submodule(parts: Claims, name: str) -> Submodule:
    """One part of a result; raises Claim..., EarInconsistent if its status is better than its vector."""
    part = parts.inner(name)
    part.check_names(_SUBMODULE)
    status = Tier(part.choice("ear_status", tuple(Tier)))
    values: dict[str, int] = {}
    if "ear_trustworthiness_vector" in part:
        vector = part.inner("ear_trustworthiness_vector")
        vector.check_names(frozenset(VECTOR))
        values = {claim: vector.whole(claim, low=-128, high=127) for claim in VECTOR if claim in vector}
    appraised = [tier for tier in map(tier_of, values.values()) if tier is not Tier.NONE]
    if appraised and _BADNESS[status] < _BADNESS[worst(appraised)]:
        raise EarInconsistent("the status is better than the trustworthiness vector", submodule=name)
    return Submodule(status, MappingProxyType(values), _policy_ids(part))


def check(ear: Ear, *, nonce: str, now: datetime, developer: str | None = None, limits: Limits | None = None) -> None:
    """Refuses a result that is not the asked verifier's, about this nonce, at this time."""
    limits = limits or Limits()
    if developer is not None and ear.developer != developer:
        raise EarWrongVerifier("the attestation result comes from another verifier")
    check_window(
        ear.iat,
        ear.exp,
        seconds(now),
        skew_seconds=limits.skew_seconds,
        longest_seconds=MAX_WINDOW_SECONDS,
        early=EarNotYetValid,
        late=EarExpired,
        long=EarWindowTooLong,
    )
    if ear.nonce != nonce:
        raise EarNonceMismatch("the attestation result is about another nonce")


def check_answer(ear: Ear, *, evidence: str, asked_at: datetime, limits: Limits | None = None) -> None:
    """Refuses a result that does not answer the question asked at that moment about exactly this evidence.

    Beside `check`, for results of a verifier elsewhere: somebody may hand on what it once said.
    """
    limits = limits or Limits()
    if ear.iat < seconds(asked_at) - limits.skew_seconds:
        raise EarTooOld("the attestation result is older than the question")
    if ear.raw_evidence != evidence:
        raise EarForOtherEvidence("the attestation result is not about the evidence that was sent")


def _raw_evidence(claims: Claims) -> str:
    name = "ear_raw_evidence"
    octets = claims.octets(name, max_length=jws.MAX_BYTES)
    if not octets.isascii():
        raise claims.malformed(name, "the evidence as text, base64url")
    return octets.decode("ascii")


def _policy_ids(part: Claims) -> tuple[str, ...]:
    name = "ear_appraisal_policy_ids"
    if name not in part:
        return ()
    value = part.value(name)
    if (
        not isinstance(value, list)
        or len(value) > 16
        or any(not isinstance(one, str) or len(one) > 256 for one in value)
    ):
        raise part.malformed(name, "a list of at most 16 policy identifiers")
    return tuple(value)
