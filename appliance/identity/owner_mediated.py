"""The owner-mediated model (draft-ni-wimse-ai-agent-identity-02, section 4.2.2): the owner's gateway submits.

The proxy hands the request to its owner's gateway, and what comes here has been approved by that owner (A-50). Who
submits is the only difference from the agent-mediated model; the approvals go through the same check (A-65). Where the
agent's class wants more approvers, the request waits here, and the server asks them as in the server-mediated model.
"""

from __future__ import annotations

from appliance.binding.composite import Composite
from appliance.binding.errors import ApprovalMissing, ApprovalSpent
from appliance.binding.request import AgentRequest
from appliance.identity.agent_mediated import check_brought
from appliance.identity.errors import GatewayForOtherOwner, GatewayRequired, OwnerNotAmongApprovers
from appliance.identity.models import Approver, Bound, Setting, Waiting, bound
from appliance.identity.server_mediated import RETRY_SECONDS, settle


class OwnerMediated:
    """Bound by approvals that the owner's own gateway brings, and by answers of those whom its class wants beside."""

    def bind(
        self, asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
    ) -> Bound | Waiting:
        """Raises GatewayRequired, GatewayForOtherOwner, ApprovalMissing, ApprovalSpent, OwnerNotAmongApprovers,
        ApproversNotDistinct, and what `approval.check` and `settle` raise."""
        if setting.gateway_of is None:
            raise GatewayRequired("in the owner-mediated model the owner's gateway submits")
        if request.owner != setting.gateway_of:
            raise GatewayForOtherOwner("this gateway is another owner's")
        if not asked.approvals:
            raise ApprovalMissing("the gateway brings no approval")
        if setting.seats:
            if set(asked.approvals) != {seat.row.answer for seat in setting.seats if seat.row.challenge is None}:
                raise ApprovalSpent("this request waits with other approvals of its owner", rqh=request.rqh)
            return settle(request, setting, asked.org_s256)
        found = check_brought(asked, request, approvers, setting)
        brought = [one for one, _ in found]
        if setting.rule.is_enough(request.owner, brought):
            return bound(request.owner, found)
        if all(one.iss != request.owner for one in brought):
            raise OwnerNotAmongApprovers("the agent's own owner must be one of those who approve")
        return Waiting(RETRY_SECONDS, must_ask=True, brought=tuple(brought))
