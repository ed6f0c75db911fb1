"""Requirement markers become appliance/docs/conformance.md (`pytest --conformance FILE`), one row per id.

A test counts for an id only when it ran and passed. Ids travel in user_properties, so they survive pytest-xdist.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import settings

from tests import conformance
from tests.support import QUICKLY, WITH_FULL

LONGEST_ID = 80
IN_FULL_ONLY = ("tests/endtoend/", "tests/interop/", "tests/bench/")
"""Folders whose tests start processes, a campus or somebody else's programs."""
ONE_OF = 5
"""Where a test has more cases, the quick part tries one of so many."""
_passed: dict[str, set[str]] = defaultdict(set)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", metavar="FILE", help="write the conformance table to FILE after the run")
    parser.addoption(
        "--full",
        action="store_true",
        help="run the slow tests too, and those that start processes of a campus or foreign ones",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is imported: decorators take the profile's numbers, and what is compiled is kept."""
    if sys.dont_write_bytecode:  # else each worker, and each process that a test starts, compiles everything anew
        sys.dont_write_bytecode = False
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not config.getoption("--hypothesis-profile", None):
        settings.load_profile(WITH_FULL if config.getoption("--full") else QUICKLY)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Folders of which nothing is in the quick part need not even be imported."""
    later = () if config.getoption("--full") else IN_FULL_ONLY
    return True if collection_path in [config.rootpath / folder for folder in later] else None


def pytest_collection(session: pytest.Session) -> None:
    """Thousands of tests come into being here and stay: each garbage collection would look at all of them."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Functions by name, not by address, and long values by argument: all workers must collect the same ids."""
    if callable(val) and not isinstance(val, type):
        return str(getattr(val, "__qualname__", type(val).__name__)).rpartition(".")[2].strip("<>")
    if isinstance(val, str | bytes) and len(val) > LONGEST_ID:  # what was signed just now is another text every time
        return argname
    return None


@pytest.hookimpl(trylast=True)  # after pytest-xdist has written each item's group into its id
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if getattr(config.option, "loadgroup", False):
        for item in items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError(f"{item.nodeid}: this pytest and pytest-xdist lose the groups of tests")
    if _is_quick(config):
        _keep_quick_part(config, items)
    known = conformance.requirements()
    for item in items:
        ids = [str(id_) for mark in item.iter_markers("req") for id_ in mark.args]
        unknown = [id_ for id_ in ids if id_ not in known]
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: no such requirement: {', '.join(unknown)}")
        if ids:
            item.user_properties.append(("req", ids))


def _keep_quick_part(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = [item.nodeid.partition("[")[0] for item in items]
    cases, before = Counter(names), Counter[str]()
    quick, later = [], []
    for name, item in zip(names, items, strict=True):
        at = before[name]
        before[name] += 1
        # one place further in each row: of a table with five columns it would always be the same column
        is_left_out = cases[name] > ONE_OF and (at + at // ONE_OF) % ONE_OF != 0
        is_slow = item.nodeid.startswith(IN_FULL_ONLY) or any(map(item.get_closest_marker, ("slow", "lab")))
        (later if is_left_out or is_slow else quick).append(item)
    items[:] = quick
    config.hook.pytest_deselected(items=later)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Where not everything ran, how everything does."""
    if _is_quick(config):
        terminalreporter.write_line(
            f"the quick part, one case of {ONE_OF}; everything runs with --full, as ./tests/run does"
        )


def _is_quick(config: pytest.Config) -> bool:
    """Whether slow tests and most cases are left out: not where a test is named."""
    return not config.getoption("--full") and not any("::" in argument for argument in config.args)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        for name, ids in report.user_properties:
            if name == "req":
                for id_ in ids:
                    _passed[id_].add(re.split(r"[\[@]", report.nodeid, maxsplit=1)[0])


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--conformance")
    if file and not hasattr(session.config, "workerinput"):
        Path(file).write_text(conformance.table(_passed), encoding="utf-8")
