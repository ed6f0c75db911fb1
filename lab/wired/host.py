"""A host of the wired lab: a machine with one cable to the switch, and wpa_supplicant on it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from lab import topology
from lab.story import Cast, DemoFailed, Process, find
from lab.topology import Cable, Machine

VLANS: Final[Mapping[str, int]] = MappingProxyType(
    {"onboarding": 10, "infrastructure": 11, "rnd": 20, "hr": 30, "guest": 99}
)
PING_SECONDS: Final = 0.5


class PlacedCast(Cast):
    """Programs that run on machines: on the given one, or on `home`."""

    home: Machine | None = None

    def start(
        self, name: str, command: Sequence[str | Path], *, user: int | None = None, on: Machine | None = None
    ) -> Process:
        place = on or self.home
        return super().start(name, place.command(*command) if place else command, user=user)


class Host:
    """A machine with one cable to the switch, and wpa_supplicant where it is started."""

    def __init__(self, name: str, number: int, switch: Machine, folder: Path, cast: PlacedCast) -> None:
        self.name = name
        self.port = f"swp{number}"
        self.number = number
        self.station = f"02:66:00:00:00:{number:02x}"
        self.machine = Machine(name)
        self.folder = folder
        self.network = folder / "network.conf"
        self.wanted = "1.3"
        self._cast = cast
        self._supplicant: Process | None = None
        self._starts = 0
        self._control = folder / "wpa"
        folder.mkdir(parents=True)
        self.network.touch(0o600)
        try:
            self.cable = Cable(self.machine, "eth0", switch, self.port)
            self.machine.ip("link", "set", "eth0", "address", self.station)
            self.machine.address("eth0", *(f"10.66.{vlan}.{49 + number}/24" for vlan in VLANS.values()))
        except BaseException:
            self.machine.close()
            raise

    def start_supplicant(self, network: Path | None = None) -> None:
        """wpa_supplicant with an own control socket; its networks stand in a file of their own."""
        self.stop_supplicant()
        base = self.folder / "wpa.conf"
        base.write_text(f"ctrl_interface={self._control}\nap_scan=0\neapol_version=2\n", encoding="ascii")
        self._starts += 1
        self._supplicant = self._cast.start(
            f"supplicant-{self.name}-{self._starts}",
            [
                find("wpa_supplicant") or "wpa_supplicant", "-D", "wired", "-i", "eth0", "-t", "-c", base,
                "-I", network or self.network, "-f", self.folder / f"wpa_supplicant-{self._starts}.log",
            ],
            on=self.machine,
        )  # fmt: skip
        wait_until(lambda: (self._control / "eth0").exists(), 10, f"wpa_supplicant of {self.name} does not start")

    def stop_supplicant(self) -> None:
        """End it at once, as a crash does: no EAPOL-Logoff goes out."""
        if self._supplicant is not None and self._supplicant.popen.poll() is None:
            self._supplicant.popen.kill()
            self._supplicant.popen.wait(10)
        self._supplicant = None
        (self._control / "eth0").unlink(missing_ok=True)

    def login(self, block: Path, tls_version: str) -> None:
        """Begin to log in with what stands in a wpa_supplicant block, over one TLS version only."""
        self.wanted = tls_version
        text = block.read_text(encoding="utf-8").replace("tls_disable_tlsv1_3=0", _only(tls_version))
        self.network.write_text(text, encoding="utf-8")
        if self._supplicant is None or self._supplicant.popen.poll() is not None:
            self.start_supplicant()
        else:
            self.wpa("reconfigure")

    def use_tls(self, tls_version: str) -> None:
        """Log in again with what the supplicant has, over one TLS version only."""
        self.wanted = tls_version
        self.wpa("set_network", "0", "phase1", f'"{_only(tls_version)}"')
        self.wpa("reassociate")

    def wpa_command(self, *words: str) -> list[str]:
        """A wpa_cli command line for a program that runs on this machine."""
        return [find("wpa_cli") or "wpa_cli", "-p", str(self._control), "-i", "eth0", *words]

    def wpa(self, *words: str) -> str:
        """The supplicant's answer. Raises DemoFailed."""
        try:
            return self.machine.call(*self.wpa_command(*words), timeout=10)
        except (topology.TopologyFailed, subprocess.TimeoutExpired) as error:
            raise DemoFailed(f"wpa_cli {' '.join(words)} on {self.name}: {error}") from error

    def tls_version(self) -> str:
        """Of the login that succeeded last, since the supplicant was last told: `1.2`, `1.3`, or nothing."""
        status = dict(line.split("=", 1) for line in self.wpa("status").splitlines() if "=" in line)
        if status.get("EAP state") != "SUCCESS":
            return ""
        return status.get("eap_tls_version", "").removeprefix("TLSv")

    def reach(self) -> str:
        """The VLANs whose probes answer a ping from here: a name, several with +, or `nothing`."""
        command = ("ping", "-n", "-q", "-c", "1", "-W", str(PING_SECONDS))
        pings = {
            name: subprocess.Popen(
                self.machine.command(*command, f"10.66.{vlan}.2"),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for name, vlan in VLANS.items()
        }  # fmt: skip
        return "+".join(name for name, ping in pings.items() if ping.wait(10) == 0) or "nothing"

    def close(self) -> None:
        self.machine.close()


def wait_until(is_so: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Raises DemoFailed when it does not become so in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise DemoFailed(otherwise)
        time.sleep(0.02)


def _only(tls_version: str) -> str:
    """wpa_supplicant's phase1; it has TLS 1.3 on or off, and the RADIUS server takes the highest."""
    return f"tls_disable_tlsv1_3={0 if tls_version == '1.3' else 1}"
