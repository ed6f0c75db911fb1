"""Who is let in, and the proxy identity that goes with it: functions over a Tx, each inside its caller's transaction.

Admission allocates `/proxy/<uuid4>` (W-2). A device keeps its identifier over resets; one that was revoked never comes
back, and a device that is let in again gets a new one (A-108).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum

from appliance import audit, ca
from appliance.audit import Actor, AuditEvent
from appliance.registrar.manufacturers import KnownManufacturer
from appliance.settings import RegistrarSettings
from appliance.store import Row, certificates, listed_devices, proxies
from appliance.store.pledges import PledgeRecord
from appliance.store.proxies import ProxyRow
from appliance.store.transaction import Tx

LDEVID = "ldevid"
"""Profile of a proxy's certificate in the certificates table."""

OnRevoked = Callable[[Tx, ProxyRow, Actor], None]
"""What else ends with a proxy, in the same transaction; other services hang their part in here."""


class Admission(Enum):
    """What the site says to a pledge of a known manufacturer (RFC 8995, section 5.3)."""

    ADMITTED = "admitted"
    WAITING = "waiting"
    UNLISTED = "unlisted"


def decide(tx: Tx, record: PledgeRecord, manufacturer: KnownManufacturer, settings: RegistrarSettings) -> Admission:
    """Whether this pledge is in.

    An active proxy identity is a standing yes and a listed device is expected; on all others the manufacturer's policy
    decides, or the site's where it has none.
    """
    proxy = proxies.get(tx, record.proxy_id) if record.proxy_id else None
    if proxy is not None and not proxy.is_revoked:
        return Admission.ADMITTED if proxy.is_active else Admission.WAITING  # suspended: until it is resumed
    policy = manufacturer.options.admission or settings.admission
    if policy == "automatic" or _is_listed(tx, record, manufacturer):
        return Admission.ADMITTED
    return Admission.WAITING if policy == "manual" else Admission.UNLISTED


def _is_listed(tx: Tx, record: PledgeRecord, manufacturer: KnownManufacturer) -> bool:
    listed = listed_devices.get(tx, manufacturer.id, record.serial)
    return listed is not None and listed.idevid_issuer in (None, record.idevid_issuer)


class ProxyIdentities:
    """Makes and revokes proxy identities."""

    def __init__(self, origin: str, on_revoked: Sequence[OnRevoked] = ()) -> None:
        """`origin` is scheme and trust domain, as `spiffe://campus.example`."""
        self._origin = origin
        self._on_revoked = tuple(on_revoked)

    def ensure(self, tx: Tx, record: PledgeRecord) -> PledgeRecord:
        """The record with an active proxy identity, a new one if it has none."""
        proxy = proxies.get(tx, record.proxy_id) if record.proxy_id else None
        if proxy is not None and not proxy.is_revoked:
            return record
        made = self.make(tx, str(uuid.uuid4()), method="brski", name=record.serial, pledge_id=record.id)
        return replace(record, proxy_id=made.id)

    def make(
        self, tx: Tx, key: str, *, method: str, name: str, pledge_id: str | None = None, label: str = ""
    ) -> ProxyRow:
        """A new proxy identity under the UUID `key`."""
        row = ProxyRow(
            id=key,
            identifier=f"{self._origin}/proxy/{key}",
            pledge_id=pledge_id,
            method=method,
            name=name,
            state=proxies.ACTIVE,
            created_at=tx.now,
            updated_at=tx.now,
            label=label,
        )
        proxies.add(tx, row)
        return row

    def revoke(self, tx: Tx, row: ProxyRow, actor: Actor, *, reason: str = "", request_id: str = "") -> int:
        """Revoke a proxy, its LDevIDs and what hangs on it; how many LDevIDs. Raises Conflict if it was already."""
        proxies.revoke(tx, row)
        live = ldevids_of(tx, row.id)
        for one in live:
            ca.revoke(
                tx, one.issuer_aki, int(one.serial, 16), reason="privilegeWithdrawn", actor=actor, request_id=request_id
            )
        audit.append(
            tx,
            AuditEvent(
                "proxy-revoked",
                actor,
                object=row.identifier,
                reason=reason,
                request_id=request_id,
                fields={"certificates": len(live)},
            ),
        )
        for hook in self._on_revoked:
            hook(tx, row, actor)
        return len(live)


def ldevids_of(tx: Tx, proxy_id: str) -> list[Row]:
    """Pending and issued, unexpired LDevIDs of a proxy."""
    return [row for row in certificates.live(tx, "proxy_id", proxy_id, tx.now) if row.profile == LDEVID]
