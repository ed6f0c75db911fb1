"""What a refused EST request leaves behind: an audit entry each, so many per caller; all others as numbers (E-206).

A stranger without a certificate costs no entry of his own, and nobody fills the log by being refused.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from functools import partial

from appliance import audit
from appliance.audit import AuditEvent
from appliance.clock import Clock
from appliance.registrar import records
from appliance.registrar.caller import Caller
from appliance.registrar.errors import EnrollmentSecretInvalid
from appliance.registrar.hints import hint
from appliance.store import pledges
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.limits import Bucket, Gcra
from est.errors import Refusal
from est.exchange import Call

log = logging.getLogger(__name__)

_NOTED_BUCKET = Bucket(per_second=0.1, burst=20)
_MAX_ADDRESSES = 1024


class EstRefusals:
    """Notes refusals, and counts those that are too many to note."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._noted = Gcra(_NOTED_BUCKET)
        self._counted: Counter[str] = Counter()
        self._addresses: set[str] = set()

    async def note(self, refusal: Refusal, call: Call, caller: Caller, *, is_known: bool) -> None:
        """In the audit log, so many per caller; a stranger counts by address, because certificates cost it nothing."""
        log.info("enrolment-refused reason=%s address=%s hint=%r", refusal.reason, caller.address, hint(refusal.reason))
        who = caller.fingerprint if is_known and caller.fingerprint else caller.address
        is_nobody = not caller.fingerprint and not isinstance(refusal, EnrollmentSecretInvalid)
        if is_nobody or self._noted.take(who, self._clock.monotonic()):
            self.count(refusal.reason, caller.address)
            return
        event = AuditEvent(
            "enrolment-refused",
            caller.as_actor("pledge", ""),
            outcome="refused",
            reason=refusal.reason,
            request_id=caller.request_id,
            fields={"body_sha256": hashlib.sha256(call.body).hexdigest()},
        )
        await self._store.write(partial(_keep, event, refusal, caller))

    def count(self, reason: str, address: str) -> None:
        """One more that has no entry."""
        self._counted[reason] += 1
        if len(self._addresses) < _MAX_ADDRESSES:
            self._addresses.add(address)

    async def flush(self) -> None:
        """One entry for all that were counted since the last."""
        if not self._counted:
            return
        fields = {"reasons": dict(sorted(self._counted.items())), "addresses": len(self._addresses)}
        if len(self._addresses) == 1:
            fields["address"] = next(iter(self._addresses))
        self._counted, self._addresses = Counter(), set()
        event = AuditEvent("requests-refused", audit.APPLIANCE, outcome="refused", fields=fields)
        await self._store.write(partial(audit.append, event=event))


def _keep(event: AuditEvent, refusal: Refusal, caller: Caller, tx: Tx) -> None:
    """Audit it, and show it on the timeline of the device whose IDevID this is."""
    audit.append(tx, event)
    for record in pledges.by_idevid(tx, caller.fingerprint)[-1:] if caller.fingerprint else ():
        noted = records.noted(record, "enrolment-refused", now=tx.now, code=refusal.reason)
        pledges.save(tx, noted, was=record.state)
