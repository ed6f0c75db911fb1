"""Two owners must approve, with every part in a process of its own: the server asks both, or the gateway's server asks
the other one; over kill -9 between the answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import jws
from lab.story import Process
from tests.campus import UNLIMITED, Ask, Campus, OwnerHost, new_ask, run_here
from tests.endtoend.test_network_side import log_in_with
from tests.endtoend.test_owner_mediated import Site
from tests.endtoend.test_owner_mediated import agent_command as ask_gateway
from tests.endtoend.test_server_mediated import NO_ANSWER, Desk, agent_command, revive, run_agent, submit

RULE = '[[rule]]\nname = "{name}"\ndecision = "{decision}"\n{more}'


def prepare(own_campus: Callable[[], Campus]) -> Campus:
    """A running campus where agents need their owner and bob."""
    campus = own_campus()
    campus.start(*UNLIMITED)
    bob = campus.owner("bob").identifier
    assert campus.stop() == 0
    with (campus.home / "appliance.toml").open("a") as file:
        file.write(f'\n[identity.approvers]\ndefault = 2\n[identity.named_approvers]\ndefault = ["{bob}"]\n')
    campus.start(*UNLIMITED)
    (campus.folder / "root.pem").write_bytes(campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
    return campus


def respond(desk: Desk, name: str, beside: OwnerHost | None = None, decision: str = "approve") -> Process:
    """`appliance owner respond` by rules: for one's own agents, or beside another owner's."""
    more = "" if beside is None else f'owners = ["{beside.identifier}"]\n'
    policy = desk.campus.folder / f"{name}.toml"
    policy.write_text("version = 1\n" + RULE.format(name=name, decision=decision, more=more))
    found = desk.campus.cast.start(name, [*desk.command(), "--policy", policy])
    found.wait_for("ready", 20)
    return found


def approvers(campus: Campus, agent: str) -> list[str]:
    """Whose approvals stand behind an agent's one credential."""
    (row,) = campus.ask("agents.show", agent=agent)["requests"]
    return [one["owner"] for one in row["approvals"]]


@pytest.mark.lab
@pytest.mark.req("A-35", "A-60", "A-61", "A-62", "A-113")
def test_two_owners_tools_answer_and_the_agent_logs_in(own_campus: Callable[[], Campus], tmp_path: Path) -> None:
    campus = prepare(own_campus)
    campus.start_proxy()
    alice, bob = Desk.register(campus, "alice"), Desk.register(campus, "bob")
    respond(alice, "alice")
    hasty = respond(bob, "hasty")  # says nothing of other owners: their agents are none of its business
    command = agent_command(campus, "notes")
    short = run_agent([*command[:-1], "4"])
    assert short.returncode == 1 and "Traceback" not in short.stderr, short.stderr
    assert hasty.wait_for("challenge-answered", 5)["decision"] == "leave"
    hasty.popen.terminate()
    hasty.finish(15)
    respond(bob, "bob", beside=alice.owner)
    done = run_agent(agent_command(campus, "mail"))
    assert done.returncode == 0, (done.stderr, campus.log("bob"))
    outcome = log_in_with(campus.folder / "mail", campus.listeners["radius"])
    assert (outcome.code, outcome.vlan) == ("accept", "20"), outcome
    result = json.loads(done.stdout)
    assert approvers(campus, result["agent_id"]) == [alice.owner.identifier, bob.owner.identifier]
    tool = ("--client", bob.files.key_file.parent, "--server", f"https://{campus.listeners['device']}")
    shown = run_here("owner", "issued", *tool, "--root", campus.folder / "root.pem", "-o", "json")
    (beside,) = shown.json["beside"]
    assert (beside["serial"].lstrip("0"), beside["owner"]) == (result["serial"].lstrip("0"), alice.owner.identifier)
    package, bundle = tmp_path / "package", tmp_path / "bundle.json"
    home = ("--home", campus.home)
    exported = run_here("certs", "evidence", result["serial"], "--out", package, *home)
    assert exported.status == 0, exported.err
    made = run_here("owners", "bundle", bundle, *home)
    assert made.status == 0, made.err
    verified = run_here("verify", "--package", package, "--owners", bundle, "-o", "json")
    assert verified.status == 0 and bob.owner.identifier in verified.out, (verified.out, verified.err)


@pytest.mark.lab
@pytest.mark.req("A-35", "A-60", "A-100", "A-112")
def test_kill_9_between_the_answers_and_while_signing_loses_none(own_campus: Callable[[], Campus]) -> None:
    campus = prepare(own_campus)
    alice, bob = Desk.register(campus, "alice"), Desk.register(campus, "bob")
    key = ec.generate_private_key(ec.SECP256R1())
    campus.ask("agents.add", owner="alice", proxy=campus.proxy_id, jkt=jws.jkt(key.public_key()))
    client = campus.as_proxy()
    made = new_ask(campus, client, alice.owner, key=key, model="server-mediated", exp=int(time.time()) + 900)
    client.close()
    ask = Ask(made.key, made.sub, made.token, made.csr_der, (), made.proxy_id, made.proxy_key)
    revive(campus, failpoint="challenge-parked")
    with pytest.raises(NO_ANSWER):
        submit(campus, ask)
    revive(campus, is_dead=True)
    assert submit(campus, ask).status == 202
    for desk in (bob, alice):
        revive(campus, failpoint="challenge-answered")
        asked = desk.asked()
        token = desk.yes(ask, asked)
        with pytest.raises(NO_ANSWER):
            desk.answer(asked, token)
        revive(campus, is_dead=True)
        assert desk.answer(asked, token).json["decision"] == "approve"
        assert desk.answer(asked, desk.yes(ask, asked)).reason == "challenge-over"
        if desk is bob:
            assert submit(campus, ask).status == 202
    for failpoint in ("issue-pending:4", "issue-signed:4"):
        revive(campus, failpoint=failpoint)
        with pytest.raises(NO_ANSWER):
            submit(campus, ask)
        revive(campus, is_dead=True)
    answer = submit(campus, ask)
    assert answer.status == 201, answer.body
    assert approvers(campus, ask.sub) == [alice.owner.identifier, bob.owner.identifier]
    live = [one for one in campus.ask("agents.show", agent=ask.sub)["credentials"] if one["state"] == "issued"]
    assert [one["serial"] for one in live] == [answer.json["serial"]]


@pytest.mark.lab
@pytest.mark.req("A-35", "A-50", "A-65")
def test_what_the_gateway_approved_waits_at_the_server_for_the_other_owner(own_campus: Callable[[], Campus]) -> None:
    campus = prepare(own_campus)
    campus.start_proxy()
    site = Site(campus)
    site.start()
    bob = Desk.register(campus, "bob")
    waiting = run_agent(ask_gateway(campus, "early", "--wait-seconds", "3"))
    assert waiting.returncode == 1 and "Traceback" not in waiting.stderr, waiting.stderr
    respond(bob, "bob", beside=site.owner)
    done = run_agent(ask_gateway(campus, "notes"))
    assert done.returncode == 0, (done.stderr, campus.log("gateway"), campus.log("bob"))
    agent = json.loads(done.stdout)["agent_id"]
    assert approvers(campus, agent) == [site.owner.identifier, bob.owner.identifier]
    assert [one["model"] for one in campus.ask("agents.show", agent=agent)["credentials"]] == ["owner-mediated"]
    outcome = log_in_with(campus.folder / "notes", campus.listeners["radius"])
    assert (outcome.code, outcome.vlan) == ("accept", "20"), outcome
