"""The device's history is found by the record, whatever the pledge put into its request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.registrar.errors import MasaBusy, MasaCredentialsUnusable
from brski import Pledge
from brski.errors import MasaTimedOut
from brski.masa import Masa
from est.chains import TrustAnchors
from est.errors import Refusal
from est.exchange import Call, Reply
from tests.appliance.registrar.world import ADMIN, Device_, World, play


@dataclass
class Terse(Device_):
    """Sends its intermediate in TLS, and its own certificate alone in the request, as RFC 8366 lets it."""

    @property
    def pledge(self) -> Pledge:
        return Pledge(self.identity.signer, self.identity.chain[:1], self.world.factory.masa_anchors)


def terse(world: World) -> Terse:
    factory = world.factory
    known = TrustAnchors([factory.device_root.certificate, factory.device_ca.certificate])
    world.masa.masa = Masa(factory.masa_signer, factory.masa_chain, known)
    device = world.device()
    return Terse(world, device.identity, device.peer)


@pytest.mark.req("B-338", "B-408")
def test_a_request_without_intermediates_is_no_obstacle_to_the_history(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await terse(world).bootstrap()
        (appraised,) = await world.audited("audit-log-appraised")
        assert appraised["outcome"] == "done"

    play(tmp_path, story)


@pytest.mark.req("B-340")
def test_a_manufacturer_removed_meanwhile_is_not_asked(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = terse(world)
        assert (await device.voucher()).status == 200
        world.clock.advance(120)
        await world.part.manufacturers.remove("Acme", actor=ADMIN)
        asked = len(world.masa.calls)
        await world.part.history.review_silent()
        assert len(world.masa.calls) == asked
        assert (await world.row())["audit_verdict"] == "unavailable"

    play(tmp_path, story)


@pytest.mark.req("B-340")
@pytest.mark.parametrize("refusal", [MasaBusy, MasaCredentialsUnusable, MasaTimedOut])
def test_a_log_that_cannot_be_fetched_keeps_est_shut_and_holds_up_nobody_else(
    tmp_path: Path, refusal: type[Refusal]
) -> None:
    async def story(world: World) -> None:
        first, second = world.device("PX-1"), world.device("PX-2")
        for device in (first, second):
            await device.voucher()

        def fail(call: Call) -> None:
            raise refusal("not now")

        world.masa.answer = fail
        assert (await first.status()).status == 200
        reply = await first.enroll()
        assert (reply.status, reply.body[:24]) == (503, b"device-history-unjudged:")
        world.clock.advance(120)
        assert await world.part.history.review_silent() == 1
        row = await world.row("PX-2")
        assert row["audit_verdict"] == "unavailable" and row["timeline"][-1]["code"] == refusal.reason
        assert row["what_to_do"] != ""
        world.masa.answer = lambda call: None
        assert (await first.enroll()).status == 200

    play(tmp_path, story)


async def until_asked(world: World) -> None:
    """Until the MASA was asked for a history; it waits at its gate."""
    async with asyncio.timeout(60):
        while world.masa.count("requestauditlog") == 0:
            await asyncio.sleep(0.01)


@pytest.mark.req("B-338", "B-371")
@pytest.mark.parametrize("is_good", [True, False])
def test_a_pledge_that_reports_while_its_silence_is_reviewed_is_judged_once_at_a_time(
    tmp_path: Path, is_good: bool
) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        world.clock.advance(120)
        world.masa.gate = asyncio.Event()
        if not is_good:
            world.masa.answer = lambda call: Reply(500)
        review = asyncio.create_task(world.part.history.review_silent())
        await until_asked(world)
        report = asyncio.create_task(device.status())
        await asyncio.sleep(0.05)
        world.masa.gate.set()
        assert (await review, (await report).status) == (1, 200)
        world.masa.answer = lambda call: None
        assert (await device.enroll()).status == 200
        assert (await world.row())["what_to_do"] == ""

    play(tmp_path, story)


@pytest.mark.req("B-338")
def test_a_pledge_that_reported_while_its_review_waited_is_not_reviewed_any_more(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        world.clock.advance(120)
        world.masa.gate = asyncio.Event()
        report = asyncio.create_task(device.status())
        await until_asked(world)
        silent = await world.part.history.review_silent()  # the report has moved the record already
        world.masa.gate.set()
        assert (silent, (await report).status) == (0, 200)
        assert world.masa.count("requestauditlog") == 1

    play(tmp_path, story)
