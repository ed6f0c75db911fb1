"""What waits for the writer, and whom it tells: functions with their futures, subscribers with their loops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.store.transaction import OutboxRow, Tx

_log = logging.getLogger(__name__)


class Answerable(Protocol):
    """The two ways a future is settled; asyncio's and the thread's both fit."""

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...

    def done(self) -> bool: ...


@dataclass(slots=True)
class Job:
    """One function that waits for its transaction."""

    function: Callable[[Tx], Any]
    loop: asyncio.AbstractEventLoop | None
    future: Answerable
    essential: bool = False
    quick: bool = False
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Subscriber:
    """Who hears of committed outbox rows, and on which loop (None: on the writer thread)."""

    callback: Callable[[list[OutboxRow]], None]
    loop: asyncio.AbstractEventLoop | None


def deliver(callbacks: list[Callable[[list[OutboxRow]], None]], emitted: list[OutboxRow], jobs: list[Job]) -> None:
    """Tell subscribers first, then whoever asked."""
    for callback in callbacks:
        try:
            callback(emitted)
        except Exception:  # noqa: BLE001 - supervisor: one subscriber's fault is not another's
            _log.exception("event=subscriber-failed")
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
