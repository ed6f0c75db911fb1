"""The agent-mediated model (draft-ni-wimse-ai-agent-identity-02, section 4.2.1): the agent brings its owner's approval.

The owner may be away from the server, and may have signed hours ago; nothing ever waits here (A-40).
"""

from __future__ import annotations

from appliance.binding import approval
from appliance.binding.composite import Composite
from appliance.binding.errors import ApprovalMissing
from appliance.binding.request import AgentRequest
from appliance.identity.errors import ApproversNotDistinct, SingleIdentityNotOffered
from appliance.identity.models import Approver, Bound, Setting, Waiting


class AgentMediated:
    """Bound by approvals that came with the request."""

    def __init__(self, *, single_identity: bool = False) -> None:
        """`single_identity`: whether an agent may act for itself, without any owner (A-2)."""
        self._single_identity = single_identity

    def bind(
        self, asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
    ) -> Bound | Waiting:
        """Every approval that came must be good, each by another key of the one owner.

        Raises ApprovalMissing, SingleIdentityNotOffered, ApproversNotDistinct, ApproversTooFew, and what
        `approval.check` raises.
        """
        if not asked.approvals:
            if request.owner is not None:
                raise ApprovalMissing("an owner is named and none of its approvals came along")
            if not self._single_identity and setting.approvers > 0:
                raise SingleIdentityNotOffered("credentials without an owner are not issued here")
            return Bound((), None)
        approvals = tuple(
            approval.check(
                approver.approval,
                request,
                approver.owner,
                server_id=setting.server_id,
                proxy_id=setting.proxy_id,
                now=setting.now,
                limits=setting.limits,
                signer_is_agent=approver.is_agent,
                org=asked.org_s256,
            )
            for approver in approvers
        )
        if len({one.kid for one in approvals}) != len(approvals):
            raise ApproversNotDistinct("two approvals come from one key")
        setting.check_enough(len(approvals))
        keys = tuple(key for approver in approvers if approver.owner is not None for key in approver.owner.keys)
        return Bound(approvals, approvers[0].owner, keys)
