"""DirectorySync: reads the site's source of owners on a schedule or on demand, and takes in all of it or nothing.

Decisions never wait for it: they rest on owners that are in memory. A reading that fails, or that would change too
much, leaves every owner as it is and says so until it is put right; how old the last whole reading may become, and what
decisions do then, is the site's rule (settings directory.stale_hours and directory.when_stale).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from appliance import audit
from appliance.access.directory import OwnerDirectory
from appliance.access.owner_rows import ConfirmationNeeded, OwnerFileRefused
from appliance.access.sources import apply
from appliance.access.sources.csv_file import read_whole
from appliance.access.sources.errors import (
    DirectoryBusy,
    DirectoryFileRefused,
    DirectoryFrozen,
    DirectoryNotConfigured,
    DirectoryTooLarge,
    DirectoryUnreachable,
    SourceAtFault,
)
from appliance.access.sources.ldap_source import Reading
from appliance.access.sources.plan import Plan, make_plan
from appliance.audit import APPLIANCE, Actor, AuditEvent
from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.settings import DirectorySettings
from appliance.store import directory_sources, owners
from appliance.store.directory_sources import DONE, FAILED, FROZEN, SourceRow
from appliance.store.store import Store
from appliance.store.transaction import Tx

_log = logging.getLogger(__name__)
Json = Mapping[str, Any]
_FIRST_RETRY_SECONDS = 30.0
_CONFIRM = "look with `appliance directory sync --dry-run`, then give --confirm"


class Source(Protocol):
    """A directory; reading it blocks, so it is read in a thread of its own."""

    @property
    def name(self) -> str:
        """The source that its owners are marked with."""
        ...

    def check(self) -> str:
        """What the settings name is there; raises DirectoryNotConfigured."""
        ...

    def read(self, now: datetime, stop: threading.Event) -> Reading:
        """Everybody, or DirectoryError."""
        ...

    def find(self, ref: str, now: datetime, stop: threading.Event) -> Reading:
        """Those with this ref, or DirectoryError."""
        ...


class DirectorySync:
    """One source of owners, kept in step."""

    def __init__(
        self,
        settings: DirectorySettings,
        *,
        origin: str,
        store: Store,
        clock: Clock,
        directory: OwnerDirectory,
        source: Source | None,
        chance: Callable[[], float],
        grace_seconds: float = 5.0,
    ) -> None:
        """`source` is None for a watched file; `chance` answers a number between 0 and 1, to spread readings.

        A source has `grace_seconds` beyond its own limit of time before it is given up.
        """
        self._grace_seconds = grace_seconds
        self._settings = settings
        self._origin = origin
        self._store = store
        self._clock = clock
        self._directory = directory
        self._source = source
        self._chance = chance
        self._busy = asyncio.Lock()
        self._stop = threading.Event()

    @property
    def source_name(self) -> str:
        """The source that owners are marked with; empty if none is set."""
        return {"none": "", "csv": owners.LOCAL, "ldap": owners.LDAP}[self._settings.source]

    async def run(self) -> None:
        """Read on schedule for ever; sooner again after a failure, ever more rarely while it lasts."""
        if not self.source_name:
            return
        interval = self._settings.interval_minutes * 60
        wait, failures = min(1.0, interval) * self._chance(), 0
        while True:
            await asyncio.sleep(wait)
            try:
                await self.sync(actor=APPLIANCE)
                failures = 0
            except DirectoryFrozen:
                failures = 0
            except ApplianceError as refused:
                failures += 1
                _log.warning("event=directory-sync-failed reason=%s detail=%r", refused.reason, refused.detail)
            except Exception:  # noqa: BLE001 - supervisor: the next reading may work
                failures += 1
                _log.exception("event=directory-sync-crashed")
            wait = interval * (1 + self._chance() / 10)
            if failures:
                wait = min(wait, _FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 10) * (1 + self._chance() / 10))

    def stop(self) -> None:
        """End a reading that is under way."""
        self._stop.set()

    async def sync(self, *, actor: Actor, confirm: bool = False, dry_run: bool = False) -> Json:
        """Read the source now and take in what it says; answers what that was.

        Raises DirectoryFrozen if too much would change and nobody confirmed it, DirectoryBusy, and what the source
        refuses. With `dry_run` nothing is changed.
        """
        if not self.source_name:
            raise DirectoryNotConfigured("directory.source is none")
        if self._busy.locked():
            raise DirectoryBusy("the source is being read already", retry_after_seconds=10)
        async with self._busy:
            begun = self._clock.now()
            try:
                if self._source is None:
                    return await self._take_file(begun, actor, confirm, dry_run)
                return await self._take(self._source, begun, actor, confirm, dry_run)
            except DirectoryFrozen as refused:
                if not dry_run:
                    await self._failed(begun, FROZEN, refused, actor)
                raise
            except ApplianceError as refused:
                if not dry_run:
                    await self._failed(begun, FAILED, refused, actor)
                raise

    async def status(self) -> list[Json]:
        """Every source: how many owners, how the last reading went, how old the last whole one is."""

        def read(tx: Tx) -> tuple[dict[str, SourceRow], dict[str, dict[str, int]]]:
            return directory_sources.every(tx), owners.counts(tx)

        rows, counts = await self._store.read(read)
        now = self._clock.now()
        names = dict.fromkeys((*counts, *rows, *([self.source_name] if self.source_name else [])))
        return [self._state(name, rows.get(name), counts.get(name, {}), now) for name in names]

    async def lookup(self, ref: str) -> Json:
        """What the directory says of one person now; nothing is changed. Raises DirectoryError."""
        if self._source is None:
            raise DirectoryNotConfigured("there is no directory to ask: directory.source is not ldap")
        found = await self._in_thread(lambda source: source.find(ref, self._clock.now(), self._stop))
        return {
            "ref": ref,
            "found": [
                {
                    "key": one.key,
                    "refs": list(one.refs),
                    "names": list(one.names),
                    "departments": list(one.departments),
                    "enabled": one.is_enabled,
                    "defects": list(one.defects),
                }
                for one in found.people
            ],
        }

    async def look(self) -> str:
        """How the source is, in a few words; raises the refusal that an administrator has to act on."""
        if not self.source_name:
            return "no source is set"
        rows = await self._store.read(directory_sources.every)
        return judge(self._settings, self.source_name, rows, self._clock.now())

    # -- a directory

    async def _take(self, source: Source, begun: datetime, actor: Actor, confirm: bool, dry_run: bool) -> Json:
        reading = await self._in_thread(lambda one: one.read(begun, self._stop))

        def plan(tx: Tx) -> Plan:
            return make_plan(source.name, reading.people, owners.every(tx))

        def write(tx: Tx) -> Plan:
            found = planned if planned.is_empty else plan(tx)  # made anew where it counts: nobody comes between
            _check_size(found, confirm)
            apply.apply(tx, found, source=source.name, origin=self._origin, actor=actor)
            counts = {**apply.counts(found), "referrals": reading.referrals}
            directory_sources.put(tx, SourceRow(source.name, begun, begun, DONE, counts))
            if not found.is_empty or actor is not APPLIANCE:
                fields = {**counts, "confirmed": confirm and found.is_large}
                audit.append(tx, AuditEvent("directory-synced", actor, object=source.name, fields=fields))
            return found

        planned = await self._store.read(plan)
        done = planned if dry_run else await self._store.write(write, essential=True)
        return {
            "source": source.name,
            "applied": not dry_run,
            "needs_confirmation": done.is_large,
            "referrals": reading.referrals,
            **apply.shown(done),
        }

    async def _in_thread(self, read: Callable[[Source], Reading]) -> Reading:
        """In a thread that nobody waits for at the end: asyncio's own would hold up the stop of the process."""
        source = self._source
        assert source is not None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reading] = loop.create_future()

        def settle(found: Reading | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            elif found is not None:
                future.set_result(found)

        def work() -> None:
            found, error = None, None
            try:
                found = read(source)
            except Exception as failure:  # noqa: BLE001 - carried over to whoever waits
                error = failure
            with contextlib.suppress(RuntimeError):  # the loop may be gone
                loop.call_soon_threadsafe(settle, found, error)

        threading.Thread(target=work, name="directory", daemon=True).start()
        try:  # the reading keeps its own time; only the resolver of names does not
            async with asyncio.timeout(self._settings.ldap_total_seconds + self._grace_seconds):
                return await future
        except TimeoutError as cause:
            raise DirectoryUnreachable("the directory's address was not found in time") from cause

    # -- a file

    async def _take_file(self, begun: datetime, actor: Actor, confirm: bool, dry_run: bool) -> Json:
        settings = self._settings
        text = await asyncio.to_thread(read_whole, settings.csv_file, settings.max_bytes)
        if text.count("\n") > settings.max_owners + 1:
            raise DirectoryTooLarge(f"more than {settings.max_owners} lines", limit=settings.max_owners)
        try:
            found = await self._directory.import_csv(text, actor=actor, confirm=confirm, dry_run=dry_run)
        except ConfirmationNeeded as refused:
            raise DirectoryFrozen(f"{refused.detail}; {_CONFIRM}", **refused.fields) from refused
        except OwnerFileRefused as refused:
            raise DirectoryFileRefused(refused.detail, **refused.fields) from refused
        counts = {name: len(found[name]) for name in ("added", "changed", "unchanged", "vanished")}
        if not dry_run:
            row = SourceRow(owners.LOCAL, begun, begun, DONE, counts)
            await self._store.write(lambda tx: directory_sources.put(tx, row))
        return {"source": owners.LOCAL, "applied": not dry_run, **counts, "rows": found}

    # -- how it went

    async def _failed(self, at: datetime, outcome: str, refused: ApplianceError, actor: Actor) -> None:
        """Keep what happened; the audit log hears of it once, not every quarter of an hour."""
        name = self.source_name
        detail = {"reason": refused.reason, "detail": refused.detail, **_numbers(refused)}

        def write(tx: Tx) -> None:
            before = directory_sources.every(tx).get(name)
            confirmed = None if before is None else before.confirmed_at
            directory_sources.put(tx, SourceRow(name, at, confirmed, outcome, detail))
            is_news = before is None or before.outcome == DONE or before.detail.get("reason") != refused.reason
            if is_news or actor is not APPLIANCE:
                event = AuditEvent(
                    "directory-sync-refused", actor, name, outcome="failed", reason=refused.reason, fields=detail
                )
                audit.append(tx, event)

        await self._store.write(write)
        _log.warning("event=directory-%s source=%s reason=%s detail=%r", outcome, name, refused.reason, refused.detail)

    def _state(self, name: str, row: SourceRow | None, counts: Mapping[str, int], now: datetime) -> Json:
        is_read = name == self.source_name
        age = None if row is None or row.confirmed_at is None else (now - row.confirmed_at).total_seconds()
        return {
            "source": name,
            "scheduled": is_read,
            "owners": sum(counts.values()),
            **{state: counts.get(state, 0) for state in (owners.PRESENT, owners.DISABLED, owners.ABSENT)},
            "outcome": "" if row is None else row.outcome,
            "attempted_at": _shown(None if row is None else row.attempted_at),
            "confirmed_at": _shown(None if row is None else row.confirmed_at),
            "age_seconds": None if age is None else max(0, round(age)),
            "stale": is_read and age is not None and age > self._settings.stale_hours * 3600,
            "when_stale": self._settings.when_stale if is_read else "",
            "detail": {} if row is None else dict(row.detail),
        }


def judge(settings: DirectorySettings, name: str, rows: Mapping[str, SourceRow], now: datetime) -> str:
    """How a source is, in a few words; raises the refusal that an administrator has to act on."""
    row = rows.get(name)
    if row is None:
        return f"{name}: not read yet"
    age = "never read whole"
    if row.confirmed_at is not None:
        age = f"read whole {max(0.0, (now - row.confirmed_at).total_seconds()) / 60:.0f} min ago"
    said = f"{row.detail.get('reason')}: {row.detail.get('detail')}; {age}"
    if row.outcome == FROZEN:
        raise DirectoryFrozen(said)
    if row.outcome == FAILED:
        raise SourceAtFault(said)
    if row.confirmed_at is not None and (now - row.confirmed_at).total_seconds() > settings.stale_hours * 3600:
        raise SourceAtFault(f"stale: {age}")
    return f"{name}: {age}"


def _check_size(plan: Plan, confirm: bool) -> None:
    if plan.is_large and not confirm:
        counts = apply.counts(plan)
        raise DirectoryFrozen(
            f"of {plan.registered} owners {len(plan.changes)} would change ({counts['vanished']} vanish), and"
            f" {counts['added']} would be added; {_CONFIRM}",
            registered=plan.registered,
            **counts,
        )


def _numbers(refused: ApplianceError) -> dict[str, int]:
    return {name: value for name, value in refused.fields.items() if isinstance(value, int)}


def _shown(at: datetime | None) -> str:
    return "" if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")
