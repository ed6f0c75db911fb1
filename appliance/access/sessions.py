"""Live sessions: keeps their table, and notices when what a session got is no longer what it would get.

Everything that can change a decision comes by the store's outbox: a revoked credential, agent or owner, a suspension,
another department, another policy. The sessions that it may concern are decided anew by the function that decides at
the port; where the outcome differs a change is ordered, durably, in the transaction of its audit entry. What time
alone changes (a credential that expires) is found by a sweep. A stale snapshot orders nothing: it knows too little to
take anybody off.

An accept whose station is not in the table waits in memory (access.assumed); a station that has got into the table is
written from then on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Protocol

from appliance.access import session_table
from appliance.access.accept_queue import PAGE, AcceptQueue
from appliance.access.assumed import MAX_ASSUMED, Accepted, Assumed, Key, key_of
from appliance.access.decision_rows import decision_of
from appliance.audit import APPLIANCE, Actor, AuditEvent, append
from appliance.clock import Clock
from appliance.errors import ApplianceError, RequestMalformed
from appliance.store import decisions, nas, policies, proxies, sessions
from appliance.store.columns import to_micros
from appliance.store.sessions import Change, Session
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx
from radius import AccessRequest, Decision
from radius.accounting import AccountingRecord, mac_key
from radius.nas_profiles import Want

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.2
SWEEP_SECONDS = 30.0
_AGAIN_SECONDS = 1.0
AGAIN_AFTER = timedelta(minutes=10)  # what a NAS has refused is not asked of it anew at every sweep
MAX_QUEUED = 20_000
_LOOK_PAGE = 200
_SHOWN_AT_ONCE = 50
_AT_ONCE = 4  # so many decisions take a quarter of a millisecond, for which nobody else is served
_LOOK_SHARE = 50  # looking at everything takes at most a fiftieth of the time
KNOWS_TOO_LITTLE = frozenset({"snapshot-stale", "policy-missing"})
_CERTIFICATE, _OWNER, _AGENT = "certificate", "owner", "agent"
_SHOWN_AS = {"session_id": "id", "owner": "owner_id", "agent": "agent_id"}


class SessionUnknown(ApplianceError):
    """There is no live session of this id, or none that the given party has."""

    reason: ClassVar[str] = "session-unknown"


class Decides(Protocol):
    """What is asked of AccessService."""

    def simulate(self, request: AccessRequest) -> Decision:
        """What a login would get now, without logging it."""
        ...

    @property
    def generation(self) -> int:
        """That of the facts which the next decision rests on."""
        ...

    async def left_behind(self, since: datetime) -> list[dict[str, Any]]:
        """Of each station the newest row that let it in, of those that a crash has kept out of the decision log."""
        ...


def wanted(session: Session, decision: Decision) -> tuple[Want, str] | None:
    """(what the NAS must do, why), or None while the session may go on as it is."""
    if not session.request.get("credential") and session.verdict == "unknown":
        return None  # not decided by us
    return _wanted(session.granted, decision)


def _wanted(granted: str, decision: Decision) -> tuple[Want, str] | None:
    if decision.reason_code in KNOWS_TOO_LITTLE:
        return None
    if decision.verdict == "reject":
        return "end", decision.reason_code
    return None if session_table.granted(decision) == granted else ("change", decision.reason_code)


class SessionService:
    """The table of live sessions, and what has to happen to them."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        decides: Decides,
        *,
        stale_minutes: float,
        assumed_hours: float,
        keep_days: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._decides = decides
        self._stale = timedelta(minutes=stale_minutes)
        self._assumed_for = timedelta(hours=assumed_hours)
        self._keep = timedelta(days=keep_days)
        self._assumed = Assumed()
        self._in_table: set[Key] = set()
        self._added: set[Key] = set()
        self._table_bound = MAX_ASSUMED
        self._accepted = AcceptQueue(store, self._decide_outdated)
        self._moving: dict[Key, Accepted] = {}
        """Taken out of memory for the transaction that writes them down, until a newer accept makes them history."""
        self._behind: set[Key] = set()
        """Stations in the table whose newest accept is assumed, because the queue was full."""
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
        await self._restore()
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
        except Exception:  # noqa: BLE001 - supervisor: what is stopped after this, the store last, is stopped all the same
            _log.exception("event=sessions-not-written")

    def accepted(self, decision: Decision) -> None:
        """An Access-Accept goes out; never blocks, never fails."""
        if decision.verdict == "reject":
            return
        at = to_micros(self._clock.now())
        self._take(decision, at, is_outdated=decision.generation != self._decides.generation)

    def _take(self, decision: Decision, at: int, *, is_outdated: bool = False) -> None:
        key = key_of(decision.request)
        self._moving.pop(key, None)
        is_full = len(self._accepted) >= MAX_QUEUED  # the store takes nothing: one per station is bound enough
        if not is_outdated and (is_full or key not in self._in_table):
            self._assumed.put(key, decision, at)
            if key in self._in_table:
                self._behind.add(key)
            if not is_full and (surplus := self._assumed.surplus()) is not None:
                self._write_down([surplus])
            return
        self._write_down([key])  # the one before, if it is another
        self._accepted.append(Accepted(decision, at, at, is_outdated))
        self._awake.set()

    def _write_down(self, keys: Iterable[Key], *, is_outdated: bool = False) -> None:
        """Queue what is assumed of these stations for the table."""
        for key in keys:
            self._into_table(key)
            if (found := self._assumed.pop(key)) is not None:
                self._accepted.append(found._replace(is_outdated=is_outdated))
                self._awake.set()

    def _into_table(self, key: Key) -> None:
        self._in_table.add(key)
        self._added.add(key)

    async def _recount(self) -> None:
        """Stations come and go; those whose sessions have all ended need not be known any more."""
        if len(self._in_table) <= self._table_bound:
            self._added.clear()
            return
        added = self._added = {key_of(one.decision.request) for one in self._accepted}
        live = await self._store.read(sessions.live_stations)
        self._in_table = live | added
        self._table_bound = max(MAX_ASSUMED, 2 * len(live))

    async def account(self, record: AccountingRecord) -> None:
        """Take an accounting message in; when this returns it is stored and may be acknowledged."""
        if record.status in ("on", "off"):
            self._write_down(self._assumed.of_nas(record.nas_address))
        await self._flush()  # the accept that it belongs to comes first
        key = record.nas_address, session_table.station_key(record.calling_station, record.nas_port)
        self._into_table(key)
        assumed = self._assumed.pop(key)
        if assumed is None:
            await self._store.write(lambda tx: session_table.account(tx, record))
            return
        self._moving[key] = assumed
        # shielded: whoever gave up waiting would not know whether it is written
        await asyncio.shield(asyncio.ensure_future(self._write_first(key, record, assumed)))

    async def _write_first(self, key: Key, record: AccountingRecord, assumed: Accepted) -> None:
        """Write down the first record of a session, and before it the accept that only memory knew of."""

        def store(tx: Tx) -> None:
            session_table.accept(tx, *assumed[:3])
            session_table.account(tx, record)

        try:
            await self._store.write(store)
        except BaseException:  # whatever it was: the session stays known, and what happened meanwhile counts for it
            if self._moving.get(key) is assumed:
                self._accepted.append(assumed._replace(is_outdated=True))
                self._awake.set()
            raise
        finally:
            if self._moving.get(key) is assumed:
                del self._moving[key]

    async def _restore(self) -> None:
        """What the decision log tells of sessions that were assumed when the appliance ended."""
        since = self._clock.now() - self._assumed_for
        behind = await self._decides.left_behind(since)  # before the log is read, into which they get meanwhile

        def read(tx: Tx) -> tuple[dict[Key, tuple[datetime, bool]], list[tuple[Decision, datetime]]]:
            rows = [*decisions.accepted(tx, since=since, count=MAX_ASSUMED), *behind]
            return sessions.heard(tx, since), [(decision_of(row), row["time"]) for row in rows]

        heard, accepted = await self._store.read(read)
        self._in_table = {key for key, (_, is_live) in heard.items() if is_live}
        newest: dict[Key, tuple[Decision, datetime]] = {}
        for decision, time in accepted:
            newest.pop(key := key_of(decision.request), None)
            newest[key] = decision, time
        for at, (decision, time) in enumerate([*newest.values()][-MAX_ASSUMED:]):
            if time > heard.get(key_of(decision.request), (since, False))[0]:
                self._take(decision, to_micros(time))
            if not at % PAGE:
                await asyncio.sleep(0)

    async def search(self, *, everything: bool = False, mac: str = "", limit: int = 1000, **by: str) -> list[Session]:
        """Sessions by owner, agent, nas, mac, vlan or session_id; `everything` takes the ended ones too."""
        await self._flush()
        key = mac_key(mac) if mac else ""
        wishes = {_SHOWN_AS.get(name, name): value for name, value in (by | {"mac_key": key}).items() if value}

        def shown(found: Iterable[Session]) -> list[Session]:
            return [one for one in found if all(getattr(one, name) == value for name, value in wishes.items())]

        assumed: dict[str, Session] = {}
        async for page in self._assumed_pages():
            assumed |= {one.id: one for one in shown(page)}
        moving = shown(self._under_way())
        found = await self._store.read(lambda tx: sessions.search(tx, mac_key=key, ended=everything, limit=limit, **by))
        if not assumed and not moving:
            return found
        in_table = {(one.nas_address, one.mac_key) for one in found if one.is_live}
        both = assumed | {one.id: one for one in moving if (one.nas_address, one.mac_key) not in in_table}
        both |= {one.id: one for one in found}  # what went into the table meanwhile is in it
        return sorted(both.values(), key=lambda one: one.began_at, reverse=True)[:limit]

    async def live(self) -> AsyncIterator[Session]:
        """Every live session once, a page at a time."""
        await self._flush()
        in_memory: set[str] = set()
        async for some in self._assumed_pages():
            for session in some:
                in_memory.add(session.id)
                yield session
        for session in self._under_way():
            if session.id not in in_memory:
                in_memory.add(session.id)
                yield session
        after = ""
        while page := await self._store.read(lambda tx: sessions.page(tx, after=after, count=_LOOK_PAGE)):  # noqa: B023
            for session in page:
                if session.id not in in_memory:
                    yield session
            after = page[-1].id

    def _under_way(self) -> list[Session]:
        """What has left memory for the table and is not known to be there."""
        return [session_table.session_of(*one[:3]) for one in (*self._accepted, *self._moving.values())]

    async def _assumed_pages(self) -> AsyncIterator[list[Session]]:
        """What memory alone knows of, a little at a time: decisions go on in between."""
        keys = self._assumed.keys()
        for begin in range(0, len(keys), _SHOWN_AT_ONCE):
            found = (self._assumed.get(key) for key in keys[begin : begin + _SHOWN_AT_ONCE])
            yield [session_table.session_of(*one[:3]) for one in found if one is not None]
            await asyncio.sleep(0)

    async def changes(self, session_id: str) -> list[Change]:
        """What a session's NAS was asked for."""
        return await self._store.read(lambda tx: sessions.changes_of(tx, session_id))

    async def order(self, found: Sequence[Session], want: Want, actor: Actor) -> list[Change]:
        """An administrator's wish for these sessions."""
        if not found:
            raise SessionUnknown("there is no live session of this kind")
        if len(found) > 100_000:
            raise RequestMalformed("too many sessions at once")
        self._write_down([(one.nas_address, one.mac_key) for one in found])
        await self._flush()
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
                change, is_new = sessions.order_change(tx, session.id, want, why)
                made.append(change)
                told = {"want": want, "nas": session.nas, "mac": session.mac, "owner": session.owner_id}
                if is_new:  # every look asks again for what nobody has got to yet
                    append(tx, AuditEvent("session-change-asked", actor, session.id, reason=why, fields=told))
            return made

        made: list[Change] = []
        for at in range(0, len(wishes), PAGE):
            some = wishes[at : at + PAGE]
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
                await asyncio.sleep(_AGAIN_SECONDS)
                self._awake.set()
            except Exception:  # noqa: BLE001 - supervisor: without this task nobody who was revoked leaves a port
                _log.exception("event=sessions-not-looked-at")
                await asyncio.sleep(_AGAIN_SECONDS)
                self._awake.set()
            await asyncio.sleep(FLUSH_SECONDS / 2)

    async def _flush(self) -> None:
        """Write what is queued; a decision that was outdated when it came is changed like any other."""
        is_behind = True
        while is_behind:  # once more after the last: somebody else may have queued, and not yet written, some
            is_behind = bool(self._behind)
            while self._behind and len(self._accepted) < PAGE:
                self._write_down([self._behind.pop()])
            await self._accepted.flush()

    async def _decide_outdated(self, found: list[Session]) -> None:
        try:
            await self._decide(found)
        except BaseException:  # they are in the table now, where the next look finds them
            self._everything = True
            self._awake.set()
            raise

    async def _look(self) -> None:
        """Decide anew on every session that what happened may concern."""
        everything, owners, agents = self._everything, self._owners, self._agents
        self._everything, self._owners, self._agents = False, set(), set()
        try:
            if everything:
                await self._look_at_all()
            elif owners or agents:
                await self._look_at_assumed(self._assumed.of_parties(owners, agents))
                await self._store.write(lambda tx: None)  # behind this is whatever somebody else is writing just now
                await self._decide(await self._store.read(lambda tx: sessions.of_parties(tx, owners, agents)))
        except BaseException:  # whatever it was, cancellation too: the next look has this to do
            self._everything |= everything
            self._owners |= owners
            self._agents |= agents
            raise

    async def _look_at_all(self) -> None:
        after, begun = "", self._clock.monotonic()
        await self._look_at_assumed(self._assumed.keys())
        await self._store.write(lambda tx: None)
        while page := await self._store.read(lambda tx: sessions.page(tx, after=after, count=_LOOK_PAGE)):  # noqa: B023
            await self._decide(page)
            after = page[-1].id
        self._look_seconds = self._clock.monotonic() - begun

    async def _look_at_assumed(self, keys: Sequence[Key]) -> None:
        """Those that would get something else now go into the table, and their change with them."""
        for at, key in enumerate(keys):
            found = self._assumed.get(key)
            if found is None:
                continue
            now = self._decides.simulate(found.decision.request)
            if _wanted(session_table.granted(found.decision), now) is not None:
                self._write_down([key], is_outdated=True)
            if not at % _AT_ONCE:
                await asyncio.sleep(0)
            if not at % PAGE:
                await self._flush()
        await self._flush()

    async def _decide(self, found: Sequence[Session]) -> None:
        orders = []
        for at, session in enumerate(found):
            order = wanted(session, self._decides.simulate(session_table.read_login(session.request)))
            if order is not None:
                orders.append((session, *order))
            if at % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        if orders:
            await self._order(orders)

    async def _sweep(self) -> None:
        """Now and then: sessions that fell silent, old ones to forget, and what time alone has changed."""
        while True:
            await asyncio.sleep(max(SWEEP_SECONDS, _LOOK_SHARE * self._look_seconds))
            now = self._clock.now()
            self._assumed.forget(to_micros(now - self._assumed_for))

            def store(tx: Tx) -> None:
                sessions.mark_stale(tx, now - self._stale)  # noqa: B023
                sessions.give_up(tx, now - self._assumed_for)  # noqa: B023
                sessions.prune(tx, now - self._keep)  # noqa: B023

            try:
                await self._store.write(store)
                await self._recount()
            except ApplianceError as refused:
                _log.warning("event=sessions-not-swept detail=%r", refused.detail)
                continue
            except Exception:  # noqa: BLE001 - supervisor: what time alone has changed is found here and nowhere else
                _log.exception("event=sessions-not-swept")
            self._everything = True
            self._awake.set()


def _failed_lately(tx: Tx, session_id: str, why: str) -> bool:
    """Whether the newest change of a session was asked for the same reason and failed a short while ago."""
    newest = max(sessions.changes_of(tx, session_id), key=lambda one: one.id, default=None)
    if newest is None or newest.state != sessions.FAILED or newest.why != why:
        return False
    return tx.now - newest.updated_at < AGAIN_AFTER
