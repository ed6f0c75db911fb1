"""The device's history: fetched from its MASA, judged by the site's policy, written into the record (RFC 8995, 5.8).

Asked for after the pledge's yes to its voucher, again at enrolment if the MASA was silent then, and for pledges that
never report (B-338). A good verdict opens EST; a bad one refuses the pledge until a human decides otherwise (B-340).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from functools import partial

from appliance.clock import Clock
from appliance.registrar import records, trail
from appliance.registrar.admission import ProxyIdentities
from appliance.registrar.caller import APPLIANCE, Caller
from appliance.registrar.errors import HistoryUnjudged
from appliance.registrar.manufacturers import Manufacturers
from appliance.registrar.masa_client import RETRY_AFTER_SECONDS, MasaTransport
from appliance.settings import RegistrarSettings
from appliance.store import pledges, proxies
from appliance.store.pledges import PledgeRecord
from appliance.store.store import Store
from appliance.store.transaction import Tx
from brski import audit_log, sealed, voucher_request
from brski.audit_log import Appraisal, AuditPolicy, Concern
from brski.errors import BrskiError, DeviceHistoryRefused, OutOfOrder
from brski.idevid import read_idevid, read_masa_address
from brski.manufacturer import KnownPledge
from brski.registrar import MasaExchange, Registrar
from brski.states import RecordEvent, RecordState
from est.exchange import Call, Reply

log = logging.getLogger(__name__)

SILENCE_SECONDS = 60
FORGIVEN = "forgiven"
UNAVAILABLE = "unavailable"
_FOREIGN = frozenset({Concern.FOREIGN_DOMAIN, Concern.FOREIGN_NONCELESS})
_JUDGED = {RecordState.VOUCHER_ISSUED, RecordState.VOUCHER_ACCEPTED, RecordState.AUDIT_PASSED}


class History:
    """Fetches and judges histories."""

    def __init__(
        self,
        settings: RegistrarSettings,
        *,
        store: Store,
        clock: Clock,
        masa: MasaTransport,
        registrar: Registrar,
        manufacturers: Manufacturers,
        identities: ProxyIdentities,
    ) -> None:
        self._policy = AuditPolicy()
        if settings.audit_unknown_domains == "accept":
            self._policy = AuditPolicy(refuse=self._policy.refuse - _FOREIGN)
        self._accept_id_data = settings.accept_id_data
        self._store = store
        self._clock = clock
        self._masa = masa
        self._registrar = registrar
        self._manufacturers = manufacturers
        self._identities = identities

    async def judge(self, pledge_id: str, caller: Caller) -> PledgeRecord:
        """The record with a verdict; the caller holds the device's turn.

        Raises HistoryUnjudged when the MASA could not be asked or its answer not be read: then nothing was opened.
        """
        record = await self._store.read(partial(pledges.require, identifier=pledge_id))
        began = self._clock.monotonic()
        try:
            appraisal = await self._appraise(record)
        except BrskiError as refusal:
            log.warning("audit-log-unavailable serial=%s reason=%s", record.serial, refusal.reason)
            await self._store.write(partial(_note_failure, record.id, refusal, caller))
            raise HistoryUnjudged(
                "the device's history could not be fetched from its manufacturer",
                because=refusal.reason,
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from refusal
        ms = round((self._clock.monotonic() - began) * 1000)
        judged = await self._store.write(partial(self._keep, record.id, record.pvr_sha256, appraisal, ms, caller))
        if not appraisal.is_accepted:
            log.error(
                "device-history-refused serial=%s verdict=%r: a human decides", judged.serial, judged.audit_verdict
            )
        return judged

    async def review_silent(self) -> int:
        """Judge pledges that took a voucher a minute ago and never reported; how many were looked at (B-338)."""
        before = self._clock.now() - timedelta(seconds=SILENCE_SECONDS)
        find = partial(pledges.unjudged, state=RecordState.VOUCHER_ISSUED.value, before=before)
        silent = await self._store.read(find)
        for record in silent:
            try:
                await self.judge(record.id, APPLIANCE)
            except (HistoryUnjudged, OutOfOrder):
                continue
        return len(silent)

    async def _appraise(self, record: PledgeRecord) -> Appraisal:
        exchange = await self._exchange(record)
        reply = await self._fetch(exchange)
        return audit_log.appraise(
            exchange.read_audit_log(reply),
            replace(self._policy, ignore_history=record.audit_verdict == FORGIVEN),
            own_domain_ids=self._registrar.domain_ids,
            own_nonces=records.known_nonces(record),
        )

    async def _fetch(self, exchange: MasaExchange) -> Reply:
        manufacturer = await self._manufacturers.entry(exchange.pledge.manufacturer)
        destination = manufacturer.destination(exchange.masa)
        reply = await self._masa.send(exchange.audit_log_call, destination)
        further = exchange.follow_audit_log(reply)
        return reply if further is None else await self._masa.send(further, destination)

    async def _exchange(self, record: PledgeRecord) -> MasaExchange:
        """The exchange that brought the voucher, out of what the record keeps; the IDevID is inside the request."""
        if record.rvr is None:
            raise OutOfOrder("no voucher was asked for")
        manufacturer = await self._manufacturers.by_id(record.manufacturer_id or "")
        media_type, dialect = sealed.media_type_of(record.rvr), manufacturer.facts.dialect
        asked, _ = voucher_request.unseal(record.rvr, media_type, dialect=dialect)
        prior, opened = voucher_request.unseal(
            asked.prior_signed_voucher_request or b"",
            media_type,
            accept_id_data=self._accept_id_data,
            dialect=dialect,
        )
        # The device's chain and the MASA's address were checked when this very request came. They are not sought again
        # in it: intermediates may have come in TLS alone.
        known = KnownPledge(read_idevid(opened.signer), manufacturer.facts, (opened.signer,))
        masa = read_masa_address((record.masa_url or "").removesuffix("/requestvoucher"))
        call = Call("POST", f"{masa.path}/requestvoucher", media_type, {}, record.rvr)
        return MasaExchange(known, masa, call, prior, record.pvr_sha256 or "", ())

    def _keep(
        self, pledge_id: str, pvr_sha256: str | None, appraisal: Appraisal, ms: int, caller: Caller, tx: Tx
    ) -> PledgeRecord:
        """Verdict and consequences in one transaction."""
        record = pledges.require(tx, pledge_id)
        if record.pvr_sha256 != pvr_sha256 or records.state_of(record) not in _JUDGED:
            raise OutOfOrder("the pledge's record has changed meanwhile")
        text = _text(record, appraisal)
        if not appraisal.is_accepted:
            judged = records.moved(
                record, RecordEvent.AUDIT_FAILED, now=tx.now, ms=ms, code=text, audit_verdict=text, voucher=None
            )
        elif records.state_of(record) is RecordState.VOUCHER_ISSUED:
            # Without the pledge's own yes a good history opens nothing.
            judged = records.noted(replace(record, audit_verdict=text), "audit-read", now=tx.now, ms=ms, code=text)
        else:
            judged = records.moved(record, RecordEvent.AUDIT_PASSED, now=tx.now, ms=ms, code=text, audit_verdict=text)
        pledges.save(tx, judged, was=record.state)
        if not appraisal.is_accepted and record.proxy_id:
            proxy = proxies.get(tx, record.proxy_id)
            if proxy is not None and proxy.is_active:
                actor = caller.as_actor("pledge", record.serial)
                self._identities.revoke(
                    tx, proxy, actor, reason=DeviceHistoryRefused.reason, request_id=caller.request_id
                )
        trail.about(
            tx,
            "audit-log-appraised",
            record,
            caller,
            outcome="done" if appraisal.is_accepted else "refused",
            reason="" if appraisal.is_accepted else DeviceHistoryRefused.reason,
            verdict=text,
            findings=[finding.detail for finding in appraisal.findings],
        )
        return judged


def _note_failure(pledge_id: str, refusal: BrskiError, caller: Caller, tx: Tx) -> None:
    record = pledges.require(tx, pledge_id)
    noted = records.noted(record, "audit-log-unavailable", now=tx.now, code=refusal.reason)
    if records.state_of(record) is RecordState.VOUCHER_ISSUED and record.audit_verdict is None:
        noted = replace(noted, audit_verdict=UNAVAILABLE)
    pledges.save(tx, noted, was=record.state)
    trail.about(tx, "audit-log-appraised", record, caller, outcome="failed", reason=refusal.reason)


def _text(record: PledgeRecord, appraisal: Appraisal) -> str:
    if record.audit_verdict == FORGIVEN:
        return FORGIVEN
    concerns = sorted({finding.concern.value for finding in appraisal.findings})
    verdict = "accepted" if appraisal.is_accepted else "refused"
    return f"{verdict}: {', '.join(concerns)}" if concerns else verdict
