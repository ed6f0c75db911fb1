"""Plan: what a reading of a directory would change, compared with the owners that came from it. Pure.

A person is found again by the directory's own lasting key, never by the login name alone: a name that was given to
somebody else must not inherit the owner. Whoever is missing is suspended and never deleted; owners of other sources
are not touched, and names that meet theirs are conflicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from appliance.store.owners import ABSENT, DISABLED, PRESENT, REVOKED, Owner

ConflictKind = Literal[
    "ref-of-other-source", "ref-of-other-person", "ref-of-revoked", "ref-taken", "key-twice", "key-missing", "no-ref"
]
ChangeKind = Literal["changed", "suspended", "vanished", "returned"]
CONFLICTS: Final[Mapping[ConflictKind, str]] = {
    "ref-of-other-source": "an owner of another source has this ref; `directory adopt` hands it over",
    "ref-of-other-person": "the ref belonged to another entry of this directory; `directory adopt` if both are one",
    "ref-of-revoked": "an owner with this ref was revoked, for good; the account needs another name",
    "ref-taken": "another owner has this ref now; the old one stays until it is free",
    "key-twice": "two entries have one key; the second is passed over",
    "key-missing": "the entry has no usable key; it is passed over",
    "no-ref": "the entry has no usable ref; it is passed over",
}


@dataclass(frozen=True, slots=True)
class Person:
    """What a directory says of one person. `refs` and `names` are candidates, in the directory's order.

    `defects` are values that were dropped because they broke a rule; what is left counts.
    """

    key: str
    refs: tuple[str, ...]
    names: tuple[str, ...]
    departments: tuple[str, ...]
    is_enabled: bool
    defects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One owner that changes: `after` is as it will be, `kind` the strongest of what happens to it."""

    kind: ChangeKind
    before: Owner
    after: Person
    ref: str
    name: str
    departments: tuple[str, ...]
    source_state: str

    @property
    def differences(self) -> dict[str, Any]:
        """What differs, by column: [before, after]."""
        pairs: dict[str, list[Any]] = {
            "ref": [self.before.ref, self.ref],
            "name": [self.before.name, self.name],
            "departments": [list(self.before.departments), list(self.departments)],
            "source_state": [self.before.source_state, self.source_state],
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class Conflict:
    """An entry that is not taken in, and why."""

    kind: ConflictKind
    ref: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reading would do. `registered` is how many owners the source had before; `read` how many entries came."""

    added: tuple[Person, ...] = ()
    changes: tuple[Change, ...] = ()
    unchanged: int = 0
    conflicts: tuple[Conflict, ...] = ()
    defects: tuple[str, ...] = ()
    registered: int = 0
    read: int = 0
    rekeyed: Mapping[str, str] = field(default_factory=dict)
    """Owner identifiers that get this key: handed over by an administrator, found by ref this once."""

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.changes or self.rekeyed)

    def of(self, kind: ChangeKind) -> tuple[Change, ...]:
        return tuple(one for one in self.changes if one.kind == kind)

    @property
    def is_large(self) -> bool:
        """More than a tenth of the owners would change or vanish, nobody is left, or they would double.

        One single change always passes, or nobody could move in a department of five.
        """
        touched = len(self.changes)
        if self.registered and not self.read:
            return True
        if touched > 1 and touched * 10 > self.registered:
            return True
        return bool(self.registered) and len(self.added) > max(self.registered, 10)


def make_plan(source: str, people: Sequence[Person], owners: Iterable[Owner]) -> Plan:
    """Compare what `source` says with every owner that is registered, whatever its source."""
    everybody = list(owners)
    mine = [one for one in everybody if one.source == source and one.state != REVOKED]
    by_key = {one.source_key: one for one in everybody if one.source == source and one.source_key}
    keyless = {one.ref: one for one in mine if not one.source_key}
    taken = {one.ref.casefold(): one for one in everybody}
    seen: set[str] = set()
    found: set[str] = set()
    added: list[Person] = []
    changes: list[Change] = []
    conflicts: list[Conflict] = []
    rekeyed: dict[str, str] = {}
    unchanged = 0
    strangers: list[Person] = []
    defects = [f"{_shown(one)}: {what}" for one in people for what in one.defects]
    for person in people:
        if not person.key or person.key in seen:
            conflicts.append(Conflict("key-twice" if person.key else "key-missing", _shown(person)))
            continue
        seen.add(person.key)
        owner = by_key.get(person.key)
        if owner is None:
            strangers.append(person)
            continue
        found.add(owner.identifier)
        if owner.state == REVOKED:  # for good: whatever the directory says
            unchanged += 1
            continue
        ref = owner.ref
        if person.refs and owner.ref not in person.refs:
            holder = taken.get(person.refs[0].casefold())
            if holder is None or holder.identifier == owner.identifier:
                ref = person.refs[0]
                taken[ref.casefold()] = owner
            else:
                conflicts.append(Conflict("ref-taken", person.refs[0]))
        change = _change(owner, person, ref)
        if change is None:
            unchanged += 1
        else:
            changes.append(change)
    for person in strangers:
        if not person.refs:
            conflicts.append(Conflict("no-ref", person.key))
            continue
        ref = person.refs[0]
        waiting = next((keyless[one] for one in person.refs if one in keyless), None)
        if waiting is not None and waiting.identifier not in found:
            found.add(waiting.identifier)
            rekeyed[waiting.identifier] = person.key
            change = _change(waiting, person, waiting.ref)
            if change is None:
                unchanged += 1
            else:
                changes.append(change)
            continue
        holder = taken.get(ref.casefold())
        if holder is not None and holder.state == REVOKED:
            conflicts.append(Conflict("ref-of-revoked", ref))
        elif holder is not None:
            conflicts.append(Conflict("ref-of-other-person" if holder.source == source else "ref-of-other-source", ref))
        elif person.is_enabled:  # whoever is disabled and unknown is nobody's owner
            taken[ref.casefold()] = _PLACE
            added.append(person)
    for owner in mine:
        if owner.identifier not in found and owner.source_state != ABSENT:
            nobody = Person(owner.source_key, (), (), (), is_enabled=False)
            changes.append(Change("vanished", owner, nobody, owner.ref, owner.name, owner.departments, ABSENT))
    return Plan(
        tuple(added),
        tuple(changes),
        unchanged,
        tuple(conflicts),
        tuple(defects),
        sum(one.source_state != ABSENT for one in mine),
        len(people),
        rekeyed,
    )


def _change(owner: Owner, person: Person, ref: str) -> Change | None:
    name = owner.name if owner.name in person.names or not person.names else person.names[0]
    departments = owner.departments if set(owner.departments) == set(person.departments) else person.departments
    said = PRESENT if person.is_enabled else DISABLED
    if (ref, name, departments, said) == (owner.ref, owner.name, owner.departments, owner.source_state):
        return None
    kind: ChangeKind = "changed"
    if said != owner.source_state:
        kind = "returned" if said == PRESENT else "suspended"
    return Change(kind, owner, person, ref, name, departments, said)


def _shown(person: Person) -> str:
    return person.refs[0] if person.refs else person.key or "(an entry without key and ref)"


def _place() -> Owner:
    from datetime import UTC, datetime

    at = datetime(1970, 1, 1, tzinfo=UTC)
    return Owner("", "", "", "", "", "", "", at, at)


_PLACE: Final = _place()
"""Stands for an owner that this very plan adds."""
