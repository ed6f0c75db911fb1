"""The lab switch's port agent: `python -m lab.port_agent CONFIG.json`, on the switch, as root.

hostapd authenticates stations; this program moves their ports. It listens to hostapd's control sockets, to the carrier
of the ports, to the first frames of stations where MAC bypass is on, and to the RADIUS server's requests (RFC 5176).
What follows from what is in lab.wired.rules; here are only sockets and orders. Every change is a JSON line on standard
output. When hostapd does not answer any more, or at the end of this program, all ports close.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab.wired import bypass, links, rules
from lab.wired.das import DynamicAuthorization, NotForUs
from lab.wired.fabric import BridgePerVlan, Fabric, FabricFailed, FilteringBridge, describe
from lab.wired.hostapd import Control, read_event, read_station

log = logging.getLogger("port-agent")

PING_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class PortConfig:
    """An access port: its interface, its number towards the RADIUS server, and whether MAC bypass is on there."""

    interface: str
    number: int
    mac_bypass: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """What the program is told. `grace_seconds`: how long a station may take to speak EAPOL before MAC bypass."""

    nas: str
    ports: Sequence[PortConfig]
    vlans: frozenset[int]
    control: Path
    run: Path
    way: bypass.Loopback | bypass.RadSec | None = None
    das_address: str = ""
    das_port: int = 3799
    das_client: str = ""
    das_secret: str = ""
    grace_seconds: float = 1.0
    again_seconds: float = 5.0
    filters_vlans: bool = False
    locks_ports: bool = False


def read_config(path: Path) -> Config:
    """Raises OSError, ValueError, TypeError, KeyError."""
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    way = told.pop("mac_bypass", None)
    found: bypass.Loopback | bypass.RadSec | None = None
    if way is not None and way.pop("over") == "radsec":
        found = bypass.RadSec(**(way | {name: Path(way[name]) for name in ("certificate", "key", "anchors")}))
    elif way is not None:
        found = bypass.Loopback(**(way | {"secret": way["secret"].encode()}))
    return Config(
        **(
            told
            | {
                "ports": [PortConfig(**one) for one in told["ports"]],
                "vlans": frozenset(told["vlans"]),
                "control": Path(told["control"]),
                "run": Path(told["run"]),
                "way": found,
            }
        )
    )


class PortAgent:
    """All ports of one switch. Not started by the constructor."""

    def __init__(self, config: Config, fabric: Fabric, tell: Callable[[dict[str, object]], None]) -> None:
        self._config = config
        self._fabric = fabric
        self._tell = tell
        self._open_things = contextlib.ExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ports = {one.interface: _Access(one) for one in config.ports}
        self._failed: asyncio.Future[str] | None = None

    async def run(self, stop: asyncio.Event) -> str:
        """Until `stop`; all ports are closed then. Answers why it ended by itself, or nothing."""
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        waiting = asyncio.create_task(stop.wait())
        try:
            self._start(loop)
            self._tell({"event": "ready", "switch": describe(self._fabric), "ports": sorted(self._ports)})
            await asyncio.wait((waiting, self._failed), return_when=asyncio.FIRST_COMPLETED)
            return self._failed.result() if self._failed.done() else ""
        finally:
            waiting.cancel()
            for task in self._tasks:
                task.cancel()
            self._open_things.close()
            for name in self._ports:
                with contextlib.suppress(FabricFailed):
                    self._fabric.close(name)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        config, keep = self._config, self._open_things

        def listen(wire: socket.socket | int, call: Callable[..., None], *arguments: object) -> None:
            loop.add_reader(wire, call, *arguments)
            keep.callback(loop.remove_reader, wire)

        for name, port in self._ports.items():
            self._fabric.close(name)
            port.questions = Control(config.control, name, config.run / f"{name}.ask")
            keep.callback(port.questions.close)
            events = Control(config.control, name, config.run / f"{name}.hear")
            keep.callback(events.close)
            events.attach()
            listen(events.socket, self._on_hostapd, port, events.socket)
            if port.config.mac_bypass:
                frames = keep.enter_context(links.frame_socket(name))
                listen(frames, self._on_frames, port, frames)
        changes = keep.enter_context(links.link_socket())
        listen(changes, self._on_links, changes)
        if config.das_address:
            wire = keep.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            wire.bind((config.das_address, config.das_port))
            das = DynamicAuthorization(config.das_secret.encode(), config.nas, self._act)
            listen(wire, self._on_request, wire, das)
        self._keep(self._watch_hostapd())

    # -- what comes in

    def _on_hostapd(self, port: _Access, wire: socket.socket) -> None:
        for octets in _all(wire):
            event = read_event(octets.decode("utf-8", "replace"))
            if event is None:
                continue
            name, station = event
            if name in ("AP-STA-CONNECTED", "CTRL-EVENT-EAP-SUCCESS"):
                self._happened(port, rules.Login(station, *self._station(port, station)))
            else:
                self._happened(port, rules.Refused(station))

    def _station(self, port: _Access, station: str) -> tuple[bool, int]:
        try:
            return read_station(self._ask(port, f"STA {station}"))
        except OSError:
            return False, 0

    def _on_links(self, wire: socket.socket) -> None:
        for octets in _all(wire):
            for name, has_carrier in links.read_links(octets):
                port = self._ports.get(name)
                if port is not None and port.has_carrier != has_carrier:
                    port.has_carrier = has_carrier
                    self._tell({"event": "carrier", "port": name, "up": has_carrier})
                    if not has_carrier:
                        port.forget()
                        self._happened(port, rules.LinkDown())

    def _on_frames(self, port: _Access, wire: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(64):
            try:
                frame = links.read_frame(wire)
            except (BlockingIOError, OSError):
                return
            if frame is None:
                continue
            station, is_eapol = frame
            if is_eapol:
                if not port.state.has_spoken:
                    port.forget()
                    self._happened(port, rules.Spoke(station))
            elif port.state.by is rules.By.NOBODY and not port.state.has_spoken and port.timer is None:
                wait = max(self._config.grace_seconds, port.not_before - loop.time())
                port.timer = loop.call_later(wait, self._on_grace_over, port, station)

    def _on_grace_over(self, port: _Access, station: str) -> None:
        port.timer = None
        self._happened(port, rules.Heard(station))

    def _on_request(self, wire: socket.socket, das: DynamicAuthorization) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            octets, source = wire.recvfrom(4096)
            if source[0] != self._config.das_client:
                log.warning("a request of %s gets no answer: not our RADIUS server", source[0])
                return
            try:
                answer = das.answer(octets, f"{source[0]}:{source[1]}", time.time())
            except NotForUs as why:
                log.warning("a request of %s gets no answer: %s", source[0], why)
                return
            self._tell({"event": "authorization-request", "code": octets[0], "answer": answer[0]})
            wire.sendto(answer, source)

    def _act(self, is_disconnect: bool, station: str, named: str) -> bool:
        for name, port in self._ports.items():
            if port.state.station == station and named in ("", name, str(port.config.number)):
                asked = rules.DisconnectAsked if is_disconnect else rules.ReauthenticationAsked
                self._happened(port, asked(station))
                return True
        return False

    async def _watch_hostapd(self) -> None:
        """A port whose guard is gone must not stay open."""
        assert self._failed is not None
        while True:
            await asyncio.sleep(PING_SECONDS)
            for name, port in self._ports.items():
                try:
                    answer = self._ask(port, "PING")
                except OSError:
                    answer = ""
                if answer != "PONG\n" and not self._failed.done():
                    self._failed.set_result(f"hostapd of {name} does not answer; all ports are closed")
                    return

    # -- what is done

    def _happened(self, port: _Access, event: rules.Event) -> None:
        switch = rules.Switch(self._config.vlans, port.config.mac_bypass)
        before, begun = port.state, time.monotonic()
        port.state, orders = rules.after(before, event, switch)
        for order in orders:
            try:
                self._carry_out(port, order)
            except (FabricFailed, OSError) as error:
                log.error("port=%s order=%s: %s", port.config.interface, order, error)
                if isinstance(order, rules.Open):  # half open is closed
                    port.state = rules.Port(has_spoken=port.state.has_spoken)
                    with contextlib.suppress(FabricFailed):
                        self._fabric.close(port.config.interface)
        now = port.state
        if (now.vlan, now.station, now.by) != (before.vlan, before.station, before.by):
            took = (time.monotonic() - begun) * 1000
            self._tell(
                {
                    "event": "port", "port": port.config.interface, "vlan": now.vlan, "station": now.station,
                    "by": now.by.value, "because": type(event).__name__, "ms": round(took, 1),
                }
            )  # fmt: skip

    def _carry_out(self, port: _Access, order: rules.Order) -> None:
        match order:
            case rules.Open(vlan, station):
                self._fabric.open(port.config.interface, vlan, station)
            case rules.Close():
                self._fabric.close(port.config.interface)
            case rules.Deauthenticate(station):
                self._ask(port, f"DEAUTHENTICATE {station}")
            case rules.Reauthenticate(station):
                self._ask(port, f"EAPOL_REAUTH {station}")
            case rules.AskBypass(station):
                self._keep(self._ask_bypass(port, station))

    async def _ask_bypass(self, port: _Access, station: str) -> None:
        way, vlan = self._config.way, 0
        if way is not None:
            try:
                vlan = await asyncio.to_thread(
                    bypass.ask, way, station, nas=self._config.nas,
                    port=port.config.interface, number=port.config.number,
                )  # fmt: skip
            except bypass.BypassFailed as error:
                log.warning("mac bypass port=%s station=%s: %s", port.config.interface, station, error)
        port.not_before = asyncio.get_running_loop().time() + self._config.again_seconds
        self._tell({"event": "bypass", "port": port.config.interface, "station": station, "vlan": vlan})
        self._happened(port, rules.BypassAnswered(station, vlan))

    def _ask(self, port: _Access, command: str) -> str:
        assert port.questions is not None
        return port.questions.ask(command)

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(slots=True)
class _Access:
    """One access port while the program runs."""

    config: PortConfig
    state: rules.Port = field(default_factory=rules.Port)
    questions: Control | None = None
    has_carrier: bool | None = None
    timer: asyncio.TimerHandle | None = None
    not_before: float = 0.0

    def forget(self) -> None:
        """Whoever was heard before does not matter any more."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer, self.not_before = None, 0.0


def _all(wire: socket.socket) -> list[bytes]:
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError, ConnectionError):
        while len(found) < 64:
            found.append(wire.recv(65536))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """0 when it was told to stop, 1 when hostapd is gone or something is missing."""
    parser = argparse.ArgumentParser(prog="python -m lab.port_agent", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="JSON file, see lab.wired.campus")
    options = parser.parse_args(words)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    try:
        config = read_config(options.config)
        kind = FilteringBridge if config.filters_vlans else BridgePerVlan
        fabric: Fabric = kind(locks=config.locks_ports)
        return asyncio.run(_until_signalled(config, fabric))
    except (OSError, ValueError, TypeError, KeyError, FabricFailed) as fault:
        log.error("%s", fault)
        return 1


async def _until_signalled(config: Config, fabric: Fabric) -> int:
    stop = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    why = await PortAgent(config, fabric, lambda event: print(json.dumps(event), flush=True)).run(stop)
    if why:
        log.error("%s", why)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
