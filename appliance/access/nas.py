"""NAS and RADIUS servers: shared secrets (sealed in the store) and tokens for the decision port (only hashed)."""

from __future__ import annotations

import ipaddress
import re
import secrets
import uuid
from hashlib import sha256
from typing import Any, Protocol

from appliance.audit import Actor, AuditEvent, append
from appliance.errors import NotFound, RequestMalformed
from appliance.store import nas
from appliance.store.store import Store
from appliance.store.transaction import Tx

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_SECRET = re.compile(r"[A-Za-z0-9._~+/=-]{16,128}")


class Sealer(Protocol):
    """Seals small secrets for the store."""

    def seal(self, secret: bytes, purpose: str) -> bytes: ...

    def unseal(self, sealed: bytes, purpose: str) -> bytes: ...


class NasService:
    """Who may speak RADIUS to us, and which RADIUS servers may ask for decisions."""

    def __init__(self, store: Store, sealer: Sealer) -> None:
        self._store = store
        self._sealer = sealer
        self._table: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str, bytes]] = []

    async def start(self) -> None:
        """Load the table; add() and remove() keep it right."""
        await self.reload()

    async def reload(self) -> None:
        """Read the NAS anew; the longest prefix comes first."""
        rows = await self._store.read(nas.every)
        table = [
            (ipaddress.ip_network(row.address), row.name, self._sealer.unseal(row.secret_sealed, _purpose(row.name)))
            for row in rows
        ]
        self._table = sorted(table, key=lambda entry: -entry[0].prefixlen)

    def lookup(self, address: str) -> tuple[str, bytes] | None:
        """(name, shared secret) of the NAS at an address; None for a stranger."""
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return None
        for network, name, secret in self._table:
            if found.version == network.version and found in network:
                return name, secret
        return None

    def clients(self) -> list[tuple[str, str, str]]:
        """(name, address or prefix, shared secret) of all, for a FreeRADIUS configuration."""
        return [(name, str(network), secret.decode()) for network, name, secret in self._table]

    async def add(self, name: str, address: str, secret: str, actor: Actor, *, site: str = "") -> dict[str, Any]:
        """Add a NAS, at a site of the access policy if one is named; without a secret one of 256 bits is made and
        answered, this once."""
        if not _NAME.fullmatch(name):
            raise RequestMalformed("a NAS name is 1 to 63 letters, digits, dots, hyphens or underscores")
        try:
            network = ipaddress.ip_network(address)
        except ValueError as cause:
            raise RequestMalformed(f"not an address or prefix: {cause}") from cause
        if site and not _SITE.fullmatch(site):
            raise RequestMalformed("a site's name is 1 to 64 letters, digits, blanks, dots, hyphens or underscores")
        made = "" if secret else secrets.token_urlsafe(32)
        if secret and not _SECRET.fullmatch(secret):
            raise RequestMalformed("a shared secret is 16 to 128 letters, digits or characters of ._~+/=-")
        row_id = str(uuid.uuid4())
        sealed = self._sealer.seal((secret or made).encode(), _purpose(name))

        def store(tx: Tx) -> None:
            nas.add(tx, nas.NasRow(row_id, name, str(network), sealed, tx.now, site))
            append(tx, AuditEvent("nas-added", actor, object=name, fields={"address": str(network), "site": site}))

        await self._store.write(store)
        await self.reload()
        return {"name": name, "address": str(network), "site": site, **({"shared_secret": made} if made else {})}

    async def remove(self, name: str, actor: Actor) -> dict[str, Any]:
        """Remove a NAS; its packets are dropped from now on."""

        def store(tx: Tx) -> None:
            if not nas.remove(tx, name):
                raise NotFound(f"there is no NAS named {name}")
            append(tx, AuditEvent("nas-removed", actor, object=name))

        await self._store.write(store)
        await self.reload()
        return {"name": name, "removed": True}

    async def every(self) -> list[dict[str, Any]]:
        """All NAS, without their secrets."""
        rows = await self._store.read(nas.every)
        return [
            {"name": row.name, "address": row.address, "site": row.site, "created_at": row.created_at.isoformat()}
            for row in rows
        ]

    async def new_token(self, server: str, actor: Actor) -> str:
        """A fresh token for a RADIUS server; only its hash is stored, and an older one is dead at once."""
        token = secrets.token_urlsafe(32)
        digest = sha256(token.encode()).digest()

        def store(tx: Tx) -> None:
            nas.put_server(tx, str(uuid.uuid4()), server, digest)
            append(tx, AuditEvent("radius-server-added", actor, object=server))

        await self._store.write(store)
        return token


def _purpose(name: str) -> str:
    return f"nas:{name}"
