"""r1, r1-12: whole EAP-TLS logins with a decision, the embedded server against FreeRADIUS with its hook, CPU time.

Two appliances with the same facts stand side by side: one answers RADIUS itself, the other runs FreeRADIUS and decides
for it. 32 supplicants log in at once at either, in turn within each repetition. What is compared is the CPU time of
everything that serves: one process (and its workers) here, FreeRADIUS and the appliance behind it there. Every login
must be accepted into its VLAN with keys that match, and be in the decision log.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.clock import SystemClock
from appliance.hierarchy import IssuingCa, read_issuing
from appliance.settings import load_settings
from appliance.store import Store, Tx, certificates
from appliance.store.agents import REGISTERED, Agent
from appliance.store.agents import add as add_agent
from appliance.store.owners import ACTIVE, Owner
from appliance.store.owners import add as add_owner
from est import profiles
from est.chains import ski_of
from est.keys import spki_sha256
from lab.supplicant import authenticate
from tests.bench.campus import ORIGIN, Campus, environment, new_key
from tests.bench.measure import Bench, percentile
from tests.bench.plan import Plan

SUPPLICANTS = 32
MUST = 0.8
ARC = "1.3.6.1.4.1.32473.2026.1"
SECRET = secrets.token_urlsafe(32)
POLICY = 'version = 1\n[vlans]\nrnd = 20\nguest = 99\n[[rule]]\nname = "research"\ndepartment = "R&D"\nvlan = "rnd"\n'
DUAL_BYTES = 1081  # what the extension of a real credential weighs
VERSIONS = {"r1": "1.3", "r1-12": "1.2"}


class Site:
    """One appliance with 32 agents, and whoever speaks RADIUS for it."""

    def __init__(self, folder: Path, engine: str, plan: Plan, *settings: str) -> None:
        self.engine = engine
        self._folder = folder
        self.credentials: list[tuple[bytes, bytes]] = []
        self.campus = Campus(
            folder,
            core=plan.server_core,
            program=plan.program,
            prepare=self._prepare,
            settings=[f"radius.engine={engine}", "radius.port=0", *settings],
        )
        self.address = self.campus.address("radius")
        self.root_pem = self.campus.root_file.read_bytes()

    def _prepare(self, campus: Campus) -> None:
        passphrase = (campus.home / "passphrase").read_bytes().strip()
        _, issuing = read_issuing(campus.home, load_settings(campus.home).settings, passphrase)
        store = Store.open(f"sqlite:///{campus.database}", SystemClock())
        store.write_sync(lambda tx: self._fill(tx, issuing["agents"]))
        store.close()
        (self._folder / "policy.toml").write_text(POLICY)
        secret = self._folder / "secret"
        secret.touch(0o600)
        secret.write_text(SECRET)
        for words in (
            ("nas", "add", "bench", "127.0.0.1", "--secret-file", str(secret)),
            ("policy", "publish", str(self._folder / "policy.toml")),
        ):
            command = [sys.executable, "-m", "appliance", *words, "--home", str(campus.home)]
            subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=120)

    def _fill(self, tx: Tx, ca: IssuingCa) -> None:
        owner = f"{ORIGIN}/owner/{uuid.uuid4()}"
        add_owner(tx, Owner(str(uuid.uuid4()), owner, "bench", "Bench", "person", "R&D", ACTIVE, tx.now, tx.now))
        for _ in range(SUPPLICANTS):
            agent, key = f"{ORIGIN}/agent/{uuid.uuid4()}", new_key()
            jkt = secrets.token_urlsafe(32)
            add_agent(
                tx, Agent(str(uuid.uuid4()), agent, owner, f"{ORIGIN}/proxy/p", jkt, "", REGISTERED, tx.now, tx.now)
            )
            certificate, tbs = _certificate(ca, agent, owner, key, tx.now)
            columns = {"profile": "agent", "subject_id": agent, "agent_id": agent, "owner_id": owner,
                       "model": "agent-mediated", "txn": str(uuid.uuid4())}  # fmt: skip
            row = certificates.Pending(
                "agents", ski_of(ca.certificate) or b"", certificate.serial_number, sha256(tbs).digest(),
                spki_sha256(key.public_key()), tx.now - timedelta(minutes=5), tx.now + timedelta(hours=8), columns,
            )  # fmt: skip
            der = certificate.public_bytes(Encoding.DER)
            certificates.issue(tx, certificates.add(tx, row), der, sha256(der).digest())
            pem = certificate.public_bytes(Encoding.PEM) + ca.certificate.public_bytes(Encoding.PEM)
            self.credentials.append((pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())))

    def cpu_seconds(self) -> float:
        """CPU time of everything that serves."""
        return sum(_process_seconds(pid) for pid in self._pids())

    def _pids(self) -> Iterator[int]:
        yield self.campus.pid
        yield from (child.pid for child in psutil.Process(self.campus.pid).children(recursive=True))

    def logins(self, each: int, version: str) -> list[float]:
        """Every supplicant logs in so often; seconds of each login. AssertionError for one that is not accepted."""
        return asyncio.run(self._logins(each, version))

    async def _logins(self, each: int, version: str) -> list[float]:
        seconds: list[float] = []

        async def one(at: int, chain: bytes, key: bytes) -> None:
            for _ in range(each):
                begun = time.perf_counter()
                outcome = await authenticate(
                    *self.address, SECRET.encode(), identity="anonymous", certificate_chain_pem=chain, key_pem=key,
                    ca_pem=self.root_pem, server_name="radius.campus.example", tls_version=version,  # type: ignore[arg-type]
                    calling_station=f"02-00-00-00-00-{at:02X}", nas_port=f"swp{at}", seconds=20,
                )  # fmt: skip
                seconds.append(time.perf_counter() - begun)
                assert (outcome.code, outcome.vlan, outcome.msk_matches) == ("accept", "20", True), outcome
                assert outcome.tls_version == version

        await asyncio.gather(*(one(at, *credential) for at, credential in enumerate(self.credentials)))
        return seconds

    def check_log(self, logins: int) -> None:
        """Every login is in the decision log, and every port has one session."""
        self.campus.operation("access.log", limit=1)  # writes out what is queued
        assert self.campus.rows("SELECT count(*) FROM decisions WHERE verdict = 'accept'") == logins
        found = self.campus.operation("sessions.list")
        assert len(found) == SUPPLICANTS, len(found)


def _certificate(
    ca: IssuingCa, agent: str, owner: str, key: ec.EllipticCurvePrivateKey, now: Any
) -> tuple[x509.Certificate, bytes]:
    text = owner.encode()
    extra = [
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{ARC}.1"),
                                    b"\x04\x82" + DUAL_BYTES.to_bytes(2, "big") + bytes(DUAL_BYTES)), False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{ARC}.2"), bytes([0x16, len(text)]) + text), False),
    ]  # fmt: skip
    terms = profiles.Terms.under(
        ca.certificate, serial=secrets.randbits(126) + 1, not_before=now - timedelta(minutes=5),
        not_after=now + timedelta(hours=8),
    )  # fmt: skip
    shape = profiles.agent(
        terms, profiles.name(agent.rsplit("/", 1)[-1]), key.public_key(), identifier=agent, extra_extensions=extra
    )
    issuer = ca.signer.public_key()
    tbs = profiles.to_be_signed(shape, issuer_key=issuer)
    return x509.load_der_x509_certificate(profiles.assemble(tbs, ca.signer.sign(tbs), issuer)), tbs


def _process_seconds(pid: int) -> float:
    """CPU time of a process with the threads that it had (the clock that clock_getcpuclockid names)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def run(plan: Plan, folder: Path) -> list[Bench]:
    """What is wanted of r1 and r1-12; nothing where FreeRADIUS is not installed."""
    wanted = [name for name in VERSIONS if plan.wants(name)]
    if not wanted or shutil.which("freeradius", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        return []
    ours = theirs = None
    try:
        ours = Site(folder / "r1-embedded", "embedded", plan)
        theirs = Site(folder / "r1-freeradius", "freeradius", plan)
        return _compare(plan, wanted, ours, theirs)
    finally:
        for site, name in ((ours, "r1-embedded"), (theirs, "r1-freeradius")):
            if site is not None:
                site.campus.stop()
            if not plan.keep:
                shutil.rmtree(folder / name, ignore_errors=True)


def _compare(plan: Plan, wanted: list[str], ours: Site, theirs: Site) -> list[Bench]:
    benches = []
    each = max(1, plan.operations // (4 * SUPPLICANTS))
    made = 0
    for name in wanted:
        version = VERSIONS[name]
        bench = Bench(name, f"EAP-TLS {version} login with decision, {SUPPLICANTS} at once", "FreeRADIUS", MUST)
        waits: dict[str, list[float]] = {"embedded": [], "freeradius": []}
        for at in range(plan.repetitions + 1):
            count = each if at else 1
            figures = {}
            for site in (theirs, ours):
                before = site.cpu_seconds()
                seconds = site.logins(count, version)
                figures[site.engine] = (site.cpu_seconds() - before) / len(seconds) * 1e6
                waits[site.engine] += seconds if at else []
            made += count * SUPPLICANTS
            if at:
                bench.add(cpu=figures["embedded"], reference=figures["freeradius"], operations=count * SUPPLICANTS)
        for engine, seconds in waits.items():
            bench.notes[f"{engine}_p50_ms"] = round(percentile(seconds, 0.5) * 1000, 1)
            bench.notes[f"{engine}_p99_ms"] = round(percentile(seconds, 0.99) * 1000, 1)
        benches.append(bench)
    for site in (ours, theirs):
        site.check_log(made)
    for bench in benches:
        bench.notes["books"] = "checked"
    return benches
