"""Vouchers without a nonce, fetched ahead: who may ask, when one is handed out, what follows from it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.audit import APPLIANCE
from appliance.errors import NotFound
from appliance.registrar.errors import PrefetchNotPossible
from brski import Pledge, PledgePolicy
from brski.audit_log import LogEntry
from brski.errors import MasaUnreachable
from brski.masa import Masa, MasaPolicy
from brski.paths import VOUCHER_CMS_JSON, VOUCHER_JWS_JSON
from est import chains
from est.exchange import Call, Reply
from est.signer import KeySigner
from tests.appliance.registrar.test_inventory import refused
from tests.appliance.registrar.test_makers import request_of
from tests.appliance.registrar.world import ADMIN, Device_, World, campus_keys, play
from tests.support import NOW


def know_us(world: World) -> None:
    """The MASA authenticates this registrar by its signature."""
    factory = world.factory
    _, root, *_ = campus_keys(NOW)
    policy = MasaPolicy(registrar_anchors=chains.TrustAnchors([root]), nonceless_lifetime=timedelta(days=30))
    world.masa.masa = Masa(factory.masa_signer, factory.masa_chain, factory.device_anchors, policy)


async def expect(world: World, *serials: str) -> None:
    key = (chains.ski_of(world.factory.device_ca.certificate) or b"").hex()
    lines = "".join(f"Acme,{serial},{key}\n" for serial in serials)
    await world.part.expected.import_csv(f"manufacturer,serial,idevid-issuer\n{lines}", actor=ADMIN)


class Offline:
    """A MASA that cannot be reached any more."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, call: Call) -> Reply | None:
        self.calls += 1
        raise MasaUnreachable("the manufacturer's service cannot be reached", retry_after_seconds=30)


class Nonceless(Device_):
    """A device that asks without a nonce and takes a voucher without one."""

    @property
    def pledge(self) -> Pledge:
        policy = PledgePolicy(accept_nonceless=True)
        return Pledge(self.identity.signer, self.identity.chain, self.world.factory.masa_anchors, policy)


def patient(world: World, serial: str = "PX-1") -> Nonceless:
    device = world.device(serial)
    return Nonceless(world, device.identity, device.peer)


@pytest.mark.req("B-270", "B-285", "B-306")
def test_a_voucher_is_fetched_for_each_expected_device_and_kept_with_its_end(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        know_us(world)
        world.device("PX-1"), world.device("PX-2")
        await expect(world, "PX-1", "PX-2", "PX-3")
        lacking = await world.part.prefetch.lacking("Acme")
        assert lacking == ["PX-1", "PX-2", "PX-3"]
        rows = await world.part.prefetch.fetch("Acme", lacking, actor=ADMIN)
        assert [(row["serial"], row["outcome"], row["reason"]) for row in rows] == [
            ("PX-1", "fetched", ""), ("PX-2", "fetched", ""), ("PX-3", "failed", "masa-refused"),
        ]  # fmt: skip
        assert "was sold to you" in rows[2]["what_to_do"]
        # the other two causes, which a refusal for a device that knocks does not have
        assert "knows this registrar" in rows[2]["what_to_do"] and "idevid-issuer" in rows[2]["what_to_do"]
        kept = await world.part.prefetch.every()
        assert [(row["serial"], row["state"]) for row in kept] == [("PX-1", "ready"), ("PX-2", "ready")]
        assert kept[0]["expires_at"] == (NOW + timedelta(days=30)).isoformat(timespec="seconds")
        assert await world.part.prefetch.lacking("Acme") == ["PX-3"]
        audited = await world.audited("voucher-fetched-ahead")
        assert sorted((one["object"], one["outcome"], one["actor"]["identifier"]) for one in audited) == [
            ("PX-1", "done", "ada"), ("PX-2", "done", "ada"), ("PX-3", "refused", "ada"),
        ]  # fmt: skip
        world.clock.advance(31 * 86400)
        assert await world.part.prefetch.lacking("Acme") == ["PX-1", "PX-2", "PX-3"]
        assert {row["state"] for row in await world.part.prefetch.every()} == {"expired"}

    play(tmp_path, story, prefetch="masa-silent")


@pytest.mark.req("B-285", "T-11")
def test_a_masa_that_does_not_know_this_registrar_gives_nothing_ahead(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.device("PX-1")
        await expect(world, "PX-1")
        (row,) = await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        assert row["outcome"] == "failed" and row["reason"] == "masa-refused"
        assert await world.part.prefetch.every() == []

    play(tmp_path, story, prefetch="masa-silent")


def test_it_is_off_by_default_and_asks_nobody(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await refused(world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN), PrefetchNotPossible)
        await refused(world.part.prefetch.lacking("Acme"), PrefetchNotPossible)
        assert world.masa.calls == []

    play(tmp_path, story)


def test_a_device_whose_issuer_is_not_known_is_not_asked_for(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        know_us(world)
        # two anchors, no visit, nothing in the list: the issuer could be either
        root, ca = (one.certificate for one in (world.factory.device_root, world.factory.device_ca))
        await world.part.manufacturers.change(
            "Acme", actor=ADMIN, anchors_pem="".join(one.public_bytes(Encoding.PEM).decode() for one in (root, ca))
        )
        (row,) = await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        assert row["reason"] == "prefetch-not-possible" and "idevid-issuer" in row["what_to_do"]
        assert world.masa.calls == []
        await refused(world.part.prefetch.fetch("Nobody", ["PX-1"], actor=ADMIN), NotFound)
        await refused(
            world.part.prefetch.fetch("Acme", [f"S-{n}" for n in range(51)], actor=ADMIN), PrefetchNotPossible
        )

    play(tmp_path, story, prefetch="masa-silent")


@pytest.mark.req("B-235", "B-305")
@pytest.mark.parametrize(
    ("setting", "has_nonce", "is_silent", "status"),
    [
        ("masa-silent", True, True, 200),
        ("masa-silent", True, False, 200),
        ("masa-silent", False, True, 200),
        ("nonceless-requests", True, True, 503),
        ("nonceless-requests", False, True, 200),
        ("off", True, True, 503),
        ("off", False, True, 503),
    ],
)
def test_it_is_handed_out_only_where_setting_and_request_permit(
    tmp_path: Path, setting: str, has_nonce: bool, is_silent: bool, status: int
) -> None:
    async def fetch(world: World) -> None:
        know_us(world)
        world.device("PX-1")
        await expect(world, "PX-1")
        (row,) = await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        assert row["outcome"] == "fetched"
        ahead = world.masa.answers[-1].body
        world.close()
        later = await World.create(tmp_path, reopen=world, prefetch=setting, accept_nonceless=True)
        if is_silent:
            later.masa.answer = Offline()
        device = patient(later)
        nonce = "AAAAAAAAAAAAAAAAAAAAAA==" if has_nonce else None
        call = request_of(later, device.identity, "PX-1", nonce=nonce)
        reply = await later.handle(call, device.peer)
        assert reply.status == status, reply
        assert (reply.body == ahead) == (status == 200 and is_silent)
        later.close()

    play(tmp_path, fetch, prefetch="masa-silent")


@pytest.mark.req("B-338", "B-340")
def test_an_offline_site_takes_a_device_in_with_the_history_that_came_with_its_voucher(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        know_us(world)
        device = patient(world)
        await expect(world, "PX-1")
        await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        world.masa.answer = Offline()
        await device.bootstrap()
        row = await world.row()
        assert row["state"] == "enrolled" and row["history"]["source"] == "fetched ahead"
        steps = [(one["step"], one["code"]) for one in row["timeline"]]
        assert ("masa-failed", "masa-unreachable") in steps
        assert ("voucher-granted", "logged, fetched ahead") in steps
        (issued,) = await world.audited("voucher-issued")
        assert issued["fields"]["ahead"] is True and issued["fields"]["because"] == "masa-unreachable"
        assert [one["state"] for one in await world.part.prefetch.every()] == ["handed-out"]

    play(tmp_path, story, prefetch="masa-silent")


@pytest.mark.req("T-12", "B-339")
def test_a_history_that_was_bad_when_it_was_fetched_keeps_the_device_out_offline(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        know_us(world)
        device = patient(world)
        sold = world.factory.sold["PX-1"]
        entry = LogEntry(NOW, b"\x13" * 20, None, "logged")
        world.factory.sold["PX-1"] = replace(sold, log=replace(sold.log, events=(entry,)))
        await expect(world, "PX-1")
        await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        world.masa.answer = Offline()
        assert (await device.voucher()).status == 200
        await device.status()
        assert (await device.enroll()).status == 403
        assert (await world.row())["audit_verdict"] == "refused: foreign-nonceless"

    play(tmp_path, story, prefetch="masa-silent")


def test_a_device_that_asked_ahead_for_is_no_stranger_to_its_own_log_later(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        know_us(world)
        device = world.device()
        await expect(world, "PX-1")
        for _ in range(2):
            await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        await device.bootstrap()
        row = await world.row()
        assert row["audit_verdict"] == "accepted" and row["history"]["source"] == "masa"

    play(tmp_path, story, prefetch="masa-silent")


def test_a_voucher_for_another_domain_certificate_is_not_kept_and_not_handed_out(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        know_us(world)
        device = patient(world)
        await expect(world, "PX-1")
        good = (await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN))[0]
        assert good["outcome"] == "fetched"
        stolen = world.masa.answers[-1]
        world.device("PX-2")
        await expect(world, "PX-2")
        world.masa.answer = lambda call: stolen
        (bad,) = await world.part.prefetch.fetch("Acme", ["PX-2"], actor=ADMIN)
        assert bad["reason"] == "masa-answer-invalid"
        # a voucher with a nonce answers no request without one
        world.masa.answer = lambda call: None
        nonced = await device.voucher()
        world.masa.answer = lambda call: nonced
        (worse,) = await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        assert worse["reason"] == "masa-answer-invalid"

    play(tmp_path, story, prefetch="masa-silent")


@pytest.mark.req("B-211")
def test_it_answers_only_the_format_that_was_asked_for(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        know_us(world)
        device = patient(world)
        await expect(world, "PX-1")
        await world.part.prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        world.masa.answer = Offline()
        device.media_type = VOUCHER_JWS_JSON
        assert (await device.voucher()).status == 503
        device.media_type = VOUCHER_CMS_JSON
        assert (await device.voucher()).status == 200

    play(tmp_path, story, prefetch="masa-silent")


@pytest.mark.req("B-285", "E-103")
@pytest.mark.slow
def test_vouchers_that_pin_a_ca_which_was_rolled_over_are_fetched_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        prefetch, device = world.part.prefetch, patient(world)
        know_us(world)
        world.device("PX-2")
        await expect(world, "PX-1", "PX-2")
        await prefetch.fetch("Acme", ["PX-1"], actor=ADMIN)
        asked = world.masa.count("requestvoucher")
        assert await prefetch.fetch_again(actor=APPLIANCE) == []
        assert world.masa.count("requestvoucher") == asked, "what pins us is not fetched twice"

        _, root, _, own = campus_keys(NOW - timedelta(seconds=1))  # another key, under another CA
        prefetch._registrar.use_identity(KeySigner(own.key), own.certificate, own.chain[:1])
        assert [row["state"] for row in await prefetch.every()] == ["outdated"]
        assert await prefetch.lacking("Acme") == ["PX-1", "PX-2"]
        world.masa.answer = Offline()
        (row,) = await prefetch.fetch_again(actor=APPLIANCE)
        assert (row["serial"], row["reason"]) == ("PX-1", "masa-unreachable")
        world.registrar_certificate, world.tls_chain = own.certificate, (own.certificate, *own.chain[:1])
        device = Nonceless(world, device.identity, world.peer(device.identity))
        assert (await device.voucher()).status != 200, "a pin that leads nowhere is not handed out"

        world.masa.answer = lambda call: None
        policy = MasaPolicy(registrar_anchors=chains.TrustAnchors([root]), nonceless_lifetime=timedelta(days=7))
        factory = world.factory
        world.masa.masa = Masa(factory.masa_signer, factory.masa_chain, factory.device_anchors, policy)
        running = asyncio.create_task(prefetch.run())
        prefetch.look()
        async with asyncio.timeout(60):
            while len(await prefetch.every()) < 2:
                await asyncio.sleep(0.01)
        running.cancel()
        assert sorted(row["state"] for row in await prefetch.every()) == ["outdated", "ready"]
        assert await prefetch.lacking("Acme") == ["PX-2"]
        told = (await world.audited("voucher-fetched-ahead"))[-1]
        assert (told["outcome"], told["actor"]["kind"]) == ("done", "appliance")
        world.masa.answer = Offline()
        assert (await device.voucher()).status == 200, "the new one, though the old one lives longer"

    play(tmp_path, story, prefetch="masa-silent")
