"""Audit entries about pledges: serial, IDevID issuer, fingerprint and address stand in every one (B-257)."""

from __future__ import annotations

from typing import Literal

from appliance import audit
from appliance.audit import AuditEvent
from appliance.registrar.caller import Caller
from appliance.store.pledges import PledgeRecord
from appliance.store.transaction import Tx
from brski.idevid import IDevID
from est.errors import Refusal

Outcome = Literal["done", "refused", "failed"]
_SHOWN = frozenset(
    {"claimed", "authenticated", "authority", "status", "manufacturer", "concerns", "address", "because"}
)


def append(
    tx: Tx, event: str, idevid: IDevID, caller: Caller, *, outcome: Outcome = "done", reason: str = "", **facts: object
) -> None:
    """One entry about a device whose certificate was checked; empty facts are left out."""
    issuer, serial = idevid.device
    _append(tx, event, issuer, serial, caller, outcome, reason, facts)


def about(
    tx: Tx,
    event: str,
    record: PledgeRecord,
    caller: Caller,
    *,
    outcome: Outcome = "done",
    reason: str = "",
    **facts: object,
) -> None:
    """One entry about a device by its record."""
    _append(tx, event, record.idevid_issuer, record.serial, caller, outcome, reason, facts)


def refused(tx: Tx, idevid: IDevID, refusal: Refusal, caller: Caller) -> None:
    """The entry of a refused voucher-request, with the facts that an administrator needs to put it right."""
    issuer, serial = idevid.device
    facts: dict[str, object] = {name: value for name, value in refusal.fields.items() if name in _SHOWN}
    _append(tx, "voucher-refused", issuer, serial, caller, "refused", refusal.reason, facts)


def shown(refusal: Refusal) -> dict[str, object]:
    """The facts of a refusal that an administrator needs, as JSON values."""
    return {name: _plain(value) for name, value in refusal.fields.items() if name in _SHOWN and value not in ("", None)}


def told(refusal: Refusal) -> dict[str, object]:
    """`shown`, and in words what was wrong: one reason may have many causes, and each wants another remedy."""
    return {"detail": refusal.detail, **shown(refusal)}


def _append(
    tx: Tx,
    event: str,
    issuer: str,
    serial: str,
    caller: Caller,
    outcome: Outcome,
    reason: str,
    facts: dict[str, object],
) -> None:
    fields = {name: _plain(value) for name, value in facts.items() if value not in ("", None)}
    audit.append(
        tx,
        AuditEvent(
            event,
            caller.as_actor("pledge", serial),
            object=serial,
            outcome=outcome,
            reason=reason,
            request_id=caller.request_id,
            fields={"issuer": issuer, **fields},
        ),
    )


def _plain(value: object) -> object:
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, tuple | list | frozenset):
        return [_plain(one) for one in value]
    return str(value)
