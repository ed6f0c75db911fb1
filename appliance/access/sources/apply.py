"""A plan becomes rows: every change with its audit entry and outbox row, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.access import owner_changes as changes
from appliance.access.sources.plan import Plan
from appliance.audit import Actor
from appliance.errors import Conflict
from appliance.store import owners
from appliance.store.transaction import Tx

_SHOWN = 200
_KIND = "person"


def apply(tx: Tx, plan: Plan, *, source: str, origin: str, actor: Actor) -> None:
    """Do what the plan says; raises Conflict if the owners are not those that it was made for."""
    for identifier, key in plan.rekeyed.items():
        owner = owners.by_identifier(tx, identifier)
        if owner is None:
            raise Conflict("an owner of the plan is gone")
        changes.say(tx, owner, owner.source_state, actor=actor, source_key=key)
    for change in plan.changes:
        owner = owners.by_identifier(tx, change.before.identifier)
        if owner is None:
            raise Conflict("an owner of the plan is gone")
        after = changes.alter(
            tx, owner, ref=change.ref, name=change.name, kind=owner.kind, departments=change.departments, actor=actor
        )
        changes.say(tx, after, change.source_state, actor=actor)
    added = [
        changes.new_owner(
            origin,
            tx.now,
            ref=person.refs[0],
            name=person.names[0] if person.names else person.refs[0],
            kind=_KIND,
            departments=person.departments,
            source=source,
            source_key=person.key,
        )
        for person in plan.added
    ]
    changes.mint_many(tx, added, actor=actor)


def counts(plan: Plan) -> dict[str, int]:
    """How many of each, for log, audit and status."""
    return {
        "read": plan.read,
        "added": len(plan.added),
        **{kind: len(plan.of(kind)) for kind in ("changed", "suspended", "vanished", "returned")},
        "unchanged": plan.unchanged,
        "conflicts": len(plan.conflicts),
        "defects": len(plan.defects),
    }


def shown(plan: Plan) -> Mapping[str, Any]:
    """A plan as a person reads it: the counts, and the first rows of each."""
    return {
        **counts(plan),
        "rows": {
            "added": [{"ref": one.refs[0], "departments": list(one.departments)} for one in plan.added[:_SHOWN]],
            **{
                kind: [{"ref": one.before.ref, **one.differences} for one in plan.of(kind)[:_SHOWN]]
                for kind in ("changed", "suspended", "vanished", "returned")
            },
            "conflicts": [{"kind": one.kind, "ref": one.ref} for one in plan.conflicts[:_SHOWN]],
            "defects": list(plan.defects[:_SHOWN]),
        },
    }
