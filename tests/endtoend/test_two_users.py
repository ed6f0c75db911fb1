"""Agent and owner on one host under two users: neither reaches what is the other's (A-42)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.campus import UNLIMITED, Campus, environment

ROOT = Path(__file__).parents[2]
AGENT, OWNER = 61_201, 61_202

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="two users are root's to make")]


@dataclass(frozen=True)
class User:
    """Commands as one user, with a folder of the user's own."""

    uid: int
    folder: Path

    @classmethod
    def make(cls, base: Path, name: str, uid: int) -> User:
        folder = base / name
        folder.mkdir(mode=0o700)
        os.chown(folder, uid, uid)
        return cls(uid, folder)

    def popen(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "appliance", *map(str, words)], user=self.uid, group=self.uid, extra_groups=[],
            cwd=self.folder, env={**environment(), "HOME": str(self.folder), "PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, umask=0o077,
        )  # fmt: skip

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        process = self.popen(*words)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess([], process.returncode, out, err)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that both users can enter; what lies in it is each one's own."""
    base = Path(tempfile.mkdtemp(prefix="two-users-"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base)


def give(path: Path, to: Path, user: User) -> None:
    """What crosses between users goes by somebody's hand, as a copy that the receiver owns."""
    shutil.copy(path, to)
    os.chown(to, user.uid, user.uid)


@pytest.mark.req("A-42", "A-94", "A-16")
def test_an_agent_cannot_reach_its_owner_s_key_and_the_owner_cannot_pose_as_the_agent(
    own_campus: Callable[[], Campus], shared: Path
) -> None:
    campus = own_campus()
    socket = shared / "agent.sock"
    campus.start(*UNLIMITED)
    campus.start_proxy("acme-0001", f"proxy.socket={socket}", "proxy.socket_mode=438", "proxy.allow_root_agents=false")
    agent, owner = User.make(shared, "agent", AGENT), User.make(shared, "owner", OWNER)

    made = owner.run("owner", "keygen", "--out", owner.folder / "keys", "--ref", "alice")
    assert made.returncode == 0, made.stderr
    key = owner.folder / "keys" / "owner.key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and key.stat().st_uid == OWNER
    campus.ask("owners.add_key", ref="alice", statement=(owner.folder / "keys" / "owner-key.jwt").read_text().strip())
    owner_id = campus.owner().identifier

    waiting = agent.popen(
        "agent", "request", "--socket", socket, "--out", agent.folder / "notes", "--owner", owner_id,
        "--wait-approval", agent.folder / "approval.jws", "--wait-seconds", "50",
    )  # fmt: skip
    request = agent.folder / "notes" / "request.jws"
    deadline = time.monotonic() + 60
    while not request.exists() or not request.read_text().count(".") == 2:
        assert waiting.poll() is None and time.monotonic() < deadline, waiting.communicate()
        time.sleep(0.05)

    words = ("owner", "sign", "--owner", owner_id, "--request")
    stolen = agent.run(*words, request, "--key", key, "--out", agent.folder / "stolen.jws", "--yes")
    assert stolen.returncode == 1 and "key-file-missing" in stolen.stderr and not (agent.folder / "stolen.jws").exists()
    blind = owner.run(*words, request, "--key", key, "--out", owner.folder / "x.jws", "--yes")
    assert blind.returncode == 1 and "file-unreadable" in blind.stderr

    give(request, owner.folder / "request.jws", owner)
    signed = owner.run(
        *words, owner.folder / "request.jws", "--key", key, "--out", owner.folder / "approval.jws", "--yes"
    )
    assert signed.returncode == 0, signed.stderr

    # whoever has request and approval and not the agent's user is not the agent
    from appliance.binding import composite
    from appliance.binding.composite import Composite

    csr = (agent.folder / "notes" / "csr.der").read_bytes()
    body = owner.folder / "composite.json"
    approval = (owner.folder / "approval.jws").read_text().strip()
    body.write_bytes(composite.write(Composite(request.read_text(), csr, (approval,))))
    os.chown(body, OWNER, OWNER)
    posed = subprocess.run(
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path\nfrom tests.campus import Client\n"
            "a = Client(sys.argv[1], None).send('POST', '/v1/enroll', Path(sys.argv[2]).read_bytes(), "
            "'application/agent-enroll+json')\nprint(a.status, a.reason)",
            str(socket), str(body),
        ],
        user=OWNER, group=OWNER, extra_groups=[], capture_output=True, text=True, cwd=owner.folder,
        env={**environment(), "PYTHONPATH": str(ROOT)}, timeout=240, check=False,
    )  # fmt: skip
    assert "request-not-yours" in posed.stdout, (posed.stdout, posed.stderr)

    give(owner.folder / "approval.jws", agent.folder / "approval.jws", agent)
    out, err = waiting.communicate(timeout=240)
    assert waiting.returncode == 0, err
    chain, agent_key = agent.folder / "notes" / "chain.pem", agent.folder / "notes" / "agent.key.pem"
    assert chain.exists() and (agent_key.stat().st_uid, stat.S_IMODE(agent_key.stat().st_mode)) == (AGENT, 0o600)
    peek = owner.run("agent", "keygen", "--out", agent.folder / "notes" / "mine.pem")
    assert peek.returncode == 1
    audited = campus.ask("audit.list", limit=200)
    assert any(entry["event"] == "dual-identity-issued" for entry in audited), out
