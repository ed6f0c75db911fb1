"""How reading each source of owners went last, and the tokens of clients that push owners (SCIM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from appliance.store.columns import to_micros
from appliance.store.schema import directory_sources, directory_tokens
from appliance.store.transaction import Tx

TOPIC = "directory-source"
DONE, FAILED, FROZEN = "done", "failed", "frozen"

_ALL = select(directory_sources).order_by(directory_sources.c.source)
_INSERT = upsert(directory_sources).values(
    source=bindparam("source"),
    attempted_at=bindparam("attempted_at"),
    confirmed_at=bindparam("confirmed_at"),
    outcome=bindparam("outcome"),
    detail=bindparam("detail"),
)
_PUT = _INSERT.on_conflict_do_update(
    index_elements=["source"],
    set_={name: getattr(_INSERT.excluded, name) for name in ("attempted_at", "confirmed_at", "outcome", "detail")},
)
_ADD_TOKEN = insert(directory_tokens)
_TOKENS = select(directory_tokens.c.name, directory_tokens.c.created_at).order_by(directory_tokens.c.name)
_NAME_OF = select(directory_tokens.c.name).where(directory_tokens.c.token_sha256 == bindparam("digest"))
_DROP_TOKEN = delete(directory_tokens).where(directory_tokens.c.name == bindparam("key"))


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One source: when it was last tried, when it was last read whole, and what came of the last try."""

    source: str
    attempted_at: datetime
    confirmed_at: datetime | None
    outcome: str
    detail: Mapping[str, Any]


def every(tx: Tx) -> dict[str, SourceRow]:
    """Every source that was ever tried."""
    return {
        row.source: SourceRow(row.source, row.attempted_at, row.confirmed_at, row.outcome, row.detail or {})
        for row in tx.all(_ALL)
    }


def confirmed(tx: Tx) -> dict[str, datetime]:
    """When each source was last read whole."""
    return {row.source: row.confirmed_at for row in every(tx).values() if row.confirmed_at is not None}


def put(tx: Tx, row: SourceRow) -> None:
    """Write a source's row; one that was read whole now is told to the outbox."""
    tx.execute(
        _PUT,
        {
            "source": row.source,
            "attempted_at": row.attempted_at,
            "confirmed_at": row.confirmed_at,
            "outcome": row.outcome,
            "detail": dict(row.detail),
        },
    )
    if row.outcome == DONE and row.confirmed_at is not None:
        tx.emit(TOPIC, row.source, {"confirmed_at": to_micros(row.confirmed_at)})


def add_token(tx: Tx, id_: str, name: str, digest: bytes) -> None:
    """Insert the hash of a client's token; Conflict if the name has one."""
    tx.execute(_ADD_TOKEN, {"id": id_, "name": name, "token_sha256": digest, "created_at": tx.now})


def tokens(tx: Tx) -> list[tuple[str, datetime]]:
    """(name, made at) of every client with a token."""
    return [(row.name, row.created_at) for row in tx.all(_TOKENS)]


def name_of(tx: Tx, digest: bytes) -> str | None:
    """The client whose token has this SHA-256."""
    found = tx.scalar(_NAME_OF, {"digest": digest})
    return None if found is None else str(found)


def drop_token(tx: Tx, name: str) -> bool:
    """Forget a client's token; whether there was one."""
    return tx.execute(_DROP_TOKEN, {"key": name}).rowcount == 1
