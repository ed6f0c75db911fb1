"""The links of this machine and their addresses, now and when they change.

A link is one network interface. Settings name links by name (`eth0`), by an address that one of them has, or all of
them at once (`*`: every interface that is up and multicasts, loopback excepted). What they have is read again whenever
the kernel reports a change: a cable, an address by DHCP, the end of IPv6 duplicate detection.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import ifaddr
from zeroconf import IPVersion

log = logging.getLogger(__name__)

EVERY = "*"
POLL_SECONDS = 5.0
_SETTLE_SECONDS = 0.05
_SIOCGIFFLAGS = 0x8913
_UP, _LOOPBACK, _RUNNING, _MULTICAST = 0x1, 0x8, 0x40, 0x1000
_TENTATIVE, _DAD_FAILED = 0x40, 0x08
_INET6 = Path("/proc/thread-self/net/if_inet6")
# RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR of rtnetlink(7)
_GROUPS = 0x1 | 0x10 | 0x100


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. `addresses` are those that sockets take: link-local IPv6 ones carry their zone, `fe80::1%eth0`."""

    name: str
    index: int
    addresses: tuple[str, ...]

    @property
    def speaking(self) -> list[str]:
        """The addresses to multicast from: one of each family at most, or every packet would go out several times."""
        four = [text for text in self.addresses if version(text) == 4]
        six = sorted((text for text in self.addresses if version(text) == 6), key=lambda text: not is_link_local(text))
        return [*four[:1], *(bare(text) for text in six[:1])]

    @property
    def ip_version(self) -> IPVersion:
        """Which families `speaking` has, as zeroconf wants to be told."""
        versions = {version(text) for text in self.speaking}
        if versions == {6}:
            return IPVersion.V6Only
        return IPVersion.V4Only if versions == {4} else IPVersion.All


def bare(address: str) -> str:
    """An address without its zone."""
    return address.partition("%")[0]


def version(address: str) -> int:
    """4 or 6. Raises ValueError."""
    return ipaddress.ip_address(bare(address)).version


def is_link_local(address: str) -> bool:
    """Whether an address means something on its own link only."""
    return ipaddress.ip_address(bare(address)).is_link_local


def find_links(wanted: Sequence[str]) -> tuple[Link, ...]:
    """Those of the wanted links that are up and have an address, in the order of their index.

    An address in `wanted` restricts its link to the addresses that are named; names that nobody has yield nothing.
    """
    names = {item for item in wanted if not _is_address(item)}
    addresses = {str(ipaddress.ip_address(bare(item))) for item in wanted if _is_address(item)}
    unusable = _unusable_inet6()
    found = []
    for adapter in ifaddr.get_adapters():
        flags = _flags(adapter.name)
        if not (flags & _UP and flags & _RUNNING):
            continue
        own = tuple(dict.fromkeys(_addresses(adapter, unusable)))
        everywhere = EVERY in names and flags & _MULTICAST and not flags & _LOOPBACK
        if not (everywhere or adapter.name in names or adapter.nice_name in names):
            own = tuple(text for text in own if bare(text) in addresses)
        if own:
            found.append(Link(adapter.name, adapter.index or 0, own))
    return tuple(sorted(found, key=lambda link: link.index))


def neighbours(addresses: Iterable[str], wanted: Sequence[str]) -> frozenset[str]:
    """Those that are addresses of other machines on one of the wanted links, by the links' own prefixes.

    The interfaces are read once, however many addresses somebody announced.
    """
    adapters = ifaddr.get_adapters()
    names = {link.name for link in find_links(wanted)}
    own = {ipaddress.ip_address(bare(_text(ip))) for adapter in adapters for ip in adapter.ips}
    networks = {
        ipaddress.ip_network(f"{bare(_text(ip))}/{ip.network_prefix}", strict=False)
        for adapter in adapters
        if adapter.name in names
        for ip in adapter.ips
    }

    def is_near(text: str) -> bool:
        found = ipaddress.ip_address(bare(text))
        return not found.is_loopback and found not in own and any(found in network for network in networks)

    return frozenset(text for text in set(addresses) if is_near(text))


def _text(ip: ifaddr.IP) -> str:
    return ip.ip if isinstance(ip.ip, str) else ip.ip[0]


def _addresses(adapter: ifaddr.Adapter, unusable: frozenset[tuple[str, int]]) -> Iterable[str]:
    for ip in adapter.ips:
        if isinstance(ip.ip, str):
            yield ip.ip
            continue
        text = str(ipaddress.ip_address(bare(ip.ip[0])))
        # multicast from ::1 does not work, and 127.0.0.1 is there for loopback
        if text == "::1" or (text, adapter.index or 0) in unusable:
            continue
        yield f"{text}%{adapter.name}" if is_link_local(text) else text


def _unusable_inet6() -> frozenset[tuple[str, int]]:
    """IPv6 addresses that cannot be bound: duplicate detection is not over, or found a duplicate (RFC 4862)."""
    try:
        lines = _INET6.read_text(encoding="ascii").splitlines()
    except OSError:
        return frozenset()
    rows = [line.split() for line in lines]
    return frozenset(
        (str(ipaddress.IPv6Address(int(row[0], 16))), int(row[1], 16))
        for row in rows
        if int(row[4], 16) & (_TENTATIVE | _DAD_FAILED)
    )


def _flags(name: str) -> int:
    """The interface's flags as netdevice(7) has them; where that cannot be asked it counts as up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode()[:15], 0))
        except OSError:
            return _UP | _RUNNING | _MULTICAST
    return int(struct.unpack("16sH14x", answer)[1])


def _is_address(item: str) -> bool:
    try:
        version(item)
    except ValueError:
        return False
    return True


class LinkWatch:
    """Open while somebody wants to know of changes: the kernel tells by netlink; elsewhere it is looked at again."""

    def __init__(self, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._poll_seconds = poll_seconds
        self._event = asyncio.Event()
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> LinkWatch:
        with contextlib.suppress(AttributeError, OSError):
            netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            try:
                netlink.bind((0, _GROUPS))
            except OSError:
                netlink.close()
                raise
            self._socket = netlink
            asyncio.get_running_loop().add_reader(netlink, self._heard, netlink)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        netlink, self._socket = self._socket, None
        if netlink is not None:
            asyncio.get_running_loop().remove_reader(netlink)
            netlink.close()

    def _heard(self, netlink: socket.socket) -> None:
        # what exactly changed is read from the interfaces; an overrun (ENOBUFS) means that something did
        with contextlib.suppress(BlockingIOError), contextlib.suppress(OSError):
            while netlink.recv(65536):
                pass
        self._event.set()

    async def changed(self, seconds: float | None = None) -> None:
        """Until something changed, or the time is over. Changes come in bursts: one return for each burst."""
        limits = [limit for limit in (seconds, None if self._socket else self._poll_seconds) if limit is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(limits, default=None)):
                await self._event.wait()
                await asyncio.sleep(_SETTLE_SECONDS)
        self._event.clear()
