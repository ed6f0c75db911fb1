"""Operations about devices: manufacturers, pledges, proxies, one-time enrolment secrets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from appliance.audit import Actor
from appliance.errors import RequestMalformed
from appliance.registrar.inventory import Inventory
from appliance.registrar.manufacturers import Manufacturers, Options

MAX_SECRET_HOURS = 24 * 30


class ManufacturerOperations:
    """appliance manufacturers ..."""

    def __init__(self, manufacturers: Manufacturers, actor: Actor) -> None:
        self._manufacturers = manufacturers
        self._actor = actor

    async def add(
        self,
        anchors_pem: str,
        masa_url: str = "",
        name: str = "",
        masa_tls_anchors_pem: str = "",
        ignore_expiry: bool = False,
        serials: list[str] = [],  # noqa: B006 - never changed; annotations and default are the operation's contract
    ) -> Any:
        return await self._manufacturers.add(
            anchors_pem=anchors_pem,
            actor=self._actor,
            name=name,
            masa_url=masa_url,
            masa_tls_anchors_pem=masa_tls_anchors_pem,
            options=Options(ignore_expiry=ignore_expiry, serials=tuple(serials)),
        )

    async def list_(self) -> Any:
        return await self._manufacturers.every()

    async def remove(self, name: str) -> Any:
        return await self._manufacturers.remove(name, actor=self._actor)


class PledgeOperations:
    """appliance pledges ..."""

    def __init__(self, inventory: Inventory, actor: Actor) -> None:
        self._inventory = inventory
        self._actor = actor

    async def list_(self) -> Any:
        return await self._inventory.pledges()

    async def show(self, serial: str) -> Any:
        return await self._inventory.pledge(serial)

    async def admit(self, serial: str) -> Any:
        return await self._inventory.admit(serial, actor=self._actor)

    async def refuse(self, serial: str, reason: str = "") -> Any:
        return await self._inventory.refuse(serial, actor=self._actor, reason=reason)


class ProxyOperations:
    """appliance proxies ..."""

    def __init__(self, inventory: Inventory, actor: Actor) -> None:
        self._inventory = inventory
        self._actor = actor

    async def list_(self) -> Any:
        return await self._inventory.proxies()

    async def revoke(self, proxy: str, reason: str = "") -> Any:
        return await self._inventory.revoke_proxy(proxy, actor=self._actor, reason=reason)


class EstOperations:
    """appliance est ..."""

    def __init__(self, inventory: Inventory, actor: Actor) -> None:
        self._inventory = inventory
        self._actor = actor

    async def secret(self, name: str, hours: float = 24.0) -> Any:
        if not 0 < hours <= MAX_SECRET_HOURS:
            raise RequestMalformed(f"a one-time secret lives more than 0 and at most {MAX_SECRET_HOURS} hours")
        return await self._inventory.new_est_secret(name, actor=self._actor, life=timedelta(hours=hours))
