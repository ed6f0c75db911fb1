"""The proxy's state folder: what it knows after a restart, in files that kill -9 never leaves half written.

Folder 0700, files 0600: `method` (how the first LDevID was got), `ldevid.pem` (LDevID and its issuers),
`ldevid.key.pem`, `anchors.pem` (explicit trust anchors), `proxy.json` (identifier, server, what was reported),
`voucher.cms`, `voucher-request.cms` (or `.vjj`, signed by JWS), `bootstrap.json` (report), `time` (a lower bound of
it), `callers.json`, `lock`. A new key waits as `next.key.pem` with its request `next.csr`, its certificate as
`next.pem`; the presence of `next.pem` is the decision to change over, and `recover` finishes a change-over that was cut
short.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.proxy.disk import Disk
from appliance.proxy.errors import ProxyStateDamaged, ProxyStateLocked
from est import csr
from est.certificates import pem_certificates
from est.errors import EstError


@dataclass(frozen=True, slots=True)
class ProxyRecord:
    """proxy.json: who this proxy is, whom it serves, and how it came to be (A-83)."""

    identifier: str
    host: str
    port: int
    named: bool
    method: str
    ueid: str
    voucher_sha256: str = ""
    enroll_status_sent: bool = False


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """A client credential as OpenSSL loads it: a PEM chain, leaf first, and its key."""

    certificate: Path
    key: Path


class ProxyState:
    """The state folder, locked while this object is open. Raises ProxyStateLocked, ProxyStateDamaged."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self.folder = folder
        self._disk = disk or Disk(folder)
        self._lock: int | None = None

    @classmethod
    def open(cls, folder: Path, disk: Disk | None = None) -> ProxyState:
        """Make the folder if needed, take its lock, finish what a kill interrupted."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        state = cls(folder, disk)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            os.close(lock)
            raise ProxyStateLocked(f"another proxy runs on {folder}; stop it or name another --state folder") from cause
        state._lock = lock
        state.recover()
        return state

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def path(self, name: str) -> Path:
        return self.folder / name

    # -- files ---------------------------------------------------------------------------------------------------

    def write(self, name: str, body: bytes, *, durable: bool = True) -> None:
        """Replace a file as a whole: after a crash it has its old or its new content, nothing between.

        `durable` False survives the end of this process, not that of the machine.
        """
        try:
            self._disk.replace(name, body, durable=durable)
        except OSError as cause:
            raise ProxyStateDamaged(f"{name} cannot be written: {cause.strerror}", file=name) from cause

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise ProxyStateDamaged(f"{name} cannot be read: {cause.strerror}", file=name) from cause

    # -- credential ----------------------------------------------------------------------------------------------

    @property
    def configured(self) -> bool:
        """An LDevID with its key, anchors and record are here: BRSKI never starts again (RFC 8995, section 5)."""
        return all(self.path(name).exists() for name in ("ldevid.pem", "ldevid.key.pem", "anchors.pem", "proxy.json"))

    def stage(self, key: ec.EllipticCurvePrivateKey, csr_der: bytes) -> None:
        """Keep the new key and its CSR before the CSR leaves, so that no certificate can exist whose key was lost."""
        self.discard_staged()
        self.write(
            "next.key.pem",
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

        self.write("next.csr", csr_der)

    def staged(self) -> tuple[ec.EllipticCurvePrivateKey, bytes] | None:
        """Key and CSR of an enrolment that is under way, also after a restart; a pair that is none does not count."""
        pem, csr_der = self.read("next.key.pem"), self.read("next.csr")
        if pem is None or csr_der is None:
            return None
        key = _read_key(pem, "next.key.pem")
        try:
            # a power cut may bring back the CSR of an earlier key
            return (key, csr_der) if csr.read(csr_der).public_key == key.public_key() else None
        except EstError:
            return None

    def discard_staged(self) -> None:
        for name in ("next.csr", "next.key.pem"):
            self._disk.remove(name)

    def adopt(self, chain: Sequence[x509.Certificate]) -> None:
        """Change over to the certificate `chain[0]` of the staged key."""
        self.write("next.pem", b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
        self.recover()

    def recover(self) -> None:
        """Finish a change-over. Writing `next.pem` decided it; each rename below may have happened already."""
        self._disk.clean()
        staged = self.read("next.pem")
        if staged is None:
            return
        wanted = _read_certificates(staged, "next.pem")[0].public_key()
        for name in ("next.key.pem", "ldevid.key.pem"):
            pem = self.read(name)
            if pem is not None and _read_key(pem, name).public_key() == wanted:
                break
        else:
            raise ProxyStateDamaged("next.pem has no key in the state folder", file="next.pem")
        if name == "next.key.pem":
            self._disk.rename(name, "ldevid.key.pem")
        self._disk.remove("next.csr")
        self._disk.rename("next.pem", "ldevid.pem")

    def credential(self) -> ClientFiles:
        """The LDevID's files for a TLS context."""
        return ClientFiles(self.path("ldevid.pem"), self.path("ldevid.key.pem"))

    def ldevid_chain(self) -> tuple[x509.Certificate, ...]:
        """The LDevID first, then its issuers. Raises ProxyStateDamaged."""
        return _read_certificates(self._needed("ldevid.pem"), "ldevid.pem")

    def ldevid_key(self) -> ec.EllipticCurvePrivateKey:
        key = _read_key(self._needed("ldevid.key.pem"), "ldevid.key.pem")
        if key.public_key() != self.ldevid_chain()[0].public_key():
            raise ProxyStateDamaged("ldevid.key.pem is not the key of ldevid.pem", file="ldevid.key.pem")
        return key

    # -- anchors, record, callers --------------------------------------------------------------------------------

    def write_anchors(self, certificates: Sequence[x509.Certificate]) -> None:
        self.write("anchors.pem", b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates))

    def anchors(self) -> tuple[x509.Certificate, ...]:
        return _read_certificates(self._needed("anchors.pem"), "anchors.pem")

    def write_record(self, record: ProxyRecord) -> None:
        self.write("proxy.json", json.dumps(asdict(record), indent=2, sort_keys=True).encode() + b"\n")

    def record(self) -> ProxyRecord:
        try:
            return ProxyRecord(**json.loads(self._needed("proxy.json")))
        except (ValueError, TypeError) as cause:
            raise ProxyStateDamaged("proxy.json does not read", file="proxy.json") from cause

    def note_enroll_status(self) -> None:
        """The success was reported; a restart need not report it again."""
        self.write_record(replace(self.record(), enroll_status_sent=True))

    def _needed(self, name: str) -> bytes:
        body = self.read(name)
        if body is None:
            raise ProxyStateDamaged(f"{name} is missing from the state folder", file=name)
        return body


def _read_certificates(pem: bytes, name: str) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(pem_certificates(pem))
    except ValueError as cause:
        raise ProxyStateDamaged(f"{name} holds no certificates", file=name) from cause


def _read_key(pem: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as cause:
        raise ProxyStateDamaged(f"{name} holds no private key", file=name) from cause
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ProxyStateDamaged(f"{name} is not an elliptic-curve key", file=name)
    return key
