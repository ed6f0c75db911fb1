"""Who gets a second chance after a run of everything."""

from __future__ import annotations

from tests.alone import second_chance


def test_tests_of_processes_run_again_by_their_own_ids() -> None:
    failed = [
        "tests/endtoend/test_a.py::test_one@campus",
        "tests/interop/test_b.py::test_two[x@y]",
        "tests/lab/test_c.py::test_three[a]@group",
    ]
    assert second_chance(failed) == [
        "tests/endtoend/test_a.py::test_one",
        "tests/interop/test_b.py::test_two[x@y]",
        "tests/lab/test_c.py::test_three[a]",
    ]


def test_nothing_runs_again_where_another_test_failed_or_many_did() -> None:
    assert second_chance(["tests/endtoend/test_a.py::test_one", "tests/est/test_cms.py::test_two"]) == []
    assert second_chance([f"tests/endtoend/test_a.py::test_{at}" for at in range(4)]) == []
    assert second_chance([]) == []
