"""What is announced on one link: our services with the addresses of that link, under a name nobody else has there.

RFC 6762, sections 8 and 9. zeroconf probes for instance names and renames one service at a time. Instance and host name
must stay a pair, or two machines would answer for one host name; so the name is chosen here, for all services together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from zeroconf import DNSAddress, DNSService, NonUniqueNameException  # type: ignore[attr-defined]
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from appliance.mdns.links import Link, bare
from brski import discovery

log = logging.getLogger(__name__)

TTL_SECONDS = 120
MAX_NAMES = 20
_TYPE_SRV, _TYPE_A, _TYPE_AAAA, _CLASS_IN = 33, 1, 28, 1
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What to announce on a link. `name` is the instance name wished for; `addresses` are without zone."""

    name: str
    services: tuple[str, ...]
    port: int
    addresses: tuple[str, ...]
    priority: int = 0

    def records(self, name: str) -> tuple[AsyncServiceInfo, ...]:
        """One service record per type; the host is named like the instance."""
        return tuple(
            AsyncServiceInfo(
                service,
                discovery.instance_name(name, service),
                port=self.port,
                priority=self.priority,
                properties=discovery.write_txt(),
                server=f"{name}.local.",
                parsed_addresses=list(self.addresses),
                host_ttl=TTL_SECONDS,
                other_ttl=TTL_SECONDS,
            )
            for service in self.services
        )


async def open_zeroconf(link: Link) -> AsyncZeroconf:
    """A zeroconf that speaks and hears on this link only. Raises OSError."""
    zeroconf = AsyncZeroconf(interfaces=link.speaking, ip_version=link.ip_version)
    await zeroconf.zeroconf.async_wait_for_start()
    for reader in zeroconf.zeroconf.engine.readers:
        # a wildcard socket hears what arrives on any interface, if only some socket has joined the group there
        if reader.sock_name[0] in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            with contextlib.suppress(OSError):  # before Linux 5.7 this needed a privilege
                reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.name.encode() + b"\0")
    return zeroconf


class Responder:
    """The announcement on one link, from `open` to `close`."""

    def __init__(self, link: Link, announcement: Announcement) -> None:
        self.link = link
        self.announcement = announcement
        self.name = ""
        self._tries = 0
        self._zeroconf: AsyncZeroconf | None = None
        self._infos: tuple[AsyncServiceInfo, ...] = ()
        self._broadcasts: list[asyncio.Future[None]] = []

    @property
    def infos(self) -> tuple[AsyncServiceInfo, ...]:
        """The records that are out."""
        return self._infos

    async def open(self) -> bool:
        """Probe and announce; False where the link does not let us or every name is taken."""
        try:
            self._zeroconf = await open_zeroconf(self.link)
            return await self._announce()
        except OSError as cause:
            log.warning("announce-failed link=%s cause=%r", self.link.name, cause)
            await self.close()
            return False
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """Withdraw with goodbye packets, as far as the link still carries them; also if the caller is cancelled."""
        closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise

    async def _close(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        self._infos = ()
        for broadcast in self._broadcasts:
            broadcast.cancel()
        await asyncio.gather(*self._broadcasts, return_exceptions=True)
        self._broadcasts = []
        if zeroconf is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await zeroconf.async_close()

    async def keep_unique(self, own: frozenset[str]) -> bool:
        """Take another name if somebody else answers under ours and has the better right; False: nothing is out now.

        `own` are all addresses of this machine. Two that came up in the same moment did not hear each other's probes;
        both see the conflict afterwards, and the higher addresses give way, so that exactly one does.
        """
        rival = self._rival(own)
        if rival is None or self._zeroconf is None:
            return bool(self._infos)
        mine = (sorted(self.announcement.addresses), self.announcement.port)
        if mine < rival:
            return True
        log.warning("announce-conflict link=%s name=%s rival=%s", self.link.name, self.name, ",".join(rival[0]))
        await self.close()
        return await self.open()

    async def _announce(self) -> bool:
        while self._tries < MAX_NAMES:
            self._tries += 1
            name = self.announcement.name if self._tries == 1 else f"{self.announcement.name}-{self._tries}"
            if await self._register(self.announcement.records(name)):
                self.name = name
                log.info("announced name=%s port=%d link=%s", name, self.announcement.port, self.link.name)
                return True
        log.warning("announce-failed link=%s every name is taken", self.link.name)
        await self.close()
        return False

    async def _register(self, infos: Sequence[AsyncServiceInfo]) -> bool:
        zeroconf = self._zeroconf
        assert zeroconf is not None
        results = await asyncio.gather(
            *(zeroconf.async_register_service(info) for info in infos), return_exceptions=True
        )
        failures = [one for one in results if isinstance(one, BaseException)]
        if not failures:
            self._broadcasts = [asyncio.ensure_future(one) for one in results if not isinstance(one, BaseException)]
            self._infos = tuple(infos)
            return True
        for info, result in zip(infos, results, strict=True):
            if not isinstance(result, BaseException):
                await (await zeroconf.async_unregister_service(info))
        for failure in failures:
            if not isinstance(failure, NonUniqueNameException):
                raise failure
        return False

    def _rival(self, own: frozenset[str]) -> tuple[list[str], int] | None:
        """Addresses and port of somebody else under our names, as far as the link has told."""
        if self._zeroconf is None or not self._infos:
            return None
        cache = self._zeroconf.zeroconf.cache
        host, port = self._infos[0].server or "", self.announcement.port
        addresses = {
            record.address
            for kind in (_TYPE_A, _TYPE_AAAA)
            for record in cache.get_all_by_details(host, kind, _CLASS_IN)
            if isinstance(record, DNSAddress)
        }
        foreign = sorted(text for packed in addresses if (text := _text(packed)) not in own)
        ports = {
            record.port
            for info in self._infos
            for record in cache.get_all_by_details(info.name, _TYPE_SRV, _CLASS_IN)
            if isinstance(record, DNSService) and record.port != port
        }
        if not foreign and not ports:
            return None
        return foreign or sorted(self.announcement.addresses), min(ports, default=port)


def _text(packed: bytes) -> str:
    return bare(socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed))
