"""The state folder of an appliance: where its parts lie, and the lock that keeps a second process out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import HomeLocked, HomeMissing


def admin_socket(home: Path) -> Path:
    """Where a running appliance takes administrative operations."""
    return home / "run" / "admin.sock"


def lock_file(home: Path) -> Path:
    return home / "run" / "lock"


def is_locked(home: Path) -> bool:
    """Whether another process runs on this home."""
    try:
        handle = os.open(lock_file(home), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _lock(handle: int, home: Path) -> None:
    """Takes the lock; a command that looks whether it is taken (is_locked) holds it for an instant, so try again."""
    for pause in (0.05, 0.1, 0.2, 0.4, 0.0):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            if not pause:
                raise HomeLocked(f"another process runs on {home}") from cause
            time.sleep(pause)
        else:
            return


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Holds the home's lock; raises HomeMissing or HomeLocked. The kernel lets go of it when the process dies."""
    if not (home / "appliance.toml").exists():
        raise HomeMissing(f"{home} is not an appliance's home; make one with: appliance init --home {home}")
    (home / "run").mkdir(mode=0o700, exist_ok=True)
    handle = os.open(lock_file(home), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(handle, home)
        yield
    finally:
        os.close(handle)
