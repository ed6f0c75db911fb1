"""Renewals under standing approvals: the owner said yes beforehand, within bounds, and is not asked (A-107).

Offered beside every issuance model: whichever the first issue went through, a renewal that refers to a live standing
approval goes this way. Everything else about it is fresh: nonce, key, proof by the old key, evidence, appraisal.
"""

from __future__ import annotations

from appliance.binding import standing
from appliance.binding.errors import OwnerMismatch
from appliance.binding.evidence import Evidence
from appliance.binding.facts import OwnerKey
from appliance.binding.request import AgentRequest
from appliance.binding.standing import StandingApproval
from appliance.identity.errors import ApproversNotDistinct
from appliance.identity.models import Approver, Bound, Setting


def bind_standing(
    request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting, evidence: Evidence, agent_class: str
) -> Bound:
    """Bound by every standing approval to which the request refers, each by another key of the one owner.

    Raises what `standing.check` and `standing.check_use` raise, ApproversNotDistinct, ApproversTooFew.
    """
    found: list[StandingApproval] = []
    keys: list[OwnerKey] = []
    for approver in approvers:
        one = standing.check(
            approver.approval,
            approver.owner,
            server_id=setting.server_id,
            now=setting.now,
            limits=setting.limits,
            signer_is_agent=approver.is_agent,
        )
        assert approver.owner is not None  # standing.check refuses the approvals of nobody
        standing.check_use(
            one, request, approver.owner, proxy_id=setting.proxy_id, agent_class=agent_class, evidence=evidence
        )
        found.append(one)
        keys += approver.owner.keys
    if len({one.kid for one in found}) != len(found):
        raise ApproversNotDistinct("two standing approvals come from one key")
    if len({one.iss for one in found}) != 1:
        raise OwnerMismatch("the standing approvals come from different owners")
    setting.check_enough(len(found))
    return Bound(tuple(found), approvers[0].owner, tuple(keys))
