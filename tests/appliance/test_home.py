"""One process per home: the lock, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import HomeLocked, HomeMissing
from appliance.home import admin_socket, is_locked, lock_file, locked

HOLD = """
import sys, time
from pathlib import Path
from appliance.home import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "appliance.toml").touch(0o600)
    return tmp_path


def test_one_holds_and_another_is_refused(home: Path) -> None:
    assert not is_locked(home)
    with locked(home):
        assert is_locked(home)
        with pytest.raises(HomeLocked), locked(home):
            pass
        assert is_locked(home), "the refused one took nothing away"
    assert not is_locked(home)
    with locked(home):
        pass
    assert lock_file(home).stat().st_mode & 0o777 == 0o600
    assert lock_file(home).parent.stat().st_mode & 0o777 == 0o700
    assert admin_socket(home).parent == lock_file(home).parent


def test_the_lock_is_given_back_when_the_work_fails(home: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(home):
        raise ZeroDivisionError
    assert not is_locked(home)


def test_the_kernel_gives_back_the_lock_of_a_killed_process(home: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(home)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(home)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
    assert not is_locked(home)


def test_asking_leaves_no_trace(home: Path) -> None:
    assert not is_locked(home)
    assert [path.name for path in home.iterdir()] == ["appliance.toml"]


def test_a_folder_that_is_no_home_is_none(tmp_path: Path) -> None:
    with pytest.raises(HomeMissing), locked(tmp_path):
        pass
    with pytest.raises(HomeMissing), locked(tmp_path / "nothing"):
        pass
    assert list(tmp_path.iterdir()) == []
