"""Which service types the registrar announces, over real mDNS on the loopback interface."""

from __future__ import annotations

import asyncio

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from appliance.registrar.announce import Announcer
from brski import discovery

LOOPBACK = ("127.0.0.1",)


async def look(kind: str, instance: str, *, seconds: float = 3.0) -> AsyncServiceInfo | None:
    browser = AsyncZeroconf(interfaces=list(LOOPBACK))
    try:
        info = AsyncServiceInfo(kind, discovery.instance_name(instance, kind))
        return info if await info.async_request(browser.zeroconf, int(seconds * 1000)) else None
    finally:
        await browser.async_close()


@pytest.mark.req("B-102", "B-103", "B-114")
@pytest.mark.slow
def test_both_service_types_are_announced_with_our_port_and_variation() -> None:
    async def story() -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        announcer = Announcer(interfaces=LOOPBACK, host="127.0.0.1", port=port, instance=f"test-{port}")
        await announcer.start()
        try:
            for kind in (discovery.REGISTRAR_SERVICE, discovery.PROXY_SERVICE):
                found = await look(kind, f"test-{port}")
                assert found is not None, kind
                assert found.port == port
                assert found.parsed_addresses() == ["127.0.0.1"]
                assert discovery.read_txt(found.properties) == {"est-tls"}
        finally:
            await announcer.stop()
            server.close()
        assert await look(discovery.REGISTRAR_SERVICE, f"test-{port}", seconds=0.4) is None

    asyncio.run(story())


@pytest.mark.req("B-102", "B-103")
@pytest.mark.slow
def test_a_registrar_behind_join_proxies_does_not_pretend_to_be_one() -> None:
    async def story() -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        announcer = Announcer(
            interfaces=LOOPBACK, host="127.0.0.1", port=port, instance="only-registrar", as_proxy=False
        )
        await announcer.start()
        try:
            assert await look(discovery.REGISTRAR_SERVICE, "only-registrar") is not None
            assert await look(discovery.PROXY_SERVICE, "only-registrar", seconds=0.4) is None
        finally:
            await announcer.stop()
            server.close()

    asyncio.run(story())
