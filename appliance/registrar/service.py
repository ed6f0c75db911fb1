"""The registrar: vouchers for pledges (RFC 8995, sections 5.2 to 5.6).

`request_voucher` reads top to bottom: consider, admit, ask the MASA, conclude, store, answer. Everything that is
decided is in the audit log (B-257), every move of a record comes from the table in brski.states.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from cryptography import x509

from appliance.clock import Clock
from appliance.failpoint import failpoint
from appliance.registrar import admission, records, trail
from appliance.registrar.admission import Admission, ProxyIdentities
from appliance.registrar.caller import Caller, caller_of
from appliance.registrar.errors import PledgeClash
from appliance.registrar.knocking import Knocks
from appliance.registrar.manufacturers import KnownManufacturer, Manufacturers
from appliance.registrar.masa_client import MasaTransport
from appliance.registrar.prefetch import permitted
from appliance.registrar.rates import RequestRates
from appliance.registrar.refusals import Refusals
from appliance.registrar.turns import Turns
from appliance.settings import RegistrarSettings
from appliance.store import knocks as knock_rows
from appliance.store import manufacturers as manufacturer_rows
from appliance.store import pledges, vouchers_ahead
from appliance.store.pledges import PledgeRecord
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.store.vouchers_ahead import VoucherAhead
from appliance.web.limits import Bucket, Gcra
from appliance.web.peer import Peer
from brski import voucher
from brski.errors import (
    DeviceHistoryRefused,
    MasaAuthenticationRequired,
    MasaTimedOut,
    MasaUnavailable,
    MasaUnreachable,
    PledgeNotAuthorized,
    RegistrarCertificateUnfit,
)
from brski.registrar import MasaExchange, Registrar
from brski.states import RecordEvent, RecordState
from brski.voucher import Voucher
from est.errors import Refusal
from est.exchange import Call, Reply

log = logging.getLogger(__name__)

# Retries of one pledge that waits that are written down.
RETRIES_BUCKET = Bucket(per_second=1 / 30, burst=1)
_MAX_REMEMBERED = 4096
_SILENT = (MasaUnreachable, MasaTimedOut, MasaUnavailable)


@dataclass(frozen=True, slots=True)
class _Opened:
    """How a transaction begins: the record, what the site says, and the voucher if this very request has one."""

    record: PledgeRecord
    admission: Admission
    voucher: bytes | None = None
    ahead: VoucherAhead | None = None


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
        knocks: Knocks,
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
        self._knocks = knocks
        self._rates = RequestRates(settings, clock)
        self._refusals = Refusals(store=store, clock=clock, manufacturers=manufacturers, knocks=knocks)
        self._noted_retries = Gcra(RETRIES_BUCKET)
        self._retries: OrderedDict[str, int] = OrderedDict()

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
            await self._refusals.before(refusal, peer, caller)
            raise
        async with self._turns.of(exchange.idevid.device):
            try:
                return await self._transact(exchange, caller)
            except Refusal as refusal:
                await self._refusals.about(refusal, exchange.pledge, caller)
                raise

    async def _transact(self, exchange: MasaExchange, caller: Caller) -> Reply:
        manufacturer = await self._manufacturers.entry(exchange.pledge.manufacturer)
        opened = await self._store.write(partial(self._open, exchange, manufacturer, caller))
        if opened.voucher is not None:
            return exchange.reply_with(opened.voucher)
        if opened.admission is Admission.WAITING:
            await self._refusals.waiting(exchange.pledge, manufacturer, caller)
            return Reply(202, headers={"retry-after": str(self._settings.retry_after_seconds)})
        if opened.admission is Admission.UNLISTED:
            raise PledgeNotAuthorized("this device is not on the list; an administrator can admit it")
        self._knocks.forget_pending(caller.fingerprint)
        if opened.ahead is not None and exchange.request.nonce is None:
            return await self._hand_out(exchange, opened.ahead, caller)
        began = self._clock.monotonic()
        failpoint("voucher-requested")
        try:
            reply = await self._masa.send(exchange.call, manufacturer.destination(exchange.masa))
            failpoint("masa-answered")
            granted = exchange.conclude(reply, self._clock.now())
        except Refusal as refusal:
            if opened.ahead is not None and isinstance(refusal, _SILENT):
                return await self._hand_out(exchange, opened.ahead, caller, refusal, self._ms(began))
            if isinstance(refusal, MasaAuthenticationRequired):
                log.error("masa-authentication-required masa=%s an administrator has to act", exchange.authority)
            await self._store.write(partial(self._keep_failure, exchange, refusal, self._ms(began)))
            raise
        await self._store.write(partial(self._keep_voucher, exchange, granted, self._ms(began), caller))
        failpoint("voucher-kept")
        return exchange.reply(granted)

    async def _hand_out(
        self,
        exchange: MasaExchange,
        ahead: VoucherAhead,
        caller: Caller,
        refusal: Refusal | None = None,
        ms: int | None = None,
    ) -> Reply:
        """The voucher that was fetched before the device came; `refusal` is why the MASA was no help now."""
        dialect = exchange.pledge.manufacturer.dialect
        granted, _ = voucher.unseal(ahead.voucher or b"", ahead.media_type, dialect=dialect)
        await self._store.write(
            partial(self._keep_voucher, exchange, granted, ms, caller, ahead=ahead, refusal=refusal)
        )
        return exchange.reply(granted)

    def _open(self, exchange: MasaExchange, manufacturer: KnownManufacturer, caller: Caller, tx: Tx) -> _Opened:
        issuer, serial = exchange.idevid.device
        found = pledges.by_device(tx, issuer, serial)
        record = found or records.begun(exchange.idevid, manufacturer.id, caller.fingerprint, now=tx.now)
        _check_same_device(tx, record, manufacturer)
        _check_not_refused(record)
        if found is not None and record.pvr_sha256 == exchange.transaction:
            if record.voucher is not None:
                return _Opened(record, Admission.ADMITTED, record.voucher)
            if records.state_of(record) is RecordState.VOUCHER_REQUESTED:
                # Nobody else holds this device's turn, so that call ended with a restart of ours.
                record = records.moved(record, RecordEvent.MASA_FAILED, now=tx.now, code="interrupted")
            record = self._count_retry(record, tx.now)
        else:
            self._rates.take(exchange.idevid.device, manufacturer)
            record = _restarted(record, exchange, manufacturer, caller, tx.now)
            self._audit(tx, "pledge-seen", exchange, caller)
        decided = admission.decide(tx, record, manufacturer, self._settings)
        ahead = None
        if decided is Admission.ADMITTED:
            if found is not None and record.pvr_sha256 == found.pvr_sha256 and _has_failed(found):
                self._rates.take(exchange.idevid.device, manufacturer)  # each time the MASA is asked again
            knock_rows.remove(tx, caller.fingerprint)
            ahead = permitted(tx, self._settings, exchange)
            record = self._ask(tx, record, exchange, caller, is_ahead=ahead is not None)
        elif records.state_of(record) is not RecordState.WAITING_FOR_ADMISSION:
            record = records.moved(record, RecordEvent.HELD, now=tx.now, code=decided.value)
        if found is None:
            pledges.add(tx, record)
        elif record != found:
            pledges.save(tx, record, was=found.state)
        return _Opened(record, decided, ahead=ahead)

    def _count_retry(self, record: PledgeRecord, now: datetime) -> PledgeRecord:
        """Retries of a pledge that waits are counted in memory and written twice a minute at most."""
        if records.state_of(record) is not RecordState.WAITING_FOR_ADMISSION:
            return record
        count = self._retries.pop(record.id, 0) + 1
        if self._noted_retries.take(record.id, self._clock.monotonic()):
            self._retries[record.id] = count
            if len(self._retries) > _MAX_REMEMBERED:
                self._retries.popitem(last=False)
            return record
        return records.noted(record, "asked-again", now=now, code="waiting", times=count)

    def _ask(
        self, tx: Tx, record: PledgeRecord, exchange: MasaExchange, caller: Caller, *, is_ahead: bool
    ) -> PledgeRecord:
        if records.state_of(record) is RecordState.WAITING_FOR_ADMISSION:
            record = records.moved(record, RecordEvent.ADMITTED, now=tx.now)
        record = self._identities.ensure(tx, record)
        record = records.moved(record, RecordEvent.MASA_ASKED, now=tx.now, rvr=exchange.call.body)
        if is_ahead and exchange.request.nonce is None:
            return record  # the MASA was asked before the device came
        self._audit(
            tx, "voucher-requested", exchange, caller, rvr_sha256=hashlib.sha256(exchange.call.body).hexdigest()
        )
        return records.asked(record, exchange.request.nonce)

    def _keep_failure(self, exchange: MasaExchange, refusal: Refusal, ms: int, tx: Tx) -> None:
        record = self._current(tx, exchange)
        failed = records.moved(
            record, RecordEvent.MASA_FAILED, now=tx.now, ms=ms, code=refusal.reason, facts=trail.told(refusal)
        )
        pledges.save(tx, failed, was=record.state)

    def _keep_voucher(
        self,
        exchange: MasaExchange,
        granted: Voucher,
        ms: int | None,
        caller: Caller,
        tx: Tx,
        *,
        ahead: VoucherAhead | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        record = was = self._current(tx, exchange)
        if refusal is not None:
            record = records.noted(
                record, RecordEvent.MASA_FAILED.value, now=tx.now, ms=ms, code=refusal.reason, facts=trail.told(refusal)
            )
        digest = hashlib.sha256(granted.sealed).hexdigest()
        issued = records.moved(
            record,
            RecordEvent.VOUCHER_GRANTED,
            now=tx.now,
            ms=ms if ahead is None else None,
            code=granted.assertion.value if ahead is None else f"{granted.assertion.value}, fetched ahead",
            voucher=granted.sealed,
            voucher_sha256=digest,
            assertion=granted.assertion.value,
        )
        pledges.save(tx, issued, was=was.state)
        more: dict[str, object] = {}
        if ahead is not None:
            vouchers_ahead.hand(tx, ahead.id)
            more = {"ahead": True, "because": refusal.reason if refusal else "no nonce in the request"}
        self._audit(
            tx, "voucher-issued", exchange, caller, voucher_sha256=digest, assertion=granted.assertion.value, **more
        )

    def _current(self, tx: Tx, exchange: MasaExchange) -> PledgeRecord:
        """The record of a transaction under way; an administrator may have refused the pledge meanwhile."""
        record = pledges.by_device(tx, *exchange.idevid.device)
        if record is None or record.pvr_sha256 != exchange.transaction:
            raise PledgeNotAuthorized("the pledge's record has changed meanwhile")
        _check_not_refused(record)
        return record

    def _ms(self, began: float) -> int:
        return round((self._clock.monotonic() - began) * 1000)

    def _audit(self, tx: Tx, event: str, exchange: MasaExchange, caller: Caller, **more: object) -> None:
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


def _check_not_refused(record: PledgeRecord) -> None:
    if records.state_of(record) is not RecordState.REFUSED:
        return
    if (record.audit_verdict or "").startswith("refused"):
        raise PledgeNotAuthorized(
            "this device was refused for its history; an administrator can override that",
            because=DeviceHistoryRefused.reason,
        )
    raise PledgeNotAuthorized("this device was refused; an administrator can admit it")


def _check_same_device(tx: Tx, record: PledgeRecord, manufacturer: KnownManufacturer) -> None:
    """A manufacturer that copies another one's key identifier must not reach that one's devices."""
    if record.manufacturer_id == manufacturer.id:
        return
    if any(row.id == record.manufacturer_id for row in manufacturer_rows.every(tx)):
        raise PledgeClash("issuer and serial number stand for a device of another manufacturer")


def _restarted(
    record: PledgeRecord, exchange: MasaExchange, manufacturer: KnownManufacturer, caller: Caller, now: datetime
) -> PledgeRecord:
    """The record at the beginning of a new transaction; what an administrator overrode stays overridden."""
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
        audit_verdict=None,
        history=None,
        csr_attributes=None,
    )


def _has_failed(record: PledgeRecord) -> bool:
    """Whether the last thing that happened was a MASA that did not help."""
    return bool(record.steps) and record.steps[-1].step == RecordEvent.MASA_FAILED.value
