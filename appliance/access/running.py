"""FreeRADIUS in the foreground of a process of its own, beside the appliance or on another machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from appliance.access.freeradius import follow
from appliance.access.raddb_folder import RunAs
from appliance.access.supervisor import Supervisor
from appliance.access.telling import Teller, post
from est.errors import Refusal

_log = logging.getLogger(__name__)


async def run_here(
    folder: Path,
    who: RunAs | None,
    *,
    on_ready: Callable[[], None],
    refresh: Callable[[], bool],
    every: float,
) -> None:
    """Until cancelled. `refresh` asks, on a thread, for a newer configuration and says whether there is one.

    Packets that FreeRADIUS drops are told to the appliance, which reads no log here.
    """
    teller = Teller(partial(post, folder))
    supervisor = Supervisor(folder, who=who, on_ready=on_ready, on_line=teller.heard)

    async def look() -> bool:
        try:
            return await asyncio.to_thread(refresh)
        except Refusal as refused:  # FreeRADIUS goes on with what it has
            _log.warning("event=freeradius-not-reloaded reason=%s detail=%r", refused.reason, refused.detail)
            return False

    following = asyncio.create_task(follow(look, supervisor.reload, asyncio.Event(), settle=0.0, every=every))
    telling = asyncio.create_task(teller.run())
    try:
        await supervisor.run()
    finally:
        following.cancel()
        telling.cancel()
        await asyncio.gather(following, telling, return_exceptions=True)
