"""Registrar, EST and identity server for the proxy's tests: real TLS on loopback, protocol by our own pure roles.

Whatever a test wants to go wrong is put into `instead`: path -> function(call, client certificate, proper answer).
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.settings import ProxySettings
from brski import Manufacturer, Masa, Registrar
from est import EstServer, KeySigner, csr, profiles, transfer
from est.csrattrs import CsrAttrs
from est.exchange import Call, Reply
from est.linking import key_and_names_sha256
from lab.factory import CMC_RA, Domain, Factory, Identity, make_leaf

BORN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
PROXY_ID = "spiffe://campus.example/proxy/0b3f6a34-1f0e-4f0e-9d5c-6a8c1c6b7a11"
MASA = "masa.example:9443"
CLOSE = object()
"""An `instead` function returns this to close the connection without an answer."""

Instead = Callable[[Call, x509.Certificate | None, Callable[[], Reply]], object]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the server saw it."""

    connection: int
    call: Call
    client: x509.Certificate | None
    server_name: str | None

    @property
    def path(self) -> str:
        return self.call.path


def server_identity(domain: Domain, *, names: Sequence[x509.GeneralName] = (), ra: bool = True) -> Identity:
    """A TLS server certificate of the domain's CA, with these names, with or without the RA mark."""
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, *([CMC_RA] if ra else [])]
    extensions: list[tuple[x509.ExtensionType, bool]] = [(x509.ExtendedKeyUsage(usages), False)]
    if names:
        extensions.append((x509.SubjectAlternativeName(names), False))
    return make_leaf(domain.ca, profiles.name("est server"), now=BORN, days=90, extensions=extensions)


class Campus:
    """`async with Campus(...) as campus`: listens on `campus.port`, records every request in `campus.seen`."""

    def __init__(
        self,
        factory: Factory,
        domain: Domain,
        *,
        identity: Identity | None = None,
        chain: Sequence[x509.Certificate] | None = None,
        ldevid_days: float = 30,
    ) -> None:
        self.factory = factory
        self.domain = domain
        self.identity = identity or domain.registrar
        self.chain = tuple(chain if chain is not None else self.identity.chain)
        self.ldevid_days = ldevid_days
        self.seen: list[Seen] = []
        self.instead: dict[str, Instead] = {}
        self.demanded = CsrAttrs()
        self.routes: dict[str, Callable[[Call, x509.Certificate | None], Reply]] = {}
        self.issued: list[x509.Certificate] = []
        self.anchors_served: list[x509.Certificate] = [domain.root.certificate, domain.ca.certificate]
        self.secrets: set[str] = set()
        self.connections = 0
        self._registrar = Registrar(domain.signer, domain.certificate, domain.chain)
        self._masa = Masa(factory.masa_signer, factory.masa_chain, factory.device_anchors)
        self._maker = Manufacturer("Acme", factory.device_anchors, allowed_masas=frozenset({MASA}))
        self._est = EstServer()
        self._names: dict[int, str | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # -- socket --------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Campus:
        await self.open(0)
        return self

    async def open(self, port: int) -> None:
        """Listen, also again after having gone."""
        self._is_closed = False
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._context())
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_: object) -> None:
        self._is_closed = True
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(
            cadata="".join(
                one.public_bytes(serialization.Encoding.PEM).decode()
                for one in (self.factory.device_root.certificate, self.domain.root.certificate)
            )
        )
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "server.pem"), Path(folder, "server.key.pem")
            pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in self.chain)
            certificate.write_bytes(pem)
            key.write_bytes(self.identity.key_pem)
            context.load_cert_chain(certificate, key)
        context.sni_callback = self._note_name
        return context

    def _note_name(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        self._names[id(tls)] = name

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._is_closed:  # its handshake was under way when we left
            writer.close()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        number = self.connections
        tls = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
        client = x509.load_der_x509_certificate(der) if der else None
        try:
            while (call := await _read_call(reader)) is not None:
                self.seen.append(Seen(number, call, client, self._names.get(id(tls))))
                answer = self._answer(call, client)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer is CLOSE:
                    break
                writer.write(answer if isinstance(answer, bytes) else write_reply(answer))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, call: Call, client: x509.Certificate | None) -> object:
        def proper() -> Reply:
            return self.proper(call, client)

        changed = self.instead.get(call.path)
        return changed(call, client, proper) if changed is not None else proper()

    # -- protocol ------------------------------------------------------------------------------------------------

    def proper(self, call: Call, client: x509.Certificate | None) -> Reply:
        """What a registrar in order answers."""
        name = call.path.rpartition("/")[2]
        match name:
            case "requestvoucher":
                return self.voucher(call, client)
            case "voucher_status" | "enrollstatus":
                return Reply(200)
            case "cacerts":
                return self._est.cacerts_reply(self.anchors_served, call)
            case "csrattrs":
                return self._est.csrattrs_reply(self.demanded)
            case "simpleenroll" | "simplereenroll":
                return self.enrol(call, client)
        route = self.routes.get(call.path)
        return route(call, client) if route is not None else Reply(404, "text/plain", body=b"nothing here\n")

    def voucher(self, call: Call, client: x509.Certificate | None, *, masa: Masa | None = None) -> Reply:
        exchange = self._registrar.consider(
            call, client, (self.factory.device_ca.certificate,), [self._maker],
            tls_certificate=self.identity.certificate, now=datetime.now(UTC),
        )  # fmt: skip
        grant = (masa or self._masa).issue(exchange.call, self.factory, now=datetime.now(UTC))
        return grant.reply

    def enrol(self, call: Call, client: x509.Certificate | None) -> Reply:
        if self.secrets and call.headers.get("authorization") not in self.secrets and client is None:
            return Reply(401, "text/plain", {"www-authenticate": 'Basic realm="est"'}, b"who are you?\n")
        ask = self._est.read_enroll(call)
        now = datetime.now(UTC)
        terms = profiles.Terms.under(
            self.domain.ca.certificate,
            serial=x509.random_serial_number() >> 1 | 1,
            not_before=now - timedelta(minutes=5),
            not_after=now + timedelta(days=self.ldevid_days),
        )
        shape = profiles.ldevid(terms, profiles.name("proxy"), ask.csr.public_key, identifier=PROXY_ID)
        signer = self.domain.ca.signer
        tbs = profiles.to_be_signed(shape, issuer_key=signer.public_key())
        certificate = x509.load_der_x509_certificate(profiles.assemble(tbs, signer.sign(tbs), signer.public_key()))
        self.issued.append(certificate)
        return self._est.enroll_reply(certificate, ask)

    # -- what the tests look at ----------------------------------------------------------------------------------

    def paths(self) -> list[str]:
        return [one.path.rpartition("/")[2] for one in self.seen]

    def of(self, name: str) -> list[Seen]:
        return [one for one in self.seen if one.path.endswith("/" + name)]


def asked(one: Seen) -> object:
    """What a call asks for: of a CSR key and names, because it is signed anew for each connection; else the body."""
    if one.call.media_type != "application/pkcs10":
        return one.call.body
    return key_and_names_sha256(csr.read(transfer.read_base64(one.call.body)))


@dataclass(frozen=True, slots=True)
class World:
    """A manufacturer, a domain, one device whose files lie in a folder."""

    factory: Factory
    domain: Domain
    device: Identity
    folder: Path
    settings: ProxySettings = field(default_factory=ProxySettings)

    def with_settings(self, **changes: object) -> ProxySettings:
        return self.settings.model_copy(update=changes)

    def with_device(self, factory: Factory, serial: str) -> World:
        """The same domain, another device."""
        folder = self.folder / serial
        folder.mkdir()
        device = factory.make_device(serial, now=BORN, masa=MASA)
        return replace(self, device=device, folder=folder, settings=_files(folder, factory, device))


_FACTORY = Factory.create(now=BORN)
_DOMAIN = Domain.create(now=BORN)


def make_world(folder: Path, serial: str = "PX-1") -> World:
    """Keys are made once per run; the device is new."""
    device = _FACTORY.make_device(serial, now=BORN, masa=MASA)
    return World(_FACTORY, _DOMAIN, device, folder, _files(folder, _FACTORY, device))


def other_domain() -> Domain:
    return Domain.create("Other", now=BORN)


def _files(folder: Path, factory: Factory, device: Identity) -> ProxySettings:
    certificate, key, anchors = folder / "idevid.pem", folder / "idevid.key.pem", folder / "masa-anchors.pem"
    certificate.write_bytes(device.chain_pem)
    key.touch(0o600)
    key.write_bytes(device.key_pem)
    anchors.write_bytes(factory.voucher_root.chain_pem)
    return ProxySettings(
        idevid_certificate=certificate,
        idevid_key=key,
        masa_anchors=anchors,
        give_up_seconds=60,
        interfaces=("127.0.0.1",),
        discovery_listen_seconds=0,
    )


async def _read_call(reader: asyncio.StreamReader) -> Call | None:
    try:
        block = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = block[:-4].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Call(method, path, headers.get("content-type", ""), headers, body)


def write_reply(reply: object, extra: Mapping[str, str] | None = None) -> bytes:
    assert isinstance(reply, Reply)
    headers = {**reply.headers, **(extra or {}), "content-length": str(len(reply.body))}
    if reply.media_type:
        headers["content-type"] = reply.media_type
    head = f"HTTP/1.1 {reply.status} Whatever\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return head.encode("latin-1") + b"\r\n" + reply.body


def signer_of(identity: Identity) -> KeySigner:
    return KeySigner(identity.key)
