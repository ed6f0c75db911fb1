"""The server-mediated model (draft-ni-wimse-ai-agent-identity-02, section 4.2.3): the server asks the agent's owner.

The owner is the one to whom the agent was registered, never whom the request alone names (A-61). The answer is the same
approval as in the other models and goes through the same check; only its nonce is the challenge's.
"""

from __future__ import annotations

from appliance.binding import approval
from appliance.binding.composite import Composite
from appliance.binding.errors import ApprovalNotExpected, ChallengeExpired
from appliance.binding.request import AgentRequest
from appliance.identity.challenge_states import ChallengeState, state_of
from appliance.identity.errors import AgentNotRegistered, ChallengeOver
from appliance.identity.models import Approver, Bound, Setting, Waiting

RETRY_SECONDS = 2


class ServerMediated:
    """Bound by the owner's answer to the server's challenge."""

    def bind(
        self, asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
    ) -> Bound | Waiting:
        """Waiting until the owner has answered; then what the one check makes of the answer.

        Raises ApprovalNotExpected, AgentNotRegistered, ApproversTooFew, ChallengeExpired, ChallengeOver, and what
        `approval.check` raises, ApprovalDenied for a no.
        """
        if asked.approvals:
            raise ApprovalNotExpected("in the server-mediated model the server asks the owner itself")
        if setting.agent_owner is None:
            raise AgentNotRegistered("the agent is not registered to an owner; an administrator must do that first")
        setting.check_enough(1)  # one question has one answer: classes that need more go another way
        parked = setting.parked
        if parked is None:
            return Waiting(RETRY_SECONDS, must_ask=True)
        state = state_of(parked, setting.now)
        if state is ChallengeState.WAITING:
            return Waiting(RETRY_SECONDS)
        if state is ChallengeState.EXPIRED:
            raise ChallengeExpired("the owner did not answer in time; ask again with a new request")
        if state is ChallengeState.SUPERSEDED:
            raise ChallengeOver("a newer request of this agent took its place", state=state.value)
        (answer,) = approvers
        bound = approval.check(
            answer.approval,
            request,
            answer.owner,
            server_id=setting.server_id,
            proxy_id=setting.proxy_id,
            now=setting.now,
            limits=setting.limits,
            nonce=parked.nonce,
            signer_is_agent=answer.is_agent,
        )
        return Bound((bound,), answer.owner, tuple(answer.owner.keys) if answer.owner is not None else ())
