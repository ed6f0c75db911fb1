"""Vouchers without a nonce, fetched before their devices come, for sites that are offline when they do.

Off unless `registrar.prefetch` says otherwise. The MASA must authenticate this registrar (RFC 8995, section 5.5.4); the
device's log is fetched with the voucher and judged later, when the MASA cannot be asked. Handing one out is for
`permitted` to allow: the setting, the device that authenticated, the format it asked in, and whether it sent a nonce.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cryptography import x509

from appliance import audit
from appliance.audit import APPLIANCE, Actor, AuditEvent
from appliance.clock import Clock
from appliance.errors import NotFound
from appliance.registrar.errors import PrefetchNotPossible
from appliance.registrar.hints import REFUSED_AHEAD, hint
from appliance.registrar.manufacturers import KnownManufacturer, Manufacturers
from appliance.registrar.masa_client import MasaTransport
from appliance.settings import RegistrarSettings
from appliance.store import listed_devices, pledges, vouchers_ahead
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.store.vouchers_ahead import VoucherAhead
from brski import paths, voucher
from brski.ahead import AheadExchange, ask_ahead
from brski.dialect import Dialect
from brski.errors import MasaRefused, MasaUnknown
from brski.idevid import read_masa_address
from brski.registrar import MasaExchange, Registrar
from est import chains, der
from est.errors import Refusal

log = logging.getLogger(__name__)

AT_ONCE = 4
_AGAIN_SECONDS = 6 * 3600.0
MAX_DEVICES = 50
"""In one call, so that it ends before whoever asked gives up; the command line makes as many as it needs."""

Json = Mapping[str, Any]


def permitted(tx: Tx, settings: RegistrarSettings, exchange: MasaExchange) -> VoucherAhead | None:
    """The voucher fetched ahead that may answer this request, None if there is none.

    A request with a nonce wants a voucher that is fresh: it gets another only where the site said so, and only while
    the MASA is silent, which the caller sees to. The pin must still be one of our certificates.
    """
    if settings.prefetch == "off" or (settings.prefetch != "masa-silent" and exchange.request.nonce is not None):
        return None
    found = _pins_us(tx, exchange.idevid.device, exchange.own_chain, exchange.pledge.manufacturer.dialect)
    return next((one for one in found if one.media_type == exchange.call.media_type), None)


def _pins_us(
    tx: Tx, device: tuple[str, str], own_chain: Sequence[x509.Certificate], dialect: Dialect
) -> Iterator[VoucherAhead]:
    """The living vouchers of a device that pin a certificate which we show now, not one that was rolled over."""
    own = {chains.spki_sha256(one) for one in own_chain}
    for row in vouchers_ahead.living(tx, *device):
        try:
            granted, _ = voucher.unseal(row.voucher or b"", row.media_type, dialect=dialect)
            is_ours = chains.spki_sha256(granted.pin()) in own
        except Refusal as refusal:  # the maker's dialect may have been changed since
            log.warning("voucher-ahead-unreadable serial=%r reason=%s", row.serial, refusal.reason)
            continue
        if is_ours:
            yield row


class Prefetch:
    """Fetches vouchers for devices that are expected."""

    def __init__(
        self,
        settings: RegistrarSettings,
        *,
        store: Store,
        clock: Clock,
        registrar: Registrar,
        manufacturers: Manufacturers,
        masa: MasaTransport,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._registrar = registrar
        self._manufacturers = manufacturers
        self._masa = masa
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Fetch again what pins a CA that gave way to its successor, after that and now and then, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.fetch_again(actor=APPLIANCE)
            except Refusal as refusal:  # the store is away, or the maker was removed meanwhile
                log.warning("prefetch-failed reason=%s", refusal.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_SECONDS):
                    await self._wake.wait()

    def look(self) -> None:
        """The CAs have changed: run() sees what has to be fetched again."""
        self._wake.set()

    async def fetch_again(self, *, actor: Actor) -> list[Json]:
        """Ask anew for the devices whose living vouchers all pin a certificate that is ours no more."""
        rows: list[Json] = []
        for known in await self._manufacturers.known() if self._settings.prefetch != "off" else ():
            serials = await self._store.read(partial(self._outdated, known))
            for at in range(0, len(serials), MAX_DEVICES):
                rows += await self.fetch(known.facts.name, serials[at : at + MAX_DEVICES], actor=actor)
        return rows

    def _outdated(self, known: KnownManufacturer, tx: Tx) -> list[str]:
        waiting = {
            (row.idevid_issuer, row.serial)
            for row in vouchers_ahead.every(tx)
            if row.manufacturer_id == known.id and _state(row, tx) == "ready"
        }
        return sorted(device[1] for device in waiting if not self._is_ready(tx, known, device))

    def _is_ready(self, tx: Tx, known: KnownManufacturer, device: tuple[str, str]) -> bool:
        return any(_pins_us(tx, device, self._registrar.own_chain, known.facts.dialect))

    async def fetch(self, maker: str, serials: Sequence[str], *, actor: Actor) -> list[Json]:
        """Ask for one voucher per device; answers a row for each, also where the MASA said no.

        Raises NotFound, PrefetchNotPossible.
        """
        known = await self._maker(maker)
        wanted = list(dict.fromkeys(serials))
        if len(wanted) > MAX_DEVICES:
            raise PrefetchNotPossible(f"more than {MAX_DEVICES} devices at once")
        limit = asyncio.Semaphore(known.options.masa_concurrency or AT_ONCE)

        async def one(serial: str) -> Json:
            async with limit:
                return await self._one(known, serial, actor)

        return list(await asyncio.gather(*map(one, wanted)))

    async def lacking(self, maker: str) -> list[str]:
        """Serial numbers of the listed devices of a manufacturer that have no living voucher that pins us.

        Raises NotFound, PrefetchNotPossible.
        """
        return await self._store.read(partial(self._lacking, await self._maker(maker)))

    async def _maker(self, name: str) -> KnownManufacturer:
        if self._settings.prefetch == "off":
            raise PrefetchNotPossible(
                "vouchers without a nonce are switched off: set registrar.prefetch to nonceless-requests or masa-silent"
            )
        known = await self._manufacturers.named(name)
        if known is None:
            raise NotFound(f"there is no manufacturer {name}", name=name)
        return known

    async def every(self) -> list[Json]:
        """Vouchers that lie here, with their end; `outdated` is one that pins a CA which gave way to its successor."""
        makers = {one.id: one for one in await self._manufacturers.known()}

        def state(row: VoucherAhead, tx: Tx) -> str:
            found, maker = _state(row, tx), makers.get(row.manufacturer_id)
            if found != "ready" or maker is None:
                return found
            device = row.idevid_issuer, row.serial
            pins = _pins_us(tx, device, self._registrar.own_chain, maker.facts.dialect)
            return found if any(one.id == row.id for one in pins) else "outdated"

        def read(tx: Tx) -> list[Json]:
            return [
                {
                    "serial": row.serial,
                    "issuer": row.idevid_issuer,
                    "masa": row.masa_url,
                    "fetched_at": row.asked_at.isoformat(timespec="seconds"),
                    "expires_at": row.expires_at.isoformat(timespec="seconds") if row.expires_at else "",
                    "state": state(row, tx),
                }
                for row in vouchers_ahead.every(tx)
            ]

        return await self._store.read(read)

    def _lacking(self, known: KnownManufacturer, tx: Tx) -> list[str]:
        found = []
        for device in listed_devices.of(tx, known.id):
            issuer = _issuer_of(tx, known, device.serial)
            if issuer is None or not self._is_ready(tx, known, (issuer, device.serial)):
                found.append(device.serial)
        return found

    async def _one(self, known: KnownManufacturer, serial: str, actor: Actor) -> Json:
        row = {"serial": serial, "manufacturer": known.facts.name}
        try:
            expires_at = await self._ask(known, serial, actor)
        except Refusal as refusal:
            log.info("prefetch-failed serial=%s reason=%s", serial, refusal.reason)
            reason = REFUSED_AHEAD if isinstance(refusal, MasaRefused) else refusal.reason
            said = hint(reason, device=serial, maker=known.facts.name)
            if isinstance(refusal, PrefetchNotPossible):
                said = refusal.detail
            return {**row, "outcome": "failed", "reason": refusal.reason, "expires_at": "", "what_to_do": said}
        return {**row, "outcome": "fetched", "reason": "", "expires_at": expires_at, "what_to_do": ""}

    async def _ask(self, known: KnownManufacturer, serial: str, actor: Actor) -> str:
        if not known.facts.masa:
            raise MasaUnknown(f"no MASA is known for devices of {known.facts.name}")
        masa = read_masa_address(known.facts.masa)
        issuer = await self._store.read(partial(_issuer_of, known=known, serial=serial))
        if issuer is None:
            raise PrefetchNotPossible("it is not known which CA issued its IDevID: give the column idevid-issuer")
        now = self._clock.now()
        media_type = paths.VOUCHER_FORMATS[self._settings.voucher_formats[0]]
        exchange = ask_ahead(self._registrar, (issuer, serial), masa, media_type, now=now, dialect=known.facts.dialect)
        row = VoucherAhead(
            id=str(uuid.uuid4()),
            manufacturer_id=known.id,
            serial=serial,
            idevid_issuer=issuer,
            masa_url=masa.url("requestvoucher"),
            media_type=exchange.call.media_type,
            asked_at=now,
            rvr=exchange.call.body,
        )
        await self._store.write(partial(vouchers_ahead.add, row=row))
        destination = known.destination(masa)
        try:
            granted = exchange.conclude(await self._masa.send(exchange.call, destination), self._clock.now())
            history = await self._history(exchange, known)
        except Refusal as refusal:
            await self._store.write(partial(_tell, row, actor, outcome="refused", reason=refusal.reason, facts={}))
            raise
        assert granted.expires_on is not None  # conclude saw to it
        expires_at = granted.expires_on

        def keep(tx: Tx) -> None:
            vouchers_ahead.keep(tx, row.id, voucher=granted.sealed, history=history, expires_at=expires_at)
            facts = {
                "voucher_sha256": hashlib.sha256(granted.sealed).hexdigest(),
                "expires_at": expires_at.isoformat(timespec="seconds"),
                "with_history": history is not None,
            }
            _tell(row, actor, tx, outcome="done", reason="", facts=facts)

        await self._store.write(keep)
        return expires_at.isoformat(timespec="seconds")

    async def _history(self, exchange: AheadExchange, known: KnownManufacturer) -> bytes | None:
        """The device's log as it is now, None where the MASA does not give it; then only the MASA itself can later."""
        destination = known.destination(exchange.masa)
        try:
            reply = await self._masa.send(exchange.audit_log_call, destination)
            further = exchange.follow_audit_log(reply)
            reply = reply if further is None else await self._masa.send(further, destination)
            exchange.read_audit_log(reply)
        except Refusal as refusal:
            log.warning("prefetch-without-history serial=%s reason=%s", exchange.device[1], refusal.reason)
            return None
        return reply.body


def _state(row: VoucherAhead, tx: Tx) -> str:
    if row.expires_at and row.expires_at <= tx.now:
        return "expired"
    return "handed-out" if row.handed_at else "ready"


def _issuer_of(tx: Tx, known: KnownManufacturer, serial: str) -> str | None:
    """idevid-issuer of a device that may never have been here: from the list, its last visit, or the only anchor."""
    listed = listed_devices.get(tx, known.id, serial)
    if listed is not None and listed.idevid_issuer:
        return listed.idevid_issuer
    before = [one for one in pledges.by_serial(tx, serial) if one.manufacturer_id == known.id]
    if before:
        return before[-1].idevid_issuer
    anchors = list(known.facts.anchors)
    key = chains.ski_of(anchors[0]) if len(anchors) == 1 else None
    return None if key is None else issuer_of_key(key)


def issuer_of_key(key: bytes) -> str:
    """idevid-issuer (hex) of devices whose authority key identifier is `key` (RFC 8366bis, erratum 7263)."""
    return der.tlv(der.OCTET_STRING, der.sequence(der.tlv(0x80, key))).hex()


def key_of_issuer(issuer: str) -> bytes:
    """The authority key identifier inside an idevid-issuer that `issuer_of_key` made."""
    octets = bytes.fromhex(issuer)
    start, stop = der.only(octets, 0, len(octets), der.OCTET_STRING)
    start, stop = der.only(octets, start, stop, der.SEQUENCE)
    start, stop = der.only(octets, start, stop, 0x80)
    return octets[start:stop]


def _tell(row: VoucherAhead, actor: Actor, tx: Tx, *, outcome: Any, reason: str, facts: Mapping[str, Any]) -> None:
    fields = {"issuer": row.idevid_issuer, "masa": row.masa_url, **facts}
    audit.append(
        tx,
        AuditEvent("voucher-fetched-ahead", actor, object=row.serial, outcome=outcome, reason=reason, fields=fields),
    )
