"""How many must approve for an agent class, who may, and whether enough of them still can; no I/O.

Where others are named, each approval is another owner's, the agent's own always among them; where nobody is, k
different keys of the agent's owner must approve. The rule is the same whichever way the approvals come (A-65).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.binding.approval import OwnerApproval
from appliance.binding.errors import ApprovalDenied, ChallengeExpired
from appliance.binding.standing import StandingApproval
from appliance.identity.challenge_states import ChallengeState
from appliance.identity.errors import (
    ApproversNotDistinct,
    ApproversOutOfReach,
    ApproversTooFew,
    ChallengeOver,
    OwnerNotAmongApprovers,
)

DEFAULT = "default"
Approvals = Sequence[OwnerApproval | StandingApproval]
_YES = (ChallengeState.APPROVED, ChallengeState.SPENT)


@dataclass(frozen=True, slots=True)
class ApproverRule:
    """One class: `count` approvals (0: an agent may do without an owner), of the agent's owner and the `named` ones."""

    count: int = 1
    named: tuple[str, ...] = ()
    """Identifiers of owners who approve beside the agent's own; none: that owner's different keys count."""

    def seats(self, owner_id: str) -> tuple[str, ...]:
        """Whom to ask about an agent of this owner, once for each place in the list."""
        if self.named:
            return (owner_id, *(one for one in self.named if one != owner_id))
        return (owner_id,) * max(1, self.count)

    def beside(self, approver_id: str | None) -> str | None:
        """This approver, if it is one of those who approve beside an agent's own owner."""
        return approver_id if approver_id in self.named else None

    def is_enough(self, owner_id: str | None, approvals: Approvals) -> bool:
        """Whether these good approvals are enough.

        Raises ApproversNotDistinct for two of one key or, where others are named, of one owner.
        """
        if len({one.kid for one in approvals}) != len(approvals):
            raise ApproversNotDistinct("two approvals come from one key")
        if self.named and len({one.iss for one in approvals}) != len(approvals):
            raise ApproversNotDistinct("two approvals come from one owner")
        return len(approvals) >= self.count and any(one.iss == owner_id for one in approvals)

    def check(self, owner_id: str | None, approvals: Approvals) -> None:
        """Refuses (ApproversNotDistinct, ApproversTooFew, OwnerNotAmongApprovers) approvals that are not enough."""
        if self.is_enough(owner_id, approvals):
            return
        if len(approvals) >= self.count:
            raise OwnerNotAmongApprovers("the agent's own owner must be one of those who approve")
        who = "different owners" if self.named else "different keys of the owner"
        raise ApproversTooFew(f"{self.count} {who} must approve", needed=self.count, found=len(approvals))

    def is_reached(self, owner_id: str | None, found: Sequence[tuple[str, ChallengeState | None]]) -> bool:
        """Whether enough of those who were asked approved; False: not yet. None: an approval that counts no more.

        Raises ApprovalDenied for a no of the agent's own owner, ChallengeExpired, ChallengeOver,
        ApproversOutOfReach as soon as enough cannot approve any more.
        """
        asked = [(name, state) for name, state in found if name == owner_id or name in self.named]
        own = {state for name, state in asked if name == owner_id}
        if ChallengeState.DENIED in own:
            raise ApprovalDenied("the owner said no")
        states = [state for _, state in asked]
        approved = sum(state in _YES for state in states)
        if approved >= max(1, self.count) and own & set(_YES):
            return True
        if ChallengeState.SUPERSEDED in states:
            raise ChallengeOver("a newer request of this agent took its place", state=ChallengeState.SUPERSEDED.value)
        if own == {ChallengeState.EXPIRED}:
            raise ChallengeExpired("the owner did not answer in time; ask again with a new request")
        waiting = states.count(ChallengeState.WAITING)
        if approved + waiting < self.count or not own & {*_YES, ChallengeState.WAITING}:
            raise ApproversOutOfReach(
                f"{self.count} must approve, and not so many can any more; ask again with a new request",
                needed=self.count,
                approved=approved,
                denied=states.count(ChallengeState.DENIED),
                expired=states.count(ChallengeState.EXPIRED),
                withdrawn=states.count(None),
            )
        return False


OWNER_ALONE = ApproverRule()


class ClassRules:
    """The rule of each agent class, from the settings."""

    def __init__(self, counts: Mapping[str, int], named: Mapping[str, Sequence[str]]) -> None:
        self._rules = {name: ApproverRule(count, tuple(named.get(name, ()))) for name, count in counts.items()}
        self._default = self._rules.get(DEFAULT, OWNER_ALONE)

    def of(self, agent_class: str) -> ApproverRule:
        """The class's own rule; without one, that of `default`."""
        return self._rules.get(agent_class, self._default)
