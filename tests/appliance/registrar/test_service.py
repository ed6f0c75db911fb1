"""requestvoucher through the route table, MASA in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from brski import Voucher, voucher
from est.exchange import Call, Reply
from lab.factory import Domain, Factory, make_leaf
from tests.appliance.registrar.world import ADMIN, MASA_HOST, World, play
from tests.support import NOW


@pytest.mark.req("B-201", "B-221", "B-251", "B-313", "B-257")
def test_a_known_device_gets_its_masas_voucher_byte_for_byte(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        reply = await device.voucher()
        assert (reply.status, reply.media_type) == (200, "application/voucher-cms+json")
        assert reply.body == world.masa.answers[0].body
        row = await world.row()
        assert row["state"] == "voucher-issued"
        assert row["assertion"] == "proximity"
        assert row["proxy"].startswith("spiffe://campus.example/proxy/")
        assert [step["step"] for step in row["timeline"]] == ["request-received", "masa-asked", "voucher-granted"]
        (issued,) = await world.audited("voucher-issued")
        assert issued["object"] == "PX-1"
        assert issued["fields"]["masa"] == MASA_HOST
        assert issued["fields"]["issuer"] == row["issuer"]
        assert issued["fields"]["nonce"] and issued["actor"]["fingerprint"] == row["fingerprint"]

    play(tmp_path, story)


@pytest.mark.req("T-04", "B-223", "B-254")
def test_a_request_made_for_another_registrar_is_401_and_the_connection_closes(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        other = Domain.create(now=NOW).certificate
        reply = await world.handle(device.request(registrar=other), device.peer)
        assert reply.status == 401
        assert reply.headers["connection"] == "close"
        assert world.masa.calls == []
        (refused,) = await world.audited("voucher-refused")
        assert refused["reason"] == "proximity-mismatch"

    play(tmp_path, story)


@pytest.mark.req("T-13", "B-252")
def test_a_request_signed_by_another_idevid_is_refused(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device, other = world.device(), world.device("PX-2")
        reply = await world.handle(other.request(), device.peer)
        assert reply.status == 403
        assert world.masa.calls == []
        (refused,) = await world.audited("voucher-refused")
        assert (refused["object"], refused["reason"]) == ("PX-1", "request-signer-foreign")

    play(tmp_path, story)


@pytest.mark.req("T-14", "B-253")
def test_a_request_with_another_serial_number_is_refused_and_logged(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        certificate = world.factory.make_device("PX-9", now=NOW, masa=MASA_HOST)
        # the same key under a certificate that names another device
        twin = make_leaf(world.factory.device_ca, certificate.certificate.subject, now=NOW, key=device.identity.key)
        reply = await world.handle(device.request(), world.peer(twin))
        assert reply.status == 403
        (refused,) = await world.audited("voucher-refused")
        assert refused["reason"] == "serial-number-mismatch"
        assert refused["fields"]["claimed"] == "PX-1"
        assert refused["fields"]["authenticated"] == "PX-9"

    play(tmp_path, story)


@pytest.mark.req("B-256", "B-224")
def test_a_device_of_an_unknown_manufacturer_is_refused_and_stands_in_the_list_of_who_knocked(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        for _ in range(3):
            reply = await world.handle(device.request(), device.peer)
            assert reply.status == 403
            assert b"Acme" not in reply.body
        assert await world.part.inventory.pledges() == []
        (row,) = await world.part.knocks.every()
        assert (row["known"], row["serial"], row["times"]) == (False, "PX-1", 3)
        assert world.masa.calls == []
        assert len(await world.audited("voucher-refused")) == 1
        await world.part.manufacturers.add(
            anchors_pem=world.factory.device_root.chain_pem.decode(),
            masa_url=MASA_HOST,
            name="Acme",
            masa_tls_anchors_pem=world.factory.tls_root.chain_pem.decode(),
            actor=ADMIN,
        )
        assert (await device.voucher()).status == 200
        (row,) = await world.part.inventory.pledges()
        assert row["manufacturer"] == "Acme"
        assert await world.part.knocks.every() == []

    play(tmp_path, story, known=False)


@pytest.mark.req("T-15", "B-222", "B-234", "B-235")
def test_a_request_retried_a_hundred_times_while_it_waits_is_one_transaction(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        call = device.request()
        replies = await asyncio.gather(*(world.handle(call, device.peer) for _ in range(100)))
        assert {reply.status for reply in replies} == {202}
        assert replies[0].headers["retry-after"] == "5"
        assert world.masa.calls == []
        assert len(await world.audited("pledge-seen")) == 1
        shown = await world.part.inventory.admit("PX-1", actor=ADMIN)
        assert shown["proxy"]
        replies = await asyncio.gather(*(world.handle(call, device.peer) for _ in range(100)))
        assert {reply.status for reply in replies} == {200}
        assert len({reply.body for reply in replies}) == 1
        assert world.masa.count("requestvoucher") == 1
        # another nonce never gets the stored voucher
        other = await world.handle(device.request(), device.peer)
        assert (other.status, other.body == replies[0].body) == (200, False)
        assert world.masa.count("requestvoucher") == 2

    play(tmp_path, story, admission="manual")


@pytest.mark.req("B-234", "B-235")
def test_a_waiting_transaction_survives_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        world = await World.create(tmp_path, admission="manual")
        device = world.device()
        call = device.request()
        assert (await world.handle(call, device.peer)).status == 202
        world.close()
        world = await World.create(tmp_path, reopen=world, admission="manual")
        try:
            assert (await world.handle(call, device.peer)).status == 202
            await world.part.inventory.admit("PX-1", actor=ADMIN)
            first = await world.handle(call, device.peer)
            world.close()
            world = await World.create(tmp_path, reopen=world, admission="manual")
            again = await world.handle(call, device.peer)
            assert first.status == again.status == 200
            assert first.body == again.body
            assert world.masa.count("requestvoucher") == 1
        finally:
            world.close()

    asyncio.run(story())


@pytest.mark.req("B-234")
def test_a_call_to_the_masa_that_a_crash_cut_short_is_made_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        call = device.request()
        world.masa.gate = asyncio.Event()
        waiting = asyncio.create_task(world.handle(call, device.peer))
        async with asyncio.timeout(60):
            while not world.masa.calls:
                await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await world.row())["state"] == "voucher-requested"
        world.masa.gate = None
        assert (await world.handle(call, device.peer)).status == 200

    play(tmp_path, story)


@pytest.mark.req("B-256")
def test_listed_admission_takes_listed_serials_and_a_human_may_add_one(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert (await world.device("PX-1").voucher()).status == 200
        other = world.device("PX-2")
        call = other.request()
        assert (await world.handle(call, other.peer)).status == 403
        assert (await world.row("PX-2"))["state"] == "waiting-for-admission"
        await world.part.inventory.admit("PX-2", actor=ADMIN)
        assert (await world.handle(call, other.peer)).status == 200

    play(tmp_path, story, admission="listed", options={"serials": ("PX-1",)})


def test_a_pledge_that_an_administrator_refused_stays_out_until_it_is_admitted(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        certificate = await device.bootstrap()
        await world.part.inventory.refuse("PX-1", actor=ADMIN, reason="stolen")
        (proxy,) = await world.part.inventory.proxies()
        assert proxy["state"] == "revoked"
        assert (await device.voucher()).status == 403
        assert (await device.enroll(peer=device.with_ldevid(certificate))).status == 403
        assert len(await world.audited("credential-revoked")) == 1
        await world.part.inventory.admit("PX-1", actor=ADMIN)
        assert (await device.voucher()).status == 200
        new = [row for row in await world.part.inventory.proxies() if row["state"] == "active"]
        assert len(new) == 1 and new[0]["identifier"] != proxy["identifier"]

    play(tmp_path, story)


@pytest.mark.req("T-24", "B-158", "B-155", "B-156")
@pytest.mark.parametrize("named", ["127.0.0.1:1", "169.254.169.254", "evil.example:9443", "masa.acme.example:9444"])
def test_a_masa_that_is_not_on_the_list_is_never_asked(tmp_path: Path, named: str) -> None:
    async def story(world: World) -> None:
        device = world.device(masa=named)
        assert (await world.handle(device.request(), device.peer)).status == 403
        assert world.masa.calls == []
        (refused,) = await world.audited("voucher-refused")
        assert (refused["reason"], refused["fields"]["authority"].split(":")[0]) == (
            "masa-not-allowed",
            named.split(":")[0],
        )
        row = await world.row()
        assert (row["state"], row["timeline"][-1]["code"]) == ("seen", "masa-not-allowed")

    play(tmp_path, story)


@pytest.mark.req("B-157")
def test_a_device_that_names_no_masa_uses_the_manufacturers(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert (await world.device(masa="").voucher()).status == 200
        assert world.masa.calls[0][1].base == f"https://{MASA_HOST}"

    play(tmp_path, story)


@pytest.mark.req("T-25", "B-149")
@pytest.mark.parametrize(("ignored", "status"), [(False, 403), (True, 200)])
def test_an_expired_idevid_counts_only_where_the_manufacturers_expiry_is_ignored(
    tmp_path: Path, ignored: bool, status: int
) -> None:
    async def story(world: World) -> None:
        device = world.device(not_after=NOW.replace(minute=30))
        world.clock.advance(3600)
        assert (await world.handle(device.request(), device.peer)).status == status

    play(tmp_path, story, options={"ignore_expiry": ignored})


@pytest.mark.req("T-35")
def test_two_makers_devices_with_one_serial_are_told_apart(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert (await world.device("PX-1").voucher()).status == 200
        other = Factory.create("Other", now=NOW)
        await world.part.manufacturers.add(
            anchors_pem=other.device_root.chain_pem.decode(),
            masa_url=MASA_HOST,
            name="Other",
            masa_tls_anchors_pem=other.tls_root.chain_pem.decode(),
            actor=ADMIN,
        )
        twin = other.make_device("PX-1", masa=MASA_HOST, now=NOW)
        world.factory.sold.clear()
        device = world.device("PX-1")
        device.identity, device.peer = twin, world.peer(twin)
        assert (await world.handle(device.request(), device.peer)).status in (403, 404)
        rows = await world.part.inventory.pledges()
        assert sorted(row["manufacturer"] for row in rows) == ["Acme", "Other"]
        assert sorted(row["state"] for row in rows) == ["seen", "voucher-issued"]

    play(tmp_path, story)


@pytest.mark.req("T-30", "B-228", "B-146", "B-229")
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Reply(401, "text/plain", body=b"secret words of the MASA"), 502),
        (Reply(500, "text/plain", body=b"secret words of the MASA"), 503),
        (Reply(200, "text/html", body=b"<html>secret words of the MASA</html>"), 502),
        (Reply(200, "application/voucher-cms+json", body=b""), 502),
        (Reply(404, "text/plain", body=b"secret words of the MASA"), 403),
        (Reply(406, "text/plain"), 406),
        (Reply(302, headers={"location": "https://elsewhere.example/"}), 502),
    ],
)
def test_a_masa_that_fails_is_told_neutrally_and_a_retry_may_succeed(
    tmp_path: Path, answer: Reply, status: int
) -> None:
    async def story(world: World) -> None:
        device = world.device()
        call = device.request()
        world.masa.answer = lambda asked: answer
        reply = await world.handle(call, device.peer)
        assert reply.status == status
        assert b"secret words" not in reply.body
        assert ("retry-after" in reply.headers) == (status == 503)
        assert (await world.row())["timeline"][-1]["step"] == "masa-failed"
        world.masa.answer = lambda asked: None
        assert (await world.handle(call, device.peer)).status == 200

    play(tmp_path, story)


@pytest.mark.req("B-313")
def test_a_voucher_that_does_not_fit_the_request_is_not_handed_on(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        first, second = world.device("PX-1"), world.device("PX-2")
        stolen = (await first.voucher()).body
        world.masa.answer = lambda call: Reply(200, "application/voucher-cms+json", body=stolen)
        reply = await world.handle(second.request(), second.peer)
        assert reply.status == 502
        opened, _ = voucher.unseal(stolen, "application/voucher-cms+json")
        assert isinstance(opened, Voucher) and opened.serial_number == "PX-1"

    play(tmp_path, story)


@pytest.mark.req("T-36")
def test_a_flood_of_new_requests_from_one_pledge_ends_in_429(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        statuses = [(await world.handle(device.request(), device.peer)).status for _ in range(30)]
        assert statuses[:20] == [200] * 20
        assert statuses[20:] == [429] * 10
        assert world.masa.count("requestvoucher") == 20

    play(tmp_path, story)


def test_a_removed_manufacturers_devices_are_strangers_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        assert (await device.voucher()).status == 200
        await world.part.manufacturers.remove("Acme", actor=ADMIN)
        assert (await device.voucher()).status == 403

    play(tmp_path, story)


@pytest.mark.req("B-210", "B-209")
@pytest.mark.parametrize("path", ["rv", "requestauditlog", "voucherrequest", "requestenroll"])
def test_other_brski_paths_do_not_exist(tmp_path: Path, path: str) -> None:
    async def story(world: World) -> None:
        device = world.device()
        call = Call("POST", f"/.well-known/brski/{path}", "application/voucher-cms+json", {}, device.request().body)
        assert (await world.handle(call, device.peer)).status == 404

    play(tmp_path, story)
