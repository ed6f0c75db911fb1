"""The RATS verifier (RFC 9334): a proxy's evidence in, an attestation result (EAR) out; here the one in this process.

Asked at first issue and at every renewal (A-21). Evidence counts only as this submitter's fresh word about exactly this
request (A-23); what it says is then held against the appraisal policy. A contraindicated result is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol

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


class Appraisal(NamedTuple):
    """What came out: the evidence as read, the signed result, its tier, and the longest life that it allows."""

    evidence: Evidence
    ear: str
    tier: Tier
    longest_seconds: int | None


class Appraiser(Protocol):
    """A verifier elsewhere: an answer takes time, in which the world goes on."""

    async def appraise(
        self, token: str | None, request: AgentRequest, submitter: Submitter, *, agent_class: str, now: datetime
    ) -> Appraisal:
        """The result for a request's evidence.

        Raises what `open_evidence` raises, EvidenceContraindicated, Verifier... .
        """
        ...

    async def close(self) -> None:
        """Ends connections."""
        ...


def open_evidence(
    token: str | None, request: AgentRequest, submitter: Submitter, *, now: datetime, limits: Limits
) -> Evidence:
    """The evidence as this submitter's fresh word about exactly this request, whoever appraises it then (A-23).

    Raises EvidenceMissing, what `evidence.unseal` and `evidence.check` raise.
    """
    if token is None:
        raise EvidenceMissing("the proxy added no evidence")
    seen = evidence.unseal(token, submitter.key, kid=submitter.jkt)
    evidence.check(seen, request, proxy_id=submitter.proxy_id, now=now, limits=limits)
    return seen


def judge(seen: Evidence, method: str, policy: AppraisalPolicy, agent_class: str) -> dict[str, Submodule]:
    """Both parts of a result by a policy; `method` is how the proxy came in."""
    rules = policy.for_class(agent_class)
    known = Tier.AFFIRMING if method in rules.methods else Tier.CONTRAINDICATED
    return {
        "platform": _part({"instance-identity": known, **_judge_machine(seen, rules, policy)}, policy),
        "agent": _part(_judge_agent(seen, rules), policy),
    }


def check_tier(parts: Mapping[str, Submodule]) -> Tier:
    """The tier of the whole; raises EvidenceContraindicated where it leads to no credential (A-24)."""
    tier = worst(part.status for part in parts.values())
    if tier in (Tier.AFFIRMING, Tier.WARNING):
        return tier
    bad = sorted(
        f"{name}.{claim}"
        for name, part in parts.items()
        for claim, value in part.vector.items()
        if ear.tier_of(value) is Tier.CONTRAINDICATED
    )
    raise EvidenceContraindicated("the appraisal policy refuses what the proxy saw", claims=bad)


class Verifier:
    """Appraises evidence by one policy and signs the results, in this process."""

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
        seen = open_evidence(token, request, submitter, now=now, limits=self._limits)
        parts = judge(seen, submitter.method, self._policy, agent_class)
        tier = check_tier(parts)
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
        longest = self._policy.for_class(agent_class).warning_seconds
        return Appraisal(seen, result, tier, longest if tier is Tier.WARNING else None)

    async def close(self) -> None:
        """Nothing is held."""


def _judge_machine(seen: Evidence, rules: ClassPolicy, policy: AppraisalPolicy) -> dict[str, Tier]:
    """What the TPM's quote is worth; one by a key that the policy does not name for this proxy is none."""
    quote = seen.quote
    if quote is not None and policy.attestation_keys.get(seen.iss) != quote.key_sha256.hex():
        quote = None
    vector = {}
    if quote is not None:
        vector["hardware"] = Tier.AFFIRMING
    elif rules.tpm is not None:
        vector["hardware"] = rules.tpm
    if rules.pcrs:
        shown = {} if quote is None else quote.pcrs
        are_good = all(number in shown and shown[number].hex() in good for number, good in rules.pcrs.items())
        vector["configuration"] = Tier.AFFIRMING if are_good else rules.unknown_pcrs
    return vector


def _judge_agent(seen: Evidence, rules: ClassPolicy) -> dict[str, Tier]:
    complete = Tier.AFFIRMING if rules.required <= seen.agent.keys() else Tier.CONTRAINDICATED
    configuration = [Tier.AFFIRMING]
    if seen.dbgstat == "enabled":
        configuration.append(rules.debug)
    if seen.agent.get("uid") == 0:
        configuration.append(rules.root)
    if seen.agent.get("key_origin") == evidence.BY_PROXY:
        configuration.append(rules.key_by_proxy)
    vector = {"instance-identity": complete, "configuration": worst(configuration)}
    if rules.executables:
        is_known = _sha256_of(seen.agent.get("executable_digest")) in rules.executables
        vector["executables"] = Tier.AFFIRMING if is_known else rules.unknown_executable
    return vector


def _part(vector: Mapping[str, Tier], policy: AppraisalPolicy) -> Submodule:
    values = {claim: _VALUE[tier] for claim, tier in vector.items()}
    return Submodule(worst(vector.values()), values, (policy.identifier,))


def _sha256_of(digest: Any) -> str:
    """The hex of a measured SHA-256 ({alg, hash}, checked by evidence.unseal), "" for another algorithm or none."""
    if not isinstance(digest, dict) or digest["alg"] != "sha-256":
        return ""
    return jws.unbase64url(digest["hash"], "executable_digest").hex()
