"""From cable to VLAN, told as it happens: every step a real protocol between separate processes on loopback.

The story is in `Demo.tell`; what it promises are the checks. Each check's observation comes from the wire, from a
file that another program wrote, or from the supplicant, never from the appliance's own decision object alone.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from est.errors import Refusal
from lab import credentials
from lab.stage import Agent, Stage, free_port
from lab.story import DemoFailed, Story, find, versions

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
NO_FREERADIUS = "FreeRADIUS is not installed: apt-get install freeradius freeradius-rest eapoltest"


class Tale(Protocol):
    """What is told, and the stage that it is told on."""

    @property
    def stage(self) -> Stage: ...

    def tell(self) -> None:
        """The whole of it; raises DemoFailed when it cannot go on."""
        ...


class Demo:
    """The story of this module; others begin with its first acts."""

    def __init__(self, stage: Stage, makers: Mapping[str, tuple[str, ...]] = MAKERS) -> None:
        """`makers`: manufacturers whose MASAs are on line, and how these misbehave."""
        self.stage = stage
        self.makers = makers

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
        stage, story, out = self.stage, self.stage.story, self.stage.out
        with story.step("Acme makes a device; its MASA goes on line. The campus sets up its appliance."):
            *makers, _ = stage.at_once([*(partial(self.make, maker) for maker in self.makers), self.start])
            (out / "policy.toml").write_text(POLICY)
            (out / "owners.csv").write_text(OWNERS)
            secret = stage.secret_file()
            stage.at_once([
                *(partial(stage.admin, *one) for one in makers),
                partial(stage.admin, "nas", "add", "lab-switch", "127.0.0.1", "--secret-file", secret),
                partial(stage.admin, "policy", "publish", out / "policy.toml", "--comment", "demo"),
                partial(stage.admin, "owners", "import", out / "owners.csv", "--confirm"),
            ])  # fmt: skip
            stage.owner_ids = {row["ref"]: row["identifier"] for row in stage.admin("owners", "list")}
            story.say(f"  appliance ready: {', '.join(f'{k} {v}' for k, v in stage.listeners.items() if v)}")
        with story.step("Alice (R&D) and Bob (HR) make their approval keys; the admin registers them."):
            equipped = stage.at_once([partial(stage.equip, ref) for ref in stage.owner_ids])
            for ref, made in zip(stage.owner_ids, equipped, strict=True):
                story.say(f"  {ref}: key {made['jkt'][:16]}..., {stage.owner_ids[ref]}")

    def start(self) -> None:
        """The appliance, from nothing to its ready line."""
        stage = self.stage
        stage.admin("init", "--trust-domain", "campus.example", "--org", "Example University")
        server = stage.cast.start(
            "appliance",
            [
                sys.executable, "-m", "appliance", "run", "--home", stage.home, "-o", "json",
                "--set", f"radius.engine={stage.engine}",
                *(f"--set=web.{port}_port=0" for port in ("device", "console", "decision", "pki")),
                "--set", "radius.port=0",
            ],
        )  # fmt: skip
        stage.listeners = server.wait_for("ready", 30)["listeners"]

    def make(self, maker: str) -> tuple[str | Path, ...]:
        """A manufacturer with one device and its MASA; answers the command that makes it known to the appliance."""
        stage, folder, port = self.stage, self.stage.maker(maker), free_port()
        stage.lab("factory", "--dir", folder, "--serial", f"{maker}-0001", "--masa-url", f"127.0.0.1:{port}")
        stage.masa(folder, f"masa-{maker}", port, *self.makers[maker])
        return (
            "manufacturers", "add", folder / "manufacturer" / "ca.pem", "--name", maker,
            "--masa", f"https://127.0.0.1:{port}", "--masa-anchors", folder / "manufacturer" / "masa-tls-ca.pem",
        )  # fmt: skip

    def take_in_the_proxy(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("A proxy is plugged in. It knows only its IDevID and its maker's anchors."):
            begun = time.monotonic()
            proxy = stage.proxy("proxy", "acme")
            found = proxy.wait_for("step", 30, {"step": "registrars-found"})
            story.say(f"  {found['offers']} registrar(s) found by {found['how']} after {found['ms']:.0f} ms")
            ready = proxy.wait_for("ready", 60)
            stage.socket = Path(ready["socket"])
            where = ready["registrar"]
            story.check("proxy-discovered", f"mdns, {stage.listeners['device']}", f"{found['how']}, {where}")
            story.say(f"  from link up to LDevID: {time.monotonic() - begun:.1f} s")
            state, device = stage.out / "proxy", stage.device("acme")
            observed = credentials.voucher_facts(
                state, device / "masa-anchors.pem", (stage.ca("root"), stage.ca("devices"))
            )
            story.check("voucher-verified", "serial acme-0001, nonce as sent, pins this campus", observed)
            # the proxy tells how its enrolment went over a new connection, right after it is ready
            told = proxy.wait_for("step", 10, {"step": "enroll-status-sent"})
            story.say(f"  enrolment told to the registrar: {told['code']}")
            subject = credentials.verified_uri(state / "ldevid.pem", stage.ca("devices"), stage.ca("root"))
            pledge = stage.admin("pledges", "show", "acme-0001")
            story.check("proxy-enrolled", f"confirmed as {ready['proxy']}", f"{pledge['state']} as {subject}")

    def give_agents_their_credentials(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("Four agents ask their proxy. Each owner reads the request and signs exactly that."):
            agents = [Agent(name, owner, stage.out / "agents" / name) for name, owner in AGENTS.items()]
            took = stage.at_once([partial(self.ask, one) for one in agents])
            for agent, seconds in zip(agents, took, strict=True):
                stage.agents[agent.name] = agent
                story.say(f"  {agent.name:<10} for {agent.owner:<6} in {seconds:.1f} s")
            agent = stage.agents["notes"]
            observed = credentials.dual_facts(
                agent.chain,
                stage.ca("root"),
                stage.statements["alice"],
                stage.owner_ids["alice"],
                "https://ids.campus.example/v1",
                backdating_seconds=300,
            )
            alice = stage.owner_ids["alice"]
            story.check(
                "agent-credential-dual", f"agent key and owner key of {alice}, approval verified offline", observed
            )

    def ask(self, agent: Agent) -> float:
        """An agent asks for its credential and gets it; answers the seconds that it took."""
        begun = time.monotonic()
        self.stage.request(agent, self.stage.owner_command(agent.owner))
        return time.monotonic() - begun

    def log_in(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("The agents' hosts log in at a switch port (EAP-TLS)."):
            research, staff = stage.at_once([partial(stage.vlan, "notes"), partial(stage.vlan, "payroll")])
            story.check("vlan-rnd", "20", research)
            story.check("vlan-hr", "30", staff)

    def change_owners(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("People move, leave and are suspended. No certificate changes."):
            stage.admin("owners", "move", "alice", "--department", "HR")
            story.eventually("owner-moves-department", "30", lambda: stage.vlan("notes"), CHANGE_SECONDS)
            stage.admin("owners", "move", "alice", "--department", "R&D")
            stage.admin("owners", "move", "bob", "--department", "Astrology")
            story.eventually("unmapped-department-guest", "99", lambda: stage.vlan("payroll"), CHANGE_SECONDS)
            stage.admin("owners", "move", "bob", "--department", "HR")
            stage.must_get_in("travel")
            stage.admin("agents", "revoke", credentials.uri(stage.agents["travel"].chain), "--reason", "retired")
            story.eventually("revoked-agent-rejected", "reject", lambda: stage.vlan("travel"), CHANGE_SECONDS)
            stage.must_get_in("screening")
            stage.admin("owners", "suspend", "bob")
            story.eventually("suspended-owner-rejected", "reject", lambda: stage.vlan("screening"), CHANGE_SECONDS)
            stage.admin("owners", "resume", "bob")

    def turn_strangers_away(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("Certificates that look right, and are not an agent's of this campus."):
            stranger = credentials.forge_stranger(stage.agents["notes"].chain, stage.out / "stranger")
            proxy = stage.out / "proxy" / "ldevid.pem", stage.out / "proxy" / "ldevid.key.pem"
            forged, not_an_agent = stage.at_once([partial(stage.login, *stranger), partial(stage.login, *proxy)])
            story.check("stranger-certificate-rejected", "reject", forged.word)
            story.check("proxy-certificate-not-an-agent", "reject", not_an_agent.word)

    def refuse_bad_approvals(self) -> None:
        story = self.stage.story
        with story.step("Rogue agents: they approve themselves, borrow an approval, use one twice."):
            answers = self.stage.at_once([partial(self.trick, one) for one in TRICKS])
            for (trick, reason), answer in zip(TRICKS.items(), answers, strict=True):
                story.check(f"{trick}-refused", reason, f"{answer['status']} {answer['reason']}")

    def trick(self, name: str) -> Any:
        """A rogue agent tries one trick; answers how it was received."""
        return self.stage.lab(
            "rogue", "--socket", self.stage.socket, "--trick", name, "--owner", self.stage.owner_ids["alice"],
            "--owner-key", self.stage.out / "owners" / "alice" / "owner.key.pem",
        )  # fmt: skip

    def refuse_bad_vouchers(self) -> None:
        story = self.stage.story
        with story.step("Two more pledges, whose vouchers were made by a stranger and changed on the way."):
            foreign, tampered = self.stage.at_once([self.meet_foreign_signer, self.meet_tampered_voucher])
            story.check("foreign-voucher-refused", VOUCHER_REASONS["shady"], foreign)
            story.check("tampered-voucher-refused", VOUCHER_REASONS["sloppy"], tampered)

    def meet_foreign_signer(self) -> str:
        """What a pledge makes of a voucher that a stranger signed."""
        stage = self.stage
        proxy = stage.proxy("proxy-shady", "shady")
        refused = proxy.wait_for("step", 60, {"step": "voucher-refused", "server": stage.listeners["device"]})
        told = proxy.wait_for("step", 10, {"step": "voucher-status-sent"})
        proxy.stop()
        return f"proxy: {refused['code']}, status {str(told['status']).lower()}, {stage.ldevid('proxy-shady')}"

    def meet_tampered_voucher(self) -> str:
        """What registrar and pledge make of a voucher that was changed on the way."""
        stage, port = self.stage, int(self.stage.listeners["device"].rpartition(":")[2])
        proxy = stage.proxy("proxy-sloppy", "sloppy")
        refused = proxy.wait_for("step", 60, {"step": "attempt-failed", "port": port})
        proxy.stop()
        timeline = stage.admin("pledges", "show", "sloppy-0001")["timeline"]
        noticed = next((step["code"] for step in timeline if step["step"] == "masa-failed"), "nothing")
        return f"registrar: {noticed}, proxy: {refused['code']}, {stage.ldevid('proxy-sloppy')}"

    def table(self) -> None:
        """The end of the story: who got what, as the supplicants saw it, and why, as an administrator is told."""
        stage, story = self.stage, self.stage.story
        departments = {row["ref"]: row["department"] for row in stage.admin("owners", "list")}
        rows = [("AGENT", "OWNER", "DEPARTMENT", "CREDENTIAL SERIAL", "VLAN", "WHY")]
        agents = stage.agents.values()
        logins = stage.at_once([partial(stage.login, one.chain, one.key) for one in agents])
        serials = [credentials.serial(one.chain) for one in agents]
        explained = stage.at_once([partial(stage.admin, "policy", "explain", "--serial", one) for one in serials])
        for agent, login, serial, decided in zip(agents, logins, serials, explained, strict=True):
            why = f"{decided['reason_code']}: {decided['reason']}"
            rows.append((agent.name, agent.owner, departments[agent.owner], serial[:16] + "...", login.word, why))
        widths = [max(len(row[at]) for row in rows) for at in range(5)]
        story.say()
        for row in rows:
            story.say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]))


def main(arguments: Sequence[str]) -> int:
    """`python -m lab demo`: 0 only if every check is ok and none that the flags ask for was skipped."""
    parser = argparse.ArgumentParser(prog="lab/demo", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument(
        "--radius",
        choices=("embedded", "freeradius"),
        help="who speaks RADIUS (default: embedded; with --wired freeradius, where it is installed)",
    )
    parser.add_argument("--wired", action="store_true", help="on switch ports guarded by hostapd; needs root on Linux")
    parser.add_argument(
        "--keep", action="store_true", help="leave everything running until Ctrl-C, say how to look around"
    )
    parser.add_argument("--models", action="store_true", help="tell the issuance models, each from agent to VLAN")
    parser.add_argument("--out", type=Path, help="folder for everything (default: a new one under lab-output)")
    options = parser.parse_args(arguments)
    try:
        if options.report is not None:
            options.report.touch()  # rather now than after the whole story
        out = new_folder(options.out)
    except OSError as refused:
        print(f"lab/demo: {refused.filename}: {refused.strerror}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, interrupt)
    story = Story()
    engine = options.radius or ("freeradius" if options.wired and find("freeradius") else "embedded")
    if options.wired:
        supplicant = "wpa_supplicant"
    else:
        supplicant = "eapol_test" if shutil.which("eapol_test") else "project"
    story.say(f"From cable to VLAN. RADIUS: {engine}; supplicant: {supplicant}; everything lies in {out}")
    if engine == "freeradius" and not find("freeradius") and (options.models or not options.wired):
        story.skip("freeradius", NO_FREERADIUS)
        return _finish(story, options.report, supplicant)
    if options.models:
        from lab.models import Models, ModelsStage  # it is told in this module's words

        models = Models(ModelsStage(out, engine, supplicant, story))
        return play(models, options.report, keep=options.keep)
    if not options.wired:
        return play(Demo(Stage(out, engine, supplicant, story)), options.report, keep=options.keep)
    from lab.wired import campus  # not on the way of a demonstration without it
    from lab.wired.stage import WiredStage
    from lab.wired.story import WiredStory, without

    reason = campus.why_not()
    for name, why in without(options.radius, reason, "" if find("freeradius") else NO_FREERADIUS).items():
        story.skip(name, why)
    if reason or (engine == "freeradius" and not find("freeradius")):
        return _finish(story, options.report, supplicant)
    return play(WiredStory(WiredStage(out, engine, story)), options.report, keep=options.keep)


def new_folder(wanted: Path | None) -> Path:
    """An empty folder for everything. Raises OSError, also when there is something in it already."""
    out = (wanted or Path("lab-output") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")).absolute()
    out.mkdir(parents=True, mode=0o755, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(errno.ENOTEMPTY, "the folder is not empty", str(out))
    return out


def play(tale: Tale, report: Path | None, *, keep: bool = False) -> int:
    """Tell the story, report how it went, and end every process; answers the exit status."""
    stage = tale.stage
    story = stage.story
    try:
        try:
            tale.tell()
        except (DemoFailed, Refusal, OSError, ValueError, LookupError, subprocess.SubprocessError) as failed:
            # whatever a program of the lab did: the report tells it, and how far the story came
            story.check("story-told", "to its end", str(failed) or type(failed).__name__)
        status = _finish(story, report, stage.supplicant)
        if keep and stage.agents:
            look_around(stage)
        return status
    except KeyboardInterrupt:
        story.say("\ninterrupted")
        return 130
    finally:
        heeded = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
        try:
            stage.close()
        finally:
            signal.signal(signal.SIGINT, heeded)


def interrupt(number: int, frame: object) -> NoReturn:
    """SIGTERM ends the story like Ctrl-C: with all its processes."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def look_around(stage: Stage) -> None:
    """Wait for Ctrl-C, or until nothing runs any more."""
    stage.story.say(f"\nEverything keeps running until Ctrl-C. Look around:{stage.sights()}")
    with contextlib.suppress(KeyboardInterrupt):
        while stage.cast.running():
            time.sleep(0.5)


def _finish(story: Story, report: Path | None, supplicant: str) -> int:
    programs = {"freeradius": _said("freeradius", "-v"), "supplicant": supplicant}
    if supplicant == "wpa_supplicant":
        programs |= {"supplicant": _said("wpa_supplicant", "-v"), "hostapd": _said("hostapd", "-v")}
    found = versions(*programs.items())
    if report is not None:
        report.write_text(json.dumps(story.report(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = [check.name for check in story.checks if not check.ok]
    story.say()
    story.say(
        f"{len(story.checks) - len(failed)} of {len(story.checks)} checks ok"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 0 if story.checks and not failed and not story.skipped else 1


def _said(program: str, *arguments: str) -> str:
    """The first line that a program says of its version."""
    path = find(program)
    if path is None:
        return "not installed"
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0]
