"""Which live LDevID of this domain a TLS client shows: path, row, revocation, proxy (E-118)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.ca import CertificateAuthority
from appliance.clock import Clock
from appliance.hierarchy import Role
from appliance.registrar.admission import LDEVID
from appliance.registrar.errors import LdevidNotAccepted, ProxyRevoked
from appliance.store import certificates, proxies
from appliance.store.proxies import ProxyRow
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.peer import Peer
from est import chains
from est.errors import EstError
from est.known_paths import KnownPaths

ROLE: Role = "devices"
MAX_SEEN = 4096


@dataclass(frozen=True, slots=True)
class LiveLdevid:
    """A proxy's certificate that is good at this moment; digest, issuer key identifier and serial as stored."""

    certificate: x509.Certificate
    sha256: str
    issuer_aki: str
    serial: str
    proxy: ProxyRow
    pledge_id: str | None
    subject: x509.Name

    @property
    def identifier(self) -> str:
        """The proxy's URI."""
        return self.proxy.identifier


class Ldevids:
    """Recognises the domain's own device certificates."""

    def __init__(self, *, store: Store, clock: Clock, ca: CertificateAuthority) -> None:
        self._store = store
        self._clock = clock
        self._ca = ca
        self._paths = KnownPaths(chains.CLIENT, max_paths=MAX_SEEN)
        self._seen: OrderedDict[bytes, LiveLdevid] = OrderedDict()

    async def seen(self, peer: Peer) -> LiveLdevid | None:
        """Like `find`, but a certificate's row is read once: its user asks `require_still_live` in a transaction.

        On a new connection of a certificate that was seen before nothing is read and no signature is verified.
        """
        fingerprint = peer.certificate_sha256
        if fingerprint is None:
            return None
        seen = self._seen.get(fingerprint)
        if seen is not None and self._paths.holds(fingerprint, self._ca.anchors(ROLE), at=self._clock.now()):
            return seen
        found = await self.find(peer)
        if found is not None:
            self._seen[fingerprint] = found
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)
        return found

    def is_ours(self, peer: Peer) -> bool:
        """Whether the domain issued the peer's certificate, an LDevID or another; its state is not asked."""
        certificate, fingerprint = peer.certificate, peer.certificate_sha256
        if certificate is None or fingerprint is None:
            return False
        anchors, now = self._ca.anchors(ROLE), self._clock.now()
        if self._paths.holds(fingerprint, anchors, at=now):
            return True
        if self._is_ours(certificate):
            try:
                self._paths.check(certificate, peer.chain[1:], anchors, at=now)
            except EstError:
                pass  # expired, or not a client's: then the signature alone decides
            else:
                return True
        return self._ca.issuer_of(certificate) is not None

    async def find(self, peer: Peer) -> LiveLdevid | None:
        """The peer's LDevID; None when its certificate is none of ours.

        Raises LdevidNotAccepted for one that is expired, revoked, unknown or no proxy's, ProxyRevoked.
        """
        certificate = peer.certificate
        if certificate is None or not self._is_ours(certificate):
            return None
        try:
            self._check_path(certificate, peer)
        except EstError as cause:
            raise LdevidNotAccepted(f"the certificate does not hold: {cause.detail}", because=cause.reason) from cause
        return self._store.read_sync(partial(require_live, certificate))

    def _check_path(self, certificate: x509.Certificate, peer: Peer) -> None:
        self._paths.check(certificate, peer.chain[1:], self._ca.anchors(ROLE), at=self._clock.now())

    def _is_ours(self, certificate: x509.Certificate) -> bool:
        try:
            return chains.aki_of(certificate) in self._ca.anchors(ROLE).key_identifiers
        except EstError:
            return False


def require_live(certificate: x509.Certificate, tx: Tx) -> LiveLdevid:
    """The row behind a certificate whose path was checked; raises LdevidNotAccepted or ProxyRevoked."""
    row: Any = certificates.by_serial(tx, chains.aki_of(certificate) or b"", certificate.serial_number)
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    if row is None or row.profile != LDEVID or row.cert_sha256 != digest:
        raise LdevidNotAccepted("the certificate is no identity proxy's")
    if row.state != certificates.ISSUED:
        raise LdevidNotAccepted("the certificate is revoked")
    proxy = proxies.get(tx, row.proxy_id)
    if proxy is None or not proxy.is_active:
        raise ProxyRevoked("this identity proxy is revoked or suspended")
    return LiveLdevid(certificate, digest, row.issuer_aki, row.serial, proxy, row.pledge_id, certificate.subject)


def require_still_live(live: LiveLdevid, tx: Tx) -> None:
    """The same for a certificate that was found live before: it or its proxy may have been revoked since."""
    row = proxies.standing(tx, live.issuer_aki, live.serial)
    if row is None or row.profile != LDEVID or row.cert_sha256 != live.sha256:
        raise LdevidNotAccepted("the certificate is no identity proxy's")
    if row.state != certificates.ISSUED:
        raise LdevidNotAccepted("the certificate is revoked")
    if row.proxy_state != proxies.ACTIVE:
        raise ProxyRevoked("this identity proxy is revoked or suspended")
