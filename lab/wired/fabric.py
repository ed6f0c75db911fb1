"""The forwarding half of the lab's switch: bridges of this kernel, moved about with iproute2. Needs root.

Where the kernel filters VLANs on a bridge, one bridge carries them all and a port gets the VLAN as its untagged PVID;
elsewhere every VLAN is a bridge of its own. Either way a port in no VLAN forwards nothing. Where the kernel can lock a
port (since 5.16), frames of any station but the one that logged in are dropped by the bridge.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Final, Protocol

Run = Callable[[Sequence[str]], None]
FILTERING_BRIDGE: Final = "brvlan"


class FabricFailed(Exception):
    """iproute2 did not do what was asked; the text has its error output."""


def run_here(command: Sequence[str]) -> None:
    """Run a command on this machine. Raises FabricFailed."""
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        raise FabricFailed(f"{' '.join(command)}: {done.stderr.strip()}")


class Fabric(Protocol):
    """VLANs and the ports in them. `locks`: an open port forwards the frames of one station only."""

    locks: bool

    def set_up(self, vlans: Sequence[int]) -> None:
        """Make the VLANs, empty."""

    def attach(self, port: str, vlan: int) -> None:
        """Put a port into a VLAN for good, whoever is behind it: servers, other switches."""

    def open(self, port: str, vlan: int, station: str) -> None:
        """Put an access port into one VLAN and out of any other, for one station."""

    def close(self, port: str) -> None:
        """Take an access port out of every VLAN."""


class BridgePerVlan:
    """One bridge per VLAN; the port is enslaved to that of its VLAN."""

    def __init__(self, run: Run = run_here, *, locks: bool = True) -> None:
        self._run = run
        self.locks = locks

    def set_up(self, vlans: Sequence[int]) -> None:
        for vlan in vlans:
            self._run(("ip", "link", "add", bridge_of(vlan), "type", "bridge", "mcast_snooping", "0"))
            self._run(("ip", "link", "set", bridge_of(vlan), "up"))

    def attach(self, port: str, vlan: int) -> None:
        self._run(("ip", "link", "set", port, "master", bridge_of(vlan)))

    def open(self, port: str, vlan: int, station: str) -> None:
        self._run(("ip", "link", "set", port, "nomaster"))
        self.attach(port, vlan)
        if self.locks:
            _lock(self._run, port, station)

    def close(self, port: str) -> None:
        self._run(("ip", "link", "set", port, "nomaster"))


class FilteringBridge:
    """One bridge with VLAN filtering; a port that was just enslaved has no VLAN, because the default PVID is off."""

    def __init__(self, run: Run = run_here, *, locks: bool = True) -> None:
        self._run = run
        self.locks = locks

    def set_up(self, vlans: Sequence[int]) -> None:
        self._run((
            "ip", "link", "add", FILTERING_BRIDGE, "type", "bridge", "mcast_snooping", "0",
            "vlan_filtering", "1", "vlan_default_pvid", "0",
        ))  # fmt: skip
        self._run(("ip", "link", "set", FILTERING_BRIDGE, "up"))
        for vlan in vlans:  # hostapd wants an interface for every VLAN of its vlan_file
            self._run(("ip", "link", "add", bridge_of(vlan), "type", "bridge"))

    def attach(self, port: str, vlan: int) -> None:
        self._run(("ip", "link", "set", port, "master", FILTERING_BRIDGE))
        self._run(("bridge", "vlan", "add", "dev", port, "vid", str(vlan), "pvid", "untagged"))

    def open(self, port: str, vlan: int, station: str) -> None:
        self.close(port)
        self.attach(port, vlan)
        if self.locks:
            _lock(self._run, port, station, "vlan", str(vlan))

    def close(self, port: str) -> None:
        # leaving the bridge takes the port's VLANs and its forwarding entries with it
        self._run(("ip", "link", "set", port, "nomaster"))


def bridge_of(vlan: int) -> str:
    """The interface that stands for a VLAN."""
    return f"vl{vlan}"


def probe(run: Run = run_here) -> Fabric:
    """What this kernel can do, tried out with interfaces that are gone afterwards."""
    locks = False
    try:
        run(("ip", "link", "add", "tryport", "type", "veth", "peer", "name", "tryend"))
        try:
            run(("ip", "link", "add", "trybridge", "type", "bridge"))
            run(("ip", "link", "set", "tryport", "master", "trybridge"))
            run(("bridge", "link", "set", "dev", "tryport", "locked", "on"))
            locks = True
            run(("ip", "link", "set", "trybridge", "type", "bridge", "vlan_filtering", "1"))
            run(("bridge", "vlan", "add", "dev", "tryport", "vid", "20", "pvid", "untagged"))
            return FilteringBridge(run, locks=locks)
        finally:
            for name in ("trybridge", "tryport"):
                run(("ip", "link", "delete", name))
    except FabricFailed:
        return BridgePerVlan(run, locks=locks)


def describe(fabric: Fabric) -> str:
    """What the story says of the switch."""
    kind = "one bridge with VLAN filtering" if isinstance(fabric, FilteringBridge) else "one bridge per VLAN"
    return f"{kind}, {'one MAC address per open port' if fabric.locks else 'open ports are open to every MAC address'}"


def _lock(run: Run, port: str, station: str, *vlan: str) -> None:
    # the entry first: a locked port without it drops the station's own frames
    run(("bridge", "fdb", "replace", station, "dev", port, "master", "static", *vlan))
    run(("bridge", "link", "set", "dev", port, "locked", "on", "learning", "off"))
