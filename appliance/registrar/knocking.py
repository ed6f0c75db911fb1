"""Who knocked and was not let in: strangers, refused devices, devices that wait, for administrators to act on.

Everything a stranger's row says comes from an unverified certificate. The list takes a thousand strangers, fifty of one
address; who knocked longest ago gives way. Devices of known manufacturers never do: they cannot be invented. Repeated
knocks are counted in memory and written now and then, so that a flood costs no disk.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from cryptography import x509

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.clock import Clock
from appliance.errors import NotFound
from appliance.registrar.caller import Caller
from appliance.registrar.hints import hint
from appliance.registrar.manufacturers import KnownManufacturer
from appliance.store import knocks, manufacturers
from appliance.store.knocks import Knock
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.limits import Bucket, Gcra
from appliance.web.problems import one_line
from brski.idevid import SerialSource, read_serial_number
from est.errors import Refusal

log = logging.getLogger(__name__)

MAX_STRANGERS = 1000
MAX_PER_ADDRESS = 50
WAITING = "waiting-for-admission"
# New certificates of one address that are written down; what comes faster is in the log file alone.
ADDRESS_BUCKET = Bucket(per_second=0.5, burst=30)
QUIET_SECONDS = 30.0
_MAX_REMEMBERED = 4096

Json = Mapping[str, Any]


class Knocks:
    """The list of who knocked."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._new = Gcra(ADDRESS_BUCKET)
        self._written: OrderedDict[str, float] = OrderedDict()
        self._pending: OrderedDict[str, Knock] = OrderedDict()

    async def note(
        self,
        certificate: x509.Certificate,
        caller: Caller,
        *,
        reason: str,
        detail: str = "",
        serial: str = "",
        manufacturer: KnownManufacturer | None = None,
    ) -> None:
        """Remember one knock; `manufacturer` is given when its anchors vouch for the certificate."""
        now = self._clock.monotonic()
        last = self._written.get(caller.fingerprint)
        if last is None and manufacturer is None and self._new.take(network_of(caller.address), now):
            return
        moment = self._clock.now()
        before = self._pending.pop(caller.fingerprint, None)
        knock = Knock(
            fingerprint=caller.fingerprint,
            serial=serial or _serial(certificate),
            maker=manufacturer.facts.name if manufacturer else _issuer(certificate),
            manufacturer_id=manufacturer.id if manufacturer else None,
            address=caller.address,
            reason=reason,
            detail=one_line(detail, 200),
            times=1 + (before.times if before else 0),
            first_seen=before.first_seen if before else moment,
            last_seen=moment,
        )
        if last is not None and now - last < QUIET_SECONDS:
            self._pending[caller.fingerprint] = knock
            return
        self._wrote(caller.fingerprint, now)
        await self._store.write(partial(_keep, [knock], caller))

    def forget_pending(self, fingerprint: str) -> None:
        """The device is in: what was not written yet is not written any more."""
        self._pending.pop(fingerprint, None)
        self._written.pop(fingerprint, None)

    async def flush(self) -> None:
        """Write what was counted in memory."""
        pending, self._pending = self._pending, OrderedDict()
        if not pending:
            return
        now = self._clock.monotonic()
        for fingerprint in pending:
            self._wrote(fingerprint, now)
        await self._store.write(partial(_keep, list(pending.values()), None))

    async def every(self) -> list[Json]:
        """The list, who knocked last first, each with what to do about it."""
        await self.flush()

        def read(tx: Tx) -> list[Json]:
            makers = {row.id: row.name for row in manufacturers.every(tx)}
            return [_as_json(one, makers) for one in knocks.every(tx)]

        return await self._store.read(read)

    async def forget(self, fingerprint: str, *, actor: Actor) -> Json:
        """Remove one from the list; it comes back when it knocks again. Raises NotFound."""
        await self.flush()

        def write(tx: Tx) -> Json:
            found = knocks.get(tx, fingerprint.lower())
            if found is None:
                raise NotFound("nobody with this fingerprint has knocked", fingerprint=fingerprint)
            knocks.remove(tx, found.fingerprint)
            audit.append(tx, AuditEvent("knock-forgotten", actor, object=found.fingerprint))
            return _as_json(found, {})

        shown = await self._store.write(write)
        self.forget_pending(fingerprint.lower())
        return shown

    def _wrote(self, fingerprint: str, now: float) -> None:
        self._written[fingerprint] = now
        self._written.move_to_end(fingerprint)
        while len(self._written) > _MAX_REMEMBERED:
            gone, _ = self._written.popitem(last=False)
            self._pending.pop(gone, None)


def network_of(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 of an IPv6 one, whose owner has all the others too."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _keep(found: list[Knock], caller: Caller | None, tx: Tx) -> None:
    for knock in found:
        is_new = knocks.get(tx, knock.fingerprint) is None
        kept = replace(knock, address=network_of(knock.address)) if knock.is_stranger else knock
        if is_new and knock.is_stranger:
            knocks.make_room(tx, address=kept.address, per_address=MAX_PER_ADDRESS, in_all=MAX_STRANGERS)
        knocks.put(tx, kept)
        if is_new and knock.is_stranger and caller is not None:
            audit.append(
                tx,
                AuditEvent(
                    "voucher-refused",
                    caller.as_actor("pledge", ""),
                    outcome="refused",
                    reason=knock.reason,
                    request_id=caller.request_id,
                    fields={"because": knock.detail},
                ),
            )


def _as_json(knock: Knock, makers: Mapping[str, str]) -> Json:
    maker = makers.get(knock.manufacturer_id or "", "")
    nearest = next((name for name in makers.values() if knock.detail.endswith(f"of {name}")), "")
    because = knock.detail.partition(" ")[0] if knock.is_stranger else ""
    named = knock.serial if maker and knock.serial else knock.fingerprint
    return {
        "fingerprint": knock.fingerprint,
        "serial": knock.serial,
        "maker": maker or knock.maker,
        "known": bool(maker),
        "reason": knock.reason,
        "detail": knock.detail,
        "address": knock.address,
        "first_seen": knock.first_seen.isoformat(timespec="seconds"),
        "last_seen": knock.last_seen.isoformat(timespec="seconds"),
        "times": knock.times,
        "what_to_do": hint(knock.reason, device=named, maker=maker or nearest, because=because),
    }


def stranger_detail(refusal: Refusal) -> str:
    """Why no known manufacturer vouches for a certificate, and which came nearest."""
    because = str(refusal.fields.get("because") or refusal.reason)
    nearest = str(refusal.fields.get("nearest") or "")
    return f"{because} of {nearest}" if nearest else because


def _serial(certificate: x509.Certificate) -> str:
    for source in SerialSource:
        try:
            return read_serial_number(certificate, source)
        except Refusal:
            continue
    return ""


def _issuer(certificate: x509.Certificate) -> str:
    try:
        return one_line(certificate.issuer.rfc4514_string(), 120)
    except ValueError:
        return "unreadable issuer"
