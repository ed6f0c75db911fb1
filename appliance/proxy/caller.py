"""Who called the Agent API, by the kernel's word: peer credentials of the socket, and facts about that one process.

Nothing the caller says about itself is used. The peer credentials are those of the process that connected; its pidfd is
held while its program is measured, its users and its start time are compared, so that a recycled pid cannot lend its
executable to somebody else. What the process runs is compared from accepting the connection to the answer: `execve`
keeps pid and start time. `/proc/<pid>/exe` is opened through the kernel's own link: a renamed or replaced file on
disk does not matter, the running program is what is hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.proxy.errors import CallerChanged, CallerGone, CallerNotAllowed
from appliance.web.peer import Peer, program_of

_BLOCK_BYTES = 1 << 20
MAX_CGROUP_BYTES = 4096
MAX_PROGRAM_BYTES = 1 << 30
"""Larger programs are not measured: a file with holes could keep every measuring thread busy for hours."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The connecting process. `pidfd` belongs to whoever holds the `caller` context."""

    pid: int
    uid: int
    pidfd: int
    start_ticks: int
    program: tuple[int, int]
    """Device and inode of what it ran when the call came in, which must be what it ran when it was accepted."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was seen of the process: program digest (SHA-256, raw), program path, user, control groups, a debugger."""

    executable_sha256: bytes
    executable: str
    pid: int
    uid: int
    cgroups: tuple[str, ...]
    traced: bool
    gid: int | None = None
    boot_id: str = ""
    is_apart: bool = False
    """Whether it lives in another pid or mount namespace than the proxy, as in a container."""


@contextlib.contextmanager
def caller_of(peer: Peer, *, allow_root: bool) -> Iterator[Caller]:
    """The process at the other end of a Unix socket. Raises CallerNotAllowed, CallerGone, CallerChanged."""
    pid, uid = peer.pid or 0, -1 if peer.uid is None else peer.uid
    check_credentials(pid, uid, allow_root=allow_root)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as cause:
        raise CallerGone("the calling process has ended") from cause
    try:
        caller = Caller(pid, uid, pidfd, start_ticks(pid), _program_of(pid))
        if peer.program is not None and peer.program != caller.program:
            raise CallerChanged("the calling process runs another program than when it connected")
        # the number may have gone to somebody else since the connection was made
        if uid not in _users_of(pid):
            raise CallerGone("the calling process has ended, or has become another user's")
        yield caller
    finally:
        os.close(pidfd)


def check_credentials(pid: int, uid: int, *, allow_root: bool) -> None:
    """Raise CallerNotAllowed for callers that have no identity of their own here."""
    if pid <= 0 or uid < 0:
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
    """The process is still the one that connected, and runs the same program. Raises CallerGone, CallerChanged."""
    poller = select.poll()
    poller.register(caller.pidfd, select.POLLIN)
    if poller.poll(0) or start_ticks(caller.pid) != caller.start_ticks:
        raise CallerGone("the calling process ended while it was measured")
    if _program_of(caller.pid) != caller.program:
        raise CallerChanged("the calling process became another program")


def measure(caller: Caller) -> Measurement:
    """Hash and describe the caller's program. Raises CallerGone, CallerChanged, CallerNotAllowed.

    Blocking: reads the whole executable.
    """
    digest = hashlib.sha256()
    try:
        with Path(f"/proc/{caller.pid}/exe").open("rb", buffering=0) as program:
            found = os.fstat(program.fileno())
            if (found.st_dev, found.st_ino) != caller.program:
                raise CallerChanged("the calling process became another program")
            path = str(Path(f"/proc/self/fd/{program.fileno()}").readlink())
            if found.st_size > MAX_PROGRAM_BYTES:
                raise CallerNotAllowed(f"the calling program is larger than {MAX_PROGRAM_BYTES >> 20} MiB")
            while block := program.read(_BLOCK_BYTES):
                digest.update(block)
        cgroups = _proc_text(caller.pid, "cgroup")[:MAX_CGROUP_BYTES]
        status = _proc_text(caller.pid, "status")
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        is_apart = any(_namespace(caller.pid, one) != _namespace(os.getpid(), one) for one in ("pid", "mnt"))
    except OSError as cause:
        raise CallerGone(f"the calling process cannot be measured: {cause.strerror}") from cause
    check_alive(caller)
    lines = tuple(cgroups.split("\n")[:-1])
    traced = "TracerPid:\t0\n" not in status
    gid = next((int(line.split()[2]) for line in status.splitlines() if line.startswith("Gid:")), None)
    return Measurement(digest.digest(), path, caller.pid, caller.uid, lines, traced, gid, boot_id, is_apart)


def _namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")  # noqa: PTH115 - not a path but a name in brackets


def _program_of(pid: int) -> tuple[int, int]:
    """Device and inode of what a process runs. Raises CallerGone."""
    found = program_of(pid)
    if found is None:
        raise CallerGone("the calling process has ended, or may not be looked at")
    return found


def _proc_text(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")


def _users_of(pid: int) -> set[int]:
    """Real, effective, saved and file-system uid. Raises CallerGone."""
    try:
        for line in _proc_text(pid, "status").splitlines():
            if line.startswith("Uid:"):
                return {int(one) for one in line.split()[1:]}
    except (OSError, ValueError) as cause:
        raise CallerGone("the calling process has ended") from cause
    return set()
