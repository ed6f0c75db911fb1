"""Tokens of clients that push owners (SCIM): made here and shown once, kept as their hash, withdrawn at once."""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from appliance.audit import Actor, AuditEvent, append
from appliance.errors import NotFound, RequestMalformed, TokenRequired
from appliance.store import directory_sources
from appliance.store.store import Store
from appliance.store.transaction import Tx

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MAX_TOKEN = 512


class DirectoryTokens:
    """Who may push owners."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def new(self, name: str, *, actor: Actor) -> Mapping[str, Any]:
        """A token of 256 bits for a client, answered this once; raises Conflict if the name has one."""
        if not _NAME.fullmatch(name):
            raise RequestMalformed("a client's name is 1 to 63 letters, digits, dots, hyphens or underscores")
        token, id_ = secrets.token_urlsafe(32), str(uuid.uuid4())
        digest = sha256(token.encode()).digest()

        def write(tx: Tx) -> None:
            directory_sources.add_token(tx, id_, name, digest)
            append(tx, AuditEvent("directory-token-added", actor, object=name))

        await self._store.write(write)
        return {"name": name, "token": token}

    async def every(self) -> list[Mapping[str, Any]]:
        """Clients that have a token, without it."""
        rows = await self._store.read(directory_sources.tokens)
        return [{"name": name, "created_at": at.isoformat(timespec="seconds")} for name, at in rows]

    async def revoke(self, name: str, *, actor: Actor) -> Mapping[str, Any]:
        """Withdraw a client's token; raises NotFound."""

        def write(tx: Tx) -> None:
            if not directory_sources.drop_token(tx, name):
                raise NotFound(f"no client named {name[:63]!a} has a token")
            append(tx, AuditEvent("directory-token-removed", actor, object=name))

        await self._store.write(write, essential=True)
        return {"name": name, "revoked": True}

    async def check(self, authorization: str) -> str:
        """The client that an Authorization header belongs to; raises TokenRequired.

        The hash is looked up, never the token compared, so the time that it takes says nothing about one.
        """
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not 0 < len(token) <= _MAX_TOKEN:
            raise TokenRequired("this wants the bearer token of a directory client")
        digest = sha256(token.encode("utf-8", "replace")).digest()
        name = await self._store.read(lambda tx: directory_sources.name_of(tx, digest))
        if name is None:
            raise TokenRequired("the bearer token is not that of a directory client known here")
        return name
