"""One campus is built the long way per test run; tests that only look share a running copy, others get their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.campus import UNLIMITED, Campus


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Campus:
    """A campus whose proxy is in; not running."""
    return Campus.build(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def campus(template: Campus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campus]:
    """A running campus that tests share; whoever breaks it takes `own_campus`."""
    found = template.copy(tmp_path_factory.mktemp("shared"))
    found.start(*UNLIMITED)
    yield found
    found.close()


@pytest.fixture
def own_campus(template: Campus, tmp_path: Path) -> Iterator[Callable[[], Campus]]:
    """Makes campuses of the test's own, not running; all end with the test."""
    made: list[Campus] = []

    def make() -> Campus:
        made.append(template.copy(tmp_path / f"campus-{len(made)}"))
        return made[-1]

    yield make
    for one in made:
        one.close()
