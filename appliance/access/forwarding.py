"""Forwards the decision log to syslog receivers as it is written: RFC 5424 over UDP, TCP or TLS.

The log in the store is the queue, so nothing is on the way of a decision, and a position per receiver is all that has
to be kept: after a restart, ours or the receiver's, it goes on behind what was delivered. That a host acknowledged a
page says little: what accepts connections may close them as soon as it finds nobody behind itself. So a page is certain
only when its connection lived on for a while, and what was sent last over one that ended is sent again. A receiver that
is away for too long loses the oldest rows, which are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Final

from appliance.access.decision_rows import as_json
from appliance.access.log_export import WIRE_FORMATS, Line
from appliance.access.syslog_wire import Receiver, Wire, open_wire
from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.settings import AccessSettings
from appliance.store import decisions, meta
from appliance.store.store import Store
from appliance.store.transaction import Tx

_log = logging.getLogger(__name__)

PAGE: Final = 50
CERTAIN_SECONDS: Final = 5.0
"""How long a connection must live on behind a page that it took."""
WINDOW: Final = 256  # pages that are not certain yet: as many as go over a stream in that time
LOOK_SECONDS: Final = 5.0
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
PATIENCE: Final = timedelta(minutes=1)
_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)


class LogNotForwarded(ApplianceError):
    """Receivers of the decision log are away; `appliance access forwarding` says which and why."""

    reason: ClassVar[str] = "log-not-forwarded"


@dataclass(slots=True)
class _Position:
    """What is kept of a receiver: the last row that it has for certain, its time, how many it got and never will."""

    row: int
    at: str
    sent: int = 0
    dropped: int = 0


_Unsure = deque[tuple[float, _Position]]
"""The monotonic time at which a page of this connection was acknowledged and the position behind it, oldest first."""


class Forwarder:
    """One receiver. Everything that goes wrong with it is its own affair: it is tried again, ever more slowly."""

    def __init__(
        self,
        receiver: Receiver,
        store: Store,
        clock: Clock,
        *,
        write: Callable[[Line], str],
        sender: str,
        pen: int,
        max_behind: int,
        context: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._receiver = receiver
        self._store = store
        self._clock = clock
        self._write = write
        self._sender = sender
        self._pen = pen
        self._max_behind = max_behind
        self._context = context
        self._key = f"log-forward {receiver.url}"
        self._position: _Position | None = None
        self._pause = FIRST_PAUSE
        self.news = asyncio.Event()
        """Set when rows were written to the log."""
        self.is_connected = False
        self._opened = self._well_at = clock.now()
        self.why = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._connected()
            except ApplianceError as refused:  # the store is away; the receiver is not to blame
                self._now(False, refused.detail)
            except TimeoutError:
                self._now(False, "the receiver does not answer, or takes nothing")
            except OSError as broken:
                self._now(False, str(broken))
            except Exception as failed:  # noqa: BLE001 - supervisor: without this task nothing would be forwarded
                _log.exception("event=log-forwarder-broke to=%s", self._receiver.url)
                self._now(False, type(failed).__name__)
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _connected(self) -> None:
        """From a connection to its end, which is an OSError."""
        if self._position is None:  # a new receiver's turn begins now, also if it is not there yet
            self._position = await self._store.read(lambda tx: self._known(tx, decisions.last(tx)))
            await self._save(self._position)
        async with contextlib.aclosing(await open_wire(self._receiver, self._context)) as wire:
            self._now(True, self.why)  # what went wrong last is not over before something is certain
            opened, unsure = self._clock.monotonic(), _Unsure()
            while True:
                self.news.clear()
                wire.check()  # of a connection that has ended, nothing becomes certain
                await self._settle(unsure)
                if len(unsure) < WINDOW and await self._send_page(wire, unsure):
                    continue
                if not unsure and self._clock.monotonic() - opened >= CERTAIN_SECONDS:
                    self._is_well()
                await self._wait(wire, unsure)

    async def _wait(self, wire: Wire, unsure: _Unsure) -> None:
        seconds = LOOK_SECONDS
        if unsure:
            seconds = min(seconds, max(0.0, unsure[0][0] + CERTAIN_SECONDS - self._clock.monotonic()))
        tasks = {asyncio.create_task(self.news.wait()), asyncio.create_task(wire.closed.wait())}
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _send_page(self, wire: Wire, unsure: _Unsure) -> bool:
        """Send what comes next, if anything does."""
        tip = unsure[-1][1] if unsure else self._position
        position, messages = await self._store.read(lambda tx: self._next(tx, tip))
        if messages:
            await wire.send(messages)
        if position != tip:
            unsure.append((self._clock.monotonic(), position))
        return bool(messages)

    async def _settle(self, unsure: _Unsure) -> None:
        """Stand behind the pages that have become certain."""
        sent_until, before, position = self._clock.monotonic() - CERTAIN_SECONDS, self._position, None
        while unsure and unsure[0][0] <= sent_until:
            _, position = unsure.popleft()
        if position is None:
            return
        if before is not None and position.dropped > before.dropped:
            lost = position.dropped - before.dropped
            _log.warning("event=log-rows-dropped to=%s rows=%d", self._receiver.url, lost)
        with contextlib.suppress(ApplianceError):  # a disk that is full: after a restart some come twice
            await self._save(position)
        self._position = position
        self._is_well()

    def _is_well(self) -> None:
        """A page is certain, or a connection lived for as long without any."""
        self._pause = FIRST_PAUSE  # not before: one that takes connections and closes them is not there
        self._well_at, self.why = self._clock.now(), ""

    async def _save(self, position: _Position) -> None:
        text = json.dumps(asdict(position))
        await self._store.write(lambda tx: meta.put(tx, self._key, text))

    def _next(self, tx: Tx, tip: _Position | None) -> tuple[_Position, list[bytes]]:
        """The position behind the next rows, and these as messages."""
        last = decisions.last(tx)
        known = tip or self._known(tx, last)
        row, at, dropped = known.row, known.at, known.dropped
        if row > last:  # a backup was restored
            row = decisions.behind(tx, datetime.fromisoformat(at))
        if last - row > self._max_behind:
            dropped += last - self._max_behind - row
            row = last - self._max_behind
        rows = decisions.page(tx, after=row, since=_ALWAYS, count=PAGE)
        if rows:
            dropped += rows[-1]["id"] - row - len(rows)  # pruned before their turn
            row, at = rows[-1]["id"], rows[-1]["time"].isoformat()
        else:
            dropped, row = dropped + last - row, last  # nothing is left of what had to come
        lines = [self._write(Line(as_json(one), one["time"], self._sender, self._pen)) for one in rows]
        return _Position(row, at, known.sent + len(rows), dropped), [line.encode() for line in lines]

    def _known(self, tx: Tx, last: int) -> _Position:
        """Where this receiver stands; a new one gets what comes from now on."""
        if self._position is not None:
            return self._position
        text = meta.get(tx, self._key)
        return _Position(last, tx.now.isoformat()) if text is None else _Position(**json.loads(text))

    def _now(self, is_connected: bool, why: str) -> None:
        if is_connected != self.is_connected or why != self.why:
            word = "connected" if is_connected else "away"
            _log.log(
                logging.INFO if is_connected else logging.WARNING,
                "event=log-receiver-%s to=%s why=%r", word, self._receiver.url, why,
            )  # fmt: skip
        if is_connected:
            self._opened = self._clock.now()
        self.is_connected, self.why = is_connected, why

    def is_missed(self) -> bool:
        """Whether the receiver has been away for longer than it takes to restart one; to be connected does not help."""
        return self._clock.now() - self._well_at > PATIENCE

    async def status(self) -> dict[str, Any]:
        """How it is, for people and programs."""

        def read(tx: Tx) -> tuple[int, _Position]:
            last = decisions.last(tx)
            return last, self._known(tx, last)

        last, position = await self._store.read(read)
        is_there = self.is_connected and not self.is_missed()
        return {
            "to": self._receiver.url,
            "state": "connected" if is_there else "away" if self.why or self.is_missed() else "starting",
            "since": (self._opened if is_there else self._well_at).isoformat(timespec="seconds"),
            "sent": position.sent,
            "behind": max(0, last - position.row),
            "dropped": position.dropped,
            "why": self.why,
        }


class LogForwarding:
    """All receivers that the settings name."""

    def __init__(self, settings: AccessSettings, store: Store, clock: Clock, *, sender: str, pen: int) -> None:
        self._ca_file = settings.forward_ca_file
        self._forwarders = [
            Forwarder(
                Receiver.read(url),
                store,
                clock,
                write=WIRE_FORMATS[settings.forward_format],
                sender=sender,
                pen=pen,
                max_behind=settings.forward_rows,
                context=self._tls_context,
            )
            for url in settings.forward_to
        ]

    def news(self) -> None:
        """Rows were written to the log."""
        for forwarder in self._forwarders:
            forwarder.news.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for forwarder in self._forwarders:
                group.create_task(forwarder.run())

    async def status(self) -> list[dict[str, Any]]:
        """How each receiver is."""
        return [await forwarder.status() for forwarder in self._forwarders]

    async def look(self) -> str:
        """How forwarding is, in a few words for anybody; raises LogNotForwarded."""
        missed = sum(one.is_missed() for one in self._forwarders)
        if missed:
            raise LogNotForwarded(f"{missed} of {len(self._forwarders)} are away: appliance access forwarding")
        return f"{len(self._forwarders)} receivers" if self._forwarders else "no receiver is set"

    def _tls_context(self) -> ssl.SSLContext:
        """Whom receivers over TLS must chain to; read at every connection, as the file may be renewed."""
        return _client_context(self._ca_file)


def check(settings: AccessSettings) -> str:
    """What the settings say of forwarding; raises LogNotForwarded where they name a file that is none of CAs."""
    try:
        _client_context(settings.forward_ca_file)
    except OSError as cause:
        raise LogNotForwarded(
            f"access.forward_ca_file: cannot read certificates from {settings.forward_ca_file}"
        ) from cause
    return ", ".join(settings.forward_to)


def _client_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
