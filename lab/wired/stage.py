"""What the wired story needs: the campus with an appliance in it, agents at desks, and eyes at the ports."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from est import csr
from lab.logins import pem_of
from lab.stage import Stage
from lab.story import Process, Story
from lab.wired.campus import NAS, Ports, WiredCampus
from lab.wired.host import VLANS, Host, PlacedCast
from lab.wired.hostapd import RadiusServer

POLICY: Final = f"""\
version = 2

[vlans]
onboarding = {VLANS["onboarding"]}
infrastructure = {VLANS["infrastructure"]}
research = {VLANS["rnd"]}
staff = {VLANS["hr"]}
guest = {VLANS["guest"]}

[defaults]
unmapped = "guest"
stale = "reject"
guest_vlan = "guest"

[mac_bypass]
vlan = "onboarding"

[[rule]]
name = "identity proxies"
credential = ["proxy"]
vlan = "infrastructure"

[[rule]]
name = "research"
department = "R&D"
vlan = "research"

[[rule]]
name = "human resources"
department = "HR"
vlan = "staff"
"""
OWNERS: Final = (
    "ref,name,kind,department\nalice,Alice Example,person,R&D\nbob,Bob Example,person,HR\n"
    "carol,Carol Example,person,Astrology\n"
)
AGENTS: Final[Mapping[str, str]] = {
    "notes": "alice", "travel": "alice", "lab-book": "alice", "payroll": "bob", "stars": "carol",
}  # fmt: skip
TLS: Final = ("1.2", "1.3")
PAIR: Final = ("desk-a", "desk-c")
"""Where something is shown on both TLS versions at once, in this order."""
DAS_PORT: Final = 3799
MASA_PORT: Final = 9444
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - on a machine of its own
LOGIN_SECONDS: Final = 15.0
CHANGE_SECONDS: Final = 5.0


class WiredStage(Stage):
    """A wired campus, and what can be done and seen there."""

    cast: PlacedCast

    def __init__(self, out: Path, engine: str, story: Story) -> None:
        super().__init__(out, engine, "wpa_supplicant", story)
        self.cast = PlacedCast(out / "logs", self.environment)
        self.campus = WiredCampus(out / "campus", self.cast, one_machine=engine == "embedded")
        self.took: list[float] = []
        self.server: Process | None = None

    def close(self) -> None:
        """Ends every process and every machine."""
        self.cast.stop()
        self.campus.close()

    @property
    def inside(self) -> str:
        return f"nsenter --net --target {self.campus.server.pid} "

    def sights(self) -> str:
        desk = self.host("desk-a")
        inside = f"nsenter --net --mount --target {self.campus.switch.pid}"
        return (
            super().sights()
            + f"""
  {inside} bridge link
  {inside} hostapd_cli -p {shlex.quote(str(self.campus.control))} -i {desk.port} all_sta
  nsenter --net --mount --target {desk.machine.pid} ping 10.66.{VLANS["rnd"]}.2
  nsenter --net --mount --target {desk.machine.pid} {shlex.join(desk.wpa_command("status"))}
  tail -f {shlex.quote(str(self.out / "campus" / "switch" / "hostapd.log"))}"""
        )

    def stand_up(self) -> None:
        story = self.story
        with story.step("A switch, a machine in every VLAN; the appliance stands in onboarding and infrastructure."):
            self.campus.stand_up()
            self.admin("init", "--trust-domain", "campus.example", "--org", "Example University")
            self.start_appliance()
            self.at_once([self.add_maker, self.add_nas, self.add_policy, self.add_owners])
            self.campus.start_ports(self.ports())
            assert self.campus.agent is not None
            story.say(f"  switch: {self.campus.agent.wait_for('ready', 1)['switch']}")

    def add_maker(self) -> None:
        """The manufacturer of the proxy, and its MASA on the appliance's machine."""
        maker = self.maker("acme")
        self.lab("factory", "--dir", maker, "--serial", "acme-0001", "--masa-url", f"127.0.0.1:{MASA_PORT}")
        self.masa(maker, "masa-acme", MASA_PORT)
        self.admin(
            "manufacturers", "add", maker / "manufacturer" / "ca.pem", "--name", "acme",
            "--masa", f"https://127.0.0.1:{MASA_PORT}",
            "--masa-anchors", maker / "manufacturer" / "masa-tls-ca.pem",
        )  # fmt: skip

    def add_policy(self) -> None:
        (self.out / "policy.toml").write_text(POLICY)
        self.admin("policy", "publish", self.out / "policy.toml", "--comment", "wired lab")

    def add_owners(self) -> None:
        """Owners by their file, each with a key of their own."""
        (self.out / "owners.csv").write_text(OWNERS)
        self.admin("owners", "import", self.out / "owners.csv", "--confirm")
        self.owner_ids = {row["ref"]: row["identifier"] for row in self.admin("owners", "list")}
        self.at_once([partial(self.equip, ref) for ref in self.owner_ids])

    def start_appliance(self, *more: str) -> None:
        """The appliance in its machine, RADIUS with it."""
        place = self.campus.server_address
        radsec = {} if self.engine == "embedded" else {"radius.radsec_host": place}
        settings = radsec | {
            "radius.engine": self.engine, "radius.host": place, "web.host": EVERYWHERE,
            "web.decision_host": "127.0.0.1", "registrar.announce": "true",
            "registrar.announce_interfaces": ",".join(f"srv{VLANS[one]}" for one in ("onboarding", "infrastructure")),
        }  # fmt: skip
        self.server = self.cast.start(
            "appliance",
            [
                sys.executable, "-m", "appliance", "run", "--home", self.home, "-o", "json",
                *(f"--set={name}={value}" for name, value in settings.items()), *more,
            ],
        )  # fmt: skip
        found = self.server.wait_for("ready", 60)["listeners"]
        self.listeners = {name: where.replace(EVERYWHERE, "127.0.0.1") for name, where in found.items() if where}

    def add_nas(self) -> None:
        """hostapd asks with a shared secret; the port agent with a certificate, where it is not on the same machine."""
        self.admin(
            "nas", "add", NAS, self.campus.own_address, "--secret-file", self.secret_file(),
            "--coa-port", str(DAS_PORT), "--profile", "reauthenticate",
        )  # fmt: skip
        if self.engine != "embedded":
            key = ec.generate_private_key(ec.SECP256R1())
            self.nas_key.touch(0o600)
            self.nas_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            request = x509.load_der_x509_csr(csr.build(subject=x509.Name([]), key=key))
            (self.out / "nas.csr").write_bytes(request.public_bytes(Encoding.PEM))
            self.admin("nas", "certify", NAS, "--csr", self.out / "nas.csr", "--out", self.out / "nas.pem")

    @property
    def nas_key(self) -> Path:
        return self.out / "nas.key.pem"

    def ports(self) -> Ports:
        host, _, port = self.listeners["radius"].rpartition(":")
        # FreeRADIUS takes accounting beside authentication, and tells the appliance
        accounting = self.listeners.get("accounting", "").rpartition(":")[2] or "1813"
        server = RadiusServer(host, int(port), int(accounting), self.secret)
        if self.engine == "embedded":
            return Ports(server, {"over": "loopback", "port": int(port), "secret": self.secret}, self.secret, DAS_PORT)
        anchors = self.out / "infrastructure-ca.pem"
        anchors.write_bytes(pem_of(self.ca("infrastructure")))
        radsec = {
            "over": "radsec", "address": host, "port": 2083, "certificate": str(self.out / "nas.pem"),
            "key": str(self.nas_key), "anchors": str(anchors), "server_name": "radius.campus.example",
        }  # fmt: skip
        return Ports(server, radsec, self.secret, DAS_PORT)

    def ca(self, role: str) -> Path:
        path = self.out / f"ca-{role}.cer"
        if not path.exists():
            port = self.listeners["pki"].rpartition(":")[2]

            def fetch() -> bytes:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ca/{role}.cer", timeout=10) as answer:
                    return bytes(answer.read())

            path.write_bytes(self.campus.server.run(fetch))
        return path

    def start_proxy(self, host: Host) -> Process:
        """The identity proxy, on its own machine; its supplicant waits for something to log in with."""
        state, device = self.out / "proxy", self.device("acme")
        state.mkdir(mode=0o700)
        block = state / "wpa_supplicant.conf"
        block.touch(0o600)
        host.start_supplicant(block)
        settings = {
            "idevid_certificate": device / "idevid.pem", "idevid_key": device / "idevid.key.pem",
            "masa_anchors": device / "masa-anchors.pem", "interfaces": "eth0", "socket_mode": 438,
            "allow_root_agents": "true", "give_up_seconds": 60,
            "supplicant_command": shlex.join(host.wpa_command("reconfigure")),
        }  # fmt: skip
        command = [sys.executable, "-m", "appliance", "proxy", "run", "--state", str(state), "-o", "json"]
        return self.cast.start(
            "proxy", [*command, *(f"--set=proxy.{name}={value}" for name, value in settings.items())], on=host.machine
        )

    def begin_both(self, *agents: str) -> None:
        for name, agent, version in zip(PAIR, agents, TLS, strict=True):
            self.host(name).login(self.block(agent), version)

    def log_in_both(self, one: str, other: str, *vlans: str) -> list[str]:
        self.begin_both(one, other)
        return self.both(self.landing, *vlans)

    def both(self, work: Callable[..., Any], *each: str) -> list[Any]:
        """Do the same at both desks, at the same time; `each` is one argument for each desk."""
        desks = [self.host(name) for name in PAIR]
        given = [(one,) for one in each] if each else [(), ()]
        return self.at_once([
            lambda desk=desk, more=more: work(desk, *more)  # type: ignore[misc]
            for desk, more in zip(desks, given, strict=True)
        ])  # fmt: skip

    def host(self, name: str) -> Host:
        return self.campus.hosts[name]

    def block(self, agent: str) -> Path:
        return self.agents[agent].folder / "wpa_supplicant.conf"

    def fresh(self, host: Host) -> None:
        """Nobody is at the port, and nothing of an earlier login waits there."""
        host.stop_supplicant()
        host.cable.pull()
        self.eventually(lambda: self.campus.hostapd(host), "unknown", 3)
        host.cable.plug()

    def port_state(self, host: Host) -> str:
        return f"reaches {host.reach()}, hostapd: {self.campus.hostapd(host)}"

    def lands(self, check: str, vlan: str, host: Host) -> None:
        """A check that needs no login."""
        self.story.check(check, f"reaches {vlan}", f"reaches {self.where(host, vlan)}")

    def where(self, host: Host, vlan: str) -> str:
        """Where a host is, when it had its time to get to that VLAN."""
        return self.eventually(host.reach, vlan, LOGIN_SECONDS)

    def landing(self, host: Host, vlan: str) -> str:
        """Where a host is after its login came to its end, and over which TLS version it was."""
        deadline = time.monotonic() + LOGIN_SECONDS
        while (version := host.tls_version()) != host.wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        reached = self.eventually(host.reach, vlan, max(1.0, deadline - time.monotonic()))
        return f"TLS {version or 'unknown'}: {reached}"

    def within(self, host: Host, vlan: str) -> str:
        """Where an open session is after a change, and whether that was in time."""
        begun = time.monotonic()
        reached = self.eventually(host.reach, vlan, CHANGE_SECONDS)
        self.took.append(time.monotonic() - begun)
        return f"{reached} within {CHANGE_SECONDS:.0f} s" if reached == vlan else reached

    def eventually(self, observe: Callable[[], str], wanted: str, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while (seen := observe()) != wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        return seen

    @contextmanager
    def paused(self, *, radius: bool) -> Iterator[None]:
        """The appliance hangs, and with `radius` the RADIUS server too: nobody answers, nobody refuses."""
        assert self.server is not None
        members = [self.server.popen.pid]
        if radius:
            members += _children(self.server.popen.pid)
        for pid in members:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(members):
                os.kill(pid, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(one) for one in found]
