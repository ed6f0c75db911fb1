"""Owners as an administrator writes them: columns of a CSV file, rules for each text, difference to what is registered.

Pure: text in, rows or a refusal out. Texts are stored inert (NFC, no control, format or bidirectional characters) and
never interpreted; a department is compared with the policy's words by equality alone (design.md, section 5.3).
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from appliance.errors import ApplianceError

OwnerKind = Literal["person", "device", "policy"]

COLUMNS = ("ref", "name", "kind", "department")
KINDS: tuple[str, ...] = get_args(OwnerKind)
MAX_CSV_CHARS = 16_000_000
MAX_ROWS = 200_000
MAX_NAME_CHARS = 128
MAX_DEPARTMENT_CHARS = 64

_EXPECTED = f"the columns are {','.join(COLUMNS)}"
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)
# Control, format (which holds the bidirectional and zero-width characters), surrogate, private use, unassigned,
# line and paragraph separators: nothing of it belongs into a name that people compare with their eyes.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class OwnerTextRefused(ApplianceError):
    """A ref, name, kind or department breaks its rule."""

    reason: ClassVar[str] = "owner-text-refused"


class OwnerFileRefused(ApplianceError):
    """The CSV file cannot be taken in; `line` says where."""

    reason: ClassVar[str] = "owner-file-refused"


class ConfirmationNeeded(ApplianceError):
    """The file changes more than a tenth of the registered owners and nobody confirmed that."""

    reason: ClassVar[str] = "confirmation-needed"


@dataclass(frozen=True, slots=True)
class OwnerRow:
    """What an administrator says of one owner; `department` may be empty."""

    ref: str
    name: str
    kind: str
    department: str


@dataclass(frozen=True, slots=True)
class Changed:
    """One owner whose row differs from what is registered."""

    before: OwnerRow
    after: OwnerRow


@dataclass(frozen=True, slots=True)
class Difference:
    """What a file would do. `vanished` owners are named, and left as they are."""

    added: tuple[OwnerRow, ...]
    changed: tuple[Changed, ...]
    unchanged: tuple[str, ...]
    vanished: tuple[OwnerRow, ...]

    @property
    def is_large(self) -> bool:
        """More than a tenth of the registered owners change or vanish."""
        registered = len(self.changed) + len(self.unchanged) + len(self.vanished)
        return (len(self.changed) + len(self.vanished)) * 10 > registered


def check_row(ref: str, name: str, kind: str, department: str) -> OwnerRow:
    """The row in canonical form (NFC, no surrounding spaces); raises OwnerTextRefused."""
    check_ref(ref)
    if kind not in KINDS:
        raise OwnerTextRefused(f"kind {kind[:40]!a}: one of {', '.join(KINDS)}")
    return OwnerRow(ref, check_name(name), kind, check_department(department))


def check_ref(ref: str) -> str:
    """The ref as it is; raises OwnerTextRefused."""
    if not _REF.fullmatch(ref):
        raise OwnerTextRefused(f"ref {ref[:80]!a}: wants 1 to 64 of A-Z a-z 0-9 . _ @ + -, the first a letter or digit")
    return ref


def check_name(name: str) -> str:
    """The name in canonical form; raises OwnerTextRefused."""
    return _text("name", name, MAX_NAME_CHARS)


def check_department(department: str) -> str:
    """The department in canonical form; raises OwnerTextRefused."""
    return _text("department", department, MAX_DEPARTMENT_CHARS)


def read_csv(text: str) -> tuple[OwnerRow, ...]:
    """Rows of a CSV file with exactly the columns ref,name,kind,department; raises OwnerFileRefused naming the line."""
    if len(text) > MAX_CSV_CHARS:
        raise OwnerFileRefused(f"the file has more than {MAX_CSV_CHARS} characters")
    if "\0" in text:
        raise OwnerFileRefused("the file holds a NUL character", line=text[: text.index("\0")].count("\n") + 1)
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    rows: list[OwnerRow] = []
    lines: dict[str, int] = {}
    try:
        header = next(reader, [])
        _check_header(header)
        for cells in reader:
            line = reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise OwnerFileRefused(f"line {line}: {len(cells)} values for {len(header)} columns", line=line)
            if len(rows) == MAX_ROWS:
                raise OwnerFileRefused(f"line {line}: more than {MAX_ROWS} owners", line=line)
            try:
                row = check_row(**dict(zip(header, cells, strict=True)))
            except OwnerTextRefused as cause:
                raise OwnerFileRefused(f"line {line}: {cause.detail}", line=line) from cause
            if row.ref in lines:
                raise OwnerFileRefused(f"line {line}: ref {row.ref} is already on line {lines[row.ref]}", line=line)
            lines[row.ref] = line
            rows.append(row)
    except csv.Error as cause:
        raise OwnerFileRefused(f"line {reader.line_num}: {cause}", line=reader.line_num) from cause
    return tuple(rows)


def compare(registered: Mapping[str, OwnerRow], rows: Iterable[OwnerRow]) -> Difference:
    """What `rows` would change in `registered` (by ref)."""
    added: list[OwnerRow] = []
    changed: list[Changed] = []
    unchanged: list[str] = []
    seen: set[str] = set()
    for row in rows:
        seen.add(row.ref)
        before = registered.get(row.ref)
        if before is None:
            added.append(row)
        elif before == row:
            unchanged.append(row.ref)
        else:
            changed.append(Changed(before, row))
    vanished = tuple(row for ref, row in registered.items() if ref not in seen)
    return Difference(tuple(added), tuple(changed), tuple(unchanged), vanished)


def _check_header(header: list[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in COLUMNS if name not in header]
    if unknown:
        raise OwnerFileRefused(f"line 1: unknown column {unknown[0][:40]!a}; {_EXPECTED}", line=1)
    if missing:
        raise OwnerFileRefused(f"line 1: column {missing[0]} is missing; {_EXPECTED}", line=1)
    if len(header) != len(COLUMNS):
        raise OwnerFileRefused("line 1: a column stands twice", line=1)


def _text(what: str, value: str, max_chars: int) -> str:
    canonical = unicodedata.normalize("NFC", value).strip(" ")
    if len(canonical) > max_chars:
        raise OwnerTextRefused(f"{what} has more than {max_chars} characters")
    for char in canonical:
        if unicodedata.category(char) in _UNSEEN:
            raise OwnerTextRefused(f"{what} holds U+{ord(char):04X}, which cannot be seen or turns text around")
    return canonical
