"""Backups: what comes back is what was saved, and a refused one leaves nothing behind."""

from __future__ import annotations

import io
import secrets
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from appliance.backup import DATABASE, MAGIC, BackupMalformed, restore_backup, write_backup
from appliance.errors import PassphraseWrong
from appliance.initialise import HomeExists
from appliance.settings import FILE_NAME

PASSPHRASE = b"correct horse battery"
KEY = "keys/root.key"


def home(folder: Path) -> Path:
    """As little of a home as a backup looks at."""
    made = folder / "home"
    for part in ("keys", "certificates"):
        (made / part).mkdir(parents=True)
    (made / FILE_NAME).write_text("[domain]\n")
    (made / KEY).write_bytes(b"sealed")
    (made / "certificates" / "root.pem").write_bytes(b"PEM")
    (made / "passphrase").write_bytes(PASSPHRASE)
    with sqlite3.connect(made / DATABASE) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (7)")
    database.close()
    return made


def saved(folder: Path) -> Path:
    made = home(folder)
    file = folder / "backup"
    write_backup(made, f"sqlite:///{made / DATABASE}", file, PASSPHRASE)
    return file


def sealed(file: Path, *names: str) -> Path:
    """A backup under our passphrase that holds these names and nothing else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 6
            tar.addfile(member, io.BytesIO(b"secret"))
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    derived = Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(PASSPHRASE)
    file.write_bytes(MAGIC + salt + nonce + AESGCM(derived).encrypt(nonce, buffer.getvalue(), MAGIC))
    return file


def test_a_restored_home_has_the_same_files_private_and_no_passphrase(tmp_path: Path) -> None:
    file = saved(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PASSPHRASE not in file.read_bytes()
    back = tmp_path / "back"
    restore_backup(back, file, PASSPHRASE)
    assert {str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()} == {
        DATABASE,
        FILE_NAME,
        KEY,
        "certificates/root.pem",
    }
    assert (back / KEY).read_bytes() == b"sealed"
    assert {stat.S_IMODE(path.stat().st_mode) for path in back.rglob("*") if path.is_file()} == {0o600}
    with sqlite3.connect(back / DATABASE) as database:
        assert database.execute("SELECT x FROM t").fetchone() == (7,)
    database.close()


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "refusal"),
    [
        pytest.param(flip, PassphraseWrong, id="one bit"),
        pytest.param(lambda content: content[:40], BackupMalformed, id="cut off"),
        pytest.param(lambda content: b"x" + content, BackupMalformed, id="another file"),
    ],
)
def test_a_damaged_backup_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], refusal: type[Exception]
) -> None:
    file = saved(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(refusal):
        restore_backup(tmp_path / "back", file, PASSPHRASE)
    assert not (tmp_path / "back").exists()


def test_another_passphrase_does_not_open_it(tmp_path: Path) -> None:
    with pytest.raises(PassphraseWrong):
        restore_backup(tmp_path / "back", saved(tmp_path), PASSPHRASE + b"!")


@pytest.mark.parametrize(
    "names",
    [
        (KEY, "etc/passwd"),
        (KEY, "../outside"),
        (KEY, "keys/../../outside"),
        (KEY, "/tmp/outside"),
        (KEY, "keys/deep/er"),
        (KEY, KEY),
    ],
    ids=lambda names: names[1],
)
def test_a_backup_with_foreign_or_doubled_names_is_refused_and_leaves_no_keys(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    file = sealed(tmp_path / "backup", *names)
    with pytest.raises(BackupMalformed):
        restore_backup(tmp_path / "back", file, PASSPHRASE)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_is_restored_over_something(tmp_path: Path, kind: str) -> None:
    file = saved(tmp_path)
    place = tmp_path / "home" if kind == "folder" else file
    with pytest.raises(HomeExists):
        restore_backup(place, file, PASSPHRASE)
