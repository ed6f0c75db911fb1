"""Crash points for tests: a process with APPLIANCE_FAILPOINT=name[:n] kills itself on reaching it the n-th time.

SIGKILL, so nothing is flushed or cleaned up; that is what the crash tests are about. Without the variable this is one
comparison.
"""

from __future__ import annotations

import os
import signal
from itertools import count

_NAME, _, _NTH = os.environ.get("APPLIANCE_FAILPOINT", "").partition(":")
_passes = count(1)


def failpoint(name: str) -> None:
    """Die here if the environment says so."""
    if name == _NAME and next(_passes) >= int(_NTH or 1):
        os.kill(os.getpid(), signal.SIGKILL)
