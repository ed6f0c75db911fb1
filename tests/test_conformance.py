"""No requirement without a test or a reason, none with both, and nothing about requirements that do not exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests import conformance

TESTS = Path(__file__).parent
READS_EVERY_TEST = pytest.mark.xdist_group("reads every test")
ROW = re.compile(r"\| ([A-Z]-\d[^|]*) \|")


def _marks(tree: ast.AST) -> Iterator[ast.Call]:
    """Every `pytest.mark.req(...)`, whether it decorates a function or belongs to one parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "req":
            yield node


@cache
def tagged() -> Mapping[str, str]:
    """Requirement id to one file whose tests carry it."""
    found: dict[str, str] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for mark in _marks(ast.parse(path.read_text(encoding="utf-8"))):
            for one in mark.args:
                assert isinstance(one, ast.Constant), f"{path.name}:{mark.lineno}: ids are written out"
                found.setdefault(str(one.value), str(path.relative_to(TESTS)))
    return found


@READS_EVERY_TEST
def test_every_requirement_has_a_test_or_a_reason() -> None:
    reasons = conformance.reasons()
    assert [id_ for id_ in conformance.requirements() if id_ not in tagged() and id_ not in reasons] == []


@READS_EVERY_TEST
def test_no_requirement_is_both_shown_and_not_supported() -> None:
    assert {id_: tagged()[id_] for id_ in conformance.reasons() if id_ in tagged()} == {}


@READS_EVERY_TEST
def test_tests_and_reasons_name_requirements_that_exist() -> None:
    known = conformance.requirements()
    page = conformance.REASONS.read_text(encoding="utf-8")
    in_rows = re.findall(r"[A-Z]-\d+", " ".join(ROW.findall(page)))
    in_text = re.findall(r"\b[ABETW]-\d+", page)
    assert [id_ for id_ in (*tagged(), *in_rows, *in_text) if id_ not in known] == []


def test_each_requirement_has_one_row_and_one_reason() -> None:
    lines = (TESTS / "requirements.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) == len(conformance.requirements())
    assert all(conformance.requirements().values())
    listed = [id_ for text in ROW.findall(conformance.REASONS.read_text("utf-8")) for id_ in conformance.expand(text)]
    assert sorted(listed) == sorted(set(listed)) == sorted(conformance.reasons())


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("B-441..B-443", ["B-441", "B-442", "B-443"]),
        ("B-104, T-22", ["B-104", "T-22"]),
        ("E-150, E-153..E-155", ["E-150", "E-153", "E-154", "E-155"]),
        ("B-161..B-202", ["B-201", "B-202"]),
        ("B-999", []),
    ],
)
def test_ranges_stand_for_the_requirements_between(text: str, ids: list[str]) -> None:
    assert list(conformance.expand(text)) == ids


def test_the_table_tells_shown_from_not_supported_and_from_not_run() -> None:
    page = conformance.table({"B-101": {"tests/x/test_y.py::test_z"}})
    assert "| B-101 | O | `x/test_y.py::test_z` |\n" in page
    assert f"| B-104 | O | not supported: {conformance.reasons()['B-104']} |\n" in page
    assert "| B-102 | O | not shown: its tests did not run |\n" in page
    assert "| B |" in page
