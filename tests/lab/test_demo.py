"""The demonstration's own behaviour: how it ends when its folder, its report or its lab is not as it should be."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from lab import demo
from lab.stage import Stage
from lab.story import Cast, DemoFailed, Story, find
from lab.wired import campus
from lab.wired.story import WiredStory, checks_of

ROOT = Path(__file__).parents[2]


class Short(demo.Demo):
    """A story that ends early."""

    fault: Exception = DemoFailed("gone")

    def tell(self) -> None:
        self.stage.story.check("vlan-rnd", "20", "20")
        raise self.fault


class Port(Stage):
    """A switch port at which one thing only happens."""

    word = "20"

    def vlan(self, name: str) -> str:
        return self.word


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"lab/demo: {tmp_path}: the folder is not empty\n"


def test_a_report_that_cannot_be_written_is_said_before_the_story(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "nowhere" / "r.json"
    assert demo.main(["--out", str(tmp_path / "out"), "--report", str(report)]) == 1
    assert str(report) in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", [DemoFailed("gone"), subprocess.TimeoutExpired("appliance", 60), KeyError("device")])
def test_whatever_ends_the_story_early_the_report_tells_it(tmp_path: Path, fault: Exception) -> None:
    short = Short(Stage(tmp_path, "embedded", "project", Story(io.StringIO())))
    short.fault = fault
    report = tmp_path / "r.json"
    assert demo.play(short, report) == 1
    checks = json.loads(report.read_text())["checks"]
    assert [(check["name"], check["ok"]) for check in checks] == [("vlan-rnd", True), ("story-told", False)]


def test_an_agent_that_never_got_in_proves_nothing_when_it_is_turned_away(tmp_path: Path) -> None:
    port = Port(tmp_path, "embedded", "project", Story(io.StringIO()))
    port.must_get_in("travel")
    for word in ("reject", "timeout: no answer in time", "20, but the keys of server and supplicant differ"):
        port.word = word
        with pytest.raises(DemoFailed, match=word):
            port.must_get_in("travel")


HOOK = [name for name in checks_of("freeradius") if name not in checks_of("embedded")]


@pytest.mark.parametrize(("radius", "no_ports", "told", "skipped"), [
    (None, "", True, HOOK),
    ("freeradius", "", False, list(checks_of("freeradius"))),
    (None, "needs root", False, list(checks_of("freeradius"))),
    ("embedded", "", True, []),
])  # fmt: skip
def test_the_wired_story_without_freeradius_names_what_it_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, radius: str | None, no_ports: str, told: bool, skipped: list[str]
) -> None:
    stories: list[WiredStory] = []

    def tell(story: WiredStory) -> None:
        stories.append(story)
        story.stage.story.check("port-closed-before", "closed", "closed")

    monkeypatch.setattr(demo, "find", lambda program: None if program == "freeradius" else find(program))
    monkeypatch.setattr(campus, "why_not", lambda: no_ports)
    monkeypatch.setattr(WiredStory, "tell", tell)
    report = tmp_path / "r.json"
    words = ["--wired", "--report", str(report), "--out", str(tmp_path / "out")]
    heeded = signal.getsignal(signal.SIGTERM)
    try:
        status = demo.main([*words, "--radius", radius] if radius else words)
    finally:
        signal.signal(signal.SIGTERM, heeded)
    found = {row["name"]: row["reason"] for row in json.loads(report.read_text())["skipped"]}
    assert len(HOOK) == 4 and list(found) == skipped and status == (1 if skipped else 0)
    assert [story.stage.engine for story in stories] == (["embedded"] if told else [])
    for name, reason in found.items():
        assert ("FreeRADIUS is not installed" in reason) == (name in HOOK or radius == "freeradius")
        assert reason.startswith(no_ports)


@pytest.mark.lab
def test_sigterm_ends_every_process_of_the_story(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lab", "demo", "--out", str(tmp_path / "out")]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        log = tmp_path / "out" / "logs" / "appliance.log"
        deadline = time.monotonic() + 60
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [one for one in _programs_of(tmp_path) if " lab demo " not in one]
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130 and "Traceback" not in errors
    assert not _programs_of(tmp_path)


def test_a_story_that_is_over_starts_no_more_programs(tmp_path: Path) -> None:
    cast = Cast(tmp_path, {})
    sleeper = cast.start("sleeper", ["/bin/sleep", "60"])
    with ThreadPoolExecutor() as pool:
        errand = pool.submit(cast.run, ["/bin/sleep", "60"])
        while not cast._errands:
            time.sleep(0.01)
        cast.stop()
        assert errand.result().returncode == -signal.SIGTERM
    assert sleeper.popen.poll() is not None and not cast.running()
    for start in (partial(cast.start, "late"), cast.run):
        with pytest.raises(DemoFailed):
            start(["/bin/true"])


def _programs_of(folder: Path) -> list[str]:
    """Command lines that name this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if str(folder) in line]
