"""The list of who knocked: bounded, counted, and never in the way of real devices."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from appliance.errors import NotFound
from appliance.registrar import knocking
from appliance.registrar.knocking import MAX_PER_ADDRESS, MAX_STRANGERS, network_of
from appliance.store import Tx, knocks
from appliance.store.knocks import Knock
from lab.factory import Factory
from tests.appliance.registrar.test_inventory import refused
from tests.appliance.registrar.world import ADMIN, MASA_HOST, Device_, World, play
from tests.support import NOW


def stranger(world: World, factory: Factory, serial: str, address: str = "192.0.2.7") -> Device_:
    identity = factory.make_device(serial, masa=MASA_HOST, now=NOW)
    device = world.device("PX-0")
    peer = world.peer(identity)
    object.__setattr__(peer, "address", address)
    device.identity, device.peer = identity, peer
    return device


def row(number: int, *, maker: str | None = None, address: str = "192.0.2.1") -> Knock:
    moment = NOW + timedelta(seconds=number)
    return Knock(f"{number:064x}", f"S-{number}", "CN=x", maker, address, "manufacturer-unknown", "", 1, moment, moment)


def test_a_knock_says_who_when_how_often_and_what_to_do(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = stranger(world, Factory.create("Other", now=NOW), "OX-1")
        for _ in range(5):
            assert (await world.handle(device.request(), device.peer)).status == 403
            world.clock.advance(10)
        (found,) = await world.part.knocks.every()
        assert found["times"] == 5 and found["serial"] == "OX-1" and found["reason"] == "manufacturer-unknown"
        assert found["maker"] == "CN=Other Device CA" and found["address"] == "192.0.2.7"
        assert found["first_seen"] == NOW.isoformat(timespec="seconds") < found["last_seen"]
        assert "appliance manufacturers add MAKER-CA.pem" in found["what_to_do"]
        shown = await world.part.knocks.forget(found["fingerprint"], actor=ADMIN)
        assert shown["serial"] == "OX-1"
        assert await world.part.knocks.every() == []
        await refused(world.part.knocks.forget(found["fingerprint"], actor=ADMIN), NotFound)
        assert (await world.handle(device.request(), device.peer)).status == 403
        assert len(await world.part.knocks.every()) == 1

    play(tmp_path, story)


def test_an_expired_idevid_is_told_apart_from_an_unknown_one(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device("PX-1", not_after=NOW + timedelta(days=1))
        world.clock.advance(3 * 86400)
        assert (await world.handle(device.request(), device.peer)).status == 403
        (found,) = await world.part.knocks.every()
        assert found["detail"] == "certificate-outside-validity of Acme"
        assert found["what_to_do"].startswith("if its dates may be ignored: appliance manufacturers set Acme ")

    play(tmp_path, story)


def test_a_refused_device_of_a_known_maker_stands_in_the_list_until_it_is_in(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        assert (await device.voucher()).status == 403
        (found,) = await world.part.knocks.every()
        assert found["known"] and found["maker"] == "Acme"
        assert found["what_to_do"] == "to let it in: appliance pledges admit PX-1"
        await world.part.inventory.admit("PX-1", actor=ADMIN)
        assert await world.part.knocks.every() == []
        assert (await device.voucher()).status == 200
        assert await world.part.knocks.every() == []

    play(tmp_path, story, admission="listed")


@pytest.mark.req("T-36")
def test_the_list_takes_a_thousand_strangers_and_the_oldest_give_way(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        def fill(tx: Tx) -> None:
            for number in range(MAX_STRANGERS):
                knocks.put(tx, row(number, address=f"10.0.{number // 40}.1"))
            for number in range(2000, 2010):
                knocks.put(tx, row(number, maker="acme"))

        await world.store.write(fill)
        device = stranger(world, Factory.create("Other", now=NOW), "OX-1")
        assert (await world.handle(device.request(), device.peer)).status == 403
        found = await world.store.read(lambda tx: knocks.every(tx))
        assert sum(one.is_stranger for one in found) == MAX_STRANGERS
        assert sum(not one.is_stranger for one in found) == 10
        serials = {one.serial for one in found}
        assert "OX-1" in serials and "S-0" not in serials and "S-1" in serials

    play(tmp_path, story)


@pytest.mark.req("T-36")
def test_one_address_pushes_out_nobody_but_itself(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        def fill(tx: Tx) -> None:
            knocks.put(tx, row(0, address="192.0.2.99"))
            for number in range(1, MAX_PER_ADDRESS + 1):
                knocks.put(tx, row(number, address="192.0.2.7"))

        await world.store.write(fill)
        device = stranger(world, Factory.create("Other", now=NOW), "OX-1")
        assert (await world.handle(device.request(), device.peer)).status == 403
        serials = {one.serial for one in await world.store.read(lambda tx: knocks.every(tx))}
        assert {"S-0", "OX-1", "S-2"} <= serials and "S-1" not in serials
        assert len(serials) == MAX_PER_ADDRESS + 1

    play(tmp_path, story)


@pytest.mark.req("T-36")
def test_a_flood_of_new_certificates_from_one_address_costs_a_few_rows(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        other = Factory.create("Other", now=NOW)
        burst = knocking.ADDRESS_BUCKET.burst
        for number in range(burst + 10):
            device = stranger(world, other, f"OX-{number}", "2001:db8::" + format(number + 1, "x"))
            assert (await world.handle(device.request(), device.peer)).status == 403
        found = await world.part.knocks.every()
        assert len(found) == burst
        assert {one["address"] for one in found} == {"2001:db8::/64"}
        # somebody else is seen nevertheless
        device = stranger(world, other, "OY-1", "192.0.2.9")
        await world.handle(device.request(), device.peer)
        assert "OY-1" in {one["serial"] for one in await world.part.knocks.every()}

    play(tmp_path, story)


def test_repeated_knocks_are_counted_in_memory(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = stranger(world, Factory.create("Other", now=NOW), "OX-1")
        for _ in range(200):
            await world.handle(device.request(), device.peer)
        stored = await world.store.read(lambda tx: knocks.every(tx))
        assert [one.times for one in stored] == [1]
        assert [one["times"] for one in await world.part.knocks.every()] == [200]

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network
