"""One-time values: the nonces that the server gives out, and the token identifiers that were used.

Each is spent by one conditional statement inside the transaction that the spending is for, so of any number of
attempts, in any number of processes, one succeeds (design.md, section 5.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.dialects import sqlite

from appliance.store import schema
from appliance.store.columns import to_micros
from appliance.store.statements import plain
from appliance.store.transaction import Tx

_n = schema.nonces
_s = schema.spent

_ADD = insert(_n)
_GET = select(_n).where(_n.c.nonce == bindparam("nonce"))
_SPEND = plain(
    update(_n)
    .where(_n.c.nonce == bindparam("value"), _n.c.spent_at.is_(None))
    .where(_n.c.expires_at > bindparam("at"))
    .values(spent_at=bindparam("at")),
    "at", "value", "at",
)  # fmt: skip
_SPEND_ID = plain(sqlite.insert(_s).on_conflict_do_nothing(), "kind", "value", "expires_at")
_FORGET_NONCES = delete(_n).where(_n.c.expires_at < bindparam("before"))
_FORGET_IDS = delete(_s).where(_s.c.expires_at < bindparam("before"))


@dataclass(frozen=True, slots=True)
class Nonce:
    """A nonce and what it was given out for; `agent_id` and `proxy_id` are identifiers."""

    nonce: str
    jkt: str
    purpose: str
    agent_id: str
    proxy_id: str
    expires_at: datetime
    spent_at: datetime | None = None


def add(tx: Tx, nonce: Nonce) -> None:
    """Remember a nonce that is given out."""
    tx.execute(
        _ADD,
        {
            "nonce": nonce.nonce,
            "jkt": nonce.jkt,
            "purpose": nonce.purpose,
            "agent_id": nonce.agent_id,
            "proxy_id": nonce.proxy_id,
            "expires_at": nonce.expires_at,
            "spent_at": nonce.spent_at,
        },
    )


def get(tx: Tx, value: str) -> Nonce | None:
    """What the server remembers of a nonce."""
    row = tx.one(_GET, {"nonce": value})
    return None if row is None else Nonce(*row)


def spend(tx: Tx, value: str) -> bool:
    """Spend a nonce; False if it is unknown, expired, or spent already."""
    return tx.change(_SPEND, (tx.micros, value, tx.micros)) == 1


def spend_id(tx: Tx, kind: str, value: str, expires_at: datetime) -> bool:
    """Spend a token identifier, to be remembered until `expires_at` at least; False if it was spent before."""
    return tx.change(_SPEND_ID, (kind, value, to_micros(expires_at))) == 1


def forget(tx: Tx, *, before: datetime) -> None:
    """Drop what expired before this time; until then even a clock that goes back finds everything spent."""
    tx.execute(_FORGET_NONCES, {"before": before})
    tx.execute(_FORGET_IDS, {"before": before})
