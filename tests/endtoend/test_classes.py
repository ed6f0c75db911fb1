"""An agent that came by itself, with every part in a process of its own: its class is set by command, and the next
login gets the VLAN of the class."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.campus import UNLIMITED, Campus, Ran, run_here
from tests.endtoend.test_network_side import log_in_with, request_credential
from tests.endtoend.test_server_mediated import Desk

ROBOTS = '[[rule]]\nname = "robots"\nagent_class = "robot"\nvlan = "staff"\n\n'


@pytest.mark.lab
@pytest.mark.req("A-113")
def test_an_agent_that_came_by_itself_logs_in_by_the_class_that_it_was_given(own_campus: Callable[[], Campus]) -> None:
    campus = own_campus()
    campus.start(*UNLIMITED, "identity.owner_classes=robot")
    campus.start_proxy()
    folder = request_credential(campus, campus.folder / "agent")
    agent = json.loads((folder / "result.json").read_text())["agent_id"]
    draft, root = campus.folder / "policy.toml", campus.folder / "root.pem"
    text = campus.ask("policy.show")["text"].replace("version = 1", "version = 2")
    draft.write_text(text.replace("[[rule]]", ROBOTS + "[[rule]]", 1))
    assert campus.cli("policy", "publish", draft).status == 0
    root.write_bytes(campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
    files, server = Desk.register(campus).files, f"https://{campus.listeners['device']}"

    def by_owner(name: str) -> Ran:
        tool = ("--client", files.key_file.parent, "--server", server, "--root", root)
        return run_here("owner", "classify", agent, "--class", name, *tool, "-o", "json")

    def by_administrator(name: str) -> Ran:
        return campus.cli("agents", "classify", agent, "--class", name)

    vlans = [log_in_with(folder, campus.listeners["radius"]).vlan]
    for give, name in ((by_owner, "robot"), (by_administrator, ""), (by_administrator, "robot")):
        done = give(name)
        assert (done.status, done.json["class"]) == (0, name), done.err
        vlans.append(log_in_with(folder, campus.listeners["radius"]).vlan)
    assert vlans == ["20", "30", "20", "30"]
    assert "class-not-for-owners" in by_owner("screen").err
    assert "request-malformed" in by_administrator("two words").err
    assert by_administrator("").status == 0
