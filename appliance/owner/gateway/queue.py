"""The gateway's queue: one SQLite file, which the gateway and its owner's commands open side by side.

A request is in the file before its proxy hears of it, an approval before anybody submits it, and each is moved by one
conditional statement: a gateway that dies at any point has lost nothing that it acknowledged, and decides nothing
twice. Not the appliance's store, because the gateway is another machine and keeps three tables; the habits are the
same: WAL, synchronous FULL, a version that is checked.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.owner.errors import GatewayQueueFull, GatewayQueueUnusable
from appliance.owner.gateway.states import WAITING, QueueState

FILE = "queue.db"
KEPT_SECONDS = 2 * 86_400
"""How long a request is remembered after it ended, so that a clock that goes back finds it."""
DECISIONS_KEPT_SECONDS = 400 * 86_400
RETRY_SECONDS = 30
PERSON, POLICY = "person", "policy"
"""Who decides."""
HOUR_SECONDS = 3600
_VERSION = 1
_SCHEMA = """
CREATE TABLE requests (
  rqh TEXT PRIMARY KEY, domain TEXT NOT NULL, owner TEXT NOT NULL, server TEXT NOT NULL, proxy TEXT NOT NULL,
  workload TEXT NOT NULL, agent TEXT NOT NULL, purpose TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL,
  csr BLOB, executable TEXT, uid INTEGER, rule TEXT, approval TEXT, org TEXT NOT NULL, answer TEXT, refused TEXT,
  created INTEGER NOT NULL, expires INTEGER NOT NULL, updated INTEGER NOT NULL
);
CREATE INDEX requests_waiting ON requests (state, expires);
CREATE INDEX requests_proxy ON requests (proxy, state);
CREATE INDEX requests_workload ON requests (workload, state);
CREATE INDEX requests_expires ON requests (expires);
CREATE TABLE decisions (
  id INTEGER PRIMARY KEY, at INTEGER NOT NULL, rqh TEXT NOT NULL, agent TEXT NOT NULL, proxy TEXT NOT NULL,
  decision TEXT NOT NULL, decider TEXT NOT NULL, rule TEXT NOT NULL, why TEXT NOT NULL, approval_s256 TEXT
);
CREATE INDEX decisions_rule ON decisions (rule, at);
CREATE INDEX decisions_at ON decisions (at);
CREATE INDEX decisions_rqh ON decisions (rqh);
"""
_ADD = "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_GET = "SELECT * FROM requests WHERE rqh = ?"
_FIND = "SELECT * FROM requests WHERE substr(rqh, 1, ?) = ? LIMIT 2"
_WAITING = "SELECT * FROM requests WHERE state = ? AND expires > ? ORDER BY created, rowid LIMIT ?"
_LIST = "SELECT * FROM requests ORDER BY created, rowid LIMIT ?"
_COUNT = "SELECT count(*) FROM requests WHERE state IN ('queued', 'asked') AND expires > ?"
_COUNT_OF_PROXY = _COUNT + " AND proxy = ?"
_COUNT_OF_WORKLOAD = _COUNT + " AND workload = ?"
_COUNTS = "SELECT state, count(*) FROM requests WHERE state IN ('queued', 'asked') AND expires > ? GROUP BY state"
_FORGET = "DELETE FROM requests WHERE expires < ?"
_FORGET_DECISIONS = "DELETE FROM decisions WHERE at < ?"
_SUPERSEDE = (
    "UPDATE requests SET state = 'superseded', updated = ? "
    "WHERE workload = ? AND agent = ? AND rqh != ? AND state IN ('queued', 'asked')"
)
_DECIDE = (
    "UPDATE requests SET state = ?, approval = ?, rule = ?, org = ?, updated = ? "
    "WHERE rqh = ? AND state = ? AND expires > ?"
)
_ISSUED = "UPDATE requests SET state = 'issued', answer = ?, refused = NULL, updated = ? WHERE rqh = ? AND state = ?"
_REFUSED = "UPDATE requests SET refused = ?, updated = ? WHERE rqh = ?"
_LAST_NO = (
    "SELECT max(decisions.at) FROM requests JOIN decisions ON decisions.rqh = requests.rqh "
    "WHERE workload = ? AND decider = ? AND decision = ?"
)
_DECIDED_IN_HOUR = "SELECT count(*) FROM decisions WHERE rule = ? AND at > ?"
_DECIDED_FOR_AGENT = _DECIDED_IN_HOUR + " AND agent = ?"
_DECIDED = (
    "INSERT INTO decisions (at, rqh, agent, proxy, decision, decider, rule, why, approval_s256) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One request in the queue. Times are seconds since 1970; `org` is the material that goes along."""

    rqh: str
    domain: str
    owner: str
    server: str
    proxy: str
    workload: str
    """Hash of who asked by the proxy's own measurement: proxy, user, program. Keys and names can be made at will."""
    agent: str
    purpose: str
    state: QueueState
    request: str
    csr: bytes | None
    executable: str | None
    uid: int | None
    rule: str | None
    approval: str | None
    org: tuple[str, ...]
    answer: Mapping[str, Any] | None
    refused: str | None
    created: int
    expires: int
    updated: int

    @property
    def is_urgent(self) -> bool:
        """Renewals of agents that still work come before first issues."""
        return self.purpose == "renew"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait: in all, of one proxy, of one workload; and how long a workload that got a no is silent."""

    entries: int = 1000
    per_proxy: int = 100
    per_workload: int = 10
    mute_seconds: int = 900


@dataclass(frozen=True, slots=True)
class Made:
    """A decision about an entry: the state it leads to, who made it, by which rule, why, and the signed answer."""

    rqh: str
    was: QueueState
    state: QueueState
    decider: str
    rule: str
    why: str
    approval: str | None = None
    approval_s256: str | None = None
    org: tuple[str, ...] = ()


class Queue:
    """The open file; its methods may be called from any thread, one at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, *, create: bool = False) -> Queue:
        """The queue in a folder of mode 0700; raises GatewayQueueUnusable for a file that is missing or foreign."""
        path = folder / FILE
        try:
            if create:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            elif not path.exists():
                raise GatewayQueueUnusable("there is no queue: the gateway has never run on this folder")
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        except (OSError, sqlite3.Error) as cause:
            raise GatewayQueueUnusable(f"the queue cannot be opened: {cause}") from cause
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "trusted_schema=OFF"):
                connection.execute(f"PRAGMA {pragma}")
            found = cls(path, connection)
            found._prepare()
        except sqlite3.Error as cause:
            connection.close()
            raise GatewayQueueUnusable(f"the queue cannot be used: {cause}") from cause
        return found

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def add(self, entry: Entry, bounds: Bounds, now: int) -> Entry:
        """Keep a new request, or answer the one that is there with this hash; an older one of this agent gives way.

        Raises GatewayQueueFull when no room is left in all, for the proxy or for the workload.
        """
        with self._changing() as run:
            found = self._get(entry.rqh)
            if found is not None:
                return found
            run(_FORGET, (now - KEPT_SECONDS,))
            run(_FORGET_DECISIONS, (now - DECISIONS_KEPT_SECONDS,))
            run(_SUPERSEDE, (now, entry.workload, entry.agent, entry.rqh))
            for statement, values, most, what in (
                (_COUNT_OF_PROXY, (now, entry.proxy), bounds.per_proxy, "too much of this proxy waits already"),
                (_COUNT_OF_WORKLOAD, (now, entry.workload), bounds.per_workload, "too much of this program waits"),
                (_COUNT, (now,), bounds.entries, "the owner's queue is full"),
            ):
                if run(statement, values).fetchone()[0] >= most:
                    raise GatewayQueueFull(what, retry_after_seconds=RETRY_SECONDS)
            run(_ADD, _values(entry))
            return entry

    def get(self, rqh: str) -> Entry | None:
        """The request with this hash."""
        with self._lock:
            return self._get(rqh)

    def find(self, prefix: str) -> list[Entry]:
        """Requests whose hash begins like this, at most two."""
        with self._lock:
            rows = self._connection.execute(_FIND, (len(prefix), prefix))
            return [_entry(row) for row in rows]

    def waiting(self, state: QueueState, now: int, *, count: int = 100_000) -> list[Entry]:
        """What waits in this state, oldest first."""
        with self._lock:
            return [_entry(row) for row in self._connection.execute(_WAITING, (state.value, now, count))]

    def every(self, *, count: int = 10_000) -> list[Entry]:
        """Everything that is remembered, oldest first."""
        with self._lock:
            return [_entry(row) for row in self._connection.execute(_LIST, (count,))]

    def decide(self, decisions: Sequence[Made], now: int) -> list[bool]:
        """Take decisions, each if its request still stands where it stood; which of them count."""
        took = []
        with self._changing() as run:
            for one in decisions:
                values = (
                    one.state.value, one.approval, one.rule, json.dumps(one.org), now, one.rqh, one.was.value, now,
                )  # fmt: skip
                took.append(run(_DECIDE, values).rowcount == 1)
                if not took[-1]:
                    continue
                agent, proxy = run("SELECT agent, proxy FROM requests WHERE rqh = ?", (one.rqh,)).fetchone()
                run(
                    _DECIDED,
                    (
                        now, one.rqh, agent, proxy, one.state.value, one.decider, one.rule, one.why, one.approval_s256,
                    ),
                )  # fmt: skip
        return took

    def finish(self, rqh: str, answer: Mapping[str, Any], now: int) -> None:
        """Keep the server's answer to an approved request; one that has an answer keeps it."""
        with self._changing() as run:
            run(_ISSUED, (json.dumps(answer), now, rqh, QueueState.APPROVED.value))

    def note_refusal(self, rqh: str, reason: str, now: int) -> None:
        """What the server said no for, to show; the approval stays good for another attempt."""
        with self._changing() as run:
            run(_REFUSED, (reason, now, rqh))

    def decided(self, rule: str, agent: str | None, now: int) -> int:
        """How often a rule decided within the last hour, for one agent or in all."""
        values: tuple[object, ...] = (rule, now - HOUR_SECONDS)
        with self._lock:
            if agent is None:
                row = self._connection.execute(_DECIDED_IN_HOUR, values).fetchone()
            else:
                row = self._connection.execute(_DECIDED_FOR_AGENT, (*values, agent)).fetchone()
        return int(row[0])

    def denied_at(self, workload: str) -> int | None:
        """When a person last said no to this workload; what a rule refuses may be asked otherwise at once."""
        with self._lock:
            row = self._connection.execute(_LAST_NO, (workload, PERSON, QueueState.DENIED.value)).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def decisions(self, *, count: int = 1000) -> list[dict[str, Any]]:
        """The record of decisions, newest first."""
        names = ("id", "at", "rqh", "agent", "proxy", "decision", "decider", "rule", "why", "approval_s256")
        with self._lock:
            rows = self._connection.execute("SELECT * FROM decisions ORDER BY id DESC LIMIT ?", (count,)).fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def counts(self, now: int) -> dict[str, int]:
        """How much waits, by state."""
        with self._lock:
            rows = self._connection.execute(_COUNTS, (now,)).fetchall()
        return {state.value: dict(rows).get(state.value, 0) for state in WAITING}

    def _prepare(self) -> None:
        with self._changing() as run:
            (version,) = run("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    run(statement)
                run(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise GatewayQueueUnusable("the queue was made by another version")

    def _get(self, rqh: str) -> Entry | None:
        row = self._connection.execute(_GET, (rqh,)).fetchone()
        return None if row is None else _entry(row)

    @contextmanager
    def _changing(self) -> Iterator[Any]:
        """One transaction, whole or not at all."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
            except BaseException:  # whatever it was, the transaction must not stay open
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _values(entry: Entry) -> tuple[object, ...]:
    return (
        entry.rqh, entry.domain, entry.owner, entry.server, entry.proxy, entry.workload, entry.agent, entry.purpose,
        entry.state.value, entry.request, entry.csr, entry.executable, entry.uid, entry.rule, entry.approval,
        json.dumps(entry.org), None if entry.answer is None else json.dumps(entry.answer), entry.refused,
        entry.created, entry.expires, entry.updated,
    )  # fmt: skip


def _entry(row: Sequence[Any]) -> Entry:
    return Entry(  # type: ignore[call-arg]
        *row[:8], QueueState(row[8]), *row[9:15], tuple(json.loads(row[15])),
        None if row[16] is None else json.loads(row[16]), *row[17:],
    )  # fmt: skip
