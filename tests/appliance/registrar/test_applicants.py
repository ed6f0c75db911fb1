"""Who gets an LDevID again: the same answer for a repeated request, but never across two bootstraps."""

from __future__ import annotations

from pathlib import Path

import pytest

from brski.states import RecordState
from tests.appliance.registrar.world import World, certificate_in, play


@pytest.mark.req("E-126", "B-375")
def test_a_request_kept_over_a_new_bootstrap_gets_a_certificate_of_that_bootstrap(tmp_path: Path) -> None:
    """A proxy killed before it stored its certificate begins anew, and sends the request that it had kept."""

    async def story(world: World) -> None:
        device = world.device()
        request = device.csr()
        for step in (device.voucher, device.status):
            assert (await step()).status == 200
        first = certificate_in(await device.enroll(request))
        world.clock.advance(60)
        for step in (device.voucher, device.status):
            assert (await step()).status == 200
        reply = await device.enroll(request)
        assert reply.status == 200
        second = certificate_in(reply)
        assert (await world.row())["state"] == RecordState.ENROLLED.value
        assert second.serial_number != first.serial_number
        assert [entry["object"] for entry in await world.audited("credential-revoked")] == [
            format(first.serial_number, "x")
        ]
        again = await device.enroll(request)
        assert certificate_in(again) == second

    play(tmp_path, story)
