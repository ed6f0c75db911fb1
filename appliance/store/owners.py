"""Owners, their approval keys and the proxies that may submit for them.

Rows refer to an owner or proxy by its identifier (the URI), never by its UUID alone. An owner is never deleted and a
key never forgotten, so that neither is given to somebody else later (A-108, A-1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, insert, or_, select, update

from appliance.errors import Conflict
from appliance.store import schema
from appliance.store.columns import to_micros
from appliance.store.transaction import Tx

ACTIVE, SUSPENDED, REVOKED, RETIRED = "active", "suspended", "revoked", "retired"
LOCAL, LDAP, SCIM = "local", "ldap", "scim"
"""Sources of owners: administrators and their files, an LDAP directory, an identity provider."""
PRESENT, DISABLED, ABSENT = "present", "disabled", "absent"
"""What an owner's source says of it."""
TOPIC, KEY_TOPIC = "owner", "owner-key"

_o = schema.owners
_k = schema.owner_keys
_p = schema.owner_proxies

_ADD = insert(_o)
_FIND = select(_o).where(or_(_o.c.identifier == bindparam("name"), _o.c.ref == bindparam("name")))
_BY_LOWER = select(_o).where(func.lower(_o.c.ref) == bindparam("ref")).order_by(_o.c.ref)
_BY_IDENTIFIER = select(_o).where(_o.c.identifier == bindparam("identifier"))
_PAGE = select(_o).where(_o.c.ref > bindparam("after")).order_by(_o.c.ref).limit(bindparam("count"))
_CHANGE = (
    update(_o)
    .where(_o.c.identifier == bindparam("key"), _o.c.state != REVOKED)
    .values(
        ref=bindparam("new_ref"),
        name=bindparam("new_name"),
        kind=bindparam("new_kind"),
        department=bindparam("new_department"),
        more_departments=bindparam("new_more"),
        updated_at=bindparam("at"),
    )
)
_MOVE_STATE = (
    update(_o)
    .where(_o.c.identifier == bindparam("key"), _o.c.state == bindparam("was"))
    .values(state=bindparam("new_state"), updated_at=bindparam("at"))
)
_SETTLE = (
    update(_o)
    .where(_o.c.identifier == bindparam("key"), _o.c.state == bindparam("was"))
    .values(
        state=bindparam("new_state"),
        source=bindparam("new_source"),
        source_key=bindparam("new_key"),
        source_state=bindparam("new_source_state"),
        held=bindparam("new_held"),
        updated_at=bindparam("at"),
    )
)
_BY_ID = select(_o).where(_o.c.id == bindparam("id"))
_SOURCES = select(_o.c.source, _o.c.source_state, func.count().label("count")).group_by(_o.c.source, _o.c.source_state)
_ADD_KEY = insert(_k)
_KEY = select(_k).where(_k.c.jkt == bindparam("jkt"))
_KEYS = select(_k).where(_k.c.owner_id == bindparam("owner")).order_by(_k.c.created_at, _k.c.jkt)
_ALL_KEYS = select(_k).order_by(_k.c.owner_id, _k.c.created_at, _k.c.jkt)
_END_KEY = (
    update(_k)
    .where(_k.c.jkt == bindparam("key"), _k.c.state != REVOKED)
    .values(state=bindparam("new_state"), not_after=bindparam("end"))
)
_MOVE_KEY = (
    update(_k).where(_k.c.jkt == bindparam("key"), _k.c.state == bindparam("was")).values(state=bindparam("new_state"))
)
_COUNT = (
    update(_k)
    .where(_k.c.jkt == bindparam("key"))
    .values(sign_count=bindparam("new_count"), counted_iat=bindparam("new_iat"))
)
_ALLOW = insert(_p)
_ALLOWED = select(_p.c.proxy_id).where(_p.c.owner_id == bindparam("owner")).order_by(_p.c.proxy_id)


@dataclass(frozen=True, slots=True)
class Owner:
    """One owner: `kind` is person, device or policy, `state` active, suspended or revoked; `department` may be "".

    `source` says who tells us about it, `source_key` is its lasting name there, `source_state` what was said last;
    `held` is an administrator's own suspension. An owner is active when its source has it and nobody holds it.
    """

    id: str
    identifier: str
    ref: str
    name: str
    kind: str
    department: str
    state: str
    created_at: datetime
    updated_at: datetime
    more_departments: tuple[str, ...] = ()
    source: str = LOCAL
    source_key: str = ""
    source_state: str = PRESENT
    held: bool = False

    @property
    def departments(self) -> tuple[str, ...]:
        """All of them, the first first."""
        return (self.department, *self.more_departments) if self.department else ()


@dataclass(frozen=True, slots=True)
class Key:
    """One approval key of an owner (`owner_id` is the identifier). `state` is active, suspended, retired or revoked."""

    jkt: str
    owner_id: str
    spki: bytes
    protection: str
    state: str
    not_before: datetime | None
    not_after: datetime | None
    statement_sha256: str
    created_at: datetime
    rp_id: str | None = None
    """Of passkeys: where it is registered, its credential id, the highest counter seen and when that was signed."""
    origin: str | None = None
    credential: str | None = None
    sign_count: int | None = None
    counted_iat: int | None = None


def add(tx: Tx, owner: Owner) -> None:
    """Insert and tell the outbox; Conflict if the ref is taken."""
    tx.execute(_ADD, _values(owner))
    _emit(tx, owner)


def add_many(tx: Tx, added: Sequence[Owner]) -> None:
    """Insert many with one statement and tell the outbox of each; Conflict if a ref is taken."""
    tx.execute_many(_ADD, [_values(owner) for owner in added])
    for owner in added:
        _emit(tx, owner)


def find(tx: Tx, name: str) -> Owner | None:
    """The owner with this ref or identifier."""
    return _maybe(tx.one(_FIND, {"name": name}))


def by_ref_in_any_case(tx: Tx, ref: str) -> list[Owner]:
    """Owners whose ref differs from this one in case at most."""
    return [_read(row) for row in tx.all(_BY_LOWER, {"ref": ref.lower()})]


def by_identifier(tx: Tx, identifier: str) -> Owner | None:
    """The owner with this identifier."""
    return _maybe(tx.one(_BY_IDENTIFIER, {"identifier": identifier}))


def by_id(tx: Tx, key: str) -> Owner | None:
    """The owner with this UUID."""
    return _maybe(tx.one(_BY_ID, {"id": key}))


def counts(tx: Tx) -> dict[str, dict[str, int]]:
    """How many owners each source has, by what it says of them."""
    found: dict[str, dict[str, int]] = {}
    for row in tx.all(_SOURCES):
        found.setdefault(row.source, {})[row.source_state] = row.count
    return found


def page(tx: Tx, *, after: str = "", count: int = 1000) -> list[Owner]:
    """Owners in the order of their refs, those behind `after`."""
    return [_read(row) for row in tx.all(_PAGE, {"after": after, "count": count})]


def every(tx: Tx) -> list[Owner]:
    """All owners, read in pages."""
    found: list[Owner] = []
    while rows := page(tx, after=found[-1].ref if found else ""):
        found += rows
    return found


def change(tx: Tx, owner: Owner) -> None:
    """Write ref, name, kind and departments and tell the outbox; Conflict if the owner is revoked or the ref taken."""
    values = {
        "new_ref": owner.ref,
        "new_name": owner.name,
        "new_kind": owner.kind,
        "new_department": owner.department,
        "new_more": list(owner.more_departments) or None,
    }
    if tx.execute(_CHANGE, {**values, "key": owner.identifier, "at": tx.now}).rowcount != 1:
        raise Conflict("the owner is revoked")
    _emit(tx, owner)


def set_state(tx: Tx, owner: Owner, state: str) -> Owner:
    """Move from the state that `owner` shows to another and tell the outbox; Conflict if it is not there any more."""
    values = {"key": owner.identifier, "was": owner.state, "new_state": state, "at": tx.now}
    if tx.execute(_MOVE_STATE, values).rowcount != 1:
        raise Conflict(f"the owner is not {owner.state} any more")
    moved = replace(owner, state=state, updated_at=tx.now)
    _emit(tx, moved)
    return moved


def settle(tx: Tx, owner: Owner, **changes: Any) -> Owner:
    """Change what a source or an administrator says of an owner; its state follows from both, and the outbox is told.

    `changes` are of source, source_key, source_state and held. Conflict if the owner's state is another by now, or
    revoked.
    """
    if owner.state == REVOKED:
        raise Conflict("the owner is revoked")
    after = replace(owner, **changes, updated_at=tx.now)
    after = replace(after, state=ACTIVE if after.source_state == PRESENT and not after.held else SUSPENDED)
    values = {
        "key": owner.identifier,
        "was": owner.state,
        "new_state": after.state,
        "new_source": after.source,
        "new_key": after.source_key or None,
        "new_source_state": after.source_state,
        "new_held": int(after.held),
        "at": tx.now,
    }
    if tx.execute(_SETTLE, values).rowcount != 1:
        raise Conflict(f"the owner is not {owner.state} any more")
    _emit(tx, after)
    return after


def add_key(tx: Tx, key: Key) -> None:
    """Register a key and tell the outbox; Conflict if any owner has or had it."""
    tx.execute(
        _ADD_KEY,
        {
            "jkt": key.jkt,
            "owner_id": key.owner_id,
            "spki": key.spki,
            "protection": key.protection,
            "state": key.state,
            "not_before": key.not_before,
            "not_after": key.not_after,
            "statement_sha256": key.statement_sha256,
            "created_at": key.created_at,
            "rp_id": key.rp_id,
            "origin": key.origin,
            "credential": key.credential,
            "sign_count": key.sign_count,
            "counted_iat": key.counted_iat,
        },
    )
    _emit_key(tx, key.jkt, key.owner_id, key.state)


def key(tx: Tx, jkt: str) -> Key | None:
    """The key with this thumbprint, whoever has it."""
    row = tx.one(_KEY, {"jkt": jkt})
    return None if row is None else Key(*row)


def keys(tx: Tx, owner_id: str) -> list[Key]:
    """An owner's keys, oldest first."""
    return [Key(*row) for row in tx.all(_KEYS, {"owner": owner_id})]


def all_keys(tx: Tx) -> dict[str, list[Key]]:
    """Every key, by owner."""
    found: dict[str, list[Key]] = {}
    for row in tx.all(_ALL_KEYS):
        found.setdefault(row.owner_id, []).append(Key(*row))
    return found


def end_key(tx: Tx, ended: Key, *, state: str, at: datetime) -> None:
    """End a key's life at `at` and tell the outbox; Conflict if it is revoked."""
    if tx.execute(_END_KEY, {"key": ended.jkt, "new_state": state, "end": at}).rowcount != 1:
        raise Conflict("the key is revoked already")
    _emit_key(tx, ended.jkt, ended.owner_id, state)


def move_key(tx: Tx, key: Key, state: str) -> None:
    """Move a key from the state that it shows to another and tell the outbox; Conflict if it is not there any more."""
    if tx.execute(_MOVE_KEY, {"key": key.jkt, "was": key.state, "new_state": state}).rowcount != 1:
        raise Conflict(f"the key is not {key.state} any more")
    _emit_key(tx, key.jkt, key.owner_id, state)


def count_signature(tx: Tx, jkt: str, count: int, iat: int) -> bool:
    """Take note of a passkey's signature; False if its counter does not fit to the one that was seen last.

    Approvals may be handed in in another order than they were signed: what was signed later has the higher counter,
    whichever comes first. Keys without a counter say 0 each time.
    """
    found = key(tx, jkt)
    if found is None or found.sign_count is None or found.counted_iat is None:
        return False
    if count == found.sign_count:
        return count == 0
    is_later = count > found.sign_count
    if is_later != (iat >= found.counted_iat if is_later else iat > found.counted_iat):
        return False
    if is_later:
        tx.execute(_COUNT, {"key": jkt, "new_count": count, "new_iat": iat})
    return True


def allow_proxy(tx: Tx, owner_id: str, proxy_id: str) -> None:
    """Add a row of the owner->proxy matrix (A-96); Conflict if it is there."""
    tx.execute(_ALLOW, {"owner_id": owner_id, "proxy_id": proxy_id})


def allowed_proxies(tx: Tx, owner_id: str) -> frozenset[str] | None:
    """The proxies that may submit for an owner; None if no row restricts them."""
    rows = tx.all(_ALLOWED, {"owner": owner_id})
    return frozenset(row.proxy_id for row in rows) if rows else None


def _values(owner: Owner) -> dict[str, Any]:
    return {
        "id": owner.id,
        "identifier": owner.identifier,
        "ref": owner.ref,
        "name": owner.name,
        "kind": owner.kind,
        "department": owner.department,
        "more_departments": list(owner.more_departments) or None,
        "state": owner.state,
        "source": owner.source,
        "source_key": owner.source_key or None,
        "source_state": owner.source_state,
        "held": int(owner.held),
        "created_at": owner.created_at,
        "updated_at": owner.updated_at,
    }


def _emit(tx: Tx, owner: Owner) -> None:
    body = _values(owner) | {"created_at": to_micros(owner.created_at), "updated_at": to_micros(tx.now)}
    tx.emit(TOPIC, owner.identifier, body)


def _emit_key(tx: Tx, jkt: str, owner_id: str, state: str) -> None:
    tx.emit(KEY_TOPIC, jkt, {"jkt": jkt, "owner_id": owner_id, "state": state})


def _maybe(row: Any) -> Owner | None:
    return None if row is None else _read(row)


def _read(row: Any) -> Owner:
    return Owner(
        row.id,
        row.identifier,
        row.ref,
        row.name,
        row.kind,
        row.department or "",
        row.state,
        row.created_at,
        row.updated_at,
        tuple(row.more_departments or ()),
        row.source,
        row.source_key or "",
        row.source_state,
        bool(row.held),
    )
