"""One-time enrolment secrets of plain EST: stored hashed, expiring, spent by one conditional statement (E-49)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from appliance.store.schema import est_secrets as table
from appliance.store.transaction import Tx

_INSERT = insert(table)
_BY_NAME = select(table).where(table.c.name == bindparam("name"))
_DELETE = delete(table).where(table.c.name == bindparam("name"))
_SPEND = (
    update(table)
    .where(table.c.id == bindparam("key"), table.c.spent_at.is_(None), table.c.expires_at > bindparam("moment"))
    .values(spent_at=bindparam("spent_at"))
)


@dataclass(frozen=True, slots=True)
class SecretRow:
    """One secret. Its id is the id of the proxy that it admits."""

    id: str
    name: str
    secret_sha256: str = field(repr=False)
    label: str
    expires_at: datetime
    spent_at: datetime | None
    created_at: datetime


def put(tx: Tx, row: SecretRow) -> None:
    """Insert; an earlier secret of the same name is void from now on."""
    tx.execute(_DELETE, {"name": row.name})
    tx.execute(
        _INSERT,
        {
            "id": row.id,
            "name": row.name,
            "secret_sha256": row.secret_sha256,
            "label": row.label,
            "expires_at": row.expires_at,
            "spent_at": None,
            "created_at": row.created_at,
        },
    )


def by_name(tx: Tx, name: str) -> SecretRow | None:
    """The secret of this name, spent or not."""
    row: Any = tx.one(_BY_NAME, {"name": name})
    if row is None:
        return None
    return SecretRow(
        id=row.id,
        name=row.name,
        secret_sha256=row.secret_sha256,
        label=row.label or "",
        expires_at=row.expires_at,
        spent_at=row.spent_at,
        created_at=row.created_at,
    )


def spend(tx: Tx, row: SecretRow) -> bool:
    """Spend the secret once; False when it was spent before or has expired."""
    return tx.execute(_SPEND, {"key": row.id, "moment": tx.now, "spent_at": tx.now}).rowcount == 1
