"""Carries out ordered changes: asks the NAS by CoA or Disconnect until it says yes, or it is clear that it will not.

Orders are rows of the store, so a restart loses none. Before each attempt the decision is made anew: an owner who was
resumed meanwhile loses no session. A NAS that does not do CoA gets a Disconnect. At most COA_PARALLEL exchanges are
under way and PER_NAS at one NAS, so that one that is dead holds up nobody else's.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from appliance.access import session_table
from appliance.access.sessions import SessionService, wanted
from appliance.audit import APPLIANCE, AuditEvent, append
from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.keeping import keep
from appliance.store import sessions
from appliance.store.sessions import Change, Session
from appliance.store.store import Store
from appliance.store.transaction import Tx
from radius import AccessRequest, Decision, to_attributes
from radius.coa import Exchange, send_order
from radius.dynamic import CANNOT, SESSION_NOT_FOUND, SessionName
from radius.nas_profiles import PROFILES, NasProfile, Order

_log = logging.getLogger(__name__)

COA_PARALLEL = 64
PER_NAS = 8
MAX_ATTEMPTS = 10
YOUNG = timedelta(seconds=10)
LOGIN_AFTER_ACK = timedelta(seconds=4)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 120.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where a NAS takes requests, and with which secrets: the newest first."""

    port: int
    profile: NasProfile
    secrets: tuple[bytes, ...]


class Targets(Protocol):
    """Who knows the NAS."""

    def target(self, nas_address: str, name: str = "") -> Target | None: ...


class ChangeRunner:
    """Asks the NAS for what SessionService ordered."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        service: SessionService,
        targets: Targets,
        simulate: Callable[[AccessRequest], Decision],
    ) -> None:
        self._store = store
        self._clock = clock
        self._service = service
        self._targets = targets
        self._simulate = simulate
        self._running: dict[int, asyncio.Task[None]] = {}
        self._all = asyncio.Semaphore(COA_PARALLEL)
        self._of_nas: dict[str, asyncio.Semaphore] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with what is waiting, also from before a restart."""
        self._service.ordered.set()
        self._task = asyncio.create_task(keep(self._run, "session-changes"))

    async def stop(self) -> None:
        """Stop; what is under way is asked again after the next start."""
        tasks = [*self._running.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()

    async def _run(self) -> None:
        pause = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for() may lose a cancellation that meets the event
                    await self._service.ordered.wait()
            self._service.ordered.clear()
            try:
                pause = await self._begin()
            except ApplianceError as refused:
                _log.warning("event=session-changes-not-read detail=%r", refused.detail)
                pause = 1.0

    async def _begin(self) -> float:
        """Start what is due; seconds until something else will be."""
        room = 4 * COA_PARALLEL
        changes = await self._store.read(lambda tx: sessions.due(tx, room + len(self._running)))
        for change in changes:
            if change.id not in self._running:
                task = asyncio.create_task(self._carry_out(change))
                self._running[change.id] = task
                task.add_done_callback(lambda _, number=change.id: self._done(number))  # type: ignore[misc]
        if len(changes) >= room:
            return 0.2
        due = await self._store.read(sessions.next_due)
        if due is None:
            return 60.0
        return min(60.0, max(0.05, (due - self._clock.now()).total_seconds()))

    def _done(self, number: int) -> None:
        task = self._running.pop(number, None)
        self._service.ordered.set()
        if task is not None and not task.cancelled() and (failed := task.exception()) is not None:
            _log.error("event=session-change-broke change=%d error=%r", number, failed, exc_info=failed)

    async def _carry_out(self, listed: Change) -> None:
        # the list of what is due may be older than the end of an attempt that was still under way when it was read
        change, session = await self._store.read(
            lambda tx: (sessions.still_due(tx, listed), sessions.get(tx, listed.session_id))
        )
        if change is None:
            return
        if session is None or not session.is_live:
            await self._save(change, session, state=sessions.DONE, result="the session is over")
            return
        decision = self._simulate(session_table.read_login(session.request))
        if change.why != "administrator":
            now_wanted = wanted(session, decision)
            if now_wanted is None:
                await self._save(change, session, state=sessions.DONE, result="not needed any more")
                return
            want, why = now_wanted
            if change.attempts and change.want == "end":
                want = "end"  # it was asked nicely before
            change = replace(change, want=want, why=why)
        target = self._targets.target(session.nas_address, session.nas)
        if target is None:
            await self._save(change, session, state=sessions.FAILED, result="the NAS is not known here any more",
                             ended="nas-unknown")  # fmt: skip
            return
        gate = self._of_nas.setdefault(session.nas_address, asyncio.Semaphore(PER_NAS))
        async with gate, self._all:
            order = target.profile.order(change.want)  # type: ignore[arg-type]
            exchange = await self._ask(target, order, session, decision)
        await self._conclude(change, session, target, order, decision, exchange)

    async def _ask(self, target: Target, order: Order, session: Session, decision: Decision) -> Exchange:
        """With the newest secret; while a rotation's overlap lasts also with the one before."""
        login = session_table.read_login(session.request)
        name = SessionName(session.nas_address, session.mac, session.acct_session, login.nas_identifier)
        attributes = to_attributes(decision, reply_message=False) if decision.verdict != "reject" else ()
        sendings = 4 if len(target.secrets) == 1 else 2
        exchange = Exchange(None, 0, 0, "no shared secret")
        for secret in target.secrets:
            exchange = await send_order(
                (session.nas_address, target.port),
                secret,
                order,
                name,
                attributes,
                timestamp=int(self._clock.now().timestamp()),
                must_be_signed=target.profile.signs_answers,
                sendings=sendings,
            )
            if exchange.answer is not None:
                break
        return exchange

    async def _conclude(
        self, change: Change, session: Session, target: Target, order: Order, decision: Decision, exchange: Exchange
    ) -> None:
        answer, words = exchange.answer, exchange.words
        change = replace(change, attempts=change.attempts + 1)
        if answer is not None and answer.is_ack:
            if order is target.profile.end or order == target.profile.end:
                await self._save(change, session, state=sessions.DONE, result=words, ended="disconnected")
            elif order.in_place:
                await self._save(change, session, state=sessions.DONE, result=words, now=decision)
            elif change.why == "administrator":
                await self._save(change, session, state=sessions.DONE, result=words)
            else:  # the NAS asks the supplicant anew; if nothing comes of it the session has to end
                waits = replace(change, want="end")
                await self._save(waits, session, state=sessions.WAITING, result=f"{words}, login awaited",
                                 pause=LOGIN_AFTER_ACK)  # fmt: skip
            return
        if answer is not None and answer.cause == SESSION_NOT_FOUND:
            if self._clock.now() - session.updated_at < YOUNG and change.attempts < 4:  # the Accept may be on its way
                await self._again(change, session, words)
            else:
                await self._save(change, session, state=sessions.DONE, result=words, ended="unknown-to-nas")
            return
        if answer is not None and answer.cause in CANNOT:
            if order == target.profile.end:
                await self._save(change, session, state=sessions.FAILED, result=words)
            else:
                fallback = replace(change, want="end")
                await self._save(fallback, session, state=sessions.WAITING, result=f"{words}, Disconnect follows",
                                 pause=timedelta())  # fmt: skip
            return
        if change.attempts >= MAX_ATTEMPTS:
            await self._save(change, session, state=sessions.FAILED, result=words)
            return
        await self._again(change, session, words)

    async def _again(self, change: Change, session: Session, words: str) -> None:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (change.attempts - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
        await self._save(change, session, state=sessions.WAITING, result=words, pause=timedelta(seconds=pause))

    async def _save(
        self,
        change: Change,
        session: Session | None,
        *,
        state: str,
        result: str,
        pause: timedelta | None = None,
        ended: str = "",
        now: Decision | None = None,
    ) -> None:
        """Write how it went, and tell the audit log once it is over."""

        def store(tx: Tx) -> None:
            standing = sessions.get(tx, change.session_id)
            stored = sessions.standing(tx, change) or change
            if stored.state == sessions.WAITING:
                due = change.due_at if pause is None else tx.now + pause
                sessions.save_change(tx, replace(change, state=state, result=result[:200], due_at=due))
            else:  # settled meanwhile: a login anew, or the NAS's Accounting-Stop was faster than its ACK
                told = f"{result}; {stored.result}"[:200]
                sessions.save_change(tx, replace(change, state=stored.state, result=told))
            if standing is not None and standing.is_live:
                if ended:
                    session_table.end(tx, standing, ended)
                elif now is not None and now.vlan is not None:
                    granted = session_table.granted(now)
                    sessions.save(tx, replace(standing, granted=granted, vlan=str(now.vlan), verdict=now.verdict,
                                              department=now.department, policy_revision=now.policy_revision,
                                              updated_at=tx.now))  # fmt: skip
            if state == sessions.WAITING or session is None:
                return
            done = state == sessions.DONE
            fields = {"want": change.want, "why": change.why, "nas": session.nas, "mac": session.mac,
                      "owner": session.owner_id, "result": result[:200], "attempts": change.attempts}  # fmt: skip
            event = "session-changed" if done else "session-change-failed"
            append(tx, AuditEvent(event, APPLIANCE, session.id, "done" if done else "failed", fields=fields))

        await self._store.write(store, essential=True)
        _log.info(
            "event=session-change session=%s want=%s why=%s state=%s result=%r",
            change.session_id, change.want, change.why, state, result,
        )  # fmt: skip


def profile_of(name: str) -> NasProfile:
    """A stored profile; one that this release does not know does what every NAS can."""
    return PROFILES.get(name, PROFILES["generic-disconnect"])
