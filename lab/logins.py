"""One login at a RADIUS server, by eapol_test where it is installed, else by the project's own supplicant."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lab.eapol import run_eapol_test
from lab.supplicant import authenticate


@dataclass(frozen=True, slots=True)
class Login:
    """What the supplicant saw: the VLAN, `reject`, or what went wrong."""

    word: str
    tls_version: str


def log_in(
    supplicant: str,
    address: str,
    secret: str,
    *,
    chain: Path,
    key: Path,
    root: Path,
    server_name: str,
    tls_version: Literal["1.2", "1.3"],
) -> Login:
    """Log in once at `host:port`; `supplicant` is eapol_test or project. The keys of both ends must match."""
    host, _, port = address.rpartition(":")
    run = run_eapol_test if supplicant == "eapol_test" else authenticate
    outcome = asyncio.run(
        run(
            host,
            int(port),
            secret.encode(),
            identity="anonymous@campus.example",
            certificate_chain_pem=chain.read_bytes(),
            key_pem=key.read_bytes(),
            ca_pem=pem_of(root),
            server_name=server_name,
            tls_version=tls_version,
        )
    )
    if outcome.code == "accept":
        word = outcome.vlan or "accept without VLAN"
        word = word if outcome.msk_matches else f"{word}, but the keys of server and supplicant differ"
    else:
        word = outcome.code if outcome.code == "reject" else f"{outcome.code}: {outcome.trouble}"
    return Login(word, outcome.tls_version)


def pem_of(path: Path) -> bytes:
    """A certificate file, DER or PEM, as PEM."""
    content = path.read_bytes()
    if content.startswith(b"-----"):
        return content
    return x509.load_der_x509_certificate(content).public_bytes(Encoding.PEM)
