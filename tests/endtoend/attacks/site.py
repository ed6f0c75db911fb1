"""The field on which the attacks are played: an appliance, a manufacturer with its MASA, devices on real connections.

Appliance and MASA are processes of their own; a Line is one TLS connection on which nothing reconnects by itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.clock import SystemClock
from appliance.initialise import initialise
from brski import Pledge, VoucherRequest, leaves, paths, sealed, voucher_request
from brski.idevid import read_idevid
from est import cms, csr, transfer
from est.exchange import Call, Reply
from lab import factory as makers
from lab.certificates import Domain, Identity
from lab.demo import free_port
from lab.factory import Factory
from lab.story import Process
from tests.campus import UNLIMITED, Campus

QUICK_MASA = ("registrar.masa_seconds=2",)
CACERTS = Call("GET", "/.well-known/est/cacerts")


class Line:
    """One TLS connection; `server` is the certificate that the other end showed."""

    def __init__(self, address: str, identity: Identity | None = None, *, name: str | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if identity is not None:
            with tempfile.NamedTemporaryFile() as file:
                file.write(identity.chain_pem + identity.key_pem)
                file.flush()
                context.load_cert_chain(file.name)
        host, _, port = address.rpartition(":")
        self._http = http.client.HTTPSConnection(host, int(port), context=context, timeout=20)
        if name is None:
            self._http.connect()
        else:  # the name goes into the handshake, whatever the address is
            plain = http.client.HTTPConnection(host, int(port), timeout=20)
            plain.connect()
            self._http.sock = context.wrap_socket(plain.sock, server_hostname=name)
        self._http.auto_open = 0
        self.server = x509.load_der_x509_certificate(self._http.sock.getpeercert(True))

    @property
    def socket(self) -> ssl.SSLSocket:
        found = self._http.sock
        assert isinstance(found, ssl.SSLSocket)
        return found

    def send(self, call: Call) -> Reply:
        """One exchange; OSError or HTTPException when the connection is gone."""
        headers = {**call.headers, **({"content-type": call.media_type} if call.media_type else {})}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):  # answered before all went out
            self._http.request(call.method, call.path, call.body or None, headers)
        answer = self._http.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found.get("content-type", ""), found, answer.read())

    def is_closed(self) -> bool:
        """Whether the other end has closed; asks with a harmless request."""
        try:
            self.send(CACERTS)
        except (OSError, http.client.HTTPException):
            return True
        return False

    def close(self) -> None:
        self._http.close()


@dataclass
class Maker:
    """A manufacturer in a folder, with its MASA as a process."""

    folder: Path
    name: str
    port: int
    process: Process | None = None

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def factory(self) -> Factory:
        return makers.load(self.folder)

    def device(self, serial: str = "", *, is_sold: bool = True, **more: Any) -> Identity:
        """A new device; `is_sold` False = its MASA does not know it."""
        serial = serial or f"px-{secrets.token_hex(4)}"
        maker, now = self.factory, datetime.now(UTC) - timedelta(minutes=5)
        device = maker.make_device(serial, now=now, **{"masa": self.authority, **more})
        if is_sold:
            makers.save_device(maker, self.folder, serial, device)
        return device

    def line(self) -> Line:
        return Line(self.authority)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The management corner."""
        line = self.line()
        sent = b"" if body is None else json.dumps(body).encode()
        reply = line.send(Call(method, path, "application/json", body=sent))
        line.close()
        assert reply.status in (200, 204), reply
        return json.loads(reply.body) if reply.body else None

    @contextlib.contextmanager
    def broken(self, *knobs: str) -> Iterator[None]:
        """The MASA misbehaves inside."""
        self.ask("PUT", "/lab/broken", list(knobs))
        try:
            yield
        finally:
            self.ask("PUT", "/lab/broken", [])

    def asked(self, serial: str, operation: str = "requestvoucher") -> int:
        """How many vouchers this device was given, or, for another operation, how many requests there were at all."""
        return sum(
            one["path"].endswith(operation) and (one["serial"] == serial or operation != "requestvoucher")
            for one in self.ask("GET", "/lab/requests")
        )

    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", "/lab/requests")
        return found

    def history(self, serial: str) -> list[dict[str, Any]]:
        """The device's whole log as the MASA keeps it."""
        found: list[dict[str, Any]] = self.ask("GET", f"/lab/devices/{serial}")["log"]["events"]
        return found


@dataclass
class Site:
    """A campus, its manufacturers, and doors to knock at."""

    campus: Campus
    makers: dict[str, Maker] = field(default_factory=dict)

    @classmethod
    def create(cls, folder: Path, *assignments: str) -> Site:
        """A new campus with the manufacturer `acme`; running."""
        campus = Campus(folder)
        initialise(
            campus.home, SystemClock(), trust_domain="campus.example", organization="Example University",
            assignments=("registrar.announce=false",),
        )  # fmt: skip
        campus.start(*(assignments or (*UNLIMITED, *QUICK_MASA)))
        site = cls(campus)
        site.add_maker("acme")
        return site

    def add_maker(self, name: str, *words: str | Path, known: bool = True, **options: Any) -> Maker:
        """A manufacturer with its MASA, started with these words, and known to the appliance."""
        folder, port = self.campus.folder / "makers" / name, free_port()
        makers.load_or_create(folder, now=datetime.now(UTC))
        command: list[str | Path] = [sys.executable, "-m", "lab", "masa", "--dir", folder, "--port", str(port)]
        process = self.campus.cast.start(f"masa-{name}", [*command, *words])
        process.wait_for("ready", 120)
        made = self.makers[name] = Maker(folder, name, port, process)
        if known:
            home = folder / "manufacturer"
            self.campus.ask(
                "manufacturers.add", name=name, masa_url=f"https://{made.authority}",
                anchors_pem=(home / "ca.pem").read_text(), masa_tls_anchors_pem=(home / "masa-tls-ca.pem").read_text(),
                **options,
            )  # fmt: skip
        return made

    @property
    def acme(self) -> Maker:
        return self.makers["acme"]

    @property
    def address(self) -> str:
        return self.campus.listeners["device"]

    def knock(self, device: Identity, maker: Maker | None = None, **more: Any) -> Knock:
        """The device in front of the registrar, on a connection of its own."""
        return Knock(device, maker or self.acme, Line(self.address, device, **more))

    def shown(self, key: str) -> Any:
        return self.campus.ask("pledges.show", serial=key)

    def audited(self, event: str, serial: str) -> list[dict[str, Any]]:
        """Audit entries of this event about this device."""
        entries = [json.loads(json.loads(line)["body"]) for line in self.campus.ask("audit.export")]
        return [one for one in entries if one["event"] == event and serial in json.dumps(one)]

    def log_says(self, text: str, seconds: float = 3) -> bool:
        """Whether the appliance's log has this text, now or soon."""
        end = time.monotonic() + seconds
        while text not in self.campus.log():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def is_alive(self) -> bool:
        assert self.campus.process is not None
        return self.campus.process.popen.poll() is None


@dataclass
class Knock:
    """One device on one connection, step by step."""

    device: Identity
    maker: Maker
    line: Line
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.pledge = Pledge(self.device.signer, self.device.chain, self.maker.factory.masa_anchors)
        self.serial = self.pledge.idevid.serial_number

    def request(self, registrar: x509.Certificate | None = None, media_type: str = paths.VOUCHER_CMS_JSON) -> Call:
        return self.pledge.voucher_request(
            registrar or self.line.server, nonce=secrets.token_bytes(16), now=datetime.now(UTC), media_type=media_type
        )

    def voucher(self, call: Call | None = None) -> Reply:
        return self.line.send(call or self.request())

    def status(self, ok: bool = True) -> Reply:
        return self.line.send(self.pledge.voucher_status(ok, "" if ok else "the voucher is not for this device"))

    def enroll(self) -> Reply:
        return self.line.send(enroll_call(self.key))

    def bootstrap(self, asked: Call | None = None) -> x509.Certificate:
        """The whole way; the LDevID."""
        for step in (partial(self.voucher, asked), self.status, self.enroll):
            reply = step()
            assert reply.status == 200, (step, reply, reply.body)
        (certificate,) = cms.read_certs_only(transfer.read_base64(reply.body))
        return certificate


def enroll_call(key: ec.EllipticCurvePrivateKey) -> Call:
    body = transfer.write_base64(csr.build(subject=x509.Name([]), key=key), wrapped=True)
    return Call("POST", "/.well-known/est/simpleenroll", "application/pkcs10", {}, body)


def reason(reply: Reply) -> str:
    """The reason slug of a refusal of the appliance, or of the MASA."""
    if reply.media_type.startswith("text/plain"):
        return reply.body.decode().partition(":")[0].strip()
    return str(json.loads(reply.body).get("reason", ""))


def sign(content: bytes, by: Identity, *, path: str = paths.REQUEST_VOUCHER) -> Call:
    """Any content as a signed call."""
    body = sealed.seal(
        content, paths.VOUCHER_CMS_JSON, signer=by.signer, certificate=by.certificate, certificates=by.issuers,
        now=datetime.now(UTC),
    )  # fmt: skip
    return Call("POST", path, paths.VOUCHER_CMS_JSON, {"accept": paths.VOUCHER_CMS_JSON}, body)


def registrar_call(domain: Domain, device: Identity, prior: bytes | None, **changed: Any) -> Call:
    """A registrar's voucher-request of any domain, with these leaves changed."""
    facts: dict[str, Any] = {"nonce": None, "created_on": datetime.now(UTC), "prior_signed_voucher_request": prior}
    if prior is not None:
        asked, _ = voucher_request.unseal(prior, paths.VOUCHER_CMS_JSON)
        facts |= {"nonce": asked.nonce, "assertion": leaves.Assertion.PROXIMITY}
    idevid = read_idevid(device.certificate)
    facts |= {"serial_number": idevid.serial_number, "idevid_issuer": idevid.issuer}
    by = changed.pop("by", None) or Identity(domain.registrar.key, domain.certificate, domain.chain)
    return sign(voucher_request.write(VoucherRequest(**(facts | changed))), by)
