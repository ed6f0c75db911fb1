"""A server that got another address is found again, and nobody else is taken for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.proxy.connection import Target
from appliance.proxy.state import ProxyState
from est.exchange import Reply
from tests.appliance.proxy.campus import Campus, make_world, other_domain
from tests.appliance.proxy.test_discover import Announcer, announcement
from tests.appliance.proxy.test_run import JSON, ask, nonce_call, running


@pytest.mark.slow
@pytest.mark.req("B-117", "E-33")
def test_a_server_at_a_new_place_is_found_again_and_a_stranger_is_not_taken_for_it(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    settings = world.with_settings(allow_root_agents=True, give_up_seconds=60)

    async def run() -> None:
        folder = tmp_path / "state"
        async with Campus(world.factory, world.domain) as first, Announcer(announcement("old", first.port)) as old:
            proxy_context = running(settings, folder)
            proxy = await proxy_context.__aenter__()
            ready = await proxy.until("ready")
            assert ready["registrar"] == f"127.0.0.1:{first.port}"
            await old.withdraw()
        try:
            async with (
                Campus(world.factory, other_domain()) as stranger,
                Campus(world.factory, world.domain) as second,
            ):
                second.routes["/v1/agents/nonce"] = lambda *_: Reply(200, JSON, body=b'{"nonce": "n"}')
                places = [announcement("stranger", stranger.port), announcement("new", second.port, priority=9)]
                async with Announcer(*places):
                    assert (await ask(ready["socket"], nonce_call()))[0] in (503, 200)  # it may be there already
                    moved = await proxy.until("server-moved")
                    assert moved["registrar"] == f"127.0.0.1:{second.port}"
                    assert (await ask(ready["socket"], nonce_call()))[0] == 200
                    # the stranger was asked for its certificate and for nothing else
                    assert stranger.seen == []
        finally:
            await proxy_context.__aexit__(None, None, None)
        record = ProxyState(folder).record()
        assert (record.host, record.port) == ("127.0.0.1", second.port)

    asyncio.run(run())


def test_a_link_knows_its_new_place_at_once() -> None:
    from appliance.clock import SystemClock
    from appliance.proxy.link import ServerLink
    from appliance.proxy.timing import Timing

    async def run() -> None:
        link = ServerLink(ProxyState(Path("/nowhere")), Target("192.0.2.1", 1), SystemClock(), Timing())
        link.move(Target("192.0.2.2", 2))
        assert link.target == Target("192.0.2.2", 2)

    asyncio.run(run())
