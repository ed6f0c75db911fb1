"""avahi-daemon and we on one host and one LAN: each finds what the other announces, and both answer others."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.mdns.links import find_links
from appliance.mdns.queries import QueryTiming
from appliance.proxy.discover import Discovery
from brski.discovery import REGISTRAR_SERVICE, Offer
from lab import topology
from lab.topology import Cable, Machine
from tests.appliance.mdns.test_announcer import announced_on, seen_from

PROGRAMS = ("avahi-daemon", "avahi-browse", "avahi-publish", "dbus-daemon")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
WHY_NOT = topology.why_not() or (f"not installed: {', '.join(MISSING)}" if MISSING else "")

pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.interop, pytest.mark.slow]

BUS = """<busconfig><type>session</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
<allow user="*"/></policy></busconfig>
"""
DAEMON = """[server]
host-name=avahi-host
use-ipv4=yes
use-ipv6=no
allow-interfaces=eth0
[wide-area]
enable-wide-area=no
[publish]
publish-workstation=no
publish-aaaa-on-ipv4=no
"""


class Avahi:
    """avahi-daemon on a machine, with a bus and a /run of its own."""

    def __init__(self, machine: Machine, folder: Path, stack: ExitStack) -> None:
        self._machine = machine
        self._stack = stack
        self._environment = f"DBUS_SYSTEM_BUS_ADDRESS=unix:path={folder / 'bus'}"
        (folder / "bus.conf").write_text(BUS.format(bus=folder / "bus"))
        (folder / "avahi.conf").write_text(DAEMON)
        Path("/run/avahi-daemon").mkdir(exist_ok=True)
        # the machine has a mount namespace of its own: the system's avahi does not see this
        machine.call("mount", "-t", "tmpfs", "tmpfs", "/run/avahi-daemon")
        self.start("dbus-daemon", "--nofork", "--nopidfile", f"--config-file={folder / 'bus.conf'}")
        wait_until(lambda: (folder / "bus").exists())
        self.start("avahi-daemon", "--file", folder / "avahi.conf", "--no-drop-root", "--no-chroot", "--no-rlimits")
        wait_until(lambda: self.ask("avahi-browse", "--dump-db").returncode == 0)

    def start(self, *command: str | Path) -> None:
        """A program that runs until the end of the test."""
        started = subprocess.Popen(self._command(*command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def end() -> None:
            started.terminate()
            started.wait(5)

        self._stack.callback(end)

    def ask(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command(*command), capture_output=True, text=True, timeout=20, check=False)

    def browse(self) -> list[list[str]]:
        """What avahi-browse resolves, as its parsable rows."""
        answer = self.ask(
            "avahi-browse", "--resolve", "--terminate", "--parsable", REGISTRAR_SERVICE.removesuffix(".local.")
        )
        return [row.split(";") for row in answer.stdout.splitlines() if row.startswith("=")]

    def _command(self, *command: str | Path) -> list[str]:
        return self._machine.command("env", self._environment, *command)


def wait_until(fact: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not fact():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


async def discover(port: int) -> list[Offer]:
    async with Discovery(["eth0"], queries=QueryTiming(listen=0)) as discovery:
        end = time.monotonic() + 8
        while not (found := [one for one in discovery.offers() if one.port == port]) and time.monotonic() < end:
            await discovery.wait(0.5)
        return found


@pytest.fixture
def host_with_avahi(tmp_path: Path) -> Iterator[tuple[Machine, Machine, Avahi]]:
    with ExitStack() as stack:
        host, peer = stack.enter_context(Machine("host")), stack.enter_context(Machine("peer"))
        Cable(host, "eth0", peer, "eth0").plug()
        host.address("eth0", "192.0.2.1/24")
        peer.address("eth0", "192.0.2.2/24")
        # until duplicate detection is over, links change and announcements begin anew
        wait_until(lambda: len(host.run(lambda: find_links(["eth0"]))[0].addresses) == 2)
        yield host, peer, Avahi(host, tmp_path, stack)


@pytest.mark.req("B-102", "B-114", "B-116")
def test_each_finds_what_the_other_announces_on_the_same_host(host_with_avahi: tuple[Machine, Machine, Avahi]) -> None:
    host, peer, avahi = host_with_avahi
    avahi.start("avahi-publish", "--service", "by-avahi", REGISTRAR_SERVICE.removesuffix(".local."), "9443", "est-tls")
    with announced_on(host, interfaces=("eth0",)):
        wait_until(lambda: {row[3] for row in avahi.browse()} == {"app", "by-avahi"})
        (ours,) = [row for row in avahi.browse() if row[3] == "app"]
        assert (ours[1], ours[6], ours[7], ours[8], ours[9]) == ("eth0", "app.local", "192.0.2.1", "8443", '"est-tls"')
        (theirs,) = host.run(lambda: asyncio.run(discover(9443)))
        assert theirs.addresses == ("192.0.2.1",)
        assert theirs.variations == {"est-tls"}
        # and a third party gets answers from both
        assert seen_from(peer, "app") == {"192.0.2.1"}
        assert seen_from(peer, "by-avahi") == {"192.0.2.1"}
    wait_until(lambda: {row[3] for row in avahi.browse()} == {"by-avahi"})


@pytest.mark.req("B-118")
def test_a_name_that_avahi_has_is_left_to_it(host_with_avahi: tuple[Machine, Machine, Avahi]) -> None:
    host, _, avahi = host_with_avahi
    avahi.start("avahi-publish", "--service", "app", REGISTRAR_SERVICE.removesuffix(".local."), "9443", "est-tls")
    wait_until(lambda: [row[3] for row in avahi.browse()] == ["app"])
    with announced_on(host, interfaces=("eth0",)):
        wait_until(lambda: {(row[3], row[8]) for row in avahi.browse()} == {("app", "9443"), ("app-2", "8443")})
