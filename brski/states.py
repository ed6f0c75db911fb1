"""Where a bootstrap stands, as tables: the pledge itself, the registrar's record of it, the MASA's record of a device.

Theory. A table maps (state, event) to the next state; what is not in it is refused as OutOfOrder. Events are facts
that were checked before (a voucher that verified, a status message on the device's own connection), never wishes.

The pledge's table is moved by the pledge alone. It lives in memory: a pledge that restarts before it holds an LDevID
begins again at DISCOVERING with a new nonce, and only ENROLLED survives a restart. The clock that matters is the
monotonic one (Retry-After, pauses between attempts).

The registrar's record is keyed by (idevid-issuer, serial-number) and stored; it is moved by the pledge's messages, by
the MASA's answers and by administrators, and the new state is written in the same transaction as its audit entry. It
outlives connections, because peers exist that open one per message. A new voucher-request starts the record again from
any state but REFUSED: a device may be reset at any time, and only people undo a refusal. EST is open in AUDIT_PASSED
and later: voucher issued, the pledge said yes, the audit log satisfied the policy (RFC 8995, section 5.8.3).

The MASA's record says whether a device may be claimed. It never forgets: releasing a device for resale does not remove
its log.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar, overload

from brski.errors import OutOfOrder


class PledgeState(Enum):
    """The pledge about itself."""

    DISCOVERING = "discovering"
    PROVISIONAL = "provisional"
    WAITING_FOR_VOUCHER = "waiting-for-voucher"
    IMPRINTED = "imprinted"
    ENROLLED = "enrolled"


class PledgeEvent(Enum):
    """What happens to a pledge."""

    CONNECTED = "connected"
    VOUCHER_PENDING = "voucher-pending"
    VOUCHER_VERIFIED = "voucher-verified"
    VOUCHER_REFUSED = "voucher-refused"
    CERTIFICATE_RECEIVED = "certificate-received"
    CONNECTION_LOST = "connection-lost"
    GIVEN_UP = "given-up"
    RESET = "reset"


PLEDGE: Mapping[tuple[PledgeState, PledgeEvent], PledgeState] = {
    (PledgeState.DISCOVERING, PledgeEvent.CONNECTED): PledgeState.PROVISIONAL,
    (PledgeState.PROVISIONAL, PledgeEvent.VOUCHER_PENDING): PledgeState.WAITING_FOR_VOUCHER,
    (PledgeState.PROVISIONAL, PledgeEvent.VOUCHER_VERIFIED): PledgeState.IMPRINTED,
    (PledgeState.PROVISIONAL, PledgeEvent.VOUCHER_REFUSED): PledgeState.DISCOVERING,
    # the same request may be repeated on a new connection to the same certificate (RFC 8995, section 5)
    (PledgeState.PROVISIONAL, PledgeEvent.CONNECTION_LOST): PledgeState.PROVISIONAL,
    (PledgeState.PROVISIONAL, PledgeEvent.GIVEN_UP): PledgeState.DISCOVERING,
    (PledgeState.WAITING_FOR_VOUCHER, PledgeEvent.VOUCHER_PENDING): PledgeState.WAITING_FOR_VOUCHER,
    (PledgeState.WAITING_FOR_VOUCHER, PledgeEvent.VOUCHER_VERIFIED): PledgeState.IMPRINTED,
    (PledgeState.WAITING_FOR_VOUCHER, PledgeEvent.VOUCHER_REFUSED): PledgeState.DISCOVERING,
    (PledgeState.WAITING_FOR_VOUCHER, PledgeEvent.CONNECTION_LOST): PledgeState.WAITING_FOR_VOUCHER,
    (PledgeState.WAITING_FOR_VOUCHER, PledgeEvent.GIVEN_UP): PledgeState.DISCOVERING,
    (PledgeState.IMPRINTED, PledgeEvent.CERTIFICATE_RECEIVED): PledgeState.ENROLLED,
    # held to the same certificate and pin, so that a pulled cable costs no second voucher
    (PledgeState.IMPRINTED, PledgeEvent.CONNECTION_LOST): PledgeState.IMPRINTED,
    (PledgeState.IMPRINTED, PledgeEvent.GIVEN_UP): PledgeState.DISCOVERING,
    (PledgeState.ENROLLED, PledgeEvent.RESET): PledgeState.DISCOVERING,
}


class RecordState(Enum):
    """The registrar about a pledge."""

    SEEN = "seen"
    WAITING_FOR_ADMISSION = "waiting-for-admission"
    VOUCHER_REQUESTED = "voucher-requested"
    VOUCHER_ISSUED = "voucher-issued"
    VOUCHER_ACCEPTED = "voucher-accepted"
    AUDIT_PASSED = "audit-passed"
    ENROLLED = "enrolled"
    CONFIRMED = "confirmed"
    REFUSED = "refused"


class RecordEvent(Enum):
    """What moves a registrar's record."""

    REQUEST_RECEIVED = "request-received"
    HELD = "held"
    ADMITTED = "admitted"
    MASA_ASKED = "masa-asked"
    MASA_FAILED = "masa-failed"
    VOUCHER_GRANTED = "voucher-granted"
    VOUCHER_CONFIRMED = "voucher-confirmed"
    VOUCHER_REJECTED = "voucher-rejected"
    AUDIT_PASSED = "audit-passed"
    AUDIT_FAILED = "audit-failed"
    CERTIFICATE_ISSUED = "certificate-issued"
    ENROLMENT_CONFIRMED = "enrolment-confirmed"
    ENROLMENT_FAILED = "enrolment-failed"
    REFUSED = "refused"
    FORGIVEN = "forgiven"


_LIVE = tuple(state for state in RecordState if state is not RecordState.REFUSED)

RECORD: Mapping[tuple[RecordState, RecordEvent], RecordState] = {
    **{(state, RecordEvent.REQUEST_RECEIVED): RecordState.SEEN for state in _LIVE},
    **{(state, RecordEvent.REFUSED): RecordState.REFUSED for state in _LIVE},
    (RecordState.SEEN, RecordEvent.HELD): RecordState.WAITING_FOR_ADMISSION,
    (RecordState.WAITING_FOR_ADMISSION, RecordEvent.HELD): RecordState.WAITING_FOR_ADMISSION,
    (RecordState.WAITING_FOR_ADMISSION, RecordEvent.ADMITTED): RecordState.SEEN,
    (RecordState.SEEN, RecordEvent.MASA_ASKED): RecordState.VOUCHER_REQUESTED,
    (RecordState.VOUCHER_REQUESTED, RecordEvent.MASA_FAILED): RecordState.SEEN,
    (RecordState.VOUCHER_REQUESTED, RecordEvent.VOUCHER_GRANTED): RecordState.VOUCHER_ISSUED,
    (RecordState.VOUCHER_ISSUED, RecordEvent.VOUCHER_CONFIRMED): RecordState.VOUCHER_ACCEPTED,
    (RecordState.VOUCHER_ISSUED, RecordEvent.VOUCHER_REJECTED): RecordState.SEEN,
    # the log is also asked for when no telemetry arrives (RFC 8995, section 5.8): then only its no counts
    (RecordState.VOUCHER_ISSUED, RecordEvent.AUDIT_FAILED): RecordState.REFUSED,
    (RecordState.VOUCHER_ACCEPTED, RecordEvent.VOUCHER_CONFIRMED): RecordState.VOUCHER_ACCEPTED,
    (RecordState.VOUCHER_ACCEPTED, RecordEvent.VOUCHER_REJECTED): RecordState.SEEN,
    (RecordState.VOUCHER_ACCEPTED, RecordEvent.AUDIT_PASSED): RecordState.AUDIT_PASSED,
    (RecordState.VOUCHER_ACCEPTED, RecordEvent.AUDIT_FAILED): RecordState.REFUSED,
    (RecordState.AUDIT_PASSED, RecordEvent.VOUCHER_CONFIRMED): RecordState.AUDIT_PASSED,
    (RecordState.AUDIT_PASSED, RecordEvent.VOUCHER_REJECTED): RecordState.SEEN,
    (RecordState.AUDIT_PASSED, RecordEvent.AUDIT_FAILED): RecordState.REFUSED,
    (RecordState.AUDIT_PASSED, RecordEvent.CERTIFICATE_ISSUED): RecordState.ENROLLED,
    (RecordState.AUDIT_PASSED, RecordEvent.ENROLMENT_FAILED): RecordState.AUDIT_PASSED,
    (RecordState.ENROLLED, RecordEvent.CERTIFICATE_ISSUED): RecordState.ENROLLED,
    (RecordState.ENROLLED, RecordEvent.ENROLMENT_CONFIRMED): RecordState.CONFIRMED,
    (RecordState.ENROLLED, RecordEvent.ENROLMENT_FAILED): RecordState.AUDIT_PASSED,
    (RecordState.ENROLLED, RecordEvent.AUDIT_FAILED): RecordState.REFUSED,
    (RecordState.CONFIRMED, RecordEvent.ENROLMENT_CONFIRMED): RecordState.CONFIRMED,
    (RecordState.CONFIRMED, RecordEvent.AUDIT_FAILED): RecordState.REFUSED,
    (RecordState.REFUSED, RecordEvent.FORGIVEN): RecordState.SEEN,
}

# EST answers a pledge in these states only (RFC 8995, section 5.8.3)
EST_OPEN = frozenset({RecordState.AUDIT_PASSED, RecordState.ENROLLED, RecordState.CONFIRMED})


class DeviceState(Enum):
    """The MASA about a device."""

    UNCLAIMED = "unclaimed"
    CLAIMED = "claimed"
    BLOCKED = "blocked"


class DeviceEvent(Enum):
    """What moves a MASA's record."""

    VOUCHER_ISSUED = "voucher-issued"
    RELEASED = "released"
    BLOCKED = "blocked"


DEVICE: Mapping[tuple[DeviceState, DeviceEvent], DeviceState] = {
    (DeviceState.UNCLAIMED, DeviceEvent.VOUCHER_ISSUED): DeviceState.CLAIMED,
    (DeviceState.CLAIMED, DeviceEvent.VOUCHER_ISSUED): DeviceState.CLAIMED,
    (DeviceState.CLAIMED, DeviceEvent.RELEASED): DeviceState.UNCLAIMED,
    (DeviceState.UNCLAIMED, DeviceEvent.BLOCKED): DeviceState.BLOCKED,
    (DeviceState.CLAIMED, DeviceEvent.BLOCKED): DeviceState.BLOCKED,
    (DeviceState.BLOCKED, DeviceEvent.RELEASED): DeviceState.UNCLAIMED,
}

_S = TypeVar("_S", bound=Enum)
_E = TypeVar("_E", bound=Enum)


@overload
def after(state: PledgeState, event: PledgeEvent) -> PledgeState: ...
@overload
def after(state: RecordState, event: RecordEvent) -> RecordState: ...
@overload
def after(state: DeviceState, event: DeviceEvent) -> DeviceState: ...
def after(
    state: PledgeState | RecordState | DeviceState, event: PledgeEvent | RecordEvent | DeviceEvent
) -> PledgeState | RecordState | DeviceState:
    """The state after `event`; raises OutOfOrder where the table has no row."""
    if isinstance(state, PledgeState) and isinstance(event, PledgeEvent):
        return _step(PLEDGE, state, event)
    if isinstance(state, RecordState) and isinstance(event, RecordEvent):
        return _step(RECORD, state, event)
    if isinstance(state, DeviceState) and isinstance(event, DeviceEvent):
        return _step(DEVICE, state, event)
    raise TypeError("state and event belong to different tables")


def diagram(table: Mapping[tuple[_S, _E], _S]) -> str:
    """The table as a Mermaid state diagram, for the manual; Mermaid's ids take no hyphen, so they have `_` instead."""
    rows = (f"    {_id(old)} --> {_id(new)}: {event.value}" for (old, event), new in table.items())
    return "\n".join(["stateDiagram-v2", *rows])


def _id(state: Enum) -> str:
    return str(state.value).replace("-", "_")


def _step(table: Mapping[tuple[_S, _E], _S], state: _S, event: _E) -> _S:
    try:
        return table[state, event]
    except KeyError as cause:
        raise OutOfOrder(
            f"{event.value} is not possible in state {state.value}", state=state.value, event=event.value
        ) from cause
