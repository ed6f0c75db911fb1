"""What glibc's allocator keeps of memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MIB: Final = 1_048_576


def give_back() -> None:
    """Have what is freed go back to the system, beyond two megabytes; does nothing without glibc.

    Unasked, glibc raises both limits to the largest block that was ever freed: the 32 MB that opening a key file takes,
    the buffers of a long revocation list. From then on it keeps as much again, and more, for good.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MIB)
        mallopt(_M_TRIM_THRESHOLD, 2 * _MIB)
