"""Finding registrars and join proxies by mDNS (RFC 8995, appendix B): a bounded list of places to try, nothing more.

What an announcement says is a rumour. It decides where a connection goes, never what is believed there: offers carry
addresses and ports only, the instance and host names are used for log lines. Every link is listened to by itself, so an
address that means something on one link is never looked for on another; a link that comes back is asked anew. Where
more is announced than there is room for, chance decides what is kept, again and again: nobody fills the list for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
from collections.abc import Callable, Sequence
from types import TracebackType

from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from appliance.mdns.links import Link, LinkWatch, bare, find_links, is_link_local
from appliance.mdns.queries import QueryTiming, keep_asking, listen_first
from appliance.mdns.responder import open_zeroconf
from brski.discovery import MAX_OFFERS, PROXY_SERVICE, REGISTRAR_SERVICE, Offer, read_txt

log = logging.getLogger(__name__)

MAX_KNOWN = 4 * MAX_OFFERS
MAX_WAITING = 1024
MAX_ADDRESSES = 4
_RESOLVE_SECONDS = 3.0
_RESOLVERS = 4
_CLOSE_SECONDS = 2.0
_CHANCE = random.SystemRandom()


class Discovery:
    """Listens on the wanted links while it is open; `offers` is what is known now.

    `changes` counts the times that a link came or its addresses changed: whoever keeps back-off timers starts them anew
    then (RFC 8995, section 4.1).
    """

    def __init__(
        self,
        interfaces: Sequence[str],
        *,
        services: Sequence[str] = (REGISTRAR_SERVICE, PROXY_SERVICE),
        queries: QueryTiming | None = None,
    ) -> None:
        self._interfaces = tuple(interfaces)
        self._services = tuple(services)
        self._queries = queries or QueryTiming()
        self._ears: dict[str, _Ear] = {}
        self._news = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.changes = 0

    async def __aenter__(self) -> Discovery:
        await self._follow_links()
        self._watching = asyncio.create_task(self._watch(), name="discovery-links")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(ear.close() for ear in self._ears.values()))
        self._ears.clear()

    def offers(self) -> list[Offer]:
        """One offer per address and port, in no particular order: a registrar may announce itself as proxy as well."""
        seen: dict[tuple[str, int, frozenset[str]], Offer] = {}
        for ear in self._ears.values():
            for offer in ear.offers.values():
                seen.setdefault((offer.addresses[0], offer.port, offer.variations), offer)
        return list(seen.values())

    async def wait(self, seconds: float | None) -> None:
        """Until something changed in what is known since the last return, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()

    async def _watch(self) -> None:
        async with LinkWatch() as watch:
            while True:
                await watch.changed()
                await self._follow_links()

    async def _follow_links(self) -> None:
        links = {link.name: link for link in find_links(self._interfaces)}
        gone = [name for name, ear in self._ears.items() if links.get(name) != ear.link]
        fresh = [link for name, link in links.items() if name not in self._ears or name in gone]
        if gone or fresh:
            self.changes += 1
            self._news.set()
        await asyncio.gather(*(self._ears.pop(name).close() for name in gone))
        for link in fresh:
            ear = _Ear(link, self._services, self._queries, self._news.set)
            try:
                await ear.open()
            except OSError as cause:
                log.warning("discovery-failed link=%s cause=%r", link.name, cause)
                await ear.close()
                continue
            self._ears[link.name] = ear


class _Ear:
    """What is heard on one link."""

    def __init__(self, link: Link, services: Sequence[str], queries: QueryTiming, tell: Callable[[], None]) -> None:
        self.link = link
        self.offers: dict[str, Offer] = {}
        self._services = services
        self._queries = queries
        self._tell = tell
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._waiting: set[str] = set()
        self._resolvers = asyncio.Semaphore(_RESOLVERS)
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._asking: asyncio.Task[None] | None = None
        self._reviewing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises OSError."""
        self._zeroconf = await open_zeroconf(self.link)
        self._asking = asyncio.create_task(self._ask(self._zeroconf.zeroconf), name=f"discovery {self.link.name}")
        self._reviewing = asyncio.create_task(self._review(), name=f"discovery review {self.link.name}")

    async def close(self) -> None:
        tasks = [*self._resolving.values(), *(task for task in (self._asking, self._reviewing) if task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                if self._browser is not None:
                    await self._browser.async_cancel()
                if self._zeroconf is not None:
                    await self._zeroconf.async_close()

    async def _ask(self, zeroconf: Zeroconf) -> None:
        await listen_first(zeroconf, self._services, self._queries.listen)
        self._browser = AsyncServiceBrowser(zeroconf, list(self._services), handlers=[self._heard])
        await keep_asking(zeroconf, self._services, self._queries)

    def _heard(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:  # zeroconf calls with these keywords
        if state_change is ServiceStateChange.Removed:
            self._waiting.discard(name)
            if self.offers.pop(name, None) is not None:
                self._tell()
            return
        self._look_up(name)

    def _look_up(self, name: str) -> None:
        if name in self._resolving:
            return
        if len(self._resolving) >= MAX_KNOWN:
            self._postpone(name)
            return
        self._waiting.discard(name)
        task = asyncio.get_running_loop().create_task(self._resolve(name))
        self._resolving[name] = task
        task.add_done_callback(lambda _: self._resolving.pop(name, None))

    async def _resolve(self, name: str) -> None:
        service = next((one for one in self._services if name.endswith(one)), None)
        if service is None or self._zeroconf is None:
            return
        async with self._resolvers:
            info = AsyncServiceInfo(service, name)
            if not await info.async_request(self._zeroconf.zeroconf, _RESOLVE_SECONDS * 1000):
                if name not in self.offers:
                    self._postpone(name)
                return
        offer = read_offer(info, self.link.name)
        if offer is not None:
            self._keep(name, offer)
            log.debug("registrar announced instance=%r addresses=%s port=%d", name, offer.addresses, offer.port)

    def _keep(self, name: str, offer: Offer) -> None:
        """One more offer; where there is no room, one that chance names waits. Attempts under way are not touched."""
        if name not in self.offers and len(self.offers) >= MAX_KNOWN:
            leaves = _CHANCE.choice(list(self.offers))
            del self.offers[leaves]
            self._postpone(leaves)
        self.offers[name] = offer
        self._tell()

    def _postpone(self, name: str) -> None:
        """Remember a name for the next review: it found no room, or nobody said where it is."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.discard(_CHANCE.choice(list(self._waiting)))
        self._waiting.add(name)

    async def _review(self) -> None:
        """Look up some of the names that wait, ever more rarely: at the pauses of the questions (RFC 6762, 5.2)."""
        number = 0
        while True:
            await asyncio.sleep(self._queries.pauses(number))
            number += 1
            waiting = list(self._waiting)
            for name in _CHANCE.sample(waiting, min(len(waiting), MAX_KNOWN // 4)):
                self._look_up(name)


def read_offer(info: AsyncServiceInfo, link: str = "") -> Offer | None:
    """An announcement heard on `link` as an offer; None when nothing can be reached through it.

    Link-local addresses get the link as their zone: that is where they mean something.
    """
    addresses = [bare(text) for text in info.parsed_scoped_addresses() if _usable(text)]
    # IPv6 link-local towards the pledge is what RFC 8995 prefers (section 4.1)
    addresses.sort(key=lambda text: not is_link_local(text))
    if not addresses or not info.port:
        return None
    return Offer(
        instance=info.name,
        addresses=tuple(_zoned(text, link) for text in dict.fromkeys(addresses))[:MAX_ADDRESSES],
        port=info.port,
        variations=read_txt(info.properties),
        priority=info.priority,
    )


def _zoned(address: str, link: str) -> str:
    return f"{address}%{link}" if link and ":" in address and is_link_local(address) else address


def _usable(text: str) -> bool:
    address = ipaddress.ip_address(bare(text))
    return not (address.is_unspecified or address.is_multicast)
