"""Attacks on the pledge: a registrar that lies, relays and tricks; the real bootstrap over real TLS, a real MASA."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.clock import SystemClock
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.report import BootstrapReport
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from appliance.settings import ProxySettings
from brski import Registrar, paths, voucher, voucher_request
from brski.discovery import Offer
from brski.idevid import read_serial_number
from est.errors import Refusal
from est.exchange import Call, Reply
from lab.certificates import CMC_RA, Domain, Identity, common_name, make_intermediate, make_leaf, make_registrar
from tests.appliance.proxy.test_discover import Announcer, announcement, attempts
from tests.endtoend.attacks.rogue_registrar import RogueRegistrar
from tests.endtoend.attacks.site import Site
from tests.endtoend.attacks.test_registrar_attacks import trap
from tests.support import stretched

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("attacks")]
BORN = datetime.now(UTC) - timedelta(hours=1)
CAMPUS, MALLORY = Domain.create("Campus", now=BORN), Domain.create("Mallory", now=BORN)
QUICK = Timing(connect=2, voucher=5, call=5, spacing=0.2, round=0.3, first_pause=0.2)
EST = {"cacerts", "csrattrs", "simpleenroll"}


@dataclass(frozen=True)
class Box:
    """A device out of its box, with its state."""

    device: Identity
    home: Path
    state: ProxyState

    @property
    def serial(self) -> str:
        return read_serial_number(self.device.certificate)

    def settings(self, url: str = "", **more: object) -> ProxySettings:
        values: dict[str, object] = {
            "idevid_certificate": self.home / "idevid.pem", "idevid_key": self.home / "idevid.key.pem",
            "masa_anchors": self.home / "masa-anchors.pem", "registrar_url": url, "give_up_seconds": 30,
        }  # fmt: skip
        return ProxySettings.model_validate(values | more)

    def bootstrap(
        self, url: str, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, **more: object
    ) -> BootstrapReport:
        return asyncio.run(
            Bootstrap(self.settings(url, **more), self.state, SystemClock(), timing=QUICK, sleep=sleep).run()
        )


@pytest.fixture
def box(site: Site, tmp_path: Path) -> Box:
    device = site.acme.device()
    home = site.acme.folder / "devices" / read_serial_number(device.certificate)
    return Box(device, home, ProxyState.open(tmp_path / "state"))


def fail(
    box: Box,
    rogue: RogueRegistrar,
    *,
    times: int = 1,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    **settings: object,
) -> list[dict[str, Any]]:
    """Lets so many attempts fail at this registrar; the pledge's report of them, step by step."""
    events: list[dict[str, Any]] = []

    async def run() -> None:
        done = asyncio.Event()

        def listen(event: dict[str, Any]) -> None:
            events.append(event)
            if [one["step"] in ("attempt-failed", "enrolment-failed") for one in events].count(True) == times:
                done.set()

        chosen = box.settings(f"https://{rogue.address}", **settings)
        timing = replace(QUICK, first_pause=60 if times == 1 else 0.2)
        bootstrap = Bootstrap(chosen, box.state, SystemClock(), timing=timing, sleep=sleep, listener=listen)
        running = asyncio.create_task(bootstrap.run())
        await asyncio.wait_for(done.wait(), 30)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Refusal):
            await running

    asyncio.run(run())
    assert not box.state.configured and box.state.read("anchors.pem") is None
    return events


def codes(events: list[dict[str, Any]], step: str) -> list[str]:
    return [str(one["code"]) for one in events if one["step"] == step]


def refused(box: Box, rogue: RogueRegistrar, **settings: object) -> str:
    """One attempt at a registrar whose voucher must not do, and what the pledge does then; the reason it gives."""
    events = fail(box, rogue, **settings)
    assert rogue.paths() == ["requestvoucher", "voucher_status"], "nothing else is asked, least of all EST"
    assert len({one.connection for one in rogue.seen}) == 1
    assert json.loads(rogue.seen[1].call.body)["status"] is False
    (because,) = codes(events, "voucher-refused")
    return because


@pytest.mark.req("T-01", "B-323", "B-328")
def test_t01_an_old_voucher_for_the_same_device_is_refused_reported_and_the_next_registrar_tried(
    site: Site, box: Box
) -> None:
    kept: list[Reply] = []

    def replay(call: Call, proper: Callable[[], Reply]) -> Reply:
        if not kept:
            kept.append(proper())
            return Reply(503, "text/plain", body=b"come back later\n")
        return kept[0]

    with RogueRegistrar(MALLORY, site.acme, instead={"requestvoucher": replay}) as rogue:
        assert codes(fail(box, rogue, times=2), "voucher-refused") == ["voucher-for-other-request"]
        assert not EST & {*rogue.paths()}
        assert {json.loads(one.call.body)["status"] for one in rogue.of("voucher_status")} == {False}
        # beside an honest registrar he costs a moment only
        with RogueRegistrar(CAMPUS, site.acme) as honest:
            offers = [Offer("rogue", ("127.0.0.1",), rogue.port), Offer("honest", ("127.0.0.1",), honest.port)]
            assert race(box, offers) == honest.port


def bad_voucher(site: Site, box: Box, knob: str) -> str:
    """What the pledge says of a voucher that the MASA spoils so and the registrar relays unread."""
    with site.acme.broken(knob), RogueRegistrar(CAMPUS, site.acme) as rogue:
        because = refused(box, rogue)
        assert {one.status for one in rogue.replies} == {200}
    # the device is none the worse for it
    with RogueRegistrar(CAMPUS, site.acme) as honest:
        assert box.bootstrap(f"https://{honest.address}", give_up_seconds=30).outcome == "ok"
    return because


@pytest.mark.req("T-02", "B-322")
def test_t02_a_voucher_for_another_serial_number_of_the_same_masa_is_refused(site: Site, box: Box) -> None:
    assert bad_voucher(site, box, "wrong-serial") == "voucher-for-other-device"


@pytest.mark.req("T-03", "B-324")
def test_t03_a_voucher_for_this_serial_number_of_another_issuer_is_refused(site: Site, box: Box) -> None:
    assert bad_voucher(site, box, "wrong-issuer") == "voucher-for-other-device"


@pytest.mark.req("T-06", "B-327")
def test_t06_a_voucher_that_pins_another_ca_than_that_of_the_connection_opens_nothing(site: Site, box: Box) -> None:
    assert bad_voucher(site, box, "wrong-pin") == "domain-not-pinned"


@pytest.mark.req("T-18", "B-405")
def test_t18_a_voucher_without_signed_attributes_is_refused(site: Site, box: Box) -> None:
    assert bad_voucher(site, box, "no-signed-attributes") == "voucher-malformed"


@pytest.mark.req("T-19", "B-404")
def test_t19_a_voucher_with_two_signers_of_which_one_is_good_is_refused(site: Site, box: Box) -> None:
    assert bad_voucher(site, box, "two-signers") == "voucher-malformed"


@pytest.mark.req("T-20", "B-405")
def test_t20_a_voucher_whose_signed_content_type_is_another_is_refused(site: Site, box: Box) -> None:
    assert bad_voucher(site, box, "wrong-content-type") == "voucher-malformed"


@pytest.mark.req("T-21", "B-421")
def test_t21_a_voucher_that_calls_itself_a_request_is_refused(site: Site, box: Box) -> None:
    assert bad_voucher(site, box, "request-key") == "voucher-malformed"


@pytest.mark.req("T-22", "B-444")
@pytest.mark.parametrize("knob", ["jws-none", "jws-hs256", "jws-unprotected-alg"])
def test_t22_a_voucher_in_jws_whose_header_chooses_how_to_verify_is_refused(site: Site, box: Box, knob: str) -> None:
    with site.acme.broken(knob), RogueRegistrar(CAMPUS, site.acme) as rogue:
        assert refused(box, rogue, voucher_format="jws") == "voucher-malformed"
        assert rogue.replies[0].media_type.startswith(paths.VOUCHER_JWS_JSON)
    with RogueRegistrar(CAMPUS, site.acme) as honest:
        assert box.bootstrap(f"https://{honest.address}", give_up_seconds=30, voucher_format="jws").outcome == "ok"


@pytest.mark.req("B-304", "B-321", "B-323", "B-325", "B-328")
@pytest.mark.parametrize(
    ("knob", "because"),
    [
        ("foreign-signer", "voucher-signature-invalid"),
        ("tampered", "voucher-signature-invalid"),
        ("expired", "voucher-expired"),
        ("no-nonce", "voucher-nonceless"),
        ("no-pin", "pin-missing"),
    ],
)
def test_other_vouchers_that_must_not_do_are_refused(site: Site, box: Box, knob: str, because: str) -> None:
    assert bad_voucher(site, box, knob) == because


@pytest.mark.req("T-18")
@pytest.mark.interop
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_t18_openssl_takes_the_voucher_without_signed_attributes_that_we_refuse(
    site: Site, box: Box, tmp_path: Path
) -> None:
    with site.acme.broken("no-signed-attributes"), RogueRegistrar(CAMPUS, site.acme) as rogue:
        refused(box, rogue)
        file = tmp_path / "voucher.cms"
        file.write_bytes(rogue.replies[0].body)
    command: list[str | Path] = [
        "openssl",
        "cms",
        "-verify",
        "-binary",
        "-inform",
        "DER",
        "-in",
        file,
        "-purpose",
        "any",
        "-CAfile",
    ]
    done = subprocess.run(
        [*command, site.acme.folder / "manufacturer" / "masa-anchors.pem"], capture_output=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[voucher.KEY]["serial-number"] == box.serial


@pytest.mark.req("T-21", "B-421")
def test_t21_the_pledges_own_request_is_no_voucher(site: Site, box: Box) -> None:
    def echo(call: Call, _: Callable[[], Reply]) -> Reply:
        return Reply(200, call.media_type, body=call.body)

    with RogueRegistrar(CAMPUS, site.acme, instead={"requestvoucher": echo}) as rogue:
        assert refused(box, rogue) == "voucher-malformed"


@pytest.mark.req("T-07", "B-327")
@pytest.mark.parametrize("gap", ["missing", "forged"])
def test_t07_a_chain_with_a_missing_or_forged_intermediate_below_the_pin_is_refused(
    site: Site, box: Box, gap: str
) -> None:
    # one registrar key under two certificates: the one for the MASA comes from the top CA, which is what gets pinned;
    # the one for TLS comes from a CA below it
    top = Domain.create("Deep", now=BORN).root
    sub = make_intermediate(top, "Deep Devices CA", now=BORN)
    forged = make_intermediate(MALLORY.root, "Deep Devices CA", now=BORN)
    for_tls = make_registrar(sub, now=BORN)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, CMC_RA]
    for_masa = make_leaf(
        top, common_name("registrar"), now=BORN, key=for_tls.key, extensions=[(x509.ExtendedKeyUsage(usages), False)]
    )
    registrar = Registrar(for_masa.signer, for_masa.certificate, (top.certificate,))
    shown = {"missing": [], "forged": [forged.certificate], "whole": [sub.certificate]}

    def rogue_showing(kind: str) -> RogueRegistrar:
        return RogueRegistrar(
            Domain(top, sub, for_tls), site.acme, identity=for_tls, registrar=registrar,
            chain=[for_tls.certificate, *shown[kind]],
        )  # fmt: skip

    with rogue_showing(gap) as rogue:
        assert refused(box, rogue) == "domain-not-pinned"
        found, _ = voucher.unseal(rogue.replies[0].body, paths.VOUCHER_CMS_JSON)
        assert found.pin() == top.certificate
    with rogue_showing("whole") as honest:
        box.bootstrap(f"https://{honest.address}", give_up_seconds=30)
        assert "simpleenroll" in honest.paths()


@pytest.mark.req("T-16", "B-230", "B-231")
@pytest.mark.parametrize(
    "header", ["86400", "-5", "Wed, 21 Oct 2099 07:28:00 GMT", "soon", "", "0", "1e9", "99999999999999999999"]
)
def test_t16_the_pledge_waits_at_most_a_minute_whatever_it_is_told(site: Site, box: Box, header: str) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    def wait(call: Call, proper: Callable[[], Reply]) -> Reply:
        return Reply(202, headers={"retry-after": header}) if len(rogue.of("requestvoucher")) < 3 else proper()

    with RogueRegistrar(CAMPUS, site.acme, instead={"requestvoucher": wait}) as rogue:
        assert box.bootstrap(f"https://{rogue.address}", sleep=sleep, give_up_seconds=30).outcome == "ok"
        assert len({one.call.body for one in rogue.of("requestvoucher")}) == 1
    assert len(slept) == 2 and all(1 <= one <= 60 for one in slept), slept
    assert site.acme.asked(box.serial) == 1


@pytest.mark.req("T-17", "B-233", "B-135")
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_t17_no_redirect_leads_the_pledge_to_another_origin(site: Site, box: Box, scheme: str) -> None:
    with trap() as hits, RogueRegistrar(CAMPUS, site.acme) as second:
        to_trap = Reply(307, headers={"location": f"{scheme}://127.0.0.1:{hits.port}{paths.REQUEST_VOUCHER}"})
        to_second = Reply(307, headers={"location": f"{scheme}://{second.address}{paths.REQUEST_VOUCHER}"})
        for away in (to_trap, to_second):
            with RogueRegistrar(MALLORY, site.acme, instead={"requestvoucher": lambda *_, away=away: away}) as rogue:
                assert codes(fail(box, rogue), "attempt-failed") == ["redirect-refused"]
                assert {*rogue.paths()} <= {"requestvoucher", "voucher_status"}
        assert second.seen == []
        hits.look()


@pytest.mark.req("T-31", "B-111")
def test_t31_two_registrars_at_once_get_two_nonces_and_the_second_voucher_is_ignored(site: Site, box: Box) -> None:
    asked, over = threading.Event(), threading.Event()

    async def late(call: Call, proper: Callable[[], Reply]) -> Reply:
        """When the race is over."""
        asked.set()
        await asyncio.to_thread(over.wait, 60)
        return proper()

    async def behind(call: Call, proper: Callable[[], Reply]) -> Reply:
        """When the other was asked as well: who wins sooner is asked alone."""
        await asyncio.to_thread(asked.wait, 60)
        return proper()

    with (
        RogueRegistrar(CAMPUS, site.acme, instead={"requestvoucher": late}) as first,
        RogueRegistrar(CAMPUS, site.acme, instead={"requestvoucher": behind}) as second,
    ):
        offers = [Offer("first", ("127.0.0.1",), first.port), Offer("second", ("127.0.0.1",), second.port)]
        assert race(box, offers) == second.port
        over.set()
        deadline = time.monotonic() + 60
        while len(site.acme.history(box.serial)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        bodies = [one.of("requestvoucher")[0].call.body for one in (first, second)]
        nonces = {voucher_request.unseal(body, paths.VOUCHER_CMS_JSON)[0].nonce for body in bodies}
        assert len(nonces) == 2
        # the late voucher stands in the MASA's log, and on nothing the pledge did
        assert {one["nonce"] for one in site.acme.history(box.serial)} == nonces
        assert first.paths() == ["requestvoucher"]
        assert second.paths() == ["requestvoucher", "voucher_status"]


@pytest.mark.req("T-32", "B-138")
def test_t32_another_certificate_of_the_same_ca_on_a_later_connection_is_refused(site: Site, box: Box) -> None:
    renewed = make_registrar(CAMPUS.ca, now=BORN)

    def wait_and_close(call: Call, proper: Callable[[], Reply]) -> bytes:
        rogue.rolled_over = renewed
        return b"HTTP/1.1 202 Wait\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    async def sleep(_: float) -> None:
        """Nobody waits."""

    with RogueRegistrar(CAMPUS, site.acme, instead={"simpleenroll": wait_and_close}) as rogue:
        events = fail(box, rogue, sleep=sleep)
        steps = [(one["step"], one["code"]) for one in events]
        assert ("voucher-verified", "ok") in steps
        assert "server-untrusted" in [code for _, code in steps], steps
        # one connection was trusted; on the other nothing was said
        assert rogue.paths() == ["requestvoucher", "voucher_status", "cacerts", "csrattrs", "simpleenroll"]
        assert {one.connection for one in rogue.seen} == {1}
        assert not box.state.configured


@pytest.mark.slow
@pytest.mark.req("T-33", "B-110", "B-117")
def test_t33_a_spoofed_announcement_with_better_priority_costs_less_than_five_seconds(
    own_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = own_site("registrar.announce=true", "registrar.announce_interfaces=127.0.0.1")
    device = site.acme.device()
    home = site.acme.folder / "devices" / read_serial_number(device.certificate)
    box = Box(device, home, ProxyState.open(tmp_path / "state"))

    async def story() -> tuple[BootstrapReport, int]:
        touched = 0

        async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal touched
            touched += 1
            await reader.read()
            writer.close()

        tarpit = await asyncio.start_server(silence, "127.0.0.1", 0)
        spoof = announcement("aaa-spoof", tarpit.sockets[0].getsockname()[1], priority=0)
        async with Announcer(spoof):
            await asyncio.sleep(0.5)
            settings = box.settings(give_up_seconds=90, interfaces=("127.0.0.1",))
            report = await Bootstrap(settings, box.state, SystemClock()).run()
        tarpit.close()
        return report, touched

    report, touched = asyncio.run(story())
    assert report.outcome == "ok" and report.steps[1].facts["how"] == "mdns"
    moments = {one.name: one.at for one in reversed(report.steps)}  # the first of each name
    assert (moments["voucher-requested"] - moments["registrars-found"]).total_seconds() < stretched(5 + 2)
    assert site.shown(box.serial)["state"] == "confirmed"
    assert touched <= 2


def race(box: Box, offers: list[Offer]) -> int | None:
    """The port of the registrar that the pledge imprints on among these."""

    async def run() -> int | None:
        from tests.appliance.proxy.campus import World

        world = World(None, None, box.device, box.home, box.settings())  # type: ignore[arg-type]
        imprint = await attempts(world, offers, Timing(connect=2, voucher=5, call=5, spacing=0.1))
        if imprint is None:
            return None
        await imprint.line.connection.close()
        return imprint.target.port

    return asyncio.run(run())
