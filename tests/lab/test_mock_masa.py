"""The mock MASA over real HTTPS: memory, refusals, and every knob."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from brski import (
    Assertion,
    AuditPolicy,
    BrskiError,
    Concern,
    Manufacturer,
    MasaAnswerInvalid,
    MasaAuthenticationRequired,
    MasaExchange,
    MasaPolicy,
    MasaRefused,
    MasaUnavailable,
    PinMissing,
    Pledge,
    Registrar,
    Voucher,
    VoucherMalformed,
    VoucherNonceless,
    VoucherRequest,
    VoucherSignatureInvalid,
    appraise,
    paths,
    sealed,
    voucher,
    voucher_request,
)
from est import chains
from est.exchange import Call, Reply
from lab.__main__ import main
from lab.factory import Domain, Identity, load, load_identity, load_or_create, save_device
from lab.misbehave import MISBEHAVIOURS, read_knobs
from lab.mock_masa import MasaOptions, MockMasa, Records

ROOT = Path(__file__).parents[2]


@dataclass
class Desk:
    """A pledge and a registrar in front of a MASA that listens on `port`."""

    folder: Path
    port: int
    domain: Domain
    serial: str = "PX-1"
    media_type: str = paths.VOUCHER_CMS_JSON

    def __post_init__(self) -> None:
        self.now = datetime.now(UTC)
        maker = load(self.folder)
        home = self.folder / "devices" / self.serial
        if not home.exists():
            device = maker.make_device(self.serial, masa=self.authority, now=self.now - timedelta(minutes=5))
            save_device(maker, self.folder, self.serial, device)
        self.device: Identity = load_identity(home, "idevid")
        self.pledge = Pledge(self.device.signer, self.device.chain, maker.masa_anchors)
        self.registrar = Registrar(self.domain.signer, self.domain.certificate, self.domain.chain)
        self.manufacturer = Manufacturer("Acme", maker.device_anchors, masa=self.pledge.idevid.masa_uri)

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self) -> tuple[Call, MasaExchange]:
        sent = self.pledge.voucher_request(
            self.domain.certificate, nonce=os.urandom(16), now=self.now, media_type=self.media_type
        )
        exchange = self.registrar.consider(
            sent,
            self.device.certificate,
            self.device.issuers,
            [self.manufacturer],
            tls_certificate=self.domain.certificate,
            now=self.now,
        )
        return sent, exchange

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "manufacturer" / "masa-tls-ca.pem"))

    async def send(self, call: Call, timeout: float = 5.0) -> Reply:
        headers = {**call.headers, "content-type": call.media_type}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout)) as session,
            session.request(
                call.method,
                f"https://{self.authority}{call.path}",
                data=call.body,
                headers=headers,
                ssl=self.tls(),
                allow_redirects=False,
            ) as answer,
        ):
            found = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, answer.headers.get("content-type", ""), found, await answer.read())

    def nonceless(self, domain: Domain) -> Call:
        """A request without a nonce by this domain's registrar."""
        asked = VoucherRequest(self.serial, created_on=self.now, idevid_issuer=self.pledge.idevid.issuer)
        body = sealed.seal(
            voucher_request.write(asked),
            paths.VOUCHER_CMS_JSON,
            signer=domain.signer,
            certificate=domain.certificate,
            certificates=domain.chain,
            now=self.now,
        )
        return Call("POST", paths.REQUEST_VOUCHER, paths.VOUCHER_CMS_JSON, {}, body)

    def read(self, reply: Reply) -> tuple[Voucher, sealed.Unsealed]:
        if reply.status != 200:
            raise MasaRefused(reply.body.decode())
        return voucher.unseal(reply.body, reply.media_type)

    async def conclude(self) -> Voucher:
        _, exchange = self.ask()
        return exchange.conclude(await self.send(exchange.call), self.now)


def revocation_list(domain: Domain, *revoked: x509.Certificate) -> bytes:
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(domain.ca.certificate.subject)
    builder = builder.last_update(now - timedelta(minutes=1)).next_update(now + timedelta(days=1))
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(domain.ca.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@contextlib.asynccontextmanager
async def desk(folder: Path, knobs: str = "", domain: Domain | None = None, **options: Any) -> AsyncIterator[Desk]:
    load_or_create(folder, now=datetime.now(UTC))
    masa = MockMasa(folder, broken=read_knobs(word for word in knobs.split(",") if word), **options)
    port = await masa.start()
    try:
        yield Desk(folder, port, domain or campus_now())
    finally:
        await masa.stop()


def campus_now(name: str = "Campus") -> Domain:
    return Domain.create(name, now=datetime.now(UTC))


def with_desk(folder: Path, story: Callable[[Desk], Any], knobs: str = "", **options: Any) -> Any:
    async def run() -> Any:
        async with desk(folder, knobs, **options) as made:
            return await story(made)

    return asyncio.run(run())


@pytest.mark.req("B-201", "B-202", "B-204", "B-221", "B-294", "B-321")
def test_pledge_gets_its_voucher_and_the_registrar_the_history(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        sent, exchange = at.ask()
        granted = exchange.conclude(await at.send(exchange.call), at.now)
        accepted = at.pledge.accept_voucher(exchange.reply(granted), sent, at.domain.tls_chain, now=at.now)
        assert accepted.assertion is Assertion.PROXIMITY
        log = exchange.read_audit_log(await at.send(exchange.audit_log_call))
        assert [entry.nonce for entry in log.events] == [accepted.nonce]
        assert appraise(
            log, AuditPolicy(), own_domain_ids=at.registrar.domain_ids, own_nonces=[accepted.nonce], issued=accepted
        ).is_accepted

    with_desk(tmp_path, story)


@pytest.mark.req("B-225", "B-226", "B-227", "B-228", "B-229")
def test_refusals_have_the_statuses_of_the_document_and_say_why(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        _, exchange = at.ask()
        call = exchange.call
        stranger = replace(at, serial="PX-STOLEN")
        for path in (tmp_path / "devices" / "PX-STOLEN").iterdir():
            path.unlink()
        for wrong, status, reason in [
            (replace(call, body=b""), 400, "voucher-request-malformed"),
            (replace(call, body=os.urandom(500)), 400, "voucher-request-malformed"),
            (replace(call, media_type="application/json"), 415, "media-type-unsupported"),
            (replace(call, headers={"accept": "text/plain"}), 406, "voucher-format-not-acceptable"),
            (replace(call, body=at.ask()[0].body), 400, "voucher-request-malformed"),
            (stranger.ask()[1].call, 404, "device-unknown"),
            (exchange.audit_log_call, 404, "never-owner"),
            (replace(call, body=bytes(300_000)), 413, ""),
            (replace(call, path="/.well-known/est/requestvoucher"), 404, ""),
            (replace(call, method="PUT"), 405, ""),
        ]:
            answer = await at.send(wrong)
            assert answer.status == status
            assert answer.media_type.startswith("text/plain")
            assert answer.body.decode().startswith(reason)

    with_desk(tmp_path, story)


@pytest.mark.req("B-294", "B-297")
def test_memory_survives_a_restart_and_can_be_erased(tmp_path: Path) -> None:
    async def first(at: Desk) -> str | None:
        return (await at.conclude()).nonce

    async def second(at: Desk) -> list[str | None]:
        await at.conclude()
        _, exchange = at.ask()
        log = exchange.read_audit_log(await at.send(exchange.audit_log_call))
        history = json.loads((await at.send(Call("GET", "/lab/requests"))).body)
        assert [(one["path"].rsplit("/", 1)[1], one["status"]) for one in history] == [
            ("requestvoucher", 200),
            ("requestvoucher", 200),
            ("requestauditlog", 200),
        ]
        assert history[0]["serial"] == "PX-1" and history[0]["detail"] == "proximity"
        assert (await at.send(Call("DELETE", "/lab/requests"))).status == 204
        assert json.loads((await at.send(Call("GET", "/lab/requests"))).body) == []
        with pytest.raises(MasaRefused):
            exchange.read_audit_log(await at.send(exchange.audit_log_call))
        return [entry.nonce for entry in log.events]

    with_desk(tmp_path, first)
    nonces = with_desk(tmp_path, second)
    assert len(nonces) == 2  # two domains: the campus is new in each story


@pytest.mark.req("B-294")
def test_voucher_that_cannot_be_logged_does_not_leave(tmp_path: Path) -> None:
    class ForgetfulRecords(Records):
        def _note(self, *_: Any, **__: Any) -> None:
            raise OSError("disk full")

    folder = tmp_path
    load_or_create(folder, now=datetime.now(UTC))
    records = ForgetfulRecords(folder)

    async def story() -> tuple[Reply, int]:
        masa = MockMasa(folder, records=records)
        at = Desk(folder, await masa.start(), campus_now())
        try:
            _, exchange = at.ask()
            answer = await at.send(exchange.call)
            device = records.find("PX-1", None)
            assert device is not None
            return answer, len(device.log.events)
        finally:
            await masa.stop()

    answer, events = asyncio.run(story())
    assert answer.status == 500
    assert events == 0


@pytest.mark.req("B-292")
def test_first_registrar_wins_when_told_so(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        await at.conclude()
        await at.conclude()
        with pytest.raises(MasaRefused):
            await replace(at, domain=campus_now("Mallory")).conclude()

    with_desk(tmp_path, story, policy=MasaPolicy(override=False))


@pytest.mark.req("B-285", "B-290", "B-296", "B-306")
def test_vouchers_without_nonce_are_for_known_registrars_and_come_from_a_key_of_their_own(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        maker = load(at.folder)
        with pytest.raises(MasaRefused):
            at.read(await at.send(at.nonceless(campus_now("Mallory"))))
        lasting, opened = at.read(await at.send(at.nonceless(at.domain)))
        assert opened.signer == maker.masa_lasting.certificate
        assert lasting.nonce is None and lasting.expires_on is not None
        assert lasting.pin() == at.domain.root.certificate
        _, opened = at.read(await at.send(at.ask()[1].call))
        assert opened.signer == maker.masa.certificate

    domain = campus_now()
    anchors = chains.TrustAnchors([domain.root.certificate])
    with_desk(tmp_path, story, domain=domain, policy=MasaPolicy(registrar_anchors=anchors))


@pytest.mark.req("B-284")
def test_registrar_on_its_domains_revocation_list_gets_nothing(tmp_path: Path) -> None:
    domain, crl = campus_now(), tmp_path / "campus.crl"
    crl.write_bytes(revocation_list(domain))

    async def story(at: Desk) -> None:
        await at.conclude()
        crl.write_bytes(revocation_list(domain, domain.certificate))
        for call in (at.ask()[1].call, at.ask()[1].audit_log_call):
            answer = await at.send(call)
            assert (answer.status, answer.body[:23]) == (403, b"registrar-chain-broken:")
        device = json.loads((await at.send(Call("GET", "/lab/devices/PX-1"))).body)
        assert len(device["log"]["events"]) == 1

    with_desk(tmp_path / "acme", story, domain=domain, options=MasaOptions(crls=(crl,)))


@pytest.mark.req("B-337", "B-204")
def test_log_behind_an_address_is_found_by_whoever_was_told_it(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        _, exchange = at.ask()
        exchange.conclude(await at.send(exchange.call), at.now)
        answer = await at.send(exchange.audit_log_call)
        assert answer.status == 201
        again = await at.send(exchange.audit_log_call)
        assert again.headers["location"] == answer.headers["location"]
        follow = exchange.follow_audit_log(answer)
        assert follow is not None
        slug = follow.path.rsplit("/", 1)[1]
        assert len(slug) == 43 and "PX-1" not in follow.path
        log = exchange.read_audit_log(await at.send(follow))
        assert [entry.nonce for entry in log.events] == [exchange.request.nonce]
        other = replace(at, domain=campus_now("Other")).ask()[1]
        other.conclude(await at.send(other.call), at.now)
        assert (await at.send(other.audit_log_call)).headers["location"] != answer.headers["location"]
        assert (await at.send(replace(follow, path=follow.path[:-1] + "!"))).status == 404
        history = json.loads((await at.send(Call("GET", "/lab/requests"))).body)
        assert not any(slug in json.dumps(one) for one in history)

    with_desk(tmp_path, story, options=MasaOptions(log_by_url=True))


@pytest.mark.req("B-289", "B-292")
def test_devices_are_sold_blocked_and_released_and_that_is_remembered(tmp_path: Path) -> None:
    domain = campus_now()

    async def change(at: Desk, **wish: str) -> Reply:
        body = json.dumps(wish).encode()
        return await at.send(Call("PUT", "/lab/devices/PX-1", "application/json", {}, body))

    async def first(at: Desk) -> None:
        at.ask()
        assert (await at.conclude()).assertion is Assertion.PROXIMITY
        pem = domain.root.chain_pem.decode()
        assert json.loads((await change(at, sold_to=pem)).body)["state"] == "claimed"
        assert (await change(at, event="blocked")).status == 200
        for wish in ({"event": "blocked"}, {"event": "stolen"}, {"sold_to": "nobody"}):
            assert (await change(at, **wish)).status == 400
        assert (await at.send(Call("GET", "/lab/devices/PX-2"))).status == 404

    async def second(at: Desk) -> None:
        with pytest.raises(MasaRefused):
            await at.conclude()
        assert json.loads((await change(at, event="released")).body)["state"] == "unclaimed"
        assert (await at.conclude()).assertion is Assertion.VERIFIED

    with_desk(tmp_path, first, domain=domain)
    with_desk(tmp_path, second, domain=domain)


async def _refused_by_registrar(at: Desk) -> type[Exception]:
    with pytest.raises(BrskiError) as refused:
        await at.conclude()
    return type(refused.value)


async def _refused_by_pledge(at: Desk) -> type[Exception]:
    sent, exchange = at.ask()
    granted = exchange.conclude(await at.send(exchange.call), at.now)
    with pytest.raises(BrskiError) as refused:
        at.pledge.accept_voucher(exchange.reply(granted), sent, at.domain.tls_chain, now=at.now)
    return type(refused.value)


async def _refused_by_history(at: Desk) -> list[Concern]:
    await at.conclude()
    _, exchange = at.ask()
    log = exchange.read_audit_log(await at.send(exchange.audit_log_call))
    appraisal = appraise(log, AuditPolicy(), own_domain_ids=at.registrar.domain_ids)
    return [finding.concern for finding in appraisal.findings if finding.is_refusing]


async def _too_slow(at: Desk) -> type[Exception]:
    _, exchange = at.ask()
    try:
        await at.send(exchange.call, timeout=0.5)
    except TimeoutError:
        return TimeoutError
    raise AssertionError("it answered")


async def _log_elsewhere(at: Desk) -> type[Exception]:
    await at.conclude()
    _, exchange = at.ask()
    with pytest.raises(BrskiError) as refused:
        exchange.follow_audit_log(await at.send(exchange.audit_log_call))
    return type(refused.value)


async def _refused_in_jws(at: Desk) -> type[Exception]:
    at.media_type = paths.VOUCHER_JWS_JSON
    return await _refused_by_registrar(at)


KNOBS: dict[str, tuple[Callable[[Desk], Any], Any]] = {
    "jws-none": (_refused_in_jws, VoucherMalformed),
    "jws-hs256": (_refused_in_jws, VoucherMalformed),
    "jws-unprotected-alg": (_refused_in_jws, VoucherMalformed),
    "no-signed-attributes": (_refused_by_registrar, VoucherMalformed),
    "two-signers": (_refused_by_registrar, VoucherMalformed),
    "wrong-content-type": (_refused_by_registrar, VoucherMalformed),
    "request-key": (_refused_by_registrar, VoucherMalformed),
    "wrong-issuer": (_refused_by_registrar, MasaAnswerInvalid),
    "no-nonce": (_refused_by_pledge, VoucherNonceless),
    "no-pin": (_refused_by_registrar, PinMissing),
    "http-503": (_refused_by_registrar, MasaUnavailable),
    "redirect-loop": (_refused_by_registrar, MasaAnswerInvalid),
    "huge-body": (_refused_by_registrar, VoucherMalformed),
    "truncated-log": (_refused_by_history, [Concern.ENTRIES_REMOVED]),
    "newer-log": (_refused_by_history, []),
    "log-elsewhere": (_log_elsewhere, MasaAnswerInvalid),
    "foreign-signer": (_refused_by_pledge, VoucherSignatureInvalid),
    "tampered": (_refused_by_registrar, VoucherSignatureInvalid),
    "wrong-serial": (_refused_by_registrar, MasaAnswerInvalid),
    "wrong-nonce": (_refused_by_registrar, MasaAnswerInvalid),
    "expired": (_refused_by_registrar, MasaAnswerInvalid),
    "wrong-pin": (_refused_by_registrar, MasaAnswerInvalid),
    "slow": (_too_slow, TimeoutError),
    "http-500": (_refused_by_registrar, MasaUnavailable),
    "http-401": (_refused_by_registrar, MasaAuthenticationRequired),
    "html": (_refused_by_registrar, MasaAnswerInvalid),
    "foreign-history": (_refused_by_history, [Concern.FOREIGN_DOMAIN]),
    "nonceless-history": (_refused_by_history, [Concern.FOREIGN_NONCELESS]),
    "string-numbers": (_refused_by_history, []),
}


@pytest.mark.req("B-146", "B-304", "B-313", "B-321", "B-323", "B-332", "B-339", "B-341", "T-12", "T-28", "T-29", "T-30")
@pytest.mark.parametrize("knob", [knob.name for knob in MISBEHAVIOURS])
def test_every_knob_is_noticed(knob: str, tmp_path: Path) -> None:
    story, noticed = KNOBS[knob]
    assert with_desk(tmp_path, story, f"{knob}=1" if knob == "slow" else knob) == noticed


def test_knobs_are_turned_while_it_runs(tmp_path: Path) -> None:
    async def story(at: Desk) -> None:
        await at.conclude()
        answer = await at.send(Call("PUT", "/lab/broken", "application/json", {}, b'["http-500"]'))
        assert json.loads(answer.body) == {"http-500": ""}
        with pytest.raises(MasaUnavailable):
            await at.conclude()
        assert (await at.send(Call("PUT", "/lab/broken", "application/json", {}, b"[]"))).status == 200
        await at.conclude()
        for wrong in (b'["htp-500"]', b"7", b"{"):
            assert (await at.send(Call("PUT", "/lab/broken", "application/json", {}, wrong))).status == 400

    with_desk(tmp_path, story)


def test_unknown_knobs_are_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match="did you mean tampered"):
        read_knobs(["tamperd"])
    with pytest.raises(ValueError):
        read_knobs(["tampered=1"])
    for wrong in ("slow=never", "slow=-1", "slow=nan", "huge-body=1e9"):
        with pytest.raises(ValueError):
            read_knobs([wrong])
    assert read_knobs(["slow"]) == {"slow": "15"}


def test_knobs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["break"]) == 0
    listed = capsys.readouterr().out
    for knob in MISBEHAVIOURS:
        assert knob.name in listed and knob.effect in listed


@contextlib.contextmanager
def process(*words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    running = subprocess.Popen(
        [sys.executable, "-m", "lab", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert running.stdout is not None
        yield running, json.loads(running.stdout.readline())
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate(timeout=10)


@pytest.mark.lab
@pytest.mark.req("B-132", "B-294")
def test_process_says_when_it_is_ready_serves_and_stops_cleanly(tmp_path: Path) -> None:
    with process("masa", "--dir", str(tmp_path), "--port", "0") as (running, ready):
        assert ready["event"] == "ready" and ready["pid"] == running.pid
        at = Desk(tmp_path, ready["port"], campus_now())
        _, exchange = at.ask()
        connection = http.client.HTTPSConnection("127.0.0.1", ready["port"], context=at.tls(), timeout=10)
        connection.request("POST", exchange.call.path, exchange.call.body, {"content-type": exchange.call.media_type})
        answer = connection.getresponse()
        reply = Reply(answer.status, answer.headers["content-type"], {}, answer.read())
        assert exchange.conclude(reply, at.now).serial_number == "PX-1"
        assert connection.sock.version() in ("TLSv1.2", "TLSv1.3")
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0  # though a connection is open
        connection.close()
    device = Records(tmp_path).find("PX-1", None)
    assert device is not None
    assert len(device.log.events) == 1
    assert (tmp_path / "masa.sqlite").stat().st_mode & 0o777 == 0o600


@pytest.mark.lab
@pytest.mark.req("B-294")
@pytest.mark.parametrize("options", [(), ("--hasty",)])
def test_no_voucher_that_anybody_has_is_missing_from_the_log_after_kill_9(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    domain, received = campus_now(), []
    with process("masa", "--dir", str(tmp_path), "--port", "0", *options) as (running, ready):
        at = Desk(tmp_path, ready["port"], domain)

        async def ask_until_it_dies() -> None:
            async def one_after_the_other() -> None:
                while True:
                    _, exchange = at.ask()
                    received.append(exchange.conclude(await at.send(exchange.call), at.now).nonce)
                    if len(received) == 40:
                        running.kill()

            askers = await asyncio.gather(*(one_after_the_other() for _ in range(4)), return_exceptions=True)
            assert all(isinstance(one, aiohttp.ClientError | OSError) for one in askers), askers

        asyncio.run(ask_until_it_dies())
        assert running.wait(60) == -signal.SIGKILL
    assert len(received) >= 40
    with process("masa", "--dir", str(tmp_path), "--port", str(at.port)):

        async def look() -> tuple[list[str], list[dict[str, Any]]]:
            device = json.loads((await at.send(Call("GET", "/lab/devices/PX-1"))).body)
            requests = json.loads((await at.send(Call("GET", "/lab/requests"))).body)
            return [event["nonce"] for event in device["log"]["events"]], requests

        logged, requests = asyncio.run(look())
    assert set(received) <= set(logged)
    assert len(logged) == len(set(logged)) == len(requests)


@pytest.mark.lab
@pytest.mark.req("B-284", "B-291")
def test_process_takes_lists_and_forbidden_pins_from_files(tmp_path: Path) -> None:
    domain, crl, pins = campus_now(), tmp_path / "campus.crl", tmp_path / "public.pem"
    crl.write_bytes(revocation_list(domain, domain.certificate))
    public = campus_now("Public")
    pins.write_bytes(public.ca.certificate.public_bytes(Encoding.PEM))
    words = ("masa", "--dir", str(tmp_path / "acme"), "--crl", str(crl), "--forbid-pin", str(pins), "--demand-crl",
             "--registrars", str(pins), "--log-by-url", "--demand-issuer")  # fmt: skip
    with process(*words) as (_, ready):
        for who, reason in ((domain, b"registrar-chain-broken"), (public, b"pin-forbidden")):
            at = Desk(tmp_path / "acme", ready["port"], who)
            answer = asyncio.run(at.send(at.ask()[1].call))
            assert (answer.status, answer.body.partition(b":")[0]) == (403, reason)


@pytest.mark.lab
def test_process_refuses_unknown_knobs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab", "masa", "--dir", str(tmp_path), "--break", "nonsense"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert done.returncode == 1
    assert "nonsense" in done.stderr and "Traceback" not in done.stderr
