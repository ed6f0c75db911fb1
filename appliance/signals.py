"""SIGTERM and SIGINT as an event, for everything that runs in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import Any


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM or SIGINT sets; use on the main thread's running event loop."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stopped.set)
    try:
        yield stopped
    finally:
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(one)


async def until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it ends or a signal comes; then it is cancelled and may clean up. Raises what it raises."""
    with stop_signals() as stopped:
        task, waiting = asyncio.create_task(work), asyncio.create_task(stopped.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
