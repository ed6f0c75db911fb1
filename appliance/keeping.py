"""Tasks that must not end: lists that age, certificates that run out and sessions that are over hang on them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)
AGAIN_SECONDS = 5.0


async def keep(run: Callable[[], Awaitable[None]], name: str) -> None:
    """Await `run()` until it returns or is cancelled; where it breaks, which is a fault of ours, begin it anew."""
    while True:
        try:
            await run()
        except Exception:  # noqa: BLE001 - supervisor: nobody awaits these tasks, and nothing else does their work
            _log.exception("event=task-broke task=%s", name)
        else:
            return
        await asyncio.sleep(AGAIN_SECONDS)
