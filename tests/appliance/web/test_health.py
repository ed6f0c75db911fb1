"""Health: live is not ready."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from appliance.crl import CrlKeeper
from appliance.settings import Settings, StoreSettings
from appliance.web.health import Health
from appliance.web.peer import Peer
from est.exchange import Call
from tests.appliance.authority import authority
from tests.support import FixedClock


def look(
    tmp_path: Path, *, free_bytes: int = 0, advance: float = 0, crls: bool = True, close: bool = False
) -> tuple[int, dict]:
    clock = FixedClock()

    async def run() -> tuple[int, dict]:
        keeper = CrlKeeper(ca, store, clock, life_hours=24)
        if crls:
            await keeper.build_all()
        clock.advance(advance)
        if close:
            store.close()
        settings = Settings(home=tmp_path, store=StoreSettings(free_bytes=free_bytes))
        health = Health(store=store, clock=clock, ca=ca, crls=keeper, settings=settings)
        assert (await health.healthz(Call("GET", "/healthz"), Peer(), {})).status == 200
        reply = await health.readyz(Call("GET", "/readyz"), Peer(), {})
        return reply.status, json.loads(reply.body)["checks"]

    with authority(tmp_path, clock) as (ca, store):
        return asyncio.run(run())


def test_ready_when_everything_works(tmp_path: Path) -> None:
    status, checks = look(tmp_path)
    assert status == 200 and all(check["ok"] for check in checks.values())
    assert set(checks) == {"database", "authority", "disk", "revocation-lists"}


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ({"free_bytes": 1 << 60}, "disk"),
        ({"advance": 86400 * 2}, "revocation-lists"),
        ({"crls": False}, "revocation-lists"),
        ({"advance": 86400 * 4000}, "authority"),
    ],
)
def test_not_ready_names_what_is_wrong(tmp_path: Path, fault: dict, check: str) -> None:
    status, checks = look(tmp_path, **fault)
    assert status == 503
    assert not checks[check]["ok"] and checks[check]["reason"]
    assert checks["database"]["ok"]


def test_a_closed_database_is_not_ready_but_alive(tmp_path: Path) -> None:
    status, checks = look(tmp_path, close=True)
    assert status == 503
    assert checks["database"]["reason"] == "store-unavailable"
