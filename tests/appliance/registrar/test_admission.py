"""Who is admitted: the site's policy, a manufacturer's own, lists of expected devices, and decisions by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.registrar.device_rows import DeviceRow, compare, read_csv
from appliance.registrar.errors import DeviceFileRefused
from est import chains, csr
from tests.appliance.registrar.test_est_service import san_of
from tests.appliance.registrar.test_inventory import refused
from tests.appliance.registrar.world import ADMIN, World, enroll_call, play
from tests.support import NOW

HEADER = "manufacturer,serial,label,idevid-issuer,delivered\n"


@pytest.mark.req("B-256")
@pytest.mark.parametrize(
    ("site", "maker", "listed", "status"),
    [
        ("automatic", "", False, 200),
        ("automatic", "manual", False, 202),
        ("automatic", "listed", False, 403),
        ("automatic", "listed", True, 200),
        ("manual", "", False, 202),
        ("manual", "automatic", False, 200),
        ("manual", "", True, 200),
        ("listed", "", False, 403),
        ("listed", "manual", False, 202),
        ("listed", "automatic", False, 200),
    ],
)
def test_a_makers_policy_goes_before_the_sites(
    tmp_path: Path, site: str, maker: str, listed: bool, status: int
) -> None:
    async def story(world: World) -> None:
        assert (await world.device().voucher()).status == status
        assert world.masa.count("requestvoucher") == (status == 200)

    options: dict[str, Any] = {"admission": maker, "serials": ["PX-1"] if listed else []}
    play(tmp_path, story, admission=site, options=options)


@pytest.mark.req("B-222", "B-234", "T-15")
def test_a_pledge_that_waits_over_restarts_is_one_transaction_and_asks_the_masa_once(tmp_path: Path) -> None:
    async def story(first: World) -> None:
        device = first.device()
        call = device.request()
        assert (await first.handle(call, device.peer)).status == 202
        first.close()
        second = await World.create(tmp_path, reopen=first, admission="manual")
        for _ in range(20):
            assert (await second.handle(call, device.peer)).status == 202
        await second.part.inventory.admit("PX-1", actor=ADMIN)
        second.close()
        third = await World.create(tmp_path, reopen=second, admission="manual")
        replies = await asyncio.gather(*(third.handle(call, third.peer(device.identity)) for _ in range(20)))
        assert {reply.status for reply in replies} == {200}
        third.close()
        fourth = await World.create(tmp_path, reopen=third, admission="manual")
        assert (await fourth.handle(call, device.peer)).body == replies[0].body
        assert fourth.masa.count("requestvoucher") == 1
        assert len(await fourth.audited("pledge-seen")) == 1
        steps = [(one["step"], one["times"]) for one in (await fourth.row())["timeline"]]
        assert steps[0] == ("request-received", 1) and steps[1] == ("held", 1)
        assert [name for name, _ in steps[2:]] == ["asked-again", "admitted", "masa-asked", "voucher-granted"]
        fourth.close()

    play(tmp_path, story, admission="manual")


@pytest.mark.req("B-222")
def test_retries_of_a_pledge_that_waits_are_counted_without_a_write_for_each(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        call = device.request()
        for _ in range(50):
            await world.handle(call, device.peer)
            world.clock.advance(1)
        row = await world.row()
        (asked,) = [one for one in row["timeline"] if one["step"] == "asked-again"]
        assert 30 <= asked["times"] <= 49
        assert row["what_to_do"].startswith("to let it in: appliance pledges admit PX-1")

    play(tmp_path, story, admission="manual")


def test_a_refused_pledge_stays_out_over_a_restart_until_it_is_admitted(tmp_path: Path) -> None:
    async def story(first: World) -> None:
        device = first.device()
        assert (await device.voucher()).status == 202
        await first.part.inventory.refuse("PX-1", actor=ADMIN, reason="stolen")
        first.close()
        second = await World.create(tmp_path, reopen=first, admission="manual")
        device.world = second
        assert (await device.voucher()).status == 403
        row = await second.row()
        assert row["what_to_do"] == "to let it in: appliance pledges admit PX-1"
        await second.part.inventory.admit("PX-1", actor=ADMIN)
        assert (await device.voucher()).status == 200
        second.close()

    play(tmp_path, story, admission="manual")


def test_a_file_of_expected_devices_is_taken_in_after_the_difference_was_shown(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        take = world.part.expected.import_csv
        text = HEADER + "Acme,PX-1,lab 3,,2026-01-15\nAcme,PX-2,,,\n"
        planned = await take(text, actor=ADMIN, dry_run=True)
        assert planned["applied"] is False and planned["counts"] == {
            "added": 2, "changed": 0, "unchanged": 0, "missing": 0,
        }  # fmt: skip
        assert await world.part.expected.every() == []
        assert (await world.device("PX-1").voucher()).status == 403
        done = await take(text, actor=ADMIN)
        assert done["applied"] is True and done["added"] == planned["added"]
        assert (await world.device("PX-1").voucher()).status == 200
        assert (await world.device("PX-3").voucher()).status == 403
        second = await take(HEADER + "Acme,PX-2,roof,,\nAcme,PX-3,,,\n", actor=ADMIN)
        assert second["counts"] == {"added": 1, "changed": 1, "unchanged": 0, "missing": 1}
        assert second["changed"][0]["was"]["label"] == ""
        assert [one["serial"] for one in await world.part.expected.every()] == ["PX-1", "PX-2", "PX-3"]
        third = await take(HEADER + "Acme,PX-2,roof,,\n", actor=ADMIN, replace=True)
        assert third["counts"] == {"added": 0, "changed": 0, "unchanged": 1, "removed": 2}
        assert [one["serial"] for one in await world.part.expected.every()] == ["PX-2"]
        audited = await world.audited("devices-listed")
        assert [one["fields"]["added"] for one in audited] == [2, 1, 0]
        await refused(take(HEADER + "Acme,PX-9,,,\nNobody,PX-1,,,\n", actor=ADMIN), DeviceFileRefused)
        assert len(await world.part.expected.every()) == 1

    play(tmp_path, story, admission="listed")


def test_a_listed_issuer_must_be_that_of_the_device(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        right = (chains.ski_of(world.factory.device_ca.certificate) or b"").hex()
        take = world.part.expected.import_csv
        await take(HEADER + f"Acme,PX-1,,{'ab' * 20},\nAcme,PX-2,,{right},\n", actor=ADMIN)
        assert (await world.device("PX-1").voucher()).status == 403
        assert (await world.device("PX-2").voucher()).status == 200
        assert {one["idevid-issuer"] for one in await world.part.expected.every()} == {"ab" * 20, right}

    play(tmp_path, story, admission="listed")


def test_the_columns_may_come_in_any_order_and_the_optional_ones_may_be_missing() -> None:
    assert read_csv("serial,manufacturer\nPX-1,Acme\n\n") == (DeviceRow("Acme", "PX-1"),)
    (row,) = read_csv('\ufeffdelivered,serial,label,manufacturer\n2026-02-28, PX-1 ,"roof, left",Acme\n')
    assert (row.serial, row.label, row.delivered) == ("PX-1", "roof, left", "2026-02-28")
    assert row.delivered_at is not None and row.delivered_at.isoformat() == "2026-02-28T00:00:00+00:00"
    (row,) = read_csv("manufacturer,serial,idevid-issuer\nAcme,PX-1,AA:BB:CC:DD:EE\n")
    assert row.key_identifier == "aabbccddee"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("", 1, "manufacturer is missing"),
        ("manufacturer\nAcme\n", 1, "serial is missing"),
        ("manufacturer,serial,color\n", 1, "unknown column 'color'"),
        ("manufacturer,serial,serial\n", 1, "twice"),
        ("Manufacturer,serial\n", 1, "unknown column"),
        (HEADER + "Acme,PX-1,,\n", 2, "4 values for 5"),
        (HEADER + "Acme,PX-1,,,,\n", 2, "6 values for 5"),
        (HEADER + "Acme,PX-1,,,\nAcme,PX-1,,,\n", 3, "already on line 2"),
        (HEADER + ",PX-1,,,\n", 2, "manufacturer is empty"),
        (HEADER + "Acme,,,,\n", 2, "serial ''"),
        (HEADER + "Acme,a\x01b,,,\n", 2, "serial"),
        (HEADER + f"Acme,{'x' * 256},,,\n", 2, "serial"),
        (HEADER + "Acme,PX-1,,zz,\n", 2, "idevid-issuer"),
        (HEADER + "Acme,PX-1,,,yesterday\n", 2, "delivered"),
        (HEADER + "Acme,PX-1,,,2026-02-30\n", 2, "delivered"),
        (HEADER + f"Acme,PX-1,{'x' * 121},,\n", 2, "label"),
        (HEADER + 'Acme,PX-1,"a"b,,\n', 2, ""),
        (HEADER + 'Acme,PX-1,"open\n', 3, ""),
        (HEADER + "Acme,PX\x00-1,,,\n", 2, "NUL"),
        (HEADER + '"Acme",PX-1,"two\nlines",,\nAcme,PX-2\n', 3, "label"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line(text: str, line: int, word: str) -> None:
    with pytest.raises(DeviceFileRefused) as caught:
        read_csv(text)
    assert word in caught.value.detail
    assert caught.value.fields["line"] in (line, line - 1)


def test_devices_of_makers_that_a_file_does_not_name_are_not_missing() -> None:
    listed = {(maker, "1"): DeviceRow(maker, "1") for maker in ("Acme", "Other")}
    assert compare(listed, [DeviceRow("Acme", "2")]).missing == (DeviceRow("Acme", "1"),)


@pytest.mark.req("B-339")
def test_a_voucher_before_the_day_of_delivery_keeps_the_device_out(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        assert (await device.voucher()).status == 200
        day = f"{NOW.year + 1}-01-01"
        await world.part.expected.import_csv(HEADER + f"Acme,PX-1,,,{day}\n", actor=ADMIN)
        await device.status()
        row = await world.row()
        assert row["state"] == "refused" and row["audit_verdict"] == "refused: before-purchase"

    play(tmp_path, story)


@pytest.mark.req("B-375")
def test_a_proxy_holds_so_many_live_certificates_and_no_more(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        old = await device.bootstrap()
        statuses = []
        for _ in range(4):
            key = ec.generate_private_key(ec.SECP256R1())
            asked = csr.build(subject=old.subject, san=san_of(old), key=key)
            reply = await world.handle(enroll_call(asked, again=True), device.with_ldevid(old))
            statuses.append(reply.status)
        assert statuses == [200, 200, 429, 429]
        assert reply.body.startswith(b"too-many-ldevids") and int(reply.headers["retry-after"]) > 86400

    play(tmp_path, story, max_ldevids=3)
