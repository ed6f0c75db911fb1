"""The device's history: fetched from its MASA, judged by the site's policy, written into the record (RFC 8995, 5.8).

Asked for after the pledge's yes to its voucher, again at enrolment if the MASA was silent then, and for pledges that
never report (B-338). A good verdict opens EST; a bad one refuses the pledge until a human overrides the findings
(B-340); what is found later is judged as before. Where the MASA is silent and the voucher was fetched ahead, the log
that came with it is judged.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from appliance.clock import Clock
from appliance.registrar import records, trail
from appliance.registrar.admission import ProxyIdentities
from appliance.registrar.caller import APPLIANCE, Caller
from appliance.registrar.errors import HistoryUnjudged, MasaBusy, MasaCredentialsUnusable
from appliance.registrar.manufacturers import KnownManufacturer, Manufacturers
from appliance.registrar.masa_client import RETRY_AFTER_SECONDS, MasaTransport
from appliance.registrar.turns import Turns
from appliance.settings import RegistrarSettings
from appliance.store import listed_devices, pledges, proxies, vouchers_ahead
from appliance.store.pledges import PledgeRecord
from appliance.store.store import Store
from appliance.store.transaction import Tx
from brski import audit_log, sealed, voucher, voucher_request
from brski.audit_log import Appraisal, AuditLog, AuditPolicy, Concern
from brski.errors import (
    BrskiError,
    DeviceHistoryRefused,
    MasaTimedOut,
    MasaUnavailable,
    MasaUnreachable,
    OutOfOrder,
)
from brski.idevid import read_idevid, read_masa_address
from brski.manufacturer import KnownPledge
from brski.registrar import MasaExchange, Registrar
from brski.states import RecordEvent, RecordState
from brski.voucher import Voucher
from est.errors import Refusal
from est.exchange import Call, Reply

log = logging.getLogger(__name__)

SILENCE_SECONDS = 60
UNAVAILABLE = "unavailable"
FROM_MASA, FROM_AHEAD = "masa", "fetched ahead"
_SILENT = (MasaUnreachable, MasaTimedOut, MasaUnavailable)
_NOT_FETCHED = (BrskiError, MasaBusy, MasaCredentialsUnusable)
_JUDGED = {RecordState.VOUCHER_ISSUED, RecordState.VOUCHER_ACCEPTED, RecordState.AUDIT_PASSED}


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the site knows of a device beside its log."""

    delivered_at: datetime | None
    asked_ahead: int
    kept: bytes | None


@dataclass(frozen=True, slots=True)
class _Judgement:
    """A log, where it came from, and what the policy says about it."""

    log: AuditLog
    source: str
    appraisal: Appraisal

    def as_json(self, now: datetime) -> dict[str, Any]:
        """As it is kept in the record; the keys of its findings are what an override names."""
        return {
            "at": now.isoformat(timespec="seconds"),
            "source": self.source,
            "version": self.log.version,
            "events": len(self.log.events),
            "removed": self.log.truncation.arbitrary,
            "accepted": self.appraisal.is_accepted,
            "findings": [
                {"rule": one.concern.value, "refuses": one.is_refusing, "detail": one.detail, "key": one.key}
                for one in self.appraisal.findings
            ],
        }


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
        turns: Turns,
    ) -> None:
        self._policy = site_policy(settings)
        self._accept_id_data = settings.accept_id_data
        self._store = store
        self._clock = clock
        self._masa = masa
        self._registrar = registrar
        self._manufacturers = manufacturers
        self._identities = identities
        self._turns = turns

    async def judge(self, pledge_id: str, caller: Caller) -> PledgeRecord:
        """The record with a verdict; the caller holds the device's turn.

        Raises HistoryUnjudged when the MASA could not be asked or its answer not be read: then nothing was opened.
        """
        record, facts = await self._store.read(partial(_look, pledge_id))
        began = self._clock.monotonic()
        try:
            judgement = await self._appraise(record, facts)
        except _NOT_FETCHED as refusal:
            log.warning("audit-log-unavailable serial=%s reason=%s", record.serial, refusal.reason)
            await self._store.write(partial(_note_failure, record.id, refusal, caller))
            raise HistoryUnjudged(
                "the device's history could not be fetched from its manufacturer",
                because=refusal.reason,
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from refusal
        ms = round((self._clock.monotonic() - began) * 1000)
        judged = await self._store.write(partial(self._keep, record.id, record.pvr_sha256, judgement, ms, caller))
        if not judgement.appraisal.is_accepted:
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
            async with self._turns.of((record.idevid_issuer, record.serial)):
                await self._review(record.id)
        return len(silent)

    async def _review(self, pledge_id: str) -> None:
        """Judge it if it is still silent: it may have reported while this waited for its turn."""
        record = await self._store.read(partial(pledges.require, identifier=pledge_id))
        if records.state_of(record) is not RecordState.VOUCHER_ISSUED or record.audit_verdict is not None:
            return
        with contextlib.suppress(HistoryUnjudged, OutOfOrder):
            await self.judge(pledge_id, APPLIANCE)

    async def _appraise(self, record: PledgeRecord, facts: _Facts) -> _Judgement:
        manufacturer = await self._manufacturers.by_id(record.manufacturer_id or "")
        exchange = await self._exchange(record, manufacturer)
        try:
            log, source = exchange.read_audit_log(await self._fetch(exchange, manufacturer)), FROM_MASA
        except _SILENT:
            if facts.kept is None:
                raise
            log, source = audit_log.read(facts.kept), FROM_AHEAD
        nonces = records.known_nonces(record)
        appraisal = audit_log.appraise(
            log,
            policy_for(self._policy, manufacturer, record, facts.delivered_at),
            own_domain_ids=self._registrar.domain_ids,
            own_nonces=None if nonces is None else (*nonces, *(None,) * facts.asked_ahead),
            issued=self._issued(record, manufacturer),
        )
        return _Judgement(log, source, appraisal)

    def _issued(self, record: PledgeRecord, manufacturer: KnownManufacturer) -> Voucher | None:
        """The voucher that the device has now; it verified when it came."""
        if record.voucher is None:
            return None
        granted, _ = voucher.unseal(
            record.voucher,
            sealed.media_type_of(record.voucher),
            accept_id_data=self._accept_id_data,
            dialect=manufacturer.facts.dialect,
        )
        return granted

    async def _fetch(self, exchange: MasaExchange, manufacturer: KnownManufacturer) -> Reply:
        destination = manufacturer.destination(exchange.masa)
        reply = await self._masa.send(exchange.audit_log_call, destination)
        further = exchange.follow_audit_log(reply)
        return reply if further is None else await self._masa.send(further, destination)

    async def _exchange(self, record: PledgeRecord, manufacturer: KnownManufacturer) -> MasaExchange:
        """The exchange that brought the voucher, out of what the record keeps; the IDevID is inside the request."""
        if record.rvr is None:
            raise OutOfOrder("no voucher was asked for")
        facts = manufacturer.facts
        media_type = sealed.media_type_of(record.rvr)
        asked, _ = voucher_request.unseal(record.rvr, media_type, dialect=facts.dialect)
        prior, opened = voucher_request.unseal(
            asked.prior_signed_voucher_request or b"",
            media_type,
            accept_id_data=self._accept_id_data,
            dialect=facts.dialect,
        )
        # The device's chain and the MASA's address were checked when this very request came. They are not sought again
        # in it: intermediates may have come in TLS alone.
        known = KnownPledge(read_idevid(opened.signer, facts.serial_source), facts, (opened.signer,))
        masa = read_masa_address((record.masa_url or "").removesuffix("/requestvoucher"))
        call = Call("POST", f"{masa.path}/requestvoucher", media_type, {}, record.rvr)
        return MasaExchange(known, masa, call, prior, record.pvr_sha256 or "", ())

    def _keep(
        self, pledge_id: str, pvr_sha256: str | None, judgement: _Judgement, ms: int, caller: Caller, tx: Tx
    ) -> PledgeRecord:
        """Verdict and consequences in one transaction."""
        appraisal = judgement.appraisal
        record = pledges.require(tx, pledge_id)
        if record.pvr_sha256 != pvr_sha256 or records.state_of(record) not in _JUDGED:
            raise OutOfOrder("the pledge's record has changed meanwhile")
        text = _text(appraisal)
        record = replace(record, history=judgement.as_json(tx.now))
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
            if proxy is not None and not proxy.is_revoked:
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
            source=judgement.source,
            findings=[finding.detail for finding in appraisal.findings],
        )
        return judged


def _note_failure(pledge_id: str, refusal: Refusal, caller: Caller, tx: Tx) -> None:
    record = pledges.require(tx, pledge_id)
    noted = records.noted(record, "audit-log-unavailable", now=tx.now, code=refusal.reason, facts=trail.told(refusal))
    if records.state_of(record) is RecordState.VOUCHER_ISSUED and record.audit_verdict is None:
        noted = replace(noted, audit_verdict=UNAVAILABLE)
    pledges.save(tx, noted, was=record.state)
    trail.about(tx, "audit-log-appraised", record, caller, outcome="failed", reason=refusal.reason)


def site_policy(settings: RegistrarSettings) -> AuditPolicy:
    """The site's rules, as the settings name them."""
    return AuditPolicy(
        refuse=frozenset(Concern(name) for name in settings.audit_refuse),
        known_domains=frozenset(map(base64.b64decode, settings.audit_known_domains)),
    )


def policy_for(
    site: AuditPolicy, manufacturer: KnownManufacturer, record: PledgeRecord, delivered_at: datetime | None
) -> AuditPolicy:
    """The rules for one device: the site's, its maker's known domains, its delivery, and what a human overrode."""
    said: Mapping[str, Any] = record.history_override or {}
    return replace(
        site,
        known_domains=site.known_domains | manufacturer.options.domains,
        purchased_at=delivered_at,
        overridden=frozenset(said.get("keys", ())),
    )


def _look(pledge_id: str, tx: Tx) -> tuple[PledgeRecord, _Facts]:
    record = pledges.require(tx, pledge_id)
    listed = listed_devices.get(tx, record.manufacturer_id or "", record.serial)
    asked = vouchers_ahead.asked(tx, record.idevid_issuer, record.serial)
    living = vouchers_ahead.living(tx, record.idevid_issuer, record.serial) if asked else []
    handed = (one for one in living if hashlib.sha256(one.voucher or b"").hexdigest() == record.voucher_sha256)
    ahead = next(handed, None)
    return record, _Facts(
        delivered_at=listed.delivered_at if listed else None,
        asked_ahead=asked,
        kept=None if ahead is None else ahead.history,
    )


def _text(appraisal: Appraisal) -> str:
    concerns = sorted({finding.concern.value for finding in appraisal.findings})
    verdict = "accepted" if appraisal.is_accepted else "refused"
    return f"{verdict}: {', '.join(concerns)}" if concerns else verdict
