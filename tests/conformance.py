"""The requirement list, the reasons for what is left out, and the table made of both.

Ids and levels stand in requirements.csv; reasons in appliance/docs/not-supported.md as rows `| ids | why |`, where ids
may be ranges such as `B-441..B-448`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
REASONS = ROOT / "appliance" / "docs" / "not-supported.md"
HEADER = """# Conformance

Written by the test run; do not edit. Levels: brski M/S/O as in RFC 8995 (brackets: the project's own rule), est as in
RFC 7030 (LOCAL: the project's own), A and W: the project's own reading of the agent identity draft, T: attacks.
A test counts when it ran and passed; slow tests run with `--full`. Reasons, and what is shown only in part:
[not supported](not-supported.md).

"""
COUNTS = """| letter | requirements | shown | not supported | not shown by this run |
|---|---|---|---|---|
"""
ROWS = """
| id | level | tests, or "not supported: why" |
|---|---|---|
"""


@cache
def requirements() -> Mapping[str, str]:
    """Requirement id to level, in the order of the sheets."""
    with (Path(__file__).parent / "requirements.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["level"] for row in csv.DictReader(file)}


def expand(text: str) -> Iterator[str]:
    """`B-441..B-443, B-450` as single ids; of a range only ids that exist."""
    for part in re.findall(r"([A-Z])-(\d+)(?:\.\.\1-(\d+))?", text):
        letter, first, last = part
        for number in range(int(first), int(last or first) + 1):
            if f"{letter}-{number}" in requirements():
                yield f"{letter}-{number}"


def reasons() -> Mapping[str, str]:
    """Requirement id to the reason why it is not supported."""
    found: dict[str, str] = {}
    for line in REASONS.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| ((?:[A-Z]-\d+[^|]*)) \| (.+) \|$", line):
            found |= dict.fromkeys(expand(match[1]), match[2].strip())
    return found


def table(passed: Mapping[str, set[str]]) -> str:
    """The whole conformance page."""
    why = reasons()
    rows = []
    counts: dict[str, list[int]] = {}
    for id_, level in requirements().items():
        count = counts.setdefault(id_[0], [0, 0, 0, 0])
        count[0] += 1
        shown = sorted(passed.get(id_, ()))
        if shown:
            names = ", ".join(f"`{name.removeprefix('tests/')}`" for name in shown[:4])
            text = names + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
            count[1] += 1
        elif id_ in why:
            text = f"not supported: {why[id_]}"
            count[2] += 1
        else:
            text = "not shown: its tests did not run"
            count[3] += 1
        rows.append(f"| {id_} | {level} | {text} |\n")
    sums = [f"| {letter} | {' | '.join(map(str, count))} |\n" for letter, count in counts.items()]
    return HEADER + COUNTS + "".join(sums) + ROWS + "".join(rows)
