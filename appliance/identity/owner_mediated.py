"""The owner-mediated model (draft-ni-wimse-ai-agent-identity-02, section 4.2.2): the owner's gateway submits.

The proxy hands the request to its owner's gateway, and what comes here has been approved by that owner (A-50). Who
submits is the only difference from the agent-mediated model; the approvals go through the same check (A-65). Where the
agent's class wants more approvers, the request waits here, and the server asks them as in the server-mediated model.
An owner may have several gateways (A-97): any of them goes on with what another one submitted.
"""

from __future__ import annotations

from appliance.binding.approval import kid_of
from appliance.binding.composite import Composite
from appliance.binding.errors import ApprovalMissing, ApprovalSpent
from appliance.binding.request import AgentRequest
from appliance.identity.agent_mediated import check_brought
from appliance.identity.errors import GatewayForOtherOwner, GatewayRequired, OwnerNotAmongApprovers
from appliance.identity.models import Approver, Bound, Setting, Waiting, bound
from appliance.identity.server_mediated import RETRY_SECONDS, settle
from appliance.store.challenges import APPROVED


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
            if set(asked.approvals) == {seat.row.answer for seat in setting.seats if seat.row.challenge is None}:
                return settle(request, setting, asked.org_s256)
            return _go_on(asked, request, approvers, setting)
        found = check_brought(asked, request, approvers, setting)
        brought = [one for one, _ in found]
        if setting.rule.is_enough(request.owner, brought):
            return bound(request.owner, found)
        if all(one.iss != request.owner for one in brought):
            raise OwnerNotAmongApprovers("the agent's own owner must be one of those who approve")
        return Waiting(RETRY_SECONDS, must_ask=True, brought=tuple(brought))


def _go_on(
    asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
) -> Bound | Waiting:
    """A parked request that comes with approvals other than those it waits with: of the owner's other gateway.

    They take the others' places, with the material that they name. Once those are spent they are the ones that count,
    as they do where the new ones come from keys that have approved already; both only with the same material.
    """
    brought = [one for one, _ in check_brought(asked, request, approvers, setting)]
    setting.rule.is_enough(request.owner, brought)
    places = [seat.row for seat in setting.seats if seat.row.challenge is None]
    if sorted(one.iss for one in brought) != sorted(row.owner_id for row in places):
        raise ApprovalSpent("this request waits with approvals of others", rqh=request.rqh)
    kept = {
        kid_of(seat.row.answer)
        for seat in setting.seats
        if seat.row.answer is not None and seat.row.challenge is not None and seat.row.state == APPROVED
    }
    if any(row.state != APPROVED for row in places) or any(one.kid in kept for one in brought):
        return settle(request, setting, asked.org_s256)
    replaced = []
    for one in brought:
        row = next(row for row in places if row.owner_id == one.iss)
        places.remove(row)
        if row.answer != one.token:
            replaced.append((row.id, one))
    return Waiting(RETRY_SECONDS, replaced=tuple(replaced))
