"""Requests that a person decides about, where an EST label says so (RFC 7030, section 4.2.3).

A request is known again by who sends it, label, operation, key and names, never by its connection. It waits until
somebody decides or its time is over; approved, it is good for one certificate.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.errors import Conflict, NotFound, RequestMalformed
from appliance.registrar.applicants import Applicant
from appliance.registrar.errors import EnrollmentDenied
from appliance.registrar.est_policy import EstPolicy
from appliance.store import est_pending
from appliance.store.est_pending import APPROVED, DENIED, ISSUED, PENDING, PendingRequest
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est.csr import Csr
from est.linking import key_and_names_sha256

Json = Mapping[str, Any]
MAX_REASON = 200
MAX_SUBJECT = 256


def find(tx: Tx, applicant: Applicant, csr: Csr, policy: EstPolicy, operation: str) -> PendingRequest | None:
    """What is known of this very request; None when it is new, or its time is over."""
    row = est_pending.of(tx, applicant.proxy_id, policy.label, operation)
    if row is None or row.asked_sha256 != key_and_names_sha256(csr) or row.expires_at <= tx.now or row.state == ISSUED:
        return None
    return row


def is_approved(tx: Tx, applicant: Applicant, csr: Csr, policy: EstPolicy, operation: str) -> bool:
    """Whether somebody said yes; raises EnrollmentDenied where somebody said no."""
    row = find(tx, applicant, csr, policy, operation)
    if row is not None and row.state == DENIED:
        raise EnrollmentDenied(f"this request was denied: {row.reason}")
    return row is not None and row.state == APPROVED


def wait(
    applicant: Applicant, csr: Csr, policy: EstPolicy, operation: str, requester: str, request_id: str, tx: Tx
) -> None:
    """Put the request on the list, if it is not there."""
    if find(tx, applicant, csr, policy, operation) is not None:
        return
    row = PendingRequest(
        id=str(uuid.uuid4()),
        proxy_id=applicant.proxy_id,
        identifier=applicant.identifier,
        label=policy.label,
        operation=operation,
        asked_sha256=key_and_names_sha256(csr),
        key_sha256=csr.key_sha256.hex(),
        subject=csr.subject.rfc4514_string()[:MAX_SUBJECT],
        requester=requester,
        state=PENDING,
        reason="",
        created_at=tx.now,
        updated_at=tx.now,
        expires_at=tx.now + timedelta(hours=policy.rules.approval_hours),
    )
    est_pending.put(tx, row)
    fields = {"proxy": row.identifier, "label": row.label, "operation": operation, "key_sha256": row.key_sha256}
    audit.append(
        tx, AuditEvent("est-request-waits", applicant.actor, object=row.id, request_id=request_id, fields=fields)
    )


def used(tx: Tx, applicant: Applicant, csr: Csr, policy: EstPolicy, operation: str) -> None:
    """The certificate is there: the approval is spent."""
    row = find(tx, applicant, csr, policy, operation)
    if row is not None:
        est_pending.move(tx, row, ISSUED)


class Approvals:
    """What an administrator sees and decides."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def every(self) -> Sequence[Json]:
        """Requests, newest first; those whose time is over say so."""
        return await self._store.read(lambda tx: [_json(tx, row) for row in est_pending.every(tx)])

    async def approve(self, key: str, *, actor: Actor) -> Json:
        """Good for one certificate, from the next time it is asked for. Raises NotFound, Conflict."""
        return await self._decide(key, APPROVED, actor, "")

    async def deny(self, key: str, *, actor: Actor, reason: str) -> Json:
        """The client is told the reason. Raises NotFound, Conflict, RequestMalformed."""
        if not reason or len(reason) > MAX_REASON or not reason.isprintable():
            raise RequestMalformed(f"a reason has 1 to {MAX_REASON} printable characters")
        return await self._decide(key, DENIED, actor, reason)

    async def _decide(self, key: str, state: str, actor: Actor, reason: str) -> Json:
        def write(tx: Tx) -> Json:
            row = est_pending.get(tx, key)
            if row is None:
                raise NotFound("there is no such request", id=key)
            if row.state != PENDING or row.expires_at <= tx.now or not est_pending.move(tx, row, state, reason=reason):
                raise Conflict(f"the request is {_state(tx, row)} already", id=key)
            fields = {"proxy": row.identifier, "label": row.label, "key_sha256": row.key_sha256}
            audit.append(tx, AuditEvent(f"est-request-{state}", actor, object=row.id, reason=reason, fields=fields))
            decided = est_pending.get(tx, key)
            assert decided is not None
            return _json(tx, decided)

        return await self._store.write(write, essential=True)


def _state(tx: Tx, row: PendingRequest) -> str:
    return "expired" if row.state != ISSUED and row.expires_at <= tx.now else row.state


def _json(tx: Tx, row: PendingRequest) -> Json:
    return {
        "id": row.id,
        "proxy": row.identifier,
        "requester": row.requester,
        "label": row.label,
        "operation": row.operation,
        "key_sha256": row.key_sha256,
        "subject": row.subject,
        "state": _state(tx, row),
        "reason": row.reason,
        "created_at": row.created_at.isoformat(timespec="seconds"),
        "expires_at": row.expires_at.isoformat(timespec="seconds"),
    }
