"""A small certificate world for these tests: proper certificates by our shapes, odd ones by cryptography."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from est import profiles
from est.signer import KeySigner
from tests.support import NOW, key

YEAR = timedelta(days=365)
DAY = timedelta(days=1)

AnyKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def sign(shape: profiles.Shape, issuer_key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Shape, sign, check, as the CA does."""
    tbs = profiles.to_be_signed(shape, issuer_key=issuer_key.public_key())
    der = profiles.assemble(tbs, KeySigner(issuer_key).sign(tbs), issuer_key.public_key())
    return profiles.check_der(der, shape)


def terms(ca: x509.Certificate, serial: int = 77, *, days: int = 30) -> profiles.Terms:
    return profiles.Terms.under(ca, serial=serial, not_before=NOW - DAY, not_after=NOW + days * DAY)


@dataclass(frozen=True)
class Campus:
    """Root, one issuing CA and a proxy's certificate."""

    root: x509.Certificate
    ca: x509.Certificate
    proxy: x509.Certificate


@cache
def campus(prefix: str = "campus") -> Campus:
    root = sign(
        profiles.root_ca(
            profiles.name(f"{prefix} root", prefix),
            key(f"{prefix} root").public_key(),
            serial=1,
            not_before=NOW - YEAR,
            not_after=NOW + 9 * YEAR,
        ),
        key(f"{prefix} root"),
    )
    ca = sign(
        profiles.issuing_ca(
            profiles.Terms.under(root, serial=2, not_before=NOW - YEAR, not_after=NOW + 4 * YEAR),
            profiles.name(f"{prefix} devices", prefix),
            key(f"{prefix} ca").public_key(),
        ),
        key(f"{prefix} root"),
    )
    proxy = sign(
        profiles.ldevid(
            terms(ca),
            profiles.name("proxy 1"),
            key(f"{prefix} proxy").public_key(),
            identifier="spiffe://campus.example/proxy/1",
        ),
        key(f"{prefix} ca"),
    )
    return Campus(root, ca, proxy)


def odd(
    subject: str,
    public_key: AnyKey,
    issuer_key: AnyKey,
    *,
    issuer: x509.Certificate | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    not_before: datetime = NOW - DAY,
    not_after: datetime = NOW + 30 * DAY,
    serial: int = 99,
    digest: hashes.HashAlgorithm | None = None,
) -> x509.Certificate:
    """A certificate as strange as the arguments; without `issuer` its issuer name is its subject."""
    name = profiles.name(subject)
    builder = x509.CertificateBuilder(
        issuer.subject if issuer is not None else name,
        name,
        public_key.public_key(),
        serial,
        not_before.replace(tzinfo=None),
        not_after.replace(tzinfo=None),
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, digest or hashes.SHA256())


CA = (x509.BasicConstraints(ca=True, path_length=None), True)


def damage_each_byte(der: bytes, read: Callable[[bytes], object], *, step: int = 1) -> list[int]:
    """Positions at which flipping a bit is not refused by an EstError; any other exception escapes."""
    from est.errors import EstError

    accepted = []
    for at in range(0, len(der), step):
        damaged = bytearray(der)
        damaged[at] ^= 0x04
        try:
            read(bytes(damaged))
        except EstError:
            continue
        accepted.append(at)
    return accepted
