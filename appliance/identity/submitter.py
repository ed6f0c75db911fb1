"""Who submits: a proxy with a live domain certificate of the devices CA, or an owner's gateway for one (A-11).

A gateway is known by the client key in its owner's record. The proxy is then the one whose evidence it brings: that
proxy must be in force all the same, and the evidence must be its own.

The path of a certificate is checked once and remembered. That it is not revoked and its proxy active is remembered for
seconds, until the outbox tells otherwise; the transaction that spends an approval asks the store again in any case.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.audit import Actor
from appliance.binding import jws
from appliance.binding.errors import BindingError, EvidenceMissing, OwnerNotActive, SignatureInvalid
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.verify import agent_id_of as only_uri_of
from appliance.ca import CertificateAuthority
from appliance.clock import Clock
from appliance.errors import CertificateRequired
from appliance.identity.errors import (
    ProxyNotActive,
    SubmitterForeign,
    SubmitterNotLive,
    SubmitterNotProxy,
    SubmitterWrongRole,
)
from appliance.store import certificates, owner_clients, owners, proxies
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx
from appliance.web.peer import Peer
from est import chains
from est.chains import read_certificate
from est.errors import CertificateOutsideValidity, CertificatePurposeWrong, ChainNotTrusted
from est.keys import public_key_of

MAX_REMEMBERED = 4096
FRESH_SECONDS = 5.0
"""How long another process's revocation may go unnoticed here, before the last check finds it."""


class Submitter(NamedTuple):
    """The proxy behind one request; `key` signs its evidence, `not_after` ends its certificate's life."""

    proxy_id: str
    method: str
    key: ec.EllipticCurvePublicKey
    jkt: str
    not_after: datetime
    issuer_aki: bytes
    serial: int
    actor: Actor
    gateway_of: str | None = None
    """The owner whose gateway submits what this proxy has attested; None: the proxy itself."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """An owner's gateway behind a connection."""

    owner_id: str
    actor: Actor


@dataclass(frozen=True, slots=True)
class _Known:
    """What a certificate says, its path checked."""

    proxy_id: str
    key: ec.EllipticCurvePublicKey
    jkt: str
    not_before: datetime
    not_after: datetime
    issuer_aki: bytes
    serial: int
    fingerprint: str


class Submitters:
    """Tells proxies from everybody else."""

    def __init__(self, ca: CertificateAuthority, store: Store, clock: Clock, origin: str) -> None:
        self._ca = ca
        self._store = store
        self._clock = clock
        self._origin = origin
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._live: dict[str, tuple[str, float]] = {}
        self._changes = 0
        store.subscribe(self._on_events)

    async def check(self, peer: Peer) -> Submitter:
        """The proxy behind a connection.

        Raises CertificateRequired, SubmitterForeign, SubmitterWrongRole, SubmitterNotProxy, SubmitterNotLive,
        ProxyNotActive, and est's leaves for a path or purpose that is wrong.
        """
        if peer.certificate is None or peer.certificate_sha256 is None:
            raise CertificateRequired("agent routes are for proxies with their domain certificate")
        known = self._know(peer.certificate, peer.certificate_sha256)
        method = await self._method(known)
        actor = Actor("proxy", known.proxy_id, known.fingerprint, peer.address)
        return Submitter(
            known.proxy_id, method, known.key, known.jkt, known.not_after, known.issuer_aki, known.serial, actor
        )

    def gateway(self, peer: Peer) -> Gateway | None:
        """The owner whose registered client key made a connection; None: it is not such a key. Raises OwnerNotActive.

        A certificate that this campus issued is a proxy's or nobody's, whatever key it holds.
        """
        if peer.certificate is None or (peer.certificate_sha256 or b"") in self._known:
            return None
        if self._ca.issuer_of(peer.certificate) is not None:
            return None
        key = peer.key_sha256
        found = None if key is None else self._store.read_sync(lambda tx: owner_clients.caller(tx, key))
        if found is None:
            return None
        if found.owner_state != owners.ACTIVE:
            raise OwnerNotActive("this owner is not active")
        return Gateway(found.owner_id, Actor("owner", found.owner_id, found.jkt, peer.address))

    async def behind(self, gateway: Gateway, evidence: str | None) -> Submitter:
        """The proxy whose evidence a gateway brings, by the key that signed it; nothing of it is believed yet.

        Raises EvidenceMissing, Malformed, SignatureInvalid for a key that no proxy in force has, and as check().
        """
        if evidence is None:
            raise EvidenceMissing("the gateway brings no evidence of a proxy")
        sealed = jws.read(evidence)
        proxy_id = jws.read_object(sealed.payload, "evidence").get("iss")
        rows = (
            self._store.read_sync(lambda tx: certificates.live(tx, "subject_id", proxy_id, tx.now))
            if isinstance(proxy_id, str)
            else []
        )
        for row in rows:
            if row.der is None or row.issuer_role != "devices":
                continue
            known = self._know(read_certificate(row.der), hashlib.sha256(row.der).digest())
            if known.jkt == sealed.kid and known.proxy_id == proxy_id:
                method = await self._method(known)
                return Submitter(
                    known.proxy_id, method, known.key, known.jkt, known.not_after, known.issuer_aki, known.serial,
                    gateway.actor, gateway.owner_id,
                )  # fmt: skip
        raise SignatureInvalid("the evidence is signed by no proxy that is in force here")

    async def _method(self, known: _Known) -> str:
        """How the proxy came in, if proxy and certificate are in force."""
        now = self._clock.monotonic()
        method, asked_at = self._live.get(known.fingerprint, ("", float("-inf")))
        if now - asked_at < FRESH_SECONDS:
            return method
        changes = self._changes
        method = self._store.read_sync(lambda tx: check_state(tx, known.issuer_aki, known.serial, known.proxy_id))
        if changes == self._changes:  # nothing was revoked while we read
            if len(self._live) >= MAX_REMEMBERED:
                self._live.clear()
            self._live[known.fingerprint] = method, now
        return method

    def _on_events(self, events: list[OutboxRow]) -> None:
        """Forget who is in force as soon as anything about proxies or devices' certificates is withdrawn."""
        for event in events:
            state = event.body.get("state")
            is_device = event.topic == "certificate" and event.body.get("issuer_role") == "devices"
            if (is_device and state != certificates.ISSUED) or (
                event.topic == proxies.TOPIC and state != proxies.ACTIVE
            ):
                self._changes += 1
                self._live.clear()

    def _know(self, certificate: x509.Certificate, digest: bytes) -> _Known:
        """What a certificate says; `digest` is the SHA-256 of its octets."""
        known = self._known.get(digest)
        if known is None:
            known = self._read(certificate, digest)
            while len(self._known) >= MAX_REMEMBERED:
                self._known.popitem(last=False)
            self._known[digest] = known
        if not known.not_before <= self._clock.now() <= known.not_after:
            raise CertificateOutsideValidity("the proxy's certificate is not valid at this time")
        return known

    def _read(self, certificate: x509.Certificate, digest: bytes) -> _Known:
        role = self._ca.issuer_of(certificate)
        if role is None:
            raise SubmitterForeign("this certificate was not issued by this campus; enrol first")
        if role != "devices":
            raise SubmitterWrongRole("this certificate is not a device's", role=role)
        try:
            chains.check(certificate, (), self._ca.anchors("devices"), at=self._clock.now(), policy=chains.CLIENT)
        except ChainNotTrusted as cause:
            raise SubmitterForeign("no path from this certificate to the devices CA") from cause
        except CertificatePurposeWrong as cause:
            raise SubmitterNotProxy("this certificate is not a client's") from cause
        try:
            proxy_id = read_kind(only_uri_of(certificate), Kind.PROXY, origin=self._origin).uri
        except BindingError as cause:
            raise SubmitterNotProxy("this certificate does not name exactly one proxy of this campus") from cause
        key = public_key_of(certificate)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise SubmitterNotProxy("a proxy's key is an elliptic curve key")
        jkt = jws.jkt(key)
        return _Known(
            proxy_id,
            key,
            jkt,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            chains.aki_of(certificate) or b"",
            certificate.serial_number,
            digest.hex(),
        )


def check_state(tx: Tx, issuer_aki: bytes, serial: int, proxy_id: str) -> str:
    """How an active proxy with a live certificate came in (brski, est); raises SubmitterNotLive, ProxyNotActive."""
    row = certificates.by_serial(tx, issuer_aki, serial)
    if row is None or row.state != certificates.ISSUED:
        raise SubmitterNotLive("the proxy's certificate is revoked or unknown")
    proxy = proxies.by_identifier(tx, proxy_id)
    if proxy is None or not proxy.is_active:
        raise ProxyNotActive("the proxy is revoked or unknown")
    return proxy.method
