"""Transparent huge pages for memory that stays: a server's objects in 2 MiB pages, where the kernel lets a process ask.

A request walks through a few thousand objects all over the heap; in pages of 4 KiB each of them wants an entry of the
processor's address cache, which has fewer. Debian's kernels give huge pages only to who asks (`madvise`), and Python
does not ask. Only memory that is there anyway is gathered, so that none is added; an administrator's `never` is kept.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

HUGE: Final = 2 * 1_048_576
SOON_SECONDS: Final = 2.0
LATE_SECONDS: Final = 320.0
_RESIDENT: Final = 0.95
"""A thread's stack is 8 MiB of which it has used some pages: gathering it would make it 8 MiB."""
_MADV_HUGEPAGE: Final = 14
_MADV_COLLAPSE: Final = 25  # Linux 6.1; before that the kernel gathers them in its own time
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 +(?:\[heap\])?\n(?:(?![0-9a-f]+-).*\n)*?Rss: +(\d+) kB\n"
    r"(?:(?![0-9a-f]+-).*\n)*?AnonHugePages: +(\d+) kB\n",
    re.MULTILINE,
)


def ranges(smaps: str) -> Iterator[tuple[int, int]]:
    """Address and length in bytes of what could be in huge pages and is not, from the text of /proc/PID/smaps.

    That is private, anonymous memory with whole huge pages in it, nineteen twentieths of which are resident (proc(5)).
    """
    for found in _MAPPING.finditer(smaps):
        begin, end = int(found[1], 16), int(found[2], 16)
        resident, huge = int(found[3]) * 1024, int(found[4]) * 1024
        first, last = -(-begin // HUGE) * HUGE, end // HUGE * HUGE
        if huge < last - first and resident >= _RESIDENT * (end - begin):
            yield first, last - first


def gather() -> int:
    """Ask for huge pages where they are missing; bytes that the kernel gathered.

    0 as well where it has none, knows no MADV_COLLAPSE, or an administrator has switched them off.
    """
    try:
        if "[never]" in _ENABLED.read_text():
            return 0
        smaps = _SMAPS.read_text()
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):  # no Linux, or one without them
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    gathered = 0
    for address, length in ranges(smaps):
        if madvise(address, length, _MADV_HUGEPAGE) == 0 and madvise(address, length, _MADV_COLLAPSE) == 0:
            gathered += length
    return gathered


async def keep_gathering(gather: Callable[[], int] = gather) -> None:
    """gather() for ever, on a thread: often while the process grows, less and less where nothing is left to do.

    It waits first: a process that is asked one thing and ends need not have its memory moved.
    """
    pause = SOON_SECONDS
    while True:
        await asyncio.sleep(pause)
        gathered = await asyncio.to_thread(gather)
        if gathered:
            _log.debug("event=huge-pages bytes=%d", gathered)
        pause = SOON_SECONDS if gathered else min(2 * pause, LATE_SECONDS)
