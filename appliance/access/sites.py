"""RADIUS servers on other machines: their certificates by EST, and what they render a configuration from.

Each has one certificate of the infrastructure CA, named `.../radius/NAME`, for both ends: serverAuth with the name that
supplicants pin, clientAuth towards the decision port. Keys are made there and never leave.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.access.freeradius import FreeRadius
from appliance.access.nas import NasService
from appliance.access.service import AccessService
from appliance.audit import Actor
from appliance.ca import CertificateAuthority, PendingRow, Slot, require_own_key
from appliance.clock import Clock
from appliance.errors import CertificateRequired, NotPermitted, TokenRequired
from appliance.store import est_secrets, nas
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx
from appliance.web.peer import Peer
from est import profiles
from est.client import current_root
from est.csr import Csr
from est.exchange import Call, Reply
from est.linking import asked_sha256
from est.server import EnrollAsk, EstServer

LABEL = "radius"
"""The EST label that is kept for RADIUS servers."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ROLE: Final = "infrastructure"
_HOW: Final = "enrolment wants a one-time secret: appliance est secret new --for NAME --label radius"


class RadiusSites:
    """Who they are, and the three things that they ask for: a certificate, a newer one, their configuration."""

    def __init__(
        self,
        ca: CertificateAuthority,
        store: Store,
        clock: Clock,
        access: AccessService,
        nas_service: NasService,
        freeradius: FreeRadius,
        *,
        origin: str,
        server_name: str,
        days: int,
    ) -> None:
        self._ca = ca
        self._store = store
        self._clock = clock
        self._access = access
        self._nas = nas_service
        self._freeradius = freeradius
        self._origin = origin
        self._server_name = server_name
        self._life = timedelta(days=days)
        self._est = EstServer(labels=[LABEL])
        self._live: dict[int, str] = {}

    async def start(self) -> None:
        """Know the live ones; events keep that right."""
        self._store.subscribe(self._on_events)
        for row in await self._store.read(partial(nas.live_rows, profile=nas.SITE)):
            self._live[int(row.serial, 16)] = row.subject_id

    def name_of(self, peer: Peer, *, is_verified: bool = True) -> str:
        """The RADIUS server at the other end, by its live certificate.

        `is_verified`: TLS has verified that the infrastructure CA issued it. Raises CertificateRequired, NotPermitted.
        """
        if peer.certificate is None:
            raise CertificateRequired("other machines show a RADIUS server's certificate here")
        identifier = self._live.get(peer.certificate.serial_number)
        if identifier is None or not (is_verified or self._ca.issuer_of(peer.certificate) == _ROLE):
            raise NotPermitted("this certificate is not that of a RADIUS server, or was revoked")
        return identifier.rpartition("/")[2]

    # -- EST (RFC 7030), under the label of RADIUS servers

    async def cacerts(self, call: Call, peer: Peer) -> Reply:
        """The root and the infrastructure CA, and while one of them changes, its successor and the links."""
        self._est.operation(call)
        return self._est.cacerts_reply(self._ca.handed_out(_ROLE), call)

    async def csrattrs(self, call: Call, peer: Peer) -> Reply:
        """Nothing is demanded: names are given here."""
        self._est.operation(call)
        return Reply(204)

    async def simpleenroll(self, call: Call, peer: Peer) -> Reply:
        """The first certificate, for a one-time secret; the same request again within minutes gets the same one."""
        name, offered = _read_basic(call.headers.get("authorization", ""))
        ask = self._est.read_enroll(call)
        row = await self._store.read(partial(est_secrets.by_name, name=name))
        expected = row.secret_sha256 if row is not None else "0" * 64
        matches = hmac.compare_digest(expected, hashlib.sha256(offered).hexdigest())
        if row is None or not matches or row.label != LABEL or not _NAME.fullmatch(name):
            raise TokenRequired("the name or the one-time secret is wrong")
        asked = asked_sha256(ask.csr)
        before = await self._store.read(partial(nas.issued_for, profile=nas.SITE, csr_sha256=asked))
        if before is not None and row.spent_at is not None:
            return self._est.enroll_reply(x509.load_der_x509_certificate(before), ask)

        def spend(tx: Tx) -> None:
            if not est_secrets.spend(tx, row):
                raise TokenRequired("the one-time secret was used before, or its time has passed")

        actor = Actor("radius-server", name, address=peer.address)
        return await self._issue(ask, f"{self._origin}/radius/{name}", actor, spend)

    async def simplereenroll(self, call: Call, peer: Peer) -> Reply:
        """A newer certificate with the names of the live one that is shown."""
        name = self.name_of(peer, is_verified=False)
        assert peer.certificate is not None
        now = self._clock.now()
        if not peer.certificate.not_valid_before_utc <= now <= peer.certificate.not_valid_after_utc:
            raise NotPermitted("this certificate is not valid at this time")
        ask = self._est.read_enroll(call)
        actor = Actor("radius-server", name, fingerprint=(peer.certificate_sha256 or b"").hex(), address=peer.address)
        return await self._issue(ask, f"{self._origin}/radius/{name}", actor)

    async def _issue(
        self, ask: EnrollAsk, identifier: str, actor: Actor, spend: Callable[[Tx], None] = lambda tx: None
    ) -> Reply:
        def begin(tx: Tx, pending: PendingRow) -> None:
            require_own_key(tx, pending, identifier)
            spend(tx)

        issued = await self._ca.issue(
            _ROLE,
            partial(_shape, ask.csr, identifier, self._server_name, self._life),
            row={"profile": nas.SITE, "subject_id": identifier, "csr_sha256": asked_sha256(ask.csr)},
            actor=actor,
            event="infrastructure-certificate-issued",
            fields={"identifier": identifier, "label": LABEL},
            on_pending=begin,
        )
        return self._est.enroll_reply(issued.certificate, ask)

    # -- the decision port

    async def configuration(self, call: Call, peer: Peer) -> Reply:
        """GET /v1/radius/configuration: everything that the caller renders from, its keys and places excepted.

        `issuer_pem` goes behind its own certificate: the CA that signs now, and what leads to the other root while the
        root changes. `root_pem` is the root to believe from now on.

        Whoever sends its token keeps it; others get a new one, and the one before counts until that one asks for a
        decision.
        """
        name = self.name_of(peer)
        token = call.headers.get("authorization", "").partition(" ")[2].strip()
        if not self._is_token_of(token, name):
            token = await self._nas.new_token(token_name(name), Actor("radius-server", name, address=peer.address))
        values = dataclasses.asdict(await self._freeradius.values_for(token))
        sent = (self._ca.issuing(_ROLE).certificate, *self._ca.server_links)
        body = json.dumps(
            {
                "values": values,
                "issuer_pem": "".join(map(_pem, sent)),
                "root_pem": _pem(current_root(self._ca.handed_out(_ROLE))),
                "server_name": self._server_name,
            }
        )
        return Reply(200, "application/json", {"cache-control": "no-store"}, body.encode())

    def _is_token_of(self, token: str, name: str) -> bool:
        try:
            return bool(token) and self._access.check_token(token) == token_name(name)
        except TokenRequired:
            return False

    def _on_events(self, events: list[OutboxRow]) -> None:
        for event in events:
            body = event.body
            if event.topic == "certificate" and body.get("profile") == nas.SITE:
                serial = int(body["serial"], 16)
                if body["state"] == "issued":
                    self._live[serial] = body["subject_id"]
                else:
                    self._live.pop(serial, None)


def token_name(site: str) -> str:
    """Under which its token is kept."""
    return f"site-{site}"


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _shape(asked: Csr, identifier: str, server_name: str, life: timedelta, slot: Slot) -> profiles.Shape:
    subject = profiles.name(identifier.rpartition("/")[2])
    return profiles.radius_site(
        slot.terms(life), subject, asked.public_key, dns_names=(server_name,), identifier=identifier
    )


def _read_basic(authorization: str) -> tuple[str, bytes]:
    """Name and secret of an Authorization header (RFC 7617); raises TokenRequired."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        name, found, offered = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        text = name.decode()
    except (binascii.Error, ValueError) as cause:
        raise TokenRequired(_HOW) from cause
    if scheme.lower() != "basic" or not found or len(encoded) > 1024:
        raise TokenRequired(_HOW)
    return text, offered
