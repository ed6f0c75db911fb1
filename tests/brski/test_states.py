"""The transition tables."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from brski import OutOfOrder, states
from brski.states import (
    DEVICE,
    EST_OPEN,
    PLEDGE,
    RECORD,
    DeviceState,
    PledgeEvent,
    PledgeState,
    RecordEvent,
    RecordState,
    after,
)

TABLES: list[tuple[Mapping[Any, Any], Enum, type[Enum]]] = [
    (PLEDGE, PledgeState.DISCOVERING, PledgeEvent),
    (RECORD, RecordState.SEEN, RecordEvent),
    (DEVICE, DeviceState.UNCLAIMED, states.DeviceEvent),
]


@pytest.mark.parametrize(("table", "first", "events"), TABLES)
def test_no_state_is_unreachable_no_event_unused_and_none_is_a_dead_end(
    table: Mapping[Any, Any], first: Enum, events: type[Enum]
) -> None:
    reached, edge = {first}, [first]
    while edge:
        state = edge.pop()
        fresh = {new for (old, _), new in table.items() if old is state} - reached
        reached |= fresh
        edge.extend(fresh)
    assert reached == set(type(first))
    assert {event for _, event in table} == set(events)
    assert {old for old, _ in table} == set(type(first))


@pytest.mark.req("B-113")
def test_pledge_goes_from_discovery_to_enrolment_and_starts_only_unconfigured() -> None:
    state = PledgeState.DISCOVERING
    for event in (
        PledgeEvent.CONNECTED,
        PledgeEvent.VOUCHER_PENDING,
        PledgeEvent.VOUCHER_PENDING,
        PledgeEvent.VOUCHER_VERIFIED,
        PledgeEvent.CERTIFICATE_RECEIVED,
    ):
        state = after(state, event)
    assert state is PledgeState.ENROLLED
    with pytest.raises(OutOfOrder):
        after(state, PledgeEvent.CONNECTED)


@pytest.mark.req("B-327")
def test_without_a_verified_voucher_there_is_no_way_to_a_certificate() -> None:
    for state in (PledgeState.DISCOVERING, PledgeState.PROVISIONAL, PledgeState.WAITING_FOR_VOUCHER):
        with pytest.raises(OutOfOrder):
            after(state, PledgeEvent.CERTIFICATE_RECEIVED)
    assert after(PledgeState.PROVISIONAL, PledgeEvent.VOUCHER_REFUSED) is PledgeState.DISCOVERING
    into = {old for (old, event), new in PLEDGE.items() if new is PledgeState.IMPRINTED and old is not new}
    assert into == {PledgeState.PROVISIONAL, PledgeState.WAITING_FOR_VOUCHER}


@pytest.mark.req("B-371", "B-340")
def test_est_opens_after_voucher_good_news_and_audit_only() -> None:
    state = RecordState.SEEN
    for event in (
        RecordEvent.MASA_ASKED,
        RecordEvent.VOUCHER_GRANTED,
        RecordEvent.VOUCHER_CONFIRMED,
        RecordEvent.AUDIT_PASSED,
    ):
        assert state not in EST_OPEN
        state = after(state, event)
    assert state in EST_OPEN
    assert {old for (old, _), new in RECORD.items() if new in EST_OPEN and old not in EST_OPEN} == {
        RecordState.VOUCHER_ACCEPTED
    }


@pytest.mark.req("B-355")
@pytest.mark.parametrize("state", [RecordState.VOUCHER_ISSUED, RecordState.VOUCHER_ACCEPTED, RecordState.AUDIT_PASSED])
def test_bad_news_about_the_voucher_closes_est(state: RecordState) -> None:
    assert after(state, RecordEvent.VOUCHER_REJECTED) not in EST_OPEN


@pytest.mark.parametrize("event", [RecordEvent.VOUCHER_CONFIRMED, RecordEvent.VOUCHER_REJECTED])
def test_news_about_a_voucher_that_was_never_issued_changes_nothing(event: RecordEvent) -> None:
    for state in (RecordState.SEEN, RecordState.WAITING_FOR_ADMISSION, RecordState.VOUCHER_REQUESTED):
        with pytest.raises(OutOfOrder):
            after(state, event)


@pytest.mark.req("B-340", "T-05")
def test_bad_history_refuses_the_device_in_every_later_state_until_people_forgive() -> None:
    for state in (RecordState.VOUCHER_ISSUED, RecordState.VOUCHER_ACCEPTED, *EST_OPEN):
        assert after(state, RecordEvent.AUDIT_FAILED) is RecordState.REFUSED
    ways_out = {event for (old, event) in RECORD if old is RecordState.REFUSED}
    assert ways_out == {RecordEvent.FORGIVEN}


def test_new_request_starts_the_record_again() -> None:
    for state in set(RecordState) - {RecordState.REFUSED}:
        assert after(state, RecordEvent.REQUEST_RECEIVED) is RecordState.SEEN


def test_refusal_names_state_and_event() -> None:
    with pytest.raises(OutOfOrder) as refused:
        after(RecordState.SEEN, RecordEvent.AUDIT_PASSED)
    assert refused.value.fields == {"state": "seen", "event": "audit-passed"}


def test_tables_are_not_mixed() -> None:
    with pytest.raises(TypeError):
        after(RecordState.SEEN, PledgeEvent.CONNECTED)  # type: ignore[call-overload]


@pytest.mark.parametrize(("table", "first", "events"), TABLES)
def test_diagram_has_every_row(table: Mapping[Any, Any], first: Enum, events: type[Enum]) -> None:
    lines = states.diagram(table).splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == len(table) + 1
