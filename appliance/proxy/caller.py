"""Who called the Agent API, by the kernel's word: peer credentials of the socket, and facts about that one process.

Nothing the caller says about itself is used. SO_PEERCRED is the process that connected; its pidfd is held while its
program is measured, and the start time is compared before and after, so that a recycled pid cannot lend its executable
to somebody else. `/proc/<pid>/exe` is opened through the kernel's own link: a renamed or replaced file on disk does not
matter, the running program is what is hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.proxy.errors import CallerGone, CallerNotAllowed

_PEER_CREDENTIALS = struct.Struct("3i")
_SO_PEERPIDFD = 77  # Linux 6.5; the socket module has no name for it
_BLOCK_BYTES = 1 << 20
MAX_CGROUP_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """The connecting process. `pidfd` belongs to whoever holds the `caller` context."""

    pid: int
    uid: int
    gid: int
    pidfd: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was seen of the process: program digest (SHA-256, raw), program path, user, control groups, a debugger."""

    executable_sha256: bytes
    executable: str
    pid: int
    uid: int
    gid: int
    cgroups: tuple[str, ...]
    traced: bool


@contextlib.contextmanager
def caller_of(connection: socket.socket, *, allow_root: bool) -> Iterator[Caller]:
    """The process at the other end of a Unix socket. Raises CallerNotAllowed, CallerGone."""
    pid, uid, gid = _PEER_CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    )
    check_credentials(pid, uid, allow_root=allow_root)
    pidfd = _open_pidfd(connection, pid)
    try:
        yield Caller(pid, uid, gid, pidfd, start_ticks(pid))
    finally:
        os.close(pidfd)


def check_credentials(pid: int, uid: int, *, allow_root: bool) -> None:
    """Raise CallerNotAllowed for callers that have no identity of their own here."""
    if pid <= 0:
        raise CallerNotAllowed("the caller lives in another pid namespace; map one socket into each container")
    if uid == overflow_uid():
        raise CallerNotAllowed("the caller's user is not mapped here (overflow uid)")
    if uid == 0 and not allow_root:
        raise CallerNotAllowed("root is no identity for an agent: run the agent as a user of its own")


def overflow_uid() -> int:
    """The uid that the kernel shows for users without a mapping."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 65534


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot. Raises CallerGone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[19])  # field 22; the name before it may hold blanks and brackets
    except (OSError, ValueError, IndexError) as cause:
        raise CallerGone("the calling process has ended") from cause


def check_alive(caller: Caller) -> None:
    """The process is still the one that connected. Raises CallerGone."""
    poller = select.poll()
    poller.register(caller.pidfd, select.POLLIN)
    if poller.poll(0) or start_ticks(caller.pid) != caller.start_ticks:
        raise CallerGone("the calling process ended while it was measured")


def measure(caller: Caller) -> Measurement:
    """Hash and describe the caller's program. Blocking (reads the whole executable). Raises CallerGone."""
    digest = hashlib.sha256()
    try:
        with Path(f"/proc/{caller.pid}/exe").open("rb", buffering=0) as program:
            path = str(Path(f"/proc/self/fd/{program.fileno()}").readlink())
            while block := program.read(_BLOCK_BYTES):
                digest.update(block)
        cgroups = _proc_text(caller.pid, "cgroup")[:MAX_CGROUP_BYTES]
        traced = "TracerPid:\t0\n" not in _proc_text(caller.pid, "status")
    except OSError as cause:
        raise CallerGone(f"the calling process cannot be measured: {cause.strerror}") from cause
    check_alive(caller)
    lines = tuple(cgroups.split("\n")[:-1])
    return Measurement(digest.digest(), path, caller.pid, caller.uid, caller.gid, lines, traced)


def _proc_text(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")


def _open_pidfd(connection: socket.socket, pid: int) -> int:
    """The process itself rather than its number: from the socket where the kernel can, by number otherwise."""
    with contextlib.suppress(OSError):
        return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4), sys.byteorder)
    try:
        return os.pidfd_open(pid)
    except OSError as cause:
        raise CallerGone("the calling process has ended") from cause
