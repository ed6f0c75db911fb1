"""Keeps announcements true: per link, through changes of cables and addresses, and only while connections are taken.

What is announced is a hint to find us; nobody may trust it. While the port does not take connections, nothing is
announced (draft-ietf-anima-brski-discovery wants that within 120 s; we look every 30 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence

from zeroconf.asyncio import AsyncServiceInfo

from appliance.mdns.links import EVERY, Link, LinkWatch, bare, find_links, version
from appliance.mdns.responder import Announcement, Responder

log = logging.getLogger(__name__)

PROBE_SECONDS = 30.0
CONNECT_SECONDS = 5.0
_ANY4, _ANY6 = "0.0.0.0", "::"  # noqa: S104 - compared, not bound


class Announcer:
    """Announces `services` at `port` on the wanted links, from `start` to `stop`.

    `interfaces` are names, addresses, or `*`; `host` is the address the port listens on; `instance` names this server
    among others on the link and carries no meaning. `is_alive` answers whether the service works; by default, whether
    the port takes connections.
    """

    def __init__(
        self,
        *,
        interfaces: Sequence[str],
        host: str,
        port: int,
        instance: str,
        services: Sequence[str],
        priority: int = 0,
        probe_seconds: float = PROBE_SECONDS,
        is_alive: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._interfaces = tuple(interfaces)
        self._host = host
        self._port = port
        self._instance = instance
        self._services = tuple(services)
        self._priority = priority
        self._probe_seconds = probe_seconds
        self._is_alive = is_alive or self._takes_connections
        self._responders: dict[str, Responder] = {}
        self._task: asyncio.Task[None] | None = None
        self._nudged = asyncio.Event()

    async def start(self) -> None:
        """Announces on the links that are there if the service works, and watches from then on."""
        await self._make_true(is_alive=await self._is_alive())
        self._task = asyncio.create_task(self._keep_true(), name="mdns-announce")

    async def stop(self) -> None:
        """Withdraws and closes; safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._close(list(self._responders))

    @property
    def is_announced(self) -> bool:
        """Whether records are out at the moment, on any link."""
        return bool(self._responders)

    def names(self) -> dict[str, str]:
        """Link name to instance name, as announced now."""
        return {link: responder.name for link, responder in self._responders.items()}

    def services(self) -> tuple[AsyncServiceInfo, ...]:
        """All records that are out."""
        return tuple(info for responder in self._responders.values() for info in responder.infos)

    def look_again(self) -> None:
        """Ask `is_alive` now and not only at the next round."""
        self._nudged.set()

    async def _keep_true(self) -> None:
        loop = asyncio.get_running_loop()
        async with LinkWatch() as watch:
            known, due = find_links(self._interfaces), loop.time() + self._probe_seconds
            while True:
                waiting = [asyncio.ensure_future(watch.changed()), asyncio.ensure_future(self._nudged.wait())]
                try:
                    pause = max(0.0, due - loop.time())
                    await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in waiting:
                        one.cancel()
                    await asyncio.gather(*waiting, return_exceptions=True)
                nudged, links = self._nudged.is_set(), find_links(self._interfaces)
                self._nudged.clear()
                if links == known and not nudged and loop.time() < due:
                    continue  # some other interface of this machine; they may come and go all the time
                known, due = links, loop.time() + self._probe_seconds
                await self._make_true(is_alive=await self._is_alive())

    async def _make_true(self, *, is_alive: bool) -> None:
        """One responder per link, restarted where the link or its addresses changed (RFC 6762, section 8)."""
        wanted = (
            {link.name: (link, self._announcement(link)) for link in find_links(self._interfaces)} if is_alive else {}
        )
        if not is_alive and self._responders:
            log.warning("announcement-withdrawn port=%d does not serve", self._port)
        stale = [
            name
            for name, responder in self._responders.items()
            if name not in wanted or wanted[name] != (responder.link, responder.announcement)
        ]
        await self._close(stale)
        own = frozenset(bare(text) for link in find_links((EVERY, "lo", *self._interfaces)) for text in link.addresses)
        for name, responder in list(self._responders.items()):
            if not await responder.keep_unique(own):
                del self._responders[name]
        fresh = [
            Responder(link, announcement)
            for name, (link, announcement) in wanted.items()
            if name not in self._responders and announcement.addresses
        ]
        opened = await asyncio.gather(*(responder.open() for responder in fresh))
        self._responders |= {one.link.name: one for one, is_open in zip(fresh, opened, strict=True) if is_open}

    async def _close(self, names: Sequence[str]) -> None:
        await asyncio.gather(*(self._responders.pop(name).close() for name in names))

    def _announcement(self, link: Link) -> Announcement:
        addresses = tuple(dict.fromkeys(bare(text) for text in self._addresses(link)))
        return Announcement(self._instance, self._services, self._port, addresses, self._priority)

    def _addresses(self, link: Link) -> Sequence[str]:
        """What of ours can be reached through this link."""
        if self._host == _ANY4:
            return [text for text in link.addresses if version(text) == 4]
        if self._host == _ANY6:
            return [text for text in link.addresses if version(text) == 6]
        try:
            host = ipaddress.ip_address(bare(self._host))
        except ValueError:
            return link.addresses
        if host.is_loopback and str(host) not in link.addresses:
            log.warning("announce-skipped link=%s: the port listens on loopback only", link.name)
            return []
        return [str(host)]

    async def _takes_connections(self) -> bool:
        own = {_ANY4: "127.0.0.1", _ANY6: "::1", "": "127.0.0.1"}
        return await takes_connections(own.get(self._host, self._host), self._port)


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
