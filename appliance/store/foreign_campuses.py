"""Trust bundles of other campuses, one per origin, as they were taken in."""

from __future__ import annotations

import hashlib
from datetime import datetime

from sqlalchemy import bindparam, delete, insert, select

from appliance.errors import NotFound
from appliance.store import schema
from appliance.store.statements import Row
from appliance.store.transaction import Tx

_c = schema.foreign_campuses.c
_INSERT = insert(schema.foreign_campuses)
_DELETE = delete(schema.foreign_campuses).where(_c.origin == bindparam("origin"))
_GET = select(schema.foreign_campuses).where(_c.origin == bindparam("origin"))
_ALL = select(schema.foreign_campuses).order_by(_c.origin)


def put(tx: Tx, *, origin: str, bundle: str, made_at: datetime) -> str:
    """Keep a bundle in place of an older one of the same origin; its SHA-256 as hex."""
    digest = hashlib.sha256(bundle.encode())
    tx.execute(_DELETE, {"origin": origin})
    tx.execute(
        _INSERT,
        {"origin": origin, "bundle": bundle, "sha256": digest.digest(), "made_at": made_at, "imported_at": tx.now},
    )
    return digest.hexdigest()


def get(tx: Tx, origin: str) -> Row | None:
    """The row of one campus: origin, bundle, sha256 (hex), made_at, imported_at."""
    return tx.one(_GET, {"origin": origin})


def remove(tx: Tx, origin: str) -> None:
    """Forget a campus; NotFound."""
    if tx.execute(_DELETE, {"origin": origin}).rowcount != 1:
        raise NotFound(f"no campus with the origin {origin} is trusted here")


def every(tx: Tx) -> list[Row]:
    """All of them, by origin."""
    return tx.all(_ALL)
