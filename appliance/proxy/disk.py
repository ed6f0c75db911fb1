"""Files that are whole after kill -9 and after a power cut: every one is written aside, synced, and renamed into place.

One folder, mode 0700, files 0600. Each call into the operating system is a step of its own, with a crash point behind
it, so that tests can end the process, or lose what was not synced, between any two of them.
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.failpoint import failpoint

POINT = "proxy-disk"
_TEMPORARY = ".tmp"


class Disk:
    """The folder. All methods raise OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def replace(self, name: str, body: bytes, *, durable: bool = True) -> None:
        """A file as a whole: after a crash it has its old or its new content, nothing between.

        `durable` False survives the end of this process, not that of the machine.
        """
        temporary = f".{name}{_TEMPORARY}"
        self.remove(temporary)
        handle = self._create(temporary)
        try:
            view = memoryview(body)
            while view:
                view = view[self._write(handle, view) :]
            if durable:
                self._sync(handle)
        finally:
            os.close(handle)
        self._rename(temporary, name)
        if durable:
            self.sync_folder()

    def rename(self, name: str, other: str) -> None:
        """Durable when it returns."""
        self._rename(name, other)
        self.sync_folder()

    def remove(self, name: str) -> None:
        """Gone for this process; a power cut may bring it back."""
        if (self.folder / name).exists():
            self._unlink(name)

    def clean(self) -> None:
        """Remove what writers left that never came to renaming."""
        for path in self.folder.glob(f".*{_TEMPORARY}"):
            self._unlink(path.name)

    def sync_folder(self) -> None:
        """What was renamed and removed until now stays so."""
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        failpoint(POINT)

    def _create(self, name: str) -> int:
        handle = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        failpoint(POINT)
        return handle

    def _write(self, handle: int, data: memoryview) -> int:
        written = os.write(handle, data)
        failpoint(POINT)
        return written

    def _sync(self, handle: int) -> None:
        os.fsync(handle)
        failpoint(POINT)

    def _rename(self, name: str, other: str) -> None:
        (self.folder / name).rename(self.folder / other)
        failpoint(POINT)

    def _unlink(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        failpoint(POINT)
