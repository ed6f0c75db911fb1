"""What the issuance models share: one verb, three answers (A-65).

A model looks at a request whose signature, nonce, key and evidence are good and answers *bound* (the owner's approval
is here and good), *waiting* (the owner was or will be asked), or refuses. What follows a binding is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from appliance.binding.approval import OwnerApproval
from appliance.binding.composite import Composite
from appliance.binding.facts import Limits, OwnerKey, OwnerRecord
from appliance.binding.jws import Sealed
from appliance.binding.request import AgentRequest
from appliance.binding.standing import StandingApproval
from appliance.identity.approvers import OWNER_ALONE, ApproverRule
from appliance.store.challenges import Challenge


class Approver(NamedTuple):
    """One approval, and what the registry says about the key that it names: its owner, and whether it is an agent's."""

    approval: Sealed
    owner: OwnerRecord | None
    is_agent: bool = False


@dataclass(frozen=True, slots=True)
class Seat:
    """One approver about a parked request, and the signed answer, if there is one, with whose key it names."""

    row: Challenge
    answer: Approver | None = None


class Setting(NamedTuple):
    """Where a decision is made: server, proxy, clock, limits; whose the agent is, and its request, if it is parked."""

    server_id: str
    proxy_id: str
    now: datetime
    limits: Limits
    agent_owner: str | None = None
    seats: tuple[Seat, ...] = ()
    """Those who were asked about this request; none: it is not parked."""
    gateway_of: str | None = None
    """The owner whose gateway submits; None: the proxy does."""
    rule: ApproverRule = OWNER_ALONE
    """Who must approve for this agent's class."""


class Bound(NamedTuple):
    """The owner said yes. The first approval stands in the credential; none and no owner is a single identity."""

    approvals: tuple[OwnerApproval | StandingApproval, ...]
    owner: OwnerRecord | None
    keys: tuple[OwnerKey, ...] = ()
    """The registered keys that approved, in the order of the approvals."""
    seats: tuple[str, ...] = ()
    """The challenges whose answers these are, to be spent."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing to issue yet: ask again after this long. `must_ask`: the approvers do not know of it yet."""

    retry_after_seconds: int
    must_ask: bool = False
    brought: tuple[OwnerApproval, ...] = ()
    """Good approvals that came along, and are not enough."""
    replaced: tuple[tuple[str, OwnerApproval], ...] = ()
    """Good approvals that came along for a parked request, each with the challenge whose place it takes."""


def bound(
    owner_id: str | None,
    found: Sequence[tuple[OwnerApproval | StandingApproval, OwnerRecord]],
    seats: tuple[str, ...] = (),
) -> Bound:
    """Good approvals that are enough, with the agent's own owner's first: that one stands in the credential."""
    found = sorted(found, key=lambda one: one[0].iss != owner_id)
    keys = tuple(key for _, owner in found for key in owner.keys)
    return Bound(tuple(one for one, _ in found), found[0][1], keys, seats)


class IssuanceModel(Protocol):
    """One of the three models."""

    def bind(
        self, asked: Composite, request: AgentRequest, approvers: tuple[Approver, ...], setting: Setting
    ) -> Bound | Waiting:
        """Bound, Waiting, or a refusal; `approvers` are in the order of the approvals."""
        ...
