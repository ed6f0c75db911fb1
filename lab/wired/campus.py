"""The wired campus: a switch of real hostapd ports, a machine per VLAN, and hosts that are plugged in. Needs root.

    network 10.66.1.0/24     switch -- server      RADIUS, RFC 5176
    VLAN n: 10.66.n.0/24     server (.1, onboarding and infrastructure only), probe (.2), hosts (.50 and up)

Every host has an address in every VLAN's network, so that nothing but the port decides whom it reaches, and no DHCP
server is needed. Machines are network namespaces that end with this process.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from lab import topology
from lab.story import Process, find
from lab.topology import Cable, Machine
from lab.wired import fabric, hostapd
from lab.wired.host import VLANS, Host, PlacedCast, wait_until

HOSTS: Final = ("proxy", "desk-a", "desk-b", "desk-c")
"""What stands at the ports swp1, swp2, ...; MAC bypass is on at the first."""
NAS: Final = "lab-switch"
SWITCH_ADDRESS, SERVER_ADDRESS = "10.66.1.2", "10.66.1.1"
PROGRAMS: Final[Mapping[str, str]] = MappingProxyType(
    {"hostapd": "hostapd", "wpa_supplicant": "wpasupplicant", "wpa_cli": "wpasupplicant", "ping": "iputils-ping"}
)


def why_not() -> str:
    """Why the wired campus cannot stand here; empty if it can."""
    missing = sorted({package for name, package in PROGRAMS.items() if find(name) is None})
    reasons = [topology.why_not()] if topology.why_not() else []
    if missing:
        reasons.append(f"not installed: {', '.join(missing)} (Debian: apt-get install {' '.join(missing)})")
    return "; ".join(reasons)


@dataclass(frozen=True, slots=True)
class Ports:
    """What the switch needs to know of its RADIUS server. `bypass` is the port agent's way for MAC bypass, if any."""

    server: hostapd.RadiusServer
    bypass: Mapping[str, object] | None
    das_secret: str
    das_port: int


class WiredCampus:
    """All machines and the switch. `stand_up` first; `start_ports` once the RADIUS server is known.

    With `one_machine` the appliance runs on the switch itself, so that RADIUS goes over loopback.
    """

    def __init__(self, folder: Path, cast: PlacedCast, *, one_machine: bool) -> None:
        self._folder = folder
        self._cast = cast
        self._machines = contextlib.ExitStack()
        self._one_machine = one_machine
        self.hosts: dict[str, Host] = {}
        self.probes: dict[str, Machine] = {}
        self.control = folder / "hostapd"
        self.agent: Process | None = None

    def stand_up(self) -> None:
        """Machines, cables and VLANs; all access ports are closed, nothing is plugged in there."""
        keep = self._machines
        folder = self._folder
        for one in (folder, self.control, folder / "port-agent"):
            one.mkdir(parents=True, exist_ok=True)
        self.switch = keep.enter_context(Machine("switch"))
        self.server = self.switch if self._one_machine else keep.enter_context(Machine("server"))
        self._cast.home = self.server
        self.fabric = fabric.probe(lambda command: _run_on(self.switch, command))
        self.fabric.set_up(sorted(VLANS.values()))
        if not self._one_machine:
            Cable(self.server, "mgmt", self.switch, "mgmt").plug()
            self.server.address("mgmt", f"{SERVER_ADDRESS}/24")
            self.switch.address("mgmt", f"{SWITCH_ADDRESS}/24")
        # an address answers only at its own interface, so that no VLAN reaches the server's place in another
        self.server.call("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore")
        for name in ("onboarding", "infrastructure"):
            self._attach(self.server, f"srv{VLANS[name]}", f"up{VLANS[name]}", name, 1)
        for name, vlan in VLANS.items():
            self.probes[name] = keep.enter_context(Machine(f"probe-{name}"))
            self._attach(self.probes[name], "eth0", f"probe{vlan}", name, 2)
        for number, name in enumerate(HOSTS, 1):
            host = Host(name, number, self.switch, folder / name, self._cast)
            keep.callback(host.close)
            self.hosts[name] = host

    def _attach(self, machine: Machine, interface: str, port: str, vlan: str, last: int) -> None:
        cable = Cable(machine, interface, self.switch, port)
        self.fabric.attach(port, VLANS[vlan])
        machine.address(interface, f"10.66.{VLANS[vlan]}.{last}/24")
        cable.plug()

    @property
    def own_address(self) -> str:
        """The switch's address towards the RADIUS server."""
        return "127.0.0.1" if self._one_machine else SWITCH_ADDRESS

    @property
    def server_address(self) -> str:
        """The RADIUS server's address."""
        return "127.0.0.1" if self._one_machine else SERVER_ADDRESS

    def start_ports(self, told: Ports) -> None:
        """hostapd and the port agent, ready for stations."""
        files = self._folder / "switch"
        files.mkdir(exist_ok=True)
        vlan_file = files / "vlans"
        vlan_file.write_text(hostapd.vlan_lines(sorted(VLANS.values())), encoding="ascii")
        names: list[Path] = []
        for host in self.hosts.values():
            names.append(files / f"{host.port}.conf")
            names[-1].touch(0o600)
            names[-1].write_text(
                hostapd.configuration(
                    host.port, host.number, nas=NAS, own_address=self.own_address, server=told.server,
                    control=self.control, vlan_file=vlan_file,
                ),
                encoding="ascii",
            )  # fmt: skip
        program = find("hostapd") or "hostapd"
        self._cast.start("hostapd", [program, "-t", "-f", files / "hostapd.log", *names], on=self.switch)
        wait_until(
            lambda: all((self.control / host.port).exists() for host in self.hosts.values()), 10,
            f"hostapd does not start, see {files / 'hostapd.log'}",
        )  # fmt: skip
        config = files / "port-agent.json"
        config.touch(0o600)
        config.write_text(json.dumps(self._agent_config(told), indent=1), encoding="utf-8")
        self.agent = self._cast.start("port-agent", [sys.executable, "-m", "lab.port_agent", config], on=self.switch)
        self.agent.wait_for("ready", 15)

    def _agent_config(self, told: Ports) -> dict[str, Any]:
        return {
            "nas": NAS,
            "ports": [
                {"interface": host.port, "number": host.number, "mac_bypass": host.name == HOSTS[0]}
                for host in self.hosts.values()
            ],
            "vlans": sorted(VLANS.values()),
            "control": str(self.control),
            "run": str(self._folder / "port-agent"),
            "mac_bypass": told.bypass,
            "das_address": self.own_address,
            "das_port": told.das_port,
            "das_client": self.server_address,
            "das_secret": told.das_secret,
            "filters_vlans": isinstance(self.fabric, fabric.FilteringBridge),
            "locks_ports": self.fabric.locks,
        }

    def hostapd(self, host: Host) -> str:
        """What hostapd says of a host: `authorized, VLAN n`, `not authorized`, or `unknown`."""
        text = self.switch.call(
            find("hostapd_cli") or "hostapd_cli", "-p", self.control, "-i", host.port, "sta", host.station
        )
        if host.station not in text:
            return "unknown"
        authorized, vlan = hostapd.read_station(text)
        return f"authorized, VLAN {vlan}" if authorized else "not authorized"

    def close(self) -> None:
        """All machines are gone; programs in them were ended before."""
        self._machines.close()


def _run_on(machine: Machine, command: Sequence[str]) -> None:
    try:
        machine.call(*command)
    except topology.TopologyFailed as error:
        raise fabric.FabricFailed(str(error)) from error
