"""d3: what the decision costs FreeRADIUS; and the decision port's tail and its pauses with a large campus.

F is FreeRADIUS' own CPU time per EAP-TLS login without the hook. The campus has ten agents for every one of the plan,
all in memory, and as many revoked credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.access.raddb_folder import find_program
from appliance.access.service import AccessService
from appliance.clock import SystemClock
from appliance.hierarchy import key_file
from appliance.keys import read_key
from appliance.memory import SWITCH_SECONDS
from appliance.settings import AccessSettings
from appliance.store import Store, Tx, certificates
from est import profiles
from est.chains import ski_of
from est.signer import KeySigner
from lab.supplicant import TlsVersion, authenticate
from radius import AccessRequest, CredentialRef
from radius.render import read_raddb, write_raddb
from tests.bench import wire
from tests.bench.campus import Campus
from tests.bench.decide import DEPARTMENTS, LIFE, Population, policy
from tests.bench.measure import Bench, awake, cpu_seconds, percentile
from tests.bench.plan import Plan

BY_FREERADIUS = ("d3", "d3v2", "d3h", "d1p")
IDS = (*BY_FREERADIUS, "d1s", "d1v")
SECRET = "secret-of-the-bench-0123456789"
AT_ONCE = 8
SLICE = 40
_NO_HOOK = """server check-eap-tls {
	authorize {
		update control {
			&Auth-Type := Accept
		}
		update reply {
			&Tunnel-Type := VLAN
			&Tunnel-Medium-Type := IEEE-802
			&Tunnel-Private-Group-Id := "100"
			&User-Name := "spiffe://campus.example/agent/4612c109-3ccf-467b-ac81-34cda695bcc7"
			&Class := 0x39386434356261302d646230662d343835392d616638612d613464343363306439353833
		}
	}
}
"""


@dataclass(frozen=True, slots=True)
class Login:
    """A supplicant's credential."""

    serial: int
    chain_pem: bytes
    key_pem: bytes


class People(Population):
    """The population, as many revoked credentials again, and a few agents that can really log in."""

    def __init__(self, agents: int, owners: int, token: str, logins: int) -> None:
        super().__init__(agents, owners, token)
        self.logins: list[Login] = []
        self._count = logins
        self.revoked: list[int] = []

    def fill(self, campus: Campus, tx: Tx) -> None:
        ca = campus.ca("agents")
        aki = ski_of(ca) or b""
        signer = KeySigner(read_key(key_file(campus.home, "agents"), (campus.home / "passphrase").read_bytes().strip()))
        self.write(tx, aki)
        for serial in list(self.vlan_of):
            gone = serial ^ (1 << 126)
            columns = {"profile": "agent", "subject_id": self.name_of[serial], "agent_id": self.name_of[serial]}
            row = certificates.Pending("agents", aki, gone, secrets.token_bytes(32), secrets.token_bytes(32), tx.now,
                                       tx.now + LIFE, columns)  # fmt: skip
            certificates.add(tx, row)
            certificates.revoke(tx, aki.hex(), gone, "superseded")
            self.revoked.append(gone)
        for serial in list(self.vlan_of)[: self._count]:
            key = ec.generate_private_key(ec.SECP256R1())
            start = tx.now.replace(microsecond=0)
            terms = profiles.Terms.under(ca, serial=serial, not_before=start, not_after=start + LIFE)
            shape = profiles.agent(terms, profiles.name("a"), key.public_key(), identifier=self.name_of[serial])
            tbs = profiles.to_be_signed(shape, issuer_key=signer.public_key())
            leaf = x509.load_der_x509_certificate(profiles.assemble(tbs, signer.sign(tbs), signer.public_key()))
            pem = leaf.public_bytes(Encoding.PEM) + ca.public_bytes(Encoding.PEM)
            own = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            self.logins.append(Login(serial, pem, own))


class FreeRadiusAlone:
    """A FreeRADIUS on a folder, pinned to a core."""

    def __init__(self, folder: Path, core: int | None) -> None:
        self.log = folder / "run" / "bench.log"

        def pin() -> None:
            if core is not None:
                os.sched_setaffinity(0, {core})

        self.process = subprocess.Popen(
            [find_program(), "-f", "-d", str(folder), "-l", str(self.log)], preexec_fn=pin,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 15
        while not (self.log.exists() and "Ready to process" in self.log.read_text(errors="replace")):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def run(plan: Plan, folder: Path) -> list[Bench]:
    """Those of IDS that are wanted, only by name; d1s and d1v alone do without FreeRADIUS."""
    if not any(name in plan.only for name in IDS):
        return []
    people = People(10 * plan.agents, 10 * plan.owners, secrets.token_urlsafe(32), 64)
    found: list[Bench] = []

    def before(campus: Campus) -> None:
        if plan.wants("d1s"):
            found.append(_pauses(campus, people))

    port = _free_port()
    campus = Campus(
        folder / "logins", core=plan.server_core, program=plan.program, fill=people.fill, prepare=before,
        settings=(f"radius.port={port}",),
    )  # fmt: skip
    try:
        campus.operation("policy.publish", text=policy())
        campus.operation("nas.add", name="bench", address="127.0.0.1", secret=SECRET)
        if any(plan.wants(name) for name in BY_FREERADIUS):
            found += _logins(campus, plan, people, folder / "logins", port)
        if plan.wants("d1v"):
            found.append(_change(campus, people))
        return found
    finally:
        campus.stop()
        if not plan.keep:
            shutil.rmtree(folder / "logins")


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _logins(campus: Campus, plan: Plan, people: People, folder: Path, port: int) -> list[Bench]:
    """d3 and d3h by turns with and without the hook; d1p by turns with F."""
    for one in (folder, folder.parent):
        one.chmod(0o711)  # FreeRADIUS' user passes through
    with_hook, without = folder / "raddb", folder / "raddb-alone"
    campus.operation("radius.render", folder=str(with_hook))
    other, accounting = _free_port(), _free_port()
    files = {
        name: text.replace(str(with_hook), str(without))
        .replace(f"port = {port}", f"port = {other}")
        .replace("port = 1813", f"port = {accounting}")
        for name, text in read_raddb(with_hook).items()
    }
    write_raddb({**files, "sites-enabled/check-eap-tls": _NO_HOOK}, without)
    benches = {
        "d3": Bench("d3", "FreeRADIUS with the hook, EAP-TLS 1.3", "F", 1.15, at_least=False),
        "d3v2": Bench("d3v2", "FreeRADIUS with the hook, EAP-TLS 1.2", "F", 1.15, at_least=False),
        "d3h": Bench("d3h", "the appliance's part of a login", "F", 0.25, at_least=False),
        "d1p": Bench("d1p", f"decision, 99th percentile, {len(people.vlan_of)} agents", "F", 0.3, at_least=False),
    }
    servers: dict[int, FreeRadiusAlone] = {}

    def by_turns(first: int, second: int, version: str, count: int) -> dict[int, tuple[float, float]]:
        """CPU microseconds per login of each FreeRADIUS, and of the appliance meanwhile.

        They take turns every few logins, because a busy neighbour is busy for seconds. FreeRADIUS has its processor
        for itself, with the hook as without: the appliance shares that of the supplicants.
        """
        _place(campus.pid, plan.client_core)
        spent = {first: (0.0, 0.0), second: (0.0, 0.0)}
        slices = max(1, count // SLICE)
        for turn in range(slices):
            for where in (first, second) if turn % 2 else (second, first):
                pids = servers[where].process.pid, campus.pid
                before = [cpu_seconds(pid) for pid in pids]
                asyncio.run(_log_in(people, where, version, count // slices, root))  # type: ignore[arg-type]
                own, hook = (cpu_seconds(pid) - then for pid, then in zip(pids, before, strict=True))
                spent[where] = spent[where][0] + own, spent[where][1] + hook
        done = count // slices * slices
        return {where: (own / done * 1e6, hook / done * 1e6) for where, (own, hook) in spent.items()}

    root = (campus.home / "certificates" / "root.pem").read_bytes()
    count = max(AT_ONCE * 2, plan.operations // 2)
    try:
        for where, raddb in ((port, with_hook), (other, without)):
            servers[where] = FreeRadiusAlone(raddb, plan.server_core)
        for at in range(plan.repetitions + 1):
            for version, name in (("1.3", "d3"), ("1.2", "d3v2")):
                cost = by_turns(port, other, version, count if at else AT_ONCE * 2)
                if at:
                    alone = cost[other][0]
                    benches[name].add(cpu=cost[port][0], reference=alone, operations=count)
                    if version == "1.3":
                        # its log is written a little later, while the other one has its turn
                        hook = cost[port][1] + cost[other][1]
                        benches["d3h"].add(cpu=hook, reference=alone, operations=count)
                        benches["d1p"].add(cpu=_tail(campus, plan, people, benches["d1p"]), reference=alone,
                                           operations=4 * plan.operations)  # fmt: skip
    finally:
        for one in servers.values():
            one.stop()
    for bench in benches.values():
        bench.notes["books"] = "checked"
    return [bench for name, bench in benches.items() if plan.wants(name)]


async def _log_in(people: People, port: int, version: TlsVersion, count: int, root: bytes) -> None:
    """So many logins, AT_ONCE at a time; each must end in a VLAN."""
    todo = iter(range(count))

    async def one() -> None:
        for at in todo:
            login = people.logins[at % len(people.logins)]
            outcome = await authenticate(
                "127.0.0.1", port, SECRET.encode(), identity="x", certificate_chain_pem=login.chain_pem,
                key_pem=login.key_pem, ca_pem=root, server_name="radius.campus.example", tls_version=version,
            )  # fmt: skip
            assert outcome.code == "accept" and outcome.vlan is not None, outcome

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))


def _tail(campus: Campus, plan: Plan, people: People, bench: Bench) -> float:
    """The 99th percentile of decisions one after the other, microseconds, without what other programs took, nor what
    it takes a processor to wake up.

    That is the time for which the kernel kept client or server, both ready to run, from their processors.
    """
    _place(campus.pid, plan.server_core)
    aki = (ski_of(campus.ca("agents")) or b"").hex()
    connection = wire.Connection(campus.address("decision"), campus.anonymous)
    serials = list(people.vlan_of)
    wall, own = [], []
    with awake(plan.server_core, plan.client_core):
        for _ in range(4 * plan.operations):
            call = people.call(secrets.choice(serials), aki)
            before = _kept_waiting(campus.pid)
            answer = connection.exchange(call)
            taken = _kept_waiting(campus.pid) - before
            assert answer.status == 200
            wall.append(answer.seconds)
            own.append(max(0.0, answer.seconds - taken))
    connection.close()
    bench.notes |= {
        "p50_us": round(percentile(own, 0.5) * 1e6), "p999_us": round(percentile(own, 0.999) * 1e6),
        "p50_wall_us": round(percentile(wall, 0.5) * 1e6), "p99_wall_us": round(percentile(wall, 0.99) * 1e6),
    }  # fmt: skip
    return percentile(own, 0.99) * 1e6


def _place(pid: int, core: int | None) -> None:
    """Move every thread of a process to a core."""
    if core is not None:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), {core})


def _kept_waiting(pid: int) -> float:
    """Seconds that the server's answering thread and this one have waited for a processor so far."""
    files = (f"/proc/{pid}/task/{pid}/schedstat", f"/proc/self/task/{threading.get_native_id()}/schedstat")
    return sum(int(Path(one).read_text().split()[1]) for one in files) / 1e9


def _change(campus: Campus, people: People) -> Bench:
    """d1v: how long after the answer to `owners move` the old department is still decided on."""
    bench = Bench("d1v", "a change of department in the next decision, ms of 5 s", "5 s", 1.0, at_least=False)
    serial = people.logins[0].serial
    aki = (ski_of(campus.ca("agents")) or b"").hex()
    connection = wire.Connection(campus.address("decision"), campus.anonymous)
    for _ in range(20):
        department = secrets.choice(DEPARTMENTS)
        campus.operation("owners.move", ref="owner-0", department=department)
        begun = time.monotonic()
        wanted = str(100 + DEPARTMENTS.index(department))
        while True:
            body = json.loads(connection.exchange(people.call(serial, aki)).body)
            if body["reply:Tunnel-Private-Group-Id"]["value"][0] == wanted:
                break
            assert time.monotonic() - begun < 10
        bench.add(cpu=(time.monotonic() - begun) * 1e6, reference=5e6, operations=1)
    connection.close()
    bench.notes["books"] = "checked"
    return bench


def _pauses(campus: Campus, people: People) -> Bench:
    """d1s: how long the event loop stands still while the snapshot is read anew, and while changes come in.

    In CPU time of the process: what other processes take away meanwhile is no pause of ours.
    """
    bench = Bench(
        "d1s", f"longest pause of a snapshot swap, {len(people.vlan_of)} agents", "10 ms", 1.0, at_least=False
    )

    async def act() -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        store = Store.open(f"sqlite:///{campus.database}", SystemClock())
        access = AccessService(AccessSettings(), store, SystemClock())
        try:
            await access.start()
            for work in (access.reload, lambda: _changes(store, people)):
                longest = 0.0
                task = asyncio.ensure_future(work())
                last = time.process_time()
                while not task.done():
                    await asyncio.sleep(0)
                    now = time.process_time()
                    longest, last = max(longest, now - last), now
                await task
                bench.add(cpu=longest * 1e6, reference=10_000, operations=1)
            credential = CredentialRef((ski_of(campus.ca("agents")) or b"").hex(), people.revoked[0])
            assert access.simulate(AccessRequest(credential=credential)).reason_code == "credential-revoked"
        finally:
            await access.stop()
            store.close()

    asyncio.run(act())
    bench.notes["reload_ms"], bench.notes["changes_ms"] = (round(one / 1000, 2) for one in bench.cpu)
    bench.notes["books"] = "checked"
    return bench


async def _changes(store: Store, people: People) -> None:
    """Six hundred new credentials, as issuance announces them."""
    for at in range(600):
        body = {
            "issuer_role": "agents", "issuer_aki": "aa" * 20, "serial": f"{at + 1:x}", "state": "issued",
            "profile": "agent", "not_before": 0, "not_after": 2**50, "subject_id": f"{uuid.uuid4()}",
            "agent_id": "a", "owner_id": None, "model": "", "txn": "",
        }  # fmt: skip
        await store.write(lambda tx, body=body: tx.emit("certificate", body["serial"], body))
