"""Refusals beyond what is written down each: counted, and one entry for all of them; limits of a label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.web.limits import Bucket, Limits
from tests.appliance.registrar.test_approvals import ready
from tests.appliance.registrar.test_est_labels import under
from tests.appliance.registrar.world import World, enroll_call, play


@pytest.mark.req("E-206")
def test_refusals_beyond_the_limit_and_of_nobody_are_one_entry_with_numbers(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        for _ in range(25):
            assert (await device.enroll()).status == 403
        assert (await world.handle(enroll_call(device.csr()), world.peer())).status == 401
        elsewhere = replace(world.peer(), address="192.0.2.8")
        assert (await world.handle(enroll_call(device.csr()), elsewhere)).status == 401
        assert len(await world.audited("enrolment-refused")) == 20
        assert await world.audited("requests-refused") == []
        await world.part.refusals.flush()
        await world.part.refusals.flush()
        (entry,) = await world.audited("requests-refused")
        assert entry["outcome"] == "refused"
        assert entry["fields"] == {
            "reasons": {"enrollment-credentials-missing": 2, "enrollment-not-open": 5}, "addresses": 2,
        }  # fmt: skip
        # the door's own limit counts there too
        limits = Limits(
            world.clock, Bucket(1, 1), Bucket(1, 1),
            on_refused=lambda peer: world.part.refusals.count("rate-limited", peer.address),
        )  # fmt: skip
        limits.check("address", elsewhere)
        for _ in range(3):
            with pytest.raises(Exception, match="too many requests"):
                limits.check("address", elsewhere)
        await world.part.close()
        _, last = await world.audited("requests-refused")
        assert last["fields"] == {"reasons": {"rate-limited": 3}, "addresses": 1, "address": "192.0.2.8"}

    play(tmp_path, story)


@pytest.mark.req("E-203")
def test_a_label_has_a_limit_of_its_own_before_anything_costs_a_signature(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        broken = device.csr()[:-1] + b"\0"
        seen = [(await world.handle(under("lab", enroll_call(broken)), world.peer())) for _ in range(4)]
        assert [reply.status for reply in seen] == [401, 401, 429, 429]
        assert seen[2].headers["retry-after"] == "2" and b"under this EST label" in seen[2].body
        # it is all clients' and counts here alone
        assert (await world.handle(under("lab", enroll_call(broken)), device.peer)).status == 429
        assert (await device.enroll()).status == 200
        world.clock.advance(2)
        assert (await world.handle(under("lab", enroll_call(broken)), world.peer())).status == 401

    play(tmp_path, story, est={"labels": {"lab": {"requests_per_second": 0.5, "requests_burst": 2}}})
