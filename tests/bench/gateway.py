"""gf, gt, gn: an owner's gateway with many proxies, as a process of its own before a real identity server.

gf   1,000 requests of ten proxies wait for their owner, one proxy having brought twice as many as any other; the owner
     decides half of them in the order of the desk. Fairness = fewest / most that any proxy has been served. The gateway
     is killed three times on the way: everything that it acknowledged must come out as one credential each.
gt   rules sign; ten proxies ask at once, one of them over ten times as many connections. The same fairness, when two
     thirds of what the others want is served.
gn   CPU time of the gateway per request with 100 proxies, against one proxy, the same number of requests side by side.

Every answer is a credential that was looked at, and decisions and credentials are counted in both databases.
"""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.binding import composite, evidence, jws
from appliance.binding import request as requests
from appliance.binding.composite import Composite
from appliance.clock import SystemClock
from appliance.owner.client_key import client_keygen, gateway_keygen
from appliance.owner.gateway.deciding import by_person
from appliance.owner.gateway.fair import in_turns
from appliance.owner.gateway.queue import Queue
from appliance.owner.gateway.states import QueueState
from est import csr
from est.signer import KeySigner
from tests.bench import wire
from tests.bench.campus import ORIGIN, Campus, Owner, Proxy, new_key, start
from tests.bench.measure import Bench, cpu_seconds
from tests.bench.plan import Plan

PROXIES = 10
MANY = 100
SIDE_BY_SIDE = 8
PATH = "/v1/gateway/enroll"
RULES = 'version = 1\n[[rule]]\nname = "all"\ndecision = "approve"\n'
LIMITS = (
    "queue = 100000\nqueue_per_proxy = 100000\nqueue_per_program = 100000\nrate = 100000\nburst = 1000000\n"
    "proxy_rate = 100000\nproxy_burst = 1000000\nagent_rate = 100000\nagent_burst = 1000000\nwait_seconds = 20\n"
)


@dataclass
class Waiting:
    """One request on its way through the gateway."""

    proxy: Proxy
    signer: KeySigner
    request: requests.AgentRequest
    csr_der: bytes
    result: dict[str, Any] | None = None

    def call(self) -> bytes:
        """Handed in with fresh evidence."""
        now = int(time.time())
        seen = evidence.seal(
            self.signer, iss=self.proxy.identifier, iat=now, exp=now + 240, nonce=self.request.nonce,
            rqh=self.request.rqh, jkt=self.request.jkt, ueid=b"\x01" + bytes(16), dbgstat="disabled",
            agent={"executable": "/usr/bin/agent", "uid": 1000,
                   "executable_digest": {"alg": "sha-256", "hash": jws.base64url(bytes(32))}},
        )  # fmt: skip
        body = composite.write(Composite(self.request.token, self.csr_der, (), seen))
        return wire.request("POST", PATH, body, composite.MEDIA_TYPE)

    def take(self, answer: wire.Answer) -> bool:
        """Whether the answer is this agent's credential."""
        if answer.status == 202:
            return False
        assert answer.status in (200, 201), answer
        found = json.loads(answer.body)
        leaf = x509.load_pem_x509_certificates(found["certificate"].encode())[0]
        assert found["sub"] == self.request.sub and jws.jkt(leaf.public_key()) == self.request.jkt  # type: ignore[arg-type]
        assert self.result is None or self.result["serial"] == found["serial"], "two credentials for one request"
        self.result = found
        return True


@dataclass
class Gateway:
    """The gateway's process and files; it may be killed and started again on the same port."""

    campus: Campus
    owner: Owner
    folder: Path
    core: int | None
    rules: bool
    port: int = 0
    process: subprocess.Popen[str] | None = None
    kills: int = 0
    contexts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        now, campus = SystemClock().now(), self.campus
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self.port = int(probe.getsockname()[1])
        client = client_keygen(self.folder / "client", ref="robot", audience=ORIGIN, now=now)
        server = gateway_keygen(self.folder / "server", ref="robot", audience=ORIGIN, now=now)
        self.certificate = server.certificate_file
        campus.operation("owners.add_client_key", ref="robot", statement=client.statement_file.read_text().strip())
        key_file = self.folder / "policy.key.pem"
        key_file.touch(0o600)
        key_file.write_bytes(
            self.owner.signer._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )  # fmt: skip
        (self.folder / "answers.toml").write_text(RULES)
        host, port = campus.address("device")
        rules = 'policy = "answers.toml"\npolicy_key = "policy.key.pem"\n' if self.rules else ""
        (self.folder / "gateway.toml").write_text(
            f'version = 1\nlisten = "127.0.0.1:{self.port}"\nkey = "server"\n[limits]\n{LIMITS}[[domain]]\n'
            f'name = "campus"\nserver = "https://{host}:{port}"\nroot = "{campus.root_file}"\nclient = "client"\n'
            f'owner = "{self.owner.identifier}"\n{rules}'
        )
        self.start()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        command = [
            sys.executable, "-m", "appliance", "-o", "json", "--set", "log.level=warning", "owner", "gateway", "run",
            "--config", str(self.folder / "gateway.toml"), "--state", str(self.folder / "state"),
        ]  # fmt: skip
        self.process, _ = start(command, self.core, self.folder / "gateway.log")

    def kill(self) -> None:
        """kill -9, and up again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.kills += 1
        self.start()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(15)

    def connect(self, proxy: Proxy) -> wire.Connection:
        """A connection as this proxy, which finds the pinned key."""
        context = self.contexts.get(proxy.identifier)
        if context is None:
            context = self.contexts[proxy.identifier] = wire.tls_context(
                self.certificate, proxy.key, (proxy.certificate,), folder=self.folder
            )
        return wire.Connection(("127.0.0.1", self.port), context)

    def hand_in(self, one: Waiting, connection: wire.Connection) -> wire.Answer:
        """Once more while the gateway learns about its server."""
        for _ in range(100):
            answer = connection.exchange(one.call())
            if answer.status != 503:
                return answer
            time.sleep(0.1)
        raise AssertionError("the gateway does not reach its server")


def run(plan: Plan, folder: Path) -> list[Bench]:
    """Those of the three that the plan wants."""
    done = []
    for name, measure in (("gf", _desk), ("gt", _turns), ("gn", _many)):
        if not plan.wants(name):
            continue
        campus = Campus(folder / name, core=plan.server_core, program=plan.program)
        owner = campus.owner("robot")
        gateway = Gateway(campus, owner, folder / name / "gateway", plan.server_core, rules=name != "gf")
        try:
            done.append(measure(plan, campus, gateway))
        finally:
            gateway.stop()
            campus.stop()
    return done


def ask(campus: Campus, owner: Owner, proxy: Proxy, count: int) -> list[Waiting]:
    """Requests of as many agents behind a proxy."""
    connection = wire.Connection(campus.address("device"), proxy.context)
    signer, found = KeySigner(proxy.key), []
    for _ in range(count):
        key, now = new_key(), int(time.time())
        body = json.dumps({"jkt": jws.jkt(key.public_key()), "purpose": "issue"}).encode()
        answer = connection.exchange(wire.request("POST", "/v1/agents/nonce", body, "application/json"))
        granted = json.loads(answer.body)
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(granted["sub"])])
        csr_der = csr.build(subject=x509.Name([]), key=key, san=san)
        token = requests.seal(
            KeySigner(key), sub=granted["sub"], owner=owner.identifier, aud=granted["server_id"], iat=now,
            exp=now + 3600, jti=secrets.token_urlsafe(16), nonce=granted["nonce"], profiles=("x509", "wit"), ttl=3600,
            csr_der=csr_der, model="owner-mediated",
        )  # fmt: skip
        found.append(Waiting(proxy, signer, requests.unseal(token), csr_der))
    connection.close()
    return found


def _desk(plan: Plan, campus: Campus, gateway: Gateway) -> Bench:
    """gf."""
    total = max(2 * PROXIES, plan.operations)
    bench = Bench("gf", f"{total} pending of {PROXIES} proxies: fewest / most served, over 3 kills", "1", 0.7)
    share = total // (PROXIES + 1)
    proxies = [campus.proxy() for _ in range(PROXIES)]
    counts = [total - share * (PROXIES - 1), *([share] * (PROXIES - 1))]
    asks = [
        one for proxy, count in zip(proxies, counts, strict=True) for one in ask(campus, gateway.owner, proxy, count)
    ]
    began = time.perf_counter()
    for at, one in enumerate(asks):
        if at == total // 2:
            gateway.kill()
        connection = gateway.connect(one.proxy)
        answer = gateway.hand_in(one, connection)
        connection.close()
        assert answer.status == 202, answer
    queued = (time.perf_counter() - began) / total
    queue = Queue.open(gateway.folder / "state")
    assert queue.counts(int(time.time())) == {"queued": 0, "asked": total}, "something was lost"
    _decide(queue, gateway, total // 2)
    _collect(gateway, asks, kill_at=total // 4)
    served = Counter(one.proxy.identifier for one in asks if one.result)
    assert served.total() == total // 2
    fairness = min(served[one.identifier] for one in proxies) / max(served.values())
    _decide(queue, gateway, total)
    _collect(gateway, asks, kill_at=total // 4)
    assert all(one.result for one in asks), "something was lost"
    assert gateway.kills == 3
    _check_books(campus, queue, total)
    queue.close()
    bench.add(cpu=1.0, reference=fairness, operations=total)
    bench.notes |= {"served": sorted(served.values()), "kills": gateway.kills, "lost": 0, "books": "checked",
                    "ms_to_acknowledge": round(queued * 1000, 1)}  # fmt: skip
    return bench


def _decide(queue: Queue, gateway: Gateway, count: int) -> None:
    """The owner says yes to the first ones of the desk's list, newly looked at each time as a person would."""
    clock = SystemClock()
    waiting = queue.waiting(QueueState.ASKED, int(time.time()))
    for entry in in_turns(waiting, lambda one: one.proxy, lambda one: one.is_urgent)[:count]:
        by_person(queue, entry, gateway.owner.signer, clock, deny=False, code=None, org=())


def _collect(gateway: Gateway, asks: Sequence[Waiting], *, kill_at: int) -> None:
    """Every proxy comes again for everything that it waits for; the gateway is killed on the way."""
    served = 0
    for one in asks:
        if one.result is not None:
            continue
        connection = gateway.connect(one.proxy)
        served += one.take(gateway.hand_in(one, connection))
        connection.close()
        if served == kill_at:
            gateway.kill()
            served += 1  # once


def _turns(plan: Plan, campus: Campus, gateway: Gateway) -> Bench:
    """gt."""
    each = max(10, plan.operations // 10)
    bench = Bench(
        "gt", f"{PROXIES} proxies at once, one with ten times the connections: fewest / most served", "1", 0.7
    )
    proxies = [campus.proxy() for _ in range(PROXIES)]
    order: list[str] = []
    lock, enough = threading.Lock(), threading.Event()

    def serve(proxy: Proxy, mine: list[Waiting]) -> Callable[[], None]:
        def work() -> None:
            connection = gateway.connect(proxy)
            while not enough.is_set():
                with lock:
                    one = mine.pop() if mine else None
                if one is None:
                    break
                while not one.take(gateway.hand_in(one, connection)):
                    pass
                with lock:
                    order.append(proxy.identifier)
            connection.close()

        return work

    jobs: list[Callable[[], None]] = []
    for proxy in proxies:
        gateway.connect(proxy).close()  # makes its files before threads want them
    for at, proxy in enumerate(proxies):
        mine = ask(campus, gateway.owner, proxy, each * 3 if at == 0 else each)
        jobs += [serve(proxy, mine) for _ in range(40 if at == 0 else 4)]
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    wanted = each * PROXIES * 2 // 3
    while len(order) < wanted and any(thread.is_alive() for thread in threads):
        time.sleep(0.005)
    served = Counter(order[:wanted])
    enough.set()
    for thread in threads:
        thread.join()
    queue = Queue.open(gateway.folder / "state")
    _check_books(campus, queue, len(order))
    queue.close()
    bench.add(
        cpu=1.0, reference=min(served[one.identifier] for one in proxies) / max(served.values()), operations=wanted
    )
    bench.notes |= {"served": sorted(served.values()), "books": "checked"}
    return bench


def _many(plan: Plan, campus: Campus, gateway: Gateway) -> Bench:
    """gn."""
    bench = Bench("gn", f"CPU of the gateway per request, {MANY} proxies against one", "1 proxy", 1.3, at_least=False)
    proxies = [campus.proxy() for _ in range(MANY)]
    each = max(1, plan.operations // 4 // MANY)
    for at in range(plan.repetitions + 1):
        one = _cost(campus, gateway, proxies[:1], each * MANY)
        many = _cost(campus, gateway, proxies, each)
        if at:
            bench.add(cpu=many, reference=one, operations=2 * each * MANY)
    queue = Queue.open(gateway.folder / "state")
    _check_books(campus, queue, (plan.repetitions + 1) * 2 * each * MANY)
    queue.close()
    bench.notes["books"] = "checked"
    return bench


def _cost(campus: Campus, gateway: Gateway, proxies: Sequence[Proxy], each: int) -> float:
    """CPU microseconds of the gateway per request; as many side by side with one proxy as with a hundred."""
    asks = [ask(campus, gateway.owner, proxy, each) for proxy in proxies]
    lanes: list[list[tuple[int, Waiting]]] = [[] for _ in range(SIDE_BY_SIDE)]
    opened: list[wire.Connection] = []
    if len(proxies) == 1:
        opened = [gateway.connect(proxies[0]) for _ in range(SIDE_BY_SIDE)]
        for at, one in enumerate(asks[0]):
            lanes[at % SIDE_BY_SIDE].append((at % SIDE_BY_SIDE, one))
    else:
        opened = [gateway.connect(proxy) for proxy in proxies]
        for at, mine in enumerate(asks):
            lanes[at % SIDE_BY_SIDE] += [(at, one) for one in mine]
    failed: list[BaseException] = []

    def work(lane: list[tuple[int, Waiting]]) -> None:
        try:
            for at, one in lane:
                while not one.take(_patiently(gateway, one, opened, at)):
                    pass
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in lanes]
    before = cpu_seconds(gateway.pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = cpu_seconds(gateway.pid) - before
    for connection in opened:
        connection.close()
    if failed:
        raise failed[0]
    return cpu / (each * len(proxies)) * 1e6


def _patiently(gateway: Gateway, one: Waiting, opened: list[wire.Connection], at: int) -> wire.Answer:
    """On a kept connection, or on a new one where the gateway has closed the old one for being idle."""
    try:
        return gateway.hand_in(one, opened[at])
    except OSError:
        opened[at].close()
        opened[at] = gateway.connect(one.proxy)
        return gateway.hand_in(one, opened[at])


def _check_books(campus: Campus, queue: Queue, total: int) -> None:
    """One decision and one credential for each request, in both databases."""
    made = queue.decisions(count=1_000_000)
    yes = [row["rqh"] for row in made if row["decision"] == "approved"]
    assert len(yes) == len(set(yes)) == total, (len(yes), total)
    assert campus.issued("agent") == campus.audited("dual-identity-issued") == total, campus.issued("agent")
    campus.check_log()
