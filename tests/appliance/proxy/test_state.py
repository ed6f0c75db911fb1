"""The state folder survives kill -9 wherever it strikes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.proxy.errors import ProxyStateDamaged, ProxyStateLocked
from appliance.proxy.state import ProxyRecord, ProxyState
from est import csr, profiles
from lab.factory import make_leaf, make_root

BORN = datetime.now(UTC) - timedelta(hours=1)
ROOT = make_root("root", now=BORN)
RECORD = ProxyRecord("spiffe://campus.example/proxy/x", "127.0.0.1", 8443, False, "brski", "01" + "ab" * 32)


def issue(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    return make_leaf(ROOT, profiles.name("proxy"), now=BORN, days=30, key=key).certificate


def request(key: ec.EllipticCurvePrivateKey) -> bytes:
    return csr.build(subject=x509.Name([]), key=key)


def configured(folder: Path) -> ProxyState:
    state = ProxyState.open(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    state.stage(key, request(key))
    state.write_anchors((ROOT.certificate,))
    state.write_record(RECORD)
    state.adopt((issue(key),))
    return state


def test_what_is_written_is_private(tmp_path: Path) -> None:
    state = configured(tmp_path / "state")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert state.configured
    assert state.record() == RECORD
    assert state.ldevid_key().public_key() == state.ldevid_chain()[0].public_key()
    assert {path.name for path in (tmp_path / "state").iterdir()} == {
        "lock", "ldevid.pem", "ldevid.key.pem", "anchors.pem", "proxy.json",
    }  # fmt: skip


def test_a_second_proxy_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = ProxyState.open(tmp_path)
    with pytest.raises(ProxyStateLocked):
        ProxyState.open(tmp_path)
    first.close()
    ProxyState.open(tmp_path).close()


def test_a_staged_request_is_found_again_byte_for_byte(tmp_path: Path) -> None:
    state = ProxyState.open(tmp_path)
    assert state.staged() is None
    key = ec.generate_private_key(ec.SECP256R1())
    der = request(key)
    state.stage(key, der)
    state.close()
    again = ProxyState.open(tmp_path).staged()
    assert again is not None
    assert again[1] == der
    assert again[0].public_key() == key.public_key()


@pytest.mark.parametrize("done", range(3))
def test_a_change_over_cut_short_is_finished_at_the_next_start(tmp_path: Path, done: int) -> None:
    state = configured(tmp_path)
    old = state.ldevid_chain()[0]
    key = ec.generate_private_key(ec.SECP256R1())
    state.stage(key, request(key))
    fresh = issue(key)
    state.write("next.pem", fresh.public_bytes(Encoding.PEM))
    steps = [
        lambda: (tmp_path / "next.key.pem").rename(tmp_path / "ldevid.key.pem"),
        lambda: (tmp_path / "next.csr").unlink(),
    ]
    for step in steps[:done]:
        step()
    state.close()
    state = ProxyState.open(tmp_path)
    assert state.ldevid_chain()[0] == fresh != old
    assert state.ldevid_key().public_key() == key.public_key()
    assert state.staged() is None
    assert not (tmp_path / "next.pem").exists()


def test_before_the_certificate_is_written_the_old_one_stays(tmp_path: Path) -> None:
    state = configured(tmp_path)
    old = state.ldevid_chain()[0]
    key = ec.generate_private_key(ec.SECP256R1())
    state.stage(key, request(key))
    state.close()
    state = ProxyState.open(tmp_path)
    assert state.ldevid_chain()[0] == old
    assert state.ldevid_key().public_key() == old.public_key()


def test_a_certificate_without_any_key_is_reported_not_used(tmp_path: Path) -> None:
    state = configured(tmp_path)
    state.write("next.pem", issue(ec.generate_private_key(ec.SECP256R1())).public_bytes(Encoding.PEM))
    state.close()
    with pytest.raises(ProxyStateDamaged):
        ProxyState.open(tmp_path)


@pytest.mark.parametrize("name", ["ldevid.pem", "ldevid.key.pem", "anchors.pem", "proxy.json"])
@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    state = configured(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
        assert not state.configured
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ProxyStateDamaged) as caught:
        state.ldevid_key()
        state.anchors()
        state.record()
    assert caught.value.fields["file"] == name


KILLED = """
import itertools, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric import ec
from appliance.proxy.state import ProxyState
from tests.appliance.proxy.test_state import issue, request
state = ProxyState.open(Path(sys.argv[1]))
print("started", flush=True)
for _ in itertools.count():
    key = ec.generate_private_key(ec.SECP256R1())
    state.stage(key, request(key))
    certificate = issue(key)
    state.adopt((certificate,))
    print(format(certificate.serial_number, "x"), flush=True)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_renewals_leaves_a_matching_pair(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    configured(folder).close()
    for round_ in range(6):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        seen = [process.stdout.readline().strip() for _ in range(3 + round_)]
        os.kill(process.pid, signal.SIGKILL)
        seen += process.stdout.read().split()
        process.wait()
        process.stdout.close()
        state = ProxyState.open(folder)
        assert state.configured
        assert state.ldevid_key().public_key() == state.ldevid_chain()[0].public_key()
        # never older than what was acknowledged last
        assert format(state.ldevid_chain()[0].serial_number, "x") not in seen[:-1]
        state.close()
