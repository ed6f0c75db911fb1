"""Operations about the CAs and the appliance's own certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.audit import Actor
from appliance.rollover import Rollovers
from appliance.server_certificates import ServerCertificates


class CaOperations:
    """appliance ca ..."""

    def __init__(self, servers: ServerCertificates, rollovers: Rollovers, actor: Actor) -> None:
        self._servers = servers
        self._rollovers = rollovers
        self._actor = actor

    async def renew_servers(self, names: list[str] = []) -> list[dict[str, Any]]:  # noqa: B006 - never changed
        return await self._servers.renew(names, actor=self._actor)

    async def rollover_status(self) -> list[dict[str, Any]]:
        return await self._rollovers.status()

    async def rollover_start(self, role: str) -> dict[str, Any]:
        return await self._rollovers.start(role, self._actor)

    async def rollover_advance(self, role: str, force: bool = False) -> dict[str, Any]:
        return await self._rollovers.advance(role, self._actor, force=force)

    async def rollover_back(self, role: str) -> dict[str, Any]:
        return await self._rollovers.back(role, self._actor)

    async def root_export(self, file: str) -> dict[str, Any]:
        return await self._rollovers.export(Path(file), self._actor)

    async def root_sign_request(self) -> dict[str, str]:
        return {"request": await self._rollovers.request()}

    async def root_import(self, answer: str) -> list[dict[str, Any]]:
        return await self._rollovers.take(answer, self._actor)
