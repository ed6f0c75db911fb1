"""What a refused voucher-request leaves behind: a row among who knocked, an audit entry, a step on the timeline.

Each is bounded, so that a device that is refused all day costs little.
"""

from __future__ import annotations

import logging
from functools import partial

from appliance.clock import Clock
from appliance.errors import RateLimited
from appliance.registrar import records, trail
from appliance.registrar.caller import Caller
from appliance.registrar.hints import hint
from appliance.registrar.knocking import WAITING, Knocks, stranger_detail
from appliance.registrar.manufacturers import KnownManufacturer, Manufacturers
from appliance.store import pledges
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.limits import Bucket, Gcra
from appliance.web.peer import Peer
from brski.errors import FormatNotAcceptable, ManufacturerUnknown, MediaTypeUnsupported, PledgeNotAuthorized
from brski.manufacturer import KnownPledge, identify
from est.errors import Refusal

log = logging.getLogger(__name__)

# Refusals of one certificate that are written down.
NOTED_BUCKET = Bucket(per_second=0.1, burst=20)


class Refusals:
    """Keeps what administrators need to know of a refusal."""

    def __init__(self, *, store: Store, clock: Clock, manufacturers: Manufacturers, knocks: Knocks) -> None:
        self._store = store
        self._clock = clock
        self._manufacturers = manufacturers
        self._knocks = knocks
        self._noted = Gcra(NOTED_BUCKET)

    async def before(self, refusal: Refusal, peer: Peer, caller: Caller) -> None:
        """Refused before a transaction began: strangers in the list of who knocked, devices in their record too."""
        if peer.certificate is None or isinstance(refusal, MediaTypeUnsupported | FormatNotAcceptable):
            return
        if isinstance(refusal, ManufacturerUnknown):
            log.info("stranger fingerprint=%s address=%s", caller.fingerprint, caller.address)
            await self._knocks.note(peer.certificate, caller, reason=refusal.reason, detail=stranger_detail(refusal))
            return
        try:
            facts = await self._manufacturers.facts()
            known = identify(peer.certificate, peer.chain[1:], facts, now=self._clock.now())
        except Refusal:
            # its maker vouches for the certificate, which does not say which device it is
            log.warning("voucher-refused reason=%s address=%s", refusal.reason, caller.address)
            maker = await self._manufacturers.named(str(refusal.fields.get("manufacturer", "")))
            await self._knocks.note(
                peer.certificate, caller, reason=refusal.reason, detail=refusal.detail, manufacturer=maker
            )
            return
        await self.about(refusal, known, caller, in_record=True)

    async def about(self, refusal: Refusal, known: KnownPledge, caller: Caller, *, in_record: bool = False) -> None:
        """Refused as a device that is known; `in_record` where nothing else of this request is in its record."""
        reason, maker = refusal.reason, known.manufacturer.name
        if isinstance(refusal, PledgeNotAuthorized):
            reason = str(refusal.fields.get("because", reason))
        log.warning(
            "voucher-refused reason=%s address=%s fields=%r hint=%r",
            refusal.reason,
            caller.address,
            refusal.fields,
            hint(reason, device=known.idevid.serial_number, maker=maker),
        )
        if isinstance(refusal, RateLimited):
            return
        manufacturer = await self._manufacturers.entry(known.manufacturer)
        await self._note(known, manufacturer, caller, reason=reason, detail=refusal.detail)
        if self._noted.take(caller.fingerprint, self._clock.monotonic()):
            return
        await self._store.write(partial(_keep, refusal, known, caller, manufacturer if in_record else None))

    async def waiting(self, known: KnownPledge, manufacturer: KnownManufacturer, caller: Caller) -> None:
        """Not refused, but not in either: somebody has to decide."""
        await self._note(known, manufacturer, caller, reason=WAITING, detail="")

    async def _note(
        self, known: KnownPledge, manufacturer: KnownManufacturer, caller: Caller, *, reason: str, detail: str
    ) -> None:
        await self._knocks.note(
            known.idevid.certificate,
            caller,
            reason=reason,
            detail=detail,
            serial=known.idevid.serial_number,
            manufacturer=manufacturer,
        )


def _keep(refusal: Refusal, known: KnownPledge, caller: Caller, manufacturer: KnownManufacturer | None, tx: Tx) -> None:
    """Audit the refusal; with `manufacturer`, also show it in the device's record, which may begin with it."""
    trail.refused(tx, known.idevid, refusal, caller)
    if manufacturer is None:
        return
    record = pledges.by_device(tx, *known.idevid.device)
    facts = trail.shown(refusal)
    if record is None:
        fresh = records.begun(known.idevid, manufacturer.id, caller.fingerprint, now=tx.now)
        pledges.add(tx, records.noted(fresh, "request-refused", now=tx.now, code=refusal.reason, facts=facts))
    elif record.idevid_sha256 == caller.fingerprint:
        noted = records.noted(record, "request-refused", now=tx.now, code=refusal.reason, facts=facts)
        pledges.save(tx, noted, was=record.state)
