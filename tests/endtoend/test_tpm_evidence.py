"""A proxy whose machine has a TPM (swtpm): its quote decides whether its agents get a credential."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import tpm
from est.keys import spki_sha256
from tests.appliance.owner.test_tpm_key import start
from tests.campus import UNLIMITED, Campus, Ran, appliance

pytestmark = [
    pytest.mark.interop,
    pytest.mark.lab,
    pytest.mark.xdist_group("tpm"),
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed (Debian: apt install swtpm)"),
]


def request(campus: Campus, folder: Path) -> Ran:
    owner = campus.owner()
    approve = shlex.join([
        sys.executable, "-m", "appliance", "owner", "sign", "--key", str(owner.key_file), "--owner", owner.identifier,
        "--request", "{request}", "--csr", "{csr}", "--out", "{approval}", "--yes",
    ])  # fmt: skip
    return appliance(
        "agent", "request", "--socket", campus.state / "agent.sock", "--out", folder, "--owner", owner.identifier,
        "--approval-command", approve, "-o", "json",
    )  # fmt: skip


@pytest.mark.req("A-21", "A-24")
def test_only_the_machine_that_the_policy_knows_has_agents(own_campus: Callable[[], Campus], tmp_path: Path) -> None:
    process, tcti = start(tmp_path / "tpm")
    try:
        campus = own_campus()
        shown = tpm.quote(tcti, [7], b"x")
        policy = campus.folder / "appraisal.toml"

        def publish(register: str) -> None:
            policy.write_text(
                f'version = 1\nid = "urn:x"\n[default]\ntpm = "contraindicated"\npcrs = {{ 7 = ["{register}"] }}\n'
                f'[attestation_keys]\n"{campus.proxy_id}" = "{spki_sha256(shown.key).hex()}"\n'
            )

        publish(shown.pcrs[7].hex())
        chosen = (*UNLIMITED, f"identity.appraisal_policy={policy}")
        campus.start(*chosen)
        campus.start_proxy("acme-0001", f"proxy.tpm={tcti}", "proxy.tpm_pcrs=0,7")
        done = request(campus, tmp_path / "good")
        assert done.status == 0, done.err
        publish("00" * 31 + "01")
        campus.stop()
        campus.start(*chosen, f"web.device_port={campus.listeners['device'].rpartition(':')[2]}")
        refused = request(campus, tmp_path / "other-software")
        assert refused.status == 1
        assert "evidence-contraindicated" in refused.err
        assert json.loads(done.out)
    finally:
        process.terminate()
        process.wait(10)
