"""kill -9 of a writing process: what was acknowledged is there, and the audit log is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from appliance import audit
from appliance.clock import SystemClock
from appliance.store import Store, schema

WRITER = """
import asyncio, sys
from sqlalchemy import insert
from appliance import audit
from appliance.clock import SystemClock
from appliance.store import Store, schema

INSERT = insert(schema.meta)
store = Store.open(sys.argv[1], SystemClock())

async def one(worker):
    number = 0
    while True:
        key = f"{sys.argv[2]}.{worker}.{number}"
        def write(tx):
            tx.execute(INSERT, {"key": key, "value": ""})
            audit.append(tx, audit.AuditEvent("appliance-started", audit.APPLIANCE, object=key))
        await store.write(write)
        print(key, flush=True)
        number += 1

async def main():
    await asyncio.gather(*(one(worker) for worker in range(16)))

asyncio.run(main())
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    Store.open(url, SystemClock(), create=True).close()
    acknowledged: list[str] = []
    for round_ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, url, str(round_)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(0.05 + 0.07 * round_)
        os.kill(process.pid, signal.SIGKILL)
        lines = [first, *process.stdout.readlines()]
        process.wait()
        acknowledged += [line.strip() for line in lines if line.endswith("\n")]
    store = Store.open(url, SystemClock())
    stored = {row.key for row in store.read_sync(lambda tx: tx.all(select(schema.meta)))}
    audited = {row.entry["object"] for row in store.read_sync(lambda tx: list(audit.rows(tx)))}
    head = store.read_sync(lambda tx: audit.verify(audit.rows(tx)))
    store.close()
    assert len(acknowledged) > 50
    assert set(acknowledged) <= stored
    assert stored == audited
    assert head.seq == len(stored)
