"""Requests that wait for a person: 202 until somebody decides, one certificate after it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.console.devices import EstOperations
from appliance.console.operations import Operations
from appliance.errors import Conflict, NotFound, RequestMalformed
from est.exchange import Reply
from est.linking import binding_text
from tests.appliance.registrar.test_est_service import san_of
from tests.appliance.registrar.world import ADMIN, Device_, World, basic, certificate_in, enroll_call, play

MANUAL = {"approval": "manual", "approval_hours": 2, "approval_retry_seconds": 7}


async def ready(world: World, serial: str = "PX-1") -> Device_:
    device = world.device(serial)
    await device.voucher()
    await device.status()
    return device


async def only(world: World) -> Any:
    (row,) = await world.part.approvals.every()
    return row


def waits(reply: Reply) -> bool:
    return (reply.status, reply.headers.get("retry-after"), reply.body) == (202, "7", b"")


@pytest.mark.req("E-130", "E-131", "E-132", "E-134", "E-135")
@pytest.mark.parametrize("bound", [False, True], ids=["same bytes", "signed anew"])
def test_a_request_waits_across_a_restart_and_its_approval_is_good_for_one_certificate(
    tmp_path: Path, bound: bool
) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        der = device.csr()

        async def poll(number: int) -> Reply:
            """On a connection of its own each time, signed for it where the request is bound."""
            session = bytes([number]) * 32
            peer = device.world.peer(device.identity, bind=lambda: (session,))
            return await device.enroll(
                device.csr(challenge_password=binding_text(session)) if bound else der, peer=peer
            )

        assert waits(await poll(1))
        assert waits(await poll(2))
        row = await only(world)
        assert (row["state"], row["operation"], row["requester"]) == ("pending", "simpleenroll", "pledge PX-1")
        world.close()
        again = device.world = await World.create(tmp_path, reopen=world, est=MANUAL)
        assert waits(await poll(3))
        await again.part.approvals.approve(row["id"], actor=ADMIN)
        replies = await asyncio.gather(*(poll(number) for number in range(4, 12)))
        assert {reply.status for reply in replies} == {200}
        assert len({reply.body for reply in replies}) == 1
        assert len(await again.audited("ldevid-issued")) == 1
        assert (await only(again))["state"] == "issued"
        for event in ("est-request-waits", "est-request-approved"):
            assert len(await again.audited(event)) == 1
        again.close()

    play(tmp_path, story, est=MANUAL)


@pytest.mark.req("E-135")
def test_a_denied_request_hears_the_reason_until_its_time_is_over(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        assert waits(await device.enroll())
        row = await only(world)
        with pytest.raises(RequestMalformed):
            await world.part.approvals.deny(row["id"], actor=ADMIN, reason="")
        await world.part.approvals.deny(row["id"], actor=ADMIN, reason="not in this building")
        reply = await device.enroll()
        assert (reply.status, b"not in this building" in reply.body) == (403, True)
        with pytest.raises(Conflict, match="denied already"):
            await world.part.approvals.approve(row["id"], actor=ADMIN)
        world.clock.advance(2 * 3600 + 1)
        assert (await only(world))["state"] == "expired"
        assert waits(await device.enroll())
        assert (await only(world))["id"] != row["id"]
        with pytest.raises(NotFound):
            await world.part.approvals.approve(row["id"], actor=ADMIN)

    play(tmp_path, story, est=MANUAL)


@pytest.mark.req("E-135")
def test_an_approval_that_nobody_fetches_ends(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        await device.enroll()
        await world.part.approvals.approve((await only(world))["id"], actor=ADMIN)
        world.clock.advance(2 * 3600 + 1)
        assert waits(await device.enroll())
        assert await world.audited("ldevid-issued") == []

    play(tmp_path, story, est=MANUAL)


@pytest.mark.req("E-134")
def test_an_approval_is_for_one_key_and_another_one_waits_in_its_place(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        first = device.csr()
        await device.enroll(first)
        await world.part.approvals.approve((await only(world))["id"], actor=ADMIN)
        other = device.csr(key=ec.generate_private_key(ec.SECP256R1()))
        assert waits(await device.enroll(other))
        assert (await only(world))["state"] == "pending"
        assert waits(await device.enroll(first))

    play(tmp_path, story, est=MANUAL)


@pytest.mark.req("E-130", "E-49")
def test_waiting_spends_no_secret_and_what_would_be_refused_does_not_wait(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        made = await world.part.inventory.new_est_secret("rack-7", actor=ADMIN)
        device = world.device()
        call = enroll_call(device.csr(), headers=basic(made["credentials"]))
        assert waits(await world.handle(call, world.peer()))
        assert await world.audited("est-secret-spent") == []
        assert await world.part.inventory.proxies() == []
        await world.part.approvals.approve((await only(world))["id"], actor=ADMIN)
        old = certificate_in(await world.handle(call, world.peer()))
        assert len(await world.audited("est-secret-spent")) == 1
        # a renewal waits for itself; one with other names is refused at once
        peer = device.with_ldevid(old)
        assert (await world.handle(enroll_call(device.csr(), again=True), peer)).status == 403
        assert len(await world.part.approvals.every()) == 1
        renewal = enroll_call(device.csr(subject=old.subject, san=san_of(old)), again=True)
        assert waits(await world.handle(renewal, peer))
        operations = {row["operation"]: row["state"] for row in await world.part.approvals.every()}
        assert operations == {"simpleenroll": "issued", "simplereenroll": "pending"}

    play(tmp_path, story, est=MANUAL)


def test_the_issuance_that_fails_leaves_the_approval_good(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = await ready(world)
        der = device.csr()
        await device.enroll(der)
        await world.part.approvals.approve((await only(world))["id"], actor=ADMIN)
        world.token.is_broken = True
        assert (await device.enroll(der)).status == 500
        world.token.is_broken = False
        assert (await device.enroll(der)).status == 200

    play(tmp_path, story, est=MANUAL)


@pytest.mark.req("E-135")
def test_the_verbs_of_the_command_line_list_and_decide(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        verbs = Operations({"est": EstOperations(world.part, ADMIN)})
        devices = [await ready(world, serial) for serial in ("PX-1", "PX-2")]
        for device in devices:
            assert waits(await device.enroll())
        by_requester = {row["requester"]: row["id"] for row in await verbs.call("est.pending", {})}
        await verbs.call("est.approve", {"id": by_requester["pledge PX-1"]})
        await verbs.call("est.deny", {"id": by_requester["pledge PX-2"], "reason": "unknown here"})
        assert [(await device.enroll()).status for device in devices] == [200, 403]
        states = {row["requester"]: row["state"] for row in await verbs.call("est.pending", {})}
        assert states == {"pledge PX-1": "issued", "pledge PX-2": "denied"}

    play(tmp_path, story, est=MANUAL)
