"""Certificates for a world of make-believe: roots, intermediates, end entities, and a small campus domain.

In memory for tests, or as PEM files that only their owner reads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from est.chains import CMC_RA as CMC_RA_DOTTED
from est.signer import KeySigner

CMC_RA = x509.ObjectIdentifier(CMC_RA_DOTTED)


@dataclass(frozen=True, slots=True)
class Identity:
    """A key with its certificate and the certificates above it that travel along."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The certificate and the ones above it."""
        return (self.certificate, *self.issuers)

    @property
    def signer(self) -> KeySigner:
        """The key as the protocol packages take it."""
        return KeySigner(self.key)

    @property
    def chain_pem(self) -> bytes:
        """The chain as PEM, end entity first."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    @property
    def key_pem(self) -> bytes:
        """The key as unencrypted PKCS#8 PEM."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_root(name: str, *, now: datetime, years: int = 30, path_length: int | None = None) -> Identity:
    """A self-signed P-256 CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = common_name(name)
    not_after = now + timedelta(days=365 * years)
    certificate = issue(key, subject, key, subject, now=now, not_after=not_after, ca=True, path_length=path_length)
    return Identity(key, certificate)


def make_intermediate(parent: Identity, name: str, *, now: datetime) -> Identity:
    """A CA below `parent`; its chain carries itself only, as TLS peers expect."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issue(
        key,
        common_name(name),
        parent.key,
        parent.certificate.subject,
        now=now,
        not_after=parent.certificate.not_valid_after_utc,
        ca=True,
        path_length=0,
    )
    return Identity(key, certificate, tuple(one for one in parent.chain if one.subject != one.issuer))


def make_leaf(
    parent: Identity,
    subject: x509.Name,
    *,
    now: datetime,
    days: int = 3650,
    not_after: datetime | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Identity:
    """An end-entity certificate below `parent`; its chain includes `parent` unless that is a root."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    certificate = issue(
        key,
        subject,
        parent.key,
        parent.certificate.subject,
        now=now,
        not_after=not_after or now + timedelta(days=days),
        ca=False,
        extensions=extensions,
    )
    return Identity(key, certificate, tuple(one for one in parent.chain if one.subject != one.issuer))


def make_self_signed(name: str, *, now: datetime, days: int = 397) -> Identity:
    """An end-entity certificate under its own key, as a small site's registrar may have."""
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = [(key_usage(), True)]
    not_after = now + timedelta(days=days)
    certificate = issue(
        key, common_name(name), key, common_name(name), now=now, not_after=not_after, ca=False, extensions=extensions
    )
    return Identity(key, certificate)


@dataclass(frozen=True, slots=True)
class Domain:
    """A campus of the smallest kind: root, issuing CA, one registrar certificate (serverAuth, clientAuth, cmcRA)."""

    root: Identity
    ca: Identity
    registrar: Identity

    @classmethod
    def create(cls, name: str = "Campus", *, now: datetime) -> Domain:
        """A new domain."""
        root = make_root(f"{name} Root", now=now)
        ca = make_intermediate(root, f"{name} Devices CA", now=now)
        return cls(root, ca, make_registrar(ca, now=now))

    @property
    def signer(self) -> KeySigner:
        """The registrar's key."""
        return self.registrar.signer

    @property
    def certificate(self) -> x509.Certificate:
        """The registrar's certificate."""
        return self.registrar.certificate

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What a MASA may pin beside the registrar: issuing CA and root."""
        return (self.ca.certificate, self.root.certificate)

    @property
    def tls_chain(self) -> tuple[x509.Certificate, ...]:
        """What the registrar presents in TLS: itself and the issuing CA."""
        return self.registrar.chain


def make_registrar(
    ca: Identity,
    *,
    now: datetime,
    usages: Sequence[x509.ObjectIdentifier] = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
        CMC_RA,
    ),
) -> Identity:
    """A registrar certificate below `ca`, with these extended key usages."""
    extensions: list[tuple[x509.ExtensionType, bool]] = [(key_usage(), True)]
    if usages:
        extensions.append((x509.ExtendedKeyUsage(usages), False))
    return make_leaf(ca, common_name("registrar"), now=now, days=397, extensions=extensions)


def load_identity(home: Path, name: str) -> Identity:
    """Key and chain from NAME.key.pem and NAME.pem; raises FileNotFoundError or ValueError."""
    key = load_pem_private_key((home / f"{name}.key.pem").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{name}.key.pem is not an EC key")
    certificate, *issuers = x509.load_pem_x509_certificates((home / f"{name}.pem").read_bytes())
    return Identity(key, certificate, tuple(issuers))


def write_file(path: Path, content: bytes) -> None:
    """A new file that only its owner reads."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def common_name(name: str) -> x509.Name:
    """A subject of one common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(*, ca: bool = False) -> x509.KeyUsage:
    """digitalSignature, or what a CA does."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def issue(
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    *,
    now: datetime,
    not_after: datetime,
    ca: bool,
    path_length: int | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    has_aki: bool = True,
) -> x509.Certificate:
    """Any certificate, valid from five minutes before `now`."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before((now - timedelta(minutes=5)).replace(microsecond=0))
        .not_valid_after(not_after.replace(microsecond=0))
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        builder = builder.add_extension(key_usage(ca=True), critical=True)
    if ca or extensions:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if has_aki:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())
