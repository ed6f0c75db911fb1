"""A home at work: everything in the foreground until a signal, or one operation on a home that nobody runs on."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from appliance.compose import create_appliance
from appliance.home import locked
from appliance.huge_pages import gathering
from appliance.initialise import need_passphrase
from appliance.log import set_up_logging
from appliance.memory import give_back, settle
from appliance.settings import LoadedSettings, Settings
from appliance.signals import stop_signals

_log = logging.getLogger(__name__)


async def run_appliance(
    loaded: LoadedSettings, *, passphrase_file: Path | None, on_ready: Callable[[dict[str, Any]], None]
) -> None:
    """Everything in the foreground until SIGTERM or SIGINT, then drain."""
    settings = loaded.settings
    set_up_logging(settings.log)
    give_back()
    with locked(settings.home):
        appliance = create_appliance(settings, passphrase=need_passphrase(settings.home, passphrase_file))
        try:
            with stop_signals() as stopped:
                await appliance.prepare()
                listeners = await appliance.start()
                settle()
                on_ready(
                    {"event": "ready", "pid": os.getpid(), "home": str(settings.home), "listeners": dict(listeners)}
                )
                async with gathering():
                    await stopped.wait()
            _log.info("event=stopping")
        finally:
            await appliance.stop()


def ask_home(settings: Settings, operation: str, arguments: Mapping[str, Any], *, passphrase_file: Path | None) -> Any:
    """Result of one operation on a home that nobody runs on; holds its lock meanwhile."""

    async def ask() -> Any:
        appliance = create_appliance(settings, passphrase=need_passphrase(settings.home, passphrase_file))
        try:
            await appliance.prepare()
            return await appliance.operations.call(operation, arguments)
        finally:
            await appliance.stop()

    with locked(settings.home):
        return asyncio.run(ask())
