"""What the identity server refuses beside binding's leaves.

IdentityError (abstract)
├── SubmitterForeign, SubmitterWrongRole, SubmitterNotProxy, SubmitterNotLive, ProxyNotActive      who submits (A-11)
├── AgentUnknown, AgentRevoked, AgentSuspended, ReservationsFull, KeyAlreadyAgent                   the registration
├── ClassNotForOwners, ClassAlreadyGiven                                                           an owner classifies
├── EvidenceContraindicated                                                                        the appraisal
├── VerifierUnreachable, VerifierTimedOut, VerifierBusy, VerifierAnswerInvalid     a verifier elsewhere: try again later
├── VerifierSettingInvalid                                                                         settings
├── SingleIdentityNotOffered, RequestReplayed, LifetimeNotPossible                                  the decision
├── ApproversNotDistinct, ApproversTooFew, ApproversOutOfReach, OwnerNotAmongApprovers              several approvers
├── GatewayRequired, GatewayForOtherOwner                                                          owners' gateways
├── AgentNotRegistered, AgentMuted, ChallengesFull, ChallengeOver, OwnerClientUnknown               asking the owner
├── RequestAbandoned                                                                               after a crash
└── CredentialWithdrawn                                                                            after a revocation
"""

from __future__ import annotations

from typing import ClassVar

from appliance.errors import ApplianceError


class IdentityError(ApplianceError):
    """Base of the identity server's refusals; abstract."""


class SubmitterForeign(IdentityError):
    """The client certificate was not issued by this campus (a manufacturer's IDevID, for example)."""

    reason: ClassVar[str] = "submitter-foreign"


class SubmitterWrongRole(IdentityError):
    """The client certificate was issued here, and not for a device; field `role`."""

    reason: ClassVar[str] = "submitter-wrong-role"


class SubmitterNotProxy(IdentityError):
    """The client certificate is a device's, and does not name exactly one proxy."""

    reason: ClassVar[str] = "submitter-not-a-proxy"


class SubmitterNotLive(IdentityError):
    """The proxy's certificate is revoked, or was never finished."""

    reason: ClassVar[str] = "submitter-not-live"


class ProxyNotActive(IdentityError):
    """The proxy is revoked."""

    reason: ClassVar[str] = "proxy-not-active"


class AgentUnknown(IdentityError):
    """No such agent stands behind this proxy."""

    reason: ClassVar[str] = "agent-unknown"


class AgentRevoked(IdentityError):
    """The agent is revoked; its identifier is never used again."""

    reason: ClassVar[str] = "agent-revoked"


class AgentSuspended(IdentityError):
    """The agent is suspended until an administrator resumes it."""

    reason: ClassVar[str] = "agent-suspended"


class KeyAlreadyAgent(IdentityError):
    """An agent with this key is registered already."""

    reason: ClassVar[str] = "key-already-agent"


class ClassNotForOwners(IdentityError):
    """This class is not one that owners may give here (`identity.owner_classes`)."""

    reason: ClassVar[str] = "class-not-for-owners"


class ClassAlreadyGiven(IdentityError):
    """The agent has a class; from then on only an administrator changes it."""

    reason: ClassVar[str] = "class-already-given"


class ReservationsFull(IdentityError):
    """The proxy has reserved as many identifiers as it may; fields: retry_after_seconds."""

    reason: ClassVar[str] = "reservations-full"


class EvidenceContraindicated(IdentityError):
    """The appraisal policy says no to this evidence; field `claims`."""

    reason: ClassVar[str] = "evidence-contraindicated"


class VerifierUnreachable(IdentityError):
    """No connection to the verifier, no trust in its TLS certificate, or it says that it is away."""

    reason: ClassVar[str] = "verifier-unreachable"


class VerifierTimedOut(IdentityError):
    """The verifier did not answer in time."""

    reason: ClassVar[str] = "verifier-timed-out"


class VerifierBusy(IdentityError):
    """As many requests wait for the verifier as may wait."""

    reason: ClassVar[str] = "verifier-busy"


class VerifierAnswerInvalid(IdentityError):
    """What the verifier answered is no result for this question by a pinned key; field `because`."""

    reason: ClassVar[str] = "verifier-answer-invalid"


class VerifierSettingInvalid(IdentityError):
    """The settings of the verifier elsewhere cannot be used; the detail says which."""

    reason: ClassVar[str] = "verifier-setting-invalid"


class SingleIdentityNotOffered(IdentityError):
    """A request without an owner, and this site issues dual identities only."""

    reason: ClassVar[str] = "single-identity-not-offered"


class ApproversNotDistinct(IdentityError):
    """Two approvals of one key, or of one owner where others are named, count as one."""

    reason: ClassVar[str] = "approvers-not-distinct"


class ApproversTooFew(IdentityError):
    """Less different keys or owners approved than the agent's class needs; fields `needed`, `found`."""

    reason: ClassVar[str] = "approvers-too-few"


class ApproversOutOfReach(IdentityError):
    """As many as the agent's class needs cannot approve any more.

    Fields `needed`, `approved`, `denied`, `expired`, `withdrawn` (approvals that count no more).
    """

    reason: ClassVar[str] = "approvers-out-of-reach"


class OwnerNotAmongApprovers(IdentityError):
    """Others approved, and the agent's own owner did not."""

    reason: ClassVar[str] = "owner-not-among-approvers"


class RequestReplayed(IdentityError):
    """The request's `jti` was used before."""

    reason: ClassVar[str] = "request-replayed"


class LifetimeNotPossible(IdentityError):
    """No life is left between the caps: issuing CA, owner key, proxy certificate; field `cap`."""

    reason: ClassVar[str] = "lifetime-not-possible"


class RequestAbandoned(IdentityError):
    """The request expired before its credential was begun or finished; a new request and approval are needed."""

    reason: ClassVar[str] = "request-abandoned"


class CredentialWithdrawn(IdentityError):
    """What was issued counts no more, or not now: its agent, owner or approving key is revoked or suspended."""

    reason: ClassVar[str] = "credential-withdrawn"


class AgentNotRegistered(IdentityError):
    """The server asks owners only about agents that were registered to them before."""

    reason: ClassVar[str] = "agent-not-registered"


class AgentMuted(IdentityError):
    """The owner said no to this agent a moment ago and is not asked again yet; fields: retry_after_seconds."""

    reason: ClassVar[str] = "agent-muted"


class ChallengesFull(IdentityError):
    """As many questions wait for this owner as may wait; fields: retry_after_seconds."""

    reason: ClassVar[str] = "challenges-full"


class ChallengeOver(IdentityError):
    """The challenge was answered before, others settled it, or a newer request took its place; field `state`."""

    reason: ClassVar[str] = "challenge-over"


class GatewayRequired(IdentityError):
    """A request of the owner-mediated model that the owner's gateway did not submit."""

    reason: ClassVar[str] = "gateway-required"


class GatewayForOtherOwner(IdentityError):
    """A gateway submits a request that names another owner than its own."""

    reason: ClassVar[str] = "gateway-for-other-owner"


class OwnerClientUnknown(IdentityError):
    """The client certificate holds no client key that is registered and active for an owner."""

    reason: ClassVar[str] = "owner-client-unknown"
