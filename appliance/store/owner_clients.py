"""Client keys of owners' tools: who speaks on an owner's own connection to this server.

A client key authenticates a connection and approves nothing; it is never an approval key (A-99). Like those, a key
that was registered once is never forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, insert, select, update

from appliance.errors import Conflict
from appliance.store.schema import owner_clients as table
from appliance.store.schema import owners
from appliance.store.transaction import Tx

ACTIVE, REVOKED = "active", "revoked"

_c = table.c
_ADD = insert(table)
_GET = select(table).where(_c.jkt == bindparam("jkt"))
_OF_OWNER = select(table).where(_c.owner_id == bindparam("owner")).order_by(_c.created_at, _c.jkt)
_CALLER = (
    select(_c.owner_id, _c.jkt, owners.c.state)
    .select_from(table.join(owners, owners.c.identifier == _c.owner_id))
    .where(_c.spki_sha256 == bindparam("spki"), _c.state == ACTIVE)
)
_END = (
    update(table).where(_c.jkt == bindparam("key"), _c.state == ACTIVE).values(state=REVOKED, ended_at=bindparam("at"))
)


@dataclass(frozen=True, slots=True)
class ClientKey:
    """One client key; `owner_id` is the identifier, `state` active or revoked."""

    jkt: str
    owner_id: str
    spki_sha256: str
    state: str
    statement_sha256: str
    created_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose active client key it is, and that owner's state."""

    owner_id: str
    jkt: str
    owner_state: str


def add(tx: Tx, key: ClientKey) -> None:
    """Register; Conflict if any owner has or had it."""
    tx.execute(
        _ADD,
        {
            "jkt": key.jkt,
            "owner_id": key.owner_id,
            "spki_sha256": key.spki_sha256,
            "state": key.state,
            "statement_sha256": key.statement_sha256,
            "created_at": key.created_at,
            "ended_at": key.ended_at,
        },
    )


def get(tx: Tx, jkt: str) -> ClientKey | None:
    """The client key with this thumbprint, whoever has it."""
    row = tx.one(_GET, {"jkt": jkt})
    return None if row is None else ClientKey(*row)


def of_owner(tx: Tx, owner_id: str) -> list[ClientKey]:
    """An owner's client keys, oldest first."""
    return [ClientKey(*row) for row in tx.all(_OF_OWNER, {"owner": owner_id})]


def caller(tx: Tx, spki_sha256: bytes) -> Caller | None:
    """Whose connection it is that was made with this key."""
    row = tx.one(_CALLER, {"spki": spki_sha256.hex()})
    return None if row is None else Caller(*row)


def end(tx: Tx, jkt: str) -> None:
    """Revoke; Conflict if it is revoked already."""
    if tx.execute(_END, {"key": jkt, "at": tx.now}).rowcount != 1:
        raise Conflict("the client key is revoked already")
