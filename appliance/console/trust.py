"""Operations about other campuses: whose credentials are believed here beside our own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from appliance.audit import Actor
from appliance.foreign_trust import ForeignTrust


class TrustOperations:
    """appliance trust ..."""

    def __init__(self, trust: ForeignTrust, actor: Actor, own: Callable[[], Awaitable[str]]) -> None:
        """`own` writes our own trust bundle."""
        self._trust = trust
        self._actor = actor
        self._own = own

    async def import_(self, bundle: str, confirm: bool = False) -> dict[str, Any]:
        return await self._trust.import_(bundle, self._actor, confirm=confirm)

    async def list_(self) -> list[dict[str, Any]]:
        return await self._trust.every()

    async def show(self, origin: str) -> dict[str, str]:
        return {"bundle": await self._trust.bundle(origin)}

    async def remove(self, origin: str) -> dict[str, Any]:
        return await self._trust.remove(origin, self._actor)

    async def bundles(self) -> list[str]:
        return [await self._own(), *await self._trust.bundles()]
