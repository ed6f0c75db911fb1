"""NAS and RADIUS servers: shared secrets (sealed in the store) and tokens for the decision port (only hashed)."""

from __future__ import annotations

import ipaddress
import re
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Protocol

from appliance.access import server_tokens
from appliance.access.server_tokens import digest_of
from appliance.access.session_changes import Target, profile_of
from appliance.audit import Actor, AuditEvent, append
from appliance.ca import revoke
from appliance.errors import NotFound, RequestMalformed
from appliance.store import nas
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx
from radius.clients import Nas, NasClient, NasTable
from radius.nas_profiles import profile as check_profile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_SECRET = re.compile(r"[A-Za-z0-9._~+/=-]{16,128}")

Engine = Literal["embedded", "freeradius", "none"]
ALL, REQUESTS = "logins and requests to it", "requests to it alone"
"""What an old secret still counts for; requests are CoA and Disconnect."""
_ONLY_ONE: Final = "FreeRADIUS knows one secret per NAS: logins and accounting want the new one"
_ROTATED: Final[dict[Engine, str]] = {
    "embedded": "",
    "freeradius": f"{_ONLY_ONE} as soon as FreeRADIUS has restarted, in a second or two",
    "none": f"{_ONLY_ONE} once `appliance radius run` has looked and restarted it: within 10 s beside the appliance, "
    "20 s on another machine; a folder that is run by other means has to be rendered again",
}
"""What a rotation means for logins, in words; nothing has to be said where both secrets count."""


class Sealer(Protocol):
    """Seals small secrets for the store."""

    def seal(self, secret: bytes, purpose: str) -> bytes: ...

    def unseal(self, sealed: bytes, purpose: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Way:
    """Where and how the sessions of a NAS are changed, and with which secrets."""

    client: NasClient
    coa_port: int
    profile: str


class NasService:
    """Who may speak RADIUS to us, and which RADIUS servers may ask for decisions."""

    def __init__(
        self,
        store: Store,
        sealer: Sealer,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        engine: Engine = "embedded",
    ) -> None:
        """`engine`: who speaks RADIUS with the NAS; the embedded server alone knows two secrets of one."""
        self._engine: Engine = engine
        self._store = store
        self._sealer = sealer
        self._now = now
        self._table = NasTable()
        self._ways: dict[str, _Way] = {}
        self._listeners: list[Callable[[], None]] = []
        self._uses_old: dict[str, dict[str, bool]] = {}
        self._certificates: list[str] | None = None

    async def start(self) -> None:
        """Load the table; add() and remove() keep it right."""
        self._store.subscribe(self._on_events)
        await self.reload()

    async def live_certificates(self) -> list[str]:
        """Serial numbers, hex, of the certificates that NAS may show over RadSec."""
        if self._certificates is None:
            found = await self._store.read(nas.live_certificates)
            self._certificates = found
            return found
        return self._certificates

    def _on_events(self, events: list[OutboxRow]) -> None:
        if any(one.topic == "certificate" and one.body.get("profile") == nas.PROFILE for one in events):
            self._certificates = None

    async def reload(self) -> None:
        """Read the NAS anew; the longest prefix comes first."""
        rows = await self._store.read(nas.every)
        self._ways = {row.name: _Way(self._opened(row), row.coa_port, row.profile) for row in rows}
        self._table = NasTable([way.client for way in self._ways.values()])
        for listener in self._listeners:
            listener()

    def on_reload(self, listener: Callable[[], None]) -> None:
        """Call back whenever the table was read anew."""
        self._listeners.append(listener)

    def _opened(self, row: nas.NasRow) -> NasClient:
        purpose = _purpose(row.name)
        secret = self._sealer.unseal(row.secret_sealed, purpose)
        if row.old_secret_sealed is None or row.old_secret_until is None:
            return NasClient(row.address, row.name, secret)
        old = self._sealer.unseal(row.old_secret_sealed, purpose)
        return NasClient(row.address, row.name, secret, old, row.old_secret_until.timestamp())

    @property
    def table(self) -> NasTable:
        """Who may speak RADIUS to us."""
        return self._table

    def lookup(self, address: str) -> Nas | None:
        """The NAS at an address with every secret that counts now; None for a stranger."""
        found = self._table.find(address)
        return None if found is None else found.at(self._now().timestamp())

    def target(self, nas_address: str, name: str = "") -> Target | None:
        """Where and how the live sessions of a NAS are changed; one without a known name is found by its address.

        Over RadSec a NAS is who its certificate says, from whatever address: another one may be registered there.
        """
        way = self._ways.get(name)
        if way is None:
            found = self._table.find(nas_address)
            if found is None:
                return None
            way = self._ways[found.name]
        return Target(way.coa_port, profile_of(way.profile), way.client.at(self._now().timestamp()).secrets)

    def used_secret(self, name: str, address: str, old: bool) -> None:
        """A packet of this NAS was authentic with its old or its new secret."""
        self._uses_old.setdefault(name, {})[address] = old

    def clients(self) -> list[tuple[str, str, str]]:
        """(name, address or prefix, shared secret) of all, for a FreeRADIUS configuration."""
        return [(row.name, row.network, row.secret.decode()) for row in self._table.rows]

    async def add(
        self,
        name: str,
        address: str,
        secret: str,
        actor: Actor,
        *,
        site: str = "",
        coa_port: int = nas.DEFAULT_COA_PORT,
        profile: str = nas.DEFAULT_PROFILE,
    ) -> dict[str, Any]:
        """Add a NAS, at a site of the access policy if one is named.

        Without a secret one of 256 bits is made and answered, this once.
        """
        if not _NAME.fullmatch(name):
            raise RequestMalformed("a NAS name is 1 to 63 letters, digits, dots, hyphens or underscores")
        try:
            network = ipaddress.ip_network(address)
        except ValueError as cause:
            raise RequestMalformed(f"not an address or prefix: {cause}") from cause
        if site and not _SITE.fullmatch(site):
            raise RequestMalformed("a site's name is 1 to 64 letters, digits, blanks, dots, hyphens or underscores")
        _check_ways(coa_port, profile)
        given, made = _secret(secret)
        row_id = str(uuid.uuid4())
        sealed = self._sealer.seal(given.encode(), _purpose(name))

        def store(tx: Tx) -> None:
            nas.add(tx, nas.NasRow(row_id, name, str(network), sealed, tx.now, site, coa_port, profile))
            fields = {"address": str(network), "site": site, "coa_port": coa_port, "profile": profile}
            append(tx, AuditEvent("nas-added", actor, object=name, fields=fields))

        await self._store.write(store)
        await self.reload()
        told = {"name": name, "address": str(network), "site": site, "coa_port": coa_port, "profile": profile}
        return told | ({"shared_secret": given} if made else {})

    async def change(self, name: str, actor: Actor, *, coa_port: int = 0, profile: str = "") -> dict[str, Any]:
        """Say anew where and how the sessions of a NAS are changed; 0 and "" leave things as they are."""
        row = await self._row(name)
        row = replace(row, coa_port=coa_port or row.coa_port, profile=profile or row.profile)
        _check_ways(row.coa_port, row.profile)
        told = {"coa_port": row.coa_port, "profile": row.profile}

        def store(tx: Tx) -> None:
            if not nas.change(tx, row):
                raise NotFound(f"there is no NAS named {name}")
            append(tx, AuditEvent("nas-changed", actor, object=name, fields=told))

        await self._store.write(store)
        await self.reload()
        return {"name": name, **told}

    async def rotate_secret(
        self, name: str, actor: Actor, *, overlap_seconds: float, secret: str = ""
    ) -> dict[str, Any]:
        """Give a NAS a new secret; the old one counts as well until the overlap is over.

        With FreeRADIUS that is so for requests to the NAS alone; `logins` in the answer says what its logins want.
        """
        if not 0 <= overlap_seconds <= 30 * 86_400:
            raise RequestMalformed("an overlap is at most 30 days")
        row = await self._row(name)
        given, made = _secret(secret)
        sealed = self._sealer.seal(given.encode(), _purpose(name))
        until = self._now() + timedelta(seconds=overlap_seconds) if overlap_seconds else None
        old = row.secret_sealed if until else None
        told = {"overlap_until": until.isoformat(timespec="seconds") if until else ""}

        def store(tx: Tx) -> None:
            if not nas.rotate(tx, row, sealed=sealed, old=old, until=until):
                raise NotFound(f"there is no NAS named {name}")
            append(tx, AuditEvent("nas-secret-rotated", actor, object=name, fields=told))

        await self._store.write(store)
        self._uses_old.pop(name, None)
        await self.reload()
        told |= {"overlap_for": self._scope if until else "", "logins": _ROTATED[self._engine]}
        return {"name": name, **told} | ({"shared_secret": given} if made else {})

    @property
    def _scope(self) -> str:
        return ALL if self._engine == "embedded" else REQUESTS

    async def _row(self, name: str) -> nas.NasRow:
        for row in await self._store.read(nas.every):
            if row.name == name:
                return row
        raise NotFound(f"there is no NAS named {name}")

    async def remove(self, name: str, actor: Actor) -> dict[str, Any]:
        """Remove a NAS and revoke its certificates; its packets are dropped from now on."""

        def store(tx: Tx) -> None:
            row = next((one for one in nas.every(tx) if one.name == name), None)
            if row is None or not nas.remove(tx, name):
                raise NotFound(f"there is no NAS named {name}")
            append(tx, AuditEvent("nas-removed", actor, object=name))
            for certificate in nas.certificates_of(tx, row.id):
                serial = int(certificate.serial, 16)
                revoke(tx, certificate.issuer_aki, serial, reason="cessationOfOperation", actor=actor)

        await self._store.write(store)
        await self.reload()
        return {"name": name, "removed": True}

    async def every(self) -> list[dict[str, Any]]:
        """All NAS, without their secrets."""
        return [
            {
                "name": row.name,
                "address": row.address,
                "site": row.site,
                "created_at": row.created_at.isoformat(),
                "coa_port": row.coa_port,
                "profile": row.profile,
                **self._rotation(row),
            }
            for row in await self._store.read(nas.every)
        ]

    def _rotation(self, row: nas.NasRow) -> dict[str, Any]:
        """How a rotation stands: until when, for what, and which addresses used the old secret last.

        None for those where FreeRADIUS speaks with the NAS: to it the old secret is as wrong as any other.
        """
        now = self._now()
        if row.old_secret_sealed is None or row.old_secret_until is None or row.old_secret_until <= now:
            return {"old_secret_until": "", "old_secret_for": "", "still_old": []}
        still = [address for address, old in self._uses_old.get(row.name, {}).items() if old]
        return {
            "old_secret_until": row.old_secret_until.isoformat(timespec="seconds"),
            "old_secret_for": self._scope,
            "still_old": sorted(still) if self._engine == "embedded" else None,
        }

    async def new_token(self, server: str, actor: Actor) -> str:
        """A fresh token for a RADIUS server; only its hash is kept. The one that serves counts until this one does."""
        token, id_ = secrets.token_urlsafe(32), str(uuid.uuid4())
        await self._store.write(lambda tx: server_tokens.put(tx, id_, server, digest_of(token), actor))
        return token

    async def serves_with(self, server: str, token: str, actor: Actor) -> None:
        """A RADIUS server came up with this token: if it is the newest one, the one before counts no more."""
        digest = digest_of(token)
        for row in await self._store.read(nas.servers):
            if row.name == server and row.older_sha256 is not None and row.token_sha256 == digest.hex():
                await self._store.write(lambda tx: server_tokens.end_older(tx, server, digest, actor), essential=True)


def _secret(given: str) -> tuple[str, bool]:
    """(secret, whether it was made here)."""
    if given and not _SECRET.fullmatch(given):
        raise RequestMalformed("a shared secret is 16 to 128 letters, digits or characters of ._~+/=-")
    return (given, False) if given else (secrets.token_urlsafe(32), True)


def _check_ways(coa_port: int, profile: str) -> None:
    if not 1 <= coa_port <= 65_535:
        raise RequestMalformed("a port is a number from 1 to 65535")
    check_profile(profile)


def _purpose(name: str) -> str:
    return f"nas:{name}"
