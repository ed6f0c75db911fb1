"""The one outward client of the registrar: HTTPS to a MASA (RFC 8995, section 5.4).

A pledge chooses neither host nor address: the destination was matched against the manufacturer's list before it comes
here, names are resolved once per connection, every address is checked, and the connection goes to a checked address.
Redirects are not followed, answers are bounded in bytes and time, and calls to one MASA are limited in number.
Does not judge what the MASA says; that is `MasaExchange.conclude`.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import socket
import ssl
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from appliance.registrar.errors import MasaBusy
from appliance.registrar.masa_credentials import NO_CREDENTIALS, MasaCredentials
from appliance.settings import RegistrarSettings
from brski.errors import MasaAnswerInvalid, MasaNotAllowed, MasaTimedOut, MasaUnreachable
from est.exchange import Call, Reply

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 262_144
MAX_SESSIONS = 32
RETRY_AFTER_SECONDS = 30
BUSY_SECONDS = 5
# Shorter than any server's keep-alive, so that a kept connection is seldom a dead one.
KEEPALIVE_SECONDS = 4.0
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Global to the library, not to us: IPv4-compatible, local-use NAT64 (RFC 8215), site-local.
_INSIDE = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b:1::/48", "fec0::/10")))


@dataclass(frozen=True, slots=True)
class MasaDestination:
    """Where a call goes and what is trusted there.

    `base` is `https://host[:port]`; `tls_anchors_pem` are the manufacturer's anchors for MASA TLS; `public_anchors`
    adds the machine's own trust store, which is never used unasked; `listed` holds the hosts that the administrator
    listed literally: only these may be loopback or private addresses. `credentials` are what we show there instead of
    the registrar's certificate; `concurrency` is the limit of calls at once, 0 for the site's.
    """

    base: str
    tls_anchors_pem: str = ""
    public_anchors: bool = False
    listed: frozenset[str] = field(default=frozenset())
    credentials: MasaCredentials = NO_CREDENTIALS
    concurrency: int = 0


class MasaTransport(Protocol):
    """How a call reaches a MASA; tests answer it from memory."""

    async def send(self, call: Call, to: MasaDestination) -> Reply:
        """The MASA's answer, whatever its status.

        Raises MasaNotAllowed, MasaUnreachable, MasaTimedOut, MasaAnswerInvalid, MasaBusy, MasaCredentialsUnusable.
        """
        ...

    async def close(self) -> None:
        """Ends every connection."""
        ...


def check_address(address: str, host: str, listed: frozenset[str]) -> None:
    """Refuses an address that a public name must not lead to (server-side request forgery).

    Global unicast addresses pass; any other passes only when it, or the name `localhost`, stands literally on the list.
    Raises MasaNotAllowed.
    """
    found = _reached(ipaddress.ip_address(address.partition("%")[0]))
    if found.is_multicast or found.is_unspecified or found.is_link_local:
        raise MasaNotAllowed("the MASA's address is not a unicast address of a server", host=host, address=address)
    if found.is_global and not any(found in inside for inside in _INSIDE):
        return
    if str(found) in listed or (found.is_loopback and host == "localhost" and "localhost" in listed):
        return
    raise MasaNotAllowed("the MASA's name leads to a private address that is not listed", host=host, address=address)


def _reached(address: IPAddress) -> IPAddress:
    """The address that a packet ends at: IPv4 inside IPv6 (mapped, NAT64, 6to4) is taken out."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


class _CheckedResolver(AbstractResolver):
    """Resolves once per connection and hands out checked addresses only; aiohttp connects to exactly these."""

    def __init__(self, listed: frozenset[str]) -> None:
        self._listed = listed

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        results: list[ResolveResult] = []
        for kind, _, proto, _, address in found:
            check_address(str(address[0]), host, self._listed)
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=kind,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """Nothing is held."""


class HttpsMasa:
    """MasaTransport over sockets: one small connection pool and one limit of calls per MASA."""

    def __init__(
        self,
        settings: RegistrarSettings,
        *,
        load_identity: Callable[[ssl.SSLContext], None] | None = None,
    ) -> None:
        """`load_identity` puts the registrar's certificate and key into a context (RFC 8995, section 5.4.1)."""
        self._seconds = settings.masa_seconds
        self._concurrency = settings.masa_concurrency
        self._load_identity = load_identity
        self._lanes: OrderedDict[tuple[str, str], _Lane] = OrderedDict()
        self._contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()

    def reload_identity(self) -> None:
        """The registrar has another certificate: new connections show it, those that are open go on."""
        if self._load_identity is not None:
            for context in self._contexts:
                self._load_identity(context)

    async def send(self, call: Call, to: MasaDestination) -> Reply:
        """The MASA's answer, whatever its status."""
        url = URL(to.base)
        if url.scheme != "https" or not url.host:
            raise MasaNotAllowed("a MASA is reached by https only", base=to.base)
        _check_literal(url.host, to.listed)
        lane = self._lane(to)
        lane.users += 1
        try:
            return await self._in_turn(lane, url, call)
        finally:
            lane.users -= 1
            await self._shrink()

    async def _in_turn(self, lane: _Lane, url: URL, call: Call) -> Reply:
        try:
            async with asyncio.timeout(self._seconds):
                await lane.limit.acquire()
        except TimeoutError as cause:
            raise MasaBusy("too many calls wait for this MASA", retry_after_seconds=BUSY_SECONDS) from cause
        try:
            async with asyncio.timeout(self._seconds):
                return await self._exchange(lane, url, call)
        except TimeoutError as cause:
            raise MasaTimedOut("the MASA did not answer in time", host=url.host, seconds=self._seconds) from cause
        finally:
            lane.limit.release()

    async def close(self) -> None:
        lanes, self._lanes = self._lanes, OrderedDict()
        for lane in lanes.values():
            await lane.session.close()

    async def _exchange(self, lane: _Lane, url: URL, call: Call) -> Reply:
        # No silent retry: the MASA logs every voucher, and each of our calls must stand in our own records first.
        try:
            return await _post(lane, url, call)
        except (aiohttp.ServerDisconnectedError, ConnectionResetError) as cause:
            raise _unreachable(url, "closed the connection without an answer", cause) from cause
        except aiohttp.ClientConnectorDNSError as cause:
            raise _unreachable(url, "has no address", cause) from cause
        except (aiohttp.ClientSSLError, ssl.SSLError, ssl.CertificateError) as cause:
            raise _unreachable(url, "showed a TLS certificate that is not trusted, or refused ours", cause) from cause
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as cause:
            raise MasaAnswerInvalid("the MASA's answer broke off or is not HTTP", host=url.host) from cause
        except (aiohttp.ClientError, OSError) as cause:
            raise _unreachable(url, "cannot be reached", cause) from cause

    def _lane(self, to: MasaDestination) -> _Lane:
        """The pool for this host and these anchors."""
        key = (to.base, _digest(to))
        lane = self._lanes.get(key)
        if lane is None:
            concurrency = to.concurrency or self._concurrency
            authorization = to.credentials.authorization()
            connector = aiohttp.TCPConnector(
                ssl=self._context(to),
                resolver=_CheckedResolver(to.listed),
                use_dns_cache=False,
                limit=concurrency,
                keepalive_timeout=KEEPALIVE_SECONDS,
            )
            session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                max_line_size=8190,
                max_field_size=8190,
            )
            lane = self._lanes[key] = _Lane(session, asyncio.Semaphore(concurrency), authorization)
        self._lanes.move_to_end(key)
        return lane

    async def _shrink(self) -> None:
        """The least recently used pools give way where there are too many; never one that somebody uses or awaits."""
        idle = [key for key, lane in self._lanes.items() if not lane.users]
        for lane in [self._lanes.pop(key) for key in idle[: max(0, len(self._lanes) - MAX_SESSIONS)]]:
            await lane.session.close()

    def _context(self, to: MasaDestination) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False  # the name is a DNS-ID (RFC 8995, section 5.4; RFC 9525)
        if to.public_anchors:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if to.tls_anchors_pem:
            # An anchor is what the administrator named, be it a root, an intermediate or the server's certificate.
            context.load_verify_locations(cadata=to.tls_anchors_pem)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if to.credentials.has_certificate:
            to.credentials.load_into(context)
        elif self._load_identity is not None:
            self._load_identity(context)
            self._contexts.add(context)
        return context


@dataclass(slots=True)
class _Lane:
    session: aiohttp.ClientSession
    limit: asyncio.Semaphore
    authorization: str = field(default="", repr=False)
    users: int = 0


async def _post(lane: _Lane, url: URL, call: Call) -> Reply:
    headers = {**call.headers, "accept-encoding": "identity", "user-agent": "campus-appliance"}
    if call.media_type:
        headers["content-type"] = call.media_type
    if lane.authorization:
        headers["authorization"] = lane.authorization
    target = URL(f"{url.origin()}{call.path}", encoded=True)  # as it stands: a query and its escapes are the MASA's
    async with lane.session.request(
        call.method, target, data=call.body, headers=headers, allow_redirects=False
    ) as answer:
        if (answer.content_length or 0) > MAX_ANSWER_BYTES:
            answer.close()
            raise MasaAnswerInvalid("the MASA's answer is too large", host=url.host, limit=MAX_ANSWER_BYTES)
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                answer.close()
                raise MasaAnswerInvalid("the MASA's answer is too large", host=url.host, limit=MAX_ANSWER_BYTES)
        return Reply(answer.status, answer.headers.get("content-type", ""), _headers(answer.headers), bytes(body))


def _headers(found: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in found.items()}


def _check_literal(host: str, listed: frozenset[str]) -> None:
    """aiohttp asks no resolver for a literal address, so it is checked here."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    check_address(host, host, listed)


def _unreachable(url: URL, what: str, cause: BaseException) -> MasaUnreachable:
    log.warning("masa-unreachable host=%s what=%r cause=%r", url.host, what, cause)
    return MasaUnreachable(
        "the manufacturer's service cannot be reached",
        because=what,
        host=url.host,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _digest(to: MasaDestination) -> str:
    parts = (
        to.tls_anchors_pem,
        str(to.public_anchors),
        str(to.concurrency),
        to.credentials.state(),
        *sorted(to.listed),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
