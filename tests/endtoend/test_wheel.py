"""The built wheel, away from the source tree: everything that the program reads at run time is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# what would be found through the editable installation or the working directory must come from the wheel
START = """
import sys
sys.path[:] = [one for one in sys.path if one.rstrip("/") != sys.argv[1]]
sys.path[:0] = [sys.argv[2]]
sys.path.append(sys.argv[3])
sys.argv = ["appliance", *sys.argv[4:]]
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one)]
import appliance
assert appliance.__file__.startswith(sys.path[0]), appliance.__file__
from appliance.cli import main
main()
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own, as an installer lays it out."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index", "-q",
         "--wheel-dir", str(folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "hatchling" in done.stderr and "No module" in done.stderr:
        pytest.skip("the build backend is not installed here")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(unpacked: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    library = sysconfig.get_paths()["purelib"]
    return subprocess.run(
        [sys.executable, "-I", "-c", START, str(ROOT), str(unpacked), library, *arguments],
        capture_output=True, text=True, cwd=unpacked.parent, timeout=240, check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith(("APPLIANCE_", "PYTHON"))},
    )  # fmt: skip


@pytest.mark.slow
def test_everything_that_is_read_at_run_time_is_in_the_wheel(unpacked: Path) -> None:
    source = {
        path.relative_to(ROOT).as_posix()
        for package in ("est", "brski", "radius", "appliance", "lab")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".sh")
    }
    inside = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    tracked = set(
        subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False).stdout.split(
            "\n"
        )
    )
    missing = {one for one in source - inside if not tracked or one in tracked} - {"lab/demo"}
    assert missing == set()
    for needed in ("py.typed", "store/migrations", "radius/freeradius", "dictionary", "docs/reference"):
        assert any(needed in one for one in inside), needed
    assert not any(one.startswith("tests") or one.startswith("shared") for one in inside)
    entry = next(unpacked.glob("*.dist-info")) / "entry_points.txt"
    assert "appliance = appliance.cli:main" in entry.read_text()


@pytest.mark.slow
def test_a_home_is_made_and_used_from_the_wheel_alone(unpacked: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = run(unpacked, "init", "--home", str(home), "--trust-domain", "campus.example", "-o", "json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["home"] == str(home)
    checked = run(unpacked, "check", "--home", str(home), "-o", "json")
    assert checked.returncode == 0, checked.stdout
    rendered = run(unpacked, "radius", "render", str(tmp_path / "raddb"), "--home", str(home))
    assert rendered.returncode == 0, rendered.stderr
    assert any("dictionary" in path.name for path in (tmp_path / "raddb").rglob("*"))
    where = run(unpacked, "--help")
    assert where.returncode == 0 and "Campus network bootstrap" in where.stdout
