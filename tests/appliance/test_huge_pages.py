"""Memory in huge pages: which is gathered, that the kernel does it, and that no promise to it stays."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import huge_pages

MIB = 1_048_576
HUGE = 2 * MIB
AT = 0x7F00_0000_0000
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _mapping(begin: int, end: int, *, resident: int, huge: int = 0, what: str = "rw-p 00000000 00:00 0 ") -> str:
    """A mapping as proc(5) writes it, with only the lines that are read and one before each."""
    return (
        f"{begin:08x}-{end:08x} {what}\nSize: {(end - begin) // 1024:>15} kB\nRss: {resident // 1024:>15} kB\n"
        f"Private_Dirty: {resident // 1024:>5} kB\nAnonHugePages: {huge // 1024:>7} kB\nVmFlags: rd wr mr mw me ac\n"
    )


def test_the_whole_huge_pages_inside_are_gathered() -> None:
    heap = _mapping(0x30B3E000, 0x33B42000, resident=0x3004000, what=f"rw-p 00000000 00:00 0 {'':26}[heap]")
    assert list(huge_pages.ranges(heap, HUGE)) == [(0x30C00000, 0x33A00000 - 0x30C00000)]
    aligned = _mapping(AT, AT + 4 * MIB, resident=4 * MIB)
    assert list(huge_pages.ranges(heap + aligned, HUGE)) == [(0x30C00000, 0x2E00000), (AT, 4 * MIB)]
    assert list(huge_pages.ranges(heap + aligned, 32 * MIB)) == [], "a kernel with larger ones"
    nearly = _mapping(AT, AT + 100 * MIB, resident=96 * MIB)
    assert list(huge_pages.ranges(nearly, HUGE)) == [(AT, 100 * MIB)]


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("a stack, hardly used", _mapping(AT, AT + 8 * MIB, resident=64 * 1024)),
        ("a tenth would be added", _mapping(AT, AT + 100 * MIB, resident=94 * MIB)),
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
    assert list(huge_pages.ranges(text + after, HUGE)) == [(AT + 64 * MIB, 2 * MIB)], why


_PROCESS = """
import ctypes, mmap
from pathlib import Path
from appliance import huge_pages
from appliance.huge_pages import ranges
HUGE = int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
def block(size):
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, 4096):
        made[at] = at >> 12 & 255
    return made, ctypes.addressof(ctypes.c_char.from_buffer(made))
def missing(made, at):
    smaps = Path("/proc/self/smaps").read_text(errors="replace")
    return sum(size for begin, size in ranges(smaps, HUGE) if begin < at + len(made) and at < begin + size)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
# a kernel that gives huge pages by itself must not do so before
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
trial, at = block(4 * HUGE)
ctypes.CDLL(None).prctl(41, 0, 0, 0, 0)
inside = -(-at // HUGE) * HUGE
can = ctypes.CDLL(None).madvise(ctypes.c_void_p(inside), ctypes.c_size_t(HUGE), 25)
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
made, at = block(12 * HUGE)
ctypes.CDLL(None).prctl(41, 0, 0, 0, 0)
before, held = missing(made, at), resident()
gathered = huge_pages.gather()
after, grown = missing(made, at), resident() - held
assert all(made[at] == at >> 12 & 255 for at in range(0, len(made), 4096))
made.madvise(mmap.MADV_DONTNEED)  # as an allocator gives back
held = resident()
for at in range(0, len(made), HUGE):
    made[at] = 1
print(can, before // HUGE, after // HUGE, gathered // HUGE, grown, resident() - held)
"""


def test_the_kernel_gathers_what_is_there_and_nothing_of_what_is_freed() -> None:
    if not _ENABLED.exists() or "[never]" in _ENABLED.read_text():
        pytest.skip("this kernel has no transparent huge pages, or they are switched off")
    told = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=True, timeout=60)
    can, before, after, gathered, grown, touched = map(int, told.stdout.split())
    assert before >= 11, "the text of the running kernel was not understood"
    if can != 0:
        pytest.skip("this kernel knows no MADV_COLLAPSE (Linux 6.1), or has no huge page free")
    assert after == 0 and gathered >= 11
    assert grown < 8 * MIB, "gathering added memory"
    if "[always]" not in _ENABLED.read_text():
        assert touched < MIB, "memory that was freed and is used again takes more than before"


def _kernel(folder: Path, enabled: str, name: bytes = b"/usr/lib/x.so") -> None:
    (folder / "enabled").write_text(enabled)
    (folder / "hpage_pmd_size").write_text("2097152\n")
    library = _mapping(AT - MIB, AT, resident=MIB, what="rw-p 00000000 fe:00 77 ?").encode().replace(b"?", name)
    (folder / "smaps").write_bytes(library + _mapping(AT, AT + 4 * MIB, resident=4 * MIB).encode())


class _Library:
    """libc, with a madvise that takes note; `code` is what it returns."""

    def __init__(self, code: int) -> None:
        self.asked: list[tuple[int, int, int]] = []

        def madvise(address: int, length: int, advice: int) -> int:
            self.asked.append((address, length, advice))
            return code

        self.madvise = madvise


@pytest.mark.parametrize(
    ("enabled", "code", "name", "asked", "gathered"),
    [
        ("always [madvise] never\n", 0, b"/usr/lib/x.so", 1, 4 * MIB),
        ("[always] madvise never\n", 0, b"/usr/lib/x.so", 1, 4 * MIB),
        ("always [madvise] never\n", -1, b"/usr/lib/x.so", 1, 0),
        ("always [madvise] never\n", 0, b"/home/j\xf6rg/x.db-shm", 1, 4 * MIB),
        ("always madvise [never]\n", 0, b"/usr/lib/x.so", 0, 0),
    ],
)
def test_an_administrators_never_is_kept_and_names_are_octets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: str, code: int, name: bytes, asked: int, gathered: int
) -> None:
    library = _Library(code)
    monkeypatch.setattr(huge_pages, "_FOLDER", tmp_path)
    monkeypatch.setattr(huge_pages, "_SMAPS", tmp_path / "smaps")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert huge_pages.gather() == 0 and not library.asked, "no such kernel"
    _kernel(tmp_path, enabled, name)
    assert huge_pages.gather() == gathered
    assert library.asked == [(AT, 4 * MIB, 25)] * asked


def test_it_is_looked_for_less_and_less() -> None:
    pauses: list[float] = []
    found = iter([4, 4, *[0] * 8, 2])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise asyncio.CancelledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huge_pages.asyncio, "sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(huge_pages.keep_gathering(lambda: next(found)))
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 320, 320, 320, 320]


def test_it_ends_with_what_it_is_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(huge_pages, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(huge_pages, "LATE_SECONDS", 0.0)

    async def live() -> list[str]:
        with pytest.raises(ZeroDivisionError):
            async with huge_pages.gathering():
                assert len(asyncio.all_tasks()) == 2
                await asyncio.sleep(0.1)
                raise ZeroDivisionError
        return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    with caplog.at_level(logging.INFO):
        assert asyncio.run(live()) == []
    assert not caplog.records, "nothing broke in it"
