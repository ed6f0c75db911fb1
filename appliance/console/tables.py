"""Results of operations as text for people: rows as a table, a record line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def printable(value: Any) -> str:
    """A value as one line: nothing that a terminal would obey or hide survives."""
    text = "" if value is None else str(value)
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def render(result: Any, columns: Sequence[str] = ()) -> str:
    """Rows (a list of mappings) as an aligned table of `columns`; a mapping as `key  value` lines; else its text."""
    if isinstance(result, Mapping):
        return _record(result, 0)
    if isinstance(result, list) and all(isinstance(row, Mapping) for row in result):
        return _table(result, columns or (list(result[0]) if result else []))
    return f"{printable(result)}\n"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    if not rows:
        return "none\n"
    cells = [[printable(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[at]) for line in cells)) for at, column in enumerate(columns)]
    lines = [[column.upper().replace("_", " ") for column in columns], *cells]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def _record(record: Mapping[str, Any], depth: int) -> str:
    width = max((len(str(key)) for key in record), default=0)
    lines = []
    for key, value in record.items():
        head = f"{'  ' * depth}{key!s:<{width}}  "
        if isinstance(value, Mapping) and value:
            lines.append(head.rstrip() + "\n" + _record(value, depth + 1))
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            inner = _table(value, list(value[0]))
            lines.append(head.rstrip() + "\n" + "".join(f"{'  ' * (depth + 1)}{line}\n" for line in inner.splitlines()))
        elif isinstance(value, list):
            lines.append(head + ", ".join(map(printable, value)) + "\n")
        elif isinstance(value, str) and "\n" in value:
            lines.append(head.rstrip() + "\n" + "".join(f"  {printable(line)}\n" for line in value.splitlines()))
        else:
            lines.append(head + printable(value) + "\n")
    return "".join(lines)
