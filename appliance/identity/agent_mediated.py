"""The agent-mediated model (draft-ni-wimse-ai-agent-identity-02, section 4.2.1): the agent brings its owner's approval.

The owner may be away from the server, and may have signed hours ago; nothing ever waits here (A-40).
"""

from __future__ import annotations

from appliance.binding import approval
from appliance.binding.approval import OwnerApproval
from appliance.binding.composite import Composite
from appliance.binding.errors import ApprovalMissing
from appliance.binding.facts import OwnerRecord
from appliance.binding.request import AgentRequest
from appliance.identity.errors import SingleIdentityNotOffered
from appliance.identity.models import Approver, Bound, Setting, Waiting, bound


class AgentMediated:
    """Bound by approvals that came with the request."""

    def __init__(self, *, single_identity: bool = False) -> None:
        """`single_identity`: whether an agent may act for itself, without any owner (A-2)."""
        self._single_identity = single_identity

    def bind(
        self, asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
    ) -> Bound | Waiting:
        """Every approval that came must be good, and together enough for the agent's class.

        Raises ApprovalMissing, SingleIdentityNotOffered, what `ApproverRule.check` raises, and what `approval.check`
        raises.
        """
        if not asked.approvals:
            if request.owner is not None:
                raise ApprovalMissing("an owner is named and none of its approvals came along")
            if not self._single_identity and setting.rule.count > 0:
                raise SingleIdentityNotOffered("credentials without an owner are not issued here")
            return Bound((), None)
        found = check_brought(asked, request, approvers, setting)
        setting.rule.check(request.owner, [one for one, _ in found])
        return bound(request.owner, found)


def check_brought(
    asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
) -> list[tuple[OwnerApproval, OwnerRecord]]:
    """The approvals that came along, each good by itself; raises what `approval.check` raises."""
    found = []
    for approver in approvers:
        one = approval.check(
            approver.approval,
            request,
            approver.owner,
            server_id=setting.server_id,
            proxy_id=setting.proxy_id,
            now=setting.now,
            limits=setting.limits,
            signer_is_agent=approver.is_agent,
            org=asked.org_s256,
            beside=None if approver.owner is None else setting.rule.beside(approver.owner.owner_id),
        )
        assert approver.owner is not None  # approval.check refuses the approvals of nobody
        found.append((one, approver.owner))
    return found
