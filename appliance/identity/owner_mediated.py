"""The owner-mediated model (draft-ni-wimse-ai-agent-identity-02, section 4.2.2): the owner's gateway submits.

The proxy hands the request to its owner's gateway, and what comes here has been approved: nothing ever waits (A-50).
Who submits is the only difference from the agent-mediated model; the approvals go through the same check (A-65).
"""

from __future__ import annotations

from appliance.binding.composite import Composite
from appliance.binding.errors import ApprovalMissing
from appliance.binding.request import AgentRequest
from appliance.identity.agent_mediated import AgentMediated
from appliance.identity.errors import GatewayForOtherOwner, GatewayRequired
from appliance.identity.models import Approver, Bound, Setting, Waiting


class OwnerMediated:
    """Bound by approvals that the owner's own gateway brings."""

    def __init__(self) -> None:
        self._carried = AgentMediated()

    def bind(
        self, asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
    ) -> Bound | Waiting:
        """Raises GatewayRequired, GatewayForOtherOwner, ApprovalMissing, and what the agent-mediated model raises."""
        if setting.gateway_of is None:
            raise GatewayRequired("in the owner-mediated model the owner's gateway submits")
        if request.owner != setting.gateway_of:
            raise GatewayForOtherOwner("this gateway is another owner's")
        if not asked.approvals:
            raise ApprovalMissing("the gateway brings no approval")
        return self._carried.bind(asked, request, approvers, setting)
