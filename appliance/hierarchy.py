"""The CA hierarchy on disk: a root over three issuing CAs, and the certificates of the appliance's own servers (D-4).

Made once by `appliance init`. The root's key is used here and at rotation only and may be moved off the machine after.
Every issuing CA has its own subject per generation, because equal subjects under one root make path building guess.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.errors import CaExpired, CaUnsuitable, KeyFileMissing, KeyMismatch
from appliance.keys import (
    KEY_COST,
    check_pair,
    generate,
    read_certificates,
    read_key,
    read_signer,
    write_certificates,
    write_key,
)
from appliance.settings import Settings
from appliance.store import Tx, certificates
from appliance.token import Token, open_token
from est import profiles
from est.chains import aki_of, read_certificate, ski_of
from est.keys import spki, spki_sha256
from est.profiles import Shape, Terms
from est.signer import KeySigner, Signer

Role = Literal["devices", "agents", "infrastructure"]
ROLES: tuple[Role, ...] = get_args(Role)
ServerName = Literal["registrar", "radius", "https"]
SERVERS: Mapping[ServerName, Role] = {"registrar": "devices", "radius": "infrastructure", "https": "infrastructure"}
"""The appliance's own server certificates and the CA that signs each."""
ROOT, SEALING, AUDIT = "root", "sealing", "audit"


@dataclass(frozen=True)
class IssuingCa:
    """One issuing CA: its certificate, its key, and the addresses that its certificates carry ("" = none).

    `ocsp_signer` is the key that answers OCSP for it, where that lies in a token; None = one is made at each start.
    `label` names this generation of the role's CA: its key, its CRL, its addresses; the first is called as the role.
    """

    role: Role
    certificate: x509.Certificate
    signer: Signer
    crl_url: str = ""
    issuer_url: str = ""
    ocsp_url: str = ""
    ocsp_signer: Signer | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.role)

    @cached_property
    def key_identifier(self) -> bytes:
        """The subject key identifier: the AKI of everything it issues."""
        return ski_of(self.certificate) or b""

    @cached_property
    def aki(self) -> str:
        """`key_identifier` as stored: lower-case hex."""
        return self.key_identifier.hex()

    @cached_property
    def subject(self) -> x509.Name:
        """The issuer of everything it issues."""
        return self.certificate.subject

    @cached_property
    def not_before(self) -> datetime:
        """When its life begins; what it issues does not live earlier."""
        return self.certificate.not_valid_before_utc

    @cached_property
    def not_after(self) -> datetime:
        """When its life ends; what it issues does not live longer."""
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """One of the appliance's own servers: certificate, issuing CA and root, key, and the files that hold them.

    `chain` is the issuing CA, what links it to another root while the root changes, and the root. `certificate_file`
    has the certificate and what is sent with it; `key_file` is encrypted under the home's passphrase.
    """

    name: ServerName
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey
    certificate_file: Path
    key_file: Path

    @property
    def sent(self) -> tuple[x509.Certificate, ...]:
        """What goes behind the certificate in TLS: the chain without the root."""
        return self.chain[:-1]


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """What create_hierarchy() made: every certificate by name, root first."""

    certificates: Mapping[str, x509.Certificate]


def key_file(home: Path, name: str) -> Path:
    """Where the key of a CA, a server, or the sealing box lies."""
    return home / "keys" / f"{name}.key"


def ocsp_key(label: str) -> str:
    """The name of the key that answers OCSP for a CA, in a token."""
    return f"ocsp-{label}"


def certificate_file(home: Path, name: str) -> Path:
    """Where the certificate of a CA or a server lies; a server's file has its issuing CA behind it."""
    return home / "certificates" / f"{name}.pem"


def create_hierarchy(
    home: Path, settings: Settings, passphrase: bytes, now: datetime, *, key_cost: int = KEY_COST
) -> Hierarchy:
    """Make every key and certificate of a new home, the root first, the sealing key and the key of the audit log.

    `home` exists, mode 0700. `key_cost` is scrypt's N for the key files; tests take a small one.
    Raises KeyFileExists if anything of it was there; then nothing is overwritten.
    """
    for folder in (home / "keys", home / "certificates"):
        folder.mkdir(mode=0o700, exist_ok=True)
    now = now.replace(microsecond=0)
    start = now - timedelta(seconds=settings.ca.backdate_seconds)
    organization = settings.domain.organization
    made: dict[str, x509.Certificate] = {}

    root_key = _new_key(home, ROOT, passphrase, key_cost)
    subject = profiles.name(f"Root CA {key_tag(root_key.public_key())}", organization)
    root = sign_shape(
        profiles.root_ca(
            subject,
            root_key.public_key(),
            serial=new_serial(),
            not_before=start,
            not_after=now + timedelta(days=settings.ca.root_days),
        ),
        KeySigner(root_key),
    )
    _save(home, ROOT, made, root)

    token = open_token(settings.hsm)
    signers: dict[Role, Signer] = {}
    for role in ROLES:
        if token is None:
            signers[role] = KeySigner(_new_key(home, role, passphrase, key_cost))
        else:
            signers[role] = token.generate(role)
            token.generate(ocsp_key(role))
        public = signers[role].public_key()
        not_after = min(now + timedelta(days=settings.ca.issuing_days), root.not_valid_after_utc)
        terms = Terms.under(root, serial=new_serial(), not_before=start, not_after=not_after)
        subject = profiles.name(f"{role.capitalize()} CA {key_tag(public)}", organization)
        _save(home, role, made, sign_shape(profiles.issuing_ca(terms, subject, public), KeySigner(root_key)))

    for name, role in SERVERS.items():
        issuer = made[role]
        key = _new_key(home, name, passphrase, key_cost)
        not_after = min(now + timedelta(days=settings.ca.server_days), issuer.not_valid_after_utc)
        crl_url, issuer_url, ocsp_url = addresses(settings, role)
        terms = Terms.under(
            issuer,
            serial=new_serial(),
            not_before=start,
            not_after=not_after,
            crl_url=crl_url or None,
            issuer_url=issuer_url or None,
            ocsp_url=ocsp_url or None,
        )
        shape = server_shape(name, terms, key.public_key(), settings)
        _save(home, name, made, sign_shape(shape, signers[role]), issuer)

    _new_key(home, SEALING, passphrase, key_cost)
    _new_key(home, AUDIT, passphrase, key_cost)
    if token is not None:
        token.close()
    return Hierarchy(made)


def record_hierarchy(tx: Tx, hierarchy: Hierarchy, actor: Actor) -> None:
    """Write the certificates of a new hierarchy into the store and the audit log, in the caller's transaction."""
    issuers = {one.subject: name for name, one in hierarchy.certificates.items()}
    for name, certificate in hierarchy.certificates.items():
        role = issuers[certificate.issuer]
        profile = name if name in SERVERS else "ca"
        _record(tx, name, certificate, role, ski_of(hierarchy.certificates[role]) or b"", profile, actor)


def record_ca(tx: Tx, name: str, certificate: x509.Certificate, actor: Actor) -> None:
    """As record_hierarchy(), for one certificate that a root has signed since; a root is its own issuer."""
    issuer = aki_of(certificate) or ski_of(certificate) or b""
    _record(tx, name, certificate, ROOT, issuer, "ca", actor)


def _record(
    tx: Tx, name: str, certificate: x509.Certificate, role: str, issuer_key: bytes, profile: str, actor: Actor
) -> None:
    der = certificate.public_bytes(Encoding.DER)
    row = certificates.Pending(
        role,
        issuer_key,
        certificate.serial_number,
        hashlib.sha256(certificate.tbs_certificate_bytes).digest(),
        spki_sha256(certificate),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        {"profile": profile},
    )
    digest = hashlib.sha256(der).digest()
    certificates.issue(tx, certificates.add(tx, row), der, digest)
    event = "server-certificate-issued" if profile in SERVERS else "ca-certificate-issued"
    fields = {"name": name, "issuer": role, "cert_sha256": digest.hex()}
    serial = certificates.serial_text(certificate.serial_number)
    audit.append(tx, AuditEvent(event, actor, object=serial, fields=fields))


def read_issuing(home: Path, settings: Settings, passphrase: bytes) -> tuple[x509.Certificate, dict[Role, IssuingCa]]:
    """The root's certificate and the three issuing CAs with their keys, as `init` made them.

    Raises KeyFileMissing, KeyFileExposed, PassphraseWrong, KeyMalformed, KeyMismatch, TokenUnavailable.
    """
    token = open_token(settings.hsm)
    root, certificates = read_first(home)
    return root, {
        role: read_generation(home, settings, passphrase, role, role, certificates[role], token) for role in ROLES
    }


def read_first(home: Path) -> tuple[x509.Certificate, dict[Role, x509.Certificate]]:
    """The certificates that `init` made, root and issuing CAs; KeyFileMissing, KeyMalformed."""
    issuing = {role: read_certificates(certificate_file(home, role))[0] for role in ROLES}
    return read_certificates(certificate_file(home, ROOT))[0], issuing


def read_generation(
    home: Path,
    settings: Settings,
    passphrase: bytes,
    role: Role,
    label: str,
    certificate: x509.Certificate,
    token: Token | None,
) -> IssuingCa:
    """An issuing CA by the label of its key; raises as read_issuing()."""
    ocsp_signer: Signer | None = None
    if token is None:
        signer: Signer = read_signer(key_file(home, label), passphrase, certificate)
    else:
        signer, ocsp_signer = token.signer(label), token.signer(ocsp_key(label))
        if spki(signer.public_key()) != spki(certificate):
            raise KeyMismatch(f"the token's key of the {label} CA is not its certificate's")
    return IssuingCa(role, certificate, signer, *addresses(settings, label), ocsp_signer, label)


def read_audit_key(home: Path, passphrase: bytes) -> ec.EllipticCurvePrivateKey:
    """The key that signs checkpoints of the audit log; made now in a home that is older than they are."""
    path = key_file(home, AUDIT)
    if not path.exists():
        return _new_key(home, AUDIT, passphrase, KEY_COST)
    return read_key(path, passphrase)


def read_server(
    home: Path, name: ServerName, passphrase: bytes, *, root: x509.Certificate | None = None
) -> ServerIdentity:
    """Certificate, chain and key of one of our servers; `root`: not that of `init`. Raises as read_issuing()."""
    path = certificate_file(home, name)
    found = read_certificates(path)
    if len(found) < 2:
        raise KeyFileMissing("the server's file lacks its issuing CA", path=str(path))
    key = read_key(key_file(home, name), passphrase)
    check_pair(key, found[0])
    root = root or read_certificates(certificate_file(home, ROOT))[0]
    return ServerIdentity(name, found[0], (*found[1:], root), key, path, key_file(home, name))


def server_shape(name: ServerName, terms: Terms, key: ec.EllipticCurvePublicKey, settings: Settings) -> Shape:
    """The certificate shape of one of our servers."""
    domain = settings.domain
    if name == "radius":
        server_name = settings.radius_server_name
        subject = profiles.name(server_name[:64], domain.organization)
        return profiles.radius_server(terms, subject, key, dns_names=(server_name,))
    hosts, numbers = [], []
    for one in settings.web.names:
        try:
            numbers.append(ip_address(one))
        except ValueError:
            hosts.append(one)
    subject = profiles.name(f"{name} {domain.trust_domain}"[:64], domain.organization)
    make = profiles.registrar if name == "registrar" else profiles.https_server
    return make(terms, subject, key, dns_names=hosts, addresses=numbers)


def addresses(settings: Settings, role: str) -> tuple[str, str, str]:
    """CRL, issuer and OCSP URL in certificates of a CA, by its label; empty where the PKI port is picked at start."""
    base = settings.ca.pki_base_url.rstrip("/")
    if not base:
        if not settings.web.pki_port or not settings.web.names:
            return "", "", ""
        host = settings.web.names[0]
        base = f"http://{f'[{host}]' if ':' in host else host}:{settings.web.pki_port}"
    return f"{base}/crl/{role}.crl", f"{base}/ca/{role}.cer", f"{base}/ocsp"


def new_serial() -> int:
    """127 random bits: positive, at most 16 octets."""
    return int.from_bytes(secrets.token_bytes(16), "big") >> 1 or 1


def check_ca(
    certificate: x509.Certificate, issuer: x509.Certificate | None, now: datetime, *, path_length: int
) -> None:
    """A-10: a CA certificate has cA, keyCertSign, exactly this path length, a key identifier, and is in force.

    `issuer` None = self-signed. Raises CaUnsuitable, CaExpired.
    """
    name = certificate.subject.rfc4514_string()
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        certificate.verify_directly_issued_by(issuer or certificate)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise CaUnsuitable(f"{name} is not a CA certificate of this hierarchy") from error
    if not basic.critical or not basic.value.ca or basic.value.path_length != path_length:
        raise CaUnsuitable(f"{name} must be a CA with path length {path_length}")
    if not usage.value.key_cert_sign or not usage.value.crl_sign:
        raise CaUnsuitable(f"{name} may not sign certificates and CRLs")
    if ski_of(certificate) is None:
        raise CaUnsuitable(f"{name} has no subject key identifier")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise CaExpired(f"{name} is not valid at this time", retry_after_seconds=3600)


def _new_key(home: Path, name: str, passphrase: bytes, cost: int) -> ec.EllipticCurvePrivateKey:
    key = generate()
    write_key(key_file(home, name), key, passphrase, cost=cost)
    return key


def key_tag(key: ec.EllipticCurvePublicKey) -> str:
    return profiles.key_identifier(key).hex()[:8]


def sign_shape(shape: Shape, signer: Signer) -> x509.Certificate:
    """The certificate of a shape, compared with it; blocks where the key lies in a token."""
    tbs = profiles.to_be_signed(shape, issuer_key=signer.public_key())
    certificate = read_certificate(profiles.assemble(tbs, signer.sign(tbs), signer.public_key()))
    profiles.check(certificate, shape)
    return certificate


def _save(
    home: Path, name: str, made: dict[str, x509.Certificate], certificate: x509.Certificate, *issuers: x509.Certificate
) -> None:
    write_certificates(certificate_file(home, name), (certificate, *issuers))
    made[name] = certificate
