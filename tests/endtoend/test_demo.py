"""The demonstration keeps every promise of its story, with the embedded RADIUS server and with FreeRADIUS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.campus import environment

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    "proxy-discovered", "voucher-verified", "proxy-enrolled", "agent-credential-dual", "vlan-rnd", "vlan-hr",
    "owner-moves-department", "unmapped-department-guest", "revoked-agent-rejected", "suspended-owner-rejected",
    "stranger-certificate-rejected", "proxy-certificate-not-an-agent", "self-approval-refused",
    "approval-for-other-key-refused", "approval-replay-refused", "foreign-voucher-refused",
    "tampered-voucher-refused",
}  # fmt: skip
VLANS = {
    "vlan-rnd": "20", "vlan-hr": "30", "owner-moves-department": "30", "unmapped-department-guest": "99",
    "revoked-agent-rejected": "reject", "suspended-owner-rejected": "reject", "stranger-certificate-rejected": "reject",
    "proxy-certificate-not-an-agent": "reject",
}  # fmt: skip
WITH_FREERADIUS = pytest.mark.skipif(
    shutil.which("freeradius") is None or shutil.which("eapol_test") is None or os.geteuid() != 0,
    reason="FreeRADIUS and eapol_test are not installed, or this is not root",
)


def tell(folder: Path, *more: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "lab", "demo", "--report", str(report), "--out", str(folder / "out"), *more],
        capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=600, check=False,
    )  # fmt: skip
    return done, json.loads(report.read_text())


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.xdist_group("mdns")
@pytest.mark.parametrize(
    "engine", ["embedded", pytest.param("freeradius", marks=[WITH_FREERADIUS, pytest.mark.interop])]
)
def test_every_check_of_the_story_is_ok(tmp_path: Path, engine: str) -> None:
    tmp_path.chmod(0o755)
    done, report = tell(tmp_path, "--radius", engine)
    wrong = [check for check in report["checks"] if not check["ok"]]
    assert wrong == [] and report["skipped"] == [], done.stdout[-3000:]
    assert done.returncode == 0, done.stderr
    assert {check["name"] for check in report["checks"]} == PROMISED
    assert len(report["checks"]) == len(PROMISED)
    for check in report["checks"]:
        assert set(check) == {"name", "expected", "observed", "ok"}
        assert isinstance(check["expected"], str) and isinstance(check["observed"], str) and check["observed"]
    observed = {check["name"]: check["observed"] for check in report["checks"]}
    assert {name: observed[name] for name in VLANS} == VLANS
    assert "cryptography" in report["versions"]
    logs = "\n".join(path.read_text(errors="replace") for path in (tmp_path / "out" / "logs").glob("*.log"))
    assert "Traceback" not in logs and "event=request-failed" not in logs
    for word in ("AGENT", "OWNER", "DEPARTMENT", "CREDENTIAL SERIAL", "VLAN", "WHY"):
        assert word in done.stdout
    assert str(tmp_path / "out") in done.stdout


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.xdist_group("mdns")
@pytest.mark.req("A-40", "A-50", "A-52", "A-60")
def test_each_issuance_model_leads_from_an_agent_to_its_vlan(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done, report = tell(tmp_path, "--models")
    assert [check for check in report["checks"] if not check["ok"]] == [], done.stdout[-3000:]
    assert done.returncode == 0, done.stderr
    observed = {check["name"]: check["observed"] for check in report["checks"]}
    assert observed["agent-mediated"] == "agent-mediated for alice, VLAN 20"
    assert observed["owner-mediated"] == "owner-mediated for alice, VLAN 20"
    assert observed["owner-mediated-many-proxies"].count("owner-mediated for robot") == 3
    assert observed["server-mediated"] == "server-mediated for bob, VLAN 30"
    logs = "\n".join(path.read_text(errors="replace") for path in (tmp_path / "out" / "logs").glob("*.log"))
    assert "Traceback" not in logs and "event=request-failed" not in logs
