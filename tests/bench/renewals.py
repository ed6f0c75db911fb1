"""r: 500 agents renew under standing approvals at the same moment; rs: two processes race for the uses of one approval.

r is wall clock: from the first nonce to the last credential, everything that agents and proxies do included, over eight
proxies' kept connections. None may fail, and all must be through within a minute. rs counts 10,000 uses of an approval
that allows 5,000, from two processes at one store, against one process alone: no use may be counted beyond the bound.
"""

from __future__ import annotations

import json
import multiprocessing
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import composite, evidence, jws, renewal, standing
from appliance.binding import request as requests
from appliance.binding.composite import Composite
from appliance.binding.standing import Platform
from appliance.clock import SystemClock
from appliance.store import Store, standing_approvals
from appliance.store.standing_approvals import LIVE, StandingRow
from est import csr
from est.signer import KeySigner
from tests.bench import identity, wire
from tests.bench.campus import Campus, Owner, Proxy, new_key
from tests.bench.measure import Bench
from tests.bench.plan import Plan

WITHIN_SECONDS = 60.0
PROXIES = 8
UEID, DIGEST = b"\x01" + bytes(16), jws.base64url(bytes(32))


@dataclass(slots=True)
class Agent:
    """One agent with a credential; `approval` stands for its renewals."""

    sub: str
    key: ec.EllipticCurvePrivateKey
    approval: str


def run(plan: Plan, folder: Path) -> list[Bench]:
    """Both, where the plan wants them."""
    done = []
    if plan.wants("rn"):
        campus = Campus(folder / "rn", core=plan.server_core, program=plan.program)
        try:
            done.append(_renewals(campus, plan, min(500, plan.agents)))
        finally:
            campus.stop()
    if plan.wants("rns"):
        done.append(_races(folder / "rns", plan))
    return done


def _renewals(campus: Campus, plan: Plan, count: int) -> Bench:
    bench = Bench(
        "rn", f"{count} renewals at once under standing approvals, wall us each", "within 60 s", 1.0, at_least=False
    )
    owner = campus.owner("alice")
    proxies = [campus.proxy() for _ in range(PROXIES)]
    shares = [len(range(at, count, PROXIES)) for at in range(PROXIES)]
    agents = [_first(campus, owner, proxy, share) for proxy, share in zip(proxies, shares, strict=True)]
    total = sum(map(len, agents))
    for _ in range(plan.repetitions):
        keys = [[new_key() for _ in mine] for mine in agents]
        begun = time.monotonic()
        lines = [wire.Connection(campus.address("device"), one.context) for one in proxies]
        nonces = wire.exchange_all(lines, [
            [_ask_nonce(one, key) for one, key in zip(mine, new, strict=True)]
            for mine, new in zip(agents, keys, strict=True)
        ])  # fmt: skip
        bodies = [
            [
                _renew(one, key, owner, proxy, json.loads(answer.body))
                for one, key, answer in zip(mine, new, answers, strict=True)
            ]
            for mine, new, proxy, answers in zip(agents, keys, proxies, nonces, strict=True)
        ]
        answers = wire.exchange_all(lines, bodies)
        seconds = time.monotonic() - begun
        for line in lines:
            line.close()
        failed = [one for mine in answers for one in mine if one.status != 201]
        assert not failed, failed[:3]
        for mine, new, got in zip(agents, keys, answers, strict=True):
            for one, key, answer in zip(mine, new, got, strict=True):
                leaf = x509.load_pem_x509_certificates(json.loads(answer.body)["certificate"].encode())[0]
                assert leaf.public_key() == key.public_key()
                one.key = key
        bench.add(cpu=seconds / total * 1e6, reference=WITHIN_SECONDS / total * 1e6, operations=total)
        bench.notes.setdefault("seconds", []).append(round(seconds, 2))
    assert campus.audited("standing-approval-used") == bench.operations
    assert campus.issued("agent") == bench.operations + total
    campus.check_log()
    bench.notes |= {"failed": 0, "books": "checked"}
    return bench


def _first(campus: Campus, owner: Owner, proxy: Proxy, count: int) -> list[Agent]:
    made = []
    line = wire.Connection(campus.address("device"), proxy.context)
    now = int(time.time())
    for _ in range(count):
        key = new_key()
        whole = identity.ask(identity._nonce(line, key), key, owner, proxy.identifier, KeySigner(proxy.key))
        answer = line.exchange(wire.request("POST", "/v1/agents/enroll", whole.body, composite.MEDIA_TYPE))
        assert answer.status == 201, answer
        token = standing.seal(owner.signer, standing.draft(
            iss=owner.identifier, sub=whole.sub, aud=identity.SERVER_ID, iat=now, exp=now + 86_400,
            jti=secrets.token_urlsafe(16), max_ttl=3600, proxies=[proxy.identifier],
            platform=Platform(UEID, (DIGEST,), 1000),
        ))  # fmt: skip
        made.append(Agent(whole.sub, key, token))
    line.close()
    return made


def _ask_nonce(agent: Agent, key: ec.EllipticCurvePrivateKey) -> bytes:
    body = json.dumps({"jkt": jws.jkt(key.public_key()), "purpose": "renew", "sub": agent.sub}).encode()
    return wire.request("POST", "/v1/agents/nonce", body, "application/json")


def _renew(agent: Agent, key: ec.EllipticCurvePrivateKey, owner: Owner, proxy: Proxy, granted: dict[str, Any]) -> bytes:
    signer, now = KeySigner(key), int(time.time())
    csr_der = csr.build(
        subject=x509.Name([]), key=key,
        san=x509.SubjectAlternativeName([x509.UniformResourceIdentifier(agent.sub)]),
    )  # fmt: skip
    prev = renewal.seal(
        KeySigner(agent.key), sub=agent.sub, jkt=jws.jkt(key.public_key()), nonce=granted["nonce"],
        aud=granted["server_id"], iat=now, exp=now + 600,
    )  # fmt: skip
    token = requests.seal(
        signer, sub=agent.sub, owner=owner.identifier, aud=granted["server_id"], iat=now, exp=now + 3600,
        jti=secrets.token_urlsafe(16), nonce=granted["nonce"], profiles=("x509", "wit"), ttl=3600, csr_der=csr_der,
        purpose="renew", prev=prev, standing=(jws.s256(agent.approval),),
    )  # fmt: skip
    asked = requests.unseal(token)
    seen = evidence.seal(
        KeySigner(proxy.key), iss=proxy.identifier, iat=now, exp=now + 240, nonce=asked.nonce, rqh=asked.rqh,
        jkt=asked.jkt, ueid=UEID, dbgstat="disabled",
        agent={"executable": "/usr/bin/agent", "uid": 1000, "executable_digest": {"alg": "sha-256", "hash": DIGEST}},
    )  # fmt: skip
    body = composite.write(Composite(token, csr_der, (agent.approval,), seen))
    return wire.request("POST", "/v1/agents/enroll", body, composite.MEDIA_TYPE)


def _races(folder: Path, plan: Plan) -> Bench:
    tries = min(10_000, plan.operations * 10)
    bench = Bench(
        "rns", f"{tries} uses of one standing approval by two processes, wall us each", "by one", None, at_least=False
    )
    for at in range(plan.repetitions):
        alone = _count(folder / f"{at}-one", tries, 1)
        beside = _count(folder / f"{at}-two", tries, 2)
        bench.add(cpu=beside / tries * 1e6, reference=alone / tries * 1e6, operations=tries)
    bench.notes |= {"beyond the bound": 0, "books": "checked"}
    return bench


def _count(folder: Path, tries: int, processes: int) -> float:
    """Seconds for so many tries at an approval that allows half of them; every use is one transaction of its own."""
    folder.mkdir(parents=True)
    url, bound = f"sqlite:///{folder / 'a.db'}", tries // 2
    store = Store.open(url, SystemClock(), create=True)
    now = datetime.now(UTC)
    row = StandingRow("s" * 43, "o", "a", "j", "k", "t", LIVE, 0, bound, now + timedelta(days=1), now)
    store.write_sync(lambda tx: standing_approvals.add(tx, row))
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(processes + 1), context.Queue()
    workers = [
        context.Process(target=_use, args=(url, row.s256, tries // processes, ready, told)) for _ in range(processes)
    ]
    for one in workers:
        one.start()
    ready.wait(60)
    begun = time.monotonic()
    wins: Sequence[int] = [told.get(timeout=300) for _ in workers]
    seconds = time.monotonic() - begun
    for one in workers:
        one.join(30)
    found = store.read_sync(lambda tx: standing_approvals.get(tx, row.s256))
    store.close()
    assert found is not None and (sum(wins), found.uses) == (bound, bound), (wins, found)
    return seconds


def _use(url: str, s256: str, times: int, ready: Any, told: Any) -> None:
    store = Store.open(url, SystemClock())
    ready.wait(60)
    told.put(sum(store.write_sync(lambda tx: standing_approvals.use(tx, s256)) for _ in range(times)))
    store.close()
