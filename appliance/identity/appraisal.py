"""The RATS verifier in this process (RFC 9334): a proxy's evidence in, an attestation result (EAR) out.

Asked at first issue and at every renewal (A-21). Evidence counts only as this submitter's fresh word about exactly this
request (A-23); what it says is then held against the appraisal policy. A contraindicated result is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from appliance.binding import ear, evidence, jws
from appliance.binding.ear import Submodule, Tier, worst
from appliance.binding.errors import EvidenceMissing
from appliance.binding.evidence import Evidence
from appliance.binding.facts import Limits
from appliance.binding.request import AgentRequest
from appliance.identity.appraisal_policy import AppraisalPolicy, ClassPolicy
from appliance.identity.errors import EvidenceContraindicated
from appliance.identity.submitter import Submitter
from est.signer import Signer

EAR_SECONDS = 3600
BUILD = "appliance appraisal 1"
_AFFIRMED = 2
_VALUE = {Tier.AFFIRMING: _AFFIRMED, Tier.WARNING: 32, Tier.CONTRAINDICATED: 96}


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What came out: the evidence as read, the signed result, its tier, and the longest life that it allows."""

    evidence: Evidence
    ear: str
    tier: Tier
    longest_seconds: int | None

    @property
    def digest(self) -> bytes:
        """SHA-256 of the result: `earDigest` of the certificate."""
        return sha256(self.ear.encode("ascii")).digest()


class Verifier:
    """Appraises evidence by one policy and signs the results."""

    def __init__(self, signer: Signer, policy: AppraisalPolicy, *, developer: str, limits: Limits) -> None:
        """`developer` names this verifier in its results: the server's identifier."""
        self._signer = signer
        self._policy = policy
        self._developer = developer
        self._limits = limits

    def appraise(
        self, token: str | None, request: AgentRequest, submitter: Submitter, *, agent_class: str, now: datetime
    ) -> Appraisal:
        """The result for a request's evidence.

        Raises EvidenceMissing, what `evidence.unseal` and `evidence.check` raise, EvidenceContraindicated.
        """
        if token is None:
            raise EvidenceMissing("the proxy added no evidence")
        seen = evidence.unseal(token, submitter.key, kid=submitter.jkt)
        evidence.check(seen, request, proxy_id=submitter.proxy_id, now=now, limits=self._limits)
        rules = self._policy.for_class(agent_class)
        parts = {"platform": self._platform(submitter, rules), "agent": self._agent(seen, rules)}
        tier = worst(part.status for part in parts.values())
        if tier not in (Tier.AFFIRMING, Tier.WARNING):
            bad = sorted(
                f"{name}.{claim}"
                for name, part in parts.items()
                for claim, value in part.vector.items()
                if ear.tier_of(value) is Tier.CONTRAINDICATED
            )
            raise EvidenceContraindicated("the appraisal policy refuses what the proxy saw", claims=bad)
        issued = int(now.timestamp())
        result = ear.seal(
            self._signer,
            iat=issued,
            exp=issued + EAR_SECONDS,
            nonce=seen.nonce,
            developer=self._developer,
            build=BUILD,
            submodules=parts,
            kid=jws.jkt(self._signer.public_key()),
        )
        return Appraisal(seen, result, tier, rules.warning_seconds if tier is Tier.WARNING else None)

    def _platform(self, submitter: Submitter, rules: ClassPolicy) -> Submodule:
        known = Tier.AFFIRMING if submitter.method in rules.methods else Tier.CONTRAINDICATED
        return self._part({"instance-identity": known})

    def _agent(self, seen: Evidence, rules: ClassPolicy) -> Submodule:
        complete = Tier.AFFIRMING if rules.required <= seen.agent.keys() else Tier.CONTRAINDICATED
        configuration = [Tier.AFFIRMING]
        if seen.dbgstat == "enabled":
            configuration.append(rules.debug)
        if seen.agent.get("uid") == 0:
            configuration.append(rules.root)
        vector = {"instance-identity": complete, "configuration": worst(configuration)}
        if rules.executables:
            is_known = _sha256_of(seen.agent.get("executable_digest")) in rules.executables
            vector["executables"] = Tier.AFFIRMING if is_known else rules.unknown_executable
        return self._part(vector)

    def _part(self, vector: Mapping[str, Tier]) -> Submodule:
        values = {claim: _VALUE[tier] for claim, tier in vector.items()}
        return Submodule(worst(vector.values()), values, (self._policy.identifier,))


def _sha256_of(digest: Any) -> str:
    """The hex of a measured SHA-256 ({alg, hash}, checked by evidence.unseal), "" for another algorithm or none."""
    if not isinstance(digest, dict) or digest["alg"] != "sha-256":
        return ""
    return jws.unbase64url(digest["hash"], "executable_digest").hex()
