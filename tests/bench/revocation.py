"""e1, e2, f and the rule of 1.3: revocation and search over a million certificates, of which 100,000 are revoked.

e1    one CRL of 100,000 entries: microseconds of CPU per entry, the process beside the appliance counted in
e1m   the same for a million entries, with the longest time that the event loop was held
e1r   the same, bytes of memory per entry while it is built
e2    OCSP over HTTP, a signed answer at hand          e2l   ... signed when asked
f     bytes of database per certificate of 811 bytes, all indexes counted
fa    the same with the two audit entries of its issuance
fm    the same as f for certificates as the others here store them, of 700 and 1700 bytes
fr    bytes of memory per revoked certificate         fl    ... per certificate in force
s     list and search: the 95th percentile, milliseconds
a1f   EST renewal with the store full against the same with it empty
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from appliance.ca import CertificateAuthority
from appliance.clock import SystemClock
from appliance.crl import CrlKeeper
from appliance.initialise import need_passphrase
from appliance.settings import load_settings
from appliance.store import Store
from est.chains import ski_of
from tests.bench import enrol, wire
from tests.bench.campus import Campus, start, stop
from tests.bench.measure import Bench, cpu_seconds, percentile
from tests.bench.plan import Plan
from tests.bench.stored import AGENT_BYTES, DEPARTMENTS, LDEVID_BYTES, SHEET_BYTES, Sample, Stock, fill, measure_rows

FULL = ("e1", "e2", "s", "a1f")
IDS = ("f", "fr", *FULL)
MILLION = "e1m"
CONNECTIONS = 8


def run(plan: Plan, folder: Path) -> list[Bench]:
    """What the plan asks for by name: filling the store takes minutes, so none of it runs unasked."""
    done: list[Bench] = []
    wanted = [name for name in FULL if name in plan.only]
    if "f" in plan.only:
        done += _database(plan, folder / "database")
    if "fr" in plan.only:
        done += _memory(plan, folder / "memory")
    if wanted:
        done += _full(plan, folder / "full", wanted)
    if MILLION in plan.only:
        done += _million(plan, folder / MILLION)
    return done


def _full(plan: Plan, folder: Path, wanted: list[str]) -> list[Bench]:
    stock = Stock(plan.stored, plan.stored // 10, plan.stored // 10)
    samples: list[Sample] = []
    empty = Campus(folder / "empty", core=plan.server_core, program=plan.program)
    try:
        flat = enrol.kept_connections(empty, plan, 8) if "a1f" in wanted else None
    finally:
        empty.stop()

    def prepare(campus: Campus) -> None:
        samples.append(fill(campus.database, _akis(campus), stock))

    campus = Campus(folder / "home", core=plan.server_core, program=plan.program, prepare=prepare)
    try:
        sample = samples[0]
        done = [_mixed(campus, stock)]
        if "e1" in wanted:
            done += _crl(campus, plan, sample, stock.revoked)
        if "e2" in wanted:
            done += _ocsp(campus, plan, sample)
        if "s" in wanted:
            done.append(_search(campus, plan, sample))
        if flat is not None:
            done.append(_flat(campus, plan, flat))
        return done
    finally:
        campus.stop()
        if not plan.keep:
            shutil.rmtree(folder)


def _mixed(campus: Campus, stock: Stock) -> Bench:
    size = campus.database.stat().st_size
    bench = Bench(
        "fm", f"database, certificates of {LDEVID_BYTES}/{AGENT_BYTES} bytes: bytes each", "bytes", None, False
    )
    bench.add(cpu=size / stock.total, reference=1, operations=stock.total)
    return bench


def _memory(plan: Plan, folder: Path) -> list[Bench]:
    """The same store three times: expired certificates alone, some of them in force, as many more revoked."""
    total, some = plan.stored // 5, plan.stored // 10
    revoked = Bench("fr", f"memory, {some} revoked against none: bytes per revoked", "bytes", 150, False)
    live = Bench("fl", f"memory, {some} in force against none: bytes each", "bytes", None, False)
    for at in range(plan.repetitions):
        sizes = []
        for stock in (Stock(total, 0, 0), Stock(total, 0, some), Stock(total, some, some)):
            place = folder / f"{at}-{len(sizes)}"
            campus = Campus(
                place, core=plan.server_core, program=plan.program,
                prepare=lambda made, stock=stock: fill(made.database, _akis(made), stock),  # type: ignore[misc]
            )  # fmt: skip
            try:
                time.sleep(2.0)  # lists are made, what the start needed is given back
                sizes.append(resident(campus.pid))
            finally:
                campus.stop()
            if not plan.keep:
                shutil.rmtree(place)
        live.add(cpu=max(1, sizes[1] - sizes[0]) / some, reference=1, operations=some)
        revoked.add(cpu=max(1, sizes[2] - sizes[1]) / some, reference=1, operations=some)
    return [revoked, live]


def _database(plan: Plan, folder: Path) -> list[Bench]:
    campus = Campus(folder, core=plan.server_core, program=plan.program)
    campus.stop()
    count = plan.stored // 5
    rows, entries = measure_rows(campus.database, _akis(campus)["agents"], count)
    alone = Bench("f", f"database, certificates of {SHEET_BYTES} bytes: bytes each", "bytes", 2000, False)
    alone.add(cpu=rows / count, reference=1, operations=count)
    both = Bench("fa", "the same with two audit entries of 0.6 kB each", "bytes", None, False)
    both.add(cpu=(rows + entries) / count, reference=1, operations=count)
    return [alone, both]


def _crl(campus: Campus, plan: Plan, sample: Sample, entries: int) -> list[Bench]:
    speed = Bench("e1", f"CRL of {entries} entries: CPU us each", "us", 20, at_least=False)
    memory = Bench("e1r", f"CRL of {entries} entries: bytes of memory each while built", "bytes", 500, at_least=False)
    seconds, expected = [], entries
    for _ in range(plan.repetitions):
        number = campus.rows("SELECT number FROM crls WHERE role = 'devices'")
        begun, cpu, resident_before = time.monotonic(), _cpu_with_children(campus.pid), resident(campus.pid)
        _forget_peak(campus.pid)
        campus.operation("certs.revoke", serial=sample.good.pop(), reason="keyCompromise")
        sample_child, peak_child = time.monotonic(), 0
        while campus.rows("SELECT number FROM crls WHERE role = 'devices'") == number:
            peak_child = max(peak_child, _peak_of_children(campus.pid))
            time.sleep(0.01)
            assert time.monotonic() - sample_child < 60
        seconds.append(time.monotonic() - begun)
        time.sleep(1.0)  # other lists are looked at, the file is renamed
        expected += 1
        speed.add(cpu=(_cpu_with_children(campus.pid) - cpu) / expected * 1e6, reference=1, operations=expected)
        used = max(0, _peak(campus.pid) - resident_before) + peak_child
        memory.add(cpu=used / expected, reference=1, operations=expected)
    connection = wire.Connection(campus.address("pki"), None)
    found = x509.load_der_x509_crl(connection.exchange(wire.request("GET", "/crl/devices.crl")).body)
    connection.close()
    assert found.is_signature_valid(campus.ca("devices").public_key())  # type: ignore[arg-type]
    assert len(found) == expected
    assert max(seconds) < 5, seconds
    speed.notes["published_after_s"] = [round(one, 2) for one in seconds]
    speed.notes["books"] = memory.notes["books"] = "checked"
    return [speed, memory]


def _ocsp(campus: Campus, plan: Plan, sample: Sample) -> list[Bench]:
    kept = Bench("e2", "OCSP over HTTP, answer at hand", "P", 2.0, at_least=False)
    live = Bench("e2l", "OCSP over HTTP, answer signed when asked", "P", 6.0, at_least=False)
    issuer = campus.ca("devices")
    reference, ready = start(
        [sys.executable, "-m", "tests.bench.references", "aiohttp"], plan.server_core, campus.folder / "reference.log"
    )
    try:
        plain = [wire.Connection(("127.0.0.1", ready["port"]), None) for _ in range(CONNECTIONS)]
        ours = [wire.Connection(campus.address("pki"), None) for _ in range(CONNECTIONS)]
        each = max(1, 4 * plan.operations // CONNECTIONS)
        get = wire.request("GET", "/")
        fresh = iter(random.sample(sample.good + sample.revoked, k=min(len(sample.good) + len(sample.revoked), 40_000)))
        for at in range(plan.repetitions + 1):
            before = cpu_seconds(ready["pid"])
            wire.exchange_all(plain, [[get] * each] * CONNECTIONS)
            p = (cpu_seconds(ready["pid"]) - before) / (each * CONNECTIONS) * 1e6
            serials = [[next(fresh) for _ in range(max(1, each // 4))] for _ in ours]
            asked = [[_question(issuer, serial) for serial in mine] for mine in serials]
            for bench, times in ((live, 1), (kept, 4)):
                work = [mine * times for mine in asked]
                before = cpu_seconds(campus.pid)
                answers = wire.exchange_all(ours, work)
                count = sum(map(len, work))
                cpu = (cpu_seconds(campus.pid) - before) / count * 1e6
                if at:
                    bench.add(cpu=cpu, reference=p, operations=count)
                for mine, replies in zip(serials, answers, strict=True):
                    _check(sample, mine * times, replies)
        for connection in (*plain, *ours):
            connection.close()
    finally:
        stop(reference)
    live.notes["books"] = kept.notes["books"] = "checked"
    return [kept, live]


def _question(issuer: x509.Certificate, serial: str) -> bytes:
    digest = hashes.Hash(hashes.SHA1())
    digest.update(issuer.subject.public_bytes())
    key = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest  # type: ignore[arg-type]
    asked = ocsp.OCSPRequestBuilder().add_certificate_by_hash(digest.finalize(), key, int(serial, 16), hashes.SHA1())
    body = asked.build().public_bytes(Encoding.DER)
    return wire.request("POST", "/ocsp", body, "application/ocsp-request")


def _check(sample: Sample, serials: list[str], answers: list[wire.Answer]) -> None:
    revoked = set(sample.revoked)
    for serial, answer in zip(serials, answers, strict=True):
        assert answer.status == 200, answer
        found = ocsp.load_der_ocsp_response(answer.body)
        assert found.serial_number == int(serial, 16)
        wanted = ocsp.OCSPCertStatus.REVOKED if serial in revoked else ocsp.OCSPCertStatus.GOOD
        assert found.certificate_status is wanted, (serial, found.certificate_status)


def _search(campus: Campus, plan: Plan, sample: Sample) -> Bench:
    bench = Bench("s", "list and search through the admin socket: p95 in ms", "ms", 200, at_least=False)
    questions: dict[str, Callable[[], dict[str, object]]] = {
        "all": dict,
        "agent": lambda: {"agent": random.choice(sample.agents)},
        "owner": lambda: {"owner": random.choice(sample.owners)},
        "department": lambda: {"department": f"Department {random.randrange(DEPARTMENTS)}"},
        "proxy": lambda: {"proxy": random.choice(sample.proxies)},
        "serial": lambda: {"serial": random.choice(sample.good)},
        "key": lambda: {"key": random.choice(sample.keys)},
        "state": lambda: {"state": random.choice(["live", "revoked", "expired", "pending"])},
        "expiry": lambda: {"expires_after": "1d", "expires_before": "30d"},
        "proxy and state": lambda: {"proxy": random.choice(sample.proxies), "state": "revoked"},
        "department and state": lambda: {
            "department": f"Department {random.randrange(DEPARTMENTS)}",
            "state": "revoked",
        },
        "deep page": lambda: {"before": random.randrange(1, plan.stored)},
    }
    slowest: dict[str, float] = {}
    for _ in range(plan.repetitions):
        seconds = []
        for name, question in questions.items():
            for _ in range(max(1, plan.operations // 50)):
                begun = time.perf_counter()
                campus.operation("certs.list", **question())
                seconds.append(time.perf_counter() - begun)
                slowest[name] = max(slowest.get(name, 0), seconds[-1] * 1000)
        bench.add(cpu=percentile(seconds, 0.95) * 1000, reference=1, operations=len(seconds))
    bench.notes["slowest_ms"] = {name: round(one, 1) for name, one in slowest.items()}
    return bench


def _flat(campus: Campus, plan: Plan, empty: Bench) -> Bench:
    full = enrol.kept_connections(campus, plan, 8, known=campus.issued("ldevid"))
    bench = Bench("a1f", f"EST renewal with {plan.stored} certificates stored, against none", "a1x8 empty", 1.3, False)
    per_operation = statistics.median([cpu / base for cpu, base in zip(empty.cpu, empty.reference, strict=True)])
    for cpu, base in zip(full.cpu, full.reference, strict=True):
        bench.add(cpu=cpu, reference=per_operation * base, operations=plan.operations)
    bench.notes["empty_us"] = round(statistics.median(empty.cpu), 1)
    return bench


def _million(plan: Plan, folder: Path) -> list[Bench]:
    """A million entries, the keeper in this process: how long its event loop is held is seen from inside."""
    count = plan.stored
    campus = Campus(folder, core=plan.server_core, program=plan.program)
    campus.stop()
    fill(campus.database, _akis(campus), Stock(count, count, 0))
    speed = Bench(MILLION, f"CRL of {count} entries: CPU us each", "us", 20, at_least=False)
    memory = Bench("e1mr", f"CRL of {count} entries: bytes of memory each while built", "bytes", 500, at_least=False)
    asyncio.run(_build_million(campus.home, plan, count, speed, memory))
    if not plan.keep:
        shutil.rmtree(folder)
    return [speed, memory]


async def _build_million(home: Path, plan: Plan, count: int, speed: Bench, memory: Bench) -> None:
    settings, clock = load_settings(home, []).settings, SystemClock()
    store = Store.open(settings.store_url, clock)
    ca = CertificateAuthority.open(home, settings, need_passphrase(home, None), store, clock)
    keeper, held, seconds = CrlKeeper(ca, store, clock, life_hours=24), [0.0], []

    async def watch() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.002)
            held[0] = max(held[0], time.monotonic() - begun - 0.002)
            children[0] = max(children[0], _peak_of_children(os.getpid()))

    children = [0]
    task = asyncio.create_task(watch())
    for _ in range(plan.repetitions):
        before, begun = resident(os.getpid()), time.monotonic()
        cpu = _cpu_with_children(os.getpid())
        _forget_peak(os.getpid())
        await keeper.build("devices")
        seconds.append(time.monotonic() - begun)
        speed.add(cpu=(_cpu_with_children(os.getpid()) - cpu) / count * 1e6, reference=1, operations=count)
        used = max(0, _peak(os.getpid()) - before) + children[0]
        memory.add(cpu=used / count, reference=1, operations=count)
    task.cancel()
    found = x509.load_der_x509_crl(await keeper.crl("devices"))
    assert len(found) == count
    assert found.is_signature_valid(ca.issuing("devices").signer.public_key())
    store.close()
    speed.notes["seconds"] = [round(one, 2) for one in seconds]
    speed.notes["loop_held_ms"] = round(held[0] * 1000, 1)
    speed.notes["bytes"] = (home / "crl" / "devices.crl").stat().st_size


def _akis(campus: Campus) -> dict[str, bytes]:
    return {role: ski_of(campus.ca(role)) or b"" for role in ("devices", "agents")}


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return _status(pid, "VmRSS:")


def _peak(pid: int) -> int:
    return _status(pid, "VmHWM:")


def _status(pid: int, field: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:  # it has ended
        pass
    return 0


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue
    return found


def _peak_of_children(pid: int) -> int:
    return sum(_peak(child) for child in _children(pid))


def _cpu_with_children(pid: int) -> float:
    """CPU time of a process and of those it has waited for, in seconds; the latter in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[13]) + int(fields[14])
    return cpu_seconds(pid) + ticks / os.sysconf("SC_CLK_TCK")
