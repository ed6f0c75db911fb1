"""Announces the registrar by DNS-SD over mDNS (RFC 8995, appendix B; RFC 6762).

Both service types go out with our own port: a pledge that looks for a join proxy cannot tell the difference on a flat
network (RFC 8995, section 4). While the port does not take connections, the announcement is withdrawn (B-116).
What is announced is a hint to find us; nobody may trust it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Sequence

import ifaddr
from zeroconf import IPVersion, NonUniqueNameException
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from brski import discovery

log = logging.getLogger(__name__)

PROBE_SECONDS = 30.0
CONNECT_SECONDS = 5.0
TTL_SECONDS = 120


class Announcer:
    """Keeps the announcement true from `start` to `stop`."""

    def __init__(
        self,
        *,
        interfaces: Sequence[str],
        host: str,
        port: int,
        instance: str,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        """`interfaces` are addresses or names; `host` is the address the device port listens on.

        `instance` names this appliance among others on the link; it carries no meaning (B-118).
        """
        self._interfaces = interface_addresses(interfaces)
        self._host = host
        self._port = port
        self._instance = instance
        self._probe_seconds = probe_seconds
        self._zeroconf: AsyncZeroconf | None = None
        self._announced = False
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Announces, and watches from then on."""
        if not self._interfaces:
            log.warning("announce-skipped no interface address")
            return
        self._zeroconf = AsyncZeroconf(interfaces=list(self._interfaces), ip_version=_version(self._interfaces))
        await self._announce()
        self._watch = asyncio.create_task(self._keep_true(), name="registrar-announce")

    async def stop(self) -> None:
        """Withdraws (goodbye packets) and closes; safe to call twice."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            self._announced = False
            await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()

    @property
    def is_announced(self) -> bool:
        """Whether the records are out at the moment."""
        return self._announced

    def services(self) -> tuple[AsyncServiceInfo, ...]:
        """The two service records, as they are announced."""
        addresses = self._addresses()
        return tuple(
            AsyncServiceInfo(
                kind,
                discovery.instance_name(self._instance, kind),
                port=self._port,
                properties=discovery.write_txt(),
                server=f"{self._instance}.local.",
                parsed_addresses=addresses,
                host_ttl=TTL_SECONDS,
                other_ttl=TTL_SECONDS,
            )
            for kind in (discovery.REGISTRAR_SERVICE, discovery.PROXY_SERVICE)
        )

    async def _announce(self) -> None:
        assert self._zeroconf is not None
        try:
            await asyncio.gather(*(self._register(self._zeroconf, service) for service in self.services()))
        except (OSError, NonUniqueNameException) as cause:
            log.warning("announce-failed cause=%r", cause)
            return
        self._announced = True
        log.info("announced instance=%s port=%d interfaces=%s", self._instance, self._port, ",".join(self._interfaces))

    @staticmethod
    async def _register(zeroconf: AsyncZeroconf, service: AsyncServiceInfo) -> None:
        await (await zeroconf.async_register_service(service, allow_name_change=True))

    async def _withdraw(self) -> None:
        assert self._zeroconf is not None
        await self._zeroconf.async_unregister_all_services()
        self._announced = False
        log.warning("announcement-withdrawn port=%d takes no connections", self._port)

    async def _keep_true(self) -> None:
        while True:
            await asyncio.sleep(self._probe_seconds)
            alive = await takes_connections(self._probe_address(), self._port)
            if alive and not self._announced:
                await self._announce()
            elif self._announced and not alive:
                await self._withdraw()

    def _addresses(self) -> list[str]:
        if _is_wildcard(self._host):
            return list(self._interfaces)
        try:
            return [str(ipaddress.ip_address(self._host))]
        except ValueError:
            return list(self._interfaces)

    def _probe_address(self) -> str:
        return self._interfaces[0] if _is_wildcard(self._host) else self._host


def interface_addresses(interfaces: Sequence[str]) -> tuple[str, ...]:
    """Addresses of the interfaces, which come as addresses or as names such as `eth0`; unknown names yield nothing."""
    found: list[str] = []
    adapters = None
    for item in interfaces:
        try:
            found.append(str(ipaddress.ip_address(item)))
            continue
        except ValueError:
            pass
        adapters = adapters if adapters is not None else list(ifaddr.get_adapters())
        for adapter in adapters:
            if item in (adapter.name, adapter.nice_name):
                found += [ip.ip for ip in adapter.ips if isinstance(ip.ip, str)]
    return tuple(dict.fromkeys(found))


async def takes_connections(host: str, port: int) -> bool:
    """Whether a TCP connection to `host` and `port` comes about within 5 s."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _is_wildcard(host: str) -> bool:
    return host in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound


def _version(addresses: Sequence[str]) -> IPVersion:
    versions = {ipaddress.ip_address(address).version for address in addresses}
    if versions == {6}:
        return IPVersion.V6Only
    return IPVersion.V4Only if versions == {4} else IPVersion.All
