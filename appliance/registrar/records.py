"""How a pledge's record moves: the table of brski.states, the timeline beside it. No SQL, no clock of its own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from appliance.store.pledges import MAX_STEPS, PledgeRecord, Step
from brski.idevid import IDevID
from brski.states import RecordEvent, RecordState, after

MAX_NONCES = 1024


def state_of(record: PledgeRecord) -> RecordState:
    """Where the bootstrap stands."""
    return RecordState(record.state)


def begun(idevid: IDevID, manufacturer_id: str, fingerprint: str, *, now: datetime) -> PledgeRecord:
    """The first record of a device."""
    issuer, serial = idevid.device
    return PledgeRecord(
        id=str(uuid.uuid4()),
        idevid_issuer=issuer,
        serial=serial,
        idevid_sha256=fingerprint,
        manufacturer_id=manufacturer_id,
        state=RecordState.SEEN.value,
        created_at=now,
        updated_at=now,
    )


def moved(
    record: PledgeRecord,
    event: RecordEvent,
    *,
    now: datetime,
    ms: int | None = None,
    code: str = "",
    facts: Mapping[str, Any] | None = None,
    **changes: Any,
) -> PledgeRecord:
    """The record after `event`, with a step on its timeline; raises OutOfOrder where the table has no row."""
    state = after(state_of(record), event)
    return noted(replace(record, state=state.value, **changes), event.value, now=now, ms=ms, code=code, facts=facts)


def noted(
    record: PledgeRecord,
    step: str,
    *,
    now: datetime,
    ms: int | None = None,
    code: str = "",
    facts: Mapping[str, Any] | None = None,
    times: int = 1,
) -> PledgeRecord:
    """The record with one more step.

    A repetition of the last step, or of the last two in turn, is counted in it, so that retries cannot fill the
    timeline.
    """
    before = list(record.steps)
    for back in (1, 2):
        if len(before) >= back and (before[-back].step, before[-back].code) == (step, code):
            times += before.pop(-back).times
            break
    fresh = Step(step, now.isoformat(timespec="milliseconds"), ms, code, times, facts)
    return replace(record, steps=(*before, fresh)[-MAX_STEPS:], updated_at=now)


def asked(record: PledgeRecord, nonce: str | None) -> PledgeRecord:
    """The record with the nonce of one more call to the MASA: its log will hold it, even if the answer gets lost."""
    return replace(record, nonces=(*record.nonces, nonce)[-MAX_NONCES:])


def known_nonces(record: PledgeRecord) -> tuple[str | None, ...] | None:
    """Nonces of every voucher this device was ever asked for; None when the history here is not complete."""
    return record.nonces if len(record.nonces) < MAX_NONCES else None


def as_json(record: PledgeRecord) -> Mapping[str, Any]:
    """What an administrator sees of a record; its timeline is appliance.registrar.timeline's to show."""
    return {
        "id": record.id,
        "serial": record.serial,
        "issuer": record.idevid_issuer,
        "fingerprint": record.idevid_sha256,
        "state": record.state,
        "masa": record.masa_url or "",
        "assertion": record.assertion or "",
        "audit_verdict": record.audit_verdict or "",
        "history_override": record.history_override or {},
        "nonce": record.nonce or "",
        "voucher_sha256": record.voucher_sha256 or "",
        "created_at": record.created_at.isoformat(timespec="seconds"),
        "updated_at": record.updated_at.isoformat(timespec="seconds"),
    }
