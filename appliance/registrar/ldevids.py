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
        self._seen: OrderedDict[int, LiveLdevid] = OrderedDict()

    async def seen(self, peer: Peer) -> LiveLdevid | None:
        """Like `find`, but a connection is looked at once; its user asks `require_still_live` in a transaction."""
        seen = self._seen.get(peer.connection_id)
        if seen is not None and seen.certificate is peer.certificate:
            if self._clock.now() <= seen.certificate.not_valid_after_utc:
                return seen
            del self._seen[peer.connection_id]
        found = await self.find(peer)
        if found is not None:
            self._seen[peer.connection_id] = found
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)
        return found

    async def find(self, peer: Peer) -> LiveLdevid | None:
        """The peer's LDevID; None when its certificate is none of ours.

        Raises LdevidNotAccepted for one that is expired, revoked, unknown or no proxy's, ProxyRevoked.
        """
        certificate = peer.certificate
        if certificate is None or not self._is_ours(certificate):
            return None
        try:
            chains.check(
                certificate,
                peer.chain[1:],
                self._ca.anchors(ROLE),
                at=self._clock.now(),
                policy=chains.CLIENT,
            )
        except EstError as cause:
            raise LdevidNotAccepted(f"the certificate does not hold: {cause.detail}", because=cause.reason) from cause
        return self._store.read_sync(partial(require_live, certificate))

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
        raise ProxyRevoked("this identity proxy was revoked")
    return LiveLdevid(certificate, digest, row.issuer_aki, row.serial, proxy, row.pledge_id)


def require_still_live(live: LiveLdevid, tx: Tx) -> None:
    """The same for a certificate that was found live before: it or its proxy may have been revoked since."""
    row = proxies.standing(tx, live.issuer_aki, live.serial)
    if row is None or row.profile != LDEVID or row.cert_sha256 != live.sha256:
        raise LdevidNotAccepted("the certificate is no identity proxy's")
    if row.state != certificates.ISSUED:
        raise LdevidNotAccepted("the certificate is revoked")
    if row.proxy_state != proxies.ACTIVE:
        raise ProxyRevoked("this identity proxy was revoked")
