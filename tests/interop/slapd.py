"""A real slapd of the test's own: own folder, own configuration, loopback ports, a CA made for it; and a server that
says to a client whatever bytes a test wants."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from lab.demo import free_port

BASE = "dc=campus,dc=example"
MANAGER = f"cn=manager,{BASE}"
PASSWORD = "manager-password-of-this-test"
_PROGRAM = next((found for place in ("slapd", "/usr/sbin/slapd") if (found := shutil.which(place))), None)
WHY_NOT = "" if _PROGRAM else "slapd is not installed (Debian: apt-get install slapd ldap-utils)"

# the attributes of Active Directory that are read, under their own object identifiers, on a server that we can run
_SCHEMA = """
attributetype ( 1.2.840.113556.1.4.8 NAME 'userAccountControl' EQUALITY integerMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.159 NAME 'accountExpires' EQUALITY integerMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.2 NAME 'objectGUID' EQUALITY octetStringMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.4.221 NAME 'sAMAccountName' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
attributetype ( 1.2.840.113556.1.2.141 NAME 'department' EQUALITY caseIgnoreMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.3.6.1.4.1.32473.2026.99.1 NAME 'testMemberOf' EQUALITY distinguishedNameMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.12 )
attributetype ( 1.3.6.1.4.1.32473.2026.99.3 NAME 'testOctets' EQUALITY octetStringMatch
  SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 )
objectclass ( 1.3.6.1.4.1.32473.2026.99.2 NAME 'testAccount' SUP top AUXILIARY
  MAY ( userAccountControl $ accountExpires $ objectGUID $ sAMAccountName $ department $ testMemberOf $ testOctets ) )
"""
_CONFIG = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include {folder}/test.schema
pidfile {folder}/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
TLSCACertificateFile {folder}/ca.pem
TLSCertificateFile {folder}/server.pem
TLSCertificateKeyFile {folder}/server.key
sizelimit {size_limit}
{security}
database mdb
maxsize 268435456
suffix "{base}"
rootdn "{manager}"
rootpw {password}
directory {folder}/db
dbnosync
access to attrs=userPassword by anonymous auth
access to * by dn.exact="cn=reader,{base}" read by dn.exact="cn=reader,{base}" read by {others}
"""


def make_ca(folder: Path, name: str = "ca") -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A CA whose certificate lies in `folder` as NAME.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} of a test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate, key


def make_server(folder: Path, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, *names: str) -> None:
    """server.pem and server.key for these names."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    listed = [x509.IPAddress(ip_address(one)) if one[0].isdigit() else x509.DNSName(one) for one in names]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(listed), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )


def ldif(entries: Iterable[tuple[str, Mapping[str, Sequence[str | bytes]]]]) -> bytes:
    """Entries as LDIF (RFC 2849), every value in base64."""
    import base64

    lines: list[bytes] = []
    for name, attributes in entries:
        lines.append(b"dn:: " + base64.b64encode(name.encode()))
        for attribute, values in attributes.items():
            for value in values:
                octets = value if isinstance(value, bytes) else value.encode()
                lines.append(attribute.encode() + b":: " + base64.b64encode(octets))
        lines.append(b"")
    return b"\n".join(lines) + b"\n"


def person(uid: str, department: str | Sequence[str] = "R&D", /, **more: Any) -> tuple[str, dict[str, Any]]:
    """An entry of a person; `more` are further attributes, lists of values."""
    departments = [department] if isinstance(department, str) else list(department)
    attributes: dict[str, Any] = {
        "objectClass": ["inetOrgPerson", "testAccount"],
        "uid": [uid],
        "cn": [f"{uid} of the campus"],
        "sn": [uid],
        **({"departmentNumber": departments} if departments else {}),
        **more,
    }
    return f"uid={uid},ou=people,{BASE}", attributes


@dataclass
class Slapd:
    """One slapd; start() and stop() as often as wanted, the entries stay."""

    folder: Path
    size_limit: str = "unlimited"
    security: str = ""
    others: str = "anonymous auth"
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    port: int = 0
    tls_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    _made: bool = field(default=False)

    def make(self, people: Iterable[tuple[str, Mapping[str, Any]]]) -> Slapd:
        """Configuration, certificates, and these people below ou=people."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "db").mkdir()
        (self.folder / "test.schema").write_text(_SCHEMA)
        make_server(self.folder, *make_ca(self.folder), *self.names)
        config = _CONFIG.format(
            folder=self.folder, base=BASE, manager=MANAGER, password=PASSWORD, size_limit=self.size_limit,
            security=self.security, others=self.others,
        )  # fmt: skip
        (self.folder / "slapd.conf").write_text(config)
        (self.folder / "password").write_text("reader-password\n")
        (self.folder / "password").chmod(0o600)
        start = [
            (BASE, {"objectClass": ["dcObject", "organization"], "dc": ["campus"], "o": ["Campus"]}),
            (f"ou=people,{BASE}", {"objectClass": ["organizationalUnit"], "ou": ["people"]}),
            (
                f"cn=reader,{BASE}",
                {
                    "objectClass": ["organizationalRole", "simpleSecurityObject"],
                    "cn": ["reader"],
                    "userPassword": ["reader-password"],
                },
            ),
        ]
        done = subprocess.run(
            [str(_PROGRAM), "-T", "add", "-q", "-f", str(self.folder / "slapd.conf")],
            input=ldif([*start, *people]), capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return self

    def start(self) -> Slapd:
        """Run it; back when it answers."""
        self.port, self.tls_port = self.port or free_port(), self.tls_port or free_port()
        command = [
            str(_PROGRAM), "-f", str(self.folder / "slapd.conf"), "-d", "0",
            "-h", f"ldap://127.0.0.1:{self.port}/ ldaps://127.0.0.1:{self.tls_port}/",
        ]  # fmt: skip
        log = (self.folder / "slapd.log").open("ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 20
        for port in (self.port, self.tls_port):
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert self.process.poll() is None, (self.folder / "slapd.log").read_text()
                assert time.monotonic() < deadline, "slapd does not answer"
                time.sleep(0.05)
        return self

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            (self.process.kill if kill else self.process.terminate)()
            self.process.wait(20)
            self.process = None

    @contextlib.contextmanager
    def running(self) -> Iterator[Slapd]:
        self.start()
        try:
            yield self
        finally:
            self.stop()

    # -- what the appliance is told

    def settings(self, **more: Any) -> dict[str, Any]:
        """Values of the section [directory] for this server."""
        return {
            "source": "ldap",
            "ldap_url": f"ldap://localhost:{self.port}",
            "ldap_ca_file": self.folder / "ca.pem",
            "ldap_bind_dn": f"cn=reader,{BASE}",
            "ldap_password_file": self.folder / "password",
            "ldap_base": f"ou=people,{BASE}",
            "ldap_timeout_seconds": 5,
            "ldap_total_seconds": 20,
            **more,
        }

    # -- changes by the manager

    @contextlib.contextmanager
    def manager(self) -> Iterator[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ldap3
        server = ldap3.Server("127.0.0.1", port=self.port, get_info=ldap3.NONE)
        connection = ldap3.Connection(server, MANAGER, PASSWORD, auto_bind=True, raise_exceptions=True)
        try:
            yield connection
        finally:
            connection.unbind()

    def put(self, uid: str, **attributes: Any) -> None:
        """Replace attributes of a person; an empty list removes one."""
        with self.manager() as connection:
            changes = {name: [("MODIFY_REPLACE", values)] for name, values in attributes.items()}
            connection.modify(f"uid={uid},ou=people,{BASE}", changes)

    def add(self, uid: str, department: str | Sequence[str] = "R&D", /, **more: Any) -> None:
        name, attributes = person(uid, department, **more)
        with self.manager() as connection:
            connection.add(name, attributes=attributes)

    def remove(self, *uids: str) -> None:
        with self.manager() as connection:
            for uid in uids:
                connection.delete(f"uid={uid},ou=people,{BASE}")

    def rename(self, uid: str, new: str) -> None:
        with self.manager() as connection:
            connection.modify_dn(f"uid={uid},ou=people,{BASE}", f"uid={new}")


class Rogue:
    """A TCP server that plays a script on every connection: `play(socket)` in a thread of its own."""

    def __init__(self, play: Callable[[socket.socket], None]) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._play = play
        self.was_reached = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(accepted)
            self.was_reached.set()
            thread = threading.Thread(target=self._serve, args=(accepted,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError), accepted:
            self._play(accepted)

    def close(self) -> None:
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._accepting.join(30)
        for thread in self._threads:
            thread.join(30)


def relay(target: int, after_bytes: int, then: Callable[[], None]) -> Callable[[socket.socket], None]:
    """A script that passes everything on, and does something once so many octets came back."""

    def play(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", target)) as server:
            sending = threading.Thread(target=_pump, args=(client, server), daemon=True)
            sending.start()
            passed, is_done = 0, False
            while data := server.recv(4096):
                client.sendall(data)
                passed += len(data)
                if passed > after_bytes and not is_done:
                    is_done = True
                    then()

    return play


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(4096):
            sink.sendall(data)
