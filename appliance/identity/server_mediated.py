"""The server-mediated model (draft-ni-wimse-ai-agent-identity-02, section 4.2.3): the server asks the agent's owner.

The owner is the one to whom the agent was registered, never whom the request alone names (A-61), and the others whom
its class wants beside are those of the settings. An answer is the same approval as in the other models and goes through
the same check; only its nonce is the challenge's.
"""

from __future__ import annotations

from appliance.binding import approval
from appliance.binding.approval import OwnerApproval
from appliance.binding.composite import Composite
from appliance.binding.errors import ApprovalNotExpected, BindingError
from appliance.binding.facts import Model, OwnerRecord
from appliance.binding.request import AgentRequest
from appliance.identity.challenge_states import ChallengeState, state_of
from appliance.identity.errors import AgentNotRegistered
from appliance.identity.models import Approver, Bound, Seat, Setting, Waiting, bound

RETRY_SECONDS = 2


class ServerMediated:
    """Bound by the answers to the server's challenges."""

    def bind(
        self, asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
    ) -> Bound | Waiting:
        """Waiting until enough have answered; then what the one check makes of their answers.

        Raises ApprovalNotExpected, AgentNotRegistered, and what `settle` raises, ApprovalDenied for the owner's no.
        """
        if asked.approvals:
            raise ApprovalNotExpected("in the server-mediated model the server asks the owner itself")
        if setting.agent_owner is None:
            raise AgentNotRegistered("the agent is not registered to an owner; an administrator must do that first")
        if not setting.seats:
            return Waiting(RETRY_SECONDS, must_ask=True)
        return settle(request, setting, None)


def settle(request: AgentRequest, setting: Setting, org: str | None) -> Bound | Waiting:
    """What has become of a parked request. `org`: the hash of the material beside approvals that came along.

    Every answer is judged anew: a further approver's that counts no more is left out, that of the agent's own owner is
    a refusal. Raises what `ApproverRule.is_reached` and, for the owner's own answer, `approval.check` raise.
    """
    seats = setting.seats
    if any(seat.row.state == ChallengeState.SPENT.value for seat in seats):
        # it was decided and is being finished: with these very answers, or not at all
        seats = tuple(seat for seat in seats if seat.row.state == ChallengeState.SPENT.value)
    states: list[tuple[str, ChallengeState | None]] = []
    found: list[tuple[OwnerApproval, OwnerRecord]] = []
    used: list[str] = []
    for seat in seats:
        state: ChallengeState | None = state_of(seat.row, setting.now)
        if seat.answer is not None and state in (ChallengeState.APPROVED, ChallengeState.SPENT):
            try:
                found.append(_judge(seat, seat.answer, request, setting, org))
                used.append(seat.row.id)
            except BindingError:
                if seat.row.owner_id == request.owner:
                    raise
                state = None
        states.append((seat.row.owner_id, state))
    if not setting.rule.is_reached(request.owner, states):
        return Waiting(RETRY_SECONDS)
    counted = [
        (one, seat) for one, seat in zip(found, used, strict=True)
        if one[0].iss == request.owner or setting.rule.beside(one[0].iss)
    ]  # fmt: skip
    setting.rule.check(request.owner, [approved for (approved, _), _ in counted])
    return bound(request.owner, [one for one, _ in counted], tuple(seat for _, seat in counted))


def _judge(
    seat: Seat, answer: Approver, request: AgentRequest, setting: Setting, org: str | None
) -> tuple[OwnerApproval, OwnerRecord]:
    is_answer = seat.row.challenge is not None
    one = approval.check(
        answer.approval,
        request,
        answer.owner,
        server_id=setting.server_id,
        proxy_id=setting.proxy_id,
        now=setting.now,
        limits=setting.limits.of(Model.SERVER_MEDIATED) if is_answer else setting.limits,
        nonce=seat.row.nonce,
        signer_is_agent=answer.is_agent,
        org=None if is_answer else org,
        beside=seat.row.owner_id,
    )
    assert answer.owner is not None  # approval.check refuses the approvals of nobody
    return one, answer.owner
