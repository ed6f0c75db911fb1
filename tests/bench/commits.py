"""g: transactions of the store with many waiting at once, against the disk's own fdatasync; wall clock, both of them.

A transaction is what an issuance writes: a certificate row of usual size and its audit entry. Every one is answered
after its COMMIT, which waits for the disk, so a ratio above 1 shows that commits are shared. In this process, without
network and signatures.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from appliance import audit
from appliance.audit import APPLIANCE, AuditEvent
from appliance.clock import SystemClock
from appliance.store import Store, Tx, certificates
from tests.bench.measure import Bench
from tests.bench.plan import Plan

WAITING = 64
_DER = bytes(811)
_BLOCK = bytes(4096)


def run(plan: Plan, folder: Path) -> list[Bench]:
    """g, on the core of the server."""
    if not plan.wants("g"):
        return []
    mine = os.sched_getaffinity(0)
    if plan.server_core is not None:
        os.sched_setaffinity(0, {plan.server_core})
    try:
        return [_group_commit(plan, folder)]
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, mine)


def _group_commit(plan: Plan, folder: Path) -> Bench:
    bench = Bench("g", f"store transactions, {WAITING} waiting (wall clock)", "1/D", 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    store = Store.open(f"sqlite:///{folder / 'g.db'}", SystemClock(), create=True)
    each = max(1, 4 * plan.operations // WAITING)
    done = 0
    try:
        for at in range(plan.repetitions + 1):
            synchronised = _fdatasync(folder / "g.reference", max(20, plan.operations // 4))
            begun = time.perf_counter()
            asyncio.run(_write(store, each))
            seconds = (time.perf_counter() - begun) / (each * WAITING)
            done += each * WAITING
            if at:
                bench.add(cpu=seconds * 1e6, reference=synchronised * 1e6, operations=each * WAITING)
        entries = store.read_sync(lambda tx: audit.verify(audit.rows(tx)).seq)
        assert entries == done, (entries, done)
    finally:
        store.close()
    bench.notes["books"] = "checked"
    return bench


async def _write(store: Store, each: int) -> None:
    async def one() -> None:
        for _ in range(each):
            await store.write(_issue, quick=True)

    await asyncio.gather(*(one() for _ in range(WAITING)))


def _issue(tx: Tx) -> None:
    serial, digest = secrets.randbits(120), secrets.token_bytes(32)
    columns = {
        "profile": "ldevid",
        "subject_id": f"spiffe://campus.example/proxy/{serial:x}",
        "proxy_id": f"{serial:x}",
    }
    row = certificates.Pending(
        "devices", bytes(20), serial, digest, digest, tx.now, tx.now + timedelta(days=90), columns
    )
    certificates.issue(tx, certificates.add(tx, row), _DER, digest)
    fields = {"issuer": "devices", "profile": "ldevid", "cert_sha256": digest.hex()}
    audit.append(tx, AuditEvent("ldevid-issued", APPLIANCE, certificates.serial_text(serial), fields=fields))


def _fdatasync(file: Path, count: int) -> float:
    """Seconds for one appended block on disk."""
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        begun = time.perf_counter()
        for _ in range(count):
            os.write(descriptor, _BLOCK)
            os.fdatasync(descriptor)
        return (time.perf_counter() - begun) / count
    finally:
        os.close(descriptor)
