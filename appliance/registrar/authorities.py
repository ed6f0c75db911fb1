"""Registration authorities: clients that ask for others, where an EST label wants them (RFC 7030, section 3.7; cmcRA).

An authority holds a certificate of ours with id-kp-cmcRA, which an administrator had issued for its request and nobody
gets by asking (E-57). It has checked its client's possession, identity and channel binding; we check its certificate,
the label, and at renewal the names against the certificate that the proxy holds.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.ca import CertificateAuthority, IssuedRow, Slot, require_own_key
from appliance.clock import Clock
from appliance.errors import RequestMalformed
from appliance.registrar.admission import ProxyIdentities, ldevids_of
from appliance.registrar.applicants import check_room, check_uris, require_active, subject_of
from appliance.registrar.caller import Caller
from appliance.registrar.errors import AuthorityNotWanted, LdevidNotAccepted
from appliance.registrar.ldevids import ROLE
from appliance.store import certificates, proxies
from appliance.store.proxies import ProxyRow
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.peer import Peer
from est import chains, csr, profiles, transfer
from est.certificates import load_certificate, read_certificate
from est.csr import Csr
from est.errors import EstError
from est.linking import key_and_names_sha256
from est.server import EstServer

AUTHORITY = "est-ra"
"""Profile of an authority's certificate in the certificates table."""
METHOD = "ra"
MAX_NAME = 64
MAX_DAYS = 825

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority whose certificate is good at this moment; issuer key identifier and serial as stored."""

    identifier: str
    issuer_aki: str
    serial: int

    def require_live(self, tx: Tx) -> None:
        """It may have been revoked since; raises LdevidNotAccepted."""
        row: Any = certificates.by_serial(tx, self.issuer_aki, self.serial)
        if row is None or row.profile != AUTHORITY or row.state != certificates.ISSUED:
            raise LdevidNotAccepted("the certificate of this registration authority is revoked")


class Authorities:
    """Issues their certificates, and recognises them."""

    def __init__(self, *, origin: str, store: Store, clock: Clock, ca: CertificateAuthority) -> None:
        self._origin = origin
        self._store = store
        self._clock = clock
        self._ca = ca

    async def add(self, name: str, request: bytes, *, days: float, actor: Actor) -> Json:
        """A certificate with cmcRA for this PKCS#10 request (PEM or DER); its names are ours.

        Raises RequestMalformed, KeyInUse, and what reading the request and issuing raise.
        """
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise RequestMalformed(f"a name has 1 to {MAX_NAME} printable characters")
        if not 0 < days <= MAX_DAYS:
            raise RequestMalformed(f"the certificate lives more than 0 and at most {MAX_DAYS} days")
        asked = csr.read(transfer.decode_base64(request))
        identifier = f"{self._origin}/ra/{uuid.uuid4()}"

        def shape(slot: Slot) -> profiles.Shape:
            terms = slot.terms(timedelta(days=days))
            return profiles.registration_authority(terms, profiles.name(name), asked.public_key, identifier=identifier)

        issued = await self._ca.issue(
            ROLE,
            shape,
            row={"profile": AUTHORITY, "subject_id": identifier},
            actor=actor,
            event="authority-added",
            fields={"name": name, "identifier": identifier},
            on_pending=partial(require_own_key, subject_id=identifier),
        )
        chain = b"".join(map(_pem, (issued.certificate, *issued.chain[:1])))
        return {
            "identifier": identifier,
            "name": name,
            "serial": certificates.serial_text(issued.serial),
            "not_after": issued.certificate.not_valid_after_utc.isoformat(timespec="seconds"),
            "chain_pem": chain.decode(),
        }

    async def find(self, peer: Peer) -> Authority | None:
        """The authority whose certificate this is; None for everybody else.

        Raises LdevidNotAccepted for one that is expired or revoked.
        """
        certificate, der = peer.certificate, peer.certificate_der
        # the purpose first: it costs no signature, and all others have another
        if certificate is None or der is None or not _is_authority(der) or self._ca.issuer_of(certificate) != ROLE:
            return None
        try:
            chains.check(
                certificate, peer.chain[1:], self._ca.anchors(ROLE), at=self._clock.now(), policy=chains.REGISTRAR
            )
        except EstError as cause:
            raise LdevidNotAccepted(f"the certificate does not hold: {cause.detail}", because=cause.reason) from cause
        return await self._store.read(partial(_require, certificate))


@dataclass(frozen=True, slots=True)
class EnrolmentFor:
    """A new proxy that an authority enrols; the same request is for the same proxy."""

    authority: Authority
    csr: Csr
    identities: ProxyIdentities
    origin: str
    caller: Caller
    label: str
    event: str = "ldevid-issued"
    pledge_id: str | None = None
    is_authority: bool = True

    @property
    def proxy_id(self) -> str:
        asked = f"{self.authority.identifier}\0{self.label}\0{key_and_names_sha256(self.csr)}"
        return str(uuid.UUID(bytes=hashlib.sha256(asked.encode()).digest()[:16], version=4))

    @property
    def identifier(self) -> str:
        return f"{self.origin}/proxy/{self.proxy_id}"

    @property
    def actor(self) -> Actor:
        return self.caller.as_actor("registration-authority", self.authority.identifier)

    @property
    def subject(self) -> x509.Name:
        return subject_of(self.proxy_id)

    def is_password(self, offered: bytes) -> bool:
        return False

    def check_names(self, csr: Csr) -> None:
        """The identifier is ours to give; the common name becomes the proxy's name in lists."""
        check_uris(csr, self.identifier)

    def is_served(self, tx: Tx) -> bool:
        self.authority.require_live(tx)
        return True

    def begin(self, tx: Tx, csr: Csr, pending_id: int) -> None:
        self.authority.require_live(tx)
        if proxies.get(tx, self.proxy_id) is None:
            self.identities.make(tx, self.proxy_id, method=METHOD, name=_common_name(csr), label=self.label)
            fields = {"authority": self.authority.identifier, "label": self.label}
            audit.append(
                tx,
                AuditEvent(
                    "proxy-added-by-authority",
                    self.actor,
                    object=self.identifier,
                    request_id=self.caller.request_id,
                    fields=fields,
                ),
            )
        require_active(tx, self.proxy_id)

    def finish(self, tx: Tx, issued: IssuedRow) -> None:
        """Nothing follows."""


@dataclass(frozen=True, slots=True)
class RenewalFor:
    """A proxy that an authority enrolled, and renews: the names are those of the certificate that it holds (E-119)."""

    authority: Authority
    proxy: ProxyRow
    certificate: x509.Certificate
    est: EstServer
    caller: Caller
    max_ldevids: int
    event: str = "ldevid-renewed"
    pledge_id: str | None = None
    is_authority: bool = True

    @property
    def label(self) -> str:
        return self.proxy.label

    @property
    def proxy_id(self) -> str:
        return self.proxy.id

    @property
    def identifier(self) -> str:
        return self.proxy.identifier

    @property
    def actor(self) -> Actor:
        return self.caller.as_actor("registration-authority", self.authority.identifier)

    @property
    def subject(self) -> x509.Name:
        return self.certificate.subject

    def is_password(self, offered: bytes) -> bool:
        return False

    def check_names(self, csr: Csr) -> None:
        self.est.check_reenroll(csr, self.certificate)

    def is_served(self, tx: Tx) -> bool:
        self.authority.require_live(tx)
        require_active(tx, self.proxy_id)
        return True

    def begin(self, tx: Tx, csr: Csr, pending_id: int) -> None:
        self.authority.require_live(tx)
        require_active(tx, self.proxy_id)
        check_room(tx, self.proxy_id, pending_id, self.max_ldevids)

    def finish(self, tx: Tx, issued: IssuedRow) -> None:
        """The old certificate stays good until its end, as at every renewal."""


def proxy_to_renew(csr: Csr, label: str, tx: Tx) -> tuple[ProxyRow, x509.Certificate]:
    """The proxy whose renewal this is by its identifier in subjectAltName, and its newest certificate.

    Raises AuthorityNotWanted for a proxy that no authority enrolled, or not under this label.
    """
    uris = [] if csr.san is None else csr.san.get_values_for_type(x509.UniformResourceIdentifier)
    proxy = proxies.by_identifier(tx, uris[0]) if len(uris) == 1 else None
    if proxy is None or proxy.method != METHOD or proxy.label != label:
        raise AuthorityNotWanted("no registration authority enrolled this proxy under this EST label")
    issued = [row for row in ldevids_of(tx, proxy.id) if row.state == certificates.ISSUED]
    if not issued:
        raise LdevidNotAccepted("the proxy holds no live certificate that could be renewed")
    return proxy, read_certificate(certificates.der(tx, issued[-1].id) or b"")


def _require(certificate: x509.Certificate, tx: Tx) -> Authority:
    aki = (chains.aki_of(certificate) or b"").hex()
    row: Any = certificates.by_serial(tx, aki, certificate.serial_number)
    if row is None or row.profile != AUTHORITY:
        raise LdevidNotAccepted("the certificate is no registration authority's")
    authority = Authority(row.subject_id, aki, certificate.serial_number)
    authority.require_live(tx)
    return authority


@lru_cache(maxsize=4096)
def _is_authority(der: bytes) -> bool:
    """An authority's, and not the registrar's own: that one serves TLS, too."""
    try:
        for extension in chains.extensions_of(load_certificate(der)):
            if isinstance(extension.value, x509.ExtendedKeyUsage):
                found = set(extension.value)
                return profiles.CMC_RA in found and profiles.SERVER_AUTH not in found
    except EstError:
        pass  # whoever judges it next says what is wrong
    return False


def _common_name(csr: Csr) -> str:
    """For lists only, cut to what a name may have."""
    names = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    text = "".join(char for char in str(names[0].value) if char.isprintable()) if names else ""
    return text[:MAX_NAME]


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
