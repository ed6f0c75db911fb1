"""The composition root: the only place that builds everything, for `run`, for single operations, and for tests."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance import cascade
from appliance.access.assemble import assemble as assemble_access
from appliance.access.engine import RadiusEngine, RadiusParts
from appliance.access.freeradius import FreeRadius, RadiusFiles
from appliance.access.nas_certificates import NasCertificates
from appliance.access.open_sessions import OpenSessions
from appliance.access.routes import AccessRoutes, decision_endpoints, est_endpoints
from appliance.access.scim.routes import ScimRoutes
from appliance.access.scim.service import ScimService
from appliance.access.sites import LABEL, RadiusSites
from appliance.audit import APPLIANCE, Actor, AuditEvent, append
from appliance.audit_reader import AuditReader
from appliance.backup import write_backup
from appliance.ca import CertificateAuthority
from appliance.certificate_list import CertificateList
from appliance.checkpoint_keeper import FILE_NAME as CHECKPOINTS
from appliance.checkpoint_keeper import CheckpointKeeper
from appliance.checks import expiry, of_access, of_directory, row
from appliance.clock import Clock, SystemClock
from appliance.console.auditing import AuditOperations, CheckpointRoutes
from appliance.console.authorities import CaOperations
from appliance.console.certificates import CertificateOperations
from appliance.console.devices import EstOperations, ManufacturerOperations, PledgeOperations, ProxyOperations
from appliance.console.directory import DirectoryOperations
from appliance.console.itself import HomeOperations
from appliance.console.network import (
    AccessOperations,
    NasOperations,
    PolicyOperations,
    RadiusOperations,
    SessionOperations,
)
from appliance.console.operations import Operations
from appliance.console.pages import ConsolePages
from appliance.console.people import AgentOperations, OwnerOperations
from appliance.console.pki import PkiRoutes
from appliance.console.routes import AdminRoutes
from appliance.console.trust import TrustOperations
from appliance.crl import CrlKeeper
from appliance.errors import ApplianceError, RateLimited
from appliance.evidence_package import EvidencePackages
from appliance.foreign_trust import ForeignTrust
from appliance.hierarchy import (
    ROLES,
    SEALING,
    SERVERS,
    ServerIdentity,
    key_file,
    read_audit_key,
    read_server,
)
from appliance.home import admin_socket
from appliance.identity.assemble import build_identity
from appliance.identity.registry import AgentRegistry
from appliance.identity.routes import TrustInfo
from appliance.identity.routes import endpoints as identity_endpoints
from appliance.identity_worker import FOLLOW_SECONDS
from appliance.identity_workers import IdentityWorkers
from appliance.keeping import keep
from appliance.keys import SealingBox, read_key
from appliance.ocsp import OcspResponder
from appliance.ports import address_text, is_loopback, listen, unavailable
from appliance.registrar.announce import Announcer
from appliance.registrar.assemble import assemble as assemble_registrar
from appliance.registrar.assemble import registrar_policy
from appliance.registrar.masa_client import HttpsMasa, MasaTransport
from appliance.rollover import Rollovers
from appliance.server_certificates import ServerCertificates
from appliance.settings import Settings
from appliance.store.proxies import ProxyRow
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.app import build_app
from appliance.web.health import Health
from appliance.web.limits import Bucket, Limits
from appliance.web.routes import Handler
from appliance.web.server import Listener, Timing
from appliance.web.tls import TlsFront, demand_client_certificate, https_context
from brski.registrar import Registrar
from est.keys import spki_sha256
from est.signer import KeySigner
from radius import handshake

_log = logging.getLogger(__name__)
_IS_STORM = attrgetter("is_storm")
_LOOPBACK = "127.0.0.1"


class Appliance:
    """Everything of one home, wired. start() opens it to the world, stop() drains it; operations need neither."""

    def __init__(
        self, settings: Settings, *, clock: Clock, passphrase: bytes, masa_transport: MasaTransport | None
    ) -> None:
        """Opens store and keys; raises what they refuse. Call on a running event loop."""
        home = settings.home
        self.settings = settings
        self.clock = clock
        self.store = Store.open(
            settings.store_url, clock, free_bytes=settings.store.free_bytes, is_shared=settings.identity.workers > 0
        )
        try:
            self.ca = CertificateAuthority.open(home, settings, passphrase, self.store, clock)
            self.servers = ServerCertificates(
                {name: read_server(home, name, passphrase, root=self.ca.root) for name in SERVERS},
                ca=self.ca,
                settings=settings,
                clock=clock,
            )
            https = self.servers["https"]
            self._https = https_context(https.certificate_file, https.key_file, passphrase)
            self._passphrase = passphrase
            self._https_for_clients = self._make_https_for_clients()
            sealing = SealingBox(read_key(key_file(home, SEALING), passphrase))
            self._build(sealing, passphrase, masa_transport)
        except BaseException:  # whatever it was, the database must not stay open
            self.store.close()
            raise

    def _build(self, sealing: SealingBox, passphrase: bytes, masa_transport: MasaTransport | None) -> None:
        settings, store, clock, ca = self.settings, self.store, self.clock, self.ca
        own = self.servers["registrar"]
        owner_id_oid = f"{settings.identity.oid_arc}.2"
        self.crls = CrlKeeper(ca, store, clock, life_hours=settings.ca.crl_hours)
        self.ocsp = OcspResponder(
            ca,
            store,
            clock,
            life_minutes=settings.ca.ocsp_minutes,
            signer_days=settings.ca.ocsp_signer_days,
            max_kept=settings.ca.ocsp_kept,
        )
        self.checkpoints = CheckpointKeeper(
            store,
            clock,
            read_audit_key(settings.home, passphrase),
            origin=settings.origin,
            file=Path(settings.audit.checkpoint_file or settings.home / CHECKPOINTS),
            seconds=settings.audit.checkpoint_seconds,
            entries=settings.audit.checkpoint_entries,
        )
        access = assemble_access(settings, store=store, clock=clock, roles=ca.roles, sealing=sealing)
        self.access, self.nas, self.sessions, self._changes = (
            access.service,
            access.nas,
            access.sessions,
            access.changes,
        )
        self.directory, self.sync, self.directory_tokens = access.directory, access.sync, access.directory_tokens
        self.policies, self.explainer, self.decisions = access.policies, access.explainer, access.decisions
        self.forwarding = access.forwarding
        self.identity = build_identity(
            settings.identity, origin=settings.origin, server_id=settings.server_id, store=store, ca=ca, clock=clock
        )
        self._brski = Registrar(
            KeySigner(own.key),
            own.certificate,
            own.chain[:1],  # what a MASA may pin: us, or the domain's CA of devices (B-261)
            registrar_policy(settings.registrar),
        )

        def present(context: ssl.SSLContext) -> None:
            context.load_cert_chain(own.certificate_file, own.key_file, passphrase.decode())

        masa = masa_transport or HttpsMasa(settings.registrar, load_identity=present)
        self.registrar = assemble_registrar(
            settings.registrar,
            origin=settings.origin,
            ldevid_days=settings.ca.ldevid_days,
            est_settings=settings.est,
            store=store,
            clock=clock,
            ca=ca,
            registrar=self._brski,
            signer=KeySigner(own.key),
            masa=masa,
            on_proxy_revoked=(revoke_agents_behind,),
            never_granted=[f"{settings.identity.oid_arc}.{one}" for one in (1, 2)],
        )
        self.agents = AgentRegistry(origin=settings.origin, store=store)
        self.certificates = CertificateList(origin=settings.origin, ca=ca, store=store, clock=clock)
        self.health = Health(
            store=store,
            clock=clock,
            ca=ca,
            crls=self.crls,
            settings=settings,
            advice={
                "directory": self.sync.look,
                "radius": lambda: self._radius.look(),
                "log-forwarding": self.forwarding.look,
            },
        )
        self.rollovers = Rollovers(
            settings, ca=ca, store=store, clock=clock, passphrase=passphrase, on_change=self._use_authorities
        )
        self.operations = self._operations()
        self.listeners: dict[str, str | None] = {}
        self._decision_port = settings.web.decision_port
        self._open: list[Listener] = []
        self._for_clients: list[Listener] = []
        self._owner_id_oid = owner_id_oid
        self._device_tls = TlsFront(own.key, own.certificate, own.sent)
        self._radius = RadiusEngine(
            settings.radius,
            home=settings.home,
            store=store,
            access=self.access,
            nas=self.nas,
            sessions=self.sessions,
            freeradius=self.freeradius,
            parts=self._radius_parts(),
        )
        self.servers.follow("registrar", self._use_registrar)
        if isinstance(masa, HttpsMasa):
            self.servers.follow("registrar", lambda own: masa.reload_identity())
        self.servers.follow("https", self._use_https)
        self.servers.follow("radius", lambda own: self._radius.use(self._radius_parts()))
        self.servers.follow("registrar", lambda own: self.workers.renew())
        self.workers = IdentityWorkers(settings, passphrase)
        self._announcer: Announcer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._has_started = False

    # -- the parts

    def _make_https_for_clients(self) -> ssl.SSLContext:
        """RADIUS servers on other hosts come with a certificate of the infrastructure CA beside their token."""
        https = self.servers["https"]
        context = https_context(https.certificate_file, https.key_file, self._passphrase)
        demand_client_certificate(context, self.ca.anchors("infrastructure").certificates)
        return context

    def _radius_parts(self) -> RadiusParts:
        radius = self.servers["radius"]
        return RadiusParts(
            handshake.ServerIdentity(radius.certificate, radius.sent, radius.key),
            self.ca.anchors("agents").certificates,
            self.ca.anchors("devices").certificates,
            self._owner_id_oid,
            self.settings.access.reply_message,
        )

    def _radius_files(self) -> RadiusFiles:
        radius = self.servers["radius"]
        key_pem = radius.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return RadiusFiles(
            certificate_chain_pem=_pem(radius.certificate, *radius.sent),
            key_pem=key_pem,
            agents_cas_pem=_pem(*self.ca.anchors("agents").certificates),
            devices_cas_pem=_pem(*self.ca.anchors("devices").certificates),
            infrastructure_cas_pem=_pem(*self.ca.anchors("infrastructure").certificates),
            decision_ca_pem=_pem(*self.ca.authorities.roots),
            origin=self.settings.origin,
            decision_base=self._decision_base,
        )

    async def _use_authorities(self) -> None:
        """The CAs have changed: whoever holds something of theirs gets it anew."""
        await self.servers.settle()
        now = self._issuers_now()
        self._issuers.update(now)
        for gone in self._issuers.keys() - now.keys():
            del self._issuers[gone]
        self._https_for_clients = self._make_https_for_clients()
        for listener in self._for_clients:
            listener.use_tls(self._https_for_clients)
        if self._has_started:
            self.crls.look()
            self.registrar.prefetch.look()
            await self.ocsp.follow()
            self._radius.use(self._radius_parts())
            self.workers.renew()

    def _issuers_now(self) -> dict[str, x509.Certificate]:
        """Issuing CAs by role, and every other generation by its label."""
        return {
            **{one.label: one.certificate for one in self.ca.generations},
            **{role: self.ca.issuing(role).certificate for role in ROLES},
        }

    def _use_registrar(self, own: ServerIdentity) -> None:
        self._device_tls.rotate(own.key, own.certificate, own.sent)
        self._brski.use_identity(KeySigner(own.key), own.certificate, own.chain[:1])

    def _use_https(self, own: ServerIdentity) -> None:
        for context in (self._https, self._https_for_clients):
            context.load_cert_chain(own.certificate_file, own.key_file, self._passphrase)

    def _decision_base(self) -> str:
        """Where FreeRADIUS finds us: a name that stands in the server certificate."""
        web = self.settings.web
        here = web.decision_host if is_loopback(web.decision_host) else _LOOPBACK
        host = here if here in web.names else web.names[0]
        return f"https://{address_text(host, self._decision_port)}"

    def _console_url(self) -> str:
        """Where SCIM clients find the console port."""
        web, chosen = self.settings.web, self.settings.directory.scim_base_url
        port = (self.listeners.get("console") or "").rpartition(":")[2] or web.console_port
        return chosen.rstrip("/") or f"https://{address_text(web.names[0], int(port))}"

    def _operations(self) -> Operations:
        actor = Actor("administrator", "local")
        owners = OwnerOperations(self.directory, actor, self.identity.issuer.trust_bundle, self.identity.desk)
        trust = ForeignTrust(self.store, self.settings.origin)
        self._issuers = self._issuers_now()
        self.freeradius = FreeRadius(
            self.settings.radius,
            self.nas,
            self._radius_files,
            lambda: self.access.snapshot.policy,
            owner_id_oid=f"{self.settings.identity.oid_arc}.2",
        )
        self.sites = RadiusSites(
            self.ca,
            self.store,
            self.clock,
            self.access,
            self.nas,
            self.freeradius,
            origin=self.settings.origin,
            server_name=self.settings.radius_server_name,
            days=self.settings.ca.server_days,
        )
        return Operations(
            {
                "": HomeOperations(self.doctor, self.backup),
                "ca": CaOperations(self.servers, self.rollovers, actor),
                "manufacturers": ManufacturerOperations(self.registrar.manufacturers, actor),
                "pledges": PledgeOperations(self.registrar, actor),
                "proxies": ProxyOperations(self.registrar.inventory, actor),
                "est": EstOperations(self.registrar, actor, {*self.settings.est.labels, LABEL}),
                "owners": owners,
                "trust": TrustOperations(trust, actor, owners.bundle_text),
                "directory": DirectoryOperations(self.sync, self.directory, self.directory_tokens, actor),
                "agents": AgentOperations(self.agents, actor),
                "certs": CertificateOperations(
                    self.certificates,
                    EvidencePackages(ca=self.ca, store=self.store, clock=self.clock, checkpoints=self.checkpoints),
                    actor,
                ),
                "policy": PolicyOperations(
                    self.policies, self.explainer, OpenSessions(self.access, self.sessions), actor, self._issuers
                ),
                "nas": NasOperations(
                    self.nas,
                    NasCertificates(
                        self.ca, self.store, origin=self.settings.origin, days=self.settings.ca.server_days
                    ),
                    actor,
                ),
                "access": AccessOperations(self.decisions, self.explainer, self.forwarding),
                "sessions": SessionOperations(self.sessions, actor),
                "radius": RadiusOperations(self.freeradius, actor),
                "audit": AuditOperations(AuditReader(self.store), self.checkpoints, actor),
            }
        )

    # -- life

    async def prepare(self) -> None:
        """What operations need: the facts in memory."""
        await self.access.start()
        await self.nas.start()
        await self.sites.start()

    async def start(self) -> dict[str, str | None]:
        """Open every listener; answers where each can be reached. Raises what a port or the store refuses."""
        settings, web = self.settings, self.settings.web
        try:
            await self.rollovers.settle()  # what a kill left of the last step
        except (ApplianceError, OSError) as error:  # a full disk does not hinder the start
            _log.error("event=authorities-not-settled error=%r", error)
        await self.checkpoints.start()
        await self.crls.start()
        await self.ocsp.start()
        limits = Limits(
            self.clock,
            Bucket(web.address_rate, web.address_burst),
            Bucket(web.identity_rate, web.identity_burst),
            is_known=lambda peer: self.registrar.ldevids.is_ours(peer) or self.identity.is_gateway(peer),
            on_refused=lambda peer: self.registrar.refusals.count(RateLimited.reason, peer.address),
        )
        # a nonce wants a signature each time, and anybody may send one
        of_pki = Bucket(web.pki_rate, web.pki_burst)
        asked = Limits(self.clock, of_pki, of_pki)
        of_scim = Bucket(settings.directory.scim_rate, settings.directory.scim_burst)
        pushing = Limits(self.clock, of_scim, of_scim)
        scim = ScimRoutes(
            ScimService(
                self.store,
                origin=settings.origin,
                departments_from=settings.directory.scim_departments,
                max_owners=settings.directory.max_owners,
            ),
            self.directory_tokens,
            self._console_url,
        )
        pages = ConsolePages()
        health = {"health.healthz": self.health.healthz, "health.readyz": self.health.readyz}
        identity_port = await self._bind_identity() if settings.identity.workers else None
        trust = TrustInfo(settings.radius_server_name, settings.server_id, settings.domain.trust_domain, identity_port)
        pki = {
            **PkiRoutes(self.ca, self.crls, self.ocsp, self.clock).endpoints,
            **CheckpointRoutes(self.checkpoints).endpoints,
        }

        def access(sites: RadiusSites | None) -> dict[str, Handler]:
            routes = AccessRoutes(
                self.access,
                self.sessions,
                owner_id_oid=f"{settings.identity.oid_arc}.2",
                reply_message=settings.access.reply_message,
                sites=sites,
            )
            return {
                **health,
                "access.decide": routes.decide,
                "access.fail": routes.fail,
                "access.accounting": routes.accounting,
                **decision_endpoints(self.sites),
            }

        registrar = est_endpoints(self.sites, self.registrar.endpoints)
        device = {**registrar, **identity_endpoints(self.identity, trust)}
        console = {
            **health,
            "console.problem": pages.problem,
            "console.docs": pages.docs,
            "console.openapi": pages.openapi,
            **scim.endpoints,
        }
        await self.sessions.start()  # before the first login
        timing = Timing.of(web)
        plan: list[tuple[str, str, int, Mapping[str, Any], Any, Limits | None]] = [
            ("device", web.host, web.device_port, device, self._device_tls, limits),
            ("console", web.host, web.console_port, console, self._https, pushing),
            ("decision", *self._decision_listener(access), None),
            ("pki", web.host, web.pki_port, pki, None, asked),
        ]
        deciding: list[Listener] = []
        for name, host, port, endpoints, tls, bucket in plan:
            app = build_app(name, endpoints, limits=bucket)  # type: ignore[arg-type]
            listener = Listener(name, app, timing=timing, tls=tls, sheds=name == "decision")
            if tls is self._https_for_clients:
                self._for_clients.append(listener)
            found = await listen(listener, host, port)
            self._open.append(listener)
            self.listeners[name] = address_text(host, found)
            if name == "decision":
                deciding.append(listener)
                self._decision_port = found
                if not is_loopback(web.decision_host):  # the FreeRADIUS on this machine asks as ever
                    near_app = build_app("decision", access(None))
                    near = Listener(name, near_app, timing=timing, tls=self._https, sheds=True)
                    self._decision_port = await listen(near, _LOOPBACK, web.decision_port and found)
                    self._open.append(near)
                    deciding.append(near)
        self.access.spare_the_store(lambda: any(map(_IS_STORM, deciding)))
        if identity_port is not None:
            await self.workers.start()
            self._tasks.append(asyncio.create_task(self.store.follow(FOLLOW_SECONDS)))
            self.listeners["identity"] = address_text(web.host, identity_port)
        admin = Listener("admin", build_app("admin", {"console.operation": AdminRoutes(self.operations).operation}))
        await admin.open_unix(admin_socket(settings.home), 0o600)
        self._open.append(admin)
        await self._changes.start()
        try:
            answering = await self._radius.start()
        except OSError as cause:
            radius = settings.radius
            raise unavailable("radius", radius.host, radius.port, cause) from cause
        self.listeners["radius"] = None if answering is None else address_text(*answering)
        if self._radius.accounting_port:
            self.listeners["accounting"] = address_text(settings.radius.host, self._radius.accounting_port)
        keepers = (
            self.crls,
            self.ocsp,
            self.registrar,
            self.registrar.prefetch,
            self.checkpoints,
            self.sync,
            self.servers,
            self.forwarding,
        )
        self._tasks += [asyncio.create_task(keep(one.run, type(one).__name__)) for one in keepers]
        if settings.registrar.announce:
            own = self.servers["registrar"]
            self._announcer = Announcer(
                interfaces=settings.registrar.announce_interfaces,
                as_proxy=settings.registrar.announce_as_proxy,
                host=web.host,
                port=int((self.listeners["device"] or "").rpartition(":")[2]),
                instance=f"{settings.domain.trust_domain.replace('.', '-')[:40]}-{_tag(own.certificate)}",
            )
            await self._announcer.start()
        await self.store.write(lambda tx: append(tx, AuditEvent("appliance-started", APPLIANCE)))
        self._has_started = True
        return self.listeners

    def _decision_listener(
        self, endpoints: Callable[[RadiusSites | None], dict[str, Handler]]
    ) -> tuple[str, int, dict[str, Handler], ssl.SSLContext]:
        """Host, port, endpoints and TLS: other machines show a RADIUS server's certificate beside their token."""
        web = self.settings.web
        if is_loopback(web.decision_host):
            return web.decision_host, web.decision_port, endpoints(None), self._https
        return web.decision_host, web.decision_port, endpoints(self.sites), self._https_for_clients

    async def _bind_identity(self) -> int:
        web = self.settings.web
        try:
            return await self.workers.bind()
        except OSError as cause:
            raise unavailable("identity", web.host, web.identity_port, cause) from cause

    async def doctor(self) -> list[dict[str, Any]]:
        """What /readyz sees, and how long every certificate lives."""
        rows = [
            row(name, "ok" if seen["ok"] else "error", f"{seen['reason']} {seen['seen']}".strip())
            for name, seen in (await self.health.look()).items()
        ]
        if self._has_started and (wanted := self.settings.identity.workers):
            running = len(self.workers.pids)
            rows.append(row("identity-workers", "ok" if running == wanted else "warning", f"{running} of {wanted}"))
        if self._radius.refused:
            rows.append(row("radius-configuration", "error", self._radius.refused, "appliance radius check"))
        rows += of_access(self.access, self.settings.access.stale_seconds)
        rows += of_directory(await self.sync.status(), self.settings.directory)
        certificates = self.ca.certificates | {name: own.certificate for name, own in self.servers.items()}
        return rows + [expiry(name, certificate, self.clock) for name, certificate in certificates.items()]

    async def backup(self, file: Path) -> dict[str, Any]:
        """Write an encrypted backup and audit it."""
        settings = self.settings
        done = await asyncio.to_thread(write_backup, settings.home, settings.store_url, file, self._passphrase)
        actor = Actor("administrator", "local")
        await self.store.write(lambda tx: append(tx, AuditEvent("backup-made", actor, object=file.name)))
        return done

    async def stop(self) -> None:
        """Withdraw the announcement, finish what is under way, close everything; safe after a failed start."""
        if self._announcer is not None:
            await self._announcer.stop()
        self.identity.challenges.release()
        self.sync.stop()
        listening = (listener.close() for listener in self._open)
        await asyncio.gather(*listening, self.workers.stop(), return_exceptions=True)
        await self._radius.stop()
        await self._changes.stop()
        await self.sessions.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.registrar.close()
        await self.identity.close()
        await self.access.stop()
        try:
            if self._has_started:  # the last entry, after all that requests under way had to add
                stopped = AuditEvent("appliance-stopped", APPLIANCE)
                await self.store.write(lambda tx: append(tx, stopped), essential=True)
        finally:
            self.store.close()


def create_appliance(
    settings: Settings, *, clock: Clock | None = None, passphrase: bytes, masa_transport: MasaTransport | None = None
) -> Appliance:
    """An appliance over an initialised home; call on a running event loop, then prepare() and start()."""
    return Appliance(settings, clock=clock or SystemClock(), passphrase=passphrase, masa_transport=masa_transport)


def revoke_agents_behind(tx: Tx, row: ProxyRow, actor: Actor) -> None:
    """What ends with a proxy besides its own certificates: the agents that it alone vouched for (A-102)."""
    cascade.revoke_behind_proxy(tx, row.identifier, actor=actor)


def _tag(certificate: x509.Certificate) -> str:
    """Names this appliance among others on a link, also after a restart."""
    return spki_sha256(certificate).hex()[:8]


def _pem(*certificates: x509.Certificate) -> str:
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)
