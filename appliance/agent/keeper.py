"""Keeping one credential fresh: renewed at two thirds of its life, old files in place until the new ones are there.

Each renewal has a new key, vouched for by the old one, and new evidence from the proxy (A-106). What fails is tried
again, ever more slowly, and told with its reason; a proxy or server that restarts costs a pause and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.agent.errors import (
    AgentApiAnswerUnusable,
    AgentApiUnreachable,
    CredentialEnded,
    IssuanceRefused,
)
from appliance.agent.folder import CredentialFolder, Held
from appliance.agent.requester import (
    AgentOptions,
    AgentResult,
    Pause,
    request_credential,
    resume_credential,
)
from appliance.binding import webauthn
from appliance.binding.facts import Model
from appliance.clock import Clock
from appliance.errors import KeyFileMissing
from est.errors import Refusal

RENEW_AT = 2 / 3
JITTER = 0.1
"""Of the whole life: a thousand agents that started together do not renew together."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
REFUSED_PAUSE = 60.0
"""First pause after a refusal that will hardly change by itself."""
LOOK_SECONDS = 30.0
"""Longest single wait: a machine that slept looks at the clock again."""
COMMAND_SECONDS = 60.0
_MAX_STANDING = 16_384

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Notice:
    """How the user's program hears of a new credential: a command run without a shell, a signal, or neither."""

    command: tuple[str, ...] = ()
    pid: int | None = None
    pid_file: Path | None = None
    signal: signal.Signals = signal.SIGHUP


class Keeper:
    """One agent's credential in one folder."""

    def __init__(
        self,
        options: AgentOptions,
        clock: Clock,
        tell: Tell,
        *,
        standing: tuple[str, ...] = (),
        notice: Notice | None = None,
        pause: Pause = asyncio.sleep,
        chance: Callable[[], float] = random.random,  # spreads renewals out; no secret hangs on it
    ) -> None:
        """`options` say what to ask for; their `out` is the folder. `standing` are files or hashes."""
        self._options = options
        self._clock = clock
        self._tell = tell
        self._standing = standing
        self._notice = notice or Notice()
        self._pause = pause
        self._chance = chance
        self._folder = CredentialFolder(options.out)

    async def run(self, *, once: bool = False) -> None:
        """Until cancelled; with `once`, renew now and end.

        Raises CredentialFolderUnusable, CredentialEnded, and what the first request is refused.
        """
        self._folder.prepare()
        if self._folder.current() is None:
            await self._first()
            if once:
                return
        while True:
            held = self._held()
            if once:
                await self._renew(held)
                return
            due = self.renewal_time(held)
            self._tell(
                {"event": "credential-held", "agent": held.agent_id, "renewal": _text(due), "ends": _text(held.ends)}
            )
            await self._until(due)
            await self._renew(held)

    def renewal_time(self, held: Held) -> datetime:
        """Two thirds of the life of what ends first, and a little later by chance."""
        life = held.ends - held.begins
        return held.begins + life * (RENEW_AT + JITTER * self._chance())

    async def _first(self) -> None:
        """The very first credential; a proxy that is not there yet is waited for, a no is a no."""
        pause = 0.0
        while True:
            try:
                await self._take(await self._ask(self._attempt(None)))
                return
            except Refusal as refusal:
                if not _is_open(refusal):
                    raise
                pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))
                self._tell({"event": "request-failed", "reason": refusal.reason, "again_in": pause})
                await self._pause(pause)

    async def _renew(self, held: Held) -> None:
        """Try until it is renewed; raises CredentialEnded if the time is over and nobody can approve."""
        pause = 0.0
        while True:
            has_ended = self._clock.now() >= held.vouches_until
            if has_ended and not self._can_ask:
                raise CredentialEnded("the credential ended; make a first request again (appliance agent request)")
            try:
                await self._take(await self._ask(self._attempt(held, is_renewal=not has_ended)))
                return
            except Refusal as refusal:
                pause = self._next_pause(pause, refusal, held)
                self._tell(
                    {
                        "event": "renewal-failed",
                        "agent": held.agent_id,
                        "reason": str(refusal.fields.get("problem") or refusal.reason),
                        "detail": refusal.detail,
                        "again_in": round(pause, 1),
                        "ends": _text(held.ends),
                    }
                )
                await self._pause(pause)

    async def _ask(self, attempt: AgentOptions) -> AgentResult:
        """One attempt, or the end of an earlier one; its files stay only while the same bytes may yet be answered."""
        is_resumed = self._folder.has_handed_in
        if not is_resumed:
            self._folder.drop_pending()
        ask = resume_credential if is_resumed else request_credential
        try:
            return await ask(attempt, clock=self._clock, pause=self._pause, tell=self._say)
        except Refusal as refusal:
            if not _is_open(refusal) or not self._folder.has_handed_in:
                self._folder.drop_pending()
            raise

    async def _take(self, result: AgentResult) -> None:
        folder = self._folder.switch()
        self._tell(
            {
                "event": "credential-renewed",
                "agent": result.agent_id,
                "serial": result.serial,
                "ends": result.not_after,
                "folder": str(folder),
            }
        )
        notifying = asyncio.ensure_future(self._notify())
        try:
            await asyncio.shield(notifying)
        except asyncio.CancelledError:
            await notifying  # the new files are in place: the program hears of them although the keeper ends
            raise

    async def _notify(self) -> None:
        """Tell the user's program; that it did not listen keeps nobody from the new files."""
        notice = self._notice
        try:
            if notice.command:
                await self._run_command(notice.command)
            pid = notice.pid if notice.pid_file is None else int(notice.pid_file.read_text(encoding="ascii").strip())
            if pid is not None:
                if pid <= 1:
                    raise ValueError("not a process of an agent")
                os.kill(pid, notice.signal)
        except (OSError, ValueError, TimeoutError) as cause:
            self._tell({"event": "notice-failed", "detail": str(cause) or type(cause).__name__})

    async def _run_command(self, words: tuple[str, ...]) -> None:
        process = await asyncio.create_subprocess_exec(*words, stdout=2)
        try:
            status = await asyncio.wait_for(process.wait(), COMMAND_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise ValueError(f"the command ended with status {status}")

    def _attempt(self, held: Held | None, *, is_renewal: bool = False) -> AgentOptions:
        options = replace(self._options, out=self._folder.pending, named=self._options.out, keeps_unfinished=True)
        if held is None:
            return options
        return replace(
            options,
            key=None,
            agent_id=held.agent_id,
            owner=held.owner_id,
            previous=held.signer if is_renewal else None,
            standing=self._standing_tokens() if is_renewal else (),
        )

    def _standing_tokens(self) -> tuple[str, ...]:
        """Read anew each time: the owner may have put a newer one in place. A text that is no file is a hash."""
        found = []
        for one in self._standing:
            path = Path(one)
            text = path.read_text(encoding="ascii", errors="replace")[:_MAX_STANDING].strip() if path.is_file() else one
            found.append(text)
        return tuple(found)

    @property
    def _can_ask(self) -> bool:
        """Whether an owner can be asked for a fresh approval."""
        options = self._options
        is_asked = options.model == Model.SERVER_MEDIATED
        return is_asked or options.approval_command is not None or options.wait_approval is not None

    def _held(self) -> Held:
        held = self._folder.current()
        assert held is not None  # run() made the first one
        return held

    def _next_pause(self, before: float, refusal: Refusal, held: Held) -> float:
        """Doubling, never beyond a quarter of what is left of the old credential, at least a second."""
        first = FIRST_PAUSE if isinstance(refusal, AgentApiUnreachable | AgentApiAnswerUnusable) else REFUSED_PAUSE
        told = refusal.fields.get("retry_after_seconds")
        wanted = float(told) if isinstance(told, int | float) else max(first, before * 2)
        left = (held.vouches_until - self._clock.now()).total_seconds()
        wanted = min(wanted, LONGEST_PAUSE, left / 4) if left > 0 else min(wanted, LONGEST_PAUSE)
        return max(1.0, wanted * (0.8 + 0.4 * self._chance()))

    async def _until(self, due: datetime) -> None:
        while (left := (due - self._clock.now()).total_seconds()) > 0:
            await self._pause(min(left, LOOK_SECONDS))

    def _say(self, line: str) -> None:
        self._tell({"event": "waiting", "detail": line})


def _is_open(refusal: Refusal) -> bool:
    """Whether the same bytes may still be answered with a credential."""
    if isinstance(refusal, AgentApiUnreachable):
        return True
    status = refusal.fields.get("status")
    return isinstance(refusal, IssuanceRefused) and isinstance(status, int) and (status in (202, 429) or status >= 500)


def check_standing(texts: tuple[str, ...]) -> None:
    """Refuses (KeyFileMissing, Malformed) what is neither a readable file nor the hash of a standing approval."""
    for one in texts:
        path = Path(one)
        if path.is_file():
            webauthn.read(path.read_text(encoding="ascii", errors="replace").strip())
        elif len(one) != 43 or "/" in one:
            raise KeyFileMissing(f"{one[:200]} is neither a file nor the hash of a standing approval")


def _text(at: datetime) -> str:
    return at.replace(microsecond=0).isoformat().replace("+00:00", "Z")
