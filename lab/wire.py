"""A cable whose frames this process carries by hand: it can be cut at an exact frame, and plugged again.

Between its two ends stands a machine of its own with two packet sockets. The sockets pass the kernel's checksum and
segmentation notes along (PACKET_VNET_HDR of packet(7)), because frames between virtual cards have no checksums yet.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

from lab.topology import Machine

_SOL_PACKET, _PACKET_VNET_HDR, _ETH_P_ALL, _OUTGOING = 263, 15, 0x0003, 4
_VNET_BYTES, _MAX_FRAME = 10, 70_000
_PORTS = ("left", "right")

Watcher = Callable[[bool, bytes], bool]
"""Gets (comes from the left?, Ethernet frame); True cuts the wire before this frame passes."""


class Wire:
    """`with Wire(one, "eth0", other, "port3") as wire:` - plugged from the beginning."""

    def __init__(self, left: Machine, interface: str, right: Machine, other_interface: str) -> None:
        self._middle = Machine(f"wire {left.name}-{right.name}")
        self._watcher: Watcher | None = None
        self._passes = True
        self._ends = threading.Event()
        self.was_cut = threading.Event()
        try:
            for port, machine, name in zip(_PORTS, (left, right), (interface, other_interface), strict=True):
                self._middle.ip("link", "add", port, "type", "veth", "peer", "name", name, "netns", str(machine.pid))
                machine.ip("link", "set", name, "up")
            self.plug()
        except BaseException:
            self._middle.close()
            raise
        self._thread = threading.Thread(target=lambda: self._middle.run(self._carry), name=self._middle.name)
        self._thread.start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()
        self._middle.close()

    def cut_when(self, watcher: Watcher) -> None:
        """Cut by itself at the first frame of which `watcher` says so; sets `was_cut`."""
        self._watcher = watcher

    def cut(self) -> None:
        """Both ends lose their carrier."""
        self._passes = False
        for port in _PORTS:
            self._middle.ip("link", "set", port, "down")

    def plug(self) -> None:
        """Both ends have a carrier again."""
        for port in _PORTS:
            self._middle.ip("link", "set", port, "up")
        self._passes = True

    def _carry(self) -> None:
        sockets = []
        for port in _PORTS:
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            end.bind((port, _ETH_P_ALL))
            end.setblocking(False)
            sockets.append(end)
        left, right = sockets
        try:
            while not self._ends.is_set():
                for ready in select.select(sockets, [], [], 0.05)[0]:
                    self._pass_on(ready, right if ready is left else left, ready is left)
        finally:
            for end in sockets:
                end.close()

    def _pass_on(self, source: socket.socket, destination: socket.socket, from_left: bool) -> None:
        try:
            noted, address = source.recvfrom(_MAX_FRAME)
            if address[2] == _OUTGOING or not self._passes:
                return
            watcher = self._watcher
            if watcher is not None and watcher(from_left, noted[_VNET_BYTES:]):
                self._watcher = None
                self.cut()
                self.was_cut.set()
                return
            destination.send(noted)
        except OSError:
            return  # no carrier: frames are lost, as on any cable


def tcp_payload(frame: bytes) -> int:
    """How many octets of TCP payload an Ethernet frame with IPv4 or IPv6 carries; 0 for everything else."""
    kind = struct.unpack_from("!H", frame, 12)[0] if len(frame) >= 14 else 0
    if kind == 0x0800 and len(frame) >= 34 and frame[23] == socket.IPPROTO_TCP:
        start, end = 14 + (frame[14] & 0x0F) * 4, 14 + struct.unpack_from("!H", frame, 16)[0]
    elif kind == 0x86DD and len(frame) >= 54 and frame[20] == socket.IPPROTO_TCP:
        start, end = 54, 54 + struct.unpack_from("!H", frame, 18)[0]
    else:
        return 0
    return max(0, end - start - (frame[start + 12] >> 4) * 4) if len(frame) > start + 12 else 0
