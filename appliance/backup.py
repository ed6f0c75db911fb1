"""Backup: store, keys, certificates and settings of a home in one file, encrypted under the home's passphrase.

The file is: magic, scrypt salt, AES-GCM nonce, then the sealed tar. Key files inside are encrypted a second time, as
they lie in the home. The passphrase file itself is left out, or the backup would open itself.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from appliance.errors import ApplianceError, KeyFileExists, PassphraseWrong
from appliance.initialise import PASSPHRASE_FILE, HomeExists
from appliance.keys import write_private
from appliance.settings import FILE_NAME
from appliance.store.engine import file_of

MAGIC = b"campus-appliance-backup-1\n"
_SALT, _NONCE = 16, 12
_PARTS = ("keys", "certificates")
DATABASE = "appliance.db"


class BackupMalformed(ApplianceError):
    """The file is no backup, or was damaged."""

    reason: ClassVar[str] = "backup-malformed"


def write_backup(home: Path, store_url: str, file: Path, passphrase: bytes) -> dict[str, Any]:
    """Write a consistent backup while the appliance runs; raises KeyFileExists for a file that is there."""
    buffer = io.BytesIO()
    with (
        tempfile.TemporaryDirectory(prefix=".backup-", dir=home) as name,
        tarfile.open(fileobj=buffer, mode="w") as tar,
    ):
        copy = Path(name) / DATABASE
        _copy_database(file_of(store_url), copy)
        tar.add(copy, DATABASE)
        tar.add(home / FILE_NAME, FILE_NAME)
        for part in _PARTS:
            tar.add(home / part, part)
    salt, nonce = secrets.token_bytes(_SALT), secrets.token_bytes(_NONCE)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, buffer.getvalue(), MAGIC)
    write_private(file, MAGIC + salt + nonce + sealed)
    return {"file": str(file), "bytes": file.stat().st_size}


def restore_backup(home: Path, file: Path, passphrase: bytes) -> dict[str, Any]:
    """Make a home out of a backup; nothing may be there yet. Raises HomeExists, BackupMalformed, PassphraseWrong."""
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise HomeExists(f"{home} exists and is not empty; move it away first")
    try:
        content = file.read_bytes()
    except OSError as cause:
        raise BackupMalformed(f"cannot read {file}: {cause.strerror}") from cause
    if not content.startswith(MAGIC) or len(content) < len(MAGIC) + _SALT + _NONCE + 16:
        raise BackupMalformed(f"{file} is no backup of this appliance")
    body = content[len(MAGIC) :]
    salt, nonce, sealed = body[:_SALT], body[_SALT : _SALT + _NONCE], body[_SALT + _NONCE :]
    try:
        plain = AESGCM(_key(passphrase, salt)).decrypt(nonce, sealed, MAGIC)
    except InvalidTag as cause:
        raise PassphraseWrong("the passphrase does not open this backup, or the file was damaged") from cause
    fresh = home.with_name(f".{home.name}.new-{secrets.token_hex(4)}")
    fresh.mkdir(mode=0o700, parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            _unpack(tar, fresh)
        for path in fresh.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        if home.exists():
            home.rmdir()
        fresh.rename(home)
    except BaseException as cause:
        shutil.rmtree(fresh, ignore_errors=True)  # keys must not lie about where nobody looks for them
        if isinstance(cause, tarfile.TarError | OSError | KeyFileExists):
            raise BackupMalformed(f"the backup cannot be unpacked: {cause}") from cause
        raise
    return {
        "home": str(home),
        "passphrase": f"give it by --passphrase-file, a systemd credential, or {home / PASSPHRASE_FILE}",
        "note": "revocations made after this backup are not in it: `appliance certs take-crl` the last CRL of each CA",
    }


def _unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """Plain files of the expected names only; extraction filters are newer than the oldest Python that we serve."""
    for member in tar:
        parts = Path(member.name).parts
        expected = member.name in (DATABASE, FILE_NAME) or (len(parts) == 2 and parts[0] in _PARTS)
        if member.isdir() and member.name in _PARTS:
            continue
        if not (member.isfile() and expected) or ".." in parts:
            raise BackupMalformed(f"the backup holds {member.name[:80]!r}, which is no part of a home")
        target = folder / member.name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        content = tar.extractfile(member)
        assert content is not None
        write_private(target, content.read())


def _copy_database(source: Path, target: Path) -> None:
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as reader, sqlite3.connect(target) as writer:
        reader.backup(writer)
    reader.close()
    writer.close()


def _key(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(passphrase)
