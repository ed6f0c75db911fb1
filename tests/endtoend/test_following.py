"""`appliance access log --follow` beside a running appliance: every later row once, in order, and an end in a line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.story import Cast
from tests.campus import Campus, environment
from tests.endtoend.test_network_side import log_in_with, request_credential

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def log_in(campus: Campus, agent: Path, times: int) -> None:
    for _ in range(times):
        assert log_in_with(agent, campus.listeners["radius"]).vlan == "20"


def test_followed_rows_come_once_in_order_until_interrupt_or_the_appliances_end(
    own_campus: Callable[[], Campus], tmp_path: Path
) -> None:
    campus = own_campus()
    campus.start()
    campus.start_proxy()
    agent = request_credential(campus, tmp_path / "agent")
    log_in(campus, agent, 2)
    command = [sys.executable, "-m", "appliance", "access", "log", "--follow", "--limit", "1", "--home", campus.home]
    cast = Cast(tmp_path / "logs", environment())
    shown = tmp_path / "shown"
    with shown.open("w") as written:
        lines = subprocess.Popen(
            [str(part) for part in command], stdout=written, stderr=subprocess.PIPE, text=True, env=environment()
        )
    try:
        heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        follower = cast.start("follower", [*command, "-o", "json"])
        signal.signal(signal.SIGINT, heeded)
        until(lambda: len(follower.events) == 1 and shown.read_text().count("\n") == 1)  # both look on from here
        for at in (1, 3):
            log_in(campus, agent, at)
        until(lambda: len(follower.events) >= 5)
        time.sleep(2.5)  # two more looks that find nothing new
        rows = campus.cli("access", "log", "--limit", "5").json
        assert follower.events == rows and len({row["id"] for row in rows}) == 5
        follower.popen.send_signal(signal.SIGINT)
        assert follower.finish(30) == 0 and follower.log.read_text() == ""
        assert campus.stop() == 0
        _, err = lines.communicate(timeout=60)
    finally:
        cast.stop()
        lines.kill()
    assert lines.returncode == 1 and err.count("\n") == 1 and err.startswith("appliance: appliance-unreachable: ")
    found = [line.split("  ") for line in shown.read_text().splitlines()]
    assert [int(words[0]) for words in found] == [row["id"] for row in rows]
    assert all(words[2:4] == ["accept", "20"] for words in found)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)
