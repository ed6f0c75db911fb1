"""Campuses that are trusted beside our own: their trust bundles, taken in by an administrator, one per origin.

A bundle is an anchor: whoever brings it must have it from the other campus itself. A newer one of the same anchors
replaces an older one; other anchors or WIT keys under a known origin are a new decision and need to be confirmed.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from cryptography.hazmat.primitives import hashes

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.binding import bundle, jws
from appliance.binding.bundle import TrustBundle
from appliance.errors import ApplianceError, Conflict, NotFound
from appliance.store import foreign_campuses
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est.keys import is_ec


class TrustChangeUnconfirmed(ApplianceError):
    """The bundle has other anchors, WIT keys or names than the known one of this origin: compare, then confirm."""

    reason: ClassVar[str] = "trust-change-unconfirmed"


class ForeignTrust:
    """What `appliance trust` asks."""

    def __init__(self, store: Store, origin: str) -> None:
        """`origin` is our own, which nobody's file may redefine."""
        self._store = store
        self._origin = origin

    async def import_(self, text: str, actor: Actor, *, confirm: bool) -> dict[str, Any]:
        """Take a bundle in. Raises Malformed, Conflict (our own origin, or older than the known one),
        TrustChangeUnconfirmed."""
        found = bundle.read(text)
        if found.domain.origin == self._origin:
            raise Conflict("this is our own origin; what we trust of ourselves comes from our own CAs")

        def take(tx: Tx) -> str:
            known = foreign_campuses.get(tx, found.domain.origin)
            if known is not None:
                if found.made_at < known.made_at:
                    raise Conflict(f"a newer bundle of this origin is known, made {known.made_at.isoformat()}")
                if not confirm and _keys(bundle.read(known.bundle)) != _keys(found):
                    raise TrustChangeUnconfirmed(
                        "anchors, WIT keys or names differ from the known ones; compare the fingerprints with the "
                        "other campus, then repeat with --confirm"
                    )
            digest = foreign_campuses.put(tx, origin=found.domain.origin, bundle=text, made_at=found.made_at)
            fields = {"sha256": digest, "anchors": _fingerprints(found), "confirmed": confirm}
            audit.append(tx, AuditEvent("campus-trusted", actor, object=found.domain.origin, fields=fields))
            return digest

        digest = await self._store.write(take)
        return {**_shown(found), "sha256": digest}

    async def every(self) -> list[dict[str, Any]]:
        """Every campus: origin, anchors, owners, made_at, imported_at."""
        rows = await self._store.read(foreign_campuses.every)
        return [
            {**_shown(bundle.read(row.bundle)), "sha256": row.sha256, "imported_at": row.imported_at.isoformat()}
            for row in rows
        ]

    async def bundle(self, origin: str) -> str:
        """The document of one campus; NotFound."""
        row = await self._store.read(partial(foreign_campuses.get, origin=origin))
        if row is None:
            raise NotFound(f"no campus with the origin {origin} is trusted here")
        return str(row.bundle)

    async def bundles(self) -> list[str]:
        """The documents of all of them."""
        return [row.bundle for row in await self._store.read(foreign_campuses.every)]

    async def remove(self, origin: str, actor: Actor) -> dict[str, Any]:
        """Trust a campus no more; NotFound."""

        def forget(tx: Tx) -> None:
            foreign_campuses.remove(tx, origin)
            audit.append(tx, AuditEvent("campus-distrusted", actor, object=origin))

        await self._store.write(forget)
        return {"removed": origin}


def _shown(found: TrustBundle) -> dict[str, Any]:
    return {
        "origin": found.domain.origin,
        "anchors": _fingerprints(found),
        "wit_keys": len(found.wit_keys),
        "owners": len(found.owners),
        "made_at": found.made_at.isoformat(),
    }


def _fingerprints(found: TrustBundle) -> list[str]:
    return sorted(one.fingerprint(hashes.SHA256()).hex() for one in found.domain.anchors)


def _keys(found: TrustBundle) -> tuple[list[str], list[str], str, str, str]:
    wit = [jws.jkt(key) for key in found.wit_keys.values() if is_ec(key)]
    return _fingerprints(found), sorted(wit), found.issuer, found.arc, found.domain.server_id
