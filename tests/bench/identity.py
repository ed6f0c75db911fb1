"""c: dual-identity issuance, X.509 and WIT for one key, against the signatures and verifications that it really makes.

Measured is the enrol call (POST /v1/agents/enroll) alone; the nonce call before it is not in the figure. Request, CSR,
approval and evidence are real and fresh for every operation, as in the demo, made before the clock starts.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import approval, composite, evidence, jws, possession
from appliance.binding import request as requests
from appliance.binding.composite import Composite
from appliance.binding.facts import OwnerKey, OwnerRecord
from appliance.binding.verify import TrustDomain, verify_certificate
from appliance.clock import SystemClock
from appliance.compose import create_appliance
from appliance.initialise import need_passphrase
from appliance.settings import load_settings
from appliance.web.peer import Peer
from est import cms, csr
from est.chains import TrustAnchors
from est.exchange import Call
from est.signer import KeySigner
from tests.bench import wire
from tests.bench.campus import EST, ORIGIN, PLENTY, Campus, Owner, environment, new_key
from tests.bench.measure import Bench, Primitives, cpu_seconds
from tests.bench.plan import Plan

SERVER_ID = "https://ids.campus.example/v1"
BUSY = 64
"""An issuance waits for the disk twice, so it takes twice the connections of an enrolment to fill a processor."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One agent's request, complete: what the proxy hands in."""

    sub: str
    key: ec.EllipticCurvePrivateKey
    body: bytes


def ask(
    granted: Mapping[str, Any], key: ec.EllipticCurvePrivateKey, owner: Owner, proxy_id: str, proxy: KeySigner
) -> Ask:
    """Request by the agent, approval by the owner, evidence by the proxy."""
    signer, now = KeySigner(key), int(time.time())
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(granted["sub"])])
    csr_der = csr.build(subject=x509.Name([]), key=key, san=san)
    token = requests.seal(
        signer, sub=granted["sub"], owner=owner.identifier, aud=granted["server_id"], iat=now, exp=now + 3600,
        jti=secrets.token_urlsafe(16), nonce=granted["nonce"], profiles=("x509", "wit"), ttl=3600, csr_der=csr_der,
    )  # fmt: skip
    asked = requests.unseal(token)
    approved = approval.seal(
        owner.signer, asked, iss=owner.identifier, iat=now, exp=now + 3600, jti=secrets.token_urlsafe(16)
    )
    seen = evidence.seal(
        proxy, iss=proxy_id, iat=now, exp=now + 240, nonce=asked.nonce, rqh=asked.rqh, jkt=asked.jkt,
        ueid=b"\x01" + bytes(16), dbgstat="disabled",
        agent={"executable": "/usr/bin/agent", "uid": 1000, "pid": 4711, "swname": "agent",
               "executable_digest": {"alg": "sha-256", "hash": jws.base64url(bytes(32))},
               "cgroup": "0::/system.slice/agent.service"},
    )  # fmt: skip
    return Ask(granted["sub"], key, composite.write(Composite(token, csr_der, (approved,), seen)))


def run(plan: Plan, folder: Path) -> list[Bench]:
    """c on as many kept connections as fill a processor, the others on as many as they are called after."""
    wanted = [(f"cx{count}", count) for count in (1, 8, 32) if plan.wants(f"cx{count}")]
    if plan.wants("c"):
        wanted.insert(0, ("c", BUSY))
    if not wanted:
        return []
    signatures, verifications = counted(folder / "counted")
    done = []
    for name, count in wanted:
        campus = Campus(folder / name, core=plan.server_core, program=plan.program)
        try:
            done.append(_issue(name, campus, plan, count, signatures, verifications))
        finally:
            campus.stop()
    return done


def _issue(name: str, campus: Campus, plan: Plan, count: int, signatures: int, verifications: int) -> Bench:
    bench = Bench(name, f"dual identity, X.509 and WIT, {count} kept mTLS connection{'s' * (count > 1)}",
                  f"{signatures} Rs + {verifications} Rv", 0.30 if count == BUSY else None)  # fmt: skip
    owner = campus.owner("alice")
    proxies = [campus.proxy() for _ in range(count)]
    signers = [KeySigner(one.key) for one in proxies]
    connections = [wire.Connection(campus.address("device"), one.context) for one in proxies]
    operations = max(count, plan.operations)
    for at in range(plan.repetitions + 1):
        each = max(1, (operations if at else plan.warm_up) // count)
        asks = [
            [
                ask(_nonce(connection, key), key, owner, proxy.identifier, signer)
                for key in (new_key() for _ in range(each))
            ]
            for connection, proxy, signer in zip(connections, proxies, signers, strict=True)
        ]
        calls = [
            [wire.request("POST", "/v1/agents/enroll", one.body, composite.MEDIA_TYPE) for one in mine] for mine in asks
        ]
        with Primitives.during(campus.pid) as sampled:
            before = cpu_seconds(campus.pid)
            answers = wire.exchange_all(connections, calls)
            cpu = (cpu_seconds(campus.pid) - before) / (each * count) * 1e6
        primitives = sampled()
        _check(campus, owner, [one for mine in asks for one in mine], [one for mine in answers for one in mine])
        if at:
            reference = signatures * primitives.sign + verifications * primitives.verify
            bench.add(cpu=cpu, reference=reference, operations=each * count)
            bench.notes.setdefault("against_rs_3rv", []).append(
                round((primitives.sign + 3 * primitives.verify) / cpu, 3)
            )
        else:
            warmed = each * count
    for connection in connections:
        connection.close()
    expected = bench.operations + warmed
    assert campus.issued("agent") == expected
    assert campus.audited("dual-identity-issued") == expected
    campus.check_log()
    bench.notes["books"] = "checked"
    return bench


def _nonce(connection: wire.Connection, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    body = json.dumps({"jkt": jws.jkt(key.public_key()), "purpose": "issue"}).encode()
    answer = connection.exchange(wire.request("POST", "/v1/agents/nonce", body, "application/json"))
    assert answer.status == 200, answer
    granted: dict[str, Any] = json.loads(answer.body)
    return granted


def _check(campus: Campus, owner: Owner, asks: Sequence[Ask], answers: Sequence[wire.Answer]) -> None:
    """Each reply has the agent's own key, verified offline with the owner's key, and a WIT."""
    now, anchors = SystemClock().now(), TrustAnchors((campus.ca("agents"),))
    record = OwnerRecord(owner.identifier, [OwnerKey(jws.jkt(owner.signer.public_key()), owner.signer.public_key())])
    serials = set()
    for one, answer in zip(asks, answers, strict=True):
        assert answer.status == 201, answer
        document = json.loads(answer.body)
        leaf, *rest = x509.load_pem_x509_certificates(document["certificate"].encode())
        assert leaf.public_key() == one.key.public_key()
        report = verify_certificate(leaf, rest, TrustDomain(ORIGIN, SERVER_ID, anchors), lambda _: record, at=now)
        assert (report.agent_id, report.owner_id) == (one.sub, owner.identifier)
        assert document["wit"].count(".") == 2
        serials.add(leaf.serial_number)
    assert len(serials) == len(asks)


def counted(folder: Path) -> tuple[int, int]:
    """Signatures and verifications of one issuance, counted on an appliance in this process without sockets.

    The interpreter reports every call into a library. A chain to an issuing CA is one verification.
    """
    folder.mkdir(parents=True)
    home = folder / "home"
    init = [sys.executable, "-m", "appliance", "init", "--home", str(home), "--trust-domain", "campus.example"]
    subprocess.run([*init, "--org", "x"], check=True, capture_output=True, env=environment(), timeout=120)
    settings = load_settings(home, ["radius.engine=none", *PLENTY]).settings
    calls: Counter[str] = Counter()
    counting = False

    def watch(frame: FrameType, event: str, function: Any) -> None:
        if counting and event == "c_call":
            owner = type(getattr(function, "__self__", None)).__name__
            calls[f"{owner}.{function.__name__}"] += 1

    async def one() -> None:
        nonlocal counting
        appliance = create_appliance(settings, passphrase=need_passphrase(home, None))
        try:
            await appliance.prepare()
            proxy, peer = await _proxy_in_process(appliance)
            signer, now = KeySigner(new_key()), int(time.time())
            made = await appliance.operations.call("owners.add", {"ref": "alice", "department": "R&D"})
            statement = possession.seal(
                signer, sub="alice", aud=ORIGIN, iat=now, exp=now + 60, jti=secrets.token_urlsafe(16)
            )
            await appliance.operations.call("owners.add_key", {"ref": "alice", "statement": statement})
            owner = Owner(made["identifier"], signer)
            for last in (False, False, True):
                key = new_key()
                granted = await appliance.identity.nonce(jws.jkt(key.public_key()), "issue", None, peer)
                values = {"nonce": granted.nonce, "sub": granted.sub, "server_id": granted.server_id}
                whole = ask(values, key, owner, _uri(peer), proxy)
                counting = last
                await appliance.identity.request(whole.body, peer)
                counting = False
        finally:
            await appliance.stop()

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        asyncio.run(one())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    verifies = ("ECPublicKey.verify", "ClientVerifier.verify", "Certificate.verify_directly_issued_by")
    return calls["ECPrivateKey.sign"], sum(calls[name] for name in verifies)


async def _proxy_in_process(appliance: Any) -> tuple[KeySigner, Peer]:
    made = await appliance.operations.call("est.secret", {"name": "bench"})
    key = new_key()
    basic = base64.b64encode(f"{made['name']}:{made['secret']}".encode()).decode()
    call = Call("POST", f"{EST}/simpleenroll", "application/pkcs10", {"authorization": f"Basic {basic}"},
                base64.b64encode(csr.build(subject=x509.Name([]), key=key)))  # fmt: skip
    reply = await appliance.registrar.endpoints["est.simpleenroll"](call, Peer("192.0.2.1", 1), {})
    (certificate,) = cms.read_certs_only(base64.b64decode(reply.body))
    return KeySigner(key), Peer("192.0.2.1", 2, certificate, (certificate, *appliance.ca.chain("devices")), "TLSv1.3")


def _uri(peer: Peer) -> str:
    assert peer.certificate is not None
    san = peer.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return san.get_values_for_type(x509.UniformResourceIdentifier)[0]
