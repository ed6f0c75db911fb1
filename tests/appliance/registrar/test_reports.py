"""voucher_status, the judged history, enrollstatus."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brski.audit_log import LogEntry
from brski.paths import ENROLL_STATUS, VOUCHER_STATUS
from est.exchange import Call, Reply
from lab.factory import Factory
from tests.appliance.registrar.world import ADMIN, World, enroll_call, play
from tests.support import NOW


def report(path: str, body: bytes) -> Call:
    return Call("POST", path, "application/json", {}, body)


@pytest.mark.req("B-203", "B-338", "B-371")
def test_a_yes_to_the_voucher_has_the_history_fetched_and_judged(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        assert (await device.status()).status == 200
        row = await world.row()
        assert (row["state"], row["audit_verdict"]) == ("audit-passed", "accepted")
        assert [name for name, _ in world.masa.calls] == ["requestvoucher", "requestauditlog"]
        (judged,) = await world.audited("audit-log-appraised")
        assert judged["outcome"] == "done"

    play(tmp_path, story)


@pytest.mark.req("T-05", "B-339", "B-340", "T-12")
@pytest.mark.parametrize(
    ("nonce", "concern"), [("Zm9yZWlnbi1ub25jZQ==", "foreign-domain"), (None, "foreign-nonceless")]
)
def test_a_voucher_of_another_domain_in_the_history_shuts_est(tmp_path: Path, nonce: str | None, concern: str) -> None:
    async def story(world: World) -> None:
        device = world.device()
        sold = world.factory.sold["PX-1"]
        entry = LogEntry(NOW, b"\x13" * 20, nonce, "logged")
        world.factory.sold["PX-1"] = replace(sold, log=replace(sold.log, events=(entry,)))
        await device.voucher()
        assert (await device.status()).status == 200
        row = await world.row()
        assert row["state"] == "refused"
        assert concern in row["audit_verdict"]
        assert (await device.enroll()).status == 403
        (proxy,) = await world.part.inventory.proxies()
        assert proxy["state"] == "revoked"
        assert (await device.voucher()).status == 403
        # a human looks at the history and takes the device with it
        await world.part.inventory.override("PX-1", actor=ADMIN, reason="bought second-hand")
        await device.bootstrap()
        assert (await world.row())["audit_verdict"] == f"accepted: {concern}"

    play(tmp_path, story)


@pytest.mark.req("B-342")
def test_a_site_may_accept_foreign_domains_in_writing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        sold = world.factory.sold["PX-1"]
        entry = LogEntry(NOW, b"\x13" * 20, "Zm9yZWlnbi1ub25jZQ==", "logged")
        world.factory.sold["PX-1"] = replace(sold, log=replace(sold.log, events=(entry,)))
        await device.bootstrap()
        assert (await world.row())["audit_verdict"] == "accepted: foreign-domain"

    play(tmp_path, story, audit_refuse=("foreign-nonceless",))


@pytest.mark.req("T-26", "B-355", "B-371")
def test_a_no_to_the_voucher_shuts_est_on_the_same_connection(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        call = device.request()
        await world.handle(call, device.peer)
        assert (await device.status(ok=False)).status == 200
        assert (await device.enroll()).status == 403
        # nor does a later yes, nor the same request, bring the old voucher back
        assert (await device.status()).status == 200
        assert (await device.enroll()).status == 403
        assert world.masa.count("requestauditlog") == 0
        assert (await world.handle(call, device.peer)).status == 200
        assert world.masa.count("requestvoucher") == 2

    play(tmp_path, story)


@pytest.mark.req("T-26", "B-355")
def test_a_no_after_a_yes_shuts_est_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        await device.status(ok=False)
        assert (await device.enroll()).status == 403

    play(tmp_path, story)


@pytest.mark.req("B-340")
def test_a_refusal_reaches_a_connection_that_is_open_already(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        await device.status()
        await world.part.inventory.refuse("PX-1", actor=ADMIN)
        assert (await device.enroll()).status == 403

    play(tmp_path, story)


@pytest.mark.req("T-27", "B-359")
def test_a_report_without_a_voucher_is_a_log_entry_and_nothing_more(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        assert (await device.status()).status == 200
        assert await world.part.inventory.pledges() == []
        (told,) = await world.audited("voucher-accepted")
        assert (told["outcome"], told["reason"]) == ("refused", "out-of-order")
        assert world.masa.calls == []

    play(tmp_path, story)


@pytest.mark.req("B-359")
def test_a_report_counts_for_the_tls_identity_and_not_for_a_serial_in_the_body(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        first, second = world.device("PX-1"), world.device("PX-2")
        await first.voucher()
        await second.voucher()
        body = json.dumps({"version": 1, "status": True, "serial-number": "PX-1"}).encode()
        assert (await world.handle(report(VOUCHER_STATUS, body), second.peer)).status == 200
        assert (await world.row("PX-1"))["state"] == "voucher-issued"
        assert (await world.row("PX-2"))["state"] == "audit-passed"

    play(tmp_path, story)


@pytest.mark.req("B-354", "B-353")
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"version":1,"status":"true"}', 400),
        (b'{"version":1,"status":1}', 400),
        (b'{"version":1}', 400),
        (b'{"version":1,"status":true,"status":true}', 400),
        (b'{"version":2,"status":true,"mood":"fine"}', 200),
    ],
)
def test_only_a_json_true_is_a_yes_and_later_versions_are_read(tmp_path: Path, body: bytes, status: int) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        assert (await world.handle(report(VOUCHER_STATUS, body), device.peer)).status == status
        assert (await device.enroll()).status == (200 if status == 200 else 403)

    play(tmp_path, story)


@pytest.mark.req("B-338")
def test_a_silent_masa_shuts_est_with_503_until_it_speaks(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        world.masa.answer = lambda call: Reply(500) if call.path.endswith("requestauditlog") else None
        assert (await device.status()).status == 200
        assert (await world.row())["state"] == "voucher-accepted"
        reply = await device.enroll()
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert device.world.masa.count("requestauditlog") == 2
        world.masa.answer = lambda call: None
        assert (await device.enroll()).status == 200

    play(tmp_path, story)


@pytest.mark.req("B-338")
def test_the_history_of_a_pledge_that_never_reports_is_read_too_and_opens_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        assert await world.part.history.review_silent() == 0
        world.clock.advance(61)
        assert await world.part.history.review_silent() == 1
        row = await world.row()
        assert (row["state"], row["audit_verdict"]) == ("voucher-issued", "accepted")
        assert (await device.enroll()).status == 403
        assert await world.part.history.review_silent() == 0

    play(tmp_path, story)


@pytest.mark.req("T-29")
def test_a_log_offered_at_another_host_is_not_fetched_and_one_at_the_same_is(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.voucher()
        log = world.masa.masa.audit_log
        elsewhere = Reply(201, headers={"location": "https://elsewhere.example/log"})
        world.masa.answer = lambda call: elsewhere if call.path.endswith("requestauditlog") else None
        await device.status()
        assert [to.base for _, to in world.masa.calls] == ["https://masa.acme.example:9443"] * 2
        assert (await world.row())["state"] == "voucher-accepted"
        kept: list[Call] = []

        def answer(call: Call) -> Reply | None:
            if call.path.endswith("requestauditlog"):
                kept.append(call)
                return Reply(201, headers={"location": "/logs/7f3a"})
            if call.path == "/logs/7f3a":
                return log(kept[-1], world.factory, now=world.clock.now())  # type: ignore[no-any-return]
            return None

        world.masa.answer = answer
        assert (await device.enroll()).status == 200

    play(tmp_path, story)


@pytest.mark.req("B-205", "B-356", "B-358")
def test_success_counts_with_the_issued_certificate_only(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        certificate = await device.bootstrap()
        yes = device.pledge.enroll_status(True)
        assert (await world.handle(yes, device.peer)).status == 200
        assert (await world.row())["state"] == "enrolled"
        assert (await world.handle(yes, device.with_ldevid(certificate))).status == 200
        assert (await world.row())["state"] == "confirmed"
        reports = await world.audited("enrolment-reported")
        assert [one["fields"]["matched"] for one in reports] == [False, True]

    play(tmp_path, story)


@pytest.mark.req("B-357")
def test_a_failed_enrolment_may_be_tried_again_on_the_same_connection(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.bootstrap()
        other = world.device("PX-2").csr()
        assert (await device.enroll(other)).status == 403
        no = device.pledge.enroll_status(False, "cannot read it")
        assert (await world.handle(no, device.peer)).status == 200
        assert (await world.row())["state"] == "audit-passed"
        assert (await device.enroll(other)).status == 200
        # the certificate that failed is not left over
        (revoked,) = await world.audited("credential-revoked")
        assert revoked["reason"] == "superseded"

    play(tmp_path, story)


def test_an_enrolment_report_of_a_stranger_changes_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        device = world.device()
        await device.bootstrap()
        stranger = Factory.create("Other", now=NOW).make_device("PX-1", now=NOW)
        reply = await world.handle(report(ENROLL_STATUS, b'{"version":1,"status":false}'), world.peer(stranger))
        assert reply.status == 403
        assert (await world.row())["state"] == "enrolled"
        nobody = await world.handle(report(ENROLL_STATUS, b'{"version":1,"status":false}'), world.peer())
        assert nobody.status == 401
        assert (await world.handle(enroll_call(device.csr()), world.peer(stranger))).status == 401

    play(tmp_path, story)
