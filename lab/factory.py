"""A manufacturer to play with: its CAs, its devices with IDevIDs, its MASA's keys.

Three roots, because a device's certificate must never count as a MASA's: devices, vouchers, MASA's TLS server. In
memory for tests, or in a folder (keys 0600) for processes.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from brski.idevid import MASA_URI, idevid_issuer, read_masa_address
from brski.masa import Device as SoldDevice
from est import der
from est.chains import TrustAnchors
from est.signer import KeySigner
from lab.certificates import (
    CMC_RA,
    Domain,
    Identity,
    common_name,
    issue,
    key_usage,
    load_identity,
    make_intermediate,
    make_leaf,
    make_registrar,
    make_root,
    make_self_signed,
    write_file,
)

# certificates of a small world as well, so that a test needs one import
__all__ = [
    "CMC_RA",
    "LOOPBACK_NAMES",
    "NO_EXPIRY",
    "SAFE_SERIAL",
    "Domain",
    "Factory",
    "Identity",
    "load",
    "load_identity",
    "load_or_create",
    "main",
    "make_intermediate",
    "make_leaf",
    "make_registrar",
    "make_root",
    "make_self_signed",
    "save",
    "save_device",
    "write_file",
]

NO_EXPIRY = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
SAFE_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Factory:
    """The manufacturer. Also the MASA's memory of what was sold, for dialogues in one process (`find`).

    `masa` signs vouchers with a nonce, `masa_lasting` those without.
    """

    device_root: Identity
    device_ca: Identity
    voucher_root: Identity
    masa: Identity
    masa_lasting: Identity
    tls_root: Identity
    masa_tls: Identity
    sold: dict[str, SoldDevice] = field(default_factory=dict, repr=False, kw_only=True)

    @classmethod
    def create(cls, name: str = "Acme", *, now: datetime, names: Sequence[str] = ()) -> Factory:
        """A new manufacturer; `names` are further host names or addresses of its MASA, beside the loopback ones."""
        device_root = make_root(f"{name} Device Root", now=now)
        voucher_root = make_root(f"{name} Voucher Root", now=now, path_length=0)
        tls_root = make_root(f"{name} MASA TLS Root", now=now, path_length=0)
        digital_signature = [(key_usage(), True)]
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
            masa=make_leaf(voucher_root, common_name(f"{name} MASA"), now=now, extensions=digital_signature),
            masa_lasting=make_leaf(
                voucher_root, common_name(f"{name} MASA, lasting vouchers"), now=now, extensions=digital_signature
            ),
            tls_root=tls_root,
            masa_tls=make_leaf(
                tls_root, common_name(f"{name} MASA server"), now=now, days=397, extensions=tls_extensions
            ),
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

    @property
    def lasting(self) -> tuple[KeySigner, tuple[x509.Certificate, ...]]:
        """The key that signs vouchers without a nonce, and its chain."""
        return self.masa_lasting.signer, (self.masa_lasting.certificate, self.voucher_root.certificate)

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
            bare = issue(
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


# On disk: DIR/manufacturer/*.pem and DIR/devices/<serial>/{idevid.pem, idevid.key.pem, masa-anchors.pem}.

_PARTS = ("device_root", "device_ca", "voucher_root", "masa", "masa_lasting", "tls_root", "masa_tls")


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


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
