"""A RADIUS server on another machine: another network namespace and folder, and nothing shared but the cable.

The appliance has a namespace of its own too, so that the addresses of the machine that runs this do not matter.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import json
import secrets
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.access.raddb_folder import owner_of, run_as
from appliance.access.remote import Remote
from appliance.clock import SystemClock
from appliance.hierarchy import certificate_file, key_file
from appliance.initialise import initialise
from appliance.keys import read_key
from appliance.proxy.connection import Target, open_verified
from appliance.store import certificates
from appliance.store.agents import REGISTERED, Agent
from appliance.store.agents import add as add_agent
from appliance.store.owners import ACTIVE, Owner
from appliance.store.owners import add as add_owner
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est import cms, csr, profiles, transfer
from est.certificates import aki_of
from est.chains import ski_of
from est.client import EstClient
from est.keys import spki_sha256
from est.signer import KeySigner
from lab import topology
from lab.supplicant import Outcome, authenticate
from lab.topology import Cable, Machine
from radius.render import read_raddb, write_raddb
from tests.campus import NAS_SECRET, ORIGIN, Ran, appliance, environment, run_here
from tests.interop.radius_tools import RadSecWire, need_freeradius
from tests.radius.test_packets import GOOD

T = TypeVar("T")
WHY_NOT = topology.why_not()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.interop,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
DEVICE_PORT, DECISION_PORT, RADSEC_PORT = 8443, 8444, 2083
HERE, THERE = "203.0.113.1", "203.0.113.2"
POLICY = """
version = 1
[vlans]
research = 20
guest = 99
[[rule]]
name = "research"
department = "R&D"
vlan = "research"
"""


POLICY_WITH_PROXIES = """
version = 2
[vlans]
research = 20
infrastructure = 5
guest = 99
[[rule]]
name = "research"
department = "R&D"
vlan = "research"
[[rule]]
name = "proxies"
credential = "proxy"
vlan = "infrastructure"
"""


@dataclass
class Machines:
    """The appliance's machine and home, the other machine and its folder, and an agent's files."""

    home: Path
    there: Path
    near: Machine
    far: Machine
    fingerprint: str
    agent_pem: bytes = b""
    agent_key: bytes = b""
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def cli(self, *words: str | Path) -> Ran:
        return run_here(*words, "--home", self.home, "-o", "json")

    def over_there(self, *words: str | Path) -> Ran:
        command = self.far.command(sys.executable, "-m", "appliance", *words)
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240, check=False)
        return Ran(done.returncode, done.stdout, done.stderr)

    def enroll(self, *more: str | Path) -> Ran:
        return self.over_there(
            "radius", "enroll", f"https://{HERE}:{DEVICE_PORT}", "--decision",
            f"https://{HERE}:{DECISION_PORT}", "--dir", self.there, "--fingerprint", self.fingerprint,
            "--set", f"radius.host={THERE}", "-o", "json", *more,
        )  # fmt: skip

    def start(self, *words: str | Path, there: bool = False) -> subprocess.Popen[str]:
        machine = self.far if there else self.near
        process = subprocess.Popen(
            machine.command(sys.executable, "-m", "appliance", *words, "-o", "json"),
            stdout=subprocess.PIPE, stderr=(self.home.parent / f"{len(self.processes)}.log").open("w"), text=True,
            env=environment(),
        )  # fmt: skip
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert '"ready"' in line, [path.read_text()[-3000:] for path in self.home.parent.glob("*.log")]
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            if process.stdout is not None:
                process.stdout.close()

    def decide(
        self, files: tuple[Path, Path] | None, token: str, method: str = "POST", path: str = "/v1/decide"
    ) -> int:
        """The status of a call of the decision port with this certificate and token; 0 where TLS refuses."""
        context = ssl.create_default_context(cafile=str(certificate_file(self.home, "root")))
        if files is not None:
            context.load_cert_chain(*files)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

        def ask() -> int:
            connection = http.client.HTTPSConnection(HERE, DECISION_PORT, context=context, timeout=60)
            try:
                connection.request(method, path, b"{}" if method == "POST" else None, headers)
                return connection.getresponse().status
            except OSError:
                return 0
            finally:
                connection.close()

        return self.near.run(ask)

    def here(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; its sockets are the near machine's."""
        return self.near.run(lambda: asyncio.run(work))

    async def log_in(
        self,
        root: bytes = b"",
        radsec: tuple[Path, Path] | None = None,
        proxy: tuple[bytes, bytes] | None = None,
        secret: bytes = b"",
    ) -> Outcome:
        """As the agent, or as a proxy with its LDevID and key; over RadSec with a NAS's certificate and key.

        `root` is believed; none: that of `init`.
        """
        chain, key = proxy or (self.agent_pem, self.agent_key)
        root, name = root or certificate_file(self.home, "root").read_bytes(), "radius.campus.example"
        wire = None
        if radsec is not None:
            wire = await RadSecWire.open_files(RADSEC_PORT, *radsec, root.decode(), name, "1.3", THERE)
        seconds = 2 if secret else 15
        port, right = (1812, NAS_SECRET.encode()) if wire is None else (RADSEC_PORT, RadSecWire.SECRET)
        try:
            return await authenticate(
                THERE, port, secret or right, identity="x", certificate_chain_pem=chain, key_pem=key,
                ca_pem=root, server_name=name, seconds=seconds, wire=wire,
            )  # fmt: skip
        finally:
            if wire is not None:
                await wire.close()

    def rollover(self, verb: str, role: str, *more: str) -> dict[str, str]:
        done = self.cli("ca", "rollover", verb, "--role", role, *more)
        assert done.status == 0, done.err
        return dict(done.json)

    async def ldevid(self, name: str, root_pem: bytes) -> tuple[bytes, bytes]:
        """The LDevID, PEM, that a proxy gets for a one-time secret from the CA that signs now, and its key."""
        made = self.cli("est", "secret", "new", "--for", name)
        assert made.status == 0, made.err
        key, client = ec.generate_private_key(ec.SECP256R1()), EstClient()
        call = client.simpleenroll_call(csr.build(subject=x509.Name([]), key=key))
        word = base64.b64encode(f"{name}:{made.json['secret']}".encode()).decode()
        call = replace(call, headers={**call.headers, "authorization": f"Basic {word}"})
        root = x509.load_pem_x509_certificate(root_pem)
        at = Target.read(f"https://{HERE}:{DEVICE_PORT}")
        connection = await open_verified(at, (root,), None, seconds=10)
        try:
            reply = await connection.exchange(call, seconds=10)
        finally:
            await connection.close()
        assert reply.status == 200, reply.body
        (issued,) = cms.read_certs_only(transfer.read_base64(reply.body))
        pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return issued.public_bytes(Encoding.PEM), pkcs8

    def made(self, label: str) -> str:
        """The certificate, PEM, that a rollover has made for its new CA."""
        with contextlib.closing(sqlite3.connect(self.home / "appliance.db")) as database:
            (text,) = database.execute("SELECT made FROM rollovers WHERE label = ?", (label,)).fetchone()
        return str(json.loads(text)[label])

    def nas_certificate(self, name: str) -> tuple[Path, Path]:
        """A certificate of `hall` by the CA that signs now, and its key."""
        key, folder = ec.generate_private_key(ec.SECP256R1()), self.home.parent
        request = x509.load_der_x509_csr(csr.build(subject=x509.Name([]), key=key))
        (folder / f"{name}.csr").write_bytes(request.public_bytes(Encoding.PEM))
        (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        done = self.cli("nas", "certify", "hall", "--csr", folder / f"{name}.csr", "--out", folder / f"{name}.pem")
        assert done.status == 0, done.err
        return folder / f"{name}.pem", folder / f"{name}.key"


@pytest.fixture
def machines() -> Iterator[Machines]:
    need_freeradius()
    with contextlib.ExitStack() as keep:
        folder = Path(keep.enter_context(tempfile.TemporaryDirectory(prefix="remote-radius-")))
        folder.chmod(0o711)
        near, far = keep.enter_context(Machine("near")), keep.enter_context(Machine("far"))
        Cable(near, "eth0", far, "eth0").plug()
        near.address("eth0", f"{HERE}/30")
        far.address("eth0", f"{THERE}/30")
        home = folder / "home"
        initialise(
            home, SystemClock(), trust_domain="campus.example", organization="Campus",
            assignments=(
                f"web.host={HERE}", f"web.decision_host={HERE}", f"web.names={HERE},127.0.0.1",
                f"web.device_port={DEVICE_PORT}", f"web.decision_port={DECISION_PORT}", "registrar.announce=false",
                "radius.engine=none",
            ),
        )  # fmt: skip
        root = x509.load_pem_x509_certificate(certificate_file(home, "root").read_bytes())
        digest = hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest()
        made = Machines(home, folder / "there", near, far, digest)
        keep.callback(made.stop)
        _admit_agent(made)
        yield made


def _admit_agent(machines: Machines) -> None:
    """An agent with its owner and credential in the store, as issuance would have left them."""
    home = machines.home
    ca = x509.load_pem_x509_certificates(certificate_file(home, "agents").read_bytes())[0]
    signer = KeySigner(read_key(key_file(home, "agents"), (home / "passphrase").read_bytes().strip()))
    agent, owner = f"{ORIGIN}/agent/{uuid.uuid4()}", f"{ORIGIN}/owner/{uuid.uuid4()}"
    now, key = datetime.now(UTC).replace(microsecond=0), ec.generate_private_key(ec.SECP256R1())
    serial = secrets.randbits(126)
    terms = profiles.Terms.under(ca, serial=serial, not_before=now, not_after=now + timedelta(hours=1))
    text = owner.encode()
    extension = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.3.6.1.4.1.32473.2026.1.2"), bytes([0x16, len(text)]) + text
    )
    shape = profiles.agent(
        terms, profiles.name("agent"), key.public_key(), identifier=agent, extra_extensions=[(extension, False)]
    )
    tbs = profiles.to_be_signed(shape, issuer_key=signer.public_key())
    der = profiles.assemble(tbs, signer.sign(tbs), signer.public_key())
    leaf = x509.load_der_x509_certificate(der)

    def write(tx: Tx) -> None:
        add_owner(tx, Owner(str(uuid.uuid4()), owner, "alice", "Alice", "person", "R&D", ACTIVE, tx.now, tx.now))
        add_agent(tx, Agent(str(uuid.uuid4()), agent, owner, f"{ORIGIN}/proxy/p", secrets.token_urlsafe(32), "",
                            REGISTERED, tx.now, tx.now))  # fmt: skip
        columns = {"profile": "agent", "subject_id": agent, "agent_id": agent, "owner_id": owner,
                   "model": "agent-mediated", "txn": "t"}  # fmt: skip
        row = certificates.Pending("agents", ski_of(ca) or b"", serial, hashlib.sha256(tbs).digest(),
                                   spki_sha256(leaf), now, now + timedelta(hours=1), columns)  # fmt: skip
        certificates.issue(tx, certificates.add(tx, row), der, hashlib.sha256(der).digest())

    async def store() -> None:
        opened = Store.open(f"sqlite:///{home / 'appliance.db'}", SystemClock())
        try:
            await opened.write(write)
        finally:
            opened.close()

    asyncio.run(store())
    machines.agent_pem = leaf.public_bytes(Encoding.PEM) + ca.public_bytes(Encoding.PEM)
    machines.agent_key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_another_machine_becomes_a_radius_server_by_one_command_and_stays_one(machines: Machines) -> None:
    (machines.home.parent / "policy").write_text(POLICY)
    (machines.home.parent / "nas-secret").write_text(NAS_SECRET)
    secret_file = machines.home.parent / "secret"
    machines.start("run", "--home", machines.home)
    assert machines.cli("policy", "publish", machines.home.parent / "policy").status == 0
    added = machines.cli("nas", "add", "hall", HERE, "--secret-file", machines.home.parent / "nas-secret")
    assert added.status == 0, added.err
    made = machines.cli("est", "secret", "new", "--for", "north", "--label", "radius")
    assert made.status == 0, made.err

    # not without the secret, not to a stranger's fingerprint, not with a wrong secret
    assert machines.enroll().status == 1
    secret_file.write_text("north:wrong-secret-0123456789")
    secret_file.chmod(0o600)
    refused = machines.enroll("--secret-file", secret_file)
    assert refused.status == 1 and "401" in refused.err
    secret_file.write_text(f"north:{made.json['secret']}")
    done = machines.enroll("--secret-file", secret_file)
    assert done.status == 0, done.err
    assert done.json["enrolled"] and done.json["changed"]
    again = machines.enroll()
    assert again.status == 0, again.err
    assert again.json == {"folder": str(machines.there), "enrolled": False, "renewed": False, "changed": False}
    other = machines.enroll("--fingerprint", "00" * 32)
    assert other.status == 1 and "another appliance" in other.err

    own = x509.load_pem_x509_certificate((machines.there / "own.pem").read_bytes())
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"{ORIGIN}/radius/north"]
    assert names.get_values_for_type(x509.DNSName) == ["radius.campus.example"]
    assert not any(path.stat().st_mode & 0o007 for path in machines.there.rglob("*") if path.is_file())

    machines.start("radius", "run", "--dir", machines.there, there=True)
    outcome = machines.here(machines.log_in())
    assert (outcome.code, outcome.vlan) == ("accept", "20")
    (row,) = machines.cli("access", "log", "--limit", "1").json
    assert (row["nas"], row["verdict"]) == ("hall", "accept")

    # what FreeRADIUS drops there stands in the log here
    assert machines.here(machines.log_in(secret=b"another secret of thirty characters")).code == "timeout"
    send = f"import socket; socket.socket(2, 2).sendto(bytes.fromhex('{GOOD.hex()}'), ('{THERE}', 1812))"
    machines.far.call(sys.executable, "-c", send, timeout=60)
    for reason, nas in (("radius-secret-wrong", "hall"), ("nas-unknown", THERE)):
        deadline = time.monotonic() + 30
        while not (rows := machines.cli("access", "log", "--reason", reason).json):
            assert time.monotonic() < deadline, reason
            time.sleep(0.2)
        assert {row["nas"] for row in rows} == {nas}

    # its token is worth nothing with another certificate of the same CA, nor its certificate without a token
    token = json.loads((machines.there / "configuration.json").read_text())["values"]["token"]
    nas_key = ec.generate_private_key(ec.SECP256R1())
    request = x509.load_der_x509_csr(csr.build(subject=x509.Name([]), key=nas_key))
    (machines.home.parent / "nas.csr").write_bytes(request.public_bytes(Encoding.PEM))
    nas = machines.home.parent / "nas.pem"
    assert machines.cli("nas", "certify", "hall", "--csr", machines.home.parent / "nas.csr", "--out", nas).status == 0
    nas.write_bytes(nas.read_bytes() + nas_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    mine = (machines.there / "own.pem", machines.there / "own.key")
    for files, offered, status in ((mine, token, 200), (mine, "", 401), ((nas, nas), token, 403), (None, token, 0)):
        assert machines.decide(files, offered) == status
    assert machines.decide((nas, nas), token, "GET", "/v1/radius/configuration") == 403

    # a renewal there, with a new key, is served at once
    async def renew() -> None:
        remote = Remote(machines.there)
        folder = machines.there / "raddb"
        before = read_raddb(folder)
        assert await remote.renew(datetime.now(UTC) + timedelta(days=300))
        assert await remote.fetch()
        # what did not come up was put back by the supervisor: it is not written again with every look
        fresh, owner = read_raddb(folder), owner_of(run_as("freerad"))
        write_raddb(before, folder, owner=owner)
        assert not await remote.fetch()
        write_raddb(fresh, folder, owner=owner)

    machines.here(renew())
    newer = x509.load_pem_x509_certificate((machines.there / "own.pem").read_bytes())
    assert newer.public_key() != own.public_key()
    assert machines.here(machines.log_in()).code == "accept"

    # whoever is revoked gets no decision any more, whatever its token
    for certificate in (own, newer):
        done = machines.cli("certs", "revoke", f"{certificate.serial_number:x}", "--issuer", "infrastructure")
        assert done.status == 0, done.err
    deadline = time.monotonic() + 60
    while (outcome := machines.here(machines.log_in())).code != "reject":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    refused = machines.enroll()
    assert refused.status == 1 and "403" in refused.err
    log = machines.cli("audit", "list", "--event", "infrastructure-certificate-issued").json
    assert len(log) == 3 and all(json.dumps(entry).find(made.json["secret"]) < 0 for entry in log)


@pytest.mark.slow
@pytest.mark.req("E-102", "E-103")
def test_another_machine_follows_every_rollover(machines: Machines) -> None:
    (machines.home.parent / "policy").write_text(POLICY_WITH_PROXIES)
    (machines.home.parent / "nas-secret").write_text(NAS_SECRET)
    machines.start("run", "--home", machines.home, "--set", f"radius.radsec_host={HERE}")
    assert machines.cli("policy", "publish", machines.home.parent / "policy").status == 0
    added = machines.cli("nas", "add", "hall", HERE, "--secret-file", machines.home.parent / "nas-secret")
    assert added.status == 0, added.err
    made = machines.cli("est", "secret", "new", "--for", "north", "--label", "radius")
    secret_file = machines.home.parent / "secret"
    secret_file.write_text(f"north:{made.json['secret']}")
    secret_file.chmod(0o600)
    nas = machines.nas_certificate("first")
    done = machines.enroll("--secret-file", secret_file, "--set", f"radius.radsec_host={THERE}")
    assert done.status == 0, done.err
    machines.start("radius", "run", "--dir", machines.there, there=True)
    old_root = certificate_file(machines.home, "root").read_bytes()
    own_file, root_file = machines.there / "own.pem", machines.there / "root.pem"

    def gets_in(*roots: bytes) -> None:
        """Over both ways, whatever root the supplicant and the NAS believe."""

        async def every() -> list[str]:
            return [(await machines.log_in(one, way)).code for one in roots for way in (None, nas)]

        until(lambda: set(machines.here(every())) == {"accept"})

    def until(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not tried(holds):
            assert time.monotonic() < deadline, holds
            time.sleep(0.5)

    def tried(holds: Callable[[], bool]) -> bool:
        try:
            return holds()
        except OSError:  # FreeRADIUS starts on its new configuration
            return False

    def trusted(pem: str) -> bool:
        files = [path for path in (machines.there / "raddb").rglob("*.pem") if path.is_file()]
        return any(pem.strip() in path.read_text() for path in files)

    gets_in(old_root)

    # the CA of its own certificate, of the NAS's and of the decision port's
    before = x509.load_pem_x509_certificate(own_file.read_bytes())
    label = machines.rollover("start", "infrastructure")["label"]
    machines.rollover("advance", "infrastructure")
    until(lambda: trusted(machines.made(label)))
    machines.rollover("advance", "infrastructure")
    until(lambda: own_file.read_bytes() != before.public_bytes(Encoding.PEM))
    own = x509.load_pem_x509_certificate(own_file.read_bytes())
    assert aki_of(own) == ski_of(x509.load_pem_x509_certificate(machines.made(label).encode())) != aki_of(before)
    assert own.public_key() != before.public_key()
    gets_in(old_root)  # the NAS with its certificate of the old CA
    nas = machines.nas_certificate("second")
    machines.rollover("advance", "infrastructure")
    gets_in(old_root)

    time.sleep(1.1)  # a new root must live longer, and dates have whole seconds
    machines.rollover("start", "root")
    machines.rollover("advance", "root")
    until(lambda: root_file.read_bytes() != old_root)
    new_root = root_file.read_bytes()
    gets_in(old_root, new_root)
    machines.rollover("advance", "root")
    assert certificate_file(machines.home, "root").exists()
    gets_in(old_root, new_root)
    machines.rollover("advance", "root")
    gets_in(new_root)
    assert root_file.read_bytes() == new_root

    # devices: a proxy with an LDevID of either CA gets in, then those of the old one nowhere any more
    def proxy_gets(ldevid: tuple[bytes, bytes], code: str) -> None:
        until(lambda: machines.here(machines.log_in(new_root, proxy=ldevid)).code == code)

    old = machines.here(machines.ldevid("old-proxy", new_root))
    assert machines.here(machines.log_in(new_root, proxy=old)).vlan == "5"
    label = machines.rollover("start", "devices")["label"]
    machines.rollover("advance", "devices")
    until(lambda: trusted(machines.made(label)))
    machines.rollover("advance", "devices")
    new = machines.here(machines.ldevid("new-proxy", new_root))
    new_ca = x509.load_pem_x509_certificate(machines.made(label).encode())
    assert aki_of(x509.load_pem_x509_certificate(new[0])) == ski_of(new_ca)
    for ldevid in (old, new):
        proxy_gets(ldevid, "accept")
    machines.rollover("advance", "devices", "--force")
    proxy_gets(old, "reject")
    assert machines.here(machines.log_in(new_root, proxy=new)).vlan == "5"
    gets_in(new_root)

    # agents: both CAs are believed, then what the old one issued gets nobody in
    label = machines.rollover("start", "agents")["label"]
    machines.rollover("advance", "agents")
    until(lambda: trusted(machines.made(label)))
    gets_in(new_root)
    machines.rollover("advance", "agents")
    machines.rollover("advance", "agents", "--force")
    until(lambda: machines.here(machines.log_in(new_root)).code == "reject")


def test_the_command_line_of_a_machine_that_is_not_enrolled_says_how(tmp_path: Path) -> None:
    done = appliance("radius", "enroll", "http://nowhere", "--dir", tmp_path / "x", "--fingerprint", "00" * 32)
    assert done.status == 1 and done.err.count("\n") == 1 and "Traceback" not in done.err
