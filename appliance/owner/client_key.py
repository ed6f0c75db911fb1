"""The client key of an owner's tool: says who connects, approves nothing, and is never the approval key (A-99).

Its certificate is self-signed, because the server knows the key itself (the way of RFC 8705, section 2.2); its dates
and names mean nothing to anybody.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.binding import jws, possession
from appliance.errors import KeyFileExists
from appliance.owner.keys import STATEMENT_SECONDS, write_new
from est.signer import KeySigner

KEY_FILE = "client.key.pem"
CERTIFICATE_FILE = "client.pem"
STATEMENT_FILE = "owner-client-key.jwt"
CERTIFICATE_YEARS = 10


@dataclass(frozen=True, slots=True)
class ClientKeyFiles:
    """What `client_keygen` wrote."""

    key_file: Path
    certificate_file: Path
    statement_file: Path
    jkt: str


def client_keygen(folder: Path, *, ref: str, audience: str, now: datetime) -> ClientKeyFiles:
    """Makes a P-256 client key, its certificate and its statement in `folder`; `ref` and `audience` as for keygen.

    The key file is protected by its mode (0600): a program uses it unattended. Raises KeyFileExists.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    signer = KeySigner(key)
    iat = int(now.timestamp())
    statement = possession.seal(
        signer,
        sub=ref,
        aud=audience,
        iat=iat,
        exp=iat + STATEMENT_SECONDS,
        jti=jws.base64url(secrets.token_bytes(16)),
        typ=possession.CLIENT_TYP,
    )
    possession.unseal(statement, typ=possession.CLIENT_TYP)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "owner client")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * CERTIFICATE_YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = ClientKeyFiles(
        folder / KEY_FILE, folder / CERTIFICATE_FILE, folder / STATEMENT_FILE, jws.jkt(key.public_key())
    )
    for path in (files.key_file, files.certificate_file, files.statement_file):
        if path.exists():
            raise KeyFileExists(f"{path} exists already")
    write_new(files.key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    write_new(files.certificate_file, certificate.public_bytes(Encoding.PEM), 0o644)
    write_new(files.statement_file, statement.encode("ascii") + b"\n", 0o644)
    return files
