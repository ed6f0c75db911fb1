"""The campuses that a gateway works for, and whose proxy a connection comes from.

A proxy is known by its LDevID, under the devices CA that its campus's server names over the pinned connection and that
the pinned root has issued. Whether it has been revoked meanwhile is the server's to say, at every submission.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import jws
from appliance.binding.errors import BindingError
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.verify import agent_id_of as only_uri_of
from appliance.clock import Clock
from appliance.errors import CertificateRequired
from appliance.owner.answer_policy import AnswerPolicy
from appliance.owner.client import OwnerClient, Server
from appliance.owner.errors import GatewayNotReady, GatewayProxyUnknown, ServerAnswerUnusable
from appliance.owner.gateway.config import DomainConfig
from appliance.web.peer import Peer
from est import chains
from est.chains import TrustAnchors
from est.errors import EstError, Refusal
from est.keys import public_key_of
from est.signer import Signer

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
REFRESH_SECONDS = 3600.0
MAX_REMEMBERED = 4096


class Domain:
    """One campus: its connection, what its server says of itself, and the key of the owner's rules there."""

    def __init__(self, config: DomainConfig, client: OwnerClient, signer: Signer | None) -> None:
        self.config = config
        self.client = client
        self.signer = signer
        self.server: Server | None = None

    @property
    def policy(self) -> AnswerPolicy | None:
        return self.config.policy

    def ready(self) -> Server:
        """What is known of the server; raises GatewayNotReady."""
        if self.server is None:
            raise GatewayNotReady(
                "the identity server of this campus has not been reached yet", retry_after_seconds=RETRY_SECONDS
            )
        return self.server

    async def learn(self, clock: Clock) -> None:
        """Ask the server who it is; raises ServerUnreachable, ServerAnswerUnusable, ServerRefused."""
        found = await self.client.server(clock.now())
        if found.devices_ca is None:
            raise ServerAnswerUnusable("the server does not say who issues its proxies' certificates")
        if read_kind(self.config.owner, Kind.OWNER).origin != found.origin:
            raise ServerAnswerUnusable("the server is of another trust domain than the owner")
        self.server = found

    async def follow(self, clock: Clock) -> None:
        """Learn, and learn again from time to time, for ever."""
        while True:
            try:
                await self.learn(clock)
                pause = REFRESH_SECONDS
            except Refusal as refusal:
                log.warning("event=server-not-learned domain=%s reason=%s", self.config.name, refusal.reason)
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)


@dataclass(frozen=True, slots=True)
class KnownProxy:
    """The proxy behind a connection, with the key that signs its evidence."""

    identifier: str
    domain: Domain
    key: ec.EllipticCurvePublicKey
    jkt: str
    not_before: datetime
    not_after: datetime


class Proxies:
    """Tells the proxies of the gateway's campuses from everybody else."""

    def __init__(self, domains: Sequence[Domain], clock: Clock) -> None:
        self._domains = tuple(domains)
        self._clock = clock
        self._known: OrderedDict[bytes, KnownProxy] = OrderedDict()

    def check(self, peer: Peer) -> KnownProxy:
        """The proxy behind a connection; raises CertificateRequired, GatewayNotReady, GatewayProxyUnknown."""
        if peer.certificate is None:
            raise CertificateRequired("this gateway is for proxies with their domain certificate")
        digest = peer.certificate_sha256 or b""
        known = self._known.get(digest)
        if known is None:
            known = self._read(peer.certificate)
            while len(self._known) >= MAX_REMEMBERED:
                self._known.popitem(last=False)
            self._known[digest] = known
        if not known.not_before <= self._clock.now() <= known.not_after:
            raise GatewayProxyUnknown("the proxy's certificate is not valid at this time")
        return known

    def _read(self, certificate: x509.Certificate) -> KnownProxy:
        now, waiting = self._clock.now(), False
        for domain in self._domains:
            if domain.server is None or domain.server.devices_ca is None:
                waiting = True
                continue
            try:
                anchors = TrustAnchors((domain.server.devices_ca,))
                chains.check(certificate, (), anchors, at=now, policy=chains.CLIENT)
                found = read_kind(only_uri_of(certificate), Kind.PROXY, origin=domain.server.origin).uri
            except (EstError, BindingError):
                continue
            key = public_key_of(certificate)
            allowed = domain.config.proxies
            if not isinstance(key, ec.EllipticCurvePublicKey) or (allowed is not None and found not in allowed):
                continue
            return KnownProxy(
                found, domain, key, jws.jkt(key), certificate.not_valid_before_utc, certificate.not_valid_after_utc
            )
        if waiting:
            raise GatewayNotReady(
                "not every campus of this gateway has been reached yet", retry_after_seconds=RETRY_SECONDS
            )
        raise GatewayProxyUnknown("this certificate is no proxy's that this gateway serves")
