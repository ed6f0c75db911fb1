"""The benches with tiny counts: every reply right, every book balanced. How fast is not asked here."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.bench import fuzzed
from tests.bench.logins import BY_FREERADIUS
from tests.bench.plan import Plan
from tests.bench.revocation import IDS as REVOCATION
from tests.bench.run import measure, report, table

IDS = (
    "a1",
    "a1s",
    "a2",
    "b1",
    "b2",
    "b1x2",
    "b2x2",
    "c",
    "d1",
    "g",
    "r",
    "gf",
    "gt",
    "gn",
    "m",
    "m99",
    "f8",
    "f8n",
    "rn",
    "rns",
)

NEEDS_FREERADIUS = pytest.mark.skipif(
    shutil.which("freeradius", path="/usr/sbin:/usr/bin") is None, reason="FreeRADIUS is not installed"
)


@pytest.mark.slow
@pytest.mark.lab
def test_every_bench_gets_right_answers_and_balanced_books(tmp_path: Path) -> None:
    plan = Plan(repetitions=1, operations=16, warm_up=8, agents=40, owners=4, seconds=2.0, in_flight=8, only=IDS)
    benches = measure(plan, tmp_path)
    assert [bench.id for bench in benches] == list(IDS)
    assert all(bench.notes["books"] == "checked" and bench.ratio > 0 for bench in benches)
    assert all(bench.id in table(benches) for bench in benches)
    assert len(report(benches)["benches"]) == len(IDS)


@pytest.mark.slow
@pytest.mark.lab
def test_the_benches_of_revocation_get_right_answers(tmp_path: Path) -> None:
    wanted = [name for name in REVOCATION if name != "a1f"]
    plan = Plan(repetitions=1, operations=16, warm_up=8, stored=2000, only=[*wanted, "e1m"])
    benches = {bench.id: bench for bench in measure(plan, tmp_path)}
    assert set(benches) == {"e1", "e1r", "e2", "e2l", "f", "fa", "fl", "fm", "fr", "s", "e1m", "e1mr"}
    assert all(benches[name].notes["books"] == "checked" for name in ("e1", "e2", "e2l"))


@pytest.mark.slow
@pytest.mark.lab
def test_the_bench_of_a_storm_gets_right_answers(tmp_path: Path) -> None:
    plan = Plan(repetitions=1, agents=40, owners=4, seconds=0.5, only=["i"])
    (bench,) = measure(plan, tmp_path)
    assert bench.id == "i" and bench.notes["books"] == "checked" and bench.operations > 0 and bench.ratio > 0


@pytest.mark.slow
@pytest.mark.lab
def test_the_benches_of_a_large_campus_in_memory_get_right_answers(tmp_path: Path) -> None:
    plan = Plan(repetitions=1, operations=16, agents=8, owners=4, only=["d1s", "d1v"])
    benches = measure(plan, tmp_path)
    assert [bench.id for bench in benches] == ["d1s", "d1v"]
    assert all(bench.notes["books"] == "checked" and bench.ratio > 0 for bench in benches)


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.interop
@NEEDS_FREERADIUS
def test_the_benches_of_freeradius_with_the_hook_get_right_answers(tmp_path: Path) -> None:
    plan = Plan(repetitions=1, operations=16, agents=8, owners=4, only=BY_FREERADIUS)
    benches = measure(plan, tmp_path)
    assert [bench.id for bench in benches] == list(BY_FREERADIUS)
    assert all(bench.notes["books"] == "checked" and bench.ratio > 0 for bench in benches)


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.interop
@NEEDS_FREERADIUS
def test_the_bench_of_logins_gets_right_answers(tmp_path: Path) -> None:
    plan = Plan(repetitions=1, operations=16, only=["r1", "r1-12"])
    benches = measure(plan, tmp_path)
    assert [bench.id for bench in benches] == ["r1", "r1-12"]
    assert all(bench.notes["books"] == "checked" and bench.ratio > 0 for bench in benches)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (extra fuzz)")
def test_the_bench_of_fuzzing_counts_what_was_executed(tmp_path: Path) -> None:
    (bench,) = measure(Plan(cases=300, only=["z-tunnel"]), tmp_path)
    assert bench.id == "z-tunnel" and bench.operations >= 300 and bench.holds and "finding" not in bench.notes


def test_fuzzing_that_finds_something_or_is_not_through_in_time_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(status: int, executed: str) -> bool:
        done = subprocess.CompletedProcess((), status, "", f"INFO: seed\n{executed}\nstat::new_units_added: 7\n")
        monkeypatch.setattr("tests.bench.fuzzed.subprocess.run", lambda *_, **__: done)
        return fuzzed._fuzz("hook", 1000).holds

    assert judged(0, "stat::number_of_executed_units: 1000")
    assert not judged(0, "stat::number_of_executed_units: 999")
    assert not judged(77, "stat::number_of_executed_units: 1000")
    assert not judged(0, "")
