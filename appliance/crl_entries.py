"""A process of its own that reads the entries of a large CRL from the store and writes them as DER.

A million entries are a second of Python, which must not hold up the appliance: not on its event loop, nor in a thread,
which would share its interpreter. It reads one JSON object from standard input (`database`, `sql`, `values`,
`aki` in hex, `file`), writes the entries to `file`, and their number to standard output. It gets no key: the appliance
signs.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from est.revocation import EntryWriter

_BATCH = 2_000


def main() -> None:
    """Runs one order."""
    order = json.load(sys.stdin)
    count = 0
    with Path(order["file"]).open("wb") as file:
        for number, data in _encoded(order):
            count += number
            file.write(data)
    json.dump({"entries": count}, sys.stdout)


def _encoded(order: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    write = EntryWriter().write
    uri = f"{Path(order['database']).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=10)) as connection:
        cursor = connection.execute(order["sql"], {**order["values"], "aki": bytes.fromhex(order["aki"])})
        while rows := cursor.fetchmany(_BATCH):
            yield (
                len(rows),
                b"".join([write(serial, at // 1_000_000, reason or "unspecified") for serial, at, reason in rows]),
            )


if __name__ == "__main__":
    main()
