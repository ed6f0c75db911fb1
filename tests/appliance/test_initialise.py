"""A home is there whole or not at all; its passphrase comes from one of three places."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import KeyFileExposed, KeyFileMissing, PassphraseWrong
from appliance.hierarchy import ROLES, SERVERS, key_file, read_issuing
from appliance.initialise import CREDENTIAL, HomeExists, find_passphrase, initialise, need_passphrase
from appliance.settings import SettingsInvalid, load_settings
from tests.campus import run_here
from tests.support import FixedClock


def make(home: Path, **more: object) -> dict[str, object]:
    return initialise(home, SystemClock(), trust_domain="campus.example", organization="Example", **more)  # type: ignore[arg-type]


def test_a_new_home_is_whole_and_private(tmp_path: Path) -> None:
    result = make(tmp_path / "deep" / "home", assignments=("web.device_port=18443", "log.level=debug"))
    home = tmp_path / "deep" / "home"
    assert result["home"] == str(home) and result["passphrase"] == str(home / "passphrase")
    for path in (home, *home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    names = {"root", *ROLES, *SERVERS, "sealing", "audit"}
    assert {path.name for path in (home / "keys").iterdir()} == {key_file(home, name).name for name in names}
    for path in (home / "keys").iterdir():
        assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
    settings = load_settings(home).settings
    assert (settings.web.device_port, settings.log.level) == (18443, "debug"), "what the first line says stays"
    root, issuing = read_issuing(home, settings, need_passphrase(home, None))
    assert set(issuing) == set(ROLES) and root.subject == root.issuer
    assert str(result["root_sha256"]).replace(":", "").isalnum()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["home"]


def test_an_empty_folder_may_become_a_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    make(tmp_path / "home")
    assert (tmp_path / "home" / "appliance.toml").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "home"])
@pytest.mark.slow
def test_what_is_there_is_never_touched(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    if kind == "file":
        home.write_text("mine")
    elif kind == "folder":
        home.mkdir()
        (home / "mine").write_text("mine")
    else:
        make(home)
    before = {path: path.read_bytes() for path in (home, *home.rglob("*")) if path.is_file()}
    with pytest.raises(HomeExists):
        make(home)
    assert {path: path.read_bytes() for path in (home, *home.rglob("*")) if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


class Stopped(Exception):
    """The machine had enough."""


class FailingClock(FixedClock):
    """Works a while, then no more: somewhere in the middle of everything."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def now(self):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return super().now()


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.slow
def test_a_failure_in_the_middle_leaves_nothing_behind(tmp_path: Path, calls: int) -> None:
    with pytest.raises(Stopped):
        initialise(tmp_path / "home", FailingClock(calls), trust_domain="campus.example", organization="E")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [
    {"assignments": ("no.such=1",)}, {"assignments": ("web.device_port=70000",)}, {"assignments": ("nonsense",)},
    {"passphrase_file": Path("/no/such/file")}, {"assignments": ("store.url=sqlite:////no/such/folder/a.db",)},
])  # fmt: skip
def test_what_cannot_be_leaves_nothing_behind(tmp_path: Path, more: dict[str, object]) -> None:
    with pytest.raises((SettingsInvalid, KeyFileMissing, Exception)):
        make(tmp_path / "home", **more)
    assert list(tmp_path.iterdir()) == []


def test_the_mask_of_the_process_is_given_back(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        make(tmp_path / "home")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(old)


def test_a_given_passphrase_is_not_written_down(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("a passphrase of the site\n")
    result = make(tmp_path / "home", passphrase_file=given)
    assert result["passphrase"] == "as given" and not (tmp_path / "home" / "passphrase").exists()
    assert find_passphrase(tmp_path / "home", None) is None
    with pytest.raises(PassphraseWrong, match="--passphrase-file"):
        need_passphrase(tmp_path / "home", None)
    assert all(b"a passphrase of the site" not in p.read_bytes() for p in (tmp_path / "home").rglob("*") if p.is_file())


def test_where_a_passphrase_is_looked_for_and_in_which_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passphrase").write_text("from the home's folder\n")
    (tmp_path / "passphrase").chmod(0o600)
    assert find_passphrase(tmp_path, None) == b"from the home's folder"
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert find_passphrase(tmp_path, None) == b"from the home's folder", "a service without this credential"
    (credentials / CREDENTIAL).write_text("from the service manager")
    assert find_passphrase(tmp_path, None) == b"from the service manager"
    (tmp_path / "file").write_text("from the named file")
    assert find_passphrase(tmp_path, tmp_path / "file") == b"from the named file"


def test_a_bad_passphrase_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short")
    with pytest.raises(PassphraseWrong):
        find_passphrase(tmp_path, tmp_path / "short")
    with pytest.raises(KeyFileMissing):
        find_passphrase(tmp_path, tmp_path / "none")
    (tmp_path / "passphrase").write_text("for everybody to read")
    (tmp_path / "passphrase").chmod(0o644)
    with pytest.raises(KeyFileExposed):
        find_passphrase(tmp_path, None)


@pytest.mark.slow
def test_a_wrong_passphrase_opens_nothing_and_says_so_in_one_line(tmp_path: Path) -> None:
    make(tmp_path / "home")
    (tmp_path / "wrong").write_text("not the passphrase at all")
    found = run_here("owners", "list", "--home", tmp_path / "home", "--passphrase-file", tmp_path / "wrong")
    assert found.status == 1 and found.err.startswith("appliance: passphrase-wrong: ") and found.err.count("\n") == 1
