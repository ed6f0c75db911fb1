"""The wired story on real ports, with hostapd, wpa_supplicant, FreeRADIUS and ping; and how it ends on a signal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import topology
from lab.wired import campus
from lab.wired.story import checks_of
from tests.campus import environment

ROOT = Path(__file__).resolve().parents[2]
WHY_NOT = campus.why_not() or ("" if shutil.which("freeradius") else "FreeRADIUS is not installed")

pytestmark = [
    pytest.mark.lab,
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.xdist_group("wired"),
]


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_every_check_of_the_wired_story_is_ok(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "lab", "demo", "--wired", "--report", str(report), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=900, check=False,
    )  # fmt: skip
    told = json.loads(report.read_text())
    assert [check for check in told["checks"] if not check["ok"]] == [] and told["skipped"] == [], done.stdout[-3000:]
    assert done.returncode == 0, done.stderr
    assert [check["name"] for check in told["checks"]] == list(checks_of("freeradius"))
    for check in told["checks"]:
        if check["name"] not in ("port-closed-before", "onboarding-vlan", "proxy-zero-touch", "hook-down-fail-mode"):
            assert "TLS 1.2" in check["observed"] and "TLS 1.3" in check["observed"]
    logs = "\n".join(path.read_text(errors="replace") for path in (tmp_path / "out" / "logs").glob("*.log"))
    assert "Traceback" not in logs
    assert not [one for one in everybody() if str(tmp_path) in words_of(one)]


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_ctrl_c_takes_the_campus_down_with_everything_in_it(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "lab", "campus", "--radius", "embedded", "--out", str(tmp_path / "out")],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    family: list[int] = []
    try:
        deadline = time.monotonic() + 400
        while not (tmp_path / "out" / "logs" / "port-agent.log").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        family = descendants(running.pid)
        assert len(family) > 10 and any("hostapd" in words_of(one) for one in family)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
        left = [words for one in family if (words := words_of(one))]
        for one in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
    assert running.returncode == 130 and "Traceback" not in errors
    assert left == []


def test_without_root_or_programs_every_check_is_named_as_skipped(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    code = "from lab.wired import campus; print(campus.why_not())"
    if nobody and subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, **nobody).returncode:  # type: ignore[call-overload]
        pytest.skip("another user cannot read this checkout")
    done = subprocess.run(
        [sys.executable, "-m", "lab", "demo", "--wired", "--radius", "embedded", "--report", str(report),
         "--out", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=240, check=False, **nobody,
    )  # fmt: skip
    if not nobody and not topology.why_not():
        pytest.skip("this user may make networks")
    assert done.returncode == 1
    told = json.loads(report.read_text())
    assert told["checks"] == [] and [row["name"] for row in told["skipped"]] == list(checks_of("embedded"))
    assert all("need" in row["reason"] or "not installed" in row["reason"] for row in told["skipped"])


def everybody() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def words_of(pid: int) -> str:
    """Its command line; nothing for one that has ended, be it waited for or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found
