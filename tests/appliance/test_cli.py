"""The command line's exit status and its one line on standard error, whatever the file system answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOME = ("--home", "{home}")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli") / "campus home"
    done = appliance("init", "--home", str(made))
    assert done.returncode == 0, done.stderr
    return made


def appliance(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "--home", "{nowhere}/home"),
        ("owner", "keygen", "--out", "{nowhere}", "--ref", "alice"),
        ("radius", "render", "{nowhere}", *HOME),
        ("audit", "export", "{nowhere}/log", *HOME),
        ("backup", "{nowhere}/backup", *HOME),
        ("proxy", "run", "--state", "{nowhere}"),
    ],
    ids=lambda arguments: "-".join(arguments[:2]).strip("-"),
)
def test_a_place_that_cannot_be_written_is_one_line_and_status_1(home, tmp_path, arguments):
    (tmp_path / "file").touch()
    places = {"home": home, "nowhere": tmp_path / "file" / "below"}
    done = appliance(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("appliance: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("owners", "add"), ("-o", "xml", "owners", "list")])
def test_a_command_line_that_cannot_be_read_is_status_2(arguments):
    done = appliance(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback(home):
    command = [sys.executable, "-m", "appliance", "settings", "-o", "json", "--home", str(home)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    with running.stderr:
        assert "Traceback" not in running.stderr.read()
    running.wait(30)


@pytest.mark.slow
def test_init_refuses_a_trust_domain_that_identifiers_cannot_have(tmp_path):
    done = appliance("init", "--home", str(tmp_path / "home"), "--trust-domain", 'Campus "1"')
    assert done.returncode == 1 and "trust_domain" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
