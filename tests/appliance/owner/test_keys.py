"""Owner keys: made once, readable by nobody else, announced by a statement that proves possession."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from appliance.binding import jws, possession
from appliance.errors import KeyFileExists, KeyFileExposed, KeyFileMissing, KeyMalformed, PassphraseWrong
from appliance.owner import keys
from tests.support import NOW

ORIGIN = "spiffe://campus.example"


def _keygen(folder: Path, **options: object) -> keys.OwnerKeyFiles:
    return keys.keygen(folder, **{"ref": "alice", "audience": ORIGIN, "now": NOW, **options})


@pytest.mark.req("A-32", "A-41")
def test_keygen_writes_a_key_and_a_statement_by_it(tmp_path: Path) -> None:
    made = _keygen(tmp_path / "alice")
    statement = possession.unseal(made.statement_file.read_text().strip())
    possession.check(statement, names=("alice",), audience=ORIGIN, now=NOW)
    assert statement.jkt == made.jkt == jws.jkt(keys.load(made.key_file).public_key())
    assert statement.protection == "software" and not made.is_encrypted


@pytest.mark.req("A-32")
def test_key_file_is_private_from_the_start_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = _keygen(tmp_path / "alice")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.key_file.parent.stat().st_mode) == 0o700


def test_passphrase_encrypts_the_key(tmp_path: Path) -> None:
    made = _keygen(tmp_path, passphrase=b"correct horse")
    assert made.is_encrypted and b"ENCRYPTED" in made.key_file.read_bytes()
    assert jws.jkt(keys.load(made.key_file, passphrase=b"correct horse").public_key()) == made.jkt
    for wrong in (None, b"wrong", b""):
        with pytest.raises(PassphraseWrong):
            keys.load(made.key_file, passphrase=wrong)


def test_passphrase_for_a_plain_key_does_no_harm(tmp_path: Path) -> None:
    made = _keygen(tmp_path)
    assert jws.jkt(keys.load(made.key_file, passphrase=b"x").public_key()) == made.jkt


def test_nothing_is_written_over(tmp_path: Path) -> None:
    made = _keygen(tmp_path)
    before = made.key_file.read_bytes()
    with pytest.raises(KeyFileExists):
        _keygen(tmp_path)
    made.statement_file.unlink()
    with pytest.raises(KeyFileExists):
        _keygen(tmp_path)
    assert made.key_file.read_bytes() == before


def test_key_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / keys.KEY_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileExists):
        _keygen(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_exposed_missing_and_foreign_key_files_are_told_apart(tmp_path: Path) -> None:
    made = _keygen(tmp_path)
    made.key_file.chmod(0o640)
    with pytest.raises(KeyFileExposed):
        keys.load(made.key_file)
    with pytest.raises(KeyFileMissing):
        keys.load(tmp_path / "nowhere.pem")
    with pytest.raises(KeyFileMissing):
        keys.load(tmp_path)
    others = {
        "text": b"hello",
        "empty": b"",
        "rsa": rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "p521": ec.generate_private_key(ec.SECP521R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
    }
    for name, pem in others.items():
        path = tmp_path / f"{name}.pem"
        keys.write_new(path, pem, 0o600)
        with pytest.raises(KeyMalformed):
            keys.load(path)


def test_p384_key_of_another_tool_is_taken(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path = tmp_path / "k.pem"
    keys.write_new(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"p")), 0o600)
    assert keys.load(path, passphrase=b"p").public_key() == key.public_key()
