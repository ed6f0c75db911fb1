"""Transparent huge pages for memory that stays: a server's objects in pages of 2 MiB, where the kernel has them.

A request walks through a few thousand objects all over the heap; in pages of 4 KiB each of them wants an entry of the
processor's address cache, which has fewer. Where the kernel's setting is `madvise` only who asks gets huge pages, and
Python does not ask; where it is `always`, memory that grew in small steps got none. Memory is gathered as it is now:
no promise stays behind, so what is freed later is as free as before. An administrator's `never` is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

from appliance.keeping import keep

_log = logging.getLogger(__name__)

SOON_SECONDS: Final = 2.0
LATE_SECONDS: Final = 320.0
_RESIDENT: Final = 0.95
"""Gathering fills the holes. A thread's stack is 8 MiB of which it has used some pages: it would become 8 MiB."""
_MADV_COLLAPSE: Final = 25  # Linux 6.1, madvise(2)
_FOLDER = Path("/sys/kernel/mm/transparent_hugepage")
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 +(?:\[heap\])?\n(?:(?![0-9a-f]+-).*\n)*?Rss: +(\d+) kB\n"
    r"(?:(?![0-9a-f]+-).*\n)*?AnonHugePages: +(\d+) kB\n",
    re.MULTILINE,
)


def ranges(smaps: str, page: int) -> Iterator[tuple[int, int]]:
    """Address and length in bytes of what could be in huge pages and is not, from the text of /proc/PID/smaps.

    That is private, anonymous memory with whole huge pages of `page` bytes in it, 95 % of which are resident (proc(5)).
    """
    for found in _MAPPING.finditer(smaps):
        begin, end = int(found[1], 16), int(found[2], 16)
        resident, huge = int(found[3]) * 1024, int(found[4]) * 1024
        first, last = -(-begin // page) * page, end // page * page
        if huge < last - first and resident >= _RESIDENT * (end - begin):
            yield first, last - first


def gather() -> int:
    """Have missing huge pages made of memory that is there; bytes of the ranges that are in huge pages now.

    0 as well where the kernel has none or cannot be asked, or an administrator has switched them off.
    """
    try:
        if "[never]" in (_FOLDER / "enabled").read_text():
            return 0
        page = int((_FOLDER / "hpage_pmd_size").read_text())
        smaps = _SMAPS.read_text(encoding="utf-8", errors="replace")  # names of files are octets
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):  # no Linux, or one without them
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(length for address, length in ranges(smaps, page) if madvise(address, length, _MADV_COLLAPSE) == 0)


async def keep_gathering(gather: Callable[[], int] = gather) -> None:
    """gather() for ever, on a thread, less and less: a process grows most when it is young, and looking is not free.

    It waits first: a process that is asked one thing and ends need not have its memory moved.
    """
    pause = SOON_SECONDS
    while True:
        await asyncio.sleep(pause)
        gathered = await asyncio.to_thread(gather)
        if gathered:
            _log.debug("event=huge-pages bytes=%d", gathered)
        pause = min(2 * pause, LATE_SECONDS)


@contextlib.asynccontextmanager
async def gathering() -> AsyncIterator[None]:
    """Inside, this process' memory is gathered from time to time."""
    task = asyncio.create_task(keep(keep_gathering, "huge-pages"))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
