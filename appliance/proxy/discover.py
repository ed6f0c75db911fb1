"""Finding registrars and join proxies by mDNS (RFC 8995, appendix B): a bounded list of places to try, nothing more.

What an announcement says is a rumour. It decides where a connection goes, never what is believed there: offers carry
addresses and ports only, the instance and host names are used for log lines. Queries, their doubling pauses and the
rules against storms (RFC 6762, section 5.2 and 7) are zeroconf's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Sequence
from types import TracebackType

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from brski.discovery import MAX_OFFERS, PROXY_SERVICE, REGISTRAR_SERVICE, Offer, read_txt

log = logging.getLogger(__name__)

MAX_KNOWN = 4 * MAX_OFFERS
MAX_ADDRESSES = 4
_RESOLVE_SECONDS = 3.0
_RESOLVERS = 4


class Discovery:
    """Listens on the given interface addresses while it is open; `offers` is what is known now."""

    def __init__(self, interfaces: Sequence[str]) -> None:
        self._interfaces = list(interfaces)
        self._offers: dict[str, Offer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._resolvers = asyncio.Semaphore(_RESOLVERS)
        self._changed = asyncio.Event()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None

    async def __aenter__(self) -> Discovery:
        only_v4 = all(ipaddress.ip_address(one.partition("%")[0]).version == 4 for one in self._interfaces)
        self._zeroconf = AsyncZeroconf(
            interfaces=self._interfaces, ip_version=IPVersion.V4Only if only_v4 else IPVersion.All
        )
        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, [REGISTRAR_SERVICE, PROXY_SERVICE], handlers=[self._heard]
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            await self._zeroconf.async_close()

    def offers(self) -> list[Offer]:
        """One offer per address and port, in no particular order: a registrar may announce itself as proxy as well."""
        seen: dict[tuple[str, int], Offer] = {}
        for offer in self._offers.values():
            seen.setdefault((offer.addresses[0], offer.port), offer)
        return list(seen.values())

    async def wait(self, seconds: float | None) -> None:
        """Until something changes in what is known, or the time is over."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _heard(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:  # zeroconf calls with these keywords
        if state_change is ServiceStateChange.Removed:
            if self._offers.pop(name, None) is not None:
                self._changed.set()
            return
        if name in self._tasks or (name not in self._offers and len(self._offers) + len(self._tasks) >= MAX_KNOWN):
            return
        task = asyncio.get_running_loop().create_task(self._resolve(zeroconf, service_type, name))
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        async with self._resolvers:
            info = AsyncServiceInfo(service_type, name)
            if not await info.async_request(zeroconf, _RESOLVE_SECONDS * 1000):
                return
        offer = read_offer(info)
        if offer is not None:
            self._offers[name] = offer
            self._changed.set()
            log.debug("registrar announced instance=%r addresses=%s port=%d", name, offer.addresses, offer.port)


def read_offer(info: AsyncServiceInfo) -> Offer | None:
    """An announcement as an offer; None when nothing can be reached through it."""
    addresses = [text for text in info.parsed_scoped_addresses() if _usable(text)]
    # IPv6 link-local towards the pledge is what RFC 8995 prefers (section 4.1)
    addresses.sort(key=lambda text: not ipaddress.ip_address(text.partition("%")[0]).is_link_local)
    if not addresses or not info.port:
        return None
    return Offer(
        instance=info.name,
        addresses=tuple(addresses[:MAX_ADDRESSES]),
        port=info.port,
        variations=read_txt(info.properties),
        priority=info.priority,
    )


def _usable(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    return not (address.is_unspecified or address.is_multicast)
