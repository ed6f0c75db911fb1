"""Owners' gateways: where they listen and which server key a proxy must find there.

A server key says who answers and approves nothing; like every key of an owner, one that was registered is never
forgotten. `owner_id` is the identifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, insert, select, update

from appliance.errors import Conflict
from appliance.store.schema import owner_gateways as table
from appliance.store.transaction import Tx

ACTIVE, REVOKED = "active", "revoked"

_c = table.c
_ADD = insert(table)
_GET = select(table).where(_c.jkt == bindparam("jkt"))
_OF_OWNER = select(table).where(_c.owner_id == bindparam("owner")).order_by(_c.created_at, _c.jkt)
_END = (
    update(table).where(_c.jkt == bindparam("key"), _c.state == ACTIVE).values(state=REVOKED, ended_at=bindparam("at"))
)


@dataclass(frozen=True, slots=True)
class OwnerGateway:
    """One gateway of an owner; `state` active or revoked."""

    jkt: str
    owner_id: str
    url: str
    spki_sha256: str
    state: str
    statement_sha256: str
    created_at: datetime
    ended_at: datetime | None = None

    @property
    def is_active(self) -> bool:
        return self.state == ACTIVE


def add(tx: Tx, gateway: OwnerGateway) -> None:
    """Register; Conflict if any owner has or had the key."""
    tx.execute(
        _ADD,
        {
            "jkt": gateway.jkt,
            "owner_id": gateway.owner_id,
            "url": gateway.url,
            "spki_sha256": gateway.spki_sha256,
            "state": gateway.state,
            "statement_sha256": gateway.statement_sha256,
            "created_at": gateway.created_at,
            "ended_at": gateway.ended_at,
        },
    )


def get(tx: Tx, jkt: str) -> OwnerGateway | None:
    """The gateway with this server key, whoever has it."""
    row = tx.one(_GET, {"jkt": jkt})
    return None if row is None else OwnerGateway(*row)


def of_owner(tx: Tx, owner_id: str) -> list[OwnerGateway]:
    """An owner's gateways, oldest first."""
    return [OwnerGateway(*row) for row in tx.all(_OF_OWNER, {"owner": owner_id})]


def end(tx: Tx, jkt: str) -> None:
    """Revoke; Conflict if it is revoked already."""
    if tx.execute(_END, {"key": jkt, "at": tx.now}).rowcount != 1:
        raise Conflict("the gateway is revoked already")
