"""Administrators' verbs: manufacturers, pledges, proxies, one-time secrets."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.audit import Actor
from appliance.errors import Conflict, NotFound, RequestMalformed
from appliance.registrar.admission import ProxyIdentities
from appliance.registrar.errors import ManufacturerUnusable
from appliance.registrar.inventory import Inventory
from appliance.registrar.maker_options import Options
from appliance.store import Tx, proxies
from appliance.store.proxies import ProxyRow
from brski.errors import MasaUriInvalid
from est.errors import Refusal
from lab.factory import Factory
from tests.appliance.registrar.world import ADMIN, MASA_HOST, World, play
from tests.support import NOW


async def refused(work: Awaitable[object], kind: type[Refusal]) -> None:
    with pytest.raises(kind):
        await work


def test_a_manufacturer_is_named_by_its_certificate_and_listed_with_what_was_given(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        pem = world.factory.device_root.chain_pem.decode()
        shown = await world.part.manufacturers.add(
            anchors_pem=pem,
            masa_url="masa.acme.example:9443",
            masa_tls_anchors_pem=world.factory.tls_root.chain_pem.decode(),
            options=Options(ignore_expiry=True),
            actor=ADMIN,
        )
        assert shown["name"] == "Acme Device Root"
        assert await world.part.manufacturers.every() == [shown]
        assert shown["masa_url"] == "masa.acme.example:9443" and shown["ignore_expiry"] is True
        (added,) = await world.audited("manufacturer-added")
        assert added["actor"]["identifier"] == "ada"
        await world.part.manufacturers.remove("Acme Device Root", actor=ADMIN)
        assert await world.part.manufacturers.every() == []
        await refused(world.part.manufacturers.remove("Acme Device Root", actor=ADMIN), NotFound)

    play(tmp_path, story, known=False)


@pytest.mark.req("B-144", "B-156")
def test_a_manufacturer_that_cannot_be_used_is_not_added(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        add = world.part.manufacturers.add
        pem = world.factory.device_root.chain_pem.decode()
        await refused(add(anchors_pem="not PEM", actor=ADMIN), ManufacturerUnusable)
        await refused(add(anchors_pem="", actor=ADMIN), ManufacturerUnusable)
        await refused(add(anchors_pem=pem, masa_tls_anchors_pem="no", name="X", actor=ADMIN), ManufacturerUnusable)
        for url in (
            "http://masa.example",
            "ftp://masa.example",
            "https://user@masa.example",
            "https://masa.example/#x",
        ):
            await refused(add(anchors_pem=pem, masa_url=url, name="X", actor=ADMIN), MasaUriInvalid)
        # nothing is trusted at a MASA unless somebody says what
        await refused(add(anchors_pem=pem, name="Acme", masa_url=MASA_HOST, actor=ADMIN), ManufacturerUnusable)
        machine = Options(masa_trust="machine")
        await add(anchors_pem=pem, name="Acme", options=machine, actor=ADMIN)
        await refused(add(anchors_pem=pem, name="Acme again", options=machine, actor=ADMIN), Conflict)
        other = Factory.create("Other", now=NOW).device_root.chain_pem.decode()
        await refused(add(anchors_pem=other, name="Acme", options=machine, actor=ADMIN), Conflict)
        assert [row["name"] for row in await world.part.manufacturers.every()] == ["Acme"]

    play(tmp_path, story, known=False)


def test_a_pledge_is_found_by_serial_fingerprint_or_id(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.device().voucher()
        shown = await world.part.inventory.pledge("PX-1")
        for key in (shown["id"], shown["fingerprint"], shown["fingerprint"].upper()):
            assert await world.part.inventory.pledge(key) == shown
        await refused(world.part.inventory.pledge("PX-2"), NotFound)
        await refused(world.part.inventory.admit("PX-1", actor=ADMIN), Conflict)

    play(tmp_path, story)


def test_a_stranger_is_shown_and_cannot_be_admitted(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await world.handle(device.request(), device.peer)
        (shown,) = await world.part.knocks.every()
        assert (shown["serial"], shown["known"]) == ("PX-1", False)
        await refused(world.part.inventory.admit("PX-1", actor=ADMIN), NotFound)

    play(tmp_path, story, known=False)


def test_the_record_of_a_real_device_is_out_of_a_strangers_reach(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.device().bootstrap()
        before = await world.row()
        # same serial, same issuer octets are not reachable without the maker's key: another CA altogether
        fake = Factory.create("Acme", now=NOW).make_device("PX-1", masa=MASA_HOST, now=NOW)
        liar = world.device("PX-2")
        liar.identity, liar.peer = fake, world.peer(fake)
        for reply in (await liar.voucher(), await liar.status(ok=False), await liar.enroll()):
            assert reply.status in (401, 403)
        assert await world.row() == before

    play(tmp_path, story)


def test_what_hangs_on_a_proxy_ends_in_the_same_transaction(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        ended: list[str] = []

        def hook(tx: Tx, row: ProxyRow, actor: Actor) -> None:
            ended.append(row.identifier)
            if len(ended) == 1:
                raise Conflict("not now")

        identities = ProxyIdentities("spiffe://campus.example", [hook])
        inventory = Inventory(store=world.store, clock=world.clock, identities=identities)
        await world.device().bootstrap()
        (proxy,) = await inventory.proxies()
        await refused(inventory.revoke_proxy(proxy["identifier"], actor=ADMIN), Conflict)
        assert (await inventory.proxies())[0]["state"] == proxies.ACTIVE
        await inventory.revoke_proxy(proxy["name"], actor=ADMIN)
        assert (await inventory.proxies())[0]["state"] == proxies.REVOKED
        assert ended == [proxy["identifier"]] * 2
        await refused(inventory.revoke_proxy(proxy["identifier"], actor=ADMIN), Conflict)
        await refused(inventory.revoke_proxy("spiffe://campus.example/proxy/nobody", actor=ADMIN), NotFound)

    play(tmp_path, story)


@pytest.mark.parametrize("name", ["", "a:b", "x" * 65, "tab\there"])
def test_a_secrets_name_fits_into_http_basic(tmp_path: Path, name: str) -> None:
    async def story(world: World) -> None:
        await refused(world.part.inventory.new_est_secret(name, actor=ADMIN), RequestMalformed)
        await refused(world.part.inventory.new_est_secret("ok", actor=ADMIN, life=timedelta(0)), RequestMalformed)

    play(tmp_path, story)


@pytest.mark.req("A-102")
def test_a_suspended_proxy_renews_nothing_and_gets_no_second_identity_by_a_new_bootstrap(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        inventory = world.part.inventory
        device = world.device()
        certificate = await device.bootstrap()
        (proxy,) = await inventory.proxies()
        await inventory.suspend_proxy(proxy["identifier"], actor=ADMIN, reason="odd evidence")
        await refused(inventory.suspend_proxy(proxy["identifier"], actor=ADMIN), Conflict)
        again = world.device()
        replies = [
            await again.voucher(),
            await again.enroll(),
            await device.enroll(peer=device.with_ldevid(certificate)),
        ]
        assert all(reply.status != 200 for reply in replies)
        assert [one["state"] for one in await inventory.proxies()] == ["suspended"]
        await inventory.resume_proxy(proxy["name"], actor=ADMIN)
        await refused(inventory.resume_proxy(proxy["identifier"], actor=ADMIN), Conflict)
        await world.device().bootstrap()
        assert [one["identifier"] for one in await inventory.proxies()] == [proxy["identifier"]]
        await inventory.suspend_proxy(proxy["identifier"], actor=ADMIN)
        await inventory.revoke_proxy(proxy["identifier"], actor=ADMIN)
        assert [one["state"] for one in await inventory.proxies()] == ["revoked"]
        assert [one["event"] for one in await world.audited("proxy-suspended")] == ["proxy-suspended"] * 2

    play(tmp_path, story)
