"""The current CRL of each issuing role; its number only grows."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.sqlite import insert

from appliance.errors import Conflict
from appliance.store import schema
from appliance.store.statements import Row
from appliance.store.transaction import Tx

_c = schema.crls.c
_GET = select(schema.crls).where(_c.role == bindparam("role"))
_INSERT = insert(schema.crls).values(
    role=bindparam("role"),
    number=bindparam("number"),
    this_update=bindparam("this_update"),
    next_update=bindparam("next_update"),
    der=bindparam("der"),
)
_PUT = _INSERT.on_conflict_do_update(
    index_elements=["role"],
    set_={name: _INSERT.excluded[name] for name in ("number", "this_update", "next_update", "der")},
    where=_c.number < _INSERT.excluded.number,
)


def get(tx: Tx, role: str) -> Row | None:
    """The row of one role, or None before its first CRL."""
    return tx.one(_GET, {"role": role})


def put(tx: Tx, role: str, *, number: int, this_update: datetime, next_update: datetime, der: bytes) -> None:
    """Replace the CRL of a role; Conflict unless its number is higher than the stored one."""
    values = {"role": role, "number": number, "this_update": this_update, "next_update": next_update, "der": der}
    if tx.execute(_PUT, values).rowcount != 1:
        raise Conflict("a CRL with this number or a higher one is stored")
