"""The audit log for people and tools: newest entries, export."""

from __future__ import annotations

from typing import Any

from appliance import audit
from appliance.store.store import Store
from appliance.store.transaction import Tx

_PAGE = 2000


class AuditReader:
    """Reads the hash-chained log; never writes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def newest(self, *, limit: int, event: str = "") -> list[dict[str, Any]]:
        """The newest entries, oldest of them first; only of one event if it is named."""
        rows = await self._store.read(lambda tx: _newest(tx, limit, event))
        return [row.entry for row in rows]

    async def export(self) -> list[str]:
        """Every entry as a JSON line."""
        return await self._store.read(lambda tx: list(audit.export(audit.rows(tx))))


def _newest(tx: Tx, limit: int, event: str) -> list[audit.AuditRow]:
    last = audit.last_seq(tx)
    found: list[audit.AuditRow] = []
    upper = last
    while upper > 0 and len(found) < limit:
        lower = max(0, upper - _PAGE)
        page = [row for row in audit.page(tx, after=lower, count=upper - lower) if not event or row.event == event]
        found = [*page, *found]
        upper = lower
    return found[-limit:]
