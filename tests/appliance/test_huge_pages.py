"""Memory in huge pages: which is asked for, that the kernel gathers it, and that nothing is added."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import huge_pages

MIB = 1_048_576
AT = 0x7F00_0000_0000
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _mapping(begin: int, end: int, *, resident: int, huge: int = 0, what: str = "rw-p 00000000 00:00 0 ") -> str:
    """A mapping as proc(5) writes it, with only the lines that are read and one before each."""
    return (
        f"{begin:08x}-{end:08x} {what}\nSize: {(end - begin) // 1024:>15} kB\nRss: {resident // 1024:>15} kB\n"
        f"Private_Dirty: {resident // 1024:>5} kB\nAnonHugePages: {huge // 1024:>7} kB\nVmFlags: rd wr mr mw me ac\n"
    )


def test_the_whole_huge_pages_inside_are_asked_for() -> None:
    heap = _mapping(0x30B3E000, 0x33B42000, resident=0x3004000, what=f"rw-p 00000000 00:00 0 {'':26}[heap]")
    assert list(huge_pages.ranges(heap)) == [(0x30C00000, 0x33A00000 - 0x30C00000)]
    aligned = _mapping(AT, AT + 4 * MIB, resident=4 * MIB)
    assert list(huge_pages.ranges(heap + aligned)) == [(0x30C00000, 0x2E00000), (AT, 4 * MIB)]


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("a stack, hardly used", _mapping(AT, AT + 8 * MIB, resident=64 * 1024)),
        ("too small", _mapping(AT + 4096, AT + 2 * MIB, resident=2 * MIB - 4096)),
        ("no whole one, for its place", _mapping(AT + MIB, AT + 3 * MIB, resident=2 * MIB)),
        ("they are huge already", _mapping(AT, AT + 4 * MIB, resident=4 * MIB, huge=4 * MIB)),
        ("a file", _mapping(AT, AT + 4 * MIB, resident=4 * MIB, what="rw-p 00000000 fe:00 77 /usr/lib/libcrypto.so.3")),
        ("code", _mapping(AT, AT + 4 * MIB, resident=4 * MIB, what="r-xp 00000000 00:00 0 ")),
        ("shared", _mapping(AT, AT + 4 * MIB, resident=4 * MIB, what="rw-s 00000000 00:00 0 ")),
        ("nothing", ""),
    ],
)
def test_other_memory_is_left_alone(why: str, text: str) -> None:
    after = _mapping(AT + 64 * MIB, AT + 66 * MIB, resident=2 * MIB)
    assert list(huge_pages.ranges(text + after)) == [(AT + 64 * MIB, 2 * MIB)], why


_PROCESS = """
import ctypes, mmap, re
from pathlib import Path
from appliance.huge_pages import gather, ranges
def said(name):
    return int(re.search(rf"^{name}: +(\\d+)", Path("/proc/self/smaps_rollup").read_text(), re.M)[1])
block = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
block.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, len(block), 4096):
    block[at] = at >> 12 & 255
before = said("Rss"), said("AnonHugePages")
gathered = gather()
assert all(block[at] == at >> 12 & 255 for at in range(0, len(block), 4096))
here = ctypes.addressof(ctypes.c_char.from_buffer(block))
end = here + len(block)
left = [at for at, size in ranges(Path("/proc/self/smaps").read_text()) if at < end and here < at + size]
print(gathered, *before, said("Rss"), said("AnonHugePages"), len(left))
"""


def test_the_kernel_gathers_what_is_there_and_adds_nothing() -> None:
    if not _SETTINGS.exists() or "[never]" in _SETTINGS.read_text():
        pytest.skip("this kernel has no transparent huge pages, or they are switched off")
    told = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=True, timeout=60)
    gathered, resident, huge, resident_after, huge_after, left = map(int, told.stdout.split())
    if not gathered:
        pytest.skip("this kernel knows no MADV_COLLAPSE (Linux 6.1), or has no huge page free")
    assert gathered >= 22 * MIB and huge_after - huge >= 22 * 1024
    assert resident_after - resident < 4 * 1024, "gathering added memory"
    assert left == 0, "it would be asked for again and again"


def test_nothing_is_asked_for_where_an_administrator_switched_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched, smaps = tmp_path / "enabled", tmp_path / "smaps"
    monkeypatch.setattr(huge_pages, "_ENABLED", switched)
    monkeypatch.setattr(huge_pages, "_SMAPS", smaps)
    assert huge_pages.gather() == 0, "no such file: no such kernel"
    switched.write_text("always madvise [never]\n")
    assert huge_pages.gather() == 0, "smaps would not even be there"


def test_it_is_looked_for_less_and_less_and_again_soon_where_something_was_found() -> None:
    pauses: list[float] = []
    found = iter([4, 0, 0, 0, 2])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            raise asyncio.CancelledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huge_pages.asyncio, "sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(huge_pages.keep_gathering(lambda: next(found)))
    soon = huge_pages.SOON_SECONDS
    assert pauses == [soon, soon, 2 * soon, 4 * soon, 8 * soon, soon]
