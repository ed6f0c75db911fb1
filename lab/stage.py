"""Behind the demonstration: its programs, its files, its logins; what is told with them stands in lab.demo."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shlex
import socket
import sys
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab.logins import Login, log_in
from lab.story import Cast, DemoFailed, Process, Story


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


class Stage:
    """A folder, a cast of processes, and what can be done with them."""

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
        self.radius_name = "radius.campus.example"
        self._turns = itertools.count()
        self.statements: dict[str, Path] = {}
        self.socket = out / "proxy" / "agent.sock"

    def close(self) -> None:
        """Ends every process of the story."""
        self.cast.stop()

    @property
    def inside(self) -> str:
        """What goes before a command that talks to the appliance's own ports."""
        return ""

    def sights(self) -> str:
        """Commands for a visitor while everything still runs."""
        agent = next(iter(self.agents.values()))
        home, chain, root = (shlex.quote(str(path)) for path in (self.home, agent.chain, agent.folder / "root.pem"))
        return f"""
  .venv/bin/appliance --home {home} owners list
  .venv/bin/appliance --home {home} access log
  .venv/bin/appliance --home {home} policy explain --cert {chain}
  .venv/bin/appliance --home {home} pledges show acme-0001
  {self.inside}curl --cacert {root} https://{self.listeners["console"]}/docs/"""

    def at_once(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each of these answers, all done at the same time; raises what the first of them, in order, raised.

        An interrupt ends the cast first: what is under way would not hear of it.
        """
        with ThreadPoolExecutor(len(works)) as pool:
            under_way = [pool.submit(work) for work in works]
            try:
                return [one.result() for one in under_way]
            except KeyboardInterrupt:
                self.cast.stop()
                raise

    # -- programs

    def program(self) -> list[str]:
        """The appliance's command line in the interpreter of this story."""
        return [sys.executable, "-m", "appliance"]

    def appliance(self, *arguments: str | Path, check: bool = True) -> Any:
        """One command line of the appliance; its JSON answer."""
        command = [sys.executable, "-m", "appliance", *map(str, arguments), "-o", "json"]
        done = self.cast.run(command)
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

    # -- files and logins

    def lab(self, *arguments: str | Path) -> Any:
        """One `python -m lab` command; its JSON answer."""
        command = [sys.executable, "-m", "lab", *map(str, arguments)]
        done = self.cast.run(command)
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

    def equip(self, ref: str) -> Any:
        """An owner's approval key, made by the owner and registered by the administrator; answers what keygen says."""
        folder = self.out / "owners" / ref
        made = self.appliance("owner", "keygen", "--out", folder, "--ref", ref, "--trust-domain", "campus.example")
        self.statements[ref] = Path(made["statement"])
        self.admin("owners", "add-key", ref, made["statement"])
        return made

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
        tls_version: Literal["1.2", "1.3"] = "1.2" if next(self._turns) % 2 else "1.3"
        return log_in(
            self.supplicant,
            self.listeners["radius"],
            self.secret,
            chain=chain,
            key=key,
            root=self.ca("root"),
            server_name=self.radius_name,
            tls_version=tls_version,
        )

    def vlan(self, name: str) -> str:
        """Where an agent lands now: its VLAN, `reject`, or what went wrong."""
        agent = self.agents[name]
        return self.login(agent.chain, agent.key).word

    def must_get_in(self, name: str) -> None:
        """Being turned away later says something only of an agent that gets in now; raises DemoFailed."""
        word = self.vlan(name)
        if not word.isdecimal():
            raise DemoFailed(f"{name} should get in before it is turned away, and gets: {word}")


def free_port() -> int:
    """A TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
