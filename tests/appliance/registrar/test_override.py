"""A device's history against the site's rules, and a human's override of what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import Conflict, RequestMalformed
from appliance.registrar.history import site_policy
from appliance.settings import RegistrarSettings, SettingsInvalid, load_settings
from brski.audit_log import RULES, AuditLog, AuditPolicy, Concern, LogEntry, Truncation
from tests.appliance.registrar.test_inventory import refused
from tests.appliance.registrar.world import ADMIN, World, play
from tests.support import NOW

FOREIGN = b"\x13" * 20
OTHER = b"\x14" * 20
KEY = "foreign-domain:ExMTExMTExMTExMTExMTExMTExM="


def give_history(world: World, *events: LogEntry, truncation: Truncation = Truncation(), serial: str = "PX-1") -> None:
    sold = world.factory.sold[serial]
    log = AuditLog((*sold.log.events, *events), truncation)
    world.factory.sold[serial] = replace(sold, log=log)


def foreign(domain: bytes = FOREIGN, nonce: str | None = "Zm9yZWlnbi1ub25jZQ==") -> LogEntry:
    return LogEntry(NOW, domain, nonce, "logged")


@pytest.mark.req("B-340", "B-342", "T-05")
def test_an_override_lets_in_what_was_found_and_nothing_that_comes_later(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        inventory, device = world.part.inventory, world.device()
        give_history(world, foreign())
        await device.voucher()
        await device.status()
        row = await world.row()
        (finding,) = row["history"]["findings"]
        assert finding == {"rule": "foreign-domain", "refuses": True, "detail": finding["detail"], "key": KEY}
        assert row["what_to_do"].endswith("appliance pledges override PX-1 --reason TEXT")
        # a plain yes is not enough, and the refusal says what is
        await refused(inventory.admit("PX-1", actor=ADMIN), Conflict)
        await refused(inventory.override("PX-1", actor=ADMIN, reason=" "), RequestMalformed)
        await inventory.override("PX-1", actor=ADMIN, reason="bought second-hand")
        (audited,) = await world.audited("history-overridden")
        assert audited["actor"]["identifier"] == "ada" and audited["reason"] == "bought second-hand"
        assert audited["fields"]["keys"] == [KEY]
        await device.bootstrap()
        row = await world.row()
        assert row["audit_verdict"] == "accepted: foreign-domain" and row["history_override"]["by"] == "ada"
        assert row["history"]["findings"][0]["refuses"] is False
        # somebody else takes the device afterwards: the old yes does not cover that
        give_history(world, foreign(OTHER))
        await device.voucher()
        await device.status()
        row = await world.row()
        assert row["state"] == "refused"
        assert [one["key"][:16] for one in row["history"]["findings"] if one["refuses"]] == ["foreign-domain:F"]
        await inventory.override("PX-1", actor=ADMIN, reason="that too")
        assert len((await world.row())["history_override"]["keys"]) == 2

    play(tmp_path, story)


@pytest.mark.req("B-340")
def test_an_override_that_is_withdrawn_ends_proxy_and_certificates_and_is_audited(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        inventory, device = world.part.inventory, world.device()
        give_history(world, foreign())
        await device.voucher()
        await device.status()
        await refused(inventory.withdraw("PX-1", actor=ADMIN), Conflict)
        await inventory.override("PX-1", actor=ADMIN, reason="bought second-hand")
        certificate = await device.bootstrap()
        assert await world.part.ldevids.find(device.with_ldevid(certificate)) is not None
        await inventory.withdraw("PX-1", actor=ADMIN, reason="it was stolen")
        row = await world.row()
        assert row["state"] == "refused" and row["history_override"] == {}
        assert row["history"]["findings"][0]["refuses"] is True
        (audited,) = await world.audited("history-override-withdrawn")
        assert audited["reason"] == "it was stolen" and audited["fields"]["keys"] == [KEY]
        proxies = await inventory.proxies()
        assert {one["state"] for one in proxies} == {"revoked"}
        assert (await device.enroll()).status == 403
        assert (await device.voucher()).status == 403
        (knock,) = await world.part.knocks.every()
        assert knock["what_to_do"].endswith("appliance pledges override PX-1 --reason TEXT")
        # and it can be given again; the identity that ended does not come back, nor does its key
        device.key = ec.generate_private_key(ec.SECP256R1())
        await inventory.override("PX-1", actor=ADMIN, reason="found again")
        await device.bootstrap()

    play(tmp_path, story)


def test_a_device_that_a_human_refused_is_admitted_without_an_override(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.device().voucher()
        await world.part.inventory.refuse("PX-1", actor=ADMIN)
        await refused(world.part.inventory.override("PX-1", actor=ADMIN, reason="x"), Conflict)
        await world.part.inventory.admit("PX-1", actor=ADMIN)

    play(tmp_path, story)


@pytest.mark.req("B-339", "B-341")
@pytest.mark.parametrize(
    ("rule", "log"),
    [
        ("foreign-domain", AuditLog((foreign(),))),
        ("foreign-nonceless", AuditLog((foreign(nonce=None),))),
        ("entries-removed", AuditLog((), Truncation(arbitrary=2))),
        ("newer-version", AuditLog((), version=2)),
    ],
)
def test_a_rule_refuses_where_it_is_named_and_reports_where_it_is_not(tmp_path: Path, rule: str, log: AuditLog) -> None:
    async def story(world: World) -> None:
        statuses = {}
        for serial in ("PX-1", "PX-2"):
            device = world.device(serial)
            world.factory.sold[serial] = replace(world.factory.sold[serial], log=log)
            await device.voucher()
            await device.status()
            statuses[serial] = (await device.enroll()).status
            world.close()
            world = await World.create(tmp_path, reopen=world, audit_refuse=())
        assert statuses == {"PX-1": 403, "PX-2": 200}
        for serial, verdict in (("PX-1", "refused"), ("PX-2", "accepted")):
            assert (await world.row(serial))["audit_verdict"] == f"{verdict}: {rule}"

    play(tmp_path, story, audit_refuse=(rule,))


@pytest.mark.req("B-339")
@pytest.mark.parametrize("whose", ["site", "maker"])
def test_a_known_domain_in_the_history_is_in_order(tmp_path: Path, whose: str) -> None:
    async def story(world: World) -> None:
        device = world.device()
        give_history(world, foreign())
        await device.bootstrap()
        assert (await world.row())["audit_verdict"] == "accepted"

    domain = KEY.partition(":")[2]
    if whose == "site":
        play(tmp_path, story, audit_known_domains=(domain,))
    else:
        play(tmp_path, story, options={"known_domains": [domain]})


def test_the_default_rules_are_those_of_the_library_and_a_wrong_name_stops_the_start(tmp_path: Path) -> None:
    assert site_policy(RegistrarSettings()) == AuditPolicy()
    chosen = load_settings(tmp_path, ["registrar.audit_refuse=foreign-domain, newer-version"]).settings.registrar
    assert site_policy(chosen).refuse == {Concern.FOREIGN_DOMAIN, Concern.NEWER_VERSION}
    for wrong in ("registrar.audit_refuse=everything", "registrar.audit_known_domains=??"):
        with pytest.raises(SettingsInvalid):
            load_settings(tmp_path, [wrong])
    assert set(RULES) == set(Concern)
