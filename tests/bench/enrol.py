"""a1 and a2: EST enrolment on kept connections and on a new mTLS connection each, with commits, audit and checks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.hierarchy import certificate_file, read_server
from appliance.initialise import need_passphrase
from tests.bench import wire
from tests.bench.campus import Campus, new_key, start, stop
from tests.bench.measure import Bench, Primitives, cpu_seconds
from tests.bench.plan import Plan

Key = ec.EllipticCurvePrivateKey
BUSY = 32
"""Kept connections that fill a processor: what a core can do has a limit to keep, what it does beside is told."""
BUSY_WITH_NEW = 16


def kept_connections(campus: Campus, plan: Plan, count: int, *, known: int = 0) -> Bench:
    """a1: simplereenroll by `count` proxies, each on one kept connection; `known` LDevIDs were there before."""
    bench = Bench(
        "a1" if count == BUSY else f"a1x{count}",
        f"EST simplereenroll, {count} kept mTLS connection{'s' if count > 1 else ''}",
        "Rs+Rv",
        0.15 if count == BUSY else None,
    )
    proxies = [campus.proxy() for _ in range(count)]
    connections = [wire.Connection(campus.address("device"), one.context) for one in proxies]
    each = max(1, plan.operations // count)
    warm = [[one.renewal(new_key()) for _ in range(plan.warm_up)] for one in proxies]
    wire.exchange_all(connections, warm)
    for _ in range(plan.repetitions):
        keys = [[new_key() for _ in range(each)] for _ in proxies]
        requests = [[proxy.renewal(key) for key in mine] for proxy, mine in zip(proxies, keys, strict=True)]
        answers = _timed(bench, campus, connections, requests)
        _check(campus, [a for mine in answers for a in mine], [key for mine in keys for key in mine])
    for connection in connections:
        connection.close()
    _check_books(bench, campus, "ldevid-renewed", bench.operations + count * plan.warm_up, known)
    return bench


def first_enrolments(campus: Campus, plan: Plan) -> Bench:
    """a1s: simpleenroll against one-time secrets, which also makes the proxy, on one kept connection."""
    bench = Bench("a1s", "EST simpleenroll with one-time secrets, 1 kept TLS connection", "Rs+Rv", None)
    connection = wire.Connection(campus.address("device"), campus.anonymous)
    before = campus.audited("ldevid-issued")
    for at in range(plan.repetitions + 1):
        keys = [new_key() for _ in range(plan.operations if at else plan.warm_up)]
        requests = [campus.first_enrolment(key) for key in keys]
        target = bench if at else None
        (answers,) = _timed(target, campus, [connection], [requests])
        _check(campus, answers, keys)
    connection.close()
    _check_books(bench, campus, "ldevid-issued", before + bench.operations + plan.warm_up)
    return bench


def new_connections(campus: Campus, plan: Plan, at_once: int) -> Bench:
    """a2: a new mTLS connection for every simplereenroll; H is a bare OpenSSL server with the same certificate.

    Both serve so many connections at a time.
    """
    bench = Bench(
        "a2" if at_once == BUSY_WITH_NEW else f"a2x{at_once}",
        f"EST simplereenroll, a new mTLS connection each, {at_once} at a time",
        "H+Rs+Rv",
        0.50 if at_once == BUSY_WITH_NEW else None,
    )
    proxies, folder = [campus.proxy() for _ in range(at_once)], campus.folder
    process, ready = start(_bare_server(campus, folder), plan.server_core, folder / "reference.log")
    operations, bare = max(1, plan.operations // 2), wire.request("GET", "/")
    handshakes = []
    try:
        for at in range(plan.repetitions + 1):
            keys = [new_key() for _ in range(operations if at else plan.warm_up)]
            before = cpu_seconds(ready["pid"])
            callers = [proxies[number % at_once] for number in range(len(keys))]
            aimless = [(caller.context, bare) for caller in callers]
            wire.exchange_once_each(("127.0.0.1", ready["port"]), aimless, at_once=at_once)
            handshake = (cpu_seconds(ready["pid"]) - before) / len(keys) * 1e6
            work = [(caller.context, caller.renewal(key)) for caller, key in zip(callers, keys, strict=True)]
            with Primitives.during(campus.pid) as sampled:
                before = cpu_seconds(campus.pid)
                answers = wire.exchange_once_each(campus.address("device"), work, at_once=at_once)
                cpu = (cpu_seconds(campus.pid) - before) / len(keys) * 1e6
            primitives = sampled()
            _check(campus, answers, keys)
            if at:
                handshakes.append(handshake)
                bench.add(
                    cpu=cpu, reference=handshake + primitives.sign + primitives.verify, operations=len(keys)
                )  # fmt: skip
    finally:
        stop(process)
    bench.notes["h_us"] = [round(one, 1) for one in handshakes]
    bench.notes["books"] = "checked"
    assert campus.issued("ldevid") == campus.audited("ldevid-issued") + campus.audited("ldevid-renewed")
    campus.check_log()
    return bench


def run(plan: Plan, folder: Path) -> list[Bench]:
    """Every enrolment bench that the plan wants, each on an appliance of its own."""
    done = []
    benches = {
        "a1": lambda campus: kept_connections(campus, plan, BUSY),
        "a1x8": lambda campus: kept_connections(campus, plan, 8),
        "a1x1": lambda campus: kept_connections(campus, plan, 1),
        "a1s": lambda campus: first_enrolments(campus, plan),
        "a2": lambda campus: new_connections(campus, plan, BUSY_WITH_NEW),
        "a2x1": lambda campus: new_connections(campus, plan, 1),
    }
    for name, bench in benches.items():
        if plan.wants(name):
            campus = Campus(folder / name, core=plan.server_core, program=plan.program)
            try:
                done.append(bench(campus))
            finally:
                campus.stop()
            if not plan.keep:
                shutil.rmtree(folder / name)
    return done


def _timed(
    bench: Bench | None, campus: Campus, connections: Sequence[wire.Connection], requests: Sequence[Sequence[bytes]]
) -> list[list[wire.Answer]]:
    count = sum(len(mine) for mine in requests)
    with Primitives.during(campus.pid) as sampled:
        before = cpu_seconds(campus.pid)
        answers = wire.exchange_all(connections, requests)
        cpu = (cpu_seconds(campus.pid) - before) / count * 1e6
    primitives = sampled()
    if bench is not None:
        bench.add(cpu=cpu, reference=primitives.sign + primitives.verify, operations=count)
    return answers


def _check(campus: Campus, answers: Sequence[wire.Answer], keys: Sequence[Key]) -> None:
    """Every reply holds a certificate of our CA for its own key, with a serial number of its own."""
    found = [campus.enrolled(answer, key) for answer, key in zip(answers, keys, strict=True)]
    assert len({one.serial_number for one in found}) == len(keys)


def _check_books(bench: Bench, campus: Campus, event: str, expected: int, known: int = 0) -> None:
    """Rows and audit entries are as many as 200 answers."""
    assert campus.audited(event) == expected, (campus.audited(event), expected)
    issued = campus.issued("ldevid") - known
    assert issued == campus.audited("ldevid-issued") + campus.audited("ldevid-renewed")
    assert campus.audited("certificate-pending") == issued + campus.issued("ocsp-signer")
    campus.check_log()
    bench.notes["books"] = "checked"


def _bare_server(campus: Campus, folder: Path) -> list[str]:
    """The registrar's own certificate and key, in files that OpenSSL reads."""
    own = read_server(campus.home, "registrar", need_passphrase(campus.home, None))
    key = folder / "reference.key"
    key.touch(0o600)
    key.write_bytes(own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    anchors = folder / "anchors.pem"
    anchors.write_bytes(
        campus.devices_ca.public_bytes(Encoding.PEM) + campus.ca("root").public_bytes(Encoding.PEM)
    )  # fmt: skip
    return [
        sys.executable, "-m", "tests.bench.references", "mtls",
        str(certificate_file(campus.home, "registrar")), str(key), str(anchors),
    ]  # fmt: skip
