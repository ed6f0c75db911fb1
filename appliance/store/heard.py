"""How far a process has heard the outbox, and what others have added to it since.

SQLite has one writer at a time, so ids grow in the order of the commits and nothing with a smaller id can follow.
"""

from __future__ import annotations

from sqlalchemy import bindparam, func, select

from appliance.store import schema
from appliance.store.statements import Statements
from appliance.store.transaction import OutboxRow, Tx

_HEAD = select(func.max(schema.outbox.c.id))
_SINCE = (
    select(schema.outbox.c.id, schema.outbox.c.time, schema.outbox.c.topic, schema.outbox.c.key, schema.outbox.c.body)
    .where(schema.outbox.c.id > bindparam("since"))
    .order_by(schema.outbox.c.id)
)


def head(tx: Tx) -> int:
    """Id of the newest event, 0 if there is none."""
    return tx.execute(_HEAD).scalar() or 0


class Heard:
    """The newest event that this process knows of; `others` runs inside a writing transaction."""

    def __init__(self, statements: Statements) -> None:
        """Knows what is there now: whoever subscribes later reads the facts themselves first."""
        self._statements = statements
        self.id: int = statements.run(_HEAD, {}).scalar() or 0

    def others(self) -> list[OutboxRow]:
        """What other processes have committed since, oldest first."""
        return [OutboxRow(*row) for row in self._statements.run(_SINCE, {"since": self.id}).rows]

    def up_to(self, events: list[OutboxRow]) -> None:
        """These are told now, whichever process they are of."""
        if events:
            self.id = events[-1].id
