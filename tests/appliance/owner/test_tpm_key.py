"""Owners' approval keys in a TPM 2.0 (swtpm): made there, of no use elsewhere, asked for a passphrase each time."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws, possession
from appliance.cli import run
from appliance.errors import KeyFileExists, KeyMalformed, TpmUnavailable
from appliance.owner.tpm_key import is_tpm_file, keygen_in_tpm, load_tpm_key
from tests.support import NOW

ORIGIN = "spiffe://campus.example"

pytestmark = [
    pytest.mark.interop,
    pytest.mark.xdist_group("tpm"),
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed (Debian: apt install swtpm)"),
]


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """One TPM of its own seed; answers its process and TCTI."""
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed (extra tpm)")
    folder.mkdir()
    path = folder / "s"
    process = subprocess.Popen(
        [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--server", f"type=unixio,path={path}",
            "--ctrl", f"type=unixio,path={path}.ctrl", "--flags", "not-need-init,startup-clear",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 10
    while not all(map(_listens, (path, f"{path}.ctrl"))):  # a socket's file is there before anybody may connect to it
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process, f"swtpm:path={path}"


def _listens(path: Path | str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.fixture(scope="module")
def tcti(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, found = start(tmp_path_factory.mktemp("tpm") / "a")
    yield found
    process.terminate()
    process.wait(10)


@pytest.mark.req("A-41", "A-70")
def test_a_key_is_made_in_the_tpm_and_signs_with_its_passphrase_alone(tmp_path: Path, tcti: str) -> None:
    made = keygen_in_tpm(tmp_path, ref="alice", audience=ORIGIN, now=NOW, tcti=tcti, passphrase=b"open sesame")
    stated = possession.unseal(made.statement)
    assert (stated.protection, stated.jkt) == ("tpm", made.jkt)
    assert is_tpm_file(made.key_file) and made.key_file.stat().st_mode & 0o077 == 0
    assert "sesame" not in made.key_file.read_text()
    signer = load_tpm_key(made.key_file, passphrase=b"open sesame")
    signature = signer.sign(b"data")
    signer.public_key().verify(signature, b"data", ec.ECDSA(hashes.SHA256()))
    assert jws.jkt(signer.public_key()) == made.jkt
    for wrong in (None, b"wrong"):
        with pytest.raises(TpmUnavailable):
            load_tpm_key(made.key_file, passphrase=wrong).sign(b"data")
    with pytest.raises(KeyFileExists):
        keygen_in_tpm(tmp_path, ref="alice", audience=ORIGIN, now=NOW, tcti=tcti)


@pytest.mark.req("A-41")
def test_the_wrapped_key_is_of_no_use_at_another_tpm(tmp_path: Path, tcti: str) -> None:
    made = keygen_in_tpm(tmp_path / "k", ref="alice", audience=ORIGIN, now=NOW, tcti=tcti)
    other, elsewhere = start(tmp_path / "b")
    try:
        document = json.loads(made.key_file.read_text())
        moved = tmp_path / "moved.json"
        moved.write_text(json.dumps({**document, "tcti": elsewhere}))
        with pytest.raises(TpmUnavailable):
            load_tpm_key(moved).sign(b"data")
        moved.write_text(json.dumps({**document, "tcti": f"swtpm:path={tmp_path}/nothing"}))
        with pytest.raises(TpmUnavailable):
            load_tpm_key(moved).sign(b"data")
        for damage in ({"public": "AAAA"}, {"private": "!"}, {"version": 2}, {"tcti": ""}):
            moved.write_text(json.dumps({**document, **damage}))
            with pytest.raises(KeyMalformed):
                load_tpm_key(moved)
    finally:
        other.terminate()
        other.wait(10)


def test_the_verb_makes_it_and_standing_approvals_can_be_signed(
    tmp_path: Path, tcti: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "owner"
    assert run(["owner", "keygen", "--out", str(out), "--ref", "alice", "--tpm", tcti, "-o", "json"]) == 0
    jkt = json.loads(capsys.readouterr().out)["jkt"]
    uuid = "11111111-1111-4111-8111-111111111111"
    words = [
        "owner", "standing-sign", "--owner", f"{ORIGIN}/owner/{uuid}", "--key", str(out / "tpm-key.json"), "--agent",
        f"{ORIGIN}/agent/{uuid}", "--server-id", "https://ids.campus.example/v1", "--proxy", f"{ORIGIN}/proxy/{uuid}",
        "--ueid", "01" + "00" * 16, "--executable", "ab" * 32, "--uid", "1", "--out", str(tmp_path / "s.jws"), "--yes",
    ]  # fmt: skip
    assert run(words) == 0, capsys.readouterr().err
    assert jws.read((tmp_path / "s.jws").read_text().strip()).kid == jkt
