"""Where a request stands at an owner's gateway, as one table.

Stored in the gateway's own queue file, moved by one conditional statement each, so that of any number of decisions in
any number of processes one counts. EXPIRED is never written: what waits is over when its time is, whoever looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from appliance.owner.errors import GatewayRequestOver


class QueueState(Enum):
    """The gateway about one request."""

    QUEUED = "queued"
    ASKED = "asked"
    APPROVED = "approved"
    DENIED = "denied"
    ISSUED = "issued"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"


class QueueEvent(Enum):
    """What happens to a request at the gateway."""

    RULE_APPROVED = "rule-approved"
    RULE_DENIED = "rule-denied"
    NO_RULE_FITS = "no-rule-fits"
    PERSON_APPROVED = "person-approved"
    PERSON_DENIED = "person-denied"
    SERVER_ISSUED = "server-issued"
    NEWER_REQUEST = "newer-request"
    TIME_OVER = "time-over"


GATEWAY: Mapping[tuple[QueueState, QueueEvent], QueueState] = {
    (QueueState.QUEUED, QueueEvent.RULE_APPROVED): QueueState.APPROVED,
    (QueueState.QUEUED, QueueEvent.RULE_DENIED): QueueState.DENIED,
    (QueueState.QUEUED, QueueEvent.NO_RULE_FITS): QueueState.ASKED,
    (QueueState.ASKED, QueueEvent.PERSON_APPROVED): QueueState.APPROVED,
    (QueueState.ASKED, QueueEvent.PERSON_DENIED): QueueState.DENIED,
    # an owner is never shown two requests of one agent
    (QueueState.QUEUED, QueueEvent.NEWER_REQUEST): QueueState.SUPERSEDED,
    (QueueState.ASKED, QueueEvent.NEWER_REQUEST): QueueState.SUPERSEDED,
    (QueueState.QUEUED, QueueEvent.TIME_OVER): QueueState.EXPIRED,
    (QueueState.ASKED, QueueEvent.TIME_OVER): QueueState.EXPIRED,
    # an approval that was not used in time is worth nothing at the server either
    (QueueState.APPROVED, QueueEvent.TIME_OVER): QueueState.EXPIRED,
    (QueueState.APPROVED, QueueEvent.SERVER_ISSUED): QueueState.ISSUED,
}
FIRST = QueueState.QUEUED
WAITING = (QueueState.QUEUED, QueueState.ASKED)


def at_time(state: QueueState, *, is_over: bool) -> QueueState:
    """The state at this moment."""
    return GATEWAY.get((state, QueueEvent.TIME_OVER), state) if is_over else state


def step(state: QueueState, event: QueueEvent) -> QueueState:
    """The next state; raises GatewayRequestOver where the table has none."""
    try:
        return GATEWAY[state, event]
    except KeyError as cause:
        raise GatewayRequestOver(f"the request is {state.value}", state=state.value) from cause
