"""What the issuance models share: one verb, three answers (A-65).

A model looks at a request whose signature, nonce, key and evidence are good and answers *bound* (the owner's approval
is here and good), *waiting* (the owner was or will be asked), or refuses. What follows a binding is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from appliance.binding.approval import OwnerApproval
from appliance.binding.composite import Composite
from appliance.binding.facts import Limits, OwnerKey, OwnerRecord
from appliance.binding.jws import Sealed
from appliance.binding.request import AgentRequest
from appliance.binding.standing import StandingApproval
from appliance.identity.errors import ApproversTooFew
from appliance.store.challenges import Challenge


@dataclass(frozen=True, slots=True)
class Approver:
    """One approval, and what the registry says about the key that it names: its owner, and whether it is an agent's."""

    approval: Sealed
    owner: OwnerRecord | None
    is_agent: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a decision is made: server, proxy, clock, limits; whose the agent is, and its request, if it is parked."""

    server_id: str
    proxy_id: str
    now: datetime
    limits: Limits
    agent_owner: str | None = None
    parked: Challenge | None = None
    gateway_of: str | None = None
    """The owner whose gateway submits; None: the proxy does."""
    approvers: int = 1
    """How many different keys of the owner must approve for this agent's class; 0: an owner is not needed."""

    def check_enough(self, count: int) -> None:
        """Refuses (ApproversTooFew) less approvals than the agent's class needs."""
        if count < self.approvers:
            raise ApproversTooFew(
                f"{self.approvers} different keys of the owner must approve", needed=self.approvers, found=count
            )


@dataclass(frozen=True, slots=True)
class Bound:
    """The owner said yes. The first approval stands in the credential; none and no owner is a single identity."""

    approvals: tuple[OwnerApproval | StandingApproval, ...]
    owner: OwnerRecord | None
    keys: tuple[OwnerKey, ...] = ()
    """The registered keys that approved, in the order of the approvals."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing to issue yet: ask again after this long. `must_ask`: the owner does not know of it yet."""

    retry_after_seconds: int
    must_ask: bool = False


class IssuanceModel(Protocol):
    """One of the three models."""

    def bind(
        self, asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
    ) -> Bound | Waiting:
        """Bound, Waiting, or a refusal; `approvers` are in the order of the approvals."""
        ...
