"""Who called, by the kernel's word; and that an answer goes to nobody else."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.proxy import evidence as told
from appliance.proxy.caller import (
    Measurement,
    caller_of,
    check_alive,
    check_credentials,
    measure,
    overflow_uid,
    start_ticks,
)
from appliance.proxy.callers import KEPT_SECONDS, MAX_KEYS_PER_USER, CallerBook
from appliance.proxy.errors import CallerChanged, CallerGone, CallerNotAllowed, RequestNotYours
from appliance.proxy.state import ProxyState
from appliance.web.peer import Peer, program_of
from tests.support import FixedClock

ME = Peer(uid=os.getuid(), pid=os.getpid())


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not this one."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        # the name changes once the child has become /bin/sleep
        while b"sleep" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass
        yield process
        process.kill()


@pytest.mark.req("A-12", "A-20")
def test_the_running_program_is_measured(sleeper: subprocess.Popen[bytes]) -> None:
    with caller_of(Peer(uid=os.getuid(), pid=sleeper.pid), allow_root=True) as caller:
        seen = measure(caller)
    program = Path("/bin/sleep").resolve()
    assert seen.executable_sha256 == hashlib.sha256(program.read_bytes()).digest()
    assert Path(seen.executable) == program
    assert (seen.pid, seen.uid) == (sleeper.pid, os.getuid())
    assert seen.cgroups == tuple(Path("/proc/self/cgroup").read_text().splitlines())
    assert not seen.traced


def test_a_program_with_a_huge_hole_is_not_measured(tmp_path: Path) -> None:
    """Any local user can make one; hashing it would keep a thread busy for hours."""
    program = tmp_path / "agent"
    program.write_bytes(Path("/bin/sleep").resolve().read_bytes())
    program.chmod(0o755)
    os.truncate(program, 1 << 36)
    with subprocess.Popen([str(program), "60"]) as process:
        try:
            while b"agent" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                pass
            with (
                caller_of(Peer(uid=os.getuid(), pid=process.pid), allow_root=True) as caller,
                pytest.raises(CallerNotAllowed),
            ):
                measure(caller)
        finally:
            process.kill()


@pytest.mark.req("A-12")
def test_a_program_replaced_on_disk_is_still_measured_as_it_runs(tmp_path: Path) -> None:
    program = tmp_path / "agent"
    program.write_bytes(Path("/bin/sleep").resolve().read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([str(program), "60"]) as process:
        while b"agent" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass
        honest = hashlib.sha256(program.read_bytes()).digest()
        program.unlink()
        program.write_bytes(b"something else")
        with caller_of(Peer(uid=os.getuid(), pid=process.pid), allow_root=True) as caller:
            assert measure(caller).executable_sha256 == honest
        process.kill()


@pytest.mark.req("A-12")
@pytest.mark.parametrize(
    ("pid", "uid"), [(0, 1000), (-1, 1000), (1234, 0), (1234, overflow_uid()), (1234, -1)],
    ids=["pid 0", "pid -1", "root", "overflow uid", "no uid"],
)  # fmt: skip
def test_callers_without_an_identity_of_their_own_are_refused(pid: int, uid: int) -> None:
    with pytest.raises(CallerNotAllowed):
        check_credentials(pid, uid, allow_root=False)


def test_root_is_served_where_a_laboratory_says_so() -> None:
    check_credentials(1234, 0, allow_root=True)
    with pytest.raises(CallerNotAllowed):
        check_credentials(1234, overflow_uid(), allow_root=True)


@pytest.mark.req("A-12")
def test_a_process_that_ended_is_not_measured(sleeper: subprocess.Popen[bytes]) -> None:
    peer = Peer(uid=os.getuid(), pid=sleeper.pid)
    with pytest.raises(CallerGone), caller_of(peer, allow_root=True) as caller:
        sleeper.kill()
        sleeper.wait()
        measure(caller)
    with pytest.raises(CallerGone), caller_of(peer, allow_root=True):
        pass


@pytest.mark.req("A-12")
def test_a_process_that_died_during_the_measurement_is_noticed_although_it_is_a_zombie(
    sleeper: subprocess.Popen[bytes],
) -> None:
    with caller_of(Peer(uid=os.getuid(), pid=sleeper.pid), allow_root=True) as caller:
        check_alive(caller)
        os.kill(sleeper.pid, signal.SIGKILL)
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(CallerGone):
            check_alive(caller)


@pytest.mark.req("A-12")
@pytest.mark.skipif(os.getuid() != 0, reason="needs another user's process")
def test_a_pid_that_now_belongs_to_another_user_is_refused() -> None:
    with subprocess.Popen(["/bin/sleep", "60"], user=12345) as process:
        with (
            pytest.raises(CallerGone, match="another user"),
            caller_of(Peer(uid=23456, pid=process.pid), allow_root=True),
        ):
            pass
        process.kill()


def test_start_time_survives_odd_process_names(tmp_path: Path) -> None:
    odd = tmp_path / "a) (b 7"
    odd.symlink_to(Path(sys.executable).resolve())
    with subprocess.Popen([str(odd), "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert start_ticks(process.pid) >= start_ticks(os.getpid())
        process.kill()


# -- callers and their keys ----------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> ProxyState:
    return ProxyState.open(tmp_path / "state")


@pytest.mark.req("A-16")
def test_a_key_belongs_to_the_user_who_brought_it_first(state: ProxyState) -> None:
    book = CallerBook(state, FixedClock())
    book.claim(1000, "k" * 43)
    book.claim(1000, "k" * 43)
    with pytest.raises(RequestNotYours):
        book.claim(1001, "k" * 43)


@pytest.mark.req("A-16")
def test_a_restart_does_not_forget_whose_key_it_is(state: ProxyState) -> None:
    CallerBook(state, FixedClock()).claim(1000, "k" * 43)
    with pytest.raises(RequestNotYours):
        CallerBook(state, FixedClock()).claim(1001, "k" * 43)


def test_a_key_is_forgotten_a_day_after_its_last_use(state: ProxyState) -> None:
    clock = FixedClock()
    book = CallerBook(state, clock)
    book.claim(1000, "k" * 43)
    clock.advance(KEPT_SECONDS - 1)
    book.claim(1000, "k" * 43)
    clock.advance(KEPT_SECONDS - 1)
    with pytest.raises(RequestNotYours):
        book.claim(1001, "k" * 43)
    clock.advance(2)
    book.claim(1001, "k" * 43)


@pytest.mark.req("A-16")
def test_a_user_who_floods_displaces_own_keys_only(state: ProxyState) -> None:
    book = CallerBook(state, FixedClock())
    book.claim(1000, "mine")
    for number in range(MAX_KEYS_PER_USER + 50):
        book.claim(1001, f"flood {number}")
    with pytest.raises(RequestNotYours):
        book.claim(1001, "mine")
    book.claim(1000, "flood 0")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"a": 1}', b'{"a": ["x", "y"]}', b"\xff"])
def test_a_damaged_memory_is_begun_anew(state: ProxyState, body: bytes) -> None:
    state.write("callers.json", body)
    CallerBook(state, FixedClock()).claim(1000, "k")


def _exec_on_line() -> subprocess.Popen[bytes]:
    """A program that becomes another one, with the same pid and start time, when it is told to."""
    code = "import os, sys; print(1, flush=True); sys.stdin.readline(); os.execv('/bin/sleep', ['sleep', '60'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _become(process: subprocess.Popen[bytes]) -> None:
    before = start_ticks(process.pid)
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    while program_of(process.pid) != program_of_file(Path("/bin/sleep")):
        pass
    assert start_ticks(process.pid) == before


def program_of_file(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@pytest.mark.req("A-12", "A-20")
def test_a_process_that_becomes_a_trusted_program_after_it_connected_is_noticed() -> None:
    """execve keeps pid, pidfd and start time: what runs is compared."""
    with _exec_on_line() as process:
        try:
            peer = Peer(uid=os.getuid(), pid=process.pid, program=program_of(process.pid))
            with caller_of(peer, allow_root=True) as caller:
                measure(caller)
                _become(process)
                with pytest.raises(CallerChanged):
                    measure(caller)
                with pytest.raises(CallerChanged):
                    check_alive(caller)
            with pytest.raises(CallerChanged), caller_of(peer, allow_root=True):
                pass
        finally:
            process.kill()


@pytest.mark.req("A-20")
def test_evidence_tells_group_boot_and_whether_the_process_lives_apart(sleeper: subprocess.Popen[bytes]) -> None:
    with caller_of(Peer(uid=os.getuid(), pid=sleeper.pid), allow_root=True) as caller:
        seen = measure(caller)
    assert seen.gid == os.getegid()
    assert seen.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert not seen.is_apart


@pytest.mark.req("A-20")
@pytest.mark.parametrize(
    ("cgroup", "is_apart", "hint"),
    [
        ("0::/user.slice/user-1000.slice", False, "none"),
        ("0::/", True, "apart"),
        ("0::/system.slice/docker-%s.scope" % ("ab" * 32), True, "docker:" + "ab" * 32),
        ("4:cpu:/docker/%s" % ("ab" * 32), True, "docker:" + "ab" * 32),
        (
            "0::/kubepods.slice/kubepods-burstable.slice/pod7.slice/cri-containerd-%s.scope" % ("cd" * 32),
            True,
            "cri-containerd:" + "cd" * 32,
        ),
        ("0::/machine.slice/libpod-%s.scope/container" % ("ef" * 32), True, "libpod:" + "ef" * 32),
        ("0::/docker/%s" % ("AB" * 32), False, "none"),
    ],
)
def test_the_container_is_a_hint_out_of_the_control_group(cgroup: str, is_apart: bool, hint: str) -> None:
    assert told._container(Measurement(b"", "/a", 1, 1, (cgroup,), False, is_apart=is_apart)) == hint
