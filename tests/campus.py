"""A campus of processes on loopback for end-to-end tests: appliance, MASA, proxy, owners, and agents of the test's own.

`Campus.build` takes the long way once (BRSKI against a MASA process); `Campus.copy` starts from the stopped result, so
that a test which breaks things has its own campus in a second or two.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.binding import approval, composite, evidence, jws, possession
from appliance.binding import request as requests
from appliance.binding.composite import Composite
from appliance.cli import run
from appliance.clock import SystemClock
from appliance.console.client import UnixConnection, call
from appliance.hierarchy import certificate_file, key_file
from appliance.initialise import initialise
from appliance.keys import read_key
from est import csr
from est.signer import KeySigner
from lab import factory as makers
from lab.demo import POLICY, free_port
from lab.story import Cast, Process

ORIGIN = "spiffe://campus.example"
SERVER_ID = "https://ids.campus.example/v1"
OWNERS = "ref,name,kind,department\nalice,Alice Example,person,R&D\nbob,Bob Example,person,HR\n"
NAS_SECRET = "nas-secret-of-this-test-campus-0123456789"
UNLIMITED = (
    "web.address_rate=100000",
    "web.address_burst=100000",
    "identity.proxy_rate=100000",
    "identity.proxy_burst=100000",
    "registrar.max_ldevids=0",
)
"""Assignments for tests that are not about rates."""


def environment(**more: str) -> dict[str, str]:
    """What the campus' processes see: no APPLIANCE_ variable of ours but the given ones."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("APPLIANCE_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


@dataclass(frozen=True, slots=True)
class Ran:
    """One finished command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def appliance(*arguments: str | Path, stdin: str = "", timeout: float = 240, **more: str) -> Ran:
    """One command line in its own process."""
    command = [sys.executable, "-m", "appliance", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(**more), timeout=timeout, input=stdin, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def run_here(*arguments: str | Path) -> Ran:
    """One command line in this process: quicker, for commands that ask and answer."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([str(part) for part in arguments])
    return Ran(status, out.getvalue(), err.getvalue())


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        try:
            found = json.loads(self.body)
        except ValueError:
            return ""
        return str(found.get("reason", "")) if isinstance(found, dict) else ""


def tls_context(certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A client of any listener; whom it talks to is not what these tests are about."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None and key is not None:
        context.load_cert_chain(certificate, key)
    return context


class Client:
    """HTTP to one listener over one kept connection; opens a new one when the last was closed."""

    def __init__(self, address: str, context: ssl.SSLContext | None, *, timeout: float = 60.0) -> None:
        self.address = address
        self.context = context
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def _connect(self) -> http.client.HTTPConnection:
        if self.address.startswith("/"):
            return UnixConnection(Path(self.address), self._timeout)
        host, _, port = self.address.rpartition(":")
        if self.context is None:
            return http.client.HTTPConnection(host, int(port), timeout=self._timeout)
        return http.client.HTTPSConnection(host, int(port), timeout=self._timeout, context=self.context)

    def send(
        self, method: str, path: str, body: bytes = b"", media_type: str = "", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request; http.client and OSError exceptions mean that no answer came."""
        fresh = self._connection is None
        connection = self._connection or self._connect()
        self._connection = connection
        sent = {"Content-Type": media_type} if media_type else {}
        try:
            # an answer may come before all of a large body went out
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body or None, {**sent, **(headers or {})})
            if connection.sock is None:  # the server ended while the body went out, and there is nothing to read
                raise http.client.RemoteDisconnected("the connection ended before an answer")
            reply = connection.getresponse()
            content = reply.read()
        except (OSError, http.client.HTTPException):
            self.close()
            if fresh:
                raise
            return self.send(method, path, body, media_type, headers)
        if reply.will_close:
            self.close()
        return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, content)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def raw(self) -> Iterator[socket.socket]:
        """A socket (TLS where the listener has it) for what no HTTP library would send."""
        if self.address.startswith("/"):
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            plain.settimeout(self._timeout)
            plain.connect(self.address)
        else:
            host, _, port = self.address.rpartition(":")
            plain = socket.create_connection((host, int(port)), self._timeout)
        opened = self.context.wrap_socket(plain) if self.context is not None else plain
        try:
            yield opened
        finally:
            opened.close()

    def exchange(self, data: bytes, *, silence_seconds: float = 0.2) -> bytes:
        """Sends bytes on a new connection and reads until the other end closes or falls silent."""
        with self.raw() as opened:
            with contextlib.suppress(OSError):
                opened.sendall(data)
            opened.settimeout(silence_seconds)
            got = b""
            with contextlib.suppress(OSError):
                while chunk := opened.recv(65_536):
                    got += chunk
            return got


@dataclass(frozen=True, slots=True)
class OwnerHost:
    """An owner with the approval key."""

    ref: str
    identifier: str
    key_file: Path

    @property
    def signer(self) -> KeySigner:
        key = load_pem_private_key(self.key_file.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return KeySigner(key)


@dataclass
class Campus:
    """Everything of one campus lies under `folder`; nothing runs until start()."""

    folder: Path
    listeners: dict[str, str] = field(default_factory=dict)
    process: Process | None = None
    proxy_process: Process | None = None
    starts: int = 0

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.state = self.folder / "proxy"
        self.logs = self.folder / "logs"
        self.cast = Cast(self.logs, environment())

    # -- making

    @classmethod
    def build(cls, folder: Path, *, serial: str = "acme-0001") -> Campus:
        """A campus whose proxy came in by BRSKI, with a policy, two owners with keys, a NAS; stopped again."""
        campus = cls(folder)
        initialise(
            campus.home, SystemClock(), trust_domain="campus.example", organization="Example University",
            assignments=("registrar.announce=false",),
        )  # fmt: skip
        campus.start()
        try:
            masa = campus.masa(serial)
            campus.start_proxy(serial)
            campus.ask("policy.publish", text=POLICY)
            campus.ask("owners.import", csv=OWNERS, confirm=True)
            for row in campus.ask("owners.list"):
                campus._give_key(row["ref"])
            campus.ask("nas.add", name="lab-switch", address="127.0.0.1", secret=NAS_SECRET)
            masa.stop()
        finally:
            campus.cast.stop()
        return campus

    def copy(self, folder: Path) -> Campus:
        """The same campus at another place, not running; cheap."""
        for part in ("home", "proxy", "owners", "makers"):
            shutil.copytree(self.folder / part, folder / part, ignore=shutil.ignore_patterns("*.sock", "*.sock-*"))
        # the state names no absolute path but those of the maker's files, and those only matter at bootstrap
        return Campus(folder)

    def masa(self, serial: str, *knobs: str) -> Process:
        """Makes a manufacturer with one device, runs its MASA and tells the appliance of both."""
        folder, port = self.folder / "makers" / "acme", free_port()
        now, url = datetime.now(UTC), f"127.0.0.1:{port}"
        maker = makers.load_or_create(folder, now=now)
        device = maker.make_device(serial, masa=url, now=now - timedelta(minutes=5))
        makers.save_device(maker, folder, serial, device)
        command: list[str | Path] = [sys.executable, "-m", "lab", "masa", "--dir", folder, "--port", str(port)]
        process = self.cast.start("masa", [*command, *(("--break", ",".join(knobs)) if knobs else ())])
        process.wait_for("ready", 120)
        manufacturer = folder / "manufacturer"
        self.ask(
            "manufacturers.add", name="acme", masa_url=f"https://{url}",
            anchors_pem=(manufacturer / "ca.pem").read_text(),
            masa_tls_anchors_pem=(manufacturer / "masa-tls-ca.pem").read_text(),
        )  # fmt: skip
        return process

    def device(self, serial: str = "acme-0001") -> Path:
        """Folder of a device's IDevID."""
        return self.folder / "makers" / "acme" / "devices" / serial

    def _give_key(self, ref: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        path = self.folder / "owners" / ref / "owner.key.pem"
        path.parent.mkdir(parents=True, mode=0o700)
        makers.write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        now = int(time.time())
        statement = possession.seal(
            KeySigner(key), sub=ref, aud=ORIGIN, iat=now, exp=now + 86_400, jti=secrets.token_urlsafe(16)
        )
        self.ask("owners.add_key", ref=ref, statement=statement)

    # -- processes

    def run_command(self, *assignments: str) -> list[str | Path]:
        """The command line of `appliance run`; later assignments win."""
        chosen = [
            *(f"web.{port}_port=0" for port in ("device", "console", "decision", "pki")),
            "radius.port=0", "registrar.announce=false", *assignments,
        ]  # fmt: skip
        return [
            sys.executable, "-m", "appliance", "run", "--home", self.home, "-o", "json",
            *(f"--set={one}" for one in chosen),
        ]  # fmt: skip

    def start(self, *assignments: str, failpoint: str = "") -> float:
        """Starts the appliance; answers what it cost to be ready, seconds of processor time."""
        cast = Cast(self.logs, environment(**({"APPLIANCE_FAILPOINT": failpoint} if failpoint else {})))
        self.starts += 1
        self.process = cast.start("appliance", self.run_command(*assignments))
        self.cast._members.append(self.process)
        self.listeners = self.process.wait_for("ready", 120)["listeners"]
        spent = psutil.Process(self.process.popen.pid).cpu_times()
        return spent.user + spent.system

    def kill(self) -> None:
        """kill -9 of the appliance."""
        assert self.process is not None
        self.process.popen.send_signal(signal.SIGKILL)
        self.process.popen.wait(60)

    def stop(self) -> int:
        """SIGTERM to the appliance; answers its exit status."""
        assert self.process is not None
        self.process.popen.send_signal(signal.SIGTERM)
        return self.process.finish(60)

    def start_proxy(self, serial: str = "acme-0001", *assignments: str) -> Process:
        """Starts the identity proxy against this appliance, told where it is; it bootstraps if it has to."""
        device, record = self.device(serial), self.state / "proxy.json"
        if record.exists():  # it came in when the appliance had another port
            known = json.loads(record.read_text())
            record.write_text(json.dumps({**known, "port": int(self.listeners["device"].rpartition(":")[2])}))
        chosen = [
            f"proxy.idevid_certificate={device / 'idevid.pem'}", f"proxy.idevid_key={device / 'idevid.key.pem'}",
            f"proxy.masa_anchors={device / 'masa-anchors.pem'}",
            f"proxy.registrar_url=https://{self.listeners['device']}",
            f"proxy.allow_root_agents={'true' if os.geteuid() == 0 else 'false'}", "proxy.give_up_seconds=120",
            *assignments,
        ]  # fmt: skip
        self.proxy_process = self.cast.start(
            "proxy",
            [
                sys.executable, "-m", "appliance", "proxy", "run", "--state", self.state, "-o", "json",
                *(f"--set={one}" for one in chosen),
            ],
        )  # fmt: skip
        self.proxy_process.wait_for("ready", 120)
        return self.proxy_process

    def close(self) -> None:
        """Ends every process of this campus."""
        self.cast.stop()

    def log(self, name: str = "appliance") -> str:
        return (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    # -- asking

    def ask(self, operation: str, **arguments: Any) -> Any:
        """An administrator's operation at the running appliance."""
        return call(self.home / "run" / "admin.sock", operation, arguments)

    def cli(self, *arguments: str | Path) -> Ran:
        """A command line on this home."""
        return run_here(*arguments, "--home", self.home, "-o", "json")

    def client(self, listener: str = "device", certificate: Path | None = None, key: Path | None = None) -> Client:
        """A client of a listener (device, console, decision, pki, admin, agent)."""
        if listener == "admin":
            return Client(str(self.home / "run" / "admin.sock"), None)
        if listener == "agent":
            return Client(str(self.state / "agent.sock"), None)
        return Client(self.listeners[listener], None if listener == "pki" else tls_context(certificate, key))

    def as_proxy(self) -> Client:
        """The device port with the proxy's LDevID."""
        return self.client("device", self.state / "ldevid.pem", self.state / "ldevid.key.pem")

    def owner(self, ref: str = "alice") -> OwnerHost:
        """One of the owners; the identifier comes from the directory."""
        found = {row["ref"]: row["identifier"] for row in self.ask("owners.list")}
        return OwnerHost(ref, found[ref], self.folder / "owners" / ref / "owner.key.pem")

    @property
    def passphrase(self) -> bytes:
        return (self.home / "passphrase").read_bytes().strip()

    def key_of(self, name: str) -> ec.EllipticCurvePrivateKey:
        """A key of the home, opened; `name` as in HOME/keys."""
        return read_key(key_file(self.home, name), self.passphrase)

    def certificates_of(self, name: str) -> list[x509.Certificate]:
        """A certificate of the home with what stands behind it; `name` as in HOME/certificates."""
        return x509.load_pem_x509_certificates(certificate_file(self.home, name).read_bytes())

    @property
    def ldevid(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates((self.state / "ldevid.pem").read_bytes())[0]

    @property
    def proxy_id(self) -> str:
        names = self.ldevid.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier)[0]

    @property
    def ldevid_key(self) -> ec.EllipticCurvePrivateKey:
        key = load_pem_private_key((self.state / "ldevid.key.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key


def random_id() -> str:
    return secrets.token_urlsafe(18)


@dataclass(frozen=True, slots=True)
class Ask:
    """One agent's request, ready to be handed in by its proxy again and again."""

    key: ec.EllipticCurvePrivateKey
    sub: str
    token: str
    csr_der: bytes
    approvals: tuple[str, ...]
    proxy_id: str
    proxy_key: ec.EllipticCurvePrivateKey

    @property
    def request(self) -> requests.AgentRequest:
        return requests.unseal(self.token)

    def body(self) -> bytes:
        """The composite request with evidence made now."""
        asked, now = self.request, int(time.time())
        sealed = evidence.seal(
            KeySigner(self.proxy_key), iss=self.proxy_id, iat=now, exp=now + 240, nonce=asked.nonce, rqh=asked.rqh,
            jkt=asked.jkt, ueid=b"\x01" + bytes(16), dbgstat="disabled",
            agent={"executable": "/usr/bin/agent", "uid": 1000, "swname": "agent"},
        )  # fmt: skip
        return composite.write(Composite(self.token, self.csr_der, self.approvals, sealed))

    def submit(self, client: Client) -> Answer:
        return client.send("POST", "/v1/agents/enroll", self.body(), composite.MEDIA_TYPE)

    def status(self, client: Client) -> Answer:
        return client.send("GET", f"/v1/agents/requests/{self.request.rqh}")


def new_ask(campus: Campus, client: Client, owner: OwnerHost, **changed: Any) -> Ask:
    """An agent makes its key and request, its owner approves."""
    key = changed.pop("key", None) or ec.generate_private_key(ec.SECP256R1())
    signer = KeySigner(key)
    nonce = json.dumps({"jkt": jws.jkt(key.public_key()), "purpose": "issue"}).encode()
    granted = client.send("POST", "/v1/agents/nonce", nonce, "application/json")
    assert granted.status == 200, granted.body
    sub = granted.json["sub"]
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(sub)])
    csr_der = csr.build(subject=x509.Name([]), key=signer, san=san)
    now = int(time.time())
    values: dict[str, Any] = {
        "sub": sub, "owner": owner.identifier, "aud": granted.json["server_id"], "iat": now, "exp": now + 3600,
        "jti": random_id(), "nonce": granted.json["nonce"], "profiles": ("x509", "wit"), "ttl": 3600,
        "csr_der": csr_der,
    }  # fmt: skip
    token = requests.seal(signer, **(values | changed))
    yes = approval.seal(
        owner.signer, requests.unseal(token), iss=owner.identifier, iat=now, exp=now + 3600, jti=random_id()
    )
    return Ask(key, sub, token, csr_der, (yes,), campus.proxy_id, campus.ldevid_key)


def leaf_of(result: Mapping[str, Any]) -> x509.Certificate:
    """The agent's certificate in a finished answer."""
    return x509.load_pem_x509_certificates(result["certificate"].encode())[0]


def write_identity(
    folder: Path, chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey
) -> tuple[Path, Path]:
    """Certificate chain and key as files for a TLS client."""
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    chain_file, key_file = folder / f"{name}.pem", folder / f"{name}.key.pem"
    chain_file.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
    makers.write_file(key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return chain_file, key_file


def lookalike(
    real: x509.Certificate, issuer: x509.Certificate
) -> tuple[list[x509.Certificate], ec.EllipticCurvePrivateKey]:
    """A certificate with every name, number and extension of a real one, from a CA with the issuer's name and other
    keys; answers chain and key."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def forge(like: x509.Certificate, issuer_name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(like.subject)
            .issuer_name(issuer_name)
            .public_key(public)
            .serial_number(like.serial_number)
            .not_valid_before(like.not_valid_before_utc)
            .not_valid_after(like.not_valid_after_utc)
        )
        for extension in like.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        return builder.sign(ca_key, like.signature_hash_algorithm)  # type: ignore[arg-type]

    leaf = forge(real, issuer.subject, key.public_key())
    return [leaf, forge(issuer, issuer.subject, ca_key.public_key())], key


class Crowd:
    """Runs a function in several threads over a shared list of work; failures of any come out of join()."""

    def __init__(self, threads: int, work: Sequence[Any], do: Any) -> None:
        self._work = iter(work)
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(do,), daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, do: Any) -> None:
        while True:
            with self._lock:
                one = next(self._work, None)
            if one is None:
                return
            try:
                do(one)
            except BaseException as failure:
                self._failures.append(failure)
                return

    @property
    def is_busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._failures:
            raise self._failures[0]
        assert not self.is_busy, "the crowd did not finish in time"
