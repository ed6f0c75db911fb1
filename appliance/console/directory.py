"""Operations about where owners come from."""

from __future__ import annotations

from typing import Any

from appliance.access.directory import OwnerDirectory
from appliance.access.directory_tokens import DirectoryTokens
from appliance.access.sources.sync import DirectorySync
from appliance.audit import Actor


class DirectoryOperations:
    """appliance directory ..."""

    def __init__(self, sync: DirectorySync, directory: OwnerDirectory, tokens: DirectoryTokens, actor: Actor) -> None:
        self._sync = sync
        self._directory = directory
        self._tokens = tokens
        self._actor = actor

    async def sync(self, confirm: bool = False, dry_run: bool = False) -> Any:
        return await self._sync.sync(actor=self._actor, confirm=confirm, dry_run=dry_run)

    async def status(self) -> Any:
        return await self._sync.status()

    async def lookup(self, ref: str) -> Any:
        return await self._sync.lookup(ref)

    async def adopt(self, ref: str, source: str) -> Any:
        return await self._directory.adopt(ref, source, actor=self._actor)

    async def new_token(self, name: str) -> Any:
        return await self._tokens.new(name, actor=self._actor)

    async def tokens(self) -> Any:
        return await self._tokens.every()

    async def revoke_token(self, name: str) -> Any:
        return await self._tokens.revoke(name, actor=self._actor)
