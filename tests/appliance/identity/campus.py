"""An identity server with store and CA in a folder, proxies with domain certificates, owners with keys, and agents
whose every message can be damaged before it is signed."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import audit
from appliance.access.directory import OwnerDirectory
from appliance.audit import Actor
from appliance.binding import approval, composite, evidence, jws, possession, renewal
from appliance.binding import request as requests
from appliance.binding.composite import Composite
from appliance.ca import CertificateAuthority, Slot
from appliance.hierarchy import Hierarchy, IssuingCa, Role, create_hierarchy, read_issuing, record_hierarchy
from appliance.identity.assemble import build_identity
from appliance.identity.registry import AgentRegistry
from appliance.identity.routes import TrustInfo, endpoints
from appliance.identity.service import IdentityService
from appliance.settings import IdentitySettings, Settings
from appliance.store import Store, proxies
from appliance.store.proxies import ProxyRow
from appliance.web.app import App, build_app
from appliance.web.peer import Peer
from appliance.web.routes import ROUTES
from est import csr, profiles
from est.exchange import Call, Reply
from est.signer import KeySigner, Signer
from tests.stores import open_store
from tests.support import NOW, FixedClock

ADMIN = Actor("administrator", "ada")
ORIGIN = "spiffe://campus.example"
SERVER_ID = "https://ids.campus.example/v1"
PASSPHRASE = b"correct horse"


@cache
def campus_keys() -> tuple[Hierarchy, x509.Certificate, Mapping[Role, IssuingCa]]:
    """One hierarchy for the whole test run: opening key files is slow on purpose."""
    with tempfile.TemporaryDirectory() as name:
        home, settings = Path(name), Settings()
        hierarchy = create_hierarchy(home, settings, PASSPHRASE, NOW - timedelta(days=1))
        return hierarchy, *read_issuing(home, settings, PASSPHRASE)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def random_id() -> str:
    return jws.base64url(uuid.uuid4().bytes + uuid.uuid4().bytes)[:24]


class PulledOut(Exception):
    """The token was pulled out."""


class Token:
    """A key that can be pulled out in the middle of things, or made to sign other bytes than it is given."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.is_out = False
        self.lies = False

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._signer.public_key()

    def sign(self, data: bytes) -> bytes:
        if self.is_out:
            raise PulledOut
        return self._signer.sign(data + b"?" * self.lies)


@dataclass
class Campus:
    """One identity server and everything around it."""

    folder: Path
    clock: FixedClock
    store: Store
    ca: CertificateAuthority
    service: IdentityService
    directory: OwnerDirectory
    registry: AgentRegistry
    app: App
    connections: int = 0

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        reopen: Campus | None = None,
        single_identity: bool = False,
        ca_token: Token | None = None,
        wit_token: Token | None = None,
        **settings: Any,
    ) -> Campus:
        """A new server, or the same one after a restart (`reopen`); the tokens are keys that may fail."""
        clock = reopen.clock if reopen else FixedClock()
        hierarchy, root, issuing = campus_keys()
        url = f"sqlite:///{folder / 'appliance.db'}"
        store = open_store(url, clock)
        if reopen is None:
            store.write_sync(lambda tx: record_hierarchy(tx, hierarchy, ADMIN))
        verifier = issuing["agents"].signer
        if ca_token is not None:
            issuing = {**issuing, "agents": replace(issuing["agents"], signer=ca_token)}
        ca = CertificateAuthority(root=root, issuing=issuing, store=store, clock=clock)
        service = build_identity(
            IdentitySettings(**settings),
            origin=ORIGIN,
            server_id=SERVER_ID,
            store=store,
            ca=ca,
            clock=clock,
            verifier_signer=verifier,
            wit_signer=wit_token,
            single_identity=single_identity,
        )
        trust = TrustInfo("radius.campus.example", SERVER_ID, "campus.example")
        mine = endpoints(service, trust)
        app = build_app("device", mine, routes=[route for route in ROUTES if route.endpoint in mine])
        return cls(
            folder,
            clock,
            store,
            ca,
            service,
            OwnerDirectory(origin=ORIGIN, store=store, clock=clock),
            AgentRegistry(origin=ORIGIN, store=store),
            app,
        )

    def close(self) -> None:
        self.store.close()

    def peer(self, certificate: x509.Certificate | None, role: Role = "devices") -> Peer:
        self.connections += 1
        chain = () if certificate is None else (certificate, *self.ca.chain(role))
        return Peer("192.0.2.9", self.connections, certificate, chain, "TLSv1.3")

    async def certificate(
        self, key: ec.EllipticCurvePrivateKey, *, role: Role = "devices", identifier: str = "", life: timedelta
    ) -> x509.Certificate:
        """A client certificate of any of the CAs."""

        def shape(slot: Slot) -> profiles.Shape:
            return profiles.ldevid(slot.terms(life), profiles.name("x"), key.public_key(), identifier=identifier)

        row = {"profile": "ldevid", "subject_id": identifier}
        issued = await self.ca.issue(role, shape, row=row, actor=ADMIN, event="ldevid-issued")
        return issued.certificate

    async def proxy(self, *, method: str = "brski", life: timedelta = timedelta(days=90)) -> Proxy:
        """A new proxy with its domain certificate."""
        name, key = str(uuid.uuid4()), new_key()
        identifier = f"{ORIGIN}/proxy/{name}"
        row = ProxyRow(name, identifier, None, method, "p", proxies.ACTIVE, self.clock.now(), self.clock.now())
        await self.store.write(lambda tx: proxies.add(tx, row))
        certificate = await self.certificate(key, identifier=identifier, life=life)
        return Proxy(self, identifier, key, self.peer(certificate))

    async def owner(self, ref: str = "alice", department: str = "R&D", *, with_key: bool = True) -> OwnerHost:
        """A registered owner with an approval key."""
        made = await self.directory.add(ref, name=ref.title(), kind="person", department=department, actor=ADMIN)
        owner = OwnerHost(self, ref, made["identifier"], KeySigner(new_key()))
        if with_key:
            await self.directory.add_key(ref, owner.statement(), actor=ADMIN)
        return owner

    async def audited(self, event: str = "") -> list[dict[str, Any]]:
        rows = await self.store.read(lambda tx: list(audit.rows(tx)))
        audit.verify(rows)
        return [row.entry for row in rows if event in ("", row.event)]


@dataclass
class OwnerHost:
    """An owner's machine."""

    campus: Campus
    ref: str
    identifier: str
    signer: KeySigner

    @property
    def jkt(self) -> str:
        return jws.jkt(self.signer.public_key())

    def statement(self, signer: KeySigner | None = None, **changed: Any) -> str:
        at = int(self.campus.clock.now().timestamp())
        values = {"sub": self.ref, "aud": ORIGIN, "iat": at, "exp": at + 86_400, "jti": random_id()} | changed
        return possession.seal(signer or self.signer, **values)

    def approve(self, token: str, signer: KeySigner | None = None, **changed: Any) -> str:
        at = int(self.campus.clock.now().timestamp())
        values = {"iss": self.identifier, "iat": at, "exp": at + 3600, "jti": random_id()} | changed
        return approval.seal(signer or self.signer, requests.unseal(token), **values)

    def forge(self, token: str, signer: KeySigner | None = None, **changed: Any) -> str:
        """An approval whose claims are changed after the owner's tool would have refused, and signed all the same."""
        honest = jws.read(self.approve(token))
        claims = {**jws.read_object(honest.payload, "payload"), **changed}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jws.seal(claims, typ=approval.TYP, signer=signer or self.signer, header={"kid": self.jkt})


@dataclass
class Proxy:
    """A proxy's host: relays what agents ask and adds evidence."""

    campus: Campus
    identifier: str
    key: ec.EllipticCurvePrivateKey
    peer: Peer

    async def call(
        self, method: str, path: str, body: bytes = b"", media_type: str = "application/json"
    ) -> tuple[int, dict[str, Any], Reply]:
        call = Call(method, path, media_type if body else "", body=body)
        reply = await self.campus.app.handle(call, self.peer)
        return reply.status, json.loads(reply.body), reply

    async def nonce(self, jkt: str, purpose: str = "issue", sub: str | None = None) -> dict[str, Any]:
        asked = {"jkt": jkt, "purpose": purpose} | ({} if sub is None else {"sub": sub})
        status, answer, _ = await self.call("POST", "/v1/agents/nonce", json.dumps(asked).encode())
        assert status == 200, answer
        return answer

    def evidence(self, token: str, key: ec.EllipticCurvePrivateKey | None = None, **changed: Any) -> str:
        request = requests.unseal(token)
        at = int(self.campus.clock.now().timestamp())
        values: dict[str, Any] = {
            "iss": self.identifier,
            "iat": at,
            "exp": at + 240,
            "nonce": request.nonce,
            "rqh": request.rqh,
            "jkt": request.jkt,
            "ueid": b"\x01" + bytes(16),
            "dbgstat": "disabled",
            "agent": {"executable": "/usr/bin/agent", "uid": 1000, "swname": "agent"},
        }
        return evidence.seal(KeySigner(key or self.key), **(values | changed))

    async def submit(self, composite_request: Composite) -> tuple[int, dict[str, Any]]:
        body = composite.write(composite_request)
        status, answer, _ = await self.call("POST", "/v1/agents/enroll", body, composite.MEDIA_TYPE)
        return status, answer

    async def status(self, rqh: str) -> tuple[int, dict[str, Any]]:
        status, answer, _ = await self.call("GET", f"/v1/agents/requests/{rqh}")
        return status, answer

    async def ask(self, owner: OwnerHost | None, key: ec.EllipticCurvePrivateKey | None = None, **changed: Any) -> Ask:
        """An agent behind this proxy makes a key and a request for it."""
        key = key or new_key()
        signer = KeySigner(key)
        purpose = changed.get("purpose", "issue")
        granted = await self.nonce(jws.jkt(signer.public_key()), purpose, changed.pop("nonce_sub", None))
        return Ask.make(self, owner, signer, granted, changed)


@dataclass
class Ask:
    """One agent's request; `token` is what the agent signed, `composite()` what its proxy hands in."""

    proxy: Proxy
    owner: OwnerHost | None
    signer: KeySigner
    sub: str
    csr_der: bytes | None
    token: str
    approvals: tuple[str, ...] = field(default=())

    @classmethod
    def make(
        cls, proxy: Proxy, owner: OwnerHost | None, signer: KeySigner, granted: Mapping[str, Any], changed: Any
    ) -> Ask:
        changed = dict(changed)
        at = int(proxy.campus.clock.now().timestamp())
        sub = granted["sub"]
        wanted = changed.pop("profiles", ("x509", "wit"))
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(changed.pop("san", sub))])
        csr_der = changed.pop("csr_der", None)
        if csr_der is None and "x509" in wanted:
            csr_der = csr.build(subject=x509.Name([]), key=signer, san=names)
        previous = changed.pop("previous", None)
        if previous is not None:
            changed["prev"] = renewal.seal(
                previous,
                sub=sub,
                jkt=jws.jkt(signer.public_key()),
                nonce=granted["nonce"],
                aud=SERVER_ID,
                iat=at,
                exp=at + 600,
            )
        values: dict[str, Any] = {
            "sub": sub,
            "owner": None if owner is None else owner.identifier,
            "aud": granted["server_id"],
            "iat": at,
            "exp": at + 3600,
            "jti": random_id(),
            "nonce": granted["nonce"],
            "profiles": wanted,
            "ttl": 3600,
            "csr_der": csr_der,
        }
        token = requests.seal(signer, **(values | changed))
        return cls(proxy, owner, signer, sub, csr_der, token)

    @property
    def request(self) -> requests.AgentRequest:
        return requests.unseal(self.token)

    def approved(self, **changed: Any) -> Ask:
        assert self.owner is not None
        return replace(self, approvals=(self.owner.approve(self.token, **changed),))

    def composite(self, **changed: Any) -> Composite:
        made = Composite(self.token, self.csr_der, self.approvals, self.proxy.evidence(self.token))
        return replace(made, **changed)

    async def submit(self, **changed: Any) -> tuple[int, dict[str, Any]]:
        return await self.proxy.submit(self.composite(**changed))
