"""Who speaks RADIUS: the embedded server, a supervised FreeRADIUS, or nobody (setting radius.engine)."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from appliance.access.freeradius import FreeRadius, follow
from appliance.access.nas import NasService
from appliance.access.raddb_folder import RUNTIME, FreeRadiusRefused, default_folder
from appliance.access.service import AccessService
from appliance.access.sessions import SessionService
from appliance.access.supervisor import Supervisor
from appliance.audit import APPLIANCE
from appliance.settings import RadiusSettings
from appliance.store import nas as nas_rows
from appliance.store import policies
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow
from est.errors import Refusal
from radius.accounting_server import AccountingServer
from radius.handshake import ServerIdentity
from radius.pool import WorkerPool
from radius.server import RadiusServer

_log = logging.getLogger(__name__)
_START_SECONDS = 20.0
_SETTLE_SECONDS = 0.2
_LOOK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RadiusParts:
    """What the embedded server needs of our PKI: identity, CAs of agents and devices, the OID of the OwnerId."""

    identity: ServerIdentity
    agents_cas: tuple[x509.Certificate, ...]
    devices_cas: tuple[x509.Certificate, ...]
    owner_id_oid: str
    reply_message: bool


class RadiusEngine:
    """Starts and stops whatever the settings chose."""

    def __init__(
        self,
        settings: RadiusSettings,
        *,
        home: Path,
        store: Store,
        access: AccessService,
        nas: NasService,
        sessions: SessionService,
        freeradius: FreeRadius,
        parts: RadiusParts,
    ) -> None:
        """`home`: in it, or beside it, the FreeRADIUS configuration is rendered."""
        self._settings = settings
        self._home = home
        self._folder: Path | None = None
        self._store = store
        self._access = access
        self._nas = nas
        self._sessions = sessions
        self._freeradius = freeradius
        self._parts = parts
        self._server: RadiusServer | WorkerPool | None = None
        self._accounting: AccountingServer | None = None
        self.accounting_port = 0
        """Where accounting is taken; 0 = nowhere."""
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._supervisor: Supervisor | None = None
        self._refused = ""

    async def look(self) -> str:
        """Who speaks RADIUS, in a few words for anybody; raises FreeRadiusRefused while FreeRADIUS does not as told."""
        supervisor = self._supervisor
        if self._settings.engine != "freeradius":
            return "nobody here" if self._settings.engine == "none" else "the embedded server"
        if supervisor is None or not supervisor.is_serving:
            raise FreeRadiusRefused("FreeRADIUS does not serve; the log says why")
        if self.refused:
            raise FreeRadiusRefused("FreeRADIUS runs on with an older configuration, the newer one does not work")
        return "FreeRADIUS serves what was rendered last"

    @property
    def refused(self) -> str:
        """What is wrong with the configuration that FreeRADIUS should serve, for administrators; empty for nothing."""
        return self._refused or ("" if self._supervisor is None else self._supervisor.rolled_back_why)

    def use(self, parts: RadiusParts) -> None:
        """Another certificate, or other CAs, from the next login on; FreeRADIUS is started again with them.

        One that refuses them runs on with the old ones; the log says so.
        """
        self._parts = parts
        if self._server is not None:
            self._server.use_anchors(self._anchors())
            self._server.use_identity(parts.identity)
        self._changed.set()

    async def start(self) -> tuple[str, int] | None:
        """Host and port that answer, None for nobody; raises OSError, FreeRadiusMissing, FreeRadiusRefused."""
        match self._settings.engine:
            case "none":
                return None
            case "freeradius":
                return self._settings.host, await self._start_freeradius()
            case _:
                return self._settings.host, await self._start_embedded()

    async def stop(self) -> None:
        """Close the server, or end FreeRADIUS."""
        for server in (self._server, self._accounting):
            if server is not None:
                await server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._folder is not None and self._folder.is_relative_to(RUNTIME):
            shutil.rmtree(self._folder, ignore_errors=True)  # it holds keys, and is rendered anew at every start

    async def _start_embedded(self) -> int:
        settings = self._settings
        given: dict[str, Any] = {
            "identity": self._parts.identity,
            "anchors": self._anchors(),
            "authorize": self._access.authorize,
            "on_failure": self._access.failed,
            "on_accept": self._sessions.accepted,
            "on_secret": self._nas.used_secret,
            "owner_id_oid": self._parts.owner_id_oid,
            "tls_min": settings.tls_min,
            "tls_max": settings.tls_max,
            "session_seconds": settings.session_seconds,
            "max_sessions": settings.max_sessions,
            "fragment_bytes": settings.fragment_bytes,
            "reply_message": self._parts.reply_message,
        }
        if settings.workers:
            pool = WorkerPool(settings.workers, table=lambda: self._nas.table, **given)
            self._nas.on_reload(pool.refresh)
            self._server = pool
        else:
            self._server = RadiusServer(nas=self._nas.lookup, **given)
        self._store.subscribe(self._follow_policy)
        port = await self._server.start(settings.host, settings.port)
        self._accounting = AccountingServer(
            nas=self._nas.lookup, take=self._sessions.account, on_secret=self._nas.used_secret
        )
        wanted = settings.accounting_port if settings.port else 0
        self.accounting_port = await self._accounting.start(settings.host, wanted)
        return port

    def _anchors(self) -> tuple[x509.Certificate, ...]:
        """The issuing CAs whose certificates get through TLS: the devices CA only while a rule takes proxies."""
        policy = self._access.snapshot.policy
        parts = self._parts
        takes_proxies = policy is not None and policy.takes("proxy")
        return (*parts.agents_cas, *parts.devices_cas) if takes_proxies else parts.agents_cas

    def _follow_policy(self, events: list[OutboxRow]) -> None:
        """A policy took effect; the access service has heard of it before us."""
        if self._server is not None and any(one.topic == policies.TOPIC for one in events):
            self._server.use_anchors(self._anchors())

    async def _start_freeradius(self) -> int:
        settings = self._settings
        port = settings.port or _free_udp_port(settings.host)
        wanted = settings.accounting_port if settings.port else 0
        self.accounting_port = wanted or _free_udp_port(settings.host)
        self._folder = default_folder(self._home, self._freeradius.who())
        await self._freeradius.render(self._folder, APPLIANCE, port=port, accounting_port=self.accounting_port)
        ready, changed = asyncio.Event(), self._changed
        told = self._access.said_by_freeradius

        def served() -> None:
            ready.set()
            changed.set()  # the refresh that follows ends the token before

        supervisor = Supervisor(self._folder, who=self._freeradius.who(), on_ready=served, on_line=told)
        self._supervisor = supervisor
        task = asyncio.create_task(supervisor.run())
        self._store.subscribe(lambda rows: changed.set() if any(map(_concerns, rows)) else None)
        following = follow(self._refresh, supervisor.reload, changed, settle=_SETTLE_SECONDS, every=_LOOK_SECONDS)
        self._tasks += [task, asyncio.create_task(following)]
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((task, waiting), timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        return port

    async def _refresh(self) -> bool:
        assert self._folder is not None
        try:
            changed = await self._freeradius.refresh(self._folder, APPLIANCE)
            self._refused = ""
            return changed
        except Refusal as refused:
            self._refused = refused.detail
            _log.error("event=freeradius-not-reloaded reason=%s detail=%r", refused.reason, refused.detail)
            return False
        except OSError as broken:  # a full disk, say: the next look, a minute later, may find it better
            self._refused = str(broken)
            _log.error("event=freeradius-not-reloaded reason=os-error detail=%r", str(broken))
            return False


def _concerns(row: OutboxRow) -> bool:
    """Whether a FreeRADIUS configuration may look different now: NAS and their certificates, policy."""
    if row.topic == "certificate":
        return row.body.get("profile") == nas_rows.PROFILE
    return row.topic in (nas_rows.TOPIC, policies.TOPIC)


def _free_udp_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
