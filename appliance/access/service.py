"""Access: answers RADIUS servers. Gathers facts from the snapshot, asks radius.decide, logs what came out.

authorize() touches no store, no directory and no network (design decision D-7).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.access import server_tokens
from appliance.access.decision_log import DecisionLog
from appliance.access.server_tokens import digest_of
from appliance.access.snapshot import AgentFact, Snapshot, aged, gathered, let_go, with_events
from appliance.audit import APPLIANCE
from appliance.clock import Clock
from appliance.errors import ApplianceError, TokenRequired
from appliance.keeping import keep
from appliance.settings import AccessSettings, DirectorySettings
from appliance.store import facts, nas
from appliance.store.owners import LDAP, LOCAL
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow
from radius import AccessRequest, Credential, Decision, Facts, Policy, decide
from radius.decide import refuse
from radius.failures import read_log_line

_log = logging.getLogger(__name__)

RELOAD_SECONDS = 900.0
_NO_AGENT = AgentFact()
_START_SECONDS, _PATIENCE_SECONDS = 5.0, 2.0
"""What a storm has left is waited for so long, at a start and by a reader; the rest follows."""


class AccessService:
    """Decisions for RADIUS servers, FreeRADIUS through routes.py and the embedded server alike."""

    def __init__(
        self,
        settings: AccessSettings,
        store: Store,
        clock: Clock,
        issuers: Mapping[str, str] | None = None,
        directory: DirectorySettings | None = None,
        journal: Path | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        """`issuers`: role of each of our CAs that counts by its key identifier, hex; asked at every decision.

        `journal` is the decision log's file for a storm; it leaves `reserve_bytes` of the disk free.

        The snapshot holds agents only.
        """
        self._directory = directory or DirectorySettings()
        self._source = {"none": "", "csv": LOCAL, "ldap": LDAP}[self._directory.source]
        self._issuers = issuers
        self._settings = settings
        self._store = store
        self._clock = clock
        self._snapshot = Snapshot(checked_at=float("-inf"))
        self._tokens: dict[str, tuple[bytes, ...]] = {}
        """The newest of each server, and the one before until the newest serves."""
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._presented: dict[bytes, str] = {}
        """Holders of tokens that were found right, by the token's SHA-256: each login shows one of a few."""
        self._log = DecisionLog(
            store,
            clock,
            keep_days=settings.decision_log_days,
            keep_rows=settings.decision_log_rows,
            journal=journal,
            reserve_bytes=reserve_bytes,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._missed: list[OutboxRow] | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The facts that the next decision rests on."""
        return self._snapshot

    @property
    def generation(self) -> int:
        """That of the snapshot."""
        return self._snapshot.generation

    @property
    def snapshot_age_seconds(self) -> float:
        """How long ago the store last confirmed the snapshot."""
        return self._clock.monotonic() - self._snapshot.checked_at

    async def start(self) -> None:
        """Load the snapshot and keep it fresh; raises what the store or the policy refuses.

        What a storm has left in the journal of a process that died is in the log then, for whoever reads it next; where
        that takes long the rest follows.
        """
        self._store.subscribe(self._on_events)
        await self.reload()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await self._write_log("at the start")
        self._tasks = [
            asyncio.create_task(keep(self._log.run, "decision-log")),
            asyncio.create_task(self._keep_fresh()),
        ]

    async def stop(self) -> None:
        """Stop the tasks and write what the log still holds."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._ending.values(), return_exceptions=True)
        self._tasks = []
        await self._write_log("at the end")
        self._log.close()

    async def _write_log(self, when: str) -> None:
        try:
            self._log.tell_repeats(everything=True)
            await self._log.flush(even_in_a_storm=True)
        except ApplianceError as refused:
            _log.warning("decision log not written %s: %s", when, refused.detail)
        except Exception:  # noqa: BLE001 - supervisor: start and stop go on, the store's last of all
            _log.exception("event=decision-log-not-written")

    async def reload(self) -> None:
        """Read every fact from the store anew; what expired is forgotten."""
        begun = self._clock.monotonic()
        missed: list[OutboxRow] = []
        self._missed = missed
        # a hundred thousand rows become facts on the reading thread; decisions go on meanwhile, and no collector walks
        # through what is only just being made
        collects = gc.isenabled()
        gc.disable()
        try:
            loaded = await self._store.read(lambda tx: gathered(facts.read(tx), begun))
            servers = await self._store.read(nas.servers)
        finally:
            self._missed = None
            gc.freeze()
            if collects:
                gc.enable()
        self._tokens = {server.name: _digests(server.token_sha256, server.older_sha256) for server in servers}
        self._presented.clear()
        self._take_tokens(missed)
        # events that came while the store was read may or may not be in what was read; applying one twice is harmless
        old = self._snapshot
        self._snapshot = replace(with_events(loaded, missed), generation=old.generation + 1)
        for _ in let_go(old):
            await asyncio.sleep(0)

    def authorize(self, request: AccessRequest) -> Decision:
        """The decision for one login whose certificate chain the RADIUS server has verified; it is logged."""
        decision = self.simulate(request)
        if decision.steps[0].outcome == "pass":
            self._log.put(decision)
        else:  # no certificate that verified: anybody can make many of these
            self._log.put_failure(decision)
        return decision

    def simulate(self, request: AccessRequest, draft: Policy | None = None) -> Decision:
        """What authorize() would say now, without a log row; by a draft if there is one."""
        snapshot = self._snapshot
        ref = request.credential
        # a CA that was retired takes with it what it issued
        is_ours = ref is not None and (self._issuers is None or ref.aki in self._issuers)
        credential = snapshot.credential(ref.aki, ref.serial) if ref is not None and is_ours else None
        facts_now, policy = self._facts(snapshot, request, credential), draft or snapshot.policy
        age = None if facts_now.owner is None else self._source_age(snapshot, facts_now.owner.identifier, facts_now.now)
        if age is None:
            return decide(request, credential, facts_now, policy)
        limit, rule = self._directory.stale_hours * 3600, self._directory.when_stale
        if age > limit and rule != "keep" and facts_now.snapshot_age_seconds <= facts_now.stale_after_seconds:
            # a source that was not read for too long is a stale snapshot of its owners, under a rule of its own
            facts_now = facts_now._replace(snapshot_age_seconds=age, stale_after_seconds=limit)
            policy = None if policy is None else replace(policy, stale=rule)
        return _with_source(decide(request, credential, facts_now, policy), self._source, age, limit, rule)

    def failed(self, request: AccessRequest, decision: Decision, times: int = 1) -> None:
        """Log a login that ended before policy was asked, or count it with others like it; it came `times` times."""
        self._log.put_failure(decision, times)

    def said_by_freeradius(self, line: str) -> None:
        """Log a packet that FreeRADIUS dropped, if that is what a line of its log tells."""
        found = read_log_line(line)
        if found is not None:
            self.failed(found.request, refuse(found.request, found.code, found.detail))

    def on_logged(self, listener: Callable[[], None]) -> None:
        """Call back whenever rows of the decision log were written."""
        self._log.on_written = listener

    def spare_the_store(self, is_storm: Callable[[], bool]) -> None:
        """While this is true the decision log is not written into the store; asked at every decision."""
        self._log.is_storm = is_storm

    async def flush(self) -> None:
        """Write what the log holds, so that a reader finds it; what came in a storm is waited for a moment only."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS if self._log.is_behind else None):
                await self._log.flush()

    async def left_behind(self, since: datetime) -> list[dict[str, Any]]:
        """Of each station the newest row that let it in, of those that a crash in a storm has kept out of the log."""
        return await self._log.left_behind(since)

    def check_token(self, presented: str) -> str:
        """Name of the RADIUS server that a bearer token belongs to; raises TokenRequired."""
        digest = digest_of(presented)
        if (holder := self._presented.get(digest)) is not None:
            return holder
        found = ""
        for name, every in self._tokens.items():
            for known in every:
                if hmac.compare_digest(known, digest):
                    found = name
        if not found:
            raise TokenRequired("the bearer token is not that of a RADIUS server known here")
        self._presented[digest] = found
        return found

    def served_with(self, holder: str, token: str) -> None:
        """A RADIUS server asks with this token, so it came up with it: a newest one ends the one before."""
        every = self._tokens.get(holder, ())
        if len(every) > 1 and holder not in self._ending and digest_of(token) == every[0]:
            self._ending[holder] = asyncio.create_task(self._end_older(holder, every[0]))

    async def _end_older(self, holder: str, digest: bytes) -> None:
        try:
            await self._store.write(lambda tx: server_tokens.end_older(tx, holder, digest, APPLIANCE), essential=True)
        except ApplianceError as refused:  # the next question tries again
            _log.warning("event=older-token-not-ended server=%s detail=%r", holder, refused.detail)
        finally:
            self._ending.pop(holder, None)

    def _facts(self, snapshot: Snapshot, request: AccessRequest, credential: Credential | None) -> Facts:
        owner = None
        agent, issuer_role = _NO_AGENT, ""
        if credential is None:
            if request.credential is not None and self._issuers is not None:
                issuer_role = self._issuers.get(request.credential.aki, "")
        else:
            owner = snapshot.owners.get(credential.owner_id or "")
            agent = snapshot.agents.get(credential.agent_id, _NO_AGENT)
        return Facts(
            now=self._clock.now(),
            owner=owner,
            agent_state=agent.state,
            agent_class=agent.agent_class,
            site=snapshot.sites.get(request.nas, ""),
            issuer_role=issuer_role,
            snapshot_age_seconds=max(0.0, self._clock.monotonic() - snapshot.checked_at),
            stale_after_seconds=self._settings.stale_seconds,
            generation=snapshot.generation,
        )

    def _source_age(self, snapshot: Snapshot, owner_id: str, now: datetime) -> float | None:
        """Seconds since an owner's source was read whole; None if nobody reads it, or has read it yet."""
        if not self._source or snapshot.sources.get(owner_id) != self._source:
            return None
        confirmed = snapshot.confirmed.get(self._source)
        return None if confirmed is None else max(0.0, (now - confirmed).total_seconds())

    def _on_events(self, events: list[OutboxRow]) -> None:
        self._snapshot = with_events(self._snapshot, events)
        if self._missed is not None:
            self._missed += events
        self._take_tokens(events)

    def _take_tokens(self, events: list[OutboxRow]) -> None:
        for event in events:
            if event.topic == nas.SERVER_TOPIC:
                self._tokens[event.key] = _digests(event.body["token_sha256"], event.body["older_sha256"])
                self._presented.clear()

    async def _keep_fresh(self) -> None:
        """Ask the store whether it is still there; now and then read everything anew."""
        reloaded = self._clock.monotonic()
        while True:
            await asyncio.sleep(min(5.0, self._settings.stale_seconds / 4))
            begun = self._clock.monotonic()
            try:
                if begun - reloaded > RELOAD_SECONDS:
                    await self.reload()
                    reloaded = begun
                else:
                    await self._store.read(facts.touch)
            except ApplianceError as refused:
                _log.warning("decision snapshot is %.0f s old: %s", self.snapshot_age_seconds, refused.detail)
                continue
            except Exception:  # noqa: BLE001 - supervisor: without this task every login would follow the stale rule
                _log.exception("event=snapshot-not-read age=%.0fs", self.snapshot_age_seconds)
                continue
            self._snapshot = aged(self._snapshot, begun)


def _digests(newest: str, older: str | None) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(one) for one in (newest, older) if one)


def _with_source(decision: Decision, source: str, age: float, limit: float, rule: str) -> Decision:
    """The decision with how old its owner's source is, where the owner is judged."""
    tls, held, owned, ruled = decision.steps
    if owned.outcome != "pass":
        return decision
    said = f", source {source} read {age:.0f} s ago"
    if age > limit:
        said += f" (limit {limit:.0f} s, site rule {rule})"
    return decision._replace(steps=(tls, held, owned._replace(evidence=owned.evidence + said), ruled))
