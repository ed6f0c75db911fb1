"""From nothing to an LDevID by BRSKI, over real TLS."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.report import BootstrapReport
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from appliance.settings import ProxySettings
from tests.appliance.proxy.campus import PROXY_ID, Campus, World, make_world

QUICK = Timing(connect=2, voucher=3, call=3, spacing=0.2, round=0.3, first_pause=0.1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


async def bootstrap(state: ProxyState, settings: ProxySettings, timing: Timing = QUICK) -> BootstrapReport:
    return await Bootstrap(settings, state, SystemClock(), timing=timing).run()


def test_a_device_out_of_its_box_ends_with_an_ldevid(world: World, tmp_path: Path) -> None:
    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            state = ProxyState.open(tmp_path / "state")
            report = await bootstrap(state, world.with_settings(registrar_url=campus.url))
            assert report.outcome == "ok"
            assert state.configured
            assert state.record().identifier == PROXY_ID
            assert state.record().enroll_status_sent
            print(json.dumps([one.as_json() for one in report.steps], indent=1))
            print(campus.paths())

    asyncio.run(run())
