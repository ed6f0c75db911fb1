"""Unix sockets below long folders: the kernel takes paths of at most 107 octets, and homes may lie deeper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_BYTES = 107


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """The path of a Unix socket in a spelling that fits, to bind or connect with inside the block.

    A longer one goes by its folder's descriptor (Linux). Raises OSError where folder or /proc is missing.
    """
    if len(os.fsencode(path)) <= MAX_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
