"""From nothing to an LDevID by BRSKI, over real TLS; and every way in which it must not end with one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import SystemClock
from appliance.errors import KeyFileExposed, KeyFileMissing
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.connection import ALLOWED, Connection, Trust
from appliance.proxy.errors import BootstrapGaveUp, BootstrapNotConfigured
from appliance.proxy.report import BootstrapReport
from appliance.proxy.rounds import Hunt
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from appliance.proxy.voucher_phase import Imprint
from appliance.settings import ProxySettings
from brski import Masa, Voucher, leaves, sealed, telemetry, voucher, voucher_request
from brski.discovery import Offer
from brski.paths import VOUCHER_CMS_JSON, VOUCHER_JWS_JSON
from est.exchange import Call, Reply
from lab.factory import Factory
from tests.appliance.proxy.campus import (
    BORN,
    CLOSE,
    PROXY_ID,
    Campus,
    World,
    asked,
    make_world,
    other_domain,
    write_reply,
)

QUICK = Timing(connect=30, voucher=30, call=30, spacing=0.2, round=0.3, first_pause=0.1)
Scenario = Callable[[Campus], Awaitable[None]]
NOW = datetime.now(UTC)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> ProxyState:
    return ProxyState.open(tmp_path / "state")


async def bootstrap(
    state: ProxyState, settings: ProxySettings, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> BootstrapReport:
    return await Bootstrap(settings, state, SystemClock(), timing=QUICK, sleep=sleep).run()


class Once(Hunt):
    """The time is up when the first attempt has failed, however long that took."""

    async def next(self) -> tuple[Imprint, Offer]:
        if self.last is not None:
            raise TimeoutError
        return await super().next()

    def _collect(self, done: set[asyncio.Task[Imprint]]) -> list[tuple[Imprint, Offer]]:
        winners = super()._collect(done)
        if self.last is not None:
            raise TimeoutError
        return winners


async def bootstrap_once(state: ProxyState, settings: ProxySettings) -> BootstrapReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.proxy.bootstrap.Hunt", Once)
        return await bootstrap(state, settings)


def with_campus(world: World, scenario: Scenario) -> None:
    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            await scenario(campus)

    asyncio.run(run())


def report_of(state: ProxyState) -> dict[str, object]:
    body = state.read("bootstrap.json")
    assert body is not None
    return json.loads(body)


def statuses(campus: Campus, name: str) -> list[bool]:
    return [json.loads(one.call.body)["status"] for one in campus.of(name)]


# -- the way it should go ------------------------------------------------------------------------------------------


@pytest.mark.req(
    "B-137", "B-206", "B-207", "B-208", "B-221", "B-329", "B-351", "B-356", "B-372", "E-220", "E-221", "E-222", "A-80"
)
def test_a_device_out_of_its_box_ends_with_an_ldevid(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        events: list[dict[str, object]] = []
        settings = world.with_settings(registrar_url=campus.url)
        report = await Bootstrap(settings, state, SystemClock(), timing=QUICK, listener=events.append).run()
        assert report.outcome == "ok"
        assert campus.paths() == [
            "requestvoucher", "voucher_status", "cacerts", "csrattrs", "simpleenroll", "enrollstatus",
        ]  # fmt: skip
        # one connection with the IDevID for everything, a second one with the LDevID for the good news
        assert [one.connection for one in campus.seen] == [1, 1, 1, 1, 1, 2]
        assert all(one.client == world.device.certificate for one in campus.seen[:5])
        assert campus.seen[5].client == campus.issued[0]
        assert statuses(campus, "voucher_status") == statuses(campus, "enrollstatus") == [True]
        assert "reason" not in json.loads(campus.seen[1].call.body)

        assert state.configured
        assert state.read("method") == b"brski\n"
        record = state.record()
        assert (record.identifier, record.port, record.enroll_status_sent) == (PROXY_ID, campus.port, True)
        assert state.anchors() == (world.domain.root.certificate,)
        assert state.ldevid_chain() == (campus.issued[0], world.domain.ca.certificate)
        assert state.ldevid_key().public_key() == campus.issued[0].public_key()
        sent, _ = voucher_request.unseal(state.read("voucher-request.cms") or b"", VOUCHER_CMS_JSON)
        received, _ = voucher.unseal(state.read("voucher.cms") or b"", VOUCHER_CMS_JSON)
        assert received.nonce == sent.nonce

        steps = [one.name for one in report.steps]
        assert steps == [
            "bootstrap-started", "registrars-found", "server-connected", "voucher-requested", "voucher-verified",
            "voucher-status-sent", "anchors-fetched", "attributes-asked", "ldevid-received", "ldevid-stored",
            "server-verified", "enroll-status-sent",
        ]  # fmt: skip
        assert [one["step"] for one in events] == steps
        assert [one["step"] for one in report_of(state)["steps"]] == steps

    with_campus(world, scenario)


@pytest.mark.req("B-211", "B-241", "B-441", "B-447", "A-80")
def test_the_pledge_asks_in_jws_when_told_so(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        settings = world.with_settings(registrar_url=campus.url, voucher_format="jws")
        report = await bootstrap(state, settings)
        assert report.outcome == "ok"
        call = campus.of("requestvoucher")[0].call
        assert call.media_type == call.headers["accept"] == VOUCHER_JWS_JSON
        sent, opened = voucher_request.unseal(state.read("voucher-request.vjj") or b"", VOUCHER_JWS_JSON)
        received, _ = voucher.unseal(state.read("voucher.vjj") or b"", VOUCHER_JWS_JSON)
        assert received.nonce == sent.nonce and opened.signer == world.device.certificate
        assert state.read("voucher.cms") is None

    with_campus(world, scenario)


@pytest.mark.req("B-133", "B-241", "B-242", "B-243", "B-244", "B-245")
def test_the_request_is_signed_by_the_idevid_and_names_the_certificate_seen_in_tls(
    world: World, state: ProxyState
) -> None:
    async def scenario(campus: Campus) -> None:
        await bootstrap(state, world.with_settings(registrar_url=campus.url))
        asked, opened = voucher_request.unseal(campus.of("requestvoucher")[0].call.body, VOUCHER_CMS_JSON)
        assert opened.signer == world.device.certificate
        assert asked.proximity_registrar_cert == campus.identity.certificate.public_bytes(Encoding.DER)
        assert asked.serial_number == "PX-1"
        assert asked.assertion.value == "proximity"

    with_campus(world, scenario)


@pytest.mark.req("B-142")
def test_no_name_is_sent_to_an_address(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        await bootstrap(state, world.with_settings(registrar_url=campus.url))
        assert {one.server_name for one in campus.seen} == {None}

    with_campus(world, scenario)


def test_a_configured_name_is_sent(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        await bootstrap(state, world.with_settings(registrar_url=f"https://localhost:{campus.port}"))
        assert {one.server_name for one in campus.seen} == {"localhost"}

    with_campus(world, scenario)


@pytest.mark.req("B-143")
def test_the_registrars_name_is_not_held_against_it(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        assert not any(
            isinstance(one.value, x509.SubjectAlternativeName) for one in campus.identity.certificate.extensions
        )
        assert (await bootstrap(state, world.with_settings(registrar_url=campus.url))).outcome == "ok"

    with_campus(world, scenario)


@pytest.mark.req("B-205", "B-203")
def test_a_registrar_without_telemetry_is_tolerated(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        for path in ("/.well-known/brski/voucher_status", "/.well-known/brski/enrollstatus"):
            campus.instead[path] = lambda *_: Reply(404)
        assert (await bootstrap(state, world.with_settings(registrar_url=campus.url))).outcome == "ok"

    with_campus(world, scenario)


# -- waiting -------------------------------------------------------------------------------------------------------


@pytest.mark.req("T-16", "B-222", "B-230", "B-231")
@pytest.mark.parametrize(
    ("header", "waits"),
    [("86400", 60), ("-5", 10), ("Wed, 21 Oct 2099 07:28:00 GMT", 10), ("rubbish", 10), (None, 10), ("7", 7), ("0", 1)],
)
def test_the_pledge_waits_at_most_a_minute_and_repeats_the_very_same_request(
    world: World, state: ProxyState, header: str | None, waits: float
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario(campus: Campus) -> None:
        def twice_pending(call: Call, client: object, proper: Callable[[], Reply]) -> Reply:
            if len(campus.of("requestvoucher")) <= 2:
                return Reply(202, headers={} if header is None else {"retry-after": header})
            return proper()

        campus.instead["/.well-known/brski/requestvoucher"] = twice_pending
        await bootstrap(state, world.with_settings(registrar_url=campus.url), sleep=sleep)
        assert slept == [waits, waits]
        assert len({one.call.body for one in campus.of("requestvoucher")}) == 1
        assert {one.connection for one in campus.of("requestvoucher")} == {1}

    with_campus(world, scenario)


@pytest.mark.req("B-138", "B-231")
def test_a_registrar_that_closes_while_the_pledge_waits_is_asked_again_the_same(
    world: World, state: ProxyState
) -> None:
    async def scenario(campus: Campus) -> None:
        def close_first(call: Call, client: object, proper: Callable[[], Reply]) -> object:
            if len(campus.of("requestvoucher")) == 1:
                return b"HTTP/1.1 202 Wait\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            return proper()

        campus.instead["/.well-known/brski/requestvoucher"] = close_first
        await bootstrap(state, world.with_settings(registrar_url=campus.url), sleep=no_sleep)
        first, second = campus.of("requestvoucher")
        assert (first.connection, second.connection) == (1, 2)
        assert asked(first) == asked(second)

    with_campus(world, scenario)


@pytest.mark.req("B-138", "T-32")
def test_another_certificate_on_the_second_connection_is_refused(world: World, state: ProxyState) -> None:
    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            impostor = Campus(world.factory, other_domain())

            async def swap(_: float) -> None:
                port = campus.port
                await campus.__aexit__()
                impostor._server = await asyncio.start_server(
                    impostor._serve, "127.0.0.1", port, ssl=impostor._context()
                )
                impostor.port = port

            campus.instead["/.well-known/brski/requestvoucher"] = lambda *_: (
                b"HTTP/1.1 202 Wait\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            swapped = False

            async def sleep(seconds: float) -> None:
                nonlocal swapped
                if not swapped:
                    swapped = True
                    await swap(seconds)

            # the newcomer gets no repetition of the old request, and only as a new attempt with a new one its chance
            report = await bootstrap(state, world.with_settings(registrar_url=campus.url), sleep=sleep)
            failed = [one for one in report.steps if one.name == "attempt-failed"]
            assert [one.code for one in failed] == ["server-untrusted"]
            repeated = campus.of("requestvoucher")[0].call.body
            assert repeated not in [one.call.body for one in impostor.seen]
            await impostor.__aexit__()

    asyncio.run(run())


@pytest.mark.req("E-133", "E-136")
def test_enrolment_that_needs_a_human_is_waited_for(world: World, state: ProxyState) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario(campus: Campus) -> None:
        def pending_then_closed(call: Call, client: object, proper: Callable[[], Reply]) -> object:
            if len(campus.of("simpleenroll")) == 1:
                return Reply(202, headers={"retry-after": "90"})
            if len(campus.of("simpleenroll")) == 2:
                return b"HTTP/1.1 202 Wait\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            return proper()

        campus.instead["/.well-known/est/simpleenroll"] = pending_then_closed
        report = await bootstrap(state, world.with_settings(registrar_url=campus.url), sleep=sleep)
        assert 90 <= slept[0] <= 99 and 5 <= slept[1] <= 5.5
        assert set(slept) != {90, 5}  # with jitter
        assert len({asked(one) for one in campus.of("simpleenroll")}) == 1
        # bound to its connection, hence signed anew for the second one
        assert len({one.call.body for one in campus.of("simpleenroll")[:2]}) == 1
        # the pin holds for the connection that replaced the closed one as well
        assert [one.connection for one in campus.of("simpleenroll")] == [1, 1, 2]
        assert [one.code for one in report.steps if one.name == "enrolment-pending"] == ["enrolment-pending"] * 2

    with_campus(world, scenario)


# -- bad vouchers --------------------------------------------------------------------------------------------------


def reseal(factory: Factory, reply: Reply, **changes: object) -> Reply:
    """The same voucher with other leaves, signed again by the true MASA."""
    good, _ = voucher.unseal(reply.body, VOUCHER_CMS_JSON)
    members = {name: getattr(good, name) for name in (
        "serial_number", "assertion", "pinned_domain_cert", "created_on", "nonce", "expires_on", "idevid_issuer",
        "domain_cert_revocation_checks",
    )}  # fmt: skip
    masa = Masa(factory.masa_signer, factory.masa_chain, factory.device_anchors)
    changed = Voucher(**(members | changes))
    return Reply(200, VOUCHER_CMS_JSON, body=masa.seal(changed, VOUCHER_CMS_JSON, now=datetime.now(UTC)))


def other_nonce(world: World, reply: Reply) -> Reply:
    return reseal(world.factory, reply, nonce="AAAAAAAAAAAAAAAAAAAAAA==")


def other_serial(world: World, reply: Reply) -> Reply:
    return reseal(world.factory, reply, serial_number="PX-2")


def other_issuer(world: World, reply: Reply) -> Reply:
    return reseal(world.factory, reply, idevid_issuer=b"\x04\x18\x30\x16\x80\x14" + b"\x01" * 20)


def other_pin(world: World, reply: Reply) -> Reply:
    return reseal(world.factory, reply, pinned_domain_cert=other_domain().root.certificate.public_bytes(Encoding.DER))


def no_nonce(world: World, reply: Reply) -> Reply:
    return reseal(world.factory, reply, nonce=None, expires_on=datetime.now(UTC) + timedelta(days=1))


def expired(world: World, reply: Reply) -> Reply:
    good, _ = voucher.unseal(reply.body, VOUCHER_CMS_JSON)
    document = json.loads(voucher.write(good))
    document["ietf-voucher:voucher"]["expires-on"] = leaves.write_date(datetime.now(UTC) - timedelta(seconds=10))
    body = sealed.seal(
        json.dumps(document).encode(),
        VOUCHER_CMS_JSON,
        signer=world.factory.masa_signer,
        certificate=world.factory.masa_chain[0],
        certificates=world.factory.masa_chain[1:],
        now=datetime.now(UTC),
    )
    return Reply(200, VOUCHER_CMS_JSON, body=body)


def foreign_signer(world: World, reply: Reply) -> Reply:
    return reseal(Factory.create("Evil", now=BORN), reply)


def tampered(world: World, reply: Reply) -> Reply:
    return Reply(200, VOUCHER_CMS_JSON, body=reply.body.replace(b'"PX-1"', b'"PX-7"'))


def empty(world: World, reply: Reply) -> Reply:
    return Reply(200, VOUCHER_CMS_JSON)


def rubbish(world: World, reply: Reply) -> Reply:
    return Reply(200, VOUCHER_CMS_JSON, body=b"\x30\x82\x7f\xff" + b"x" * 500)


BAD_VOUCHERS = [
    pytest.param(other_nonce, "voucher-for-other-request", marks=pytest.mark.req("T-01", "B-323")),
    pytest.param(other_serial, "voucher-for-other-device", marks=pytest.mark.req("T-02", "B-322")),
    pytest.param(other_issuer, "voucher-for-other-device", marks=pytest.mark.req("T-03", "B-324")),
    pytest.param(other_pin, "domain-not-pinned", marks=pytest.mark.req("T-06", "B-327")),
    pytest.param(no_nonce, "voucher-nonceless", marks=pytest.mark.req("B-323")),
    pytest.param(expired, "voucher-expired", marks=pytest.mark.req("B-325")),
    pytest.param(foreign_signer, "voucher-signature-invalid", marks=pytest.mark.req("B-321")),
    pytest.param(tampered, "voucher-signature-invalid", marks=pytest.mark.req("B-321")),
    pytest.param(empty, "voucher-malformed", marks=pytest.mark.req("B-135")),
    pytest.param(rubbish, "voucher-malformed", marks=pytest.mark.req("B-135")),
]


@pytest.mark.req("B-328", "B-352", "A-82")
@pytest.mark.parametrize(("damage", "code"), BAD_VOUCHERS)
def test_a_bad_voucher_is_reported_and_nothing_else_is_asked(
    world: World, state: ProxyState, damage: Callable[[World, Reply], Reply], code: str
) -> None:
    async def scenario(campus: Campus) -> None:
        campus.instead["/.well-known/brski/requestvoucher"] = lambda call, client, proper: damage(world, proper())
        with pytest.raises(BootstrapGaveUp) as caught:
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        assert caught.value.fields["because"] == code
        # the report goes out on the connection that brought the voucher, and after it nothing does
        assert campus.paths() == ["requestvoucher", "voucher_status"]
        assert {one.connection for one in campus.seen} == {1}
        assert telemetry.read_voucher_status(campus.seen[1].call.body).status is False
        assert not state.configured
        assert state.read("anchors.pem") is None
        assert report_of(state)["outcome"] == "bootstrap-gave-up"
        assert [one["code"] for one in report_of(state)["steps"] if one["step"] == "voucher-refused"] == [code]

    with_campus(world, scenario)


@pytest.mark.req("T-07", "B-327")
def test_a_chain_with_a_gap_below_the_pinned_root_is_refused(world: World, state: ProxyState) -> None:
    async def run() -> None:
        leaf_only = world.domain.registrar.chain[:1]
        async with Campus(world.factory, world.domain, chain=leaf_only) as campus:
            root = world.domain.root.certificate.public_bytes(Encoding.DER)
            campus.instead["/.well-known/brski/requestvoucher"] = lambda call, client, proper: reseal(
                world.factory, proper(), pinned_domain_cert=root
            )
            with pytest.raises(BootstrapGaveUp) as caught:
                await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
            assert caught.value.fields["because"] == "domain-not-pinned"

    asyncio.run(run())


@pytest.mark.req("B-109", "B-224", "B-225", "B-226", "B-228")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 500, 502, 503, 204])
def test_a_registrars_no_is_not_a_voucher_and_is_tried_again_later(
    world: World, state: ProxyState, status: int
) -> None:
    async def scenario(campus: Campus) -> None:
        def no_then_yes(call: Call, client: object, proper: Callable[[], Reply]) -> Reply:
            return proper() if len(campus.of("requestvoucher")) > 1 else Reply(status)

        campus.instead["/.well-known/brski/requestvoucher"] = no_then_yes
        report = await bootstrap(state, world.with_settings(registrar_url=campus.url))
        assert report.outcome == "ok"
        # a new attempt has a new nonce (B-111) and a new connection
        first, second = campus.of("requestvoucher")
        assert first.call.body != second.call.body
        assert first.connection != second.connection

    with_campus(world, scenario)


@pytest.mark.req("T-17", "B-135", "B-233")
@pytest.mark.parametrize("where", ["https://127.0.0.1:{port}/elsewhere", "http://127.0.0.1:{port}/", "/elsewhere"])
def test_no_redirect_is_followed(world: World, state: ProxyState, where: str) -> None:
    async def scenario(campus: Campus) -> None:
        location = where.format(port=campus.port)
        campus.instead["/.well-known/brski/requestvoucher"] = lambda *_: Reply(307, headers={"location": location})
        with pytest.raises(BootstrapGaveUp) as caught:
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        assert caught.value.fields["because"] == "redirect-refused"
        assert campus.paths() == ["requestvoucher"]

    with_campus(world, scenario)


@pytest.mark.req("B-135", "T-23")
def test_a_flood_instead_of_a_voucher_is_cut_off(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        flood = b"HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n" + b"x" * 65536
        campus.instead["/.well-known/brski/requestvoucher"] = lambda *_: flood
        with pytest.raises(BootstrapGaveUp) as caught:
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        assert caught.value.fields["because"] == "peer-reply-too-large"

    with_campus(world, scenario)


def test_a_registrar_that_hangs_up_is_explained(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        campus.instead["/.well-known/brski/requestvoucher"] = lambda *_: CLOSE
        with pytest.raises(BootstrapGaveUp):
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        failed = [one for one in report_of(state)["steps"] if one["step"] == "attempt-failed"][0]
        assert failed["code"] == "peer-connection-closed"
        assert "manufacturer" in failed["hint"]

    with_campus(world, scenario)


# -- lost connections ----------------------------------------------------------------------------------------------


@pytest.mark.req("B-231", "B-138", "B-109")
def test_a_request_whose_answer_was_lost_is_repeated_octet_for_octet(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        def lost(call: Call, client: object, proper: Callable[[], Reply]) -> object:
            return CLOSE if len(campus.of("requestvoucher")) == 1 else proper()

        campus.instead["/.well-known/brski/requestvoucher"] = lost
        report = await bootstrap(state, world.with_settings(registrar_url=campus.url))
        first, second = campus.of("requestvoucher")
        assert (first.connection, second.connection) == (1, 2)
        assert asked(first) == asked(second)
        assert [one.code for one in report.steps if one.name == "connection-lost"] == ["peer-connection-closed"]

    with_campus(world, scenario)


@pytest.mark.req("B-137", "B-138", "B-329")
@pytest.mark.parametrize("path", ["brski/voucher_status", "est/cacerts", "est/csrattrs", "est/simpleenroll"])
def test_a_connection_lost_after_the_voucher_costs_no_second_voucher(
    world: World, state: ProxyState, path: str
) -> None:
    async def scenario(campus: Campus) -> None:
        name = path.rpartition("/")[2]

        def lost(call: Call, client: object, proper: Callable[[], Reply]) -> object:
            return CLOSE if len(campus.of(name)) == 1 else proper()

        campus.instead[f"/.well-known/{path}"] = lost
        assert (await bootstrap(state, world.with_settings(registrar_url=campus.url))).outcome == "ok"
        assert len(campus.of("requestvoucher")) == 1
        assert len(campus.issued) == 1
        first, second = campus.of(name)
        assert asked(first) == asked(second)
        assert first.connection != second.connection

    with_campus(world, scenario)


@pytest.mark.req("B-138", "T-32", "B-327")
def test_a_connection_lost_after_the_voucher_is_not_continued_with_another_server(
    world: World, state: ProxyState
) -> None:
    async def run() -> None:
        async with Campus(world.factory, world.domain) as campus:
            impostor = Campus(world.factory, other_domain())

            async def swap(*_: object) -> object:
                campus._server.close()
                impostor._server = await asyncio.start_server(
                    impostor._serve, "127.0.0.1", campus.port, ssl=impostor._context()
                )
                return CLOSE

            campus.instead["/.well-known/est/cacerts"] = swap
            with pytest.raises(BootstrapGaveUp):
                impostor.instead["/.well-known/brski/requestvoucher"] = lambda *_: Reply(403)
                await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
            failed = [one["code"] for one in report_of(state)["steps"] if one["step"] == "enrolment-failed"]
            assert failed == ["server-untrusted"]
            assert set(impostor.paths()) <= {"requestvoucher"}
            await impostor.__aexit__()

    asyncio.run(run())


@pytest.mark.req("B-328", "B-351")
def test_the_bad_news_about_a_voucher_is_told_even_if_the_registrar_has_closed(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        def bad_and_closed(call: Call, client: object, proper: Callable[[], Reply]) -> object:
            return write_reply(other_nonce(world, proper()), {"connection": "close"})

        campus.instead["/.well-known/brski/requestvoucher"] = bad_and_closed
        with pytest.raises(BootstrapGaveUp):
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        assert statuses(campus, "voucher_status")[:1] == [False]
        assert campus.of("voucher_status")[0].connection == 2

    with_campus(world, scenario)


@pytest.mark.req("B-137", "B-138")
def test_a_registrar_that_closes_after_every_answer_is_good_enough(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        for path in ("brski/requestvoucher", "brski/voucher_status", "est/cacerts", "est/csrattrs", "est/simpleenroll"):
            campus.instead[f"/.well-known/{path}"] = lambda call, client, proper: write_reply(
                proper(), {"connection": "close"}
            )
        assert (await bootstrap(state, world.with_settings(registrar_url=campus.url))).outcome == "ok"
        assert [one.connection for one in campus.seen] == [1, 2, 3, 4, 5, 6]
        assert len(campus.issued) == 1

    with_campus(world, scenario)


@pytest.mark.req("B-357")
def test_a_failed_enrolment_is_reported_even_if_its_connection_is_gone(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        refusal = write_reply(Reply(403, "text/plain", body=b"not you\n"), {"connection": "close"})
        campus.instead["/.well-known/est/simpleenroll"] = lambda *_: refusal
        with pytest.raises(BootstrapGaveUp):
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        assert statuses(campus, "enrollstatus")[:1] == [False]
        told = campus.of("enrollstatus")[0]
        assert (told.connection, told.client) == (2, world.device.certificate)

    with_campus(world, scenario)


# -- trouble after a good voucher ----------------------------------------------------------------------------------


@pytest.mark.req("B-357", "E-142")
@pytest.mark.parametrize(
    ("path", "reply", "code"),
    [
        ("simpleenroll", Reply(403, "text/plain", body=b"not you\n"), "enrollment-refused"),
        ("simpleenroll", Reply(200, "text/html", body=b"<html>"), "est-reply-not-accepted"),
        ("cacerts", Reply(500), "enrollment-refused"),
    ],
    ids=["403", "HTML", "no cacerts"],
)
def test_a_failed_enrolment_is_reported_on_the_connection_that_failed(
    world: World, state: ProxyState, path: str, reply: Reply, code: str
) -> None:
    async def scenario(campus: Campus) -> None:
        campus.instead[f"/.well-known/est/{path}"] = lambda *_: reply
        with pytest.raises(BootstrapGaveUp) as caught:
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        assert caught.value.fields["because"] == code
        last = campus.seen[-1]
        assert last.path.endswith("enrollstatus")
        assert last.connection == 1
        assert last.client == world.device.certificate
        assert json.loads(last.call.body)["status"] is False
        assert json.loads(last.call.body)["reason"]
        assert not state.configured

    with_campus(world, scenario)


@pytest.mark.req("E-96", "E-95")
def test_ca_certificates_that_do_not_vouch_for_their_sender_are_not_stored(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        campus.anchors_served = [other_domain().root.certificate]
        with pytest.raises(BootstrapGaveUp) as caught:
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        assert caught.value.fields["because"] == "est-reply-not-accepted"
        assert "simpleenroll" not in campus.paths()
        assert not state.configured

    with_campus(world, scenario)


@pytest.mark.req("E-125")
def test_a_certificate_for_another_key_is_not_taken(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        other: list[Call] = []

        def mixed_up(call: Call, client: x509.Certificate | None, proper: Callable[[], Reply]) -> Reply:
            from cryptography.hazmat.primitives.asymmetric import ec

            from est import EstClient, csr

            stranger = csr.build(subject=x509.Name([]), key=ec.generate_private_key(ec.SECP256R1()))
            other.append(call)
            return campus.enrol(EstClient().simpleenroll_call(stranger), client)

        campus.instead["/.well-known/est/simpleenroll"] = mixed_up
        with pytest.raises(BootstrapGaveUp) as caught:
            await bootstrap_once(state, world.with_settings(registrar_url=campus.url))
        assert caught.value.fields["because"] == "est-reply-not-accepted"
        assert not state.configured

    with_campus(world, scenario)


@pytest.mark.req("E-126")
def test_an_enrolment_whose_answer_got_lost_repeats_the_same_request(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        def lost(call: Call, client: object, proper: Callable[[], Reply]) -> object:
            proper()
            return CLOSE if len(campus.of("simpleenroll")) == 1 else proper()

        campus.instead["/.well-known/est/simpleenroll"] = lost
        await bootstrap(state, world.with_settings(registrar_url=campus.url))
        first, second = campus.of("simpleenroll")
        assert asked(first) == asked(second)

    with_campus(world, scenario)


def test_a_report_that_cannot_be_made_now_does_not_cost_the_ldevid(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        campus.instead["/.well-known/brski/enrollstatus"] = lambda *_: CLOSE
        report = await bootstrap(state, world.with_settings(registrar_url=campus.url))
        assert report.outcome == "ok"
        assert state.configured
        assert not state.record().enroll_status_sent

    with_campus(world, scenario)


# -- what may be said when -----------------------------------------------------------------------------------------


@pytest.mark.req("B-135", "E-37", "E-38")
def test_the_table_of_what_may_be_asked_holds_nothing_more_than_the_documents_allow() -> None:
    brski = "/.well-known/brski/"
    assert ALLOWED[Trust.PROVISIONAL] == {("POST", brski + "requestvoucher"), ("POST", brski + "voucher_status")}
    assert ALLOWED[Trust.REFUSED] == {("POST", brski + "voucher_status")}
    assert ALLOWED[Trust.ANCHORLESS] == {("GET", "/.well-known/est/cacerts")}
    assert isinstance(Connection, type)


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.req("A-82", "B-330")
@pytest.mark.parametrize("missing", ["idevid_certificate", "idevid_key", "masa_anchors"])
def test_without_an_idevid_the_operator_is_told_what_to_do(world: World, state: ProxyState, missing: str) -> None:
    with pytest.raises(BootstrapNotConfigured, match="no trust on first use"):
        asyncio.run(bootstrap(state, world.with_settings(**{missing: None})))
    assert report_of(state)["outcome"] == "bootstrap-not-configured"


@pytest.mark.req("A-82")
def test_a_failed_brski_never_becomes_est(world: World, state: ProxyState, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text("proxy-1:abc")
    anchor = tmp_path / "anchor.pem"
    anchor.write_bytes(world.domain.root.chain_pem)

    async def scenario(campus: Campus) -> None:
        campus.instead["/.well-known/brski/requestvoucher"] = lambda *_: Reply(403)
        with pytest.raises(BootstrapGaveUp):
            settings = world.with_settings(registrar_url=campus.url, est_anchor=anchor, est_secret_file=secret)
            await bootstrap_once(state, settings)
        assert set(campus.paths()) == {"requestvoucher"}

    with_campus(world, scenario)


def test_a_key_that_others_can_read_is_refused(world: World, state: ProxyState) -> None:
    assert world.settings.idevid_key is not None
    world.settings.idevid_key.chmod(0o644)
    with pytest.raises(KeyFileExposed, match="chmod 600"):
        asyncio.run(bootstrap(state, world.settings))


def test_a_missing_file_is_named_with_its_setting(world: World, state: ProxyState, tmp_path: Path) -> None:
    with pytest.raises(KeyFileMissing, match=r"proxy\.masa_anchors"):
        asyncio.run(bootstrap(state, world.with_settings(masa_anchors=tmp_path / "nowhere.pem")))


def test_nobody_announced_is_said_after_the_time_is_up(world: World, state: ProxyState) -> None:
    # others on this machine may be announcing registrars of their own at this moment
    with pytest.raises(BootstrapGaveUp, match="nobody announced a registrar|the last one: "):
        asyncio.run(bootstrap(state, world.with_settings(give_up_seconds=0.5)))


def test_no_secret_stands_in_the_report(world: World, state: ProxyState) -> None:
    async def scenario(campus: Campus) -> None:
        await bootstrap(state, world.with_settings(registrar_url=campus.url))
        body = state.read("bootstrap.json") or b""
        assert b"PRIVATE" not in body
        assert b"BEGIN" not in body

    with_campus(world, scenario)


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)
