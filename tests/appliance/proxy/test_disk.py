"""kill -9 and power cuts at every step of every file: a proxy ends enrolled once or begins anew, nothing is half."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.proxy.disk import Disk
from appliance.proxy.state import ProxyState
from est import csr, transfer
from est.exchange import Call, Reply
from tests.appliance.proxy.campus import Campus, World, make_world
from tests.appliance.proxy.test_state import RECORD, ROOT, configured, issue, request

# -- power cuts: what was not synced is gone ---------------------------------------------------------------------------


@dataclass
class File:
    """What a file holds, and what of it has reached the disk."""

    body: bytes = b""
    synced: bytes = b""


class Lossy(Disk):
    """A disk that remembers after every step what a power cut at that moment may leave behind."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        existing = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
        self._names = {name: File(body, body) for name, body in existing.items()}
        self._durable = dict(self._names)
        self._handles: dict[int, File] = {}
        self.remains: list[dict[str, bytes]] = []

    def _note(self) -> None:
        for names in (self._durable, self._names):  # entries of the folder lost, entries of the folder kept
            self.remains.append({name: file.synced for name, file in names.items()})
        self.remains.append({name: file.body for name, file in self._names.items()})

    def _create(self, name: str) -> int:
        handle = super()._create(name)
        self._names[name] = self._handles[handle] = File()
        self._note()
        return handle

    def _write(self, handle: int, data: memoryview) -> int:
        # half a write first: the process may end, or the disk be full, in the middle
        written = super()._write(handle, data[: max(1, len(data) // 2)])
        self._handles[handle].body += bytes(data[:written])
        self._note()
        return written

    def _sync(self, handle: int) -> None:
        super()._sync(handle)
        self._handles[handle].synced = self._handles[handle].body
        self._note()

    def _rename(self, name: str, other: str) -> None:
        super()._rename(name, other)
        self._names[other] = self._names.pop(name)
        self._note()

    def _unlink(self, name: str) -> None:
        super()._unlink(name)
        self._names.pop(name, None)
        self._note()

    def sync_folder(self) -> None:
        super().sync_folder()
        self._durable = dict(self._names)
        self._note()


def after_power_cuts(remains: list[dict[str, bytes]], folder: Path) -> Iterator[ProxyState]:
    """Every state folder that a cut may have left, opened as the next start does."""
    for number, files in enumerate({tuple(sorted(one.items())) for one in remains}):
        place = folder / str(number)
        place.mkdir(parents=True, mode=0o700)
        for name, body in files:
            (place / name).touch(0o600)
            (place / name).write_bytes(body)
        state = ProxyState.open(place)
        yield state
        state.close()


def check_whole(state: ProxyState) -> None:
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
    for path in state.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        assert not path.name.endswith(".tmp"), path.name
    if state.configured:
        assert state.ldevid_key().public_key() == state.ldevid_chain()[0].public_key()
        assert state.anchors() and state.record()
    state.staged()  # a pair, or none


@pytest.mark.req("B-113")
def test_a_power_cut_in_a_first_enrolment_leaves_an_ldevid_or_none(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    disk = Lossy(folder)
    state = ProxyState.open(folder, disk)
    key = ec.generate_private_key(ec.SECP256R1())
    state.write("method", b"brski\n")
    state.stage(key, request(key))
    issued = len(disk.remains)
    state.write("voucher.cms", b"voucher")
    state.write_anchors((ROOT.certificate,))
    state.write_record(RECORD)
    state.adopt((issue(key),))
    state.note_enroll_status()
    state.close()
    before = after = 0
    for one in after_power_cuts(disk.remains[:issued], tmp_path / "before"):
        check_whole(one)
        assert not one.configured
        before += 1
    for one in after_power_cuts(disk.remains[issued:], tmp_path / "after"):
        check_whole(one)
        # the key that the certificate was asked for is never lost
        kept = one.ldevid_key() if one.configured else (one.staged() or (None,))[0]
        assert kept is not None and kept.public_key() == key.public_key()
        after += one.configured
    assert before > 10
    assert after > 5


@pytest.mark.req("E-126")
def test_a_power_cut_in_a_renewal_leaves_the_old_ldevid_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    configured(folder).close()
    disk = Lossy(folder)
    state = ProxyState.open(folder, disk)
    old = state.ldevid_chain()[0]
    for _ in range(2):  # the second change-over meets what the first has left
        key = ec.generate_private_key(ec.SECP256R1())
        state.stage(key, request(key))
        state.write_anchors((ROOT.certificate,))
        state.adopt((issue(key),))
    new = state.ldevid_chain()[0]
    state.close()
    seen = set()
    for one in after_power_cuts(disk.remains, tmp_path / "cut"):
        check_whole(one)
        assert one.configured
        seen.add(one.ldevid_chain()[0].serial_number)
    assert {old.serial_number, new.serial_number} < seen
    assert len(seen) == 3


def test_a_csr_that_a_power_cut_brought_back_is_not_taken_for_that_of_the_new_key(tmp_path: Path) -> None:
    state = ProxyState.open(tmp_path)
    old, new = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    state.stage(old, request(old))
    stale = state.read("next.csr")
    state.stage(new, request(new))
    state.write("next.csr", stale or b"")
    assert state.staged() is None
    state.write("next.csr", b"rubbish")
    assert state.staged() is None


# -- kill -9 in a whole bootstrap --------------------------------------------------------------------------------------

PLEDGE = """
import asyncio, importlib, os, sys
from pathlib import Path
import appliance.failpoint
from appliance.clock import SystemClock
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.run import run_proxy
from appliance.proxy.state import ProxyState
from appliance.settings import ProxySettings
url, certificate, key, anchors = sys.argv[1:]
settings = ProxySettings(idevid_certificate=certificate, idevid_key=key, masa_anchors=anchors, registrar_url=url,
                         give_up_seconds=90)

def start(folder, point):
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
        return
    os.environ["APPLIANCE_FAILPOINT"] = point
    importlib.reload(appliance.failpoint)
    status = 1
    try:
        state = ProxyState.open(Path(folder))
        if not state.configured:
            asyncio.run(Bootstrap(settings, state, SystemClock()).run())
        status = 0 if state.configured else 3
    finally:
        os._exit(status)

for line in sys.stdin:
    start(*line.rstrip("\\n").split("\\t"))
"""


@dataclass
class Server:
    """A registrar in a thread that knows a CSR again by its key, as ours does: it is signed anew per connection."""

    world: World
    issued: dict[bytes, Reply] = field(default_factory=dict)

    def __enter__(self) -> Server:
        self._loop = asyncio.new_event_loop()
        self._campus = Campus(self.world.factory, self.world.domain)
        self._campus.instead["/.well-known/est/simpleenroll"] = self._once
        self._loop.run_until_complete(self._campus.__aenter__())
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.url = self._campus.url
        return self

    def _once(self, call: Call, client: object, proper: Callable[[], Reply]) -> Reply:
        key = csr.read(transfer.read_base64(call.body)).key_sha256
        return self.issued.setdefault(key, proper() if key not in self.issued else Reply(500))

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._campus.__aexit__(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.mark.slow
@pytest.mark.req("B-113", "E-126")
def test_kill_9_at_every_step_of_a_bootstrap_ends_with_one_ldevid(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    files = [world.settings.idevid_certificate, world.settings.idevid_key, world.settings.masa_anchors]
    killed = 0
    with Server(world) as server:
        pledge = subprocess.Popen(
            [sys.executable, "-c", PLEDGE, server.url, *map(str, files)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")},
        )  # fmt: skip
        assert pledge.stdin is not None and pledge.stdout is not None

        def start(folder: Path, point: str) -> int:
            pledge.stdin.write(f"{folder}\t{point}\n")  # type: ignore[union-attr]
            pledge.stdin.flush()  # type: ignore[union-attr]
            return int(pledge.stdout.readline())  # type: ignore[union-attr]

        try:
            for number in range(1, 500):
                folder = tmp_path / f"state-{number}"
                before = len(server.issued)
                status = start(folder, f"proxy-disk:{number}")
                if status == 0:
                    break
                assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (number, status)
                killed += 1
                assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
                assert start(folder, "") == 0, number
                state = ProxyState.open(folder)
                check_whole(state)
                assert state.configured
                assert state.read("next.key.pem") is None and state.read("next.csr") is None
                state.close()
                # whatever was lost, no second certificate was made for this device
                assert len(server.issued) == before + 1, number
        finally:
            pledge.stdin.close()
            assert pledge.wait(10) == 0
            pledge.stdout.close()
    assert killed > 50
