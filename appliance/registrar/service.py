"""The registrar: vouchers for pledges (RFC 8995, sections 5.2 to 5.6).

`request_voucher` reads top to bottom: consider, admit, ask the MASA, conclude, store, answer. Everything that is
decided is in the audit log (B-257), every move of a record comes from the table in brski.states.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from cryptography import x509

from appliance.clock import Clock
from appliance.errors import RateLimited
from appliance.registrar import admission, records, trail
from appliance.registrar.admission import Admission, ProxyIdentities
from appliance.registrar.caller import Caller, caller_of
from appliance.registrar.errors import PledgeClash
from appliance.registrar.history import FORGIVEN
from appliance.registrar.manufacturers import KnownManufacturer, Manufacturers
from appliance.registrar.masa_client import MasaTransport
from appliance.registrar.strangers import Strangers
from appliance.registrar.turns import Turns
from appliance.settings import RegistrarSettings
from appliance.store import manufacturers as manufacturer_rows
from appliance.store import pledges
from appliance.store.pledges import PledgeRecord
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.limits import Bucket, Gcra
from appliance.web.peer import Peer
from brski.errors import (
    FormatNotAcceptable,
    ManufacturerUnknown,
    MasaAuthenticationRequired,
    MediaTypeUnsupported,
    PledgeNotAuthorized,
    RegistrarCertificateUnfit,
)
from brski.idevid import IDevID
from brski.manufacturer import KnownPledge, identify
from brski.registrar import MasaExchange, Registrar
from brski.states import RecordEvent, RecordState
from brski.voucher import Voucher
from est.errors import Refusal
from est.exchange import Call, Reply

log = logging.getLogger(__name__)

# New voucher-requests of one pledge (T-36): retries of the same request do not count.
PLEDGE_BUCKET = Bucket(per_second=0.1, burst=20)


@dataclass(frozen=True, slots=True)
class _Opened:
    """How a transaction begins: the record, what the site says, and the voucher if this very request has one."""

    record: PledgeRecord
    admission: Admission
    voucher: bytes | None = None


class RegistrarService:
    """request_voucher, with its collaborators."""

    def __init__(
        self,
        settings: RegistrarSettings,
        *,
        store: Store,
        clock: Clock,
        registrar: Registrar,
        manufacturers: Manufacturers,
        masa: MasaTransport,
        identities: ProxyIdentities,
        turns: Turns,
    ) -> None:
        """`registrar` holds the certificate that the device port shows."""
        self._settings = settings
        self._store = store
        self._clock = clock
        self._registrar = registrar
        self._manufacturers = manufacturers
        self._masa = masa
        self._identities = identities
        self._turns = turns
        self._strangers = Strangers(store)
        self._new_requests = Gcra(PLEDGE_BUCKET)
        self._noted_refusals = Gcra(PLEDGE_BUCKET)

    async def request_voucher(self, call: Call, peer: Peer) -> Reply:
        """The voucher, or 202 while an administrator has not decided (RFC 8995, sections 5.2 and 5.6).

        The same request again is the same transaction: it never asks the MASA twice (B-234), also across restarts.
        Raises what `Registrar.consider` and `MasaExchange.conclude` raise, PledgeNotAuthorized, PledgeClash,
        RateLimited, MasaUnreachable, MasaTimedOut.
        """
        caller = caller_of(call, peer)
        try:
            exchange = self._registrar.consider(
                call,
                peer.certificate,
                peer.chain[1:],
                await self._manufacturers.facts(),
                tls_certificate=_presented(peer),
                now=self._clock.now(),
            )
        except Refusal as refusal:
            await self._note_refusal(refusal, peer, caller)
            raise
        async with self._turns.of(exchange.idevid.device):
            try:
                return await self._transact(exchange, caller)
            except Refusal as refusal:
                await self._audit_refusal(refusal, exchange.pledge, caller)
                raise

    async def _transact(self, exchange: MasaExchange, caller: Caller) -> Reply:
        manufacturer = await self._manufacturers.entry(exchange.pledge.manufacturer)
        opened = await self._store.write(partial(self._open, exchange, manufacturer, caller))
        if opened.voucher is not None:
            return exchange.reply_with(opened.voucher)
        if opened.admission is Admission.WAITING:
            return Reply(202, headers={"retry-after": str(self._settings.retry_after_seconds)})
        if opened.admission is Admission.UNLISTED:
            raise PledgeNotAuthorized("this device is not on the list; an administrator can admit it")
        began = self._clock.monotonic()
        try:
            reply = await self._masa.send(exchange.call, manufacturer.destination(exchange.masa))
            granted = exchange.conclude(reply, self._clock.now())
        except Refusal as refusal:
            if isinstance(refusal, MasaAuthenticationRequired):
                log.error("masa-authentication-required masa=%s an administrator has to act", exchange.authority)
            await self._store.write(partial(self._keep_failure, exchange, refusal, self._ms(began)))
            raise
        await self._store.write(partial(self._keep_voucher, exchange, granted, self._ms(began), caller))
        return exchange.reply(granted)

    def _open(self, exchange: MasaExchange, manufacturer: KnownManufacturer, caller: Caller, tx: Tx) -> _Opened:
        issuer, serial = exchange.idevid.device
        found = pledges.by_device(tx, issuer, serial)
        record = found or _new_record(exchange.idevid, manufacturer, caller, tx.now)
        _check_same_device(tx, record, manufacturer)
        if records.state_of(record) is RecordState.REFUSED:
            raise PledgeNotAuthorized("this device was refused; an administrator can admit it")
        if found is not None and record.pvr_sha256 == exchange.transaction:
            if record.voucher is not None:
                return _Opened(record, Admission.ADMITTED, record.voucher)
            if records.state_of(record) is RecordState.VOUCHER_REQUESTED:
                # Nobody else holds this device's turn, so that call ended with a restart of ours.
                record = records.moved(record, RecordEvent.MASA_FAILED, now=tx.now, code="interrupted")
        else:
            self._check_rate(exchange.idevid)
            record = _restarted(record, exchange, manufacturer, caller, tx.now)
            pledges.drop_stranger(tx, caller.fingerprint)
            self._audit(tx, "pledge-seen", exchange, caller)
        decided = admission.decide(tx, record, manufacturer, self._settings)
        if decided is Admission.ADMITTED:
            record = self._ask(tx, record, exchange, caller)
        elif records.state_of(record) is not RecordState.WAITING_FOR_ADMISSION:
            record = records.moved(record, RecordEvent.HELD, now=tx.now, code=decided.value)
        if found is None:
            pledges.add(tx, record)
        elif record != found:
            pledges.save(tx, record, was=found.state)
        return _Opened(record, decided)

    def _ask(self, tx: Tx, record: PledgeRecord, exchange: MasaExchange, caller: Caller) -> PledgeRecord:
        if records.state_of(record) is RecordState.WAITING_FOR_ADMISSION:
            record = records.moved(record, RecordEvent.ADMITTED, now=tx.now)
        record = self._identities.ensure(tx, record)
        record = records.moved(record, RecordEvent.MASA_ASKED, now=tx.now, rvr=exchange.call.body)
        self._audit(
            tx, "voucher-requested", exchange, caller, rvr_sha256=hashlib.sha256(exchange.call.body).hexdigest()
        )
        return records.asked(record, exchange.request.nonce)

    def _keep_failure(self, exchange: MasaExchange, refusal: Refusal, ms: int, tx: Tx) -> None:
        record = self._current(tx, exchange)
        failed = records.moved(record, RecordEvent.MASA_FAILED, now=tx.now, ms=ms, code=refusal.reason)
        pledges.save(tx, failed, was=record.state)

    def _keep_voucher(self, exchange: MasaExchange, granted: Voucher, ms: int, caller: Caller, tx: Tx) -> None:
        record = self._current(tx, exchange)
        digest = hashlib.sha256(granted.sealed).hexdigest()
        issued = records.moved(
            record,
            RecordEvent.VOUCHER_GRANTED,
            now=tx.now,
            ms=ms,
            code=granted.assertion.value,
            voucher=granted.sealed,
            voucher_sha256=digest,
            assertion=granted.assertion.value,
        )
        pledges.save(tx, issued, was=record.state)
        self._audit(tx, "voucher-issued", exchange, caller, voucher_sha256=digest, assertion=granted.assertion.value)

    def _current(self, tx: Tx, exchange: MasaExchange) -> PledgeRecord:
        """The record of a transaction under way; an administrator may have refused the pledge meanwhile."""
        record = pledges.by_device(tx, *exchange.idevid.device)
        if record is None or record.pvr_sha256 != exchange.transaction:
            raise PledgeNotAuthorized("the pledge's record has changed meanwhile")
        if records.state_of(record) is RecordState.REFUSED:
            raise PledgeNotAuthorized("this device was refused; an administrator can admit it")
        return record

    async def _note_refusal(self, refusal: Refusal, peer: Peer, caller: Caller) -> None:
        """Who was refused before a transaction began: strangers in the list of who knocked, devices in their record."""
        if peer.certificate is None or isinstance(refusal, MediaTypeUnsupported | FormatNotAcceptable):
            return
        if isinstance(refusal, ManufacturerUnknown):
            await self._strangers.note(peer.certificate, refusal, caller)
            return
        try:
            facts = await self._manufacturers.facts()
            known = identify(peer.certificate, peer.chain[1:], facts, now=self._clock.now())
        except Refusal:
            log.warning("voucher-refused reason=%s address=%s", refusal.reason, caller.address)
            return
        await self._audit_refusal(refusal, known, caller, in_record=True)

    async def _audit_refusal(
        self, refusal: Refusal, known: KnownPledge, caller: Caller, *, in_record: bool = False
    ) -> None:
        log.warning("voucher-refused reason=%s address=%s fields=%r", refusal.reason, caller.address, refusal.fields)
        if isinstance(refusal, RateLimited):
            return
        if self._noted_refusals.take(caller.fingerprint, self._clock.monotonic()):
            return
        manufacturer = await self._manufacturers.entry(known.manufacturer) if in_record else None
        await self._store.write(partial(_keep_refusal, refusal, known, caller, manufacturer))

    def _check_rate(self, idevid: IDevID) -> None:
        wait = self._new_requests.take("/".join(idevid.device), self._clock.monotonic())
        if wait:
            raise RateLimited("too many new voucher-requests of this pledge", retry_after_seconds=round(wait + 0.5))

    def _ms(self, began: float) -> int:
        return round((self._clock.monotonic() - began) * 1000)

    def _audit(self, tx: Tx, event: str, exchange: MasaExchange, caller: Caller, **more: str) -> None:
        trail.append(
            tx,
            event,
            exchange.idevid,
            caller,
            masa=exchange.authority,
            nonce=exchange.request.nonce,
            pvr_sha256=exchange.transaction,
            manufacturer=exchange.pledge.manufacturer.name,
            **more,  # type: ignore[arg-type]
        )


def _presented(peer: Peer) -> x509.Certificate:
    """The certificate that WE showed on this very connection; there may be several around a roll-over (B-254)."""
    if peer.server_certificate is None:
        raise RegistrarCertificateUnfit("the connection does not say which certificate it shows")
    return peer.server_certificate


def _new_record(idevid: IDevID, manufacturer: KnownManufacturer, caller: Caller, now: datetime) -> PledgeRecord:
    issuer, serial = idevid.device
    return PledgeRecord(
        id=str(uuid.uuid4()),
        idevid_issuer=issuer,
        serial=serial,
        idevid_sha256=caller.fingerprint,
        manufacturer_id=manufacturer.id,
        state=RecordState.SEEN.value,
        created_at=now,
        updated_at=now,
    )


def _check_same_device(tx: Tx, record: PledgeRecord, manufacturer: KnownManufacturer) -> None:
    """A manufacturer that copies another one's key identifier must not reach that one's devices."""
    if record.manufacturer_id == manufacturer.id:
        return
    if any(row.id == record.manufacturer_id for row in manufacturer_rows.every(tx)):
        raise PledgeClash("issuer and serial number stand for a device of another manufacturer")


def _restarted(
    record: PledgeRecord, exchange: MasaExchange, manufacturer: KnownManufacturer, caller: Caller, now: datetime
) -> PledgeRecord:
    """The record at the beginning of a new transaction; what an administrator forgave stays forgiven."""
    return records.moved(
        record,
        RecordEvent.REQUEST_RECEIVED,
        now=now,
        idevid_sha256=caller.fingerprint,
        manufacturer_id=manufacturer.id,
        masa_url=exchange.url,
        nonce=exchange.request.nonce,
        pvr_sha256=exchange.transaction,
        rvr=None,
        voucher=None,
        voucher_sha256=None,
        assertion=None,
        audit_verdict=FORGIVEN if record.audit_verdict == FORGIVEN else None,
    )


def _keep_refusal(
    refusal: Refusal, known: KnownPledge, caller: Caller, manufacturer: KnownManufacturer | None, tx: Tx
) -> None:
    """Audit the refusal; with `manufacturer`, also show it in the device's record, which may begin with it."""
    trail.refused(tx, known.idevid, refusal, caller)
    if manufacturer is None:
        return
    record = pledges.by_device(tx, *known.idevid.device)
    if record is None:
        fresh = _new_record(known.idevid, manufacturer, caller, tx.now)
        pledges.add(tx, records.noted(fresh, "request-refused", now=tx.now, code=refusal.reason))
    elif record.idevid_sha256 == caller.fingerprint:
        pledges.save(tx, records.noted(record, "request-refused", now=tx.now, code=refusal.reason), was=record.state)
