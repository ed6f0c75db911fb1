"""The stories about the life of credentials come out as they say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import dual_identity
from lab import credentials, demo
from lab.models_life import STORIES
from lab.stage import Agent, Stage
from lab.story import Story


class Life(Stage):
    """What the stories need of a stage."""

    def agent(self, name: str, owner: str) -> Agent:
        made = self.agents[name] = Agent(name, owner, self.out / "agents" / name)
        return made

    def client_key(self, owner: str) -> Path:
        folder = self.out / "owners" / f"{owner}-client"
        if not folder.exists():
            made = self.appliance("owner", "client-keygen", "--out", folder, "--ref", owner)
            self.admin("owners", "add-client-key", owner, made["statement"])
        return folder

    def root_pem(self) -> Path:
        path = self.out / "root.pem"
        path.write_bytes(credentials.load(self.ca("root"))[0].public_bytes(Encoding.PEM))
        return path

    def landed(self, agent: Agent) -> str:
        dual = dual_identity.of_certificate(credentials.load(agent.chain)[0])
        assert dual is not None
        names = {identifier: ref for ref, identifier in self.owner_ids.items()}
        return f"{dual.model} for {names[dual.owner_id]}, VLAN {self.login(agent.chain, agent.key).word}"


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.req("A-3", "A-107", "A-110", "A-70")
def test_passkey_renewal_and_cascade_come_out_as_told(tmp_path: Path) -> None:
    told = io.StringIO()
    story = Story(told)
    stage = Life(tmp_path / "out", "embedded", "project", story)
    (tmp_path / "out").mkdir(exist_ok=True)
    try:
        beginning = demo.Demo(stage)
        beginning.set_up()
        beginning.take_in_the_proxy()
        for tell in STORIES:
            tell(stage)
    finally:
        stage.cast.stop()
    checks = {check.name: check for check in story.checks}
    assert {"passkey", "standing-approval-renewal", "owner-revoked-cascade"} <= set(checks), told.getvalue()
    for check in checks.values():
        assert check.ok, json.dumps([check.name, check.expected, check.observed])
