"""A bootstrap as an administrator reads it: its steps in order, the artefacts decoded, the next step where it is stuck.

All of it is made when somebody looks; a bootstrap itself pays for nothing but its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509

from appliance.registrar import records
from appliance.registrar.hints import hint
from appliance.store.pledges import PledgeRecord, Step, step_json
from appliance.web.problems import one_line
from brski import audit_log, leaves, sealed, voucher, voucher_request
from brski.dialect import Dialect
from brski.states import RecordEvent, RecordState
from brski.voucher_request import VoucherRequest
from est.chains import spki_sha256
from est.errors import Refusal

Json = Mapping[str, Any]

STUCK = timedelta(minutes=2)
_BEGINS = frozenset({RecordEvent.REQUEST_RECEIVED.value})
_REFUSING = frozenset(
    {
        "audit-failed",
        "audit-log-unavailable",
        "enrolment-failed",
        "enrolment-refused",
        "held",
        "masa-failed",
        "refused",
        "request-refused",
        "voucher-rejected",
    }
)
_STEP_REASONS = {
    "audit-failed": "device-history-refused",
    "audit-log-unavailable": "device-history-unjudged",
    "held": "waiting-for-admission",
    "refused": "pledge-not-authorized",
}


def steps(record: PledgeRecord, maker: str) -> list[Json]:
    """Every step with the bootstrap it belongs to, the time since the one before, and what to do where it refused.

    `ms` is how long a step itself took, `after_ms` how long after the one before it happened (last).
    """
    shown: list[Json] = []
    bootstrap, before = 0, None
    for step in record.steps:
        if step.step in _BEGINS or not bootstrap:
            bootstrap += 1
            before = None
        at = datetime.fromisoformat(step.at)
        after = None if before is None else round((at - before) / timedelta(milliseconds=1))
        before = at
        shown.append(
            {
                "bootstrap": bootstrap,
                **step_json(step),
                "times": step.times,
                **({} if after is None else {"after_ms": max(0, after)}),
                "hint": _hint_of(step, record, maker),
            }
        )
    return shown


def what_to_do(record: PledgeRecord, maker: str, now: datetime) -> str:
    """One line for where the record stands; "" where all is well or still under way."""
    state, device = records.state_of(record), record.serial
    last = record.steps[-1] if record.steps else None
    if state is RecordState.WAITING_FOR_ADMISSION:
        return hint("waiting-for-admission", device=device, maker=maker)
    if state is RecordState.REFUSED:
        is_history = (record.audit_verdict or "").startswith("refused")
        return hint("device-history-refused" if is_history else "pledge-not-authorized", device=device, maker=maker)
    if last is not None and last.step in _REFUSING:
        return _hint_of(last, record, maker)
    if state in (RecordState.ENROLLED, RecordState.CONFIRMED) or now - record.updated_at < STUCK:
        return ""
    return _SILENT.get(state, "")


_TOLD = {
    "enrolment-failed": "the code has the device's own words: look at its log",
    "voucher-rejected": "the device did not take the voucher, see the code for why: look at its MASA anchors and log",
}
_SILENT = {
    RecordState.SEEN: "the pledge has not asked again: look whether it has power and a link",
    RecordState.VOUCHER_REQUESTED: "the appliance stopped while it asked the MASA: the pledge asks again by itself",
    RecordState.VOUCHER_ISSUED: "the pledge has not said whether it took the voucher: look at its MASA anchors and log",
    RecordState.VOUCHER_ACCEPTED: "EST opens when the MASA tells the device's history: look whether it is in service",
    RecordState.AUDIT_PASSED: "the pledge may enrol and has not: look at its own log",
}


def artefacts(record: PledgeRecord, dialect: Dialect) -> Json:
    """The signed artefacts of the last bootstrap, decoded; one that does not read says why."""
    found: dict[str, Any] = {}
    if record.rvr is not None:
        asked: VoucherRequest | None = None
        media_type = sealed.media_type_of(record.rvr)
        try:
            asked, opened = voucher_request.unseal(record.rvr, media_type, dialect=dialect)
            found["registrar_voucher_request"] = _request_json(asked, opened.signer, media_type)
        except Refusal as refusal:
            found["registrar_voucher_request"] = _broken(refusal)
        if asked is not None and asked.prior_signed_voucher_request:
            try:
                prior, opened = voucher_request.unseal(asked.prior_signed_voucher_request, media_type, dialect=dialect)
                found["pledge_voucher_request"] = _request_json(prior, opened.signer, media_type)
            except Refusal as refusal:
                found["pledge_voucher_request"] = _broken(refusal)
    if record.voucher is not None:
        media_type = sealed.media_type_of(record.voucher)
        try:
            granted, opened = voucher.unseal(record.voucher, media_type, dialect=dialect)
            found["voucher"] = {
                "format": media_type,
                "assertion": granted.assertion.value,
                "serial_number": granted.serial_number,
                "nonce": granted.nonce or "",
                "created_on": leaves.write_date(granted.created_on) or "",
                "expires_on": leaves.write_date(granted.expires_on) or "",
                "pinned": _certificate_json(granted.pin()),
                "pinned_domain_id": leaves.write_binary(audit_log.domain_id(granted.pin())),
                "signer": _certificate_json(opened.signer),
            }
        except Refusal as refusal:
            found["voucher"] = _broken(refusal)
    return found


def _request_json(request: VoucherRequest, signer: x509.Certificate, media_type: str) -> Json:
    return {
        "format": media_type,
        "assertion": request.assertion.value if request.assertion else "",
        "serial_number": request.serial_number,
        "nonce": request.nonce or "",
        "created_on": leaves.write_date(request.created_on) or "",
        "idevid_issuer": request.idevid_issuer.hex() if request.idevid_issuer else "",
        "signer": _certificate_json(signer),
    }


def _certificate_json(certificate: x509.Certificate) -> str:
    try:
        subject = one_line(certificate.subject.rfc4514_string(), 120)
    except ValueError:
        subject = "unreadable subject"
    return f"{subject} (key {spki_sha256(certificate).hex()[:16]})"


def _broken(refusal: Refusal) -> Json:
    return {"reason": refusal.reason, "detail": refusal.detail}


def _hint_of(step: Step, record: PledgeRecord, maker: str) -> str:
    if step.step not in _REFUSING:
        return ""
    reason = _STEP_REASONS.get(step.step, step.code)
    if step.step in _TOLD:
        return _TOLD[step.step]
    return hint(reason, device=record.serial, maker=maker)
