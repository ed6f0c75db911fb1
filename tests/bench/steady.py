"""m: a registrar whose MASA takes half a second, with hundreds of pledges in flight, and EST clients beside them.

Same load twice: against a MASA that answers at once, and against one that waits 500 ms before each of the two answers
that a bootstrap needs. Pledges wait in the appliance then, and nothing else may: throughput is held against the first
run's, or against what so many in flight can reach at all when each waits a whole second, whichever is lower. m99 holds
the 99th percentile of renewals by another client against its own in the first run.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import shutil
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from brski import Pledge, telemetry
from est import csr, transfer
from lab import factory as makers
from lab.factory import Factory
from tests.bench import wire
from tests.bench.campus import Campus, environment, new_key, start, stop
from tests.bench.measure import Bench, cpu_seconds, percentile
from tests.bench.plan import Plan

MASA_SECONDS = 0.5
MASA_ANSWERS = 2
RAMP_SECONDS = 3.0
PROCESSES = 2
FEWEST = 150.0
"""Devices made per second of a run at least; a few in flight may be through faster than the MASA's wait suggests."""
ROOM = (
    "registrar.masa_concurrency=256",
    "registrar.maker_rate=100000",
    "registrar.maker_burst=1000000",
    "registrar.request_rate=100000",
    "registrar.request_burst=1000000",
    "web.max_connections=4000",
    "web.max_connections_per_address=4000",
    "registrar.masa_seconds=30",
)
_OK = base64.b64encode(telemetry.write(telemetry.VoucherStatus(True, ""))).decode()


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one load: pledges through per second in a window of so many seconds, microseconds of the appliance's
    CPU per pledge, latencies of the client beside them."""

    rate: float
    seconds: float
    cpu: float
    beside: list[float] = field(repr=False)
    through: int
    retries: int
    took: list[float] = field(repr=False)


class Maker:
    """A manufacturer in a folder with its MASA as a process."""

    def __init__(self, folder: Path, core: int | None) -> None:
        self.folder = folder
        self.factory: Factory = makers.load_or_create(folder, now=datetime.now(UTC))
        command = [sys.executable, "-m", "lab", "masa", "--hasty", "--dir", str(folder)]
        self.process, ready = start(command, core, folder / "masa.log")
        self.authority = f"127.0.0.1:{ready['port']}"

    def slow(self, seconds: float) -> None:
        """Every answer comes so much later from now on."""
        tls = ssl.create_default_context(cafile=str(self.folder / "manufacturer" / "masa-tls-ca.pem"))
        connection = http.client.HTTPSConnection(self.authority, context=tls, timeout=10)
        connection.request("PUT", "/lab/broken", json.dumps([f"slow={seconds}"] if seconds else []))
        assert connection.getresponse().status == 200
        connection.close()

    def work(self, file: Path, count: int, registrar: x509.Certificate) -> None:
        """So many new devices with all they will say, as lines for tests.bench.pledges."""
        now = datetime.now(UTC)
        devices = self.folder / "devices"
        devices.mkdir(mode=0o700, exist_ok=True)
        with file.open("w") as lines:
            for _ in range(count):
                serial = f"m-{secrets.token_hex(6)}"
                device = self.factory.make_device(serial, now=now - timedelta(minutes=5), masa=self.authority)
                home = devices / serial
                home.mkdir(mode=0o700)
                (home / "idevid.pem").write_bytes(device.chain_pem)
                pem = home / "tls.pem"
                makers.write_file(pem, device.key_pem + device.chain_pem)
                pledge = Pledge(device.signer, device.chain, self.factory.masa_anchors)
                asked = pledge.voucher_request(registrar, nonce=secrets.token_bytes(32), now=now)
                wanted = transfer.write_base64(csr.build(subject=x509.Name([]), key=new_key()), wrapped=True)
                said = {"pem": str(pem), "status": _OK}
                said |= {"request": base64.b64encode(asked.body).decode(), "csr": base64.b64encode(wanted).decode()}
                lines.write(json.dumps(said) + "\n")


def run(plan: Plan, folder: Path) -> list[Bench]:
    """m and m99, if they are wanted."""
    if not (plan.wants("m") or plan.wants("m99")):
        return []
    home = folder / "m"
    home.mkdir(parents=True)
    maker = Maker(home / "acme", plan.client_core)
    try:
        campus = Campus(home, core=plan.server_core, settings=ROOM, program=plan.program)
        try:
            benches = _measure(campus, maker, plan)
        finally:
            campus.stop()
    finally:
        stop(maker.process)
    if not plan.keep:
        shutil.rmtree(home)
    return [bench for bench in benches if plan.wants(bench.id)]


def _measure(campus: Campus, maker: Maker, plan: Plan) -> list[Bench]:
    home = maker.folder / "manufacturer"
    campus.operation(
        "manufacturers.add", name="acme", masa_url=f"https://{maker.authority}",
        anchors_pem=(home / "ca.pem").read_text(), masa_tls_anchors_pem=(home / "masa-tls-ca.pem").read_text(),
    )  # fmt: skip
    seconds, in_flight = plan.seconds, plan.in_flight
    limit = in_flight / (MASA_SECONDS * MASA_ANSWERS)
    warm = _load(campus, maker, 1.0, in_flight, rate=limit)
    enough = max(0.6 * limit, 3 * warm.rate)  # the start is slower than the rest
    at_once = _load(campus, maker, seconds, in_flight, rate=min(enough, 1.5 * limit))
    maker.slow(MASA_SECONDS)
    late = _load(campus, maker, seconds, in_flight, rate=min(enough, limit))
    assert campus.issued("ldevid") == campus.audited("ldevid-issued") + campus.audited("ldevid-renewed")
    assert campus.rows("SELECT count(*) FROM pledges WHERE state = 'enrolled'") == sum(
        one.through for one in (warm, at_once, late)
    )
    campus.check_log()
    best = min(at_once.rate, limit)
    throughput = Bench(
        "m", f"{in_flight} pledges in flight, MASA takes 500 ms: us of wall clock per pledge", "at once or limit", 0.80
    )
    throughput.add(cpu=1e6 / late.rate, reference=1e6 / best, operations=late.through)
    throughput.notes |= {
        "books": "checked",
        "pledges/s": f"{late.rate:.0f} late, {at_once.rate:.0f} at once, limit {limit:.0f}",
        "through": f"{at_once.through} + {late.through}, none lost, {at_once.retries + late.retries} told to come back",
        "appliance's CPU": f"{late.cpu:.0f} us per pledge late, {at_once.cpu:.0f} at once",
        "window": f"{late.seconds:.0f} s late, {at_once.seconds:.0f} s at once",
        "a pledge takes": f"{_spread(late.took)} late, {_spread(at_once.took)} at once",
    }
    beside = Bench("m99", "EST renewals beside it: 99th percentile, us of wall clock", "at once", 2.0, at_least=False)
    p99, p99_at_once = percentile(late.beside, 0.99), percentile(at_once.beside, 0.99)
    beside.add(cpu=p99 * 1e6, reference=p99_at_once * 1e6, operations=len(late.beside))
    beside.notes |= {
        "books": "checked",
        "p50 ms": f"{percentile(late.beside, 0.5) * 1e3:.0f} late, {percentile(at_once.beside, 0.5) * 1e3:.0f} at once",
    }
    return [throughput, beside]


def _load(campus: Campus, maker: Maker, seconds: float, in_flight: int, *, rate: float) -> Run:
    """So many seconds with so many in flight, after a ramp; there is work for `rate` pledges per second."""
    host, port = campus.address("device")
    registrar = x509.load_pem_x509_certificate((campus.home / "certificates" / "registrar.pem").read_bytes())
    whole = RAMP_SECONDS + seconds
    each = int(max(rate, FEWEST) * whole + in_flight) // PROCESSES + 1
    files = [maker.folder / f"work-{secrets.token_hex(4)}" for _ in range(PROCESSES)]
    for file in files:
        maker.work(file, each, registrar)
    begun = time.monotonic() + 1.5
    end = begun + whole
    simulators = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.pledges", host, str(port), str(file), str(in_flight // PROCESSES),
             str(begun), str(whole)],
            stdout=subprocess.PIPE, text=True, env=environment(),
        )
        for file in files
    ]  # fmt: skip
    before = cpu_seconds(campus.pid)
    beside = _renew(campus, begun + RAMP_SECONDS, end)
    outcomes: list[dict[str, Any]] = [json.loads(one.communicate(timeout=120)[0]) for one in simulators]
    lost = [why for one in outcomes for why in one["lost"]]
    assert not lost, (len(lost), lost[:5])
    end = min([end, *(one["ran_out"] for one in outcomes if one["ran_out"])])  # a fast machine has less than a window
    seconds = end - begun - RAMP_SECONDS
    assert seconds > RAMP_SECONDS or end == begun + whole, "not enough devices were made"
    through = [moment for one in outcomes for moment in one["through"]]
    window = [moment for moment in through if begun + RAMP_SECONDS <= moment < end]
    spent = cpu_seconds(campus.pid) - before
    return Run(
        cpu=spent / len(through) * 1e6,
        rate=len(window) / seconds,
        seconds=seconds,
        beside=beside,
        through=len(through),
        retries=sum(one["retries"] for one in outcomes),
        took=[took for one in outcomes for took in one["took"]],
    )


def _spread(seconds: list[float]) -> str:
    """Median and longest."""
    return f"{percentile(seconds, 0.5):.1f} to {max(seconds):.1f} s"


def _renew(campus: Campus, begin: float, end: float) -> list[float]:
    """Another client renews ten times a second between these moments; seconds that each took."""
    proxy = campus.proxy()
    connection = wire.Connection(campus.address("device"), proxy.context)
    took: list[float] = []
    moment = begin
    while moment < end:
        key = new_key()
        message = proxy.renewal(key)
        time.sleep(max(0.0, moment - time.monotonic()))
        answer = connection.exchange(message)
        campus.enrolled(answer, key)
        took.append(answer.seconds)
        moment = max(moment + 0.1, time.monotonic())
    connection.close()
    return took
