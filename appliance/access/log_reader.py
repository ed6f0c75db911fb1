"""Reads the decision log for people and programs: search, one row, export."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from appliance.access.decision_rows import as_json
from appliance.access.log_export import FORMATS, Line
from appliance.access.service import AccessService
from appliance.clock import Clock
from appliance.errors import NotFound, RequestMalformed
from appliance.store import decisions, owners
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.times import moment
from radius.bypass import canonical_mac
from radius.reasons import REASONS

VERDICTS = ("accept", "guest", "reject")
MAX_PAGE = 10_000
EXPORT_PAGE = 1000
_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)


class DecisionReader:
    """The decision log, page by page."""

    def __init__(
        self, store: Store, access: AccessService, clock: Clock, *, origin: str, sender: str, pen: int
    ) -> None:
        """`origin` is that of identifiers; `sender` and `pen` (private enterprise number) go into exported lines."""
        self._store = store
        self._access = access
        self._clock = clock
        self._origin = origin
        self._sender = sender
        self._pen = pen

    async def newest(self, limit: int) -> list[dict[str, Any]]:
        """The newest rows, oldest of them first."""
        found: list[dict[str, Any]] = (await self.search(limit=limit))["rows"]
        return found

    async def search(
        self,
        *,
        agent: str = "",
        owner: str = "",
        nas: str = "",
        mac: str = "",
        verdict: str = "",
        reason: str = "",
        since: str = "",
        until: str = "",
        before: int = 0,
        after: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """`rows` that fit everything given, oldest first, `next`: what `before` is for older ones (None: none are).

        `agent` is an identifier or UUID, of a proxy too; `owner` a ref or identifier; times are dates, moments, or
        spans back from now as in 7d, 12h. Raises RequestMalformed, NotFound for an owner that does not exist.
        """
        if not 1 <= limit <= MAX_PAGE or before < 0 or after < 0:
            raise RequestMalformed(f"a page has 1 to {MAX_PAGE} rows")
        if verdict and verdict not in VERDICTS:
            raise RequestMalformed(f"a verdict is one of {', '.join(VERDICTS)}")
        if reason and reason not in REASONS:
            raise RequestMalformed("there is no such reason code; the manual lists them")
        now = self._clock.now()
        given = {
            "agent": self._identifier(agent),
            "nas": nas,
            "mac": mac and (canonical_mac(mac) or mac),
            "verdict": verdict,
            "reason": reason,
            "since": moment(since, now, back=True) if since else None,
            "until": moment(until, now, back=True) if until else None,
        }
        values = {name: value for name, value in given.items() if value}
        await self._access.flush()

        def read(tx: Tx) -> tuple[list[dict[str, Any]], int | None]:
            if owner:
                found = owners.find(tx, owner)
                if found is None:
                    raise NotFound("there is no such owner")
                values["owner"] = found.identifier
            return decisions.search(tx, values, before=before, after=after, count=limit)

        rows, further = await self._store.read(read)
        return {"rows": [as_json(row) for row in rows], "next": further}

    async def export(self, format: str, after: int, since: str) -> dict[str, Any]:
        """`lines` of rows with ids above `after` in their order, and `next`: what `after` is for more, None at the end.

        Raises RequestMalformed.
        """
        write = FORMATS.get(format)
        if write is None:
            raise RequestMalformed(f"a format is one of {', '.join(FORMATS)}")
        start = moment(since, self._clock.now(), back=True) if since else _ALWAYS
        await self._access.flush()

        def read(tx: Tx) -> list[dict[str, Any]]:
            first = after or (decisions.first_since(tx, start) if since else 0)
            return decisions.page(tx, after=first, since=start, count=EXPORT_PAGE)

        rows = await self._store.read(read)
        lines = [write(Line(as_json(row), row["time"], self._sender, self._pen)) for row in rows]
        return {"lines": lines, "next": rows[-1]["id"] if len(rows) == EXPORT_PAGE else None}

    def _identifier(self, name: str) -> str:
        return name if "://" in name or not name else f"{self._origin}/agent/{name}"
