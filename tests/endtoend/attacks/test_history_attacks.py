"""What happened to a device before it came to us, and MASAs that fail, lie or mumble; over TLS, against processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from brski import Pledge
from lab.certificates import Domain
from tests.endtoend.attacks.rogue_registrar import RogueRegistrar
from tests.endtoend.attacks.site import Line, Site, reason, registrar_call
from tests.endtoend.attacks.test_registrar_attacks import trap
from tests.support import stretched

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("attacks")]
BORN = datetime.now(UTC) - timedelta(hours=1)
MALLORY, FORMER = Domain.create("Mallory", now=BORN), Domain.create("Former owner", now=BORN)


def concerns(site: Site, serial: str) -> str:
    """All that the audit log of the appliance says about a refused history."""
    return json.dumps([*site.audited("history-refused", serial), site.shown(serial)])


@pytest.mark.req("T-05", "B-339", "B-340")
def test_t05_a_device_that_a_man_in_the_middle_took_first_gets_no_certificate(site: Site) -> None:
    maker, device = site.acme, site.acme.device()
    # Mallory ends the pledge's TLS and asks the MASA himself: by design the pledge is his
    with RogueRegistrar(MALLORY, maker) as rogue:
        line = Line(rogue.address, device)
        pledge = Pledge(device.signer, device.chain, maker.factory.masa_anchors)
        sent = pledge.voucher_request(line.server, nonce=bytes(range(16)), now=datetime.now(UTC))
        taken = pledge.accept_voucher(line.send(sent), sent, MALLORY.tls_chain, now=datetime.now(UTC))
        assert taken.pin() == MALLORY.ca.certificate
        line.close()
    # the true registrar sees a domainID that is not its own
    knock = site.knock(device)
    assert knock.voucher().status == 200
    assert knock.status().status == 200
    refused = knock.enroll()
    assert (refused.status, reason(refused)) == (403, "enrollment-not-open")
    assert len(maker.history(knock.serial)) == 2
    assert "foreign-domain" in concerns(site, knock.serial)
    assert knock.enroll().status == 403  # also on the connection that stays open
    assert not site.audited("ldevid-issued", knock.serial)


@pytest.mark.req("T-12", "B-334", "B-339")
def test_t12_a_nonceless_voucher_kept_by_the_former_owner_shows_after_the_resale(site: Site) -> None:
    known = site.campus.folder / "former-owner.pem"
    known.write_bytes(FORMER.root.chain_pem)
    maker = site.makers.get("resold") or site.add_maker("resold", "--registrars", known)
    device = maker.device()
    line = maker.line()
    kept = line.send(registrar_call(FORMER, device, None))
    line.close()
    assert kept.status == 200
    knock = site.knock(device, maker)
    assert knock.voucher().status == 200
    assert knock.status().status == 200
    refused = knock.enroll()
    assert (refused.status, reason(refused)) == (403, "enrollment-not-open")
    assert [one["nonce"] is None for one in maker.history(knock.serial)] == [True, False]
    assert "foreign-nonceless" in concerns(site, knock.serial)


@pytest.mark.req("T-28", "B-332", "B-341")
@pytest.mark.parametrize("knobs", [("string-numbers",), ("newer-log",), ("newer-log", "string-numbers")])
def test_t28_logs_with_string_numbers_missing_counters_and_later_versions_are_read(
    site: Site, knobs: tuple[str, ...]
) -> None:
    with site.acme.broken(*knobs):
        assert site.knock(site.acme.device()).bootstrap()


@pytest.mark.req("T-29")
@pytest.mark.parametrize("where", ["127.0.0.1:{port}", "localhost:{port}", "127.0.0.1:{masa}@127.0.0.1:{port}"])
def test_t29_a_log_offered_at_another_host_is_not_fetched(site: Site, where: str) -> None:
    with trap() as hits:
        elsewhere = where.format(port=hits.port, masa=site.acme.port)
        with site.acme.broken(f"log-elsewhere={elsewhere}"):
            knock = site.knock(site.acme.device())
            assert knock.voucher().status == 200
            assert knock.status().status == 200
            refused = knock.enroll()
            assert refused.status in (403, 503), refused
            hits.look()
            assert hits.count == 0
    # once the MASA has come to its senses the device gets in, without a new voucher
    assert knock.enroll().status == 200
    assert site.acme.asked(knock.serial) == 1


@pytest.mark.req("T-29", "B-337")
def test_t29_a_log_offered_at_the_same_host_is_fetched(site: Site) -> None:
    maker = site.makers.get("shy") or site.add_maker("shy", "--log-by-url")
    knock = site.knock(maker.device(), maker)
    assert knock.bootstrap()
    operations = [one["path"].partition("/brski/")[2] for one in maker.requests()]
    assert operations == ["requestvoucher", "requestauditlog", "requestauditlog/log"]


@pytest.mark.req("T-30", "B-146", "B-228", "B-229")
@pytest.mark.parametrize(
    ("knob", "status", "slug"),
    [
        ("http-500", 503, "masa-unavailable"),
        ("http-503", 503, "masa-unavailable"),
        ("http-401", 502, "masa-authentication-required"),
        ("html", 502, "masa-answer-invalid"),
        ("slow=3", 504, "masa-timed-out"),
        ("redirect-loop", 502, "masa-answer-invalid"),
        ("huge-body=1", 502, "masa-answer-invalid"),
        ("no-signed-attributes", 502, "voucher-malformed"),
        ("two-signers", 502, "voucher-malformed"),
        ("wrong-content-type", 502, "voucher-malformed"),
        ("request-key", 502, "voucher-malformed"),
        ("no-pin", 502, "pin-missing"),
    ],
)
def test_t30_a_masa_that_fails_is_a_5xx_with_a_reason_and_a_retry_may_succeed(
    site: Site, knob: str, status: int, slug: str
) -> None:
    knock = site.knock(site.acme.device())
    asked = knock.request()
    with site.acme.broken(knob):
        begun = time.monotonic()
        refused = knock.voucher(asked)
        assert (refused.status, reason(refused)) == (status, slug)
        assert time.monotonic() - begun < stretched(8)
        if status == 503:
            assert int(refused.headers["retry-after"]) >= 1
        # what the MASA said itself is for the log and not for the pledge
        assert b"who are you" not in refused.body and b"factory" not in refused.body
    # the administrator finds it: in the log, in the device's record
    assert site.log_says(f"voucher-refused reason={slug}")
    assert slug in json.dumps(site.shown(knock.serial)["timeline"])
    if slug == "masa-authentication-required":
        assert site.log_says("an administrator has to act")
    assert knock.enroll().status == 403
    # the very same request again is enough
    assert knock.voucher(asked).status == 200
    assert knock.status().status == 200
    assert knock.enroll().status == 200


@pytest.mark.req("T-30", "B-228")
def test_t30_a_masa_that_is_down_is_503_until_it_is_back(own_site: Callable[..., Site]) -> None:
    site = own_site()
    maker, knock = site.acme, site.knock(site.acme.device())
    asked = knock.request()
    assert maker.process is not None
    maker.process.stop()
    refused = knock.voucher(asked)
    assert (refused.status, reason(refused)) == (503, "masa-unreachable")
    assert int(refused.headers["retry-after"]) >= 1
    words: list[str | Path] = ["-m", "lab", "masa", "--dir", maker.folder, "--port", str(maker.port)]
    site.campus.cast.start("masa-again", [sys.executable, *words]).wait_for("ready", 120)
    assert knock.bootstrap(asked)
