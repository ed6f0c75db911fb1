"""The decision log's writer: decisions are queued in memory and written in batches, never on the decision path."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from json.encoder import encode_basestring as _quoted
from typing import Any

from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.store import decisions
from appliance.store.store import Store
from radius import Decision

_log = logging.getLogger(__name__)

MAX_QUEUED = 20_000
BATCH_SECONDS = 0.2
PRUNE_SECONDS = 3600.0


def row_of(decision: Decision, time: datetime) -> dict[str, Any]:
    """A decision as a row: the whole reason chain goes into `trace`, as JSON text.

    Nothing in a row is a container: thousands of them wait in memory, and the garbage collector must not walk them.
    """
    request = decision.request
    return {
        "time": time,
        "verdict": decision.verdict,
        "vlan": None if decision.vlan is None else str(decision.vlan),
        "reason": decision.reason_code,
        "nas": request.nas or request.nas_address,
        "port": request.nas_port,
        "mac": request.calling_station,
        "session": request.session,
        "agent_id": decision.agent_id,
        "owner_id": decision.owner_id,
        "department": decision.department,
        "serial": None if request.credential is None else f"{request.credential.serial:x}",
        "policy_revision": decision.policy_revision,
        "trace": _trace(decision),
    }


def _trace(decision: Decision) -> str:
    """The reason chain as JSON text, by hand: a general encoder takes longer over it than the decision took."""
    steps = ",".join(
        f'{{"stage":"{stage}","outcome":"{outcome}","evidence":{_quoted(evidence)}}}'
        for stage, outcome, evidence in decision.steps
    )
    request = decision.request
    return (
        f'{{"steps":[{steps}],"rule":{_quoted(decision.rule)},"hint":{_quoted(decision.hint)},'
        f'"txn":{_quoted(decision.txn)},"user_name":{_quoted(request.user_name)},"tls":{_quoted(request.tls_version)}}}'
    )


class DecisionLog:
    """Takes decisions at once and writes them soon; when the store is away it keeps the newest MAX_QUEUED."""

    def __init__(self, store: Store, clock: Clock, keep_days: int) -> None:
        self._store = store
        self._clock = clock
        self._keep = timedelta(days=keep_days)
        self._queue: deque[Mapping[str, Any]] = deque(maxlen=MAX_QUEUED)
        self._pruned_at = float("-inf")

    def put(self, decision: Decision) -> None:
        """Queue one decision; never blocks, never fails."""
        self._queue.append(row_of(decision, self._clock.now()))

    async def run(self) -> None:
        """Writes batches until cancelled; what is queued then is written by flush()."""
        while True:
            await asyncio.sleep(BATCH_SECONDS)
            try:
                await self.flush()
                if self._clock.monotonic() - self._pruned_at > PRUNE_SECONDS:
                    self._pruned_at = self._clock.monotonic()
                    before = self._clock.now() - self._keep
                    await self._store.write(lambda tx: decisions.prune(tx, before))  # noqa: B023
            except ApplianceError as refused:
                _log.warning("decision log not written: %s", refused.detail)
                await asyncio.sleep(1.0)

    async def flush(self) -> None:
        """Writes everything that is queued."""
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), 500))]
            try:
                await self._store.write(lambda tx: decisions.add(tx, batch))  # noqa: B023
            except ApplianceError:
                self._queue.extendleft(reversed(batch))
                raise
