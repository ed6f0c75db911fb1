"""A registrar with store and CA in a folder, a manufacturer, and its MASA in memory or misbehaving on request."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import audit
from appliance.audit import Actor
from appliance.ca import CertificateAuthority
from appliance.hierarchy import (
    Hierarchy,
    IssuingCa,
    Role,
    ServerIdentity,
    create_hierarchy,
    read_issuing,
    read_server,
    record_hierarchy,
)
from appliance.registrar.assemble import RegistrarPart, assemble, registrar_policy
from appliance.registrar.masa_client import MasaDestination
from appliance.settings import EstSettings, RegistrarSettings, Settings
from appliance.store import Store
from appliance.web.app import App, build_app
from appliance.web.peer import Peer
from appliance.web.routes import ROUTES
from brski import Pledge, Registrar
from brski.errors import BrskiError
from brski.masa import Device, Masa
from brski.paths import VOUCHER_CMS_JSON
from est import csr, transfer
from est.cms import read_certs_only
from est.exchange import Call, Reply
from est.signer import KeySigner, Signer
from lab.factory import Factory, Identity
from lab.mock_masa import STATUS
from tests.stores import open_store
from tests.support import NOW, FixedClock

ADMIN = Actor("administrator", "ada")
MASA_HOST = "masa.acme.example:9443"
PASSPHRASE = b"correct horse"
T = TypeVar("T")


@cache
def campus_keys(born: datetime = NOW) -> tuple[Hierarchy, x509.Certificate, Mapping[Role, IssuingCa], ServerIdentity]:
    """One hierarchy for the whole test run: opening key files is slow on purpose."""
    with tempfile.TemporaryDirectory() as name:
        home, settings = Path(name), Settings()
        hierarchy = create_hierarchy(home, settings, PASSPHRASE, born)
        return hierarchy, *read_issuing(home, settings, PASSPHRASE), read_server(home, "registrar", PASSPHRASE)


class Token:
    """A key that can be pulled out in the middle of things."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.is_broken = False

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._signer.public_key()

    def sign(self, data: bytes) -> bytes:
        if self.is_broken:
            raise RuntimeError("the token was pulled out")
        return self._signer.sign(data)


class MemoryMasa:
    """MasaTransport over brski.Masa: counts calls, keeps the history of devices, and breaks on request."""

    def __init__(self, factory: Factory, clock: FixedClock) -> None:
        self.factory = factory
        self.clock = clock
        self.masa = Masa(factory.masa_signer, factory.masa_chain, factory.device_anchors)
        self.calls: list[tuple[str, MasaDestination]] = []
        self.answer: Callable[[Call], Reply | None] = lambda call: None
        self.gate: asyncio.Event | None = None
        self.answers: list[Reply] = []

    async def send(self, call: Call, to: MasaDestination) -> Reply:
        self.calls.append((call.path.rsplit("/", 1)[-1], to))
        if self.gate is not None:
            await self.gate.wait()
        broken = self.answer(call)
        if broken is not None:
            return broken
        try:
            if call.path.endswith("requestauditlog"):
                return self.masa.audit_log(call, self.factory, now=self.clock.now())
            granted = self.masa.issue(call, self.factory, now=self.clock.now())
        except BrskiError as refusal:
            return Reply(STATUS[type(refusal)], "text/plain", body=refusal.detail.encode())
        device: Device = granted.device
        events = (*device.log.events, granted.entry)
        self.factory.sold[device.serial_number] = replace(
            device,
            log=replace(device.log, events=events),
            state=granted.state,
            owners=(*device.owners, granted.owner),
        )
        self.answers.append(granted.reply)
        return granted.reply

    async def close(self) -> None:
        pass

    def count(self, operation: str) -> int:
        return sum(1 for name, _ in self.calls if name == operation)


@dataclass
class World:
    """One registrar and everything around it."""

    folder: Path
    settings: Settings
    clock: FixedClock
    store: Store
    ca: CertificateAuthority
    registrar_certificate: x509.Certificate
    tls_chain: tuple[x509.Certificate, ...]
    part: RegistrarPart
    factory: Factory
    masa: Any
    app: App
    token: Token
    connections: int = field(default=0)

    @classmethod
    async def create(
        cls,
        folder: Path,
        *,
        masa: Callable[[Factory, FixedClock], Any] = MemoryMasa,
        reopen: World | None = None,
        known: bool = True,
        options: Mapping[str, Any] | None = None,
        masa_url: str = MASA_HOST,
        born: datetime = NOW,
        factory: Factory | None = None,
        est: Mapping[str, Any] | None = None,
        **registrar: Any,
    ) -> World:
        """A new registrar, or the same one after a restart (`reopen`)."""
        from appliance.registrar.maker_options import read_options

        settings = Settings(home=folder, registrar=RegistrarSettings(**registrar), est=EstSettings(**est or {}))
        clock = reopen.clock if reopen else FixedClock(born)
        url = f"sqlite:///{folder / 'appliance.db'}"
        hierarchy, root, issuing, server = campus_keys(born)
        if reopen is None:
            store = open_store(url, clock)
            store.write_sync(lambda tx: record_hierarchy(tx, hierarchy, ADMIN))
        else:
            store = Store.open(url, clock)
        token = Token(issuing["devices"].signer)
        issuing = {**issuing, "devices": replace(issuing["devices"], signer=token)}
        ca = CertificateAuthority(root=root, issuing=issuing, store=store, clock=clock)
        factory = reopen.factory if reopen else factory or Factory.create(now=clock.now())
        transport = reopen.masa if reopen else masa(factory, clock)
        part = assemble(
            settings.registrar,
            origin=settings.origin,
            ldevid_days=settings.ca.ldevid_days,
            est_settings=settings.est,
            store=store,
            clock=clock,
            ca=ca,
            registrar=Registrar(
                KeySigner(server.key), server.certificate, server.chain, registrar_policy(settings.registrar)
            ),
            signer=KeySigner(server.key),
            masa=transport,
        )
        if known and reopen is None:
            anchors = factory.device_root.chain_pem.decode()
            chosen = dict(options or {})
            serials = chosen.pop("serials", ())
            await part.manufacturers.add(
                anchors_pem=anchors,
                name="Acme",
                masa_url=masa_url,
                masa_tls_anchors_pem=factory.tls_root.chain_pem.decode(),
                options=read_options(chosen),
                serials=serials,
                actor=ADMIN,
            )
        mine = [route for route in ROUTES if route.endpoint in part.endpoints]
        app = build_app("device", part.endpoints, routes=mine)
        return cls(
            folder=folder,
            settings=settings,
            clock=clock,
            store=store,
            ca=ca,
            registrar_certificate=server.certificate,
            tls_chain=(server.certificate, server.chain[0]),
            part=part,
            factory=factory,
            masa=transport,
            app=app,
            token=token,
        )

    def device(self, serial: str = "PX-1", **more: Any) -> Device_:
        """A new device of the manufacturer, with its pledge and a connection to us."""
        more.setdefault("masa", MASA_HOST)
        identity = self.factory.make_device(serial, now=self.clock.now(), **more)
        return Device_(self, identity, self.peer(identity))

    def peer(self, identity: Identity | None = None, **more: Any) -> Peer:
        """A connection whose client shows this identity."""
        self.connections += 1
        return Peer(
            address="192.0.2.7",
            connection_id=self.connections,
            certificate=identity.certificate if identity else None,
            chain=identity.chain if identity else (),
            tls_version="TLSv1.3",
            server_certificate=self.registrar_certificate,
            **more,
        )

    async def handle(self, call: Call, peer: Peer) -> Reply:
        return await self.app.handle(call, peer)

    async def audited(self, event: str) -> list[dict[str, Any]]:
        rows = await self.store.read(lambda tx: list(audit.rows(tx)))
        return [row.entry for row in rows if row.event == event]

    async def row(self, serial: str = "PX-1") -> Mapping[str, Any]:
        return await self.part.inventory.pledge(serial)

    def close(self) -> None:
        self.store.close()


@dataclass
class Device_:
    """A pledge on a connection to the registrar, step by step."""

    world: World
    identity: Identity
    peer: Peer
    nonce: int = 0
    media_type: str = VOUCHER_CMS_JSON
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def pledge(self) -> Pledge:
        return Pledge(self.identity.signer, self.identity.chain, self.world.factory.masa_anchors)

    def request(self, *, fresh: bool = True, registrar: x509.Certificate | None = None) -> Call:
        self.nonce += fresh
        seen = registrar or self.world.registrar_certificate
        return self.pledge.voucher_request(
            seen, nonce=self.nonce.to_bytes(16), now=self.world.clock.now(), media_type=self.media_type
        )

    async def voucher(self) -> Reply:
        call = self.request()
        reply = await self.world.handle(call, self.peer)
        if reply.status == 200:
            self.pledge.accept_voucher(reply, call, self.world.tls_chain, now=self.world.clock.now())
        return reply

    async def status(self, ok: bool = True) -> Reply:
        return await self.world.handle(self.pledge.voucher_status(ok, "" if ok else "no thanks"), self.peer)

    def csr(self, **more: Any) -> bytes:
        return csr.build(**{"subject": x509.Name([]), "key": self.key, **more})

    async def enroll(self, der: bytes | None = None, peer: Peer | None = None) -> Reply:
        return await self.world.handle(enroll_call(der or self.csr()), peer or self.peer)

    async def bootstrap(self) -> x509.Certificate:
        for step in (self.voucher, self.status, self.enroll):
            reply = await step()
            assert reply.status == 200, reply
        return certificate_in(reply)

    def with_ldevid(self, certificate: x509.Certificate) -> Peer:
        return self.world.peer(Identity(self.key, certificate, self.world.ca.chain("devices")[:1]))


def enroll_call(der: bytes, *, again: bool = False, headers: Mapping[str, str] | None = None) -> Call:
    operation = "simplereenroll" if again else "simpleenroll"
    body = transfer.write_base64(der, wrapped=True)
    return Call("POST", f"/.well-known/est/{operation}", "application/pkcs10", headers or {}, body)


def certificate_in(reply: Reply) -> x509.Certificate:
    (certificate,) = read_certs_only(transfer.read_base64(reply.body))
    return certificate


def basic(credentials: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}


def play(folder: Path, story: Callable[[World], Awaitable[T]], **settings: Any) -> T:
    """Runs a story in a new world."""

    async def run() -> T:
        world = await World.create(folder, **settings)
        try:
            return await story(world)
        finally:
            world.close()

    return asyncio.run(run())
