"""Operations about devices: manufacturers, pledges, proxies, one-time enrolment secrets."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from appliance.audit import Actor
from appliance.errors import RequestMalformed
from appliance.registrar.assemble import RegistrarPart
from appliance.registrar.inventory import Inventory
from appliance.registrar.maker_options import read_assignments, read_options
from appliance.registrar.manufacturers import Manufacturers

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
        options: dict[str, str] = {},  # noqa: B006 - likewise
    ) -> Any:
        members = read_assignments(options)
        if ignore_expiry:
            members["ignore_expiry"] = True
        return await self._manufacturers.add(
            anchors_pem=anchors_pem,
            actor=self._actor,
            name=name,
            masa_url=masa_url,
            masa_tls_anchors_pem=masa_tls_anchors_pem,
            options=read_options(members),
            serials=serials,
        )

    async def set_(
        self,
        name: str,
        new_name: str = "",
        anchors_pem: str = "",
        masa_url: str = "",
        masa_tls_anchors_pem: str = "",
        options: dict[str, str] = {},  # noqa: B006 - as above
    ) -> Any:
        if not (new_name or anchors_pem or masa_url or masa_tls_anchors_pem or options):
            raise RequestMalformed("nothing to change was given")
        return await self._manufacturers.change(
            name,
            actor=self._actor,
            new_name=new_name,
            anchors_pem=anchors_pem,
            masa_url={"": None, "none": ""}.get(masa_url, masa_url),
            masa_tls_anchors_pem=masa_tls_anchors_pem,
            options=read_assignments(options),
        )

    async def list_(self) -> Any:
        return await self._manufacturers.every()

    async def show(self, name: str) -> Any:
        return await self._manufacturers.one(name)

    async def remove(self, name: str) -> Any:
        return await self._manufacturers.remove(name, actor=self._actor)


class PledgeOperations:
    """appliance pledges ..."""

    def __init__(self, part: RegistrarPart, actor: Actor) -> None:
        self._inventory = part.inventory
        self._knocks = part.knocks
        self._expected = part.expected
        self._prefetch = part.prefetch
        self._actor = actor

    async def list_(self) -> Any:
        return await self._inventory.pledges()

    async def show(self, serial: str) -> Any:
        return await self._inventory.pledge(serial)

    async def admit(self, serial: str) -> Any:
        return await self._inventory.admit(serial, actor=self._actor)

    async def refuse(self, serial: str, reason: str = "") -> Any:
        return await self._inventory.refuse(serial, actor=self._actor, reason=reason)

    async def override(self, serial: str, reason: str) -> Any:
        return await self._inventory.override(serial, actor=self._actor, reason=reason)

    async def withdraw(self, serial: str, reason: str = "") -> Any:
        return await self._inventory.withdraw(serial, actor=self._actor, reason=reason)

    async def knocking(self) -> Any:
        return await self._knocks.every()

    async def forget(self, fingerprint: str) -> Any:
        return await self._knocks.forget(fingerprint, actor=self._actor)

    async def import_(self, csv: str, replace: bool = False, dry_run: bool = False) -> Any:
        return await self._expected.import_csv(csv, actor=self._actor, replace=replace, dry_run=dry_run)

    async def expected(self) -> Any:
        return await self._expected.every()

    async def prefetch(self, manufacturer: str, serials: list[str]) -> Any:
        return await self._prefetch.fetch(manufacturer, serials, actor=self._actor)

    async def lacking(self, manufacturer: str) -> Any:
        return await self._prefetch.lacking(manufacturer)

    async def vouchers(self) -> Any:
        return await self._prefetch.every()


class ProxyOperations:
    """appliance proxies ..."""

    def __init__(self, inventory: Inventory, actor: Actor) -> None:
        self._inventory = inventory
        self._actor = actor

    async def list_(self) -> Any:
        return await self._inventory.proxies()

    async def revoke(self, proxy: str, reason: str = "") -> Any:
        return await self._inventory.revoke_proxy(proxy, actor=self._actor, reason=reason)

    async def suspend(self, proxy: str, reason: str = "") -> Any:
        return await self._inventory.suspend_proxy(proxy, actor=self._actor, reason=reason)

    async def resume(self, proxy: str) -> Any:
        return await self._inventory.resume_proxy(proxy, actor=self._actor)


class EstOperations:
    """appliance est ..."""

    def __init__(self, registrar: RegistrarPart, actor: Actor, labels: Collection[str] = ()) -> None:
        self._inventory = registrar.inventory
        self._approvals = registrar.approvals
        self._authorities = registrar.authorities
        self._actor = actor
        self._labels = labels

    async def secret(self, name: str, hours: float = 24.0, label: str = "") -> Any:
        if label and label not in self._labels:
            raise RequestMalformed(f"there is no EST label {label}; [est.labels] in the settings has them")
        if not 0 < hours <= MAX_SECRET_HOURS:
            raise RequestMalformed(f"a one-time secret lives more than 0 and at most {MAX_SECRET_HOURS} hours")
        return await self._inventory.new_est_secret(name, actor=self._actor, label=label, life=timedelta(hours=hours))

    async def authority(self, name: str, request: str, days: float = 90.0) -> Any:
        return await self._authorities.add(name, request.encode(), days=days, actor=self._actor)

    async def pending(self) -> Any:
        return await self._approvals.every()

    async def approve(self, id: str) -> Any:
        return await self._approvals.approve(id, actor=self._actor)

    async def deny(self, id: str, reason: str) -> Any:
        return await self._approvals.deny(id, actor=self._actor, reason=reason)
