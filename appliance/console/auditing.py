"""Operations about the audit log: reading, verification, checkpoints, proofs; two endpoints for whoever watches it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from appliance.audit import Actor
from appliance.audit_reader import AuditReader
from appliance.checkpoint_keeper import CheckpointKeeper
from appliance.web.peer import Peer
from appliance.web.routes import Handler
from est.exchange import Call, Reply

_NO_STORE = {"cache-control": "no-store"}


class AuditOperations:
    """appliance audit ..."""

    def __init__(self, reader: AuditReader, checkpoints: CheckpointKeeper, actor: Actor) -> None:
        self._reader = reader
        self._checkpoints = checkpoints
        self._actor = actor

    async def list_(self, limit: int = 50, event: str = "") -> list[dict[str, Any]]:
        return await self._reader.newest(limit=limit, event=event)

    async def verify(self) -> dict[str, Any]:
        return await self._checkpoints.verify()

    async def export(self) -> list[str]:
        return await self._reader.export()

    async def key(self) -> dict[str, str]:
        return self._checkpoints.jwk

    async def checkpoint(self) -> dict[str, Any]:
        return {"checkpoint": await self._checkpoints.sign()}

    async def checkpoints(self, after: int = 0) -> list[dict[str, Any]]:
        return await self._checkpoints.listed(after)

    async def prove(self, seq: int = 0, older: str = "") -> dict[str, Any]:
        if older:
            return await self._checkpoints.prove_growth(older)
        return await self._checkpoints.prove_entry(seq)

    async def accept_rollback(self, comment: str) -> dict[str, Any]:
        return await self._checkpoints.accept_rollback(self._actor, comment)


class CheckpointRoutes:
    """Endpoint functions of the PKI port; what they answer is signed and tells nothing but the length of the log."""

    def __init__(self, checkpoints: CheckpointKeeper) -> None:
        self._checkpoints = checkpoints

    @property
    def endpoints(self) -> dict[str, Handler]:
        """By the names of the route table."""
        return {"audit.checkpoint": self.checkpoint, "audit.key": self.key}

    async def checkpoint(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /audit/checkpoint: the newest one."""
        return Reply(200, "application/jose", _NO_STORE, (await self._checkpoints.newest()).encode())

    async def key(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """GET /audit/key.jwk: what it verifies with; compare it with `appliance audit key` before you keep it."""
        return Reply(200, "application/jwk+json", _NO_STORE, json.dumps(self._checkpoints.jwk).encode())
