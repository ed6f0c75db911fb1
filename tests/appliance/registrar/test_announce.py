"""The announcement over real mDNS on the loopback interface."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from appliance.registrar.announce import Announcer, interface_addresses
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


@pytest.mark.req("B-116")
@pytest.mark.slow
def test_the_announcement_is_withdrawn_while_the_port_takes_no_connections_and_comes_back() -> None:
    async def story() -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        announcer = Announcer(
            interfaces=LOOPBACK, host="127.0.0.1", port=port, instance=f"gone-{port}", probe_seconds=0.1
        )
        await announcer.start()
        try:
            assert announcer.is_announced
            server.close()
            await server.wait_closed()
            await until(lambda: not announcer.is_announced)
            assert await look(discovery.REGISTRAR_SERVICE, f"gone-{port}", seconds=0.4) is None
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port)
            await until(lambda: announcer.is_announced)
        finally:
            await announcer.stop()
            server.close()

    asyncio.run(story())


async def until(fact: object) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while not fact():  # type: ignore[operator]
                await asyncio.sleep(0.02)
    assert fact()  # type: ignore[operator]


def test_interfaces_are_named_by_address_or_by_name_and_unknown_names_yield_nothing() -> None:
    assert interface_addresses(["127.0.0.1", "127.0.0.1"]) == ("127.0.0.1",)
    assert "127.0.0.1" in interface_addresses(["lo"])
    assert interface_addresses(["no-such-interface"]) == ()
