"""Word of dropped packets on its way to the appliance: counted, bounded, told again after an outage."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.access.raddb_folder import LAST_GOOD
from appliance.access.telling import MAX_KINDS, NotTold, Teller, post
from est.errors import Refusal
from radius.render import render, write_raddb
from tests.interop.radius_tools import TOKEN, decision_service, free_tcp_port, raddb_values
from tests.radius.failures import LOG_LINES
from tests.radius.world import Desk, campus

STRANGER, SWITCH = LOG_LINES["unknown NAS"], LOG_LINES["wrong secret"]


def of(address: str) -> str:
    return STRANGER.replace("unknown client 127.0.0.1", f"unknown client {address}")


class Appliance:
    """Takes what is posted, or raises what it is told to."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.tries = 0
        self.bodies: list[list[dict[str, object]]] = []
        self.held: asyncio.Event | None = None

    async def post(self, body: bytes) -> None:
        self.tries += 1
        if self.held is not None:
            await self.held.wait()
        if self.fault is not None:
            raise self.fault
        self.bodies.append(json.loads(body)["dropped"])

    @property
    def told(self) -> dict[tuple[object, object], int]:
        found: dict[tuple[object, object], int] = {}
        for row in (row for body in self.bodies for row in body):
            key = row["reason"], "many" if row["many"] else row["address"]
            found[key] = found.get(key, 0) + int(str(row["times"]))
        return found


@asynccontextmanager
async def telling(appliance: Appliance, pause_seconds: float = 0.01) -> AsyncIterator[Teller]:
    teller = Teller(appliance.post, pause_seconds=pause_seconds)
    task = asyncio.create_task(teller.run())
    try:
        yield teller
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story()

    asyncio.run(bounded())


def test_lines_of_dropped_packets_are_told_with_their_number_and_other_lines_are_not() -> None:
    async def story() -> None:
        appliance = Appliance()
        async with telling(appliance) as teller:
            for line in ("Info: Ready to process requests", STRANGER, STRANGER, SWITCH, "(0) Login OK"):
                teller.heard(line)
            await until(lambda: bool(appliance.bodies))
            assert len(appliance.bodies) == 1
            assert appliance.told == {("nas-unknown", "127.0.0.1"): 2, ("radius-secret-wrong", "127.0.0.2"): 1}
            teller.heard(SWITCH)
            await until(lambda: appliance.told["radius-secret-wrong", "127.0.0.2"] == 2)

    run(story)


def test_a_flood_while_the_appliance_says_nothing_is_counted_in_bounded_room() -> None:
    async def story() -> None:
        appliance = Appliance()
        appliance.held = asyncio.Event()
        async with telling(appliance) as teller:
            teller.heard(SWITCH)
            await until(lambda: appliance.tries == 1)
            for packet in range(20_000):
                teller.heard(of(f"10.0.{packet % 2_000 >> 8}.{packet % 256}"))
            assert len(teller._counts) == MAX_KINDS and len(teller._rest) == 1
            appliance.held.set()
            await until(lambda: sum(appliance.told.values()) == 20_001)
            assert len(appliance.bodies) == 2
            assert len(appliance.told) == MAX_KINDS + 2

    run(story)


@pytest.mark.parametrize(
    "fault", [NotTold("401"), ConnectionRefusedError("away"), ValueError("half a file"), KeyError("x")]
)
def test_what_the_appliance_did_not_take_is_told_when_it_is_back_and_nothing_ends(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        appliance = Appliance()
        appliance.fault = fault
        async with telling(appliance) as teller:
            for packet in range(2 * MAX_KINDS):
                teller.heard(of(f"10.0.{packet >> 8}.{packet & 255}"))
            teller.heard(SWITCH)
            await until(lambda: appliance.tries >= 4)
            teller.heard(STRANGER)
            appliance.fault = None
            await until(lambda: sum(appliance.told.values()) == 2 * MAX_KINDS + 2)
            assert appliance.told["nas-unknown", "many"] >= MAX_KINDS

    run(story)
    assert len([one for one in caplog.records if "dropped-packets-not-told" in one.getMessage()]) == 1


# ---- the way there


def test_it_goes_with_what_freeradius_serves_and_not_with_what_the_folder_holds(tmp_path: Path) -> None:
    """A token that is used ends the one before: that of a rendering which never came to serve must not be."""

    async def story() -> None:
        async with decision_service(Desk(), tmp_path) as service:
            url = f"https://127.0.0.1:{service.port}/radius/failure"
            for folder, token in ((tmp_path / "raddb" / LAST_GOOD, TOKEN), (tmp_path / "raddb", "another" + TOKEN)):
                write_raddb(render(raddb_values(folder, service.port, 1812, failure_url=url, token=token)), folder)
            await post(tmp_path / "raddb", b'{"dropped": []}')
            assert service.failures == [{"dropped": []}]  # the port has looked at the token

    run(story)


def test_nobody_there_another_server_no_route_and_no_folder_are_refusals_or_errors_of_the_system(
    tmp_path: Path,
) -> None:
    raddb = tmp_path / "raddb"

    async def story() -> None:
        with pytest.raises(OSError, match="No such file"):
            await post(raddb, b"{}")
        folder, port = raddb / LAST_GOOD, free_tcp_port()
        write_raddb(render(raddb_values(folder, port, 1812)), folder)
        with pytest.raises(NotTold):
            await post(raddb, b"{}")
        url = f"https://127.0.0.1:{port}/radius/failure"
        write_raddb(render(raddb_values(folder, port, 1812, failure_url=url)), folder)
        with pytest.raises(Refusal, match="reached"):
            await post(raddb, b"{}")
        async with decision_service(Desk(), tmp_path, campus("elsewhere").decision_port(), port=port) as service:
            with pytest.raises(Refusal, match="chain"):
                await post(raddb, b"{}")
            assert service.failures == []

    run(story)
