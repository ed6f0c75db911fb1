"""Where one approver stands about a parked request, as one table; whether enough approved is `approvers.py`'s to say.

Stored in table `challenges`, moved by one conditional statement each. EXPIRED is never written: a challenge that waits
is over when its time is, whoever looks, also after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum

from appliance.identity.errors import ChallengeOver
from appliance.store.challenges import Challenge


class ChallengeState(Enum):
    """The server about one approver of a parked request."""

    WAITING = "waiting"
    APPROVED = "approved"
    DENIED = "denied"
    SPENT = "spent"
    SUPERSEDED = "superseded"
    NOT_NEEDED = "not-needed"
    EXPIRED = "expired"


class ChallengeEvent(Enum):
    """What happens to a challenge."""

    OWNER_APPROVED = "owner-approved"
    OWNER_DENIED = "owner-denied"
    CREDENTIAL_BEGUN = "credential-begun"
    NEWER_REQUEST = "newer-request"
    OTHERS_SETTLED = "others-settled"
    TIME_OVER = "time-over"


CHALLENGE: Mapping[tuple[ChallengeState, ChallengeEvent], ChallengeState] = {
    (ChallengeState.WAITING, ChallengeEvent.OWNER_APPROVED): ChallengeState.APPROVED,
    (ChallengeState.WAITING, ChallengeEvent.OWNER_DENIED): ChallengeState.DENIED,
    # an owner is never shown two questions about one agent
    (ChallengeState.WAITING, ChallengeEvent.NEWER_REQUEST): ChallengeState.SUPERSEDED,
    # the credential has begun without this answer, or so many said no that it cannot
    (ChallengeState.WAITING, ChallengeEvent.OTHERS_SETTLED): ChallengeState.NOT_NEEDED,
    (ChallengeState.WAITING, ChallengeEvent.TIME_OVER): ChallengeState.EXPIRED,
    # in the transaction that writes the pending credential, with nonce and approval
    (ChallengeState.APPROVED, ChallengeEvent.CREDENTIAL_BEGUN): ChallengeState.SPENT,
}


def state_of(challenge: Challenge, now: datetime) -> ChallengeState:
    """The state at this time."""
    state = ChallengeState(challenge.state)
    if state is ChallengeState.WAITING and now >= challenge.expires_at:
        return CHALLENGE[state, ChallengeEvent.TIME_OVER]
    return state


def step(state: ChallengeState, event: ChallengeEvent) -> ChallengeState:
    """The next state; raises ChallengeOver where the table has none."""
    try:
        return CHALLENGE[state, event]
    except KeyError as cause:
        raise ChallengeOver(f"the challenge is {state.value}", state=state.value) from cause
