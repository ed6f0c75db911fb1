"""Organisational material that owners' gateways sent along with requests: kept as it came, never interpreted (A-36)."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, insert, select

from appliance.store.schema import org_material as table
from appliance.store.transaction import Tx

_ADD = insert(table)
_OF = select(table.c.material).where(table.c.rqh == bindparam("rqh"))


def add(tx: Tx, rqh: str, material: Sequence[str]) -> None:
    """Keep what came with a request; Conflict if something is kept already."""
    tx.execute(_ADD, {"rqh": rqh, "material": list(material), "created_at": tx.now})


def of_request(tx: Tx, rqh: str) -> list[str]:
    """What came with a request."""
    row = tx.one(_OF, {"rqh": rqh})
    return [] if row is None else list(row[0])
