"""What every demonstration needs: processes that always end, steps that are told, checks that are recorded."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO


class DemoFailed(Exception):
    """The story cannot go on; the text says which part of the lab failed and shows the end of its log."""


@dataclass(slots=True)
class Process:
    """One program of the lab: JSON lines on standard output are its events, standard error goes to its log."""

    name: str
    popen: subprocess.Popen[str]
    log: Path
    reader: threading.Thread
    events: list[dict[str, Any]] = field(default_factory=list)

    def wait_for(self, event: str, seconds: float, match: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The first event of that name (and with those fields); raises DemoFailed when it does not come."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.popen.poll() is not None
            if ended:
                self.reader.join(5.0)
            for found in list(self.events):
                if found.get("event") == event and all(found.get(k) == v for k, v in (match or {}).items()):
                    return found
            if ended:
                status = self.popen.returncode
                raise DemoFailed(f"{self.name} ended with status {status} before '{event}':\n{self.tail()}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"{self.name} sent no '{event}' within {seconds:.0f} s:\n{self.tail()}")
            time.sleep(0.02)

    def finish(self, seconds: float) -> int:
        """Exit status once the process ended by itself; raises DemoFailed when it does not."""
        try:
            status = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name} did not end within {seconds:.0f} s:\n{self.tail()}") from None
        self.reader.join(5.0)
        return status

    def tail(self, lines: int = 15) -> str:
        """The end of the process's log."""
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def stop(self, seconds: float = 10.0) -> None:
        """SIGTERM, and SIGKILL where that is not heard."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(seconds)


def _collect(popen: subprocess.Popen[str], events: list[dict[str, Any]]) -> None:
    assert popen.stdout is not None
    for line in popen.stdout:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            events.append(document)


class Cast:
    """The programs of one story; all of them end with it, in reverse order, whichever thread started them."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = dict(environment)
        self._members: list[Process] = []
        self._errands: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._is_over = False
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str | Path], *, user: int | None = None) -> Process:
        """Starts a program; `user` is the uid that it runs as. Raises DemoFailed once the story is over."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as errors, self._lock:
            self._check_goes_on()
            popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self._environment,
                user=user,
                group=user,
                extra_groups=[] if user is not None else None,
            )
            events: list[dict[str, Any]] = []
            reader = threading.Thread(target=_collect, args=(popen, events), name=f"events of {name}", daemon=True)
            process = Process(name, popen, log, reader, events)
            self._members.append(process)
        reader.start()
        return process

    def run(self, command: Sequence[str | Path], *, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end; raises DemoFailed once the story is over, subprocess.TimeoutExpired."""
        words = [str(part) for part in command]
        with self._lock:
            self._check_goes_on()
            popen = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment
            )
            self._errands.append(popen)
        try:
            out, errors = popen.communicate(timeout=seconds)
        except BaseException:
            popen.kill()
            popen.wait()
            raise
        finally:
            with self._lock:
                self._errands.remove(popen)
        return subprocess.CompletedProcess(words, popen.returncode, out, errors)

    def running(self) -> list[Process]:
        """Those that have not ended."""
        return [member for member in self._members if member.popen.poll() is None]

    def stop(self) -> None:
        """Ends every program of the story; no other begins."""
        with self._lock:
            self._is_over = True
            errands = list(self._errands)
        for errand in errands:
            errand.terminate()
        for member in reversed(self._members):
            member.stop()

    def _check_goes_on(self) -> None:
        if self._is_over:
            raise DemoFailed("the story is over")


@dataclass(frozen=True, slots=True)
class Check:
    """One promise of the story: what was expected and what was observed from outside."""

    name: str
    expected: str
    observed: str

    @property
    def ok(self) -> bool:
        return self.expected == self.observed


class Story:
    """Tells what happens, how long it took, and keeps the checks."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._start = time.monotonic()
        self.checks: list[Check] = []
        self.skipped: list[tuple[str, str]] = []

    def say(self, text: str = "") -> None:
        print(text, file=self._out, flush=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One paragraph of the story with its duration."""
        begun = time.monotonic()
        self.say(f"\n[{begun - self._start:5.1f} s] {text}")
        yield
        self.say(f"          ({time.monotonic() - begun:.1f} s)")

    def check(self, name: str, expected: str, observed: str) -> bool:
        """Records a check and says how it went."""
        check = Check(name, expected, observed)
        self.checks.append(check)
        mark = "ok  " if check.ok else "FAIL"
        tail = "" if check.ok else f", expected {expected}"
        self.say(f"  {mark}  {name}: {observed}{tail}")
        return check.ok

    def eventually(self, name: str, expected: str, observe: Callable[[], str], seconds: float) -> bool:
        """Observes again and again until the expected shows or the time is over, then records the check."""
        deadline = time.monotonic() + seconds
        while (observed := observe()) != expected and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.check(name, expected, observed)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append((name, reason))
        self.say(f"  skip  {name}: {reason}")

    def report(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """The JSON report."""
        return {
            "checks": [
                {"name": c.name, "expected": c.expected, "observed": c.observed, "ok": c.ok} for c in self.checks
            ],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "versions": dict(versions),
        }


def versions(*programs: tuple[str, str]) -> dict[str, str]:
    """Versions of Python, the libraries that do the cryptography, and of the named programs' own answers."""
    found = {"python": platform.python_version()}
    for name in ("campus-appliance", "aiohttp", "cryptography", "pyOpenSSL", "pyrad", "zeroconf"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | dict(programs)


def find(program: str) -> str | None:
    """A program's path, also where only root looks."""
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin:/usr/local/sbin")
