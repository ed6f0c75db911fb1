"""The switch's bridges in the kernel: who reaches whom through a port that is closed, open, and moved. Needs root."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from lab import topology
from lab.topology import Cable, Machine
from lab.wired import fabric, links

WHY_NOT = topology.why_not()
STATION, OTHER = "02:66:00:00:00:0a", "02:66:00:00:00:0b"

pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.lab]


@dataclass
class Bench:
    switch: Machine
    fabric: fabric.Fabric
    host: Machine
    cable: Cable

    def reach(self) -> set[int]:
        return {vlan for vlan in (20, 30) if self._answers(f"10.66.{vlan}.2")}

    def comes_to(self, wanted: set[int]) -> bool:
        """A neighbour that did not answer is asked again after a second only, so it is looked at more than once."""
        deadline = time.monotonic() + 4
        while (seen := self.reach()) != wanted and time.monotonic() < deadline:
            pass
        return seen == wanted

    def _answers(self, address: str) -> bool:
        command = self.host.command("ping", "-n", "-q", "-c", "3", "-i", "0.1", "-W", "0.3", address)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def be(self, station: str) -> None:
        self.host.ip("link", "set", "eth0", "address", station)
        self.host.ip("neigh", "flush", "all")


def runner(machine: Machine) -> Callable[[Sequence[str]], None]:
    def run(command: Sequence[str]) -> None:
        try:
            machine.call(*command)
        except topology.TopologyFailed as error:
            raise fabric.FabricFailed(str(error)) from error

    return run


@pytest.fixture(params=[fabric.BridgePerVlan, fabric.FilteringBridge], ids=["bridge per VLAN", "filtering bridge"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with ExitStack() as machines:
        switch = machines.enter_context(Machine("switch"))
        best = fabric.probe(runner(switch))
        if request.param is fabric.FilteringBridge and not isinstance(best, fabric.FilteringBridge):
            pytest.skip("the bridges of this kernel filter no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)")
        found: fabric.Fabric = request.param(runner(switch), locks=best.locks)
        found.set_up([20, 30])
        for vlan in (20, 30):
            probe = machines.enter_context(Machine(f"probe{vlan}"))
            trunk = Cable(probe, "eth0", switch, f"probe{vlan}")
            found.attach(f"probe{vlan}", vlan)
            probe.address("eth0", f"10.66.{vlan}.2/24")
            trunk.plug()
        host = machines.enter_context(Machine("host"))
        cable = Cable(host, "eth0", switch, "swp1")
        host.ip("link", "set", "eth0", "address", STATION)
        host.address("eth0", "10.66.20.50/24", "10.66.30.50/24")
        cable.plug()
        yield Bench(switch, found, host, cable)


def test_a_port_forwards_into_the_vlan_that_it_is_in_and_into_no_other(bench: Bench) -> None:
    assert bench.reach() == set()
    bench.fabric.open("swp1", 20, STATION)
    assert bench.comes_to({20})
    bench.fabric.open("swp1", 30, STATION)
    assert bench.comes_to({30})
    bench.fabric.open("swp1", 30, STATION)
    assert bench.comes_to({30})
    bench.fabric.close("swp1")
    assert bench.reach() == set()
    bench.fabric.close("swp1")


def test_an_open_port_forwards_the_frames_of_its_own_station_only(bench: Bench) -> None:
    if not bench.fabric.locks:
        pytest.skip("this kernel cannot lock a bridge port")
    bench.fabric.open("swp1", 20, STATION)
    assert bench.comes_to({20})
    bench.be(OTHER)
    assert bench.reach() == set()
    bench.be(STATION)
    assert bench.comes_to({20})


def test_the_kernel_tells_of_a_cable_that_is_pulled_and_of_the_first_frame_after_it(bench: Bench) -> None:
    with (
        bench.switch.run(links.link_socket) as changes,
        bench.switch.run(lambda: links.frame_socket("swp1")) as frames,
    ):
        changes.settimeout(5)
        bench.cable.pull()
        seen: list[tuple[str, bool]] = []
        while ("swp1", False) not in seen:
            seen += links.read_links(changes.recv(65536))
        bench.cable.plug()
        while ("swp1", True) not in seen:
            seen += links.read_links(changes.recv(65536))
        while True:
            try:
                links.read_frame(frames)
            except BlockingIOError:
                break
        bench.reach()
        heard = {links.read_frame(frames) for _ in range(4)}
        assert (STATION, False) in heard
