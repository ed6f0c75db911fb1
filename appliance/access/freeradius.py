"""FreeRADIUS in production: its configuration made of our state, for this machine or for another one.

The rendered folder holds secrets (the NAS' shared secrets, the token of the decision port, the server key) and is
readable by its owner and one group only.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from appliance.access.nas import NasService
from appliance.access.raddb_folder import (
    LAST_GOOD,
    RunAs,
    find_libraries,
    find_program,
    knows,
    own_folder,
    owner_of,
    run_as,
    token_in,
)
from appliance.access.supervisor import check_folder
from appliance.audit import Actor
from appliance.errors import ApplianceError, NotFound
from appliance.settings import RadiusSettings
from appliance.web.routes import ROUTES
from radius import Policy
from radius.render import NasEntry, RaddbValues, RadSec, render, write_raddb

TOKEN_NAME = "freeradius"  # noqa: S105 - the name under which the token is kept, not the token
FAILURE_PATH, ACCOUNTING_PATH = "/radius/failure", "/radius/accounting"


@dataclass(frozen=True, slots=True)
class RadiusFiles:
    """What FreeRADIUS needs of our PKI, as PEM, and where it finds the decision port.

    `devices_cas_pem` are used where the policy lets proxies log in, `infrastructure_cas_pem` for RadSec; `origin` is
    scheme and trust domain. `decision_base` is `https://host:port`.
    """

    certificate_chain_pem: str
    key_pem: str
    agents_cas_pem: str
    devices_cas_pem: str
    infrastructure_cas_pem: str
    decision_ca_pem: str
    origin: str
    decision_base: Callable[[], str]


@dataclass(frozen=True, slots=True)
class PolicyNeeds:
    """What the policy in force asks of a RADIUS server."""

    devices: bool = False
    mac_bypass: bool = False
    guest_vlan: int | str | None = None


def needs_of(policy: Policy | None) -> PolicyNeeds:
    """Devices' certificates where a rule takes proxies, MAC bypass where the policy has it, the guest VLAN."""
    if policy is None:
        return PolicyNeeds()
    devices = any("proxy" in getattr(rule, "credentials", ()) for rule in policy.rules)
    return PolicyNeeds(devices, getattr(policy, "mac_bypass", None) is not None, policy.guest_vlan_id)


class FreeRadius:
    """Renders and checks configurations. `policy` tells the one in force."""

    def __init__(
        self,
        settings: RadiusSettings,
        nas: NasService,
        files: Callable[[], RadiusFiles],
        policy: Callable[[], Policy | None],
        *,
        owner_id_oid: str,
    ) -> None:
        """`files` is asked at every rendering: certificates and CAs change."""
        self._settings = settings
        self._nas = nas
        self._files = files
        self._policy = policy
        self._owner_id_oid = owner_id_oid
        self._port = settings.port or 1812
        self._accounting_port = settings.accounting_port or 1813
        self._tokens: dict[Path, str] = {}
        self._written: dict[Path, dict[str, str]] = {}

    def who(self) -> RunAs | None:
        """The user that FreeRADIUS runs as; raises FreeRadiusRefused."""
        return run_as(self._settings.user)

    async def render(self, folder: Path, actor: Actor, *, port: int = 0, accounting_port: int = 0) -> dict[str, Any]:
        """Write a complete configuration to `folder`, with a fresh token.

        The token of what served in this folder last counts until the new one serves: FreeRADIUS may have to go back.
        """
        who = self.who()
        await self._settle(folder, actor)
        self._port = port or self._port
        self._accounting_port = accounting_port or self._accounting_port
        # one token per folder: rendering for another machine must not silence the FreeRADIUS that runs here
        self._tokens[folder] = await self._nas.new_token(_token_name(str(folder)), actor)
        await self._nas.reload()
        values = await self._values(folder, self._tokens[folder])
        files = render(values)
        own_folder(folder, who)
        write_raddb(files, folder, owner=owner_of(who))
        self._written[folder] = files
        return {"folder": str(folder), "listen": f"{self._settings.host}:{self._port}", "clients": len(values.nas)}

    async def refresh(self, folder: Path, actor: Actor) -> bool:
        """Write `folder` again if anything in it has changed and FreeRADIUS takes it; else leave it as it is.

        True = there is something new to start on. A folder that this process has not rendered is rendered afresh.
        """
        await self._settle(folder, actor)
        if folder not in self._tokens:
            await self._check(None)
            await self.render(folder, actor)
            return True
        await self._nas.reload()
        files = render(await self._values(folder, self._tokens[folder]))
        if files == self._written.get(folder):
            return False
        await self._check(files)
        write_raddb(files, folder, owner=owner_of(self.who()))
        self._written[folder] = files
        return True

    async def check(self, folder: Path | None) -> dict[str, Any]:
        """FreeRADIUS' own check of a rendered folder, or of a throw-away rendering; raises what it refuses."""
        if folder is not None:
            if not (folder / "radiusd.conf").exists():
                raise NotFound(f"{folder} holds no rendered configuration")
            return await check_folder(folder, self.who())
        await self._nas.reload()
        return await self._check(None) | {"notes": self._notes()}

    async def values_for(self, token: str) -> RaddbValues:
        """What another machine needs to render for itself: no key, no certificate, no folder of ours."""
        await self._nas.reload()
        return replace(await self._values(Path("/"), token), certificate_chain_pem="", key_pem="")

    async def _check(self, files: dict[str, str] | None) -> dict[str, Any]:
        who = self.who()
        with tempfile.TemporaryDirectory(prefix="raddb-") as name:
            if who is not None:
                os.chown(name, who.uid, who.gid)
            folder = Path(name)
            if files is None:
                files = render(await self._values(folder, "x" * 43))
            else:
                written = next((str(one) for one in self._tokens if f'"{one}"' in files["radiusd.conf"]), "")
                files = {**files, "radiusd.conf": files["radiusd.conf"].replace(written, name)}
            write_raddb(files, folder, owner=owner_of(who))
            await check_folder(folder, who)
        return {"ok": True, "user": who.name if who else "", "clients": files["clients.conf"].count("\nclient ")}

    async def _settle(self, folder: Path, actor: Actor) -> None:
        """End the token before, where the supervisor has kept what carries the newest one as having served."""
        if token := token_in(folder / LAST_GOOD):
            await self._nas.serves_with(_token_name(str(folder)), token, actor)

    def _notes(self) -> str:
        """What serves, but perhaps not as meant."""
        notes = []
        needs = needs_of(self._policy())
        if self._policy() is None:
            notes.append("no policy is published: every login is rejected")
        if self._settings.fail_mode == "guest" and needs.guest_vlan is None:
            notes.append("radius.fail_mode is guest but no policy names a guest VLAN: silence is a reject")
        if not self._nas.clients() and not self._settings.radsec_host:
            notes.append("no NAS may ask: appliance nas add")
        return "; ".join(notes)

    async def _values(self, folder: Path, token: str) -> RaddbValues:
        settings, files, needs = self._settings, self._files(), needs_of(self._policy())
        base, paths = files.decision_base(), {route.path for route in ROUTES if route.listener == "decision"}
        radsec = None
        if settings.radsec_host:
            serials = await self._nas.live_certificates()
            radsec = RadSec(
                settings.radsec_host, files.infrastructure_cas_pem, files.origin, serials, settings.radsec_port
            )
        fail_mode = settings.fail_mode
        if fail_mode == "guest" and needs.guest_vlan is None:
            fail_mode = "closed"
        libraries = _libraries()
        return RaddbValues(
            directory=str(folder),
            address=settings.host,
            more_addresses=settings.more_hosts,
            port=self._port,
            accounting_port=self._accounting_port,
            library_directory=libraries,
            decision_url=f"{base}/v1/decide",
            failure_url=f"{base}{FAILURE_PATH}" if FAILURE_PATH in paths else "",
            accounting_url=f"{base}{ACCOUNTING_PATH}" if ACCOUNTING_PATH in paths else "",
            decision_ca_pem=files.decision_ca_pem,
            token=token,
            certificate_chain_pem=files.certificate_chain_pem,
            key_pem=files.key_pem,
            client_ca_pem=files.agents_cas_pem + (files.devices_cas_pem if needs.devices else ""),
            owner_id_oid=self._owner_id_oid,
            nas=[NasEntry(name, address, secret) for name, address, secret in self._nas.clients()],
            tls_min=settings.tls_min,
            tls_max=settings.tls_max,
            fragment_bytes=settings.fragment_bytes,
            session_seconds=max(1, int(settings.session_seconds)),
            max_sessions=settings.max_sessions,
            fail_mode=fail_mode,
            guest_vlan=needs.guest_vlan,
            cache_seconds=settings.last_known_good_seconds,
            radsec=radsec,
            mac_bypass=needs.mac_bypass,
            limit_proxy_state=_knows_limit_proxy_state(libraries),
        )


def _token_name(place: str) -> str:
    return f"{TOKEN_NAME}-{sha256(place.encode()).hexdigest()[:8]}"


def _libraries() -> str:
    try:
        return find_libraries()
    except ApplianceError:
        return "/usr/lib/freeradius"  # rendered here for another machine; the check says what is missing


def _knows_limit_proxy_state(libraries: str) -> bool:
    try:
        return knows(find_program(), libraries, "limit_proxy_state")
    except ApplianceError:
        return False


async def follow(
    refresh: Callable[[], Any], reload: Callable[[], None], changed: asyncio.Event, *, settle: float, every: float
) -> None:
    """Render again when something changed, and now and then in any case; reload when that gave something new."""
    while True:
        try:
            async with asyncio.timeout(every):  # wait_for() may lose a cancellation that meets the event
                await changed.wait()
            await asyncio.sleep(settle)  # several NAS are often added one after the other
        except TimeoutError:
            pass
        changed.clear()
        if await refresh():
            reload()
