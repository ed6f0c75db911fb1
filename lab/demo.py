"""From cable to VLAN, told as it happens: every step a real protocol between separate processes on loopback.

The story is in `_Demo.tell`; what it promises are the checks. Each check's observation comes from the wire, from a
file that another program wrote, or from the supplicant, never from the appliance's own decision object alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import credentials
from lab.logins import Login, log_in
from lab.story import Cast, DemoFailed, Process, Story, versions

POLICY = """\
version = 1

[vlans]
research = 20
staff = 30
guest = 99

[defaults]
unmapped = "guest"
stale = "reject"
guest_vlan = "guest"

[[rule]]
name = "research"
department = "R&D"
vlan = "research"

[[rule]]
name = "human resources"
department = "HR"
vlan = "staff"
"""
OWNERS = "ref,name,kind,department\nalice,Alice Example,person,R&D\nbob,Bob Example,person,HR\n"
CHANGE_SECONDS = 5.0
AGENTS: Mapping[str, str] = {"notes": "alice", "travel": "alice", "payroll": "bob", "screening": "bob"}
TRICKS: Mapping[str, str] = {
    "self-approval": "403 self-approval",
    "approval-for-other-key": "403 approval-for-other-key",
    "approval-replay": "403 approval-nonce-mismatch",
}
VOUCHER_REASONS: Mapping[str, str] = {
    "shady": "proxy: voucher-signature-invalid, status false, no LDevID",
    "sloppy": "registrar: voucher-signature-invalid, proxy: registrar-refused, no LDevID",
}
"""Who notices: a foreign signer only the device can notice, changed bytes the registrar sees first."""
MAKERS: Mapping[str, tuple[str, ...]] = {"acme": (), "shady": ("foreign-signer",), "sloppy": ("tampered",)}
"""Manufacturers of the story, and how their MASAs misbehave."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One AI agent of the story and where its files lie."""

    name: str
    owner: str
    folder: Path

    @property
    def chain(self) -> Path:
        return self.folder / "chain.pem"

    @property
    def key(self) -> Path:
        return self.folder / "agent.key.pem"


class Demo:
    """One run: a folder, a cast of processes, a story."""

    def __init__(self, out: Path, engine: str, supplicant: str, story: Story) -> None:
        self.out = out
        self.engine = engine
        self.story = story
        self.home = out / "appliance"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("APPLIANCE_")}
        environment["PYTHONUNBUFFERED"] = "1"
        self.environment = environment
        self.cast = Cast(out / "logs", environment)
        self.agents: dict[str, Agent] = {}
        self.owner_ids: dict[str, str] = {}
        self.listeners: dict[str, str] = {}
        self.secret = secrets.token_urlsafe(32)
        self.supplicant = supplicant
        self.logins = 0
        self.statements: dict[str, Path] = {}

    # -- programs

    def appliance(self, *arguments: str | Path, check: bool = True) -> Any:
        """One command line of the appliance; its JSON answer."""
        command = [sys.executable, "-m", "appliance", *map(str, arguments), "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60, check=False)
        if check and done.returncode != 0:
            raise DemoFailed(f"{' '.join(command[2:])} ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else {"error": done.stderr.strip()}

    def admin(self, *arguments: str | Path) -> Any:
        """An administrator's command at the appliance of this story."""
        return self.appliance(*arguments, "--home", self.home)

    def masa(self, factory: Path, name: str, port: int, *knobs: str) -> Process:
        """Starts a MASA; knobs make it misbehave."""
        command: list[str | Path] = [sys.executable, "-m", "lab", "masa", "--dir", factory, "--port", str(port)]
        if knobs:
            command += ["--break", ",".join(knobs)]
        process = self.cast.start(name, command)
        process.wait_for("ready", 20)
        return process

    def proxy(self, name: str, maker: str) -> Process:
        """Starts an identity proxy with the IDevID that its manufacturer gave it."""
        device = self.device(maker)
        return self.cast.start(
            name,
            [
                sys.executable, "-m", "appliance", "proxy", "run", "--state", self.out / name, "-o", "json",
                "--set", f"proxy.idevid_certificate={device / 'idevid.pem'}",
                "--set", f"proxy.idevid_key={device / 'idevid.key.pem'}",
                "--set", f"proxy.masa_anchors={device / 'masa-anchors.pem'}",
                "--set", "proxy.interfaces=127.0.0.1",
                "--set", "proxy.socket_mode=438",
                "--set", f"proxy.allow_root_agents={'true' if os.geteuid() == 0 else 'false'}",
                "--set", "proxy.give_up_seconds=60",
            ],
        )  # fmt: skip

    # -- the story

    def tell(self) -> None:
        """The whole way, then the attacks."""
        self.set_up()
        self.take_in_the_proxy()
        self.give_agents_their_credentials()
        self.log_in()
        self.change_owners()
        self.turn_strangers_away()
        self.refuse_bad_approvals()
        self.refuse_bad_vouchers()
        self.table()

    def set_up(self) -> None:
        story, out = self.story, self.out
        with story.step("Acme makes a device; its MASA goes on line. The campus sets up its appliance."):
            self.admin("init", "--trust-domain", "campus.example", "--org", "Example University")
            self.server = self.cast.start(
                "appliance",
                [
                    sys.executable, "-m", "appliance", "run", "--home", self.home, "-o", "json",
                    "--set", f"radius.engine={self.engine}",
                    *(f"--set=web.{port}_port=0" for port in ("device", "console", "decision", "pki")),
                    "--set", "radius.port=0",
                ],
            )  # fmt: skip
            ready = self.server.wait_for("ready", 30)
            self.listeners = ready["listeners"]
            for maker, knobs in MAKERS.items():
                folder, port = self.maker(maker), free_port()
                self.lab("factory", "--dir", folder, "--serial", f"{maker}-0001", "--masa-url", f"127.0.0.1:{port}")
                self.masa(folder, f"masa-{maker}", port, *knobs)
                self.admin(
                    "manufacturers", "add", folder / "manufacturer" / "ca.pem", "--name", maker,
                    "--masa", f"https://127.0.0.1:{port}",
                    "--masa-anchors", folder / "manufacturer" / "masa-tls-ca.pem",
                )  # fmt: skip
            self.admin("nas", "add", "lab-switch", "127.0.0.1", "--secret-file", self.secret_file())
            (out / "policy.toml").write_text(POLICY)
            (out / "owners.csv").write_text(OWNERS)
            self.admin("policy", "publish", out / "policy.toml", "--comment", "demo")
            self.admin("owners", "import", out / "owners.csv", "--confirm")
            self.owner_ids = {row["ref"]: row["identifier"] for row in self.admin("owners", "list")}
            story.say(f"  appliance ready: {', '.join(f'{k} {v}' for k, v in self.listeners.items() if v)}")
        with story.step("Alice (R&D) and Bob (HR) make their approval keys; the admin registers them."):
            for ref in self.owner_ids:
                made = self.appliance(
                    "owner", "keygen", "--out", out / "owners" / ref, "--ref", ref, "--trust-domain", "campus.example"
                )
                self.statements[ref] = Path(made["statement"])
                self.admin("owners", "add-key", ref, made["statement"])
                story.say(f"  {ref}: key {made['jkt'][:16]}..., {self.owner_ids[ref]}")

    def take_in_the_proxy(self) -> None:
        story = self.story
        with story.step("A proxy is plugged in. It knows only its IDevID and its maker's anchors."):
            begun = time.monotonic()
            proxy = self.proxy("proxy", "acme")
            found = proxy.wait_for("step", 30, {"step": "registrars-found"})
            story.say(f"  {found['offers']} registrar(s) found by {found['how']} after {found['ms']:.0f} ms")
            ready = proxy.wait_for("ready", 60)
            self.socket = Path(ready["socket"])
            where = ready["registrar"]
            story.check("proxy-discovered", f"mdns, {self.listeners['device']}", f"{found['how']}, {where}")
            story.say(f"  from link up to LDevID: {time.monotonic() - begun:.1f} s")
            state, device = self.out / "proxy", self.device("acme")
            observed = credentials.voucher_facts(
                state, device / "masa-anchors.pem", (self.ca("root"), self.ca("devices"))
            )
            story.check("voucher-verified", "serial acme-0001, nonce as sent, pins this campus", observed)
            # the proxy tells how its enrolment went over a new connection, right after it is ready
            told = proxy.wait_for("step", 10, {"step": "enroll-status-sent"})
            story.say(f"  enrolment told to the registrar: {told['code']}")
            subject = credentials.verified_uri(state / "ldevid.pem", self.ca("devices"), self.ca("root"))
            pledge = self.admin("pledges", "show", "acme-0001")
            story.check("proxy-enrolled", f"confirmed as {ready['proxy']}", f"{pledge['state']} as {subject}")

    def give_agents_their_credentials(self) -> None:
        story = self.story
        with story.step("Four agents ask their proxy. Each owner reads the request and signs exactly that."):
            for name, owner in AGENTS.items():
                agent = Agent(name, owner, self.out / "agents" / name)
                begun = time.monotonic()
                self.request(agent, self.owner_command(owner))
                self.agents[name] = agent
                story.say(f"  {name:<10} for {owner:<6} in {time.monotonic() - begun:.1f} s")
            agent = self.agents["notes"]
            observed = credentials.dual_facts(
                agent.chain,
                self.ca("root"),
                self.statements["alice"],
                self.owner_ids["alice"],
                "https://ids.campus.example/v1",
                backdating_seconds=300,
            )
            alice = self.owner_ids["alice"]
            story.check(
                "agent-credential-dual", f"agent key and owner key of {alice}, approval verified offline", observed
            )

    def log_in(self) -> None:
        story = self.story
        with story.step("The agents' hosts log in at a switch port (EAP-TLS)."):
            story.check("vlan-rnd", "20", self.vlan("notes"))
            story.check("vlan-hr", "30", self.vlan("payroll"))

    def change_owners(self) -> None:
        story = self.story
        with story.step("People move, leave and are suspended. No certificate changes."):
            self.admin("owners", "move", "alice", "--department", "HR")
            story.eventually("owner-moves-department", "30", lambda: self.vlan("notes"), CHANGE_SECONDS)
            self.admin("owners", "move", "alice", "--department", "R&D")
            self.admin("owners", "move", "bob", "--department", "Astrology")
            story.eventually("unmapped-department-guest", "99", lambda: self.vlan("payroll"), CHANGE_SECONDS)
            self.admin("owners", "move", "bob", "--department", "HR")
            self.admin("agents", "revoke", credentials.uri(self.agents["travel"].chain), "--reason", "retired")
            story.eventually("revoked-agent-rejected", "reject", lambda: self.vlan("travel"), CHANGE_SECONDS)
            self.admin("owners", "suspend", "bob")
            story.eventually("suspended-owner-rejected", "reject", lambda: self.vlan("screening"), CHANGE_SECONDS)
            self.admin("owners", "resume", "bob")

    def turn_strangers_away(self) -> None:
        story = self.story
        with story.step("Certificates that look right, and are not an agent's of this campus."):
            stranger = credentials.forge_stranger(self.agents["notes"].chain, self.out / "stranger")
            story.check("stranger-certificate-rejected", "reject", self.login(*stranger).word)
            state = self.out / "proxy"
            story.check(
                "proxy-certificate-not-an-agent",
                "reject",
                self.login(state / "ldevid.pem", state / "ldevid.key.pem").word,
            )

    def refuse_bad_approvals(self) -> None:
        story = self.story
        with story.step("Rogue agents: they approve themselves, borrow an approval, use one twice."):
            for trick, reason in TRICKS.items():
                answer = self.lab(
                    "rogue", "--socket", self.socket, "--trick", trick, "--owner", self.owner_ids["alice"],
                    "--owner-key", self.out / "owners" / "alice" / "owner.key.pem",
                )  # fmt: skip
                story.check(f"{trick}-refused", reason, f"{answer['status']} {answer['reason']}")

    def refuse_bad_vouchers(self) -> None:
        story = self.story
        with story.step("Two more pledges, whose vouchers were made by a stranger and changed on the way."):
            port = int(self.listeners["device"].rpartition(":")[2])
            proxy = self.proxy("proxy-shady", "shady")
            refused = proxy.wait_for("step", 60, {"step": "voucher-refused", "server": self.listeners["device"]})
            told = proxy.wait_for("step", 10, {"step": "voucher-status-sent"})
            proxy.stop()
            observed = f"proxy: {refused['code']}, status {str(told['status']).lower()}, {self.ldevid('proxy-shady')}"
            story.check("foreign-voucher-refused", VOUCHER_REASONS["shady"], observed)
            proxy = self.proxy("proxy-sloppy", "sloppy")
            refused = proxy.wait_for("step", 60, {"step": "attempt-failed", "port": port})
            proxy.stop()
            timeline = self.admin("pledges", "show", "sloppy-0001")["timeline"]
            noticed = next((step["code"] for step in timeline if step["step"] == "masa-failed"), "nothing")
            observed = f"registrar: {noticed}, proxy: {refused['code']}, {self.ldevid('proxy-sloppy')}"
            story.check("tampered-voucher-refused", VOUCHER_REASONS["sloppy"], observed)

    def table(self) -> None:
        """The end of the story: who got what, as the supplicants saw it."""
        story = self.story
        departments = {row["ref"]: row["department"] for row in self.admin("owners", "list")}
        rows = [("AGENT", "OWNER", "DEPARTMENT", "CREDENTIAL SERIAL", "VLAN", "WHY")]
        for name, agent in self.agents.items():
            login = self.login(agent.chain, agent.key)
            serial = credentials.serial(agent.chain)
            rows.append((name, agent.owner, departments[agent.owner], serial[:16] + "...", login.word, login.message))
        widths = [max(len(row[at]) for row in rows) for at in range(5)]
        story.say()
        for row in rows:
            story.say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]))

    # -- the parts of a step

    def lab(self, *arguments: str | Path) -> Any:
        """One `python -m lab` command; its JSON answer."""
        command = [sys.executable, "-m", "lab", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60, check=False)
        if done.returncode != 0:
            raise DemoFailed(f"{' '.join(command[2:5])} ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout.splitlines()[-1])

    def maker(self, name: str) -> Path:
        return self.out / "makers" / name

    def device(self, maker: str) -> Path:
        return self.maker(maker) / "devices" / f"{maker}-0001"

    def ldevid(self, proxy: str) -> str:
        return "LDevID" if (self.out / proxy / "ldevid.pem").exists() else "no LDevID"

    def secret_file(self) -> Path:
        path = self.out / "radius-secret"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(self.secret)
        return path

    def ca(self, role: str) -> Path:
        """A CA certificate, fetched from the PKI port as anybody would."""
        path = self.out / f"ca-{role}.cer"
        if not path.exists():
            with urllib.request.urlopen(f"http://{self.listeners['pki']}/ca/{role}.cer", timeout=10) as answer:
                path.write_bytes(answer.read())
        return path

    def owner_command(self, owner: str) -> str:
        """What an agent's host calls to have its owner look at a request and sign it."""
        key = self.out / "owners" / owner / "owner.key.pem"
        return shlex.join([
            sys.executable, "-m", "appliance", "owner", "sign", "--key", str(key), "--owner", self.owner_ids[owner],
            "--request", "{request}", "--csr", "{csr}", "--out", "{approval}", "--yes",
        ])  # fmt: skip

    def request(self, agent: Agent, approval_command: str) -> Any:
        return self.appliance(
            "agent", "request", "--socket", self.socket, "--out", agent.folder, "--owner", self.owner_ids[agent.owner],
            "--approval-command", approval_command,
        )  # fmt: skip

    def login(self, chain: Path, key: Path) -> Login:
        """One EAP-TLS login at the RADIUS server with eapol_test where it is installed, else with our own peer."""
        self.logins += 1
        return log_in(
            self.supplicant,
            self.listeners["radius"],
            self.secret,
            chain=chain,
            key=key,
            root=self.ca("root"),
            server_name="radius.campus.example",
            tls_version="1.3" if self.logins % 2 else "1.2",
        )

    def vlan(self, name: str) -> str:
        agent = self.agents[name]
        return self.login(agent.chain, agent.key).word


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

    # -- the story


def main(arguments: Sequence[str]) -> int:
    """`python -m lab demo`: 0 only if every check is ok and none that the flags ask for was skipped."""
    parser = argparse.ArgumentParser(prog="lab/demo", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--radius", choices=("embedded", "freeradius"), default="embedded", help="who speaks RADIUS")
    parser.add_argument(
        "--keep", action="store_true", help="leave everything running until Ctrl-C, say how to look around"
    )
    parser.add_argument("--out", type=Path, help="folder for everything (default: a new one under lab-output)")
    options = parser.parse_args(arguments)
    out = (options.out or Path("lab-output") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")).absolute()
    out.mkdir(parents=True, mode=0o755)
    story = Story()
    supplicant = "eapol_test" if shutil.which("eapol_test") else "project"
    story.say(f"From cable to VLAN. RADIUS: {options.radius}; supplicant: {supplicant}; everything lies in {out}")
    if options.radius == "freeradius" and not shutil.which("freeradius"):
        story.skip("freeradius", "FreeRADIUS is not installed: apt-get install freeradius freeradius-rest eapoltest")
        return _finish(story, options.report)
    demo = Demo(out, options.radius, supplicant, story)
    try:
        demo.tell()
        if options.keep:
            _look_around(demo)
    except DemoFailed as failed:
        story.check("story-told", "to its end", str(failed))
    finally:
        demo.cast.stop()
    return _finish(story, options.report)


def _look_around(demo: Demo) -> None:
    demo.story.say(f"""
Everything keeps running until Ctrl-C. Look around:
  .venv/bin/appliance --home {demo.home} owners list
  .venv/bin/appliance --home {demo.home} access log
  .venv/bin/appliance --home {demo.home} policy explain --cert {demo.agents["notes"].chain}
  .venv/bin/appliance --home {demo.home} pledges show acme-0001
  curl --cacert {demo.agents["notes"].folder / "root.pem"} https://{demo.listeners["console"]}/docs/""")
    with contextlib.suppress(KeyboardInterrupt):
        while demo.cast.running():
            time.sleep(0.5)


def _finish(story: Story, report: Path | None) -> int:
    freeradius = (
        subprocess.run(["freeradius", "-v"], capture_output=True, text=True, check=False).stdout
        if shutil.which("freeradius")
        else ""
    )
    found = versions(("freeradius", freeradius.splitlines()[0] if freeradius else "not installed"))
    if report is not None:
        report.write_text(json.dumps(story.report(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = [check.name for check in story.checks if not check.ok]
    story.say()
    story.say(
        f"{len(story.checks) - len(failed)} of {len(story.checks)} checks ok"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 0 if story.checks and not failed and not story.skipped else 1
