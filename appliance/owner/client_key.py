"""The keys of an owner's connections: the client key of a tool, the server key of a gateway.

They say who connects or answers, approve nothing, and are never the approval key (A-99). Their certificates are
self-signed, because the other side knows the key itself (the way of RFC 8705, section 2.2); dates and names in them
mean nothing to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.binding import jws, possession
from appliance.owner.keys import load, must_be_new, state_possession, write_new
from est.signer import KeySigner

KEY_FILE = "client.key.pem"
CERTIFICATE_FILE = "client.pem"
STATEMENT_FILE = "owner-client-key.jwt"
GATEWAY_KEY_FILE = "gateway.key.pem"
GATEWAY_CERTIFICATE_FILE = "gateway.pem"
GATEWAY_STATEMENT_FILE = "owner-gateway-key.jwt"
CERTIFICATE_YEARS = 10


@dataclass(frozen=True, slots=True)
class ClientKeyFiles:
    """What `client_keygen` or `gateway_keygen` wrote."""

    key_file: Path
    certificate_file: Path
    statement_file: Path
    jkt: str


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the key of one end of a connection is called, stated and marked."""

    typ: str
    name: str
    usage: x509.ObjectIdentifier
    files: tuple[str, str, str]


_CLIENT = _Kind(
    possession.CLIENT_TYP,
    "owner client",
    ExtendedKeyUsageOID.CLIENT_AUTH,
    (KEY_FILE, CERTIFICATE_FILE, STATEMENT_FILE),
)
_GATEWAY = _Kind(
    possession.GATEWAY_TYP,
    "owner gateway",
    ExtendedKeyUsageOID.SERVER_AUTH,
    (GATEWAY_KEY_FILE, GATEWAY_CERTIFICATE_FILE, GATEWAY_STATEMENT_FILE),
)


def client_keygen(folder: Path, *, ref: str, audience: str, now: datetime) -> ClientKeyFiles:
    """Makes a P-256 client key, its certificate and its statement in `folder`; `ref` and `audience` as for keygen.

    The key file is protected by its mode (0600): a program uses it unattended. Raises KeyFileExists.
    """
    return _make(_CLIENT, folder, ref, audience, now)


def gateway_keygen(folder: Path, *, ref: str, audience: str, now: datetime) -> ClientKeyFiles:
    """The same for the server key of an owner's gateway, which proxies pin."""
    return _make(_GATEWAY, folder, ref, audience, now)


def gateway_statement(folder: Path, out: Path, *, ref: str, audience: str, now: datetime) -> str:
    """Another statement about the server key in `folder`, for another campus; answers the key's thumbprint.

    Raises KeyFileExists, and what `load` raises.
    """
    signer = load(folder / GATEWAY_KEY_FILE)
    write_new(out, _state(_GATEWAY, signer, ref, audience, now).encode("ascii") + b"\n", 0o644)
    return jws.jkt(signer.public_key())


def _state(kind: _Kind, signer: KeySigner, ref: str, audience: str, now: datetime) -> str:
    return state_possession(signer, ref=ref, audience=audience, now=now, typ=kind.typ)


def _make(kind: _Kind, folder: Path, ref: str, audience: str, now: datetime) -> ClientKeyFiles:
    key = ec.generate_private_key(ec.SECP256R1())
    statement = _state(kind, KeySigner(key), ref, audience, now)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, kind.name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * CERTIFICATE_YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([kind.usage]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_file, certificate_file, statement_file = (folder / one for one in kind.files)
    files = ClientKeyFiles(key_file, certificate_file, statement_file, jws.jkt(key.public_key()))
    must_be_new(files.key_file, files.certificate_file, files.statement_file)
    write_new(files.key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    write_new(files.certificate_file, certificate.public_bytes(Encoding.PEM), 0o644)
    write_new(files.statement_file, statement.encode("ascii") + b"\n", 0o644)
    return files
