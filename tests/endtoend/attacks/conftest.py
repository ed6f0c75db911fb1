"""One site for all attacks; whoever breaks it makes its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.endtoend.attacks.site import Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running appliance with one manufacturer whose MASA runs."""
    made = Site.create(tmp_path_factory.mktemp("attacks"))
    yield made
    made.campus.close()


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites of the test's own, with these assignments; all end with the test."""
    made: list[Site] = []

    def make(*assignments: str) -> Site:
        made.append(Site.create(tmp_path / f"site-{len(made)}", *assignments))
        return made[-1]

    yield make
    for one in made:
        one.campus.close()
