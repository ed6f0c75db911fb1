"""One TLS connection to a registrar or EST server: who answers is read before anything is sent; it never reconnects.

Provisional (RFC 8995, section 5.1): the handshake verifies nothing, the server's chain is kept, and until `trust` has
checked it against the voucher's pin only the two BRSKI calls may go out. Anchorless (RFC 7030, section 4.1.1): only
cacerts may. Verified: the chain ends in our explicit anchors, and the server has the configured name or id-kp-cmcRA
(section 3.6.1); both are settled before the first octet of HTTP, so no credential reaches the wrong server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.proxy import http1
from appliance.proxy.errors import (
    CallNotAllowed,
    ConnectionClosed,
    PeerReplyMalformed,
    PeerSilent,
    PeerUnreachable,
    RedirectRefused,
    ServerNotAuthorized,
    ServerUntrusted,
    TlsHandshakeFailed,
)
from appliance.proxy.lower_bound import read_date
from appliance.proxy.state import ClientFiles
from appliance.proxy.tls import ClientSettings, TlsStream
from appliance.web.transports import abort
from est import chains
from est.exchange import Call, Reply
from est.keys import spki_sha256

CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
MAX_BODY_BYTES = 262_144
MAX_CHAIN = 6
MAX_CERTIFICATE_BYTES = 8_192


class Trust(Enum):
    """What is known about the server, hence what may be sent to it."""

    PROVISIONAL = "provisional"
    ANCHORLESS = "anchorless"
    TRUSTED = "trusted"
    REFUSED = "refused"


# Calls that may go out at each level; None = all. A refused server still hears the bad news (RFC 8995, section 5.6.2).
ALLOWED: dict[Trust, frozenset[tuple[str, str]] | None] = {
    Trust.PROVISIONAL: frozenset(
        {("POST", "/.well-known/brski/requestvoucher"), ("POST", "/.well-known/brski/voucher_status")}
    ),
    Trust.ANCHORLESS: frozenset({("GET", "/.well-known/est/cacerts")}),
    Trust.TRUSTED: None,
    Trust.REFUSED: frozenset({("POST", "/.well-known/brski/voucher_status")}),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens. `named`: the host came from the configuration, so it is a name to hold it to."""

    host: str
    port: int
    named: bool = False

    @property
    def authority(self) -> str:
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def host_header(self) -> str:
        """The authority for the peer's eyes: a zone means something on this machine only (RFC 6874, section 4)."""
        host = self.host.partition("%")[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def server_name(self) -> str | None:
        """What goes into SNI: a DNS name that was configured, never an address (RFC 6066, section 3)."""
        try:
            ipaddress.ip_address(self.host.partition("%")[0])
        except ValueError:
            return self.host if self.named else None
        return None

    @classmethod
    def read(cls, url: str) -> Target:
        """From `https://host[:port]`. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is not https://host[:port]")
        if parts.path not in ("", "/"):
            raise ValueError(f"{url!r} has a path; name only scheme, host and port")
        return cls(parts.hostname, parts.port or 443, named=True)


class Connection:
    """An open TLS connection that carries one exchange at a time. Made by the three `open_` functions."""

    def __init__(
        self,
        stream: TlsStream,
        target: Target,
        chain: tuple[x509.Certificate, ...],
        trust: Trust,
    ) -> None:
        self._reader = stream.reader
        self._writer = stream
        self._target = target
        self._trust = trust
        self._open = True
        self._busy = asyncio.Lock()
        self.chain = chain
        self.exchanges = 0
        self.date: datetime | None = None
        """What a trusted server said last about the time."""

    @property
    def leaf(self) -> x509.Certificate:
        """The end-entity certificate that the server showed."""
        return self.chain[0]

    def binding(self) -> bytes | None:
        """The channel binding of this TLS session (RFC 9266); None where it has none that can be relied on."""
        return self._writer.binding()

    @property
    def trust(self) -> Trust:
        return self._trust

    @property
    def usable(self) -> bool:
        """Neither side has closed, as far as is known without trying."""
        return self._open and not self._reader.at_eof() and not self._writer.is_closing()

    def upgrade(self, pin: x509.Certificate, *, at: datetime | None) -> None:
        """Leave the provisional state if the stored chain ends in `pin`; `at` None = dates are not judged.

        Raises what est.chains.check_pin raises; the connection then accepts voucher_status only.
        """
        if self._trust is not Trust.PROVISIONAL:
            raise CallNotAllowed("only a provisional connection can be upgraded")
        self._trust = Trust.REFUSED
        chains.check_pin(self.chain, pin, at=at)
        self._trust = Trust.TRUSTED

    def refuse(self) -> None:
        """From now on this server hears voucher_status at most."""
        self._trust = Trust.REFUSED

    async def exchange(self, call: Call, *, seconds: float, max_body_bytes: int = MAX_BODY_BYTES) -> Reply:
        """Send a call and read its answer on this very connection.

        Raises CallNotAllowed, ConnectionClosed, PeerSilent, PeerReplyMalformed, PeerReplyTooLarge, RedirectRefused;
        after each but the first the connection is closed.
        """
        allowed = ALLOWED[self._trust]
        if allowed is not None and (call.method, call.path) not in allowed:
            raise CallNotAllowed(f"{call.path} may not be asked of a server that is only {self._trust.value}")
        if self._trust is Trust.ANCHORLESS and "authorization" in {name.lower() for name in call.headers}:
            raise CallNotAllowed("no HTTP credential goes to a server that is not authenticated")
        async with self._busy:
            if not self.usable:
                await self.close()
                raise ConnectionClosed("the peer has closed the connection", answered=False)
            try:
                async with asyncio.timeout(seconds):
                    self._writer.write(http1.write_request(call, self._target.host_header))
                    await self._writer.drain()
                    answer = await http1.read_answer(self._reader, call.method, max_body_bytes=max_body_bytes)
            except TimeoutError as cause:
                await self.close()
                raise PeerSilent(f"no answer to {call.path} within {seconds:g} s") from cause
            except (OSError, ssl.SSLError) as cause:
                await self.close()
                raise ConnectionClosed(f"the connection broke: {_words(cause)}", answered=False) from cause
            except BaseException:  # cancelled or refused in the middle: what comes next on the line belongs to nobody
                await self.close()
                raise
            self.exchanges += 1
            if self._trust is Trust.TRUSTED:
                self.date = read_date(answer.reply.headers.get("date", "")) or self.date
            if not answer.reusable:
                await self.close()
        if 300 <= answer.reply.status <= 399:
            await self.close()
            raise RedirectRefused(f"{call.path} was answered with a redirect ({answer.reply.status}); none is followed")
        return answer.reply

    async def close(self) -> None:
        """Close without waiting for the peer's good-bye."""
        if self._open:
            self._open = False
            self._writer.close()
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(0.2):
                    await self._writer.wait_closed()
            abort(self._writer.transport)


async def open_provisional(target: Target, client: ClientFiles, *, seconds: float) -> Connection:
    """Connect with the IDevID and verify nothing yet; the server's chain is stored in the connection."""
    return await _open(target, _settings(client), Trust.PROVISIONAL, seconds)


async def open_anchorless(target: Target, *, seconds: float) -> Connection:
    """Connect without any anchor, for nothing but cacerts, which is then confirmed by a fingerprint."""
    return await _open(target, _settings(None), Trust.ANCHORLESS, seconds)


async def open_verified(
    target: Target,
    anchors: Sequence[x509.Certificate],
    client: ClientFiles | None,
    *,
    seconds: float,
    trust_clock: bool = True,
    implicit: bool = False,
) -> Connection:
    """Connect to a server whose chain ends in `anchors` and that is authorized for EST (RFC 7030, section 3.6).

    `implicit` anchors are those that come with a machine: anybody may have a certificate under them, so it must bear
    the configured name. Under explicit ones the mark of a registration authority is as good.

    Raises PeerUnreachable, TlsHandshakeFailed, ServerUntrusted, ServerNotAuthorized.
    """
    settings = _settings(client, anchors, trust_clock=trust_clock)
    connection = await _open(target, settings, Trust.TRUSTED, seconds)
    try:
        check_authorized(connection.leaf, target, implicit=implicit)
    except ServerNotAuthorized:
        await connection.close()
        raise
    return connection


async def open_pinned(target: Target, pin: bytes, client: ClientFiles, *, seconds: float) -> Connection:
    """Connect to a server whose own key has this SHA-256 of its SubjectPublicKeyInfo, whatever its certificate says.

    Raises PeerUnreachable, TlsHandshakeFailed, ServerUntrusted.
    """
    connection = await _open(target, _settings(client, pin=pin), Trust.TRUSTED, seconds)
    if spki_sha256(connection.leaf) != pin:  # the handshake has ended on it already
        await connection.close()
        raise ServerUntrusted(f"{target.authority} has another key than the one that is pinned")
    return connection


def check_authorized(certificate: x509.Certificate, target: Target, *, implicit: bool = False) -> None:
    """The name of the configured URI (RFC 7030, section 3.6.2), or where the anchor is explicit id-kp-cmcRA (3.6.1).

    Raises ServerNotAuthorized.
    """
    if target.named and has_name(certificate, target.host):
        return
    if implicit:
        raise ServerNotAuthorized("the server has not the configured name, and its anchor is an implicit one")
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError) as cause:
        raise ServerNotAuthorized("the server has neither the configured name nor the RA mark") from cause
    if CMC_RA not in usages:
        raise ServerNotAuthorized("the server has neither the configured name nor the RA mark (id-kp-cmcRA)")


def has_name(certificate: x509.Certificate, host: str) -> bool:
    """RFC 6125: a dNSName (wildcard as whole left-most label only) or an iPAddress; the CN is not looked at."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    try:
        return ipaddress.ip_address(host.partition("%")[0]) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        pass
    wanted = host.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    known = {name.lower().rstrip(".") for name in names.get_values_for_type(x509.DNSName)}
    return wanted in known or ("." in parent and f"*.{parent}" in known)


def _settings(
    client: ClientFiles | None,
    anchors: Sequence[x509.Certificate] | None = None,
    *,
    trust_clock: bool = True,
    pin: bytes | None = None,
) -> ClientSettings:
    try:
        return ClientSettings(client, anchors, trust_clock=trust_clock, pin=pin)
    except (OSError, ssl.SSLError) as cause:
        raise TlsHandshakeFailed(f"our own certificate or key does not load: {_words(cause)}") from cause


async def _open(target: Target, settings: ClientSettings, trust: Trust, seconds: float) -> Connection:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            stream = TlsStream(reader, writer, settings, server_name=target.server_name, limit=http1.MAX_HEAD_BYTES)
            await stream.handshake()
        chain = stream.chain()
        _check_chain(chain)
        opened = Connection(stream, target, chain, trust)
    except ssl.SSLCertVerificationError as cause:
        raise ServerUntrusted(f"{target.authority} does not chain to our anchors: {cause.verify_message}") from cause
    except ssl.SSLError as cause:
        raise TlsHandshakeFailed(f"TLS with {target.authority} failed: {_words(cause)}") from cause
    except TimeoutError as cause:
        raise PeerUnreachable(f"{target.authority} does not answer within {seconds:g} s") from cause
    except OSError as cause:
        raise PeerUnreachable(f"{target.authority} cannot be reached: {_words(cause)}") from cause
    except (PeerReplyMalformed, ValueError) as cause:
        raise TlsHandshakeFailed(f"{target.authority} shows certificates that do not read") from cause
    else:
        writer = None
        return opened
    finally:
        if writer is not None:
            writer.close()  # what the handshake still had to say, an alert perhaps, goes out


def _check_chain(chain: Sequence[x509.Certificate]) -> None:
    sizes = [len(one.public_bytes(Encoding.DER)) for one in chain]
    if not 1 <= len(chain) <= MAX_CHAIN or max(sizes) > MAX_CERTIFICATE_BYTES:
        raise PeerReplyMalformed("the server's chain is empty, too long or too large")


def _words(cause: BaseException) -> str:
    if isinstance(cause, ConnectionResetError):
        return "the peer reset it (a TLS 1.3 server that does not know our certificate's issuer answers like this)"
    if isinstance(cause, ssl.SSLError) and getattr(cause, "reason", None):
        return cause.reason.lower().replace("_", " ")
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return type(cause).__name__
