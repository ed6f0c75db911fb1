"""The few ways in which an owner's row changes, each with its audit entry, whoever is behind it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.errors import ApplianceError, Conflict
from appliance.store import owners
from appliance.store.owners import Owner
from appliance.store.transaction import Tx


class OwnerOfOtherSource(ApplianceError):
    """The owner comes from another source, which would change it back; `directory adopt` hands it over."""

    reason: ClassVar[str] = "owner-of-other-source"


class OwnerHeldBySource(ApplianceError):
    """The owner's source has disabled or lost it; only the source brings it back."""

    reason: ClassVar[str] = "owner-held-by-source"


def mint(
    tx: Tx,
    origin: str,
    *,
    ref: str,
    name: str,
    kind: str,
    departments: Sequence[str],
    actor: Actor,
    source: str = owners.LOCAL,
    source_key: str = "",
    source_state: str = owners.PRESENT,
) -> Owner:
    """A new owner with an identifier of its own; raises Conflict if the ref is taken."""
    owner = new_owner(
        origin,
        tx.now,
        ref=ref,
        name=name,
        kind=kind,
        departments=departments,
        source=source,
        source_key=source_key,
        source_state=source_state,
    )
    owners.add(tx, owner)
    tell_added(tx, owner, actor)
    return owner


def mint_many(tx: Tx, added: Sequence[Owner], *, actor: Actor) -> None:
    """Many new owners at once; raises Conflict if a ref is taken."""
    owners.add_many(tx, added)
    for owner in added:
        tell_added(tx, owner, actor)


def new_owner(
    origin: str,
    now: datetime,
    *,
    ref: str,
    name: str,
    kind: str,
    departments: Sequence[str],
    source: str,
    source_key: str,
    source_state: str = owners.PRESENT,
) -> Owner:
    """An owner with an identifier of its own, not stored yet."""
    key = str(uuid.uuid4())
    return Owner(
        id=key,
        identifier=f"{origin}/owner/{key}",
        ref=ref,
        name=name,
        kind=kind,
        department=departments[0] if departments else "",
        state=owners.ACTIVE if source_state == owners.PRESENT else owners.SUSPENDED,
        created_at=now,
        updated_at=now,
        more_departments=tuple(departments[1:]),
        source=source,
        source_key=source_key,
        source_state=source_state,
    )


def tell_added(tx: Tx, owner: Owner, actor: Actor) -> None:
    """The audit entry of a new owner."""
    fields: dict[str, Any] = {"ref": owner.ref, "kind": owner.kind, "department": owner.department}
    if owner.more_departments:
        fields["more_departments"] = list(owner.more_departments)
    if owner.source != owners.LOCAL:
        fields |= {"source": owner.source, "state": owner.state}
    audit.append(tx, AuditEvent("owner-added", actor, owner.identifier, fields=fields))


def alter(tx: Tx, owner: Owner, *, ref: str, name: str, kind: str, departments: Sequence[str], actor: Actor) -> Owner:
    """Give an owner another ref, name, kind or departments; nothing happens if they are the same. Raises Conflict."""
    after = replace(
        owner,
        ref=ref,
        name=name,
        kind=kind,
        department=departments[0] if departments else "",
        more_departments=tuple(departments[1:]),
    )
    if after == owner:
        return owner
    after = replace(after, updated_at=tx.now)
    owners.change(tx, after)
    changed = [one for one in ("ref", "name", "kind", "department") if getattr(owner, one) != getattr(after, one)]
    moved = owner.department != after.department
    fields: dict[str, Any] = {
        "ref": after.ref,
        "changed": sorted(changed),
        "department": [owner.department, after.department] if moved else None,
    }
    if owner.more_departments != after.more_departments:
        fields["more_departments"] = [list(owner.more_departments), list(after.more_departments)]
    if owner.ref != after.ref:
        fields["old_ref"] = owner.ref
    audit.append(tx, AuditEvent("owner-changed", actor, owner.identifier, fields=fields))
    return after


def say(tx: Tx, owner: Owner, source_state: str, *, actor: Actor, **more: Any) -> Owner:
    """Take in what an owner's source says of it now; `more` may change source and key. Raises Conflict."""
    if source_state == owner.source_state and not more:
        return owner
    return _settle(tx, owner, actor, {"source": owner.source, "said": source_state}, source_state=source_state, **more)


def hold(tx: Tx, owner: Owner, *, actor: Actor) -> Owner:
    """An administrator suspends an owner. Raises Conflict if one did so before."""
    if owner.held or owner.state == owners.REVOKED:
        raise Conflict(f"the owner is {owner.state}")
    after = owners.settle(tx, owner, held=True)
    audit.append(tx, AuditEvent("owner-suspended", actor, owner.identifier, fields={"ref": owner.ref}))
    return after


def release(tx: Tx, owner: Owner, *, actor: Actor) -> Owner:
    """An administrator ends his suspension. Raises Conflict, and OwnerHeldBySource if the source says no as well."""
    if owner.state != owners.SUSPENDED:
        raise Conflict(f"the owner is {owner.state}")
    if owner.source_state != owners.PRESENT:
        raise OwnerHeldBySource(f"in source {owner.source} the owner is {owner.source_state}")
    return _settle(tx, owner, actor, {}, held=False)


def _settle(tx: Tx, owner: Owner, actor: Actor, fields: dict[str, Any], **changes: Any) -> Owner:
    after = owners.settle(tx, owner, **changes)
    if after.state != owner.state:
        event = "owner-resumed" if after.state == owners.ACTIVE else "owner-suspended"
        audit.append(tx, AuditEvent(event, actor, owner.identifier, fields={"ref": owner.ref, **fields}))
    return after
