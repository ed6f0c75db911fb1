"""A small campus for RADIUS tests: root and issuing CAs, a stranger with the same names, credentials, facts."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from est import profiles
from est.signer import KeySigner
from radius import AccessRequest, Credential, Decision, Facts, OwnerFact, Policy, decide, read_policy
from radius.handshake import ServerIdentity
from radius.server import Nas, RadiusServer
from tests.support import key

SERVER_NAME = "radius.campus.example"
OID_ARC = "1.3.6.1.4.1.32473.2026.1"
OWNER_ID_OID = f"{OID_ARC}.2"
ALICE = "spiffe://campus.example/owner/5f0a1a36-3b0f-4f0e-9d1c-0d8a7a1c0001"
AGENT = "spiffe://campus.example/agent/8c2f6a54-53a1-4a63-8f44-0d8a7a1c0002"
SECRET = b"a-shared-secret-of-more-than-32-characters"
POLICY = """
version = 1
[vlans]
research = 20
people = 30
guest = 99
[[rule]]
name = "research"
department = ["R&D", "Research"]
vlan = "research"
[[rule]]
name = "people"
department = "HR"
vlan = "people"
"""


def now() -> datetime:
    """OpenSSL reads the machine's clock, so these tests live in the present."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key and the chain that goes with it (without the root)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (self.certificate, *self.chain))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def aki(self) -> str:
        found = self.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        return (found or b"").hex()


def _sign(shape: profiles.Shape, issuer: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    tbs = profiles.to_be_signed(shape, issuer_key=issuer.public_key())
    return x509.load_der_x509_certificate(profiles.assemble(tbs, KeySigner(issuer).sign(tbs), issuer.public_key()))


class Campus:
    """Root and issuing CAs; `tag` keeps the keys of two campuses apart while their names stay the same."""

    def __init__(self, tag: str = "") -> None:
        self.start = now() - timedelta(days=30)
        self.end = now() + timedelta(days=365)
        root_key = key(f"{tag}root")
        name = profiles.name("Campus Root", "Campus")
        shape = profiles.root_ca(
            name, root_key.public_key(), serial=_serial(), not_before=self.start, not_after=self.end
        )
        self.root = Issued(_sign(shape, root_key), root_key)
        self.cas = {role: self._ca(role, tag) for role in ("devices", "agents", "infrastructure")}

    def _ca(self, role: str, tag: str) -> Issued:
        own = key(f"{tag}{role}")
        shape = profiles.issuing_ca(self._terms(self.root), profiles.name(f"Campus {role}", "Campus"), own.public_key())
        return Issued(_sign(shape, self.root.key), own)

    def _terms(self, issuer: Issued, **dates: datetime) -> profiles.Terms:
        dates = {"not_before": self.start, "not_after": self.end} | dates
        return profiles.Terms.under(issuer.certificate, serial=_serial(), **dates)

    @property
    def root_pem(self) -> bytes:
        return self.root.pem

    @property
    def agents_ca(self) -> x509.Certificate:
        return self.cas["agents"].certificate

    def server(self, name: str = SERVER_NAME) -> Issued:
        ca, own = self.cas["infrastructure"], key(f"server {name}")
        shape = profiles.radius_server(self._terms(ca), profiles.name(name), own.public_key(), dns_names=[name])
        return Issued(_sign(shape, ca.key), own, (ca.certificate,))

    def decision_port(self) -> Issued:
        ca, own = self.cas["infrastructure"], key("decision port")
        shape = profiles.https_server(
            self._terms(ca),
            profiles.name("decision"),
            own.public_key(),
            dns_names=["localhost"],
            addresses=[ip_address("127.0.0.1")],
        )
        return Issued(_sign(shape, ca.key), own, (ca.certificate,))

    def agent(
        self,
        *,
        owner_id: str | None = ALICE,
        agent_id: str = AGENT,
        padding: int = 1081,
        ca: str = "agents",
        names_issuer_key: bool = True,
        **dates: datetime,
    ) -> Issued:
        """An agent's certificate; `padding` is the size of a stand-in for the DualIdentity extension.

        `names_issuer_key=False`: without the AuthorityKeyIdentifier, as the appliance never issues one.
        """
        issuer, own = self.cas[ca], key(f"agent {agent_id}")
        extra: list[profiles.Extension] = []
        if owner_id is not None:
            text = owner_id.encode()
            owner = x509.UnrecognizedExtension(x509.ObjectIdentifier(OWNER_ID_OID), bytes([0x16, len(text)]) + text)
            dual = x509.UnrecognizedExtension(
                x509.ObjectIdentifier(f"{OID_ARC}.1"), b"\x04\x82" + padding.to_bytes(2, "big") + bytes(padding)
            )
            extra = [(dual, False), (owner, False)]
        shape = profiles.agent(
            self._terms(issuer, **dates),
            profiles.name(agent_id.rsplit("/", 1)[-1]),
            own.public_key(),
            identifier=agent_id,
            extra_extensions=extra,
        )  # fmt: skip
        if not names_issuer_key:
            kept = [one for one in shape.extensions if not isinstance(one.value, x509.AuthorityKeyIdentifier)]
            shape = replace(shape, extensions=tuple(kept))
        return Issued(_sign(shape, issuer.key), own, (issuer.certificate,))

    def without_client_purpose(self) -> Issued:
        ca, own = self.cas["agents"], key("no client")
        shape = profiles.radius_server(self._terms(ca), profiles.name("x"), own.public_key(), dns_names=["x.example"])
        return Issued(_sign(shape, ca.key), own, (ca.certificate,))

    def ldevid(self) -> Issued:
        ca, own = self.cas["devices"], key("ldevid")
        name = "spiffe://campus.example/proxy/2b0f1a36-3b0f-4f0e-9d1c-0d8a7a1c0003"
        shape = profiles.ldevid(self._terms(ca), profiles.name("proxy"), own.public_key(), identifier=name)
        return Issued(_sign(shape, ca.key), own, (ca.certificate,))

    def named(self, name: str, *, ca: str = "infrastructure", server: bool = False, **dates: datetime) -> Issued:
        """A certificate for clientAuth (or serverAuth) whose one URI is `name`; its CN is the last part of that."""
        issuer, own = self.cas[ca], key(f"named {name}")
        subject, public = profiles.name(name.rsplit("/", 1)[-1]), own.public_key()
        terms = self._terms(issuer, **dates)
        if server:
            shape = profiles.https_server(terms, subject, public, dns_names=["x.example"])
        else:
            shape = profiles.infrastructure_client(terms, subject, public, identifier=name)
        return Issued(_sign(shape, issuer.key), own, (issuer.certificate,))


@cache
def campus(tag: str = "") -> Campus:
    return Campus(tag)


def _serial() -> int:
    return secrets.randbits(158) | 1 << 157


def row(issued: Issued, **changes: object) -> Credential:
    """The store's row for an issued agent certificate."""
    certificate = issued.certificate
    credential = Credential(
        "dual", AGENT, ALICE, certificate.serial_number, "agents", "issued",
        certificate.not_valid_before_utc, certificate.not_valid_after_utc, "agent-mediated", "txn-1",
    )  # fmt: skip
    return credential._replace(**changes)  # type: ignore[arg-type]


def owner(department: str = "R&D", state: str = "active") -> OwnerFact:
    return OwnerFact(ALICE, state, (department,) if department else ())


@dataclass
class Desk:
    """An authorize function over a dictionary of rows, with a history: what the access service is in production."""

    rows: dict[tuple[str, int], Credential] = field(default_factory=dict)
    owners: dict[str, OwnerFact] = field(default_factory=lambda: {ALICE: owner()})
    policy: Policy = field(default_factory=lambda: read_policy(POLICY, revision=3))
    asked: list[AccessRequest] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    failures: list[Decision] = field(default_factory=list)

    def admit(self, issued: Issued, **changes: object) -> None:
        self.rows[issued.aki, issued.certificate.serial_number] = row(issued, **changes)

    def authorize(self, request: AccessRequest) -> Decision:
        self.asked.append(request)
        ref = request.credential
        credential = self.rows.get((ref.aki, ref.serial)) if ref else None
        found = self.owners.get(credential.owner_id or "") if credential else None
        decision = decide(request, credential, Facts(now(), found), self.policy)
        self.decisions.append(decision)
        return decision

    def on_failure(self, request: AccessRequest, decision: Decision) -> None:
        assert request == decision.request
        self.failures.append(decision)


def identity(server: Issued) -> ServerIdentity:
    return ServerIdentity(server.certificate, server.chain, server.key)


def radius_server(desk: Desk, **options: object) -> RadiusServer:
    """The embedded server of the test campus; every address is a NAS named switch-1."""
    given: dict[str, object] = {
        "identity": identity(campus().server()),
        "anchors": [campus().agents_ca],
        "nas": lambda address: Nas("switch-1", SECRET),
        "authorize": desk.authorize,
        "on_failure": desk.on_failure,
        "owner_id_oid": OWNER_ID_OID,
    }
    return RadiusServer(**(given | options))  # type: ignore[arg-type]


def login(issued: Issued, **changes: object) -> dict[str, object]:
    """Arguments of lab.supplicant.authenticate and lab.eapol.run_eapol_test for an issued credential."""
    given: dict[str, object] = {
        "identity": "anonymous",
        "certificate_chain_pem": issued.pem,
        "key_pem": issued.key_pem,
        "ca_pem": campus().root_pem,
        "server_name": SERVER_NAME,
    }
    return given | changes
