"""Who knocked without a known manufacturer: one record per certificate, bounded in number, for administrators to see.

Everything in such a record comes from an unverified certificate. It is kept under the certificate's fingerprint, so it
cannot touch the record of a real device, and nothing but its own removal ever follows from it.
"""

from __future__ import annotations

import logging
import uuid
from collections import OrderedDict

from cryptography import x509

from appliance import audit
from appliance.audit import AuditEvent
from appliance.registrar import records
from appliance.registrar.caller import Caller
from appliance.store import pledges
from appliance.store.pledges import PledgeRecord
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.problems import one_line
from brski.idevid import read_serial_number
from brski.states import RecordState
from est.errors import Refusal

log = logging.getLogger(__name__)

MAX_STRANGERS = 1000
_MAX_REMEMBERED = 4096


class Strangers:
    """The list of who knocked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: OrderedDict[str, None] = OrderedDict()

    async def note(self, certificate: x509.Certificate, refusal: Refusal, caller: Caller) -> None:
        """Remember a certificate once; a full list takes no more."""
        log.info("stranger fingerprint=%s address=%s reason=%s", caller.fingerprint, caller.address, refusal.reason)
        if caller.fingerprint in self._seen:
            return
        self._seen[caller.fingerprint] = None
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)
        await self._store.write(lambda tx: _keep(tx, certificate, refusal, caller))


def _keep(tx: Tx, certificate: x509.Certificate, refusal: Refusal, caller: Caller) -> None:
    key, serial = pledges.stranger_key(caller.fingerprint), _serial(certificate)
    if pledges.by_device(tx, key, serial) is not None or pledges.strangers(tx) >= MAX_STRANGERS:
        return
    because = str(refusal.fields.get("because") or refusal.reason)
    record = PledgeRecord(
        id=str(uuid.uuid4()),
        idevid_issuer=key,
        serial=serial,
        idevid_sha256=caller.fingerprint,
        manufacturer_id=None,
        state=RecordState.SEEN.value,
        created_at=tx.now,
        updated_at=tx.now,
    )
    pledges.add(tx, records.noted(record, "knocked", now=tx.now, code=f"{because}: {_issuer(certificate)}"))
    audit.append(
        tx,
        AuditEvent(
            "voucher-refused",
            caller.as_actor("pledge", ""),
            outcome="refused",
            reason=refusal.reason,
            request_id=caller.request_id,
            fields={"because": because},
        ),
    )


def _serial(certificate: x509.Certificate) -> str:
    try:
        return read_serial_number(certificate)
    except Refusal:
        return ""


def _issuer(certificate: x509.Certificate) -> str:
    try:
        return one_line(certificate.issuer.rfc4514_string(), 120)
    except ValueError:
        return "unreadable issuer"
