"""What a whole run leaves behind: no key, passphrase, shared secret or token in a log, a database, an argument or a
file that others may read."""

from __future__ import annotations

import base64
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.hierarchy import ROLES, SEALING, SERVERS
from tests.campus import NAS_SECRET, Campus, appliance, run_here

PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


@contextmanager
def watched_arguments() -> Iterator[set[str]]:
    """Every command line of every process below this one, looked at again and again."""
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            for one in psutil.Process().children(recursive=True):
                try:
                    seen.add(" ".join(one.cmdline()))
                except psutil.Error:
                    continue
            time.sleep(0.02)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def shapes_of(secret: bytes) -> list[bytes]:
    """A secret as it may lie about: raw, hex, base64 of either alphabet."""
    plain = base64.b64encode(secret).rstrip(b"=")
    return [
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        plain,
        plain.translate(bytes.maketrans(b"+/", b"-_")),
    ]


def scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


@pytest.mark.slow
@pytest.mark.lab
def test_a_whole_run_leaves_no_secret_where_it_may_not_lie(own_campus: Callable[[], Campus], tmp_path: Path) -> None:
    campus = own_campus()
    with watched_arguments() as arguments:
        campus.start("log.level=debug", "radius.engine=embedded")
        campus.start_proxy("acme-0001", "log.level=debug")
        owner = campus.owner()
        approve = shlex.join([
            sys.executable, "-m", "appliance", "owner", "sign", "--key", str(owner.key_file), "--owner",
            owner.identifier, "--request", "{request}", "--csr", "{csr}", "--out", "{approval}", "--yes",
        ])  # fmt: skip
        agent = tmp_path / "agent"
        done = appliance(
            "agent", "request", "--socket", campus.state / "agent.sock", "--out", agent, "--owner", owner.identifier,
            "--approval-command", approve,
        )  # fmt: skip
        assert done.status == 0, done.err
        made = campus.cli("nas", "add", "second", "192.0.2.77")
        shown = made.json["shared_secret"]
        est = campus.cli("est", "secret", "--for", "spare").json["secret"]
        campus.cli("radius", "render", tmp_path / "raddb")
        passphrase_file = tmp_path / "pass"
        passphrase_file.write_bytes(campus.passphrase)
        kept = appliance("backup", tmp_path / "backup", "--home", campus.home, "--passphrase-file", passphrase_file)
        assert kept.status == 0, kept.err
        campus.cli("doctor")
        campus.close()

    secrets: dict[str, bytes] = {
        "the passphrase": campus.passphrase,
        "the NAS' secret": NAS_SECRET.encode(),
        "the made NAS secret": shown.encode(),
        "the enrolment secret": est.encode(),
    }
    (token,) = set(
        re.findall(
            rb"[Bb]earer ([A-Za-z0-9_-]{20,})",
            b"\n".join(path.read_bytes() for path in (tmp_path / "raddb").rglob("*") if path.is_file()),
        )
    )
    secrets["the decision port's token"] = token
    for name in (*ROLES, *SERVERS, SEALING, "root"):
        secrets[f"key {name}"] = scalar(campus.key_of(name))
    own = {
        "key of the agent": agent / "agent.key.pem",
        "key of the LDevID": campus.state / "ldevid.key.pem",
        "key of the owner": owner.key_file,
    }
    for name, path in own.items():
        key = load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        secrets[name] = scalar(key)

    # where a secret may lie: the passphrase's own file, nothing else
    places = [path for folder in (campus.home, campus.logs, campus.state, agent) for path in folder.rglob("*")]
    files = {path: path.read_bytes() for path in [*places, tmp_path / "backup"] if path.is_file()}
    found = [
        (what, path)
        for what, secret in secrets.items()
        for path, content in files.items()
        if path != campus.home / "passphrase" and any(shape in content for shape in shapes_of(secret))
    ]
    assert found == []
    assert len([name for name in files if name.suffix == ".log"]) >= 2 and (campus.home / "appliance.db") in files
    unsealed = [path for path, content in files.items() if PRIVATE.search(content) and b"ENCRYPTED" not in content]
    assert set(unsealed) == {campus.state / "ldevid.key.pem", agent / "agent.key.pem"}

    everything = "\n".join(arguments)
    assert "appliance run" in everything and "owner sign" in everything
    for what, secret in secrets.items():
        assert not any(shape.decode("latin-1") in everything for shape in shapes_of(secret)), what

    loose = [
        (str(path), oct(path.stat().st_mode & 0o777))
        for folder in (campus.home, campus.state)
        for path in (folder, *folder.rglob("*"))
        if path.name != "agent.sock" and path.stat().st_mode & 0o777 != (0o700 if path.is_dir() else 0o600)
    ]
    assert loose == []
    assert (agent / "agent.key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    rendered = {path.stat().st_mode & 0o007 for path in (tmp_path / "raddb").rglob("*")}
    assert rendered == {0}

    settings = run_here("settings", "--home", campus.home, "-o", "json")
    assert settings.status == 0
    for secret in secrets.values():
        assert not any(shape.decode("latin-1") in settings.out for shape in shapes_of(secret))
    assert not re.search(r"\*\*\*|hidden|redacted", settings.out), "there is no secret among the settings"
