"""Machines and cables without hardware: network namespaces of the kernel, joined by veth pairs. Needs root on Linux.

A `Machine` has its own interfaces, addresses, routes and loopback, and ends with the process that made it. A `Cable`
joins two machines and can be pulled; a machine with a bridge is a switch. Programs run inside by `Machine.command`, or
a function of this process by `Machine.run`, in a thread of its own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")


class TopologyFailed(Exception):
    """A command that makes the lab's network failed; the text has its error output."""


def why_not() -> str:
    """Why machines cannot be made here; empty if they can."""
    if os.name != "posix" or not Path("/proc/thread-self/ns/net").exists():
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (packages iproute2, util-linux)"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "this environment allows no network namespaces"


class Machine:
    """A network of one machine: loopback up, nothing plugged in. `with Machine("pledge") as pledge:`"""

    def __init__(self, name: str) -> None:
        self.name = name
        # the holder reads a pipe of ours, so it cannot outlive us, whatever happens to us
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.read(1) != b"\n":
            raise TopologyFailed(f"no namespace for {name}")
        self.ip("link", "set", "lo", "up")

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The machine and its ends of cables are gone; programs that still run in it keep only its loopback."""
        if self._holder.poll() is None:
            assert self._holder.stdin is not None and self._holder.stdout is not None
            self._holder.stdin.close()
            self._holder.wait(5)
            self._holder.stdout.close()

    @property
    def pid(self) -> int:
        """The process whose namespaces these are."""
        return self._holder.pid

    def command(self, *command: str | Path) -> list[str]:
        """A command line that runs `command` on this machine."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--", *(str(part) for part in command)]

    def call(self, *command: str | Path, timeout: float = 20.0) -> str:
        """Run a command to its end; its output. Raises TopologyFailed."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode != 0:
            raise TopologyFailed(f"{' '.join(map(str, command))} on {self.name}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, *arguments: str) -> str:
        """iproute2's ip on this machine."""
        return self.call("ip", *arguments)

    def address(self, interface: str, *addresses: str) -> None:
        """Give an interface addresses such as `192.0.2.1/24`."""
        for one in addresses:
            self.ip("address", "add", one, "dev", interface)

    def run(self, work: Callable[[], _T]) -> _T:
        """Call `work` in a thread that is on this machine: sockets made there belong to it."""
        results: list[_T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with Path(f"/proc/{self.pid}/ns/net").open("rb") as namespace:
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise TopologyFailed(f"setns to {self.name}: {os.strerror(ctypes.get_errno())}")
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - told to the caller below
                errors.append(error)

        thread = threading.Thread(target=enter, name=f"on {self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


class Cable:
    """A veth pair between two machines; both ends are up when it is plugged."""

    def __init__(self, one: Machine, interface: str, other: Machine, other_interface: str) -> None:
        self._ends = ((one, interface), (other, other_interface))
        one.ip("link", "add", interface, "type", "veth", "peer", "name", other_interface, "netns", str(other.pid))

    def plug(self) -> None:
        """Both ends up: carrier comes as soon as the second one is."""
        for machine, interface in self._ends:
            machine.ip("link", "set", interface, "up")

    def pull(self) -> None:
        """The first machine's end goes down, so both lose the carrier. Addresses of IPv4 stay, as with a real cable."""
        machine, interface = self._ends[0]
        machine.ip("link", "set", interface, "down")


def switch(name: str, ports: Sequence[tuple[Machine, str]]) -> Machine:
    """A machine that joins others: each (machine, interface) gets a cable to a bridge. All are up."""
    middle = Machine(name)
    try:
        middle.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        middle.ip("link", "set", "br0", "up")
        for number, (machine, interface) in enumerate(ports):
            cable = Cable(middle, f"port{number}", machine, interface)
            middle.ip("link", "set", f"port{number}", "master", "br0")
            cable.plug()
    except BaseException:
        middle.close()
        raise
    return middle
