"""Live sessions: keeps their table, and notices when what a session got is no longer what it would get.

Everything that can change a decision comes by the store's outbox: a revoked credential, agent or owner, a suspension,
another department, another policy. The sessions that it may concern are decided anew by the function that decides at
the port; where the outcome differs a change is ordered, durably, in the transaction of its audit entry. What time
alone changes (a credential that expires) is found by a sweep. A stale snapshot orders nothing: it knows too little to
take anybody off.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from appliance.access import session_table
from appliance.audit import APPLIANCE, Actor, AuditEvent, append
from appliance.clock import Clock
from appliance.errors import ApplianceError, RequestMalformed
from appliance.store import nas, policies, proxies, sessions
from appliance.store.sessions import Change, Session
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx
from radius import AccessRequest, Decision
from radius.accounting import AccountingRecord, mac_key
from radius.nas_profiles import Want

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.2
SWEEP_SECONDS = 30.0
AGAIN_AFTER = timedelta(minutes=10)  # what a NAS has refused is not asked of it anew at every sweep
MAX_QUEUED = 20_000
_PAGE = 500
_LOOK_PAGE = 200  # so many decisions are a few milliseconds, for which nobody else is served
_LOOK_SHARE = 50  # looking at everything takes at most a fiftieth of the time
_KNOWS_TOO_LITTLE = frozenset({"snapshot-stale", "policy-missing"})
_CERTIFICATE, _OWNER, _AGENT = "certificate", "owner", "agent"


class SessionUnknown(ApplianceError):
    """There is no live session of this id, or none that the given party has."""

    reason: ClassVar[str] = "session-unknown"


def wanted(session: Session, decision: Decision) -> tuple[Want, str] | None:
    """(what the NAS must do, why), or None while the session may go on as it is."""
    if not session.request.get("credential") and session.verdict == "unknown":
        return None  # not decided by us
    if decision.reason_code in _KNOWS_TOO_LITTLE:
        return None
    if decision.verdict == "reject":
        return "end", decision.reason_code
    return None if session_table.granted(decision) == session.granted else ("change", decision.reason_code)


class SessionService:
    """The table of live sessions, and what has to happen to them."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        simulate: Callable[[AccessRequest], Decision],
        *,
        stale_minutes: float,
        keep_days: int,
    ) -> None:
        """`simulate` says what a login would get now, without logging it."""
        self._store = store
        self._clock = clock
        self._simulate = simulate
        self._stale = timedelta(minutes=stale_minutes)
        self._keep = timedelta(days=keep_days)
        self._accepted: deque[Decision] = deque(maxlen=MAX_QUEUED)
        self._owners: set[str] = set()
        self._agents: set[str] = set()
        self._everything = True
        self._look_seconds = 0.0
        self._awake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.ordered = asyncio.Event()
        """Set when there may be changes to carry out."""

    async def start(self) -> None:
        """Follow the store, and look at every live session once: what happened while we were away counts."""
        self._store.subscribe(self._on_events)
        self._awake.set()
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._sweep())]

    async def stop(self) -> None:
        """Stop, and write what is still queued."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        try:
            await self._flush()
        except ApplianceError as refused:
            _log.warning("event=sessions-not-written detail=%r", refused.detail)

    def accepted(self, decision: Decision) -> None:
        """An Access-Accept goes out; never blocks, never fails."""
        if decision.verdict != "reject":
            self._accepted.append(decision)
            self._awake.set()

    async def account(self, record: AccountingRecord) -> None:
        """Take an accounting message in; when this returns it is stored and may be acknowledged."""
        await self._flush()  # the accept that it belongs to comes first
        await self._store.write(lambda tx: session_table.account(tx, record))

    async def search(self, *, everything: bool = False, mac: str = "", limit: int = 1000, **by: str) -> list[Session]:
        """Sessions by owner, agent, nas, mac, vlan or session_id; `everything` takes the ended ones too."""
        await self._flush()
        key = mac_key(mac) if mac else ""
        return await self._store.read(lambda tx: sessions.search(tx, mac_key=key, ended=everything, limit=limit, **by))

    async def changes(self, session_id: str) -> list[Change]:
        """What a session's NAS was asked for."""
        return await self._store.read(lambda tx: sessions.changes_of(tx, session_id))

    async def order(self, found: Sequence[Session], want: Want, actor: Actor) -> list[Change]:
        """An administrator's wish for these sessions."""
        if not found:
            raise SessionUnknown("there is no live session of this kind")
        if len(found) > 100_000:
            raise RequestMalformed("too many sessions at once")
        return await self._order([(one, want, "administrator") for one in found], actor)

    async def _order(self, orders: Iterable[tuple[Session, Want, str]], actor: Actor = APPLIANCE) -> list[Change]:
        wishes = list(orders)

        def store(tx: Tx, some: Sequence[tuple[Session, Want, str]]) -> list[Change]:
            made = []
            for session, want, why in some:
                standing = sessions.get(tx, session.id)
                if standing is None or not standing.is_live:
                    continue
                if actor is APPLIANCE and _failed_lately(tx, session.id, why):
                    continue
                change = sessions.order_change(tx, session.id, want, why)
                made.append(change)
                told = {"want": want, "nas": session.nas, "mac": session.mac, "owner": session.owner_id}
                if change.attempts == 0:
                    append(tx, AuditEvent("session-change-asked", actor, session.id, reason=why, fields=told))
            return made

        made: list[Change] = []
        for at in range(0, len(wishes), _PAGE):
            some = wishes[at : at + _PAGE]
            made += await self._store.write(lambda tx: store(tx, some), essential=True)  # noqa: B023
        if made:
            self.ordered.set()
        return made

    def _on_events(self, events: list[OutboxRow]) -> None:
        for event in events:
            if event.topic in (policies.TOPIC, nas.TOPIC):  # a NAS may stand at another site now
                self._everything = True
            elif event.topic == _OWNER:
                self._owners.add(event.body["identifier"])
            elif event.topic == _AGENT:
                self._agents.add(event.body["identifier"])
            elif event.topic == proxies.TOPIC:
                self._agents.add(event.key)
            elif event.topic == _CERTIFICATE and event.body.get("state") == "revoked":
                self._agents.add(event.body.get("subject_id") or event.body.get("agent_id") or "")
            else:
                continue
            self._awake.set()

    async def _run(self) -> None:
        while True:
            await self._awake.wait()
            self._awake.clear()
            try:
                await self._flush()
                await self._look()
            except ApplianceError as refused:
                _log.warning("event=sessions-not-looked-at detail=%r", refused.detail)
                await asyncio.sleep(1.0)
                self._awake.set()
            await asyncio.sleep(FLUSH_SECONDS / 2)

    async def _flush(self) -> None:
        """Write what was accepted; a decision that is outdated by now is changed like any other."""
        while self._accepted:
            batch = [self._accepted.popleft() for _ in range(min(len(self._accepted), _PAGE))]

            def store(tx: Tx) -> list[Session]:
                return [session_table.accept(tx, decision) for decision in batch]  # noqa: B023

            try:
                written = await self._store.write(store)
            except ApplianceError:
                self._accepted.extendleft(reversed(batch))
                raise
            await self._decide(written)

    async def _look(self) -> None:
        """Decide anew on every session that what happened may concern."""
        everything, owners, agents = self._everything, self._owners, self._agents
        self._everything, self._owners, self._agents = False, set(), set()
        try:
            if everything:
                await self._look_at_all()
            elif owners or agents:
                await self._decide(await self._store.read(lambda tx: _of_parties(tx, owners, agents)))
        except BaseException:
            self._everything |= everything
            self._owners |= owners
            self._agents |= agents
            raise

    async def _look_at_all(self) -> None:
        after, begun = "", self._clock.monotonic()
        while page := await self._store.read(lambda tx: sessions.page(tx, after=after, count=_LOOK_PAGE)):  # noqa: B023
            await self._decide(page)
            after = page[-1].id
        self._look_seconds = self._clock.monotonic() - begun

    async def _decide(self, found: Iterable[Session]) -> None:
        orders = []
        for session in found:
            order = wanted(session, self._simulate(session_table.read_login(session.request)))
            if order is not None:
                orders.append((session, *order))
        if orders:
            await self._order(orders)

    async def _sweep(self) -> None:
        """Now and then: sessions that fell silent, old ones to forget, and what time alone has changed."""
        while True:
            await asyncio.sleep(max(SWEEP_SECONDS, _LOOK_SHARE * self._look_seconds))
            now = self._clock.now()

            def store(tx: Tx) -> None:
                sessions.mark_stale(tx, now - self._stale)  # noqa: B023
                sessions.prune(tx, now - self._keep)  # noqa: B023

            try:
                await self._store.write(store)
            except ApplianceError as refused:
                _log.warning("event=sessions-not-swept detail=%r", refused.detail)
                continue
            self._everything = True
            self._awake.set()


def _failed_lately(tx: Tx, session_id: str, why: str) -> bool:
    """Whether the newest change of a session was asked for the same reason and failed a short while ago."""
    newest = max(sessions.changes_of(tx, session_id), key=lambda one: one.id, default=None)
    if newest is None or newest.state != sessions.FAILED or newest.why != why:
        return False
    return tx.now - newest.updated_at < AGAIN_AFTER


def _of_parties(tx: Tx, owners: set[str], agents: set[str]) -> list[Session]:
    """In bites: SQLite takes only so many values in a statement."""
    found: dict[str, Session] = {}
    for some in _bites(owners):
        found |= {one.id: one for one in sessions.of_parties(tx, some, [])}
    for some in _bites(agents):
        found |= {one.id: one for one in sessions.of_parties(tx, [], some)}
    return list(found.values())


def _bites(names: set[str]) -> list[list[str]]:
    listed = list(names)
    return [listed[at : at + 200] for at in range(0, len(listed), 200)]


def as_json(session: Session, changes: Sequence[Change] = ()) -> dict[str, Any]:
    """A session for the command line."""
    return {
        "id": session.id,
        "state": session.state,
        "nas": session.nas,
        "nas_address": session.nas_address,
        "port": session.port,
        "mac": session.mac,
        "agent": session.agent_id,
        "owner": session.owner_id,
        "department": session.department,
        "vlan": session.vlan,
        "verdict": session.verdict,
        "granted": session.granted,
        "serial": session.serial,
        "txn": session.txn,
        "acct_session": session.acct_session,
        "policy_revision": session.policy_revision,
        "octets_in": session.octets_in,
        "octets_out": session.octets_out,
        "since": session.began_at.isoformat(timespec="seconds"),
        "last_update": session.updated_at.isoformat(timespec="seconds"),
        "ended": session.ended_at.isoformat(timespec="seconds") if session.ended_at else "",
        "cause": session.cause,
        "changes": [
            {
                "asked": one.created_at.isoformat(timespec="milliseconds"),
                "want": one.want,
                "why": one.why,
                "state": one.state,
                "attempts": one.attempts,
                "result": one.result,
            }
            for one in changes
        ],
    }
