"""A manufacturer to play with: its CAs, its devices with IDevIDs, its MASA's keys; and a small campus domain.

Three roots, because a device's certificate must never count as a MASA's: devices, vouchers, MASA's TLS server. In
memory for tests, or in a folder (keys 0600) for processes.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from brski.idevid import MASA_URI, idevid_issuer, read_masa_address
from brski.masa import Device as SoldDevice
from est import der
from est.chains import TrustAnchors
from est.signer import KeySigner

CMC_RA = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.28")
NO_EXPIRY = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
SAFE_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


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
    subject = _name(name)
    not_after = now + timedelta(days=365 * years)
    certificate = _issue(key, subject, key, subject, now=now, not_after=not_after, ca=True, path_length=path_length)
    return Identity(key, certificate)


def make_intermediate(parent: Identity, name: str, *, now: datetime) -> Identity:
    """A CA below `parent`; its chain carries itself only, as TLS peers expect."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _issue(
        key,
        _name(name),
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
    certificate = _issue(
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
    extensions = [(_key_usage(), True)]
    not_after = now + timedelta(days=days)
    certificate = _issue(
        key, _name(name), key, _name(name), now=now, not_after=not_after, ca=False, extensions=extensions
    )
    return Identity(key, certificate)


@dataclass(frozen=True, slots=True)
class Factory:
    """The manufacturer. Also the MASA's memory of what was sold, for dialogues in one process (`find`)."""

    device_root: Identity
    device_ca: Identity
    voucher_root: Identity
    masa: Identity
    tls_root: Identity
    masa_tls: Identity
    sold: dict[str, SoldDevice] = field(default_factory=dict, repr=False, kw_only=True)

    @classmethod
    def create(cls, name: str = "Acme", *, now: datetime, names: Sequence[str] = ()) -> Factory:
        """A new manufacturer; `names` are further host names or addresses of its MASA, beside the loopback ones."""
        device_root = make_root(f"{name} Device Root", now=now)
        voucher_root = make_root(f"{name} Voucher Root", now=now, path_length=0)
        tls_root = make_root(f"{name} MASA TLS Root", now=now, path_length=0)
        digital_signature = [(_key_usage(), True)]
        hosts = dict.fromkeys((*LOOPBACK_NAMES, *names))
        tls_extensions: list[tuple[x509.ExtensionType, bool]] = [
            *digital_signature,
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectAlternativeName([_general_name(host) for host in hosts]), False),
        ]
        return cls(
            device_root=device_root,
            device_ca=make_intermediate(device_root, f"{name} Device CA", now=now),
            voucher_root=voucher_root,
            masa=make_leaf(voucher_root, _name(f"{name} MASA"), now=now, extensions=digital_signature),
            tls_root=tls_root,
            masa_tls=make_leaf(tls_root, _name(f"{name} MASA server"), now=now, days=397, extensions=tls_extensions),
        )

    @property
    def device_anchors(self) -> TrustAnchors:
        """What ends the chains of its devices."""
        return TrustAnchors([self.device_root.certificate])

    @property
    def masa_anchors(self) -> TrustAnchors:
        """What its devices have built in."""
        return TrustAnchors([self.voucher_root.certificate])

    @property
    def masa_signer(self) -> KeySigner:
        """The key that signs vouchers."""
        return self.masa.signer

    @property
    def masa_chain(self) -> tuple[x509.Certificate, ...]:
        """The voucher signer's certificate and its root, for auditability."""
        return (self.masa.certificate, self.voucher_root.certificate)

    def make_device(
        self, serial: str, *, now: datetime, masa: str = "", not_after: datetime = NO_EXPIRY, has_aki: bool = True
    ) -> Identity:
        """A device: IDevID with the serial in the subject, the MASA URI extension if `masa` is given, no expiry."""
        if not SAFE_SERIAL.fullmatch(serial):
            raise ValueError("a serial number here is 1 to 64 letters, digits, dots, dashes and underscores")
        extensions: list[tuple[x509.ExtensionType, bool]] = []
        if masa:
            read_masa_address(masa)
            extensions.append(
                (x509.UnrecognizedExtension(MASA_URI, der.tlv(der.IA5_STRING, masa.encode("ascii"))), False)
            )
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, f"device {serial}"),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, serial),
            ]
        )
        parent = self.device_ca
        device = make_leaf(parent, subject, now=now, not_after=not_after, extensions=extensions)
        if not has_aki:
            bare = _issue(
                device.key,
                subject,
                parent.key,
                parent.certificate.subject,
                now=now,
                not_after=not_after,
                ca=False,
                extensions=extensions,
                has_aki=False,
            )
            device = replace(device, certificate=bare)
        self.sold[serial] = SoldDevice(serial, idevid_issuer(device.certificate))
        return device

    def find(self, serial_number: str, issuer: bytes | None) -> SoldDevice | None:
        """The device as the MASA knows it."""
        device = self.sold.get(serial_number)
        return device if device is not None and issuer in (None, device.issuer) else None


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
    extensions: list[tuple[x509.ExtensionType, bool]] = [(_key_usage(), True)]
    if usages:
        extensions.append((x509.ExtendedKeyUsage(usages), False))
    return make_leaf(ca, _name("registrar"), now=now, days=397, extensions=extensions)


# On disk: DIR/manufacturer/*.pem and DIR/devices/<serial>/{idevid.pem, idevid.key.pem, masa-anchors.pem}.

_PARTS = ("device_root", "device_ca", "voucher_root", "masa", "tls_root", "masa_tls")


def save(factory: Factory, folder: Path) -> None:
    """Write a manufacturer's keys and certificates; refuses (FileExistsError) to overwrite one."""
    home = _private_folder(folder / "manufacturer")
    for part in _PARTS:
        identity: Identity = getattr(factory, part)
        name = part.replace("_", "-")
        write_file(home / f"{name}.key.pem", identity.key_pem)
        write_file(home / f"{name}.pem", identity.chain_pem)
    # the names by which others ask for them
    write_file(home / "ca.pem", factory.device_root.chain_pem)
    write_file(home / "masa-anchors.pem", factory.voucher_root.chain_pem)
    write_file(home / "masa-tls-ca.pem", factory.tls_root.chain_pem)


def load(folder: Path) -> Factory:
    """The manufacturer in a folder; raises FileNotFoundError or ValueError."""
    home = folder / "manufacturer"
    return Factory(*(load_identity(home, part.replace("_", "-")) for part in _PARTS))


def load_or_create(folder: Path, *, now: datetime, names: Sequence[str] = ()) -> Factory:
    """The manufacturer in a folder, made if it is not there."""
    if (folder / "manufacturer" / "masa-tls-ca.pem").exists():
        return load(folder)
    factory = Factory.create(now=now, names=names)
    save(factory, folder)
    return factory


def save_device(factory: Factory, folder: Path, serial: str, device: Identity) -> Path:
    """Write a device's files (FileExistsError if it is there) and return its folder."""
    home = _private_folder(folder / "devices" / serial)
    write_file(home / "idevid.key.pem", device.key_pem)
    write_file(home / "masa-anchors.pem", factory.voucher_root.chain_pem)
    write_file(home / "idevid.pem", device.chain_pem)
    return home


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


def main(folder: Path, serials: Sequence[str], masa_url: str) -> None:
    """`python -m lab factory`: make devices, and the manufacturer if it is new; print one JSON object per device."""
    now = datetime.now(UTC)
    names = [read_masa_address(masa_url).host] if masa_url else []
    factory = load_or_create(folder, now=now, names=names)
    for serial in serials:
        device = factory.make_device(serial, masa=masa_url, now=now - timedelta(minutes=5))
        home = save_device(factory, folder, serial, device)
        answer = {
            "serial": serial,
            "folder": str(home),
            "idevid": str(home / "idevid.pem"),
            "key": str(home / "idevid.key.pem"),
            "masa_anchors": str(home / "masa-anchors.pem"),
            "masa_url": masa_url,
            "manufacturer_ca": str(folder / "manufacturer" / "ca.pem"),
            "masa_tls_ca": str(folder / "manufacturer" / "masa-tls-ca.pem"),
        }
        print(json.dumps(answer), flush=True)


def _private_folder(path: Path) -> Path:
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700)
    return path


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, ca: bool = False) -> x509.KeyUsage:
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


def _issue(
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
        builder = builder.add_extension(_key_usage(ca=True), critical=True)
    if ca or extensions:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if has_aki:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())
