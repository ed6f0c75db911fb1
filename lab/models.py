"""The issuance models, each told from an agent's first call to its VLAN: `./lab/demo --models`.

`STORIES` is the list of what is told, one function each, in its order. A story does everything it needs itself on the
stage that it gets (one appliance with Alice and Bob, one proxy that is in), and records at least one check. What it
claims about a credential is read out of the certificate; where the agent lands, a supplicant has found out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import dual_identity
from appliance.binding.facts import Model
from lab import credentials, models_life
from lab.annex import Annex, est_proxy
from lab.demo import Demo
from lab.stage import Agent, Stage, free_port
from lab.story import Process

ANSWERS = """\
version = 1
otherwise = "deny"

[[rule]]
decision = "approve"
purposes = ["issue", "renew"]
profiles = ["x509", "wit"]
longest_seconds = 28800
"""
"""Rules of an owner's tool: what an agent of this lab asks for, and nothing else."""


class ModelsStage(Stage):
    """What the stories are made of."""

    def agent(self, name: str, owner: str) -> Agent:
        """An agent of this story, under a name of its own."""
        made = self.agents[name] = Agent(name, owner, self.out / "agents" / name)
        return made

    def ask(self, agent: Agent, model: str, *more: str | Path, socket: Path | None = None, owner_id: str = "") -> Any:
        """The agent asks its proxy for a credential under this model; answers what `agent request` prints."""
        return self.appliance(
            "agent", "request", "--socket", socket or self.socket, "--out", agent.folder, "--model", model,
            "--owner", owner_id or self.owner_ids[agent.owner], "--wait-seconds", "60", *more,
        )  # fmt: skip

    def register(self, agent: Agent, proxy: str) -> Path:
        """The administrator registers an agent beforehand; answers the file with its key."""
        key = self.out / f"{agent.name}.key.pem"
        made = self.appliance("agent", "keygen", "--out", key)
        self.admin("agents", "add", "--owner", agent.owner, "--proxy", proxy, "--jkt", made["jkt"])
        return key

    def proxy_id(self, name: str = "proxy") -> str:
        """The identifier in a proxy's LDevID."""
        return credentials.uri(self.out / name / "ldevid.pem")

    def client_key(self, owner: str) -> Path:
        """A client key for an owner's tool, registered; answers its folder."""
        folder = self.out / "owners" / f"{owner}-client"
        if not folder.exists():
            made = self.appliance(
                "owner", "client-keygen", "--out", folder, "--ref", owner, "--trust-domain", "campus.example"
            )
            self.admin("owners", "add-client-key", owner, made["statement"])
        return folder

    def root_pem(self) -> Path:
        """The campus root as PEM, as an owner's tool pins it."""
        path = self.out / "root.pem"
        if not path.exists():
            path.write_bytes(credentials.load(self.ca("root"))[0].public_bytes(Encoding.PEM))
        return path

    def responder(self, owner: str) -> Process:
        """The owner's tool that answers the server's challenges by rule."""
        rules = self.out / "answers.toml"
        rules.write_text(ANSWERS)
        key = self.out / "owners" / owner / "owner.key.pem"
        process = self.cast.start(
            f"respond-{owner}",
            [
                *self.program(), "-o", "json", "owner", "respond", "--owner", self.owner_ids[owner], "--key", key,
                "--client", self.client_key(owner), "--server", f"https://{self.listeners['device']}",
                "--root", self.root_pem(), "--policy", rules,
            ],
        )  # fmt: skip
        process.wait_for("ready", 20)
        return process

    def gateway(self, name: str, owner: str, *domains: Mapping[str, str | Path], org: Sequence[str] = ()) -> Process:
        """An owner's gateway on this stage, its address registered; answers the process.

        Each of `domains` is a table of the gateway's file, `org` the organisational material in all of them.
        """
        folder = self.out / "gateways" / name
        made = self.appliance(
            "owner", "gateway", "keygen", "--out", folder / "server", "--ref", owner, "--trust-domain",
            "campus.example",
        )  # fmt: skip
        port = free_port()
        text = f'version = 1\nlisten = "127.0.0.1:{port}"\nkey = "server"\n'
        for table in domains:
            text += "\n[[domain]]\n" + "".join(f'{key} = "{value}"\n' for key, value in table.items())
            text += f"org = {json.dumps(list(org))}\n"
        (folder / "gateway.toml").write_text(text)
        self.admin("owners", "add-gateway", owner, made["statement"], "--url", f"https://127.0.0.1:{port}")
        process = self.cast.start(
            name,
            [
                *self.program(), "-o", "json", "owner", "gateway", "run", "--config", folder / "gateway.toml",
                "--state", folder / "state",
            ],
        )  # fmt: skip
        process.wait_for("ready", 20)
        return process

    def campus(self, owner: str) -> dict[str, str | Path]:
        """This campus as a gateway's file has it, for a person who decides."""
        return {
            "name": "campus", "server": f"https://{self.listeners['device']}", "root": self.root_pem(),
            "client": self.client_key(owner), "owner": self.owner_ids[owner],
        }  # fmt: skip

    def queue(self, gateway: str, verb: str, *more: str | Path) -> Any:
        """One of the owner's commands at a gateway's queue."""
        state = self.out / "gateways" / gateway / "state"
        return self.appliance("owner", "gateway", "queue", verb, *more, "--state", state)

    def landed(self, agent: Agent, key: Path | None = None, on: Stage | None = None) -> str:
        """Model and owner as the certificate itself says, and where the agent's host lands with it on a campus."""
        campus = on or self
        dual = dual_identity.of_certificate(credentials.load(agent.chain)[0])
        if dual is None:
            return f"single, VLAN {campus.login(agent.chain, key or agent.key).word}"
        names = {identifier: ref for ref, identifier in campus.owner_ids.items()}
        who = names.get(dual.owner_id, "a stranger")
        return f"{dual.model} for {who}, VLAN {campus.login(agent.chain, key or agent.key).word}"


def agent_mediated(stage: ModelsStage) -> None:
    """The agent carries its owner's signature."""
    with stage.story.step("Agent-mediated: Alice signs on her own machine, her agent brings the signature along."):
        agent = stage.agent("notes", "alice")
        stage.ask(agent, Model.AGENT_MEDIATED, "--approval-command", stage.owner_command("alice"))
        stage.story.check("agent-mediated", "agent-mediated for alice, VLAN 20", stage.landed(agent))


def owner_mediated(stage: ModelsStage) -> None:
    """The proxy hands the request to the owner's gateway; the owner looks at the queue and approves by hand."""
    with stage.story.step("Owner-mediated: the proxy asks Alice's gateway, Alice approves in its queue, it submits."):
        gateway = stage.gateway("alice-gateway", "alice", stage.campus("alice"))
        agent = stage.agent("travel", "alice")
        asking = threading.Thread(target=stage.ask, args=(agent, Model.OWNER_MEDIATED), daemon=True)
        asking.start()
        deadline = time.monotonic() + 30
        while not (rows := stage.queue("alice-gateway", "list")) and time.monotonic() < deadline:
            time.sleep(0.3)
        code = rows[0]["code"]
        key = stage.out / "owners" / "alice" / "owner.key.pem"
        done = stage.queue("alice-gateway", "approve", rows[0]["request"], "--key", key, "--code", code)
        stage.story.say(f"  Alice read the request and typed {code}: {done['state']}")
        asking.join(60)
        stage.story.check("owner-mediated", "owner-mediated for alice, VLAN 20", stage.landed(agent))
        gateway.stop()


def many_proxies(stage: ModelsStage) -> None:
    """One gateway whose rules sign, for two proxies of one campus and one of another."""
    with stage.story.step("One gateway for many: an owner's rules sign for two campuses and three proxies."):
        annex = Annex(stage, "annex.example")
        annex.open("robot")
        stage.admin("owners", "add", "robot", "--kind", "policy", "--department", "R&D")
        stage.owner_ids = {row["ref"]: row["identifier"] for row in stage.admin("owners", "list")}
        folder = stage.out / "gateways" / "robot-gateway"
        folder.mkdir(parents=True)
        (folder / "answers.toml").write_text(ANSWERS)
        (folder / "membership.txt").write_text("example-partner-2026-0815\n")
        domains: list[dict[str, str | Path]] = []
        for campus, domain in ((stage, "campus.example"), (annex, "annex.example")):
            own = folder / domain
            key = stage.appliance("owner", "keygen", "--out", own, "--ref", "robot", "--trust-domain", domain)
            campus.admin("owners", "add-key", "robot", key["statement"])
            made = stage.appliance(
                "owner", "client-keygen", "--out", own / "client", "--ref", "robot", "--trust-domain", domain
            )
            campus.admin("owners", "add-client-key", "robot", made["statement"])
            root = own / "root.pem"
            root.write_bytes(credentials.load(campus.ca("root"))[0].public_bytes(Encoding.PEM))
            domains.append({
                "name": domain, "server": f"https://{campus.listeners['device']}", "root": root,
                "client": own / "client", "owner": campus.owner_ids["robot"], "policy": "answers.toml",
                "policy_key": key["key"],
            })  # fmt: skip
        gateway = stage.gateway("robot-gateway", "robot", *domains, org=("membership.txt",))
        listen = gateway.wait_for("ready", 1)["listen"]
        stated = folder / "annex-statement.jwt"
        stage.appliance(
            "owner", "gateway", "statement", "--key", folder / "server", "--out", stated, "--ref", "robot",
            "--trust-domain", "annex.example",
        )  # fmt: skip
        annex.admin("owners", "add-gateway", "robot", stated, "--url", f"https://{listen}")
        sockets: dict[str, tuple[Stage, Path]] = {"reader": (stage, stage.socket)}
        for name, campus in (("writer", stage), ("guest", annex)):
            _, socket = est_proxy(campus, f"{name}-proxy")
            sockets[name] = (campus, socket)
        observed = []
        for name, (where, socket) in sockets.items():
            agent = stage.agent(name, "robot")
            stage.ask(agent, Model.OWNER_MEDIATED, socket=socket, owner_id=where.owner_ids["robot"])
            observed.append(stage.landed(agent, on=where))
        expected = ["owner-mediated for robot, VLAN 20"] * 2 + ["owner-mediated for robot, VLAN 70"]
        stage.story.check("owner-mediated-many-proxies", "; ".join(expected), "; ".join(observed))
        rules = {row["rule"] for row in stage.queue("robot-gateway", "log")}
        stage.story.say(f"  decided by {', '.join(sorted(rules))}, all in one queue")
        gateway.stop()


def server_mediated(stage: ModelsStage) -> None:
    """The server asks the owner."""
    with stage.story.step("Server-mediated: the server parks the request and asks Bob's tool over its own connection."):
        agent = stage.agent("payroll", "bob")
        key = stage.register(agent, stage.proxy_id())
        responder = stage.responder("bob")
        stage.ask(agent, Model.SERVER_MEDIATED, "--key", key)
        answered = responder.wait_for("challenge-answered", 10)
        stage.story.say(f"  Bob's tool answered: {answered['decision']}, code {answered['code']}")
        stage.story.check("server-mediated", "server-mediated for bob, VLAN 30", stage.landed(agent, key))
        responder.stop()


STORIES: tuple[Callable[[ModelsStage], None], ...] = (
    agent_mediated,
    owner_mediated,
    many_proxies,
    server_mediated,
    *models_life.STORIES,
)
"""What `--models` tells; add a function here."""


class Models:
    """One appliance and one proxy, and on their stage every story of `STORIES`."""

    def __init__(self, stage: ModelsStage) -> None:
        self.stage = stage

    def tell(self) -> None:
        """All stories, one after the other."""
        beginning = Demo(self.stage, {"acme": ()})
        beginning.set_up()
        beginning.take_in_the_proxy()
        for story in STORIES:
            story(self.stage)
