"""When FreeRADIUS is asked to read anew, without FreeRADIUS; with it: tests/interop/test_supervised.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.access import supervisor


def test_a_change_that_is_taken_back_before_its_turn_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = {"sites-available/campus": "A"}
    monkeypatch.setattr(supervisor, "_files", lambda _: dict(folder))
    monkeypatch.setattr(supervisor, "HUP_PAUSE_SECONDS", 60.0)
    monkeypatch.setattr(supervisor, "is_taken_by_hup", lambda old, new: old != new)

    async def story() -> None:
        made = supervisor.Supervisor(Path("/nonexistent"), on_ready=lambda: None)
        hups = 0

        async def hup(*_: Any) -> bool:
            nonlocal hups
            hups += 1
            made._hup_at = asyncio.get_running_loop().time()
            return True

        async def settle() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        monkeypatch.setattr(made, "_hup", hup)
        monkeypatch.setattr(made, "_keep", lambda files: None)
        monkeypatch.setattr(made, "_touch", lambda names: None)
        running = asyncio.create_task(asyncio.sleep(60))
        life = asyncio.create_task(made._until_restart(None, dict(folder), running))  # type: ignore[arg-type]
        folder["sites-available/campus"] = "B"
        made.reload()
        await settle()
        assert hups == 1
        made.rolled_back_why = "the next one was refused"
        for content in ("C", "B"):  # C would have to wait for its turn
            folder["sites-available/campus"] = content
            made.reload()
            await settle()
        assert (hups, life.done(), made.rolled_back_why) == (1, False, "")
        for task in (life, running):
            task.cancel()
        await asyncio.gather(life, running, return_exceptions=True)

    asyncio.run(story())
