"""A listener on loopback with two small routes, and raw clients for it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.errors import NotFound
from appliance.hierarchy import ServerIdentity, read_server
from appliance.web.app import App, build_app
from appliance.web.limits import Limits
from appliance.web.peer import Peer
from appliance.web.routes import Handler, Route
from appliance.web.server import Listener, Timing
from appliance.web.tls import TlsFront
from est import profiles
from est.exchange import Call, Reply
from est.signer import KeySigner
from tests.appliance.authority import PASSPHRASE, home
from tests.support import key

NONE: frozenset[str] = frozenset()
ROUTES = (
    Route("device", "GET", "/who", "who", "anyone", NONE, 0, "none", 60),
    Route("device", "POST", "/echo", "echo", "anyone", NONE, 65_536, "none", 60),
    Route("device", "POST", "/.well-known/est/simpleenroll", "echo", "anyone", NONE, 65_536, "none", 60),
    Route("device", "POST", "/mine", "echo", "certificate", NONE, 1000, "none", 60),
    Route("device", "POST", "/json", "echo", "anyone", frozenset({"application/json"}), 1000, "none", 60),
    Route("device", "GET", "/things/{name}.txt", "thing", "anyone", NONE, 0, "none", 60),
    Route("device", "GET", "/docs/{path*}", "thing", "anyone", NONE, 0, "none", 60),
    Route("device", "GET", "/slow", "slow", "anyone", NONE, 0, "none", 0.3),
    Route("device", "POST", "/hasty", "echo", "anyone", NONE, 65_536, "none", 0.5),
    Route("device", "GET", "/patient", "slow", "anyone", NONE, 0, "none", 6),
    Route("device", "GET", "/broken", "broken", "anyone", NONE, 0, "none", 60),
    Route("device", "GET", "/refused", "refused", "anyone", NONE, 0, "none", 60),
    Route("device", "GET", "/bye", "bye", "anyone", NONE, 0, "none", 60),
    Route("device", "GET", "/limited", "who", "anyone", NONE, 0, "address", 60),
    Route("device", "GET", "/big", "big", "anyone", NONE, 0, "none", 60),
    Route("device", "GET", "/split", "split", "anyone", NONE, 0, "none", 60),
)


@dataclass
class Seen:
    """What the endpoints were called with."""

    calls: list[Call] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)


def endpoints(seen: Seen) -> Mapping[str, Handler]:
    async def who(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        seen.calls.append(call)
        seen.peers.append(peer)
        return Reply(200, "text/plain", body=str(peer.connection_id).encode())

    async def echo(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        seen.calls.append(call)
        seen.peers.append(peer)
        return Reply(200, "application/octet-stream", {"x-seen": call.media_type}, call.body)

    async def thing(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return Reply(200, "text/plain", body=repr(dict(params)).encode())

    async def slow(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        await asyncio.sleep(30)
        return Reply(200)

    async def broken(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        raise RuntimeError("the secret is 1234")

    async def refused(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        raise NotFound("no such thing", name="x")

    async def bye(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return Reply(401, "text/plain", {"connection": "close"}, b"go away")

    async def big(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return Reply(200, "application/octet-stream", body=bytes(8_000_000))

    async def split(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return Reply(200, "text/plain", {"x-a": "b\r\nx-evil: 1"}, b"")

    return {
        "who": who,
        "echo": echo,
        "thing": thing,
        "slow": slow,
        "broken": broken,
        "refused": refused,
        "bye": bye,
        "big": big,
        "split": split,
    }


def app(seen: Seen | None = None, limits: Limits | None = None) -> App:
    return build_app("device", endpoints(seen or Seen()), routes=ROUTES, limits=limits)


@cache
def identity() -> ServerIdentity:
    return read_server(home(), "registrar", PASSPHRASE)


def front() -> TlsFront:
    own = identity()
    return TlsFront(own.key, own.certificate, own.chain[:1])


@asynccontextmanager
async def listening(
    *,
    tls: bool = False,
    seen: Seen | None = None,
    timing: Timing | None = None,
    limits: Limits | None = None,
    sheds: bool = False,
) -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener("device", app(seen, limits), timing=timing, tls=front() if tls else None, sheds=sheds)
    port = await listener.open_tcp("127.0.0.1", 0)
    try:
        yield listener, port
    finally:
        await listener.close(1.0)


def certify(
    name: str,
    *,
    days: int = 1,
    age_days: int = 0,
    now_days: int = 0,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed client certificate of nobody we know, by the machine's clock."""
    from datetime import UTC, datetime

    private = key(name)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=age_days + now_days, hours=1)
    shape = profiles.root_ca(
        profiles.name(name), private.public_key(), serial=7, not_before=start, not_after=start + timedelta(days=days)
    )
    tbs = profiles.to_be_signed(shape, issuer_key=private.public_key())
    der = profiles.assemble(tbs, KeySigner(private).sign(tbs), private.public_key())
    return x509.load_der_x509_certificate(der), private


def client_context(
    folder: Path | None = None,
    client: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    version: ssl.TLSVersion | None = None,
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # certificates of the tests have a clock of their own
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if client is not None:
        assert folder is not None
        pem = client[0].public_bytes(Encoding.PEM)
        pem += client[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "client.pem").write_bytes(pem)
        context.load_cert_chain(folder / "client.pem")
    return context


@dataclass
class Answer:
    """One response, read strictly."""

    status: int
    headers: dict[str, str]
    body: bytes
    head_bytes: int


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext | None = None) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, *, head: bool = False) -> Answer:
        async with asyncio.timeout(60):
            raw = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            length = 0 if head else int(headers.get("content-length", "0"))
            return Answer(int(first.split(" ")[1]), headers, await self.reader.readexactly(length), len(raw))

    async def ask(self, data: bytes, *, head: bool = False) -> Answer:
        await self.send(data)
        return await self.read(head=head)

    async def is_closed(self, seconds: float = 60.0) -> bool:
        """Whether the server closes the connection within this time."""
        try:
            async with asyncio.timeout(seconds):
                return await self.reader.read(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""))
    return head.encode() + body
