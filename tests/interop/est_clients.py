"""Foreign EST clients behind one set of calls: strongSwan's pki, Bouncy Castle over the JDK's TLS, curl with openssl.

Each makes its requests by its own means where it can, and answers the TLS version that it saw.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import SystemClock
from appliance.initialise import initialise
from appliance.settings import FILE_NAME
from lab.demo import free_port
from tests.campus import UNLIMITED, Campus, environment

HERE = Path(__file__).parent
JARS = tuple(Path("/usr/share/java") / f"{name}.jar" for name in ("bcpkix", "bcprov", "bcutil"))
_LINES = re.MULTILINE | re.DOTALL | re.IGNORECASE
LABEL = "lab"
"""Under which every site of these tests has rules of its own: certificates live seven days."""
TLS_JAR = Path("/usr/share/java/bctls.jar")


def run(*command: str | Path, data: bytes | None = None, **more: str) -> subprocess.CompletedProcess[bytes]:
    """A program that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], input=data, capture_output=True, timeout=60, env=environment(**more),
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    return done


def need(package: str, *things: str | Path) -> None:
    """Skip a test whose programs or files are not there; fail where all must be."""
    missing = [one for one in things if not (Path(one).exists() or shutil.which(str(one)))]
    if missing:
        text = f"{missing[0]} is not installed (Debian: apt install {package})"
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(text)
        pytest.skip(text)


@dataclass(frozen=True)
class Site:
    """A running appliance, and what its clients were told: address, root, CA of device certificates."""

    campus: Campus
    root: Path
    issuer: Path
    assignments: tuple[str, ...] = ()

    @classmethod
    def start(cls, folder: Path, *more: str) -> Site:
        """CRL and OCSP answer where the certificates say, because pki asks there."""
        campus, port = Campus(folder), free_port()
        initialise(
            campus.home, SystemClock(), trust_domain="campus.example", organization="Example University",
            assignments=("registrar.announce=false", f"ca.pki_base_url=http://127.0.0.1:{port}"),
        )  # fmt: skip
        with (campus.home / FILE_NAME).open("a") as file:
            file.write(f"[est.labels.{LABEL}]\nlife_days = 7\n")
        chosen = (*UNLIMITED, f"web.pki_port={port}", *more)
        campus.start(*chosen)
        root, issuer = folder / "root.pem", folder / "devices-ca.pem"
        root.write_bytes(campus.certificates_of("root")[0].public_bytes(Encoding.PEM))
        issuer.write_bytes(campus.certificates_of("devices")[0].public_bytes(Encoding.PEM))
        return cls(campus, root, issuer, chosen)

    def restart(self) -> None:
        """Ends the appliance in order and starts it again, its device port elsewhere."""
        assert self.campus.stop() == 0
        self.campus.start(*self.assignments)

    @property
    def address(self) -> str:
        return self.campus.listeners["device"]

    @property
    def cas(self) -> set[x509.Certificate]:
        return {x509.load_pem_x509_certificate(file.read_bytes()) for file in (self.root, self.issuer)}

    def credentials(self, name: str, label: str = "") -> str:
        """NAME:SECRET, good once and under this label."""
        return str(self.campus.ask("est.secret", name=name, hours=1, label=label)["credentials"])


class Foreign(Protocol):
    """One client in one folder, under one EST label where it can; certificates are PEM files, requests DER files.

    `require` skips the test where something is not installed; making one does so too.
    """

    label: str

    def __init__(self, site: Site, folder: Path) -> None: ...
    @staticmethod
    def require() -> None: ...
    def request(self, size: str, key: Path, csr: Path) -> None: ...
    def cacerts(self, tls: str, folder: Path) -> tuple[str, list[x509.Certificate]]: ...
    def enroll(self, tls: str, csr: Path, credentials: str, out: Path) -> str: ...
    def reenroll(self, tls: str, csr: Path, certificate: Path, key: Path, out: Path) -> str: ...
    def close(self) -> None: ...


def openssl_key(size: str, key: Path) -> None:
    """An own key whose request is small, or larger than 1 KiB in base64."""
    kind = ("RSA", "rsa_keygen_bits:3072") if size == "large" else ("EC", "ec_paramgen_curve:P-256")
    run("openssl", "genpkey", "-algorithm", kind[0], "-pkeyopt", kind[1], "-out", key)


def openssl_renewal(certificate: Path, key: Path, csr: Path) -> None:
    """A request with a new key and the certificate's names."""
    subject = run("openssl", "x509", "-in", certificate, "-noout", "-subject", "-nameopt", "RFC2253").stdout.decode()
    names = run("openssl", "x509", "-in", certificate, "-noout", "-ext", "subjectAltName").stdout.decode()
    uri = names.split()[-1]
    openssl_request(key, csr, "/" + subject.strip().removeprefix("subject="), "-addext", f"subjectAltName={uri}")


def openssl_copy(certificate: Path, key: Path, csr: Path) -> None:
    """A request of the old key with every extension of its certificate."""
    pem = csr.with_suffix(".pem")
    run("openssl", "x509", "-x509toreq", "-in", certificate, "-key", key, "-copy_extensions", "copyall", "-out", pem)
    run("openssl", "req", "-in", pem, "-outform", "DER", "-out", csr)


def openssl_request(key: Path, csr: Path, subject: str, *more: str) -> None:
    run("openssl", "req", "-new", "-key", key, "-subj", subject, *more, "-outform", "DER", "-out", csr)


class StrongSwan:
    """pki --estca and --est; TLS 1.3 only on request."""

    label = ""

    def __init__(self, site: Site, folder: Path) -> None:
        self.require()
        self._site, self._folder = site, folder
        (folder / "strongswan.conf").write_text("libtls {\n  version_max = 1.3\n}\n")

    @staticmethod
    def require() -> None:
        need("strongswan-pki libstrongswan-standard-plugins", "pki")
        need("openssl", "openssl")

    def _pki(self, tls: str, command: str, *more: str | Path) -> tuple[str, bytes]:
        environ = {"STRONGSWAN_CONF": str(self._folder / "strongswan.conf")} if tls == "1.3" else {}
        done = run(
            "pki", command, "--url", f"https://{self._site.address}", "--cacert", self._site.root, "--outform", "pem",
            *more, **environ,
        )  # fmt: skip
        told = done.stderr.decode()
        assert "not trusted" not in told and "certificate status is good" in told, told
        (version,) = set(re.findall(r"negotiated TLS (\S+)", told))  # one per connection
        return version, done.stdout

    def request(self, size: str, key: Path, csr: Path) -> None:
        kind = ("rsa", "3072") if size == "large" else ("ecdsa", "256")
        key.write_bytes(run("pki", "--gen", "--type", kind[0], "--size", kind[1], "--outform", "pem").stdout)
        csr.write_bytes(run("pki", "--req", "--in", key, "--dn", "CN=new proxy", "--outform", "der").stdout)

    def cacerts(self, tls: str, folder: Path) -> tuple[str, list[x509.Certificate]]:
        version, _ = self._pki(tls, "--estca", "--caout", folder / "ca.pem", "--force")
        files = (folder / "ca.pem", folder / "ca-1.pem")  # the root, and numbered ones for the others
        return version, [x509.load_pem_x509_certificate(file.read_bytes()) for file in files]

    def enroll(self, tls: str, csr: Path, credentials: str, out: Path) -> str:
        options = self._folder / "pki-options"
        options.write_text(f"--userpass {credentials}\n")
        return self._est(tls, out, "--in", csr, "--options", options, "--interval", "1")

    def reenroll(self, tls: str, csr: Path, certificate: Path, key: Path, out: Path) -> str:
        return self._est(tls, out, "--in", csr, "--cert", certificate, "--key", key)

    def _est(self, tls: str, out: Path, *more: str | Path) -> str:
        version, pem = self._pki(tls, "--est", "--cacert", self._site.issuer, *more)
        out.write_bytes(pem)
        return version

    def close(self) -> None:
        """Nothing is kept."""


class BouncyCastle:
    """tests/interop/java/EstClient.java in one virtual machine, which takes a call per line."""

    label = ""

    def __init__(self, site: Site, folder: Path) -> None:
        self.require()
        self._site, self._folder = site, folder
        path = ":".join(map(str, (*JARS, folder)))
        run("javac", "-d", folder, "-cp", path, HERE / "java" / "EstClient.java")
        self._java = subprocess.Popen(
            ["java", "-XX:TieredStopAtLevel=1", "-cp", path, "EstClient"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip

    @staticmethod
    def require() -> None:
        need("libbcpkix-java libbcprov-java libbcutil-java", *JARS)
        need("openjdk-17-jdk-headless", "java", "javac")
        need("openssl", "openssl")

    def _call(self, tls: str, operation: str, *more: Path) -> str:
        assert self._java.stdin is not None and self._java.stdout is not None
        place = self._site.address + (f"/{self.label}" if self.label else "")
        words = [operation, place, self._site.root, f"TLSv{tls}", *more]
        print(*words, file=self._java.stdin, flush=True)
        line = self._java.stdout.readline()
        answer = line.split(maxsplit=2)
        assert answer[0] == "ok", line
        return answer[1].removeprefix("TLSv")

    def request(self, size: str, key: Path, csr: Path) -> None:
        openssl_key(size, key)
        openssl_request(key, csr, "/CN=new proxy")

    def cacerts(self, tls: str, folder: Path) -> tuple[str, list[x509.Certificate]]:
        version = self._call(tls, "cacerts", folder / "ca.pem")
        return version, x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())

    def enroll(self, tls: str, csr: Path, credentials: str, out: Path) -> str:
        secret = self._folder / "secret"
        secret.write_text(credentials)
        return self._call(tls, "enroll", out, csr, secret)

    def keygen(self, tls: str, csr: Path, credentials: str, out: Path, out_key: Path) -> str:
        """A key that the server makes goes to `out_key`, DER."""
        secret = self._folder / "secret"
        secret.write_text(credentials)
        return self._call(tls, "keygen", out, csr, secret, out_key)

    def reenroll(self, tls: str, csr: Path, certificate: Path, key: Path, out: Path) -> str:
        return self._call(tls, "reenroll", out, csr, certificate, key)

    def close(self) -> None:
        assert self._java.stdin is not None and self._java.stdout is not None
        self._java.stdin.close()  # then it ends by itself
        try:
            self._java.wait(10)
        finally:
            self._java.kill()
            self._java.stdout.close()


class Curl:
    """curl for HTTP, openssl for everything else."""

    label = ""

    def __init__(self, site: Site, folder: Path) -> None:
        self.require()
        self._site, self._folder = site, folder

    @staticmethod
    def require() -> None:
        need("curl openssl", "curl", "openssl")

    def _fetch(self, tls: str, operation: str, *more: str | Path, data: bytes | None = None) -> tuple[str, bytes]:
        """What the operation answers, as PEM; 202 is waited for as a script does it: the same command again."""
        command = (
            "curl", "-sSfv", f"--tlsv{tls}", "--tls-max", tls, "--cacert", self._site.root, *more,
            f"https://{self._site.address}/.well-known/est/{self.label + '/' if self.label else ''}{operation}",
        )  # fmt: skip
        done = run(*command, data=data)
        while waiting := re.search(r"^< HTTP/1.1 202 .*?^< Retry-After: (\d+)", done.stderr.decode(), _LINES):
            assert not done.stdout
            time.sleep(int(waiting[1]))
            done = run(*command, data=data)
        (version,) = re.findall(r"SSL connection using TLSv(\S+)", done.stderr.decode())
        der = run("openssl", "base64", "-d", "-A", data=done.stdout.replace(b"\n", b"")).stdout
        return version, run("openssl", "pkcs7", "-inform", "DER", "-print_certs", data=der).stdout

    def _post(self, tls: str, operation: str, csr: Path, out: Path, *more: str | Path) -> str:
        body = run("openssl", "base64", "-A", "-in", csr).stdout
        typed = ("-H", "Content-Type: application/pkcs10", "--data-binary", "@-")
        version, pem = self._fetch(tls, operation, *typed, *more, data=body)
        out.write_bytes(pem)
        return version

    def request(self, size: str, key: Path, csr: Path) -> None:
        openssl_key(size, key)
        openssl_request(key, csr, "/CN=new proxy")

    def cacerts(self, tls: str, folder: Path) -> tuple[str, list[x509.Certificate]]:
        version, pem = self._fetch(tls, "cacerts")
        return version, x509.load_pem_x509_certificates(pem)

    def enroll(self, tls: str, csr: Path, credentials: str, out: Path) -> str:
        config = self._folder / "curl-config"
        config.write_text(f'user = "{credentials}"\n')
        return self._post(tls, "simpleenroll", csr, out, "-K", config)

    def reenroll(self, tls: str, csr: Path, certificate: Path, key: Path, out: Path) -> str:
        return self._post(tls, "simplereenroll", csr, out, "--cert", certificate, "--key", key)

    def close(self) -> None:
        """Nothing is kept."""


CLIENTS = (StrongSwan, BouncyCastle, Curl)
