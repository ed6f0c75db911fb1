"""A watched CSV file as a source of owners: read only when it is whole."""

from __future__ import annotations

from pathlib import Path

from appliance.access.owner_rows import MAX_CSV_CHARS
from appliance.access.sources.errors import (
    DirectoryFileRefused,
    DirectoryNotConfigured,
    DirectoryTooLarge,
    DirectoryUnreachable,
)


def read_whole(path: Path | None, max_bytes: int) -> str:
    """The file's text, if nobody is writing it: unchanged while it was read, and ending with a line.

    Raises DirectoryNotConfigured, DirectoryUnreachable, DirectoryTooLarge, DirectoryFileRefused.
    """
    if path is None:
        raise DirectoryNotConfigured("directory.csv_file is not set")
    limit = min(max_bytes, 4 * MAX_CSV_CHARS)
    try:
        before = path.stat()
        if before.st_size > limit:
            raise DirectoryTooLarge(f"the file has more than {limit} octets", limit=limit)
        text = path.read_bytes().decode("utf-8")
        after = path.stat()
    except UnicodeDecodeError as cause:
        raise DirectoryFileRefused("the file is not UTF-8") from cause
    except OSError as cause:
        raise DirectoryUnreachable(f"cannot read {path}: {cause.strerror}") from cause
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        raise DirectoryFileRefused("the file was written while it was read")
    if not text.endswith("\n"):
        raise DirectoryFileRefused("the file ends within a line: it may be half written")
    return text
