"""Memory of a process that runs for long: what the allocator keeps, what the garbage collector walks through."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MIB: Final = 1_048_576
SWITCH_SECONDS: Final = 0.0005


def give_back() -> None:
    """Have what is freed go back to the system, beyond two megabytes; does nothing without glibc.

    Unasked, glibc raises both limits to the largest block that was ever freed: the 32 MB that opening a key file takes,
    the buffers of a long revocation list. From then on it keeps as much again, and more, for good.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MIB)
        mallopt(_M_TRIM_THRESHOLD, 2 * _MIB)


def settle() -> None:
    """What was built to start lives as long as the process: the garbage collector need not walk it ever again.

    What requests make dies by its reference counts, so the collector may also look less often. Threads give way to the
    one that answers sooner than Python would make them.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(50_000, 20, 20)
