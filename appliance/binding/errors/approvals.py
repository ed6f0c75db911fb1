"""What can be wrong with an owner approval, its signer, or an owner's key statement."""

from __future__ import annotations

from appliance.binding.errors.base import BindingError


class ApprovalMissing(BindingError):
    """No owner approval came with the request, and this model wants one."""

    reason = "approval-missing"


class ApprovalNotExpected(BindingError):
    """An approval came with a request of the server-mediated model, where the server asks the owner itself."""

    reason = "approval-not-expected"


class OrgMaterialMismatch(BindingError):
    """The organisational material beside the request is not what the owner signed for."""

    reason = "org-material-mismatch"


class OrgMaterialNotExpected(BindingError):
    """Organisational material came with a request of another model than the owner-mediated one."""

    reason = "org-material-not-expected"


class ApprovalDenied(BindingError):
    """The owner's signed answer is no."""

    reason = "approval-denied"


class ApprovalSpent(BindingError):
    """This approval has been used."""

    reason = "approval-spent"


class ApprovalExpired(BindingError):
    """The approval is past its `exp`."""

    reason = "approval-expired"


class ApprovalNotYetValid(BindingError):
    """The approval's `iat` lies in the future."""

    reason = "approval-not-yet-valid"


class ApprovalWindowTooLong(BindingError):
    """The approval wants to be usable for longer than allowed; field `limit` in seconds."""

    reason = "approval-window-too-long"


class PasskeyChallengeMismatch(BindingError):
    """The passkey signed another challenge than the hash of what stands beside it."""

    reason = "passkey-challenge-mismatch"


class PasskeyOriginMismatch(BindingError):
    """The passkey was used for another relying party or from another origin than it is registered for."""

    reason = "passkey-origin-mismatch"


class PasskeyUserNotVerified(BindingError):
    """The passkey did not verify its user (PIN or biometrics) at this signature."""

    reason = "passkey-user-not-verified"


class PasskeyCounterWentBack(BindingError):
    """A later signature has a smaller counter: there may be a copy of the passkey. Fields `seen`, `found`."""

    reason = "passkey-counter-went-back"


class StandingApprovalEnded(BindingError):
    """The standing approval is past its `exp`: the owner must sign a new one, or approve each renewal."""

    reason = "standing-approval-ended"


class StandingApprovalNotYetValid(BindingError):
    """The standing approval's `iat` lies in the future."""

    reason = "standing-approval-not-yet-valid"


class StandingApprovalTooLong(BindingError):
    """The standing approval wants to stand for longer than allowed; field `limit` in seconds."""

    reason = "standing-approval-too-long"


class StandingApprovalUnknown(BindingError):
    """The request refers to a standing approval that neither came along nor is on record."""

    reason = "standing-approval-unknown"


class StandingApprovalWithdrawn(BindingError):
    """The owner or an administrator has withdrawn the standing approval."""

    reason = "standing-approval-withdrawn"


class StandingApprovalUsedUp(BindingError):
    """The standing approval was used as often as it may be; field `limit`."""

    reason = "standing-approval-used-up"


class StandingApprovalNotForFirstIssue(BindingError):
    """A first issue refers to a standing approval; those cover renewals only."""

    reason = "standing-approval-not-for-first-issue"


class StandingReferenceMismatch(BindingError):
    """A standing approval came along to which the agent's request does not refer."""

    reason = "standing-reference-mismatch"


class StandingClassMismatch(BindingError):
    """The standing approval is for another agent class."""

    reason = "standing-class-mismatch"


class StandingPlatformMismatch(BindingError):
    """The evidence shows another device, program or user than the standing approval allows; field `claim`."""

    reason = "standing-platform-mismatch"


class ApprovalWrongAudience(BindingError):
    """The approval is addressed to another server."""

    reason = "approval-wrong-audience"


class ApprovalWrongOwner(BindingError):
    """The approval's `iss` is not the owner whose key signed it."""

    reason = "approval-wrong-owner"


class ApprovalForOtherAgent(BindingError):
    """The approval's `sub` is another agent."""

    reason = "approval-for-other-agent"


class ApprovalForOtherKey(BindingError):
    """The approval binds another agent key."""

    reason = "approval-for-other-key"


class ApprovalForOtherRequest(BindingError):
    """The approval was given for other request bytes."""

    reason = "approval-for-other-request"


class ApprovalForOtherModel(BindingError):
    """The approval was given for another issuance model."""

    reason = "approval-for-other-model"


class ApprovalForOtherPurpose(BindingError):
    """The approval was given for another purpose."""

    reason = "approval-for-other-purpose"


class ApprovalForOtherProxy(BindingError):
    """The approval names another proxy."""

    reason = "approval-for-other-proxy"


class ApprovalNonceMismatch(BindingError):
    """The approval carries another nonce than the request (or challenge)."""

    reason = "approval-nonce-mismatch"


class ApprovalWidened(BindingError):
    """More than was asked, or more than was approved: bounds may only shrink; field `claim`."""

    reason = "approval-widened"


class SelfApproval(BindingError):
    """The approval is signed by an agent's key."""

    reason = "self-approval"


class OwnerMismatch(BindingError):
    """The request names another owner than the one who approved it."""

    reason = "owner-mismatch"


class OwnerUnknown(BindingError):
    """The owner is not in the registry."""

    reason = "owner-unknown"


class OwnerNotActive(BindingError):
    """The owner is suspended or revoked."""

    reason = "owner-not-active"


class OwnerKeyUnknown(BindingError):
    """The key is not one of this owner's registered keys."""

    reason = "owner-key-unknown"


class OwnerKeyNotValid(BindingError):
    """The owner's key was retired, revoked or outside its validity when it signed."""

    reason = "owner-key-not-valid"


class OwnerKeyInSoftware(BindingError):
    """The owner's key is kept in software and policy wants hardware."""

    reason = "owner-key-in-software"


class ProxyNotAllowed(BindingError):
    """This proxy may not submit for this owner."""

    reason = "proxy-not-allowed-for-owner"


class StatementExpired(BindingError):
    """The owner key statement is past its `exp`."""

    reason = "statement-expired"


class StatementNotYetValid(BindingError):
    """The owner key statement's `iat` lies in the future."""

    reason = "statement-not-yet-valid"


class StatementWindowTooLong(BindingError):
    """The owner key statement wants to be usable for longer than allowed; field `limit` in seconds."""

    reason = "statement-window-too-long"


class StatementWrongAudience(BindingError):
    """The owner key statement is addressed to another trust domain."""

    reason = "statement-wrong-audience"


class StatementForOtherOwner(BindingError):
    """The owner key statement is another owner's."""

    reason = "statement-for-other-owner"
