"""Access policies: every published revision is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import bindparam, insert, select

from appliance.store.schema import policies as table
from appliance.store.transaction import Tx

TOPIC = "policy"

_INSERT = insert(table)
_NEWEST = select(table).order_by(table.c.revision.desc()).limit(1)
_ONE = select(table).where(table.c.revision == bindparam("number"))
_ALL = select(table).order_by(table.c.revision.desc()).limit(bindparam("limit"))


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One revision; `text` is the file as it was published."""

    revision: int
    text: str
    sha256: str
    comment: str
    published_at: datetime


def publish(tx: Tx, text: str, comment: str) -> int:
    """Insert the next revision and tell the outbox; answers its number."""
    digest = sha256(text.encode()).digest()
    result = tx.execute(_INSERT, {"text": text, "sha256": digest, "comment": comment, "published_at": tx.now})
    revision = int(result.lastrowid or 0)
    tx.emit(TOPIC, str(revision), {"revision": revision, "text": text})
    return revision


def newest(tx: Tx) -> PolicyRow | None:
    """The revision in force."""
    row = tx.one(_NEWEST)
    return None if row is None else _read(row)


def by_revision(tx: Tx, revision: int) -> PolicyRow | None:
    """One revision by its number."""
    row = tx.one(_ONE, {"number": revision})
    return None if row is None else _read(row)


def every(tx: Tx, *, limit: int = 100) -> list[PolicyRow]:
    """Revisions, newest first."""
    return [_read(row) for row in tx.all(_ALL, {"limit": limit})]


def _read(row: Any) -> PolicyRow:
    return PolicyRow(row.revision, row.text, row.sha256, row.comment or "", row.published_at)
