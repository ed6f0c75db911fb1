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
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

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
    Pledge,
    Registrar,
    Voucher,
    VoucherSignatureInvalid,
    appraise,
)
from est.exchange import Call, Reply
from lab.__main__ import main
from lab.factory import Domain, Identity, load, load_identity, load_or_create, save_device
from lab.misbehave import MISBEHAVIOURS, read_knobs
from lab.mock_masa import MockMasa, Records

ROOT = Path(__file__).parents[2]


@dataclass
class Desk:
    """A pledge and a registrar in front of a MASA that listens on `port`."""

    folder: Path
    port: int
    domain: Domain
    serial: str = "PX-1"

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
        sent = self.pledge.voucher_request(self.domain.certificate, nonce=os.urandom(16), now=self.now)
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
                call.method, f"https://{self.authority}{call.path}", data=call.body, headers=headers, ssl=self.tls()
            ) as answer,
        ):
            return Reply(answer.status, answer.headers.get("content-type", ""), {}, await answer.read())

    async def conclude(self) -> Voucher:
        _, exchange = self.ask()
        return exchange.conclude(await self.send(exchange.call), self.now)


@contextlib.asynccontextmanager
async def desk(folder: Path, knobs: str = "", **options: Any) -> AsyncIterator[Desk]:
    load_or_create(folder, now=datetime.now(UTC))
    masa = MockMasa(folder, broken=read_knobs(word for word in knobs.split(",") if word), **options)
    port = await masa.start()
    try:
        yield Desk(folder, port, campus_now())
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
            log, AuditPolicy(), own_domain_ids=at.registrar.domain_ids, own_nonces=[accepted.nonce]
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


KNOBS: dict[str, tuple[Callable[[Desk], Any], Any]] = {
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


@pytest.mark.req("B-146", "B-313", "B-321", "B-332", "B-339", "T-12", "T-28", "T-30")
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
    with pytest.raises(ValueError):
        read_knobs(["slow=never"])
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
        started = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
        assert time.monotonic() - started < 5
        connection.close()
    device = Records(tmp_path).find("PX-1", None)
    assert device is not None
    assert len(device.log.events) == 1
    assert (tmp_path / "masa.sqlite").stat().st_mode & 0o777 == 0o600


@pytest.mark.lab
def test_process_refuses_unknown_knobs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab", "masa", "--dir", str(tmp_path), "--break", "nonsense"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
    )
    assert done.returncode == 1
    assert "nonsense" in done.stderr and "Traceback" not in done.stderr
