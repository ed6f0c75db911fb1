"""What pledges report: was the voucher good, did enrolment work (RFC 8995, sections 5.7, 5.8 and 5.9.4).

A report is a claim of whoever holds the TLS client certificate (B-359). A yes to the voucher opens nothing by itself:
the device's history is fetched and judged first. A no shuts EST for the device at once (B-355).
"""

from __future__ import annotations

import logging
from functools import partial

from appliance import audit
from appliance.audit import AuditEvent
from appliance.clock import Clock
from appliance.registrar import records, trail
from appliance.registrar.caller import Caller, caller_of
from appliance.registrar.errors import HistoryUnjudged
from appliance.registrar.history import History
from appliance.registrar.ldevids import Ldevids, LiveLdevid
from appliance.registrar.manufacturers import Manufacturers
from appliance.registrar.turns import Turns
from appliance.store import pledges
from appliance.store.pledges import PledgeRecord
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.peer import Peer
from brski import telemetry
from brski.errors import OutOfOrder
from brski.idevid import IDevID
from brski.manufacturer import identify
from brski.states import RecordEvent, RecordState
from brski.telemetry import EnrollStatus, Status, VoucherStatus
from est.exchange import Call, Reply

log = logging.getLogger(__name__)


class Reports:
    """voucher_status and enrollstatus."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        manufacturers: Manufacturers,
        history: History,
        ldevids: Ldevids,
        turns: Turns,
    ) -> None:
        self._store = store
        self._clock = clock
        self._manufacturers = manufacturers
        self._history = history
        self._ldevids = ldevids
        self._turns = turns

    async def voucher_status(self, call: Call, peer: Peer) -> Reply:
        """The pledge says whether it took its voucher; after a yes its history is judged.

        Without a voucher it is a log entry and nothing more (T-27). Raises TelemetryMalformed, ManufacturerUnknown,
        ClientCertificateMissing.
        """
        caller = caller_of(call, peer)
        known = identify(peer.certificate, peer.chain[1:], await self._manufacturers.facts(), now=self._clock.now())
        message = telemetry.read_voucher_status(call.body)
        _log_extras(message, known.idevid.serial_number)
        async with self._turns.of(known.idevid.device):
            record = await self._store.write(partial(_hear_voucher_status, known.idevid, message, caller))
            if record is not None and records.state_of(record) is RecordState.VOUCHER_ACCEPTED:
                try:
                    await self._history.judge(record.id, caller)
                except HistoryUnjudged:
                    # The pledge ignores this answer; EST asks again and stays shut until there is a verdict.
                    log.warning("history-unjudged serial=%s request_id=%s", record.serial, caller.request_id)
        return Reply(200)

    async def enroll_status(self, call: Call, peer: Peer) -> Reply:
        """The pledge says how its enrolment ended: success with its LDevID, failure with its IDevID.

        Success counts only with the certificate that was issued (B-358); everything else is a log entry. Raises
        TelemetryMalformed, ManufacturerUnknown, ClientCertificateMissing.
        """
        caller = caller_of(call, peer)
        live = await self._ldevids.find(peer)
        if live is not None:
            message = telemetry.read_enroll_status(call.body)
            _log_extras(message, live.identifier)
            await self._store.write(partial(_hear_enroll_status_of_ldevid, live, message, caller))
            return Reply(200)
        known = identify(peer.certificate, peer.chain[1:], await self._manufacturers.facts(), now=self._clock.now())
        message = telemetry.read_enroll_status(call.body)
        _log_extras(message, known.idevid.serial_number)
        async with self._turns.of(known.idevid.device):
            await self._store.write(partial(_hear_enroll_status_of_idevid, known.idevid, message, caller))
        return Reply(200)


def _hear_voucher_status(idevid: IDevID, message: VoucherStatus, caller: Caller, tx: Tx) -> PledgeRecord | None:
    name = "voucher-accepted" if message.status else "voucher-rejected"
    event = RecordEvent.VOUCHER_CONFIRMED if message.status else RecordEvent.VOUCHER_REJECTED
    # A rejected voucher is never handed out again, not even to the same request.
    void = {} if message.status else {"voucher": None, "pvr_sha256": None}
    record = pledges.by_device(tx, *idevid.device)
    try:
        if record is None or record.idevid_sha256 != caller.fingerprint:
            raise OutOfOrder("no voucher was issued to this certificate")
        heard = records.moved(record, event, now=tx.now, code=message.reason[:64], **void)
    except OutOfOrder as refusal:
        trail.append(tx, name, idevid, caller, outcome="refused", reason=refusal.reason, told=message.reason)
        return None
    pledges.save(tx, heard, was=record.state)
    trail.append(tx, name, idevid, caller, told=message.reason, version=message.version)
    return heard


def _hear_enroll_status_of_idevid(idevid: IDevID, message: EnrollStatus, caller: Caller, tx: Tx) -> None:
    record = pledges.by_device(tx, *idevid.device)
    reason = ""
    if record is None or record.idevid_sha256 != caller.fingerprint:
        reason = OutOfOrder.reason
    elif not message.status:
        reason = _move(tx, record, RecordEvent.ENROLMENT_FAILED, message)
    trail.append(
        tx,
        "enrolment-reported",
        idevid,
        caller,
        outcome="refused" if reason else "done",
        reason=reason,
        success=message.status,
        matched=False,
        told=message.reason,
    )


def _hear_enroll_status_of_ldevid(live: LiveLdevid, message: EnrollStatus, caller: Caller, tx: Tx) -> None:
    record = pledges.get(tx, live.pledge_id) if live.pledge_id else None
    event = RecordEvent.ENROLMENT_CONFIRMED if message.status else RecordEvent.ENROLMENT_FAILED
    reason = _move(tx, record, event, message) if record is not None else ""
    audit.append(
        tx,
        AuditEvent(
            "enrolment-reported",
            caller.as_actor("proxy", live.identifier),
            object=live.identifier,
            outcome="refused" if reason else "done",
            reason=reason,
            request_id=caller.request_id,
            fields={"success": message.status, "matched": True, "told": message.reason},
        ),
    )


def _move(tx: Tx, record: PledgeRecord, event: RecordEvent, message: EnrollStatus) -> str:
    """Move the record if its state allows; the reason when it does not."""
    try:
        moved = records.moved(record, event, now=tx.now, code=message.reason[:64])
    except OutOfOrder as refusal:
        return refusal.reason
    pledges.save(tx, moved, was=record.state)
    return ""


def _log_extras(message: Status, who: str) -> None:
    """Unknown members and later versions are for humans; they never make an error (B-353)."""
    if message.is_newer:
        log.error("telemetry-of-later-version who=%s version=%d", who, message.version)
    if message.unknown:
        log.info("telemetry-with-unknown-members who=%s members=%r", who, message.unknown[:8])
