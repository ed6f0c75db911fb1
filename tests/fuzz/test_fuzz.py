"""Seeds and former crashes through every target; a slice of fuzzing where atheris is there; costly inputs in bounds."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from est import cms, der, jose
from est.errors import Refusal
from tests.fuzz import __main__ as command
from tests.fuzz.targets import CRASHES, GROUPS, JWS, MAX_BYTES, NAMES, TARGETS, WORLDS, Target, TooSlow, check

ROOT = Path(__file__).parents[2]
MAX_MEMORY = 16 * 1024 * 1024
VOUCHER = der.oid(cms.ID_CT_ANIMA_JSON_VOUCHER)


def _replayed() -> Iterator[tuple[str, Path]]:
    for path in sorted(CRASHES.rglob("*")):
        if path.is_file() and path.parent.name in TARGETS:
            yield path.parent.name, path


def test_the_command_knows_every_target() -> None:
    assert set(command.TARGETS) == {*NAMES, *GROUPS}
    assert {name: command._members(name) for name in GROUPS} == GROUPS


@pytest.mark.req("B-135", "T-23")
@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_read_in_time(name: str) -> None:
    for seed in TARGETS[name].seeds:
        check(TARGETS[name], seed)


def test_former_crashes_stay_mended() -> None:
    for name, path in _replayed():
        check(TARGETS[name], path.read_bytes())


@pytest.mark.slow
@pytest.mark.req("B-135", "T-23")
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (extra fuzz)")
def test_a_slice_of_fuzzing_finds_nothing(tmp_path: Path) -> None:
    crashes, units = tmp_path / "crashes", tmp_path / "units.json"
    crashes.mkdir()
    done = _run("all", "--seconds", "6", "--crashes", str(crashes), "--units", str(units))
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stderr.partition("stat::number_of_executed_units:")[2].split()[0]) > 100
    assert list(crashes.iterdir()) == []
    counts = json.loads(units.read_text())
    # more than its seeds, which would run without a fuzzer too
    assert [name for name in GROUPS["radius"] if counts[name] <= len(TARGETS[name].seeds)] == [], counts


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (extra fuzz)")
def test_the_fuzzer_finds_what_is_there_and_keeps_it(tmp_path: Path) -> None:
    program = f"""
import pathlib, sys
from tests.fuzz import session, targets
def feed(data):
    if data[:1] == b"<" and len(data) > 7:
        raise KeyError("a finding")
folder = pathlib.Path({str(tmp_path)!r})
(folder / "corpus").mkdir()
target = targets.Target((feed,), (b"<seed",))
session.fuzz("cms", target, folder, folder / "crashes", folder / "corpus", ["-runs=200000"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.returncode != 0
    (kept,) = (tmp_path / "crashes" / "cms").iterdir()
    assert kept.read_bytes()[:1] == b"<" and len(kept.read_bytes()) > 7


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words], capture_output=True, text=True, cwd=ROOT, timeout=400
    )


@pytest.mark.slow
def test_slowness_is_a_finding() -> None:
    def feed(data: bytes) -> None:
        sum(range(40_000_000))

    with pytest.raises(TooSlow):
        check(Target((feed,), ()), b"")


def _costly() -> dict[str, bytes]:
    """Inputs of the largest size that make a reader work."""
    size = 262_000
    device = base64.b64encode(TRIO_DER).decode()
    crowd = jose.base64url(json.dumps({"alg": "ES256", "x5c": [device] * 32}).encode())
    sequences = bytes.fromhex("3080") * (size // 2)
    return {
        "brackets": b"[" * size,
        "objects": b'{"a":' * (size // 5),
        "pairs": b"{" + b",".join(b'"%d":1' % number for number in range(size // 10)) + b"}",
        "escapes": b'{"' + b"\\u0041" * (size // 6) + b'":1}',
        "backslashes": b'{"' + b"\\\\" * (size // 2) + b'":1}',
        "numbers": b'{"payload":[' + b"1e9," * (size // 4) + b"1]}",
        "digits": b'{"payload":' + b"9" * size + b"}",
        "dates": b'{"ietf-voucher:voucher":{"created-on":"' + b"2026-01-01T00:00:00." + b"0" * size + b'"}}',
        "payload": b'{"payload":"' + b"A" * size + b'","signatures":[{"protected":"e30","signature":""}]}',
        "crowd": b'{"payload":"","signatures":[{"protected":"%s","signature":"%s"}]}' % (crowd.encode(), b"A" * 86),
        "indefinite": sequences,
        "nested": _nested(size),
        "zeros": bytes(size),
        "spaces": b" " * size,
        "base64": base64.b64encode(bytes(size * 3 // 4)),
        "wrapped": b"M\n" * (size // 2),
        "content type": _signed_data(content_type=der.tlv(der.OID, b"\xff" * (size - 200) + b"\x7f")),
        "certificates": _signed_data(certificates=b"\x30\x00" * (size // 2 - 200)),
    }


def _signed_data(*, content_type: bytes = VOUCHER, certificates: bytes = b"") -> bytes:
    """A SignedData that goes wrong as late as it can."""
    digest = der.sequence(der.oid("2.16.840.1.101.3.4.2.1"))
    info = der.sequence(
        der.integer(1), der.sequence(b"\x30\x00", der.integer(1)), digest, der.tlv(0xA0, b""),
        der.sequence(der.oid("1.2.840.10045.4.3.2")), der.tlv(der.OCTET_STRING, b""),
    )  # fmt: skip
    signed = der.sequence(
        der.integer(3), der.tlv(der.SET, digest),
        der.sequence(content_type, der.tlv(0xA0, der.tlv(der.OCTET_STRING, b"{}"))),
        der.tlv(0xA0, certificates), der.tlv(der.SET, info),
    )  # fmt: skip
    return der.sequence(der.oid("1.2.840.113549.1.7.2"), der.tlv(0xA0, signed))


def _nested(size: int) -> bytes:
    body = b""
    while len(body) < 60_000:
        length = len(body)
        head = b"\x30" + (bytes([length]) if length < 128 else b"\x82" + length.to_bytes(2))
        body = head + body
    return body


TRIO_DER = WORLDS[JWS].device.certificate.public_bytes(Encoding.DER)


@pytest.mark.slow
@pytest.mark.req("B-135", "B-411", "B-427", "T-23")
@pytest.mark.parametrize("what", list(_costly()))
def test_large_and_odd_inputs_cost_little_time_and_memory(what: str) -> None:
    data = _costly()[what]
    assert len(data) <= MAX_BYTES
    for name in ("content", "cms", "cms-dialect", "jws", "jws-header"):
        check(TARGETS[name], data)
        for read in TARGETS[name].reads:
            tracemalloc.start()
            try:
                with contextlib.suppress(Refusal):
                    read(data)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < MAX_MEMORY, f"{name}: {peak} bytes"
