"""Renewals under standing approvals: the owner said yes beforehand, within bounds, and is not asked (A-107).

Offered beside every issuance model: whichever the first issue went through, a renewal that refers to a live standing
approval goes this way. Everything else about it is fresh: nonce, key, proof by the old key, evidence, appraisal.
"""

from __future__ import annotations

from appliance.binding import standing
from appliance.binding.evidence import Evidence
from appliance.binding.facts import OwnerRecord
from appliance.binding.request import AgentRequest
from appliance.binding.standing import StandingApproval
from appliance.identity.models import Approver, Bound, Setting, bound


def bind_standing(
    request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting, evidence: Evidence, agent_class: str
) -> Bound:
    """Bound by every standing approval to which the request refers, if they are enough for the agent's class.

    Raises what `standing.check`, `standing.check_use` and `ApproverRule.check` raise.
    """
    found: list[tuple[StandingApproval, OwnerRecord]] = []
    for approver in approvers:
        one = standing.check(
            approver.approval,
            approver.owner,
            server_id=setting.server_id,
            now=setting.now,
            limits=setting.limits,
            signer_is_agent=approver.is_agent,
        )
        owner = approver.owner
        assert owner is not None  # standing.check refuses the approvals of nobody
        standing.check_use(
            one, request, owner, proxy_id=setting.proxy_id, agent_class=agent_class, evidence=evidence,
            beside=setting.rule.beside(owner.owner_id),
        )  # fmt: skip
        found.append((one, owner))
    setting.rule.check(request.owner, [one for one, _ in found])
    return bound(request.owner, found)
