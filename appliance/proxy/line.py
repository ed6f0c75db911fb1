"""A conversation that may outlive its connection, because it waits: reopened on purpose, to the same server only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from appliance.proxy.connection import Connection


@dataclass(slots=True)
class Line:
    """The connection of one conversation, and how to get another to the very same server if a wait outlives it."""

    connection: Connection
    reopen: Callable[[], Awaitable[Connection]]

    async def restore(self) -> None:
        """Open again if the server has closed in the meantime."""
        if not self.connection.usable:
            self.connection = await self.reopen()
