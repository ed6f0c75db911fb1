"""The appliance as its own process with a fresh home, and whatever benches need in it: proxies, owners, counts."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws, possession
from appliance.clock import SystemClock
from appliance.console.client import call as call_operation
from appliance.home import admin_socket
from appliance.store import Store, Tx
from est import chains, cms, csr
from est.chains import TrustAnchors
from est.signer import KeySigner
from tests.bench import wire

EST = "/.well-known/est"
ORIGIN = "spiffe://campus.example"
# A lab's settings: everybody comes from one address and one proxy asks as often as it can.
PLENTY = ("web.address_rate=100000", "web.address_burst=1000000", "web.identity_rate=100000",
          "web.identity_burst=1000000", "web.pki_rate=100000", "web.pki_burst=1000000",
          "identity.proxy_rate=100000", "identity.proxy_burst=1000000",
          "identity.reserve_per_proxy=1000000", "web.keepalive_seconds=600", "registrar.max_ldevids=0")  # fmt: skip


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def environment() -> dict[str, str]:
    """Ours without settings of whoever runs the bench."""
    return {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}


def start(command: Sequence[str], core: int | None, log: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A process that prints one JSON line when it is ready, pinned to a core."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    with log.open("ab") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=pin,
            env=environment(),
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(10)
        raise RuntimeError(f"{command[1:4]} did not start:\n{log.read_text()[-3000:]}")
    return process, json.loads(line)


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL where that is not heard."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An identity proxy: its LDevID, and the context that shows it."""

    identifier: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    context: ssl.SSLContext

    def renewal(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """A request for simplereenroll with a new key and the old names."""
        san = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        body = base64.b64encode(csr.build(subject=self.certificate.subject, key=key, san=san))
        return wire.request("POST", f"{EST}/simplereenroll", body, "application/pkcs10")


@dataclass(frozen=True, slots=True)
class Owner:
    """An owner and the key that approves."""

    identifier: str
    signer: KeySigner


class Campus:
    """One home with one running appliance."""

    def __init__(
        self,
        folder: Path,
        *,
        core: int | None = None,
        fill: Callable[[Campus, Tx], None] | None = None,
        prepare: Callable[[Campus], None] | None = None,
        settings: Sequence[str] = (),
        program: Sequence[str] = (sys.executable, "-m", "appliance"),
    ) -> None:
        """`fill` writes into this campus's store before the appliance starts, `prepare` does what it
        likes with the home then; `program` may run it under a profiler."""
        self.folder = folder
        self.home = folder / "home"
        init = [sys.executable, "-m", "appliance", "init", "--home", str(self.home), "--trust-domain", "campus.example"]
        init += ["--org", "Example University", "-o", "json"]
        subprocess.run(init, check=True, capture_output=True, env=environment(), timeout=120)
        self.database = self.home / "appliance.db"
        if fill is not None:
            store = Store.open(f"sqlite:///{self.database}", SystemClock())
            store.write_sync(lambda tx: fill(self, tx))
            store.close()
        if prepare is not None:
            prepare(self)
        chosen = [f"web.{name}_port=0" for name in ("device", "console", "decision", "pki")]
        chosen += ["radius.engine=none", "registrar.announce=false", "log.level=warning", *PLENTY, *settings]
        command = [*program, "run", "--home", str(self.home), "-o", "json", *(f"--set={one}" for one in chosen)]
        self.process, ready = start(command, core, folder / "appliance.log")
        self.pid: int = ready["pid"]
        self.listeners: dict[str, str] = ready["listeners"]
        self.root_file = self.home / "certificates" / "root.pem"
        self.devices_ca = self.ca("devices")
        self.anonymous = wire.tls_context(self.root_file, folder=folder)

    def stop(self) -> None:
        stop(self.process)

    def ca(self, role: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.home / "certificates" / f"{role}.pem").read_bytes())

    def address(self, listener: str) -> tuple[str, int]:
        host, _, port = self.listeners[listener].rpartition(":")
        return host, int(port)

    def operation(self, name: str, /, **arguments: Any) -> Any:
        return call_operation(admin_socket(self.home), name, arguments)

    def rows(self, sql: str, *values: object) -> int:
        """A count, read past the appliance."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as connection:
            return int(connection.execute(sql, values).fetchone()[0])

    def audited(self, event: str) -> int:
        return self.rows("SELECT count(*) FROM audit WHERE event = ?", event)

    def issued(self, profile: str) -> int:
        return self.rows("SELECT count(*) FROM certificates WHERE state = 'issued' AND profile = ?", profile)

    def check_log(self) -> None:
        """The chain of the audit log holds."""
        self.operation("audit.verify")

    def first_enrolment(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """A request for simpleenroll against a fresh one-time secret."""
        made = self.operation("est.secret", name=f"bench-{secrets.token_hex(6)}")
        basic = base64.b64encode(f"{made['name']}:{made['secret']}".encode()).decode()
        body = base64.b64encode(csr.build(subject=x509.Name([]), key=key))
        return wire.request("POST", f"{EST}/simpleenroll", body, "application/pkcs10", Authorization=f"Basic {basic}")

    def proxy(self) -> Proxy:
        """A new proxy with its LDevID."""
        key = new_key()
        connection = wire.Connection(self.address("device"), self.anonymous)
        answer = connection.exchange(self.first_enrolment(key))
        connection.close()
        certificate = self.enrolled(answer, key)
        context = wire.tls_context(self.root_file, key, (certificate, self.devices_ca), folder=self.folder)
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return Proxy(san.get_values_for_type(x509.UniformResourceIdentifier)[0], key, certificate, context)

    def enrolled(self, answer: wire.Answer, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        """The certificate of an EST reply, held against key and chain; AssertionError if it is wrong."""
        assert answer.status == 200, answer
        (certificate,) = cms.read_certs_only(base64.b64decode(answer.body))
        assert certificate.public_key() == key.public_key()
        chains.check(
            certificate, (), TrustAnchors((self.devices_ca,)), at=SystemClock().now(), policy=chains.CLIENT
        )  # fmt: skip
        return certificate

    def owner(self, ref: str, department: str = "R&D") -> Owner:
        """A new owner with an approval key."""
        made = self.operation("owners.add", ref=ref, department=department)
        signer, now = KeySigner(new_key()), int(time.time())
        statement = possession.seal(
            signer, sub=ref, aud=ORIGIN, iat=now, exp=now + 3600, jti=jws.base64url(secrets.token_bytes(16))
        )
        self.operation("owners.add_key", ref=ref, statement=statement)
        return Owner(made["identifier"], signer)
