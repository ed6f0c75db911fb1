"""Peer: who is at the other end of a connection, as values that a handler may look at.

A certificate here was presented and its key was proven in the handshake, and nothing more: the device port accepts any
certificate at TLS level, and path, purpose and revocation are the route's business (est.chains).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from est.keys import spki_sha256


def program_of(pid: int) -> tuple[int, int] | None:
    """Device and inode of what a process runs, through the kernel's own link; None where that cannot be seen."""
    try:
        found = os.stat(f"/proc/{pid}/exe")  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino


@dataclass(frozen=True)
class Peer:
    """One connection's other end; the same object for every request on it.

    `chain` is what the peer sent, its own certificate first, unverified. `connection_id` is unique while the process
    lives. `uid`, `pid` and `program` (device and inode of what that process ran when it was accepted) are set on Unix
    sockets only.
    """

    address: str = ""
    connection_id: int = 0
    certificate: x509.Certificate | None = None
    chain: tuple[x509.Certificate, ...] = ()
    tls_version: str = ""
    server_certificate: x509.Certificate | None = None
    bind: Callable[[], tuple[bytes, ...]] | None = field(default=None, repr=False)
    uid: int | None = None
    pid: int | None = None
    program: tuple[int, int] | None = None

    @cached_property
    def certificate_der(self) -> bytes | None:
        """The certificate's bytes."""
        return None if self.certificate is None else self.certificate.public_bytes(Encoding.DER)

    @cached_property
    def certificate_sha256(self) -> bytes | None:
        """SHA-256 of the certificate's bytes."""
        der = self.certificate_der
        return None if der is None else hashlib.sha256(der).digest()

    @cached_property
    def key_sha256(self) -> bytes | None:
        """SHA-256 of the certificate's SubjectPublicKeyInfo; raises CertificateMalformed for an unreadable key."""
        return None if self.certificate is None else spki_sha256(self.certificate)

    def bindings(self) -> tuple[bytes, ...]:
        """The channel bindings of this TLS session (RFC 9266, RFC 5929); empty where it has none."""
        return () if self.bind is None else self.bind()
