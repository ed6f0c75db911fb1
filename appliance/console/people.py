"""Operations about owners and agents."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from appliance.access.directory import OwnerDirectory
from appliance.audit import Actor
from appliance.binding.bundle import TrustBundle, write
from appliance.binding.facts import OwnerRecord
from appliance.identity.owner_desk import OwnerDesk
from appliance.identity.registry import AgentRegistry


class OwnerOperations:
    """appliance owners ..."""

    def __init__(
        self,
        directory: OwnerDirectory,
        actor: Actor,
        bundle: Callable[[list[OwnerRecord]], TrustBundle],
        desk: OwnerDesk,
    ) -> None:
        """`bundle` puts owners together with what else a relying party needs."""
        self._directory = directory
        self._actor = actor
        self._bundle = bundle
        self._desk = desk

    async def bundle(self) -> Any:
        return {"bundle": await self.bundle_text()}

    async def bundle_text(self) -> str:
        """Our own trust bundle."""
        return write(self._bundle(await self._directory.records()))

    async def import_(self, csv: str, confirm: bool = False, dry_run: bool = False) -> Any:
        return await self._directory.import_csv(csv, actor=self._actor, confirm=confirm, dry_run=dry_run)

    async def add(self, ref: str, name: str = "", kind: str = "person", department: str = "") -> Any:
        return await self._directory.add(ref, name=name or ref, kind=kind, department=department, actor=self._actor)

    async def move(self, ref: str, department: str) -> Any:
        return await self._directory.set_department(ref, department, actor=self._actor)

    async def add_key(self, ref: str, statement: str) -> Any:
        return await self._directory.add_key(ref, statement, actor=self._actor)

    async def rotate_key(self, ref: str, statement: str, overlap_hours: float = 0.0) -> Any:
        overlap = timedelta(hours=overlap_hours)
        return await self._directory.rotate_key(ref, statement, actor=self._actor, overlap=overlap)

    async def suspend_key(self, ref: str, jkt: str) -> Any:
        return await self._directory.suspend_key(ref, jkt, actor=self._actor)

    async def resume_key(self, ref: str, jkt: str) -> Any:
        return await self._directory.resume_key(ref, jkt, actor=self._actor)

    async def revoke_key(self, ref: str, jkt: str) -> Any:
        return await self._directory.revoke_key(ref, jkt, actor=self._actor)

    async def add_client_key(self, ref: str, statement: str) -> Any:
        return await self._directory.add_client_key(ref, statement, actor=self._actor)

    async def revoke_client_key(self, ref: str, jkt: str) -> Any:
        return await self._directory.revoke_client_key(ref, jkt, actor=self._actor)

    async def add_gateway(self, ref: str, url: str, statement: str) -> Any:
        return await self._directory.add_gateway(ref, url, statement, actor=self._actor)

    async def revoke_gateway(self, ref: str, jkt: str) -> Any:
        return await self._directory.revoke_gateway(ref, jkt, actor=self._actor)

    async def allow_proxy(self, ref: str, proxy: str) -> Any:
        return await self._directory.allow_proxy(ref, proxy, actor=self._actor)

    async def standing(self, ref: str) -> Any:
        return await self._desk.of_owner(ref)

    async def withdraw_standing(self, ref: str, s256: str) -> Any:
        return await self._desk.withdraw_of(ref, s256, actor=self._actor)

    async def list_(self) -> Any:
        return await self._directory.list()

    async def show(self, ref: str) -> Any:
        return await self._directory.show(ref)

    async def suspend(self, ref: str) -> Any:
        return await self._directory.suspend(ref, actor=self._actor)

    async def resume(self, ref: str) -> Any:
        return await self._directory.resume(ref, actor=self._actor)

    async def revoke(self, ref: str) -> Any:
        return await self._directory.revoke(ref, actor=self._actor)


class AgentOperations:
    """appliance agents ..."""

    def __init__(self, registry: AgentRegistry, actor: Actor) -> None:
        self._registry = registry
        self._actor = actor

    async def add(self, proxy: str, jkt: str, owner: str = "", agent_class: str = "") -> Any:
        return await self._registry.add(owner=owner, proxy=proxy, jkt=jkt, agent_class=agent_class, actor=self._actor)

    async def list_(self, owner: str = "") -> Any:
        return await self._registry.list(owner=owner)

    async def show(self, agent: str) -> Any:
        return await self._registry.show(agent)

    async def revoke(self, agent: str, reason: str = "") -> Any:
        return await self._registry.revoke(agent, why=reason, actor=self._actor)

    async def suspend(self, agent: str, reason: str = "") -> Any:
        return await self._registry.suspend(agent, why=reason, actor=self._actor)

    async def classify(self, agent: str, agent_class: str) -> Any:
        return await self._registry.classify(agent, agent_class, actor=self._actor)

    async def resume(self, agent: str) -> Any:
        return await self._registry.resume(agent, actor=self._actor)
