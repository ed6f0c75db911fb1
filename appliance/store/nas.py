"""NAS (RADIUS clients) and RADIUS servers (callers of the decision port)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select

from appliance.store.schema import nas as table
from appliance.store.schema import radius_servers
from appliance.store.transaction import Tx

TOPIC = "nas"

_INSERT = insert(table)
_ALL = select(table).order_by(table.c.name)
_DELETE = delete(table).where(table.c.name == bindparam("key"))
_ADD_SERVER = insert(radius_servers)
_DROP_SERVER = delete(radius_servers).where(radius_servers.c.name == bindparam("key"))
_SERVERS = select(radius_servers).order_by(radius_servers.c.name)


@dataclass(frozen=True, slots=True)
class NasRow:
    """One NAS or network of them; `address` is an address or a prefix, the secret is sealed."""

    id: str
    name: str
    address: str
    secret_sealed: bytes
    created_at: datetime
    site: str = ""


@dataclass(frozen=True, slots=True)
class RadiusServerRow:
    """One RADIUS server that may ask for decisions."""

    name: str
    token_sha256: str


def add(tx: Tx, row: NasRow) -> None:
    """Insert and tell the outbox; raises Conflict when the name is taken."""
    tx.execute(
        _INSERT,
        {
            "id": row.id,
            "name": row.name,
            "address": row.address,
            "secret_sealed": row.secret_sealed,
            "created_at": row.created_at,
            "site": row.site or None,
        },
    )
    tx.emit(TOPIC, row.name, {"state": "added", "site": row.site})


def every(tx: Tx) -> list[NasRow]:
    """All, by name."""
    return [
        NasRow(row.id, row.name, row.address, row.secret_sealed, row.created_at, row.site or "") for row in tx.all(_ALL)
    ]


def sites(tx: Tx) -> dict[str, str]:
    """The site of each NAS that has one, by the NAS's name."""
    return {row.name: row.site for row in tx.all(_ALL) if row.site}


def remove(tx: Tx, name: str) -> bool:
    """Delete and tell the outbox; answers whether there was one."""
    found = tx.execute(_DELETE, {"key": name}).rowcount == 1
    if found:
        tx.emit(TOPIC, name, {"state": "removed"})
    return found


def put_server(tx: Tx, id_: str, name: str, token_sha256: bytes) -> None:
    """Insert a RADIUS server, or give one a new token; the old token is dead at once."""
    tx.execute(_DROP_SERVER, {"key": name})
    values: dict[str, Any] = {"id": id_, "name": name, "token_sha256": token_sha256, "created_at": tx.now}
    tx.execute(_ADD_SERVER, values)
    tx.emit("radius-server", name, {"token_sha256": token_sha256.hex()})


def servers(tx: Tx) -> list[RadiusServerRow]:
    """RADIUS servers that have a token."""
    return [RadiusServerRow(row.name, row.token_sha256) for row in tx.all(_SERVERS)]
