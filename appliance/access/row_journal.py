"""Rows on their way into the store that wait in a file: written at once and cheaply, handed over in their order later.

A row in the store costs a few random pages and its share of a COMMIT, a line at the end of a file next to nothing. The
store keeps, in the transaction that takes rows over, a mark of how far it got, so that a row is neither lost nor
written twice, whenever the process dies. The mark names the file it is about: one that is not this file's says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from appliance.keys import sync_folder

_log = logging.getLogger(__name__)

Row = tuple[Any, ...]
FILE_NAME: Final = "decision-journal.jsonl"
MAX_BEHIND_BYTES = 256 * 1024 * 1024
"""Some 300,000 rows, a minute of what one processor can decide: then the store is spared no longer."""
MAX_BYTES = 4 * MAX_BEHIND_BYTES
"""The file is only emptied as a whole."""
_PIECE_BYTES: Final = 65_536
_PAUSE_SECONDS: Final = 0.002
"""Between two pieces: whoever shares the processor waits for one of them at most."""
_HEAD_BYTES: Final = 47
_HEAD: Final = re.compile(rb'\{"journal":"([0-9a-f]{32})"\}\n')


def line_of(row: Row) -> bytes:
    """A row as a line of the file."""
    try:
        return orjson.dumps(row) + b"\n"
    except TypeError:  # a lone surrogate or a very large number, which the store may refuse
        return json.dumps(row).encode() + b"\n"


def read_line(line: bytes, width: int) -> Row | None:
    """The row of so many values in a line; None if it is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return tuple(found) if isinstance(found, list) and len(found) == width else None


class RowJournal:
    """One file of rows with `width` values; `put` by anybody on the event loop, the rest by one task at a time."""

    def __init__(self, path: Path | None, *, width: int, room: int, reserve_bytes: int = 0) -> None:
        """At most `room` rows wait for the file; where there is no room left, the oldest go. No path, no file.

        `reserve_bytes` of the disk are for others.
        """
        self._path = path
        self._width = width
        self._reserve = reserve_bytes
        self._lines: deque[bytes] = deque(maxlen=room)
        self._file: int | None = None
        self._id = ""
        self._end = self._taken = 0
        self._is_broken = self._is_far_behind = False
        self.is_used = path is not None and path.exists()
        """Whether rows are in it, or may be: then later ones go behind them."""

    @property
    def has_file(self) -> bool:
        """Whether rows have got into the file."""
        return self._file is not None

    @property
    def is_at_end(self) -> bool:
        """Whether everything in the file was taken."""
        return self._taken >= self._end

    @property
    def takes_more(self) -> bool:
        """Whether rows are safe in it: not where it cannot be written, nor, until it is empty, once too many waited."""
        return not (self._is_broken or self._is_far_behind)

    @property
    def waiting(self) -> int:
        """How many rows are not in the file."""
        return len(self._lines)

    def put(self, row: Row) -> None:
        """Take one; never blocks, never fails."""
        self.is_used = True
        self._lines.append(line_of(row))

    def put_before(self, lines: Sequence[bytes]) -> None:
        """Lines that go before what waits for the file."""
        room = (self._lines.maxlen or 0) - len(self._lines)
        self._lines.extendleft(reversed(lines[max(0, len(lines) - room) :]))

    async def open(self, mark: str | None) -> None:
        """Look at what a process that died has left; `mark` is the store's."""
        if self._path is not None and self._file is None:
            await asyncio.to_thread(self._open, self._path)
            name, _, place = (mark or "").partition(":")
            if name and name == self._id and place.isdecimal():
                self._taken = max(self._taken, min(int(place), self._end))
            self.is_used = self.has_file or bool(self._lines)

    async def save(self) -> None:
        """Have in the file what waits for it; if it cannot be, it waits on."""
        if not self._lines or self._path is None:
            return
        lines = [*self._lines]
        self._lines.clear()
        try:
            await asyncio.to_thread(self._append, self._path, lines)
        except OSError as error:
            self.put_before(lines)
            if not self._is_broken:  # said once
                _log.warning("event=decision-journal-not-written file=%s error=%s", self._path, error.strerror)
            self._is_broken = True
        else:
            self._is_broken = False
            self._is_far_behind |= self._end - self._taken >= MAX_BEHIND_BYTES

    async def take(self, count: int) -> list[tuple[int, Row]]:
        """Up to `count` of the next rows in the file, each with the place behind it; none at its end."""
        return [] if self._path is None else await asyncio.to_thread(self._take, self._path, count)

    def take_waiting(self, count: int) -> list[Row]:
        """Up to `count` of those that are not in the file."""
        lines = [self._lines.popleft() for _ in range(min(count, len(self._lines)))]
        return [row for _, row in self._read((self._end, line) for line in lines)]

    def mark(self, place: int) -> str:
        """What the store is to keep with the rows up to a place."""
        return f"{self._id}:{place}"

    async def end(self) -> None:
        """Everything was taken over: away with the file; what comes from now on need not go behind anything."""
        assert not self._lines
        self.is_used = self._is_far_behind = False
        file, self._file = self._file, None
        self._id, self._end, self._taken = "", 0, 0
        if file is not None and self._path is not None:
            await asyncio.to_thread(_remove, file, self._path)

    def close(self) -> None:
        """Let go of the file, for good; what is in it is for the next process."""
        self._path = None
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    # on a thread

    def left_behind(self) -> Iterator[Row]:
        """Every row in the file, oldest first, taken over or not; none if there is no file, or it is no journal."""
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                if _HEAD.fullmatch(file.read(_HEAD_BYTES)) is None:
                    return
                for line in file:
                    if (row := read_line(line, self._width)) is not None:
                        yield row
        except OSError:  # whoever takes the rows over tells of it
            return

    def _open(self, path: Path) -> None:
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            _put_aside(path, error.strerror)
            return
        try:
            begin, end = self._look_at(file, path)
        except OSError as error:
            os.close(file)
            _put_aside(path, error.strerror)
        else:
            if begin:
                self._file, self._taken, self._end = file, begin, end

    def _look_at(self, file: int, path: Path) -> tuple[int, int]:
        """Where the rows begin and where they end; zeros if the file was dealt with and closed."""
        size = os.fstat(file).st_size
        start = os.pread(file, _HEAD_BYTES, 0)
        if size < _HEAD_BYTES and b"\n" not in start:  # whoever made it died at once
            _remove(file, path)
            return 0, 0
        head = _HEAD.match(start)
        if head is None:
            raise OSError(errno.EINVAL, "it is no journal")
        end = size
        while os.pread(file, 1, end - 1) != b"\n":
            piece = os.pread(file, min(_PIECE_BYTES, end), max(0, end - _PIECE_BYTES))
            end -= len(piece) - (piece.rfind(b"\n") + 1)
        if end < size:
            _log.warning("event=decision-journal-cut file=%s bytes=%d", path, size - end)
            os.ftruncate(file, end)
        self._id = head[1].decode()
        return head.end(), end

    def _append(self, path: Path, lines: Sequence[bytes]) -> None:
        """All of them or, as far as the next reader sees, none."""
        if self._file is None:
            self._id = secrets.token_hex(16)
            head = f'{{"journal":"{self._id}"}}\n'.encode()
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write(file, head, 0)
            except OSError:
                _remove(file, path)
                raise
            self._file, self._end, self._taken = file, len(head), len(head)
            sync_folder(path.parent)
        end = self._end
        if end >= MAX_BYTES:
            raise OSError(errno.EFBIG, "it is as long as it may be")
        try:
            for piece in _pieces(lines):
                disk = os.fstatvfs(self._file)
                if disk.f_bavail * disk.f_frsize < self._reserve + len(piece):
                    raise OSError(errno.ENOSPC, "the disk is nearly full")
                end = _write(self._file, piece, end)
                time.sleep(_PAUSE_SECONDS)
            os.fdatasync(self._file)
        except OSError:
            with contextlib.suppress(OSError):  # what stands behind the end is written over
                os.ftruncate(self._file, self._end)
            raise
        self._end = end

    def _take(self, path: Path, count: int) -> list[tuple[int, Row]]:
        found: list[tuple[int, Row]] = []
        while self._file is not None and not found and not self.is_at_end:
            places = []
            try:
                lines = _lines_at(self._file, self._taken, self._end)
            except OSError as error:
                os.close(self._file)
                self._file, self._end, self._taken = None, 0, 0
                _put_aside(path, error.strerror)
                break
            for line in lines[:count]:
                self._taken += len(line)
                places.append((self._taken, line))
            found = self._read(places)
        return found

    def _read(self, lines: Iterable[tuple[int, bytes]]) -> list[tuple[int, Row]]:
        found = []
        for place, line in lines:
            row = read_line(line, self._width)
            if row is None:
                _log.error("event=decision-not-written file=%s place=%d", self._path, place)
            else:
                found.append((place, row))
        return found


def _pieces(lines: Sequence[bytes]) -> Iterable[bytes]:
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= _PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


def _lines_at(file: int, begin: int, end: int) -> list[bytes]:
    """Whole lines from a place on with their ends, one or more; OSError if somebody has cut the file."""
    size = 4 * _PIECE_BYTES
    while True:
        data = os.pread(file, min(size, end - begin), begin)
        whole, newline, _ = data.rpartition(b"\n")
        if newline:
            return (whole + newline).splitlines(keepends=True)
        if size >= end - begin:
            raise OSError(errno.EIO, "it was cut")
        size *= 4


def _write(file: int, data: bytes, place: int) -> int:
    """Write at a place; the place behind it."""
    while data:
        count = os.pwrite(file, data, place)
        data, place = data[count:], place + count
    return place


def _put_aside(path: Path, why: str | None) -> None:
    _log.error("event=decision-journal-unreadable file=%s error=%s", path, why)
    names = (path.with_suffix(f".bad{number or ''}") for number in range(100))
    with contextlib.suppress(OSError, StopIteration):  # then nothing can be written in its place
        path.rename(next(one for one in names if not one.exists()))


def _remove(file: int, path: Path) -> None:
    os.close(file)
    path.unlink(missing_ok=True)
