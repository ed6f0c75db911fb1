"""Tasks that must not end: what breaks begins anew, what ends or is cancelled stays so."""

from __future__ import annotations

import asyncio
import logging

import pytest

from appliance.keeping import keep


def test_a_task_that_breaks_begins_anew_and_is_logged_and_one_that_returns_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("appliance.keeping.AGAIN_SECONDS", 0.0)
    begun = 0

    async def run() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise ValueError("a bug")

    asyncio.run(keep(run, "crl"))
    assert begun == 3
    assert caplog.text.count("event=task-broke task=crl") == 2 and "a bug" in caplog.text


def test_a_task_that_is_cancelled_stays_so(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        kept = asyncio.create_task(keep(lambda: asyncio.sleep(3600), "crl"))
        await asyncio.sleep(0)
        kept.cancel()
        with pytest.raises(asyncio.CancelledError):
            await kept

    caplog.set_level(logging.ERROR)
    asyncio.run(story())
    assert caplog.text == ""
