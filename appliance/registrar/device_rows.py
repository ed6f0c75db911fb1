"""Expected devices as an administrator writes them: the columns of a CSV file, and the difference to what is listed.

Pure: text in, rows or a refusal out. `manufacturer` and `serial` must be there; `label`, `idevid-issuer` (the authority
key identifier of its IDevID, hex) and `delivered` (the day, YYYY-MM-DD) may be.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time

from appliance.registrar.errors import DeviceFileRefused
from brski import leaves

REQUIRED = ("manufacturer", "serial")
OPTIONAL = ("label", "idevid-issuer", "delivered")
COLUMNS = (*REQUIRED, *OPTIONAL)
MAX_CHARS = 3_500_000
MAX_ROWS = 100_000
MAX_LABEL = 120

_EXPECTED = f"the columns are {','.join(COLUMNS)}; the first two are needed"
_KEY = re.compile(r"(?:[0-9a-f]{2}:?){4,63}[0-9a-f]{2}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """What the file says of one device; `key_identifier` is lower-case hex, "" where it says none."""

    manufacturer: str
    serial: str
    label: str = ""
    key_identifier: str = ""
    delivered: str = ""
    line: int = field(default=0, compare=False)

    @property
    def delivered_at(self) -> datetime | None:
        """The beginning of the day of delivery, UTC."""
        return datetime.combine(date.fromisoformat(self.delivered), time(), UTC) if self.delivered else None


@dataclass(frozen=True, slots=True)
class Difference:
    """What a file would do; `missing` devices are listed and not in the file."""

    added: tuple[DeviceRow, ...]
    changed: tuple[tuple[DeviceRow, DeviceRow], ...]
    unchanged: int
    missing: tuple[DeviceRow, ...]


def read_csv(text: str) -> tuple[DeviceRow, ...]:
    """The rows of a file; raises DeviceFileRefused naming the line."""
    if len(text) > MAX_CHARS:
        raise DeviceFileRefused(f"the file has more than {MAX_CHARS} characters; take it in by parts")
    if "\0" in text:
        raise refused_at(text[: text.index("\0")].count("\n") + 1, "a NUL character")
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    rows: list[DeviceRow] = []
    lines: dict[tuple[str, str], int] = {}
    try:
        header = next(reader, [])
        _check_header(header)
        for cells in reader:
            line = reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise refused_at(line, f"{len(cells)} values for {len(header)} columns")
            if len(rows) == MAX_ROWS:
                raise refused_at(line, f"more than {MAX_ROWS} devices; take the file in by parts")
            row = _read_row(dict(zip(header, cells, strict=True)), line)
            key = (row.manufacturer, row.serial)
            if key in lines:
                raise refused_at(line, f"serial {row.serial} is already on line {lines[key]}")
            lines[key] = line
            rows.append(row)
    except csv.Error as cause:
        raise refused_at(reader.line_num, str(cause)) from cause
    return tuple(rows)


def compare(listed: Mapping[tuple[str, str], DeviceRow], rows: Iterable[DeviceRow]) -> Difference:
    """What `rows` would change in `listed`, by manufacturer and serial; of manufacturers not in the file, nothing."""
    added: list[DeviceRow] = []
    changed: list[tuple[DeviceRow, DeviceRow]] = []
    unchanged = 0
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = (row.manufacturer, row.serial)
        seen.add(key)
        before = listed.get(key)
        if before is None:
            added.append(row)
        elif before == row:
            unchanged += 1
        else:
            changed.append((before, row))
    makers = {maker for maker, _ in seen}
    missing = tuple(row for key, row in listed.items() if key not in seen and row.manufacturer in makers)
    return Difference(tuple(added), tuple(changed), unchanged, missing)


def _check_header(header: list[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in REQUIRED if name not in header]
    if unknown:
        raise refused_at(1, f"unknown column {unknown[0][:40]!a}; {_EXPECTED}")
    if missing:
        raise refused_at(1, f"column {missing[0]} is missing; {_EXPECTED}")
    if len(set(header)) != len(header):
        raise refused_at(1, "a column stands twice")


def _read_row(cells: Mapping[str, str], line: int) -> DeviceRow:
    manufacturer, serial = cells["manufacturer"].strip(" "), cells["serial"].strip(" ")
    label, delivered = cells.get("label", "").strip(" "), cells.get("delivered", "").strip(" ")
    key = cells.get("idevid-issuer", "").strip(" ").lower()
    if not manufacturer:
        raise refused_at(line, "manufacturer is empty")
    try:
        leaves.read_string(serial)
    except ValueError as cause:
        raise refused_at(line, f"serial {serial[:40]!a}: {cause}") from cause
    if len(label) > MAX_LABEL or not label.isprintable():
        raise refused_at(line, f"label {label[:40]!a}: at most {MAX_LABEL} printable characters")
    if key and not _KEY.fullmatch(key):
        raise refused_at(line, f"idevid-issuer {key[:40]!a}: hex octets of a key identifier are needed")
    try:
        if delivered and not (_DATE.fullmatch(delivered) and date.fromisoformat(delivered)):
            raise ValueError
    except ValueError as cause:
        raise refused_at(line, f"delivered {delivered[:40]!a}: a day as YYYY-MM-DD is needed") from cause
    return DeviceRow(manufacturer, serial, label, key.replace(":", ""), delivered, line)


def refused_at(line: int, what: str) -> DeviceFileRefused:
    return DeviceFileRefused(f"line {line}: {what}", line=line)
