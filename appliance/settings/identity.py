"""The identity server: [identity]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from appliance.setting_types import AgentClass, OidArc, ServerId
from appliance.settings.section import Section

MAX_APPROVERS = 8
"""As many approvals as a composite request may carry."""
Approvers = Annotated[int, Field(ge=0, le=MAX_APPROVERS)]


class IdentitySettings(Section):
    """[identity]"""

    workers: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that serve the agent and owner API at web.identity_port, beside the device port, which "
        "serves it as ever. Rates count in each process.",
    )
    server_id: ServerId = Field(
        "", description="Audience of requests and approvals; empty = https://ids.<trust domain>/v1."
    )
    oid_arc: OidArc = Field(
        "1.3.6.1.4.1.32473.2026.1",
        description="OID arc of the two private extensions; replace the documentation number by your own.",
    )
    agent_hours: float = Field(8.0, gt=0, le=24, description="Longest life of an agent certificate, hours.")
    wit_minutes: float = Field(60.0, gt=0, description="Life of a WIT, minutes.")
    nonce_hours: float = Field(
        24.0, gt=0, description="Life of a nonce and use window of an approval, agent-mediated, hours."
    )
    challenge_seconds: int = Field(
        900, gt=0, le=900, description="How long an owner may take to answer a challenge, server-mediated, seconds."
    )
    challenge_policy_seconds: int = Field(
        30, gt=0, le=900, description="The same for an owner of kind policy, which is a program."
    )
    challenges_per_owner: int = Field(
        20, gt=0, le=100, description="Questions that may wait for one owner at a time, server-mediated."
    )
    denial_mute_seconds: int = Field(
        900, ge=0, description="How long an owner is not asked about an agent again after a no, seconds."
    )
    standing_days: float = Field(
        90.0,
        gt=0,
        le=90,
        description="Longest life of a standing approval, which covers renewals, days.",
    )
    evidence_seconds: int = Field(300, gt=0, description="Oldest evidence accepted at submission, seconds.")
    skew_seconds: int = Field(60, ge=0, description="Clock difference tolerated, seconds.")
    reserve_per_proxy: int = Field(
        1000, gt=0, description="Agent identifiers that one proxy may have reserved and not yet used."
    )
    proxy_rate: float = Field(50.0, gt=0, description="Requests per second of one proxy.")
    proxy_burst: int = Field(200, gt=0, description="Burst for proxy_rate.")
    appraisal_policy: Path | None = Field(None, description="Appraisal policy file; none = the built-in policy.")
    verifier_url: str = Field(
        "", max_length=300, description="https address of a verifier elsewhere; empty = evidence is appraised here."
    )
    verifier_anchors: Path | None = Field(
        None, description="PEM file with the anchors that the verifier's TLS certificate is held to; with verifier_url."
    )
    verifier_keys: Path | None = Field(
        None, description="PEM file with the public keys that may sign the verifier's results; with verifier_url."
    )
    verifier_seconds: float = Field(5.0, gt=0, le=20, description="Longest wait for the verifier's answer, seconds.")
    verifier_concurrency: int = Field(16, gt=0, le=256, description="Calls to the verifier at the same time.")
    approvers: dict[str, Approvers] = Field(
        {},
        description="How many must approve for an agent class, a table [identity.approvers] with lines such as "
        "robot = 2: different keys of the agent's owner or, with named_approvers, different owners; 0 = an agent of "
        "the class may also act for itself, without an owner. `default` is for classes that are not named; without "
        "it: 1.",
    )
    named_approvers: dict[str, tuple[str, ...]] = Field(
        {},
        description="Who approves beside the agent's own owner, a table [identity.named_approvers] with lines such as "
        'robot = ["<identifier of an owner>", ...]; for classes of identity.approvers with 2 or more. Each of them '
        "approves with a key of its own, and the agent's owner is always one of those who must.",
    )
    owner_classes: tuple[AgentClass, ...] = Field(
        (),
        description="Agent classes that an owner may give to an agent of its own which has none yet; empty = only "
        "administrators classify. A class can open VLANs and lower the number of approvers.",
    )
    passkey_rp_id: str = Field(
        "", max_length=253, description="Relying party of owners' passkeys (WebAuthn); empty = the trust domain."
    )
    passkey_origin: str = Field(
        "", max_length=300, description="Origin that owners' passkeys are used from; empty = https://<relying party>."
    )
    allow_software_owner_keys: bool = Field(True, description="Accept approvals signed by owner keys kept in software.")

    @model_validator(mode="after")
    def _check_named_approvers(self) -> Self:
        for name, named in self.named_approvers.items():
            needed = self.approvers.get(name, 0)
            if len(set(named)) != len(named) or len(named) >= MAX_APPROVERS:
                raise ValueError(f"named_approvers: {name} names up to {MAX_APPROVERS - 1} different owners")
            if not 2 <= needed <= len(named) + 1:
                raise ValueError(f"named_approvers: {name} needs 2 to {len(named) + 1} in approvers, not {needed}")
        return self
