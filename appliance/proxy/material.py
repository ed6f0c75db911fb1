"""Reading what the operator and the manufacturer gave the proxy: IDevID, MASA anchors, EST anchor, one-time secret.

Every failure says which setting is meant and what to do; nothing is guessed (A-82).
"""

from __future__ import annotations

import base64
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import KeyFileExposed, KeyFileMissing, KeyMalformed
from appliance.proxy.connection import Target
from appliance.proxy.errors import BootstrapNotConfigured, EnrolmentSecretUnusable
from appliance.proxy.state import ClientFiles
from appliance.settings import ProxySettings
from brski.errors import BrskiError
from brski.pledge import Pledge, PledgePolicy
from est import chains
from est.certificates import pem_certificates
from est.errors import EstError
from est.signer import KeySigner

_NEITHER = (
    "either give the device an IDevID (proxy.idevid_certificate, proxy.idevid_key, proxy.masa_anchors) for method "
    "brski, or name the server (proxy.registrar_url with proxy.est_anchor or proxy.est_fingerprint, and "
    "proxy.est_secret_file) for method est; there is no trust on first use"
)
_DIGESTS = {64: "sha256", 128: "sha512"}


@dataclass(frozen=True, slots=True)
class BrskiMaterial:
    """What method brski needs: the pledge, the files of its IDevID, and a registrar's place if one is configured."""

    pledge: Pledge
    client: ClientFiles
    registrar: Target | None


@dataclass(frozen=True, slots=True)
class EstMaterial:
    """What method est needs. Exactly one of `anchors` and `fingerprint` is there; `authorization` is a header value.

    `implicit` anchors are the machine's: they open the way to the explicit ones and are not used again (RFC 7030,
    section 4.1.3).
    """

    server: Target
    anchors: tuple[x509.Certificate, ...]
    fingerprint: bytes
    authorization: str = field(repr=False)
    client: ClientFiles | None
    implicit: bool = False


def read_brski(settings: ProxySettings) -> BrskiMaterial:
    """Raises BootstrapNotConfigured, KeyFileMissing, KeyFileExposed, KeyMalformed."""
    certificate, key, anchors = settings.idevid_certificate, settings.idevid_key, settings.masa_anchors
    if certificate is None or key is None or anchors is None:
        raise BootstrapNotConfigured(
            f"method brski wants an IDevID and MASA anchors, and one of them is missing: {_NEITHER}"
        )
    policy = PledgePolicy(accept_nonceless=settings.accept_nonceless, clock_trusted=settings.trust_clock)
    chain = read_certificates(certificate, "proxy.idevid_certificate")
    try:
        trusted = chains.TrustAnchors(read_certificates(anchors, "proxy.masa_anchors"))
        pledge = Pledge(KeySigner(_read_key(key, "proxy.idevid_key")), chain, trusted, policy)
    except (BrskiError, EstError, ValueError) as cause:
        raise BootstrapNotConfigured(f"the IDevID cannot be used: {cause}; {_NEITHER}") from cause
    return BrskiMaterial(pledge, ClientFiles(certificate, key), _read_url(settings.registrar_url))


def read_est(settings: ProxySettings) -> EstMaterial:
    """Raises BootstrapNotConfigured, EnrolmentSecretUnusable, KeyFileMissing, KeyFileExposed, KeyMalformed."""
    server = _read_url(settings.registrar_url)
    ways = (settings.est_anchor, settings.est_fingerprint, settings.est_implicit_anchors)
    if server is None or sum(map(bool, ways)) != 1:
        raise BootstrapNotConfigured(
            "method est wants the server's URL and exactly one of its anchor, its fingerprint and implicit anchors: "
            + _NEITHER
        )
    anchors: tuple[x509.Certificate, ...] = ()
    if settings.est_anchor:
        anchors = read_certificates(settings.est_anchor, "proxy.est_anchor")
    elif settings.est_implicit_anchors:
        anchors = read_certificates(settings.est_implicit_anchors, "proxy.est_implicit_anchors")
    client = None
    if settings.est_secret_file is not None:
        authorization = _read_secret(settings.est_secret_file)
    elif settings.idevid_certificate is not None and settings.idevid_key is not None:
        # a certificate that was issued beforehand authenticates the first enrolment as well
        authorization, client = "", ClientFiles(settings.idevid_certificate, settings.idevid_key)
    else:
        raise BootstrapNotConfigured(
            f"method est wants a one-time secret or a certificate issued beforehand: {_NEITHER}"
        )
    implicit = settings.est_implicit_anchors is not None
    return EstMaterial(server, anchors, read_fingerprint(settings.est_fingerprint), authorization, client, implicit)


def read_fingerprint(text: str) -> bytes:
    """SHA-256 or SHA-512 of a whole certificate, hex, colons allowed; b"" for "". Raises BootstrapNotConfigured."""
    digits = text.replace(":", "").replace(" ", "").lower()
    if digits and (len(digits) not in _DIGESTS or set(digits) - set("0123456789abcdef")):
        raise BootstrapNotConfigured("proxy.est_fingerprint is not a SHA-256 or SHA-512 in hex")
    return bytes.fromhex(digits)


def read_certificates(path: Path, setting: str) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM file, in order. Raises KeyFileMissing, KeyMalformed."""
    try:
        return tuple(pem_certificates(path.read_bytes()))
    except OSError as cause:
        raise KeyFileMissing(f"{setting}: {path} cannot be read: {cause.strerror}", setting=setting) from cause
    except ValueError as cause:
        raise KeyMalformed(f"{setting}: {path} holds no PEM certificates", setting=setting) from cause


def _read_key(path: Path, setting: str) -> ec.EllipticCurvePrivateKey:
    _check_private(path, setting)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as cause:
        raise KeyMalformed(f"{setting}: {path} holds no unencrypted PEM key", setting=setting) from cause
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyMalformed(f"{setting}: only elliptic-curve keys are used here", setting=setting)
    return key


def _read_secret(path: Path) -> str:
    _check_private(path, "proxy.est_secret_file")
    try:
        name, colon, secret = path.read_text(encoding="utf-8").strip().partition(":")
    except UnicodeDecodeError as cause:
        raise EnrolmentSecretUnusable(f"{path} is not text") from cause
    if not (name and colon and secret) or not name.isprintable() or any(char.isspace() for char in secret):
        raise EnrolmentSecretUnusable(f"{path} does not hold NAME:SECRET on one line")
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode("ascii")


def _check_private(path: Path, setting: str) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as cause:
        raise KeyFileMissing(f"{setting}: {path} cannot be read: {cause.strerror}", setting=setting) from cause
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileExposed(f"{setting}: {path} can be read by others; chmod 600 it", setting=setting)


def _read_url(text: str) -> Target | None:
    try:
        return Target.read(text) if text else None
    except ValueError as cause:
        raise BootstrapNotConfigured(f"proxy.registrar_url: {cause}") from cause
