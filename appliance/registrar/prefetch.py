"""Vouchers without a nonce, fetched before their devices come, for sites that are offline when they do.

Off unless `registrar.prefetch` says otherwise. The MASA must authenticate this registrar (RFC 8995, section 5.5.4); the
device's log is fetched with the voucher and judged later, when the MASA cannot be asked. Handing one out is for
`permitted` to allow: the setting, the device that authenticated, the format it asked in, and whether it sent a nonce.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from appliance import audit
from appliance.audit import Actor, AuditEvent
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
from brski.errors import MasaRefused, MasaUnknown
from brski.idevid import read_masa_address
from brski.registrar import MasaExchange, Registrar
from est import chains, der
from est.errors import Refusal

log = logging.getLogger(__name__)

AT_ONCE = 4
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
    found = vouchers_ahead.usable(tx, *exchange.idevid.device)
    if found is None or found.voucher is None or found.media_type != exchange.call.media_type:
        return None
    granted, _ = voucher.unseal(found.voucher, found.media_type, dialect=exchange.pledge.manufacturer.dialect)
    own = {chains.spki_sha256(one) for one in exchange.own_chain}
    return found if chains.spki_sha256(granted.pin()) in own else None


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
        """Serial numbers of the listed devices of a manufacturer that have no living voucher here.

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
        """Vouchers that lie here, with their end."""

        def read(tx: Tx) -> list[Json]:
            return [
                {
                    "serial": row.serial,
                    "issuer": row.idevid_issuer,
                    "masa": row.masa_url,
                    "fetched_at": row.asked_at.isoformat(timespec="seconds"),
                    "expires_at": row.expires_at.isoformat(timespec="seconds") if row.expires_at else "",
                    "state": "expired"
                    if row.expires_at and row.expires_at <= tx.now
                    else "handed-out"
                    if row.handed_at
                    else "ready",
                }
                for row in vouchers_ahead.every(tx)
            ]

        return await self._store.read(read)

    def _lacking(self, known: KnownManufacturer, tx: Tx) -> list[str]:
        found = []
        for device in listed_devices.of(tx, known.id):
            issuer = _issuer_of(tx, known, device.serial)
            if issuer is None or vouchers_ahead.usable(tx, issuer, device.serial) is None:
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
