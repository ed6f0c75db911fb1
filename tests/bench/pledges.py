"""Many pledges in flight from one process: `python -m tests.bench.pledges HOST PORT WORK IN_FLIGHT START SECONDS`.

Lean on purpose: WORK holds finished requests and files with keys, so all that happens here is TLS and bytes. One line
per device: JSON with `pem` (IDevID, chain and key in one file), `request`, `status` and `csr` (base64). Starts at
monotonic time START, keeps IN_FLIGHT pledges under way for SECONDS, lets the last ones finish, and prints one JSON
object: moments when pledges were through, how long each took, why any was lost, and when WORK ran out (0 = never).
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BRSKI, EST = "/.well-known/brski", "/.well-known/est"
MAX_RETRIES = 30


@dataclass(slots=True)
class Outcome:
    """What became of the pledges of one process."""

    through: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    retries: int = 0
    ran_out: float = 0.0


def _write(path: str, media_type: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes, float]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    fields = dict(line.split(b":", 1) for line in head[:-4].split(b"\r\n")[1:])
    body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
    return int(head[9:12]), body, float(fields.get(b"retry-after", b"1"))


async def _enrol(address: tuple[str, int], work: dict[str, Any], outcome: Outcome) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(work["pem"])
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    try:
        for path, media_type, name in (
            (f"{BRSKI}/requestvoucher", "application/voucher-cms+json", "request"),
            (f"{BRSKI}/voucher_status", "application/json", "status"),
            (f"{EST}/simpleenroll", "application/pkcs10", "csr"),
        ):
            message = _write(path, media_type, base64.b64decode(work[name]))
            for _ in range(MAX_RETRIES):
                writer.write(message)
                status, body, wait = await _read(reader)
                if status not in (429, 503):
                    break
                outcome.retries += 1
                await asyncio.sleep(min(wait, 2.0))
            if status != 200:
                raise ConnectionError(f"{name}: {status} {body[:80]!r}")
    finally:
        writer.close()


async def _pledges(address: tuple[str, int], work: Iterator[str], end: float, outcome: Outcome) -> None:
    while time.monotonic() < end:
        line = next(work, None)
        if line is None:
            outcome.ran_out = outcome.ran_out or time.monotonic()
            return
        begun = time.monotonic()
        try:
            await asyncio.wait_for(_enrol(address, json.loads(line), outcome), 60)
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            outcome.lost.append(f"{type(error).__name__}: {error}"[:200])
            continue
        now = time.monotonic()
        outcome.through.append(now)
        outcome.took.append(now - begun)


async def _main(host: str, port: int, work: Path, in_flight: int, start: float, seconds: float) -> Outcome:
    outcome, lines = Outcome(), iter(work.read_text().splitlines())
    await asyncio.sleep(max(0.0, start - time.monotonic()))
    end = start + seconds
    await asyncio.gather(*(_pledges((host, port), lines, end, outcome) for _ in range(in_flight)))
    return outcome


if __name__ == "__main__":
    host, port, work, in_flight, start, seconds = sys.argv[1:]
    found = asyncio.run(_main(host, int(port), Path(work), int(in_flight), float(start), float(seconds)))
    print(json.dumps({name: getattr(found, name) for name in Outcome.__slots__}))
