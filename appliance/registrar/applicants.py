"""The three ways to an LDevID, side by side: a pledge after BRSKI, a holder of a one-time secret, a proxy that renews.

Each says which proxy the certificate is for, what names its CSR may carry, what must hold in the transaction that
begins the issuance (`begin`), and what follows in the one that ends it (`finish`).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance import audit, ca
from appliance.audit import Actor, AuditEvent
from appliance.ca import IssuedRow
from appliance.registrar import records
from appliance.registrar.admission import LDEVID, ProxyIdentities, ldevids_of
from appliance.registrar.caller import Caller
from appliance.registrar.errors import (
    EnrolledAlready,
    EnrollmentNotOpen,
    EnrollmentSecretInvalid,
    NamesNotJustified,
    ProxyRevoked,
    TooManyLdevids,
)
from appliance.registrar.ldevids import LiveLdevid, require_still_live
from appliance.store import certificates, est_secrets, pledges, proxies
from appliance.store.est_secrets import SecretRow
from appliance.store.pledges import PledgeRecord
from appliance.store.proxies import ProxyRow
from appliance.store.transaction import Tx
from brski.states import RecordEvent, RecordState
from est import csrattrs, profiles
from est.csr import Csr
from est.linking import asked_sha256
from est.server import EstServer


class Applicant(Protocol):
    """Somebody who may have an LDevID.

    `proxy_id` is the UUID, `identifier` the URI; `event` names the audit entry; `pledge_id` is None without BRSKI;
    `label` is the EST label that it belongs to, "" = none.
    """

    @property
    def proxy_id(self) -> str: ...
    @property
    def identifier(self) -> str: ...
    @property
    def pledge_id(self) -> str | None: ...
    @property
    def label(self) -> str: ...
    @property
    def event(self) -> str: ...
    @property
    def actor(self) -> Actor: ...

    @property
    def is_authority(self) -> bool:
        """Whether it asks for somebody else, as a registration authority (RFC 7030, section 3.7)."""
        ...

    @property
    def subject(self) -> x509.Name:
        """The certificate's subject, where the request does not change it."""
        ...

    def is_password(self, offered: bytes) -> bool:
        """Whether this is its one-time password (RFC 7894, section 3.1)."""
        ...

    def check_names(self, csr: Csr) -> None:
        """Refuse names that this applicant has no right to; NamesNotJustified, NamesChanged, CsrAttributeMissing."""
        ...

    def is_served(self, tx: Tx) -> bool:
        """Whether a repeated request gets the certificate that it got before, and not one of its own (E-126)."""
        ...

    def begin(self, tx: Tx, csr: Csr, pending_id: int) -> None:
        """What must hold, and is spent, when the issuance begins; `pending_id` is the new row."""
        ...

    def finish(self, tx: Tx, issued: IssuedRow) -> None:
        """What follows from the issued certificate."""
        ...


@dataclass(frozen=True, slots=True)
class PledgeApplicant:
    """A device after voucher, telemetry and audit log said yes (RFC 8995, section 5.9.3)."""

    record: PledgeRecord
    proxy: ProxyRow
    caller: Caller
    is_held: bool = True
    makes_key: bool = True
    event: str = "ldevid-issued"
    is_authority: bool = False

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
    def pledge_id(self) -> str | None:
        return self.record.id

    @property
    def actor(self) -> Actor:
        return self.caller.as_actor("pledge", self.record.serial)

    @property
    def subject(self) -> x509.Name:
        return subject_of(self.proxy_id)

    def is_password(self, offered: bytes) -> bool:
        return False

    def check_names(self, csr: Csr) -> None:
        """The subject is ours to choose; what the CSR says must not contradict the IDevID (B-374).

        A device that asked for CSR attributes is held to the answer (RFC 8995, section 5.9.2), if `is_held`; to what it
        says of keys only where the device `makes_key`.
        """
        for attribute in csr.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER):
            if attribute.value != self.record.serial:
                raise NamesNotJustified("the request's serialNumber is not that of the IDevID")
        check_uris(csr, self.identifier)
        if self.is_held and self.record.csr_attributes is not None:
            wanted = csrattrs.read(self.record.csr_attributes)
            csrattrs.check(csr, wanted if self.makes_key else replace(wanted, key=None))

    def is_served(self, tx: Tx) -> bool:
        """A request that the device kept over a new bootstrap gets the certificate of that bootstrap."""
        return records.state_of(pledges.require(tx, self.record.id)) in (RecordState.ENROLLED, RecordState.CONFIRMED)

    def begin(self, tx: Tx, csr: Csr, pending_id: int) -> None:
        record = pledges.require(tx, self.record.id)
        if record.idevid_sha256 != self.record.idevid_sha256 or record.proxy_id != self.proxy_id:
            raise EnrollmentNotOpen("the pledge's record has changed meanwhile")
        if records.state_of(record) in (RecordState.ENROLLED, RecordState.CONFIRMED):
            raise EnrolledAlready("this bootstrap has its certificate; a new one needs a new voucher-request")
        if records.state_of(record) is not RecordState.AUDIT_PASSED:
            raise EnrollmentNotOpen("voucher, the pledge's yes to it and a good history come first")
        require_active(tx, self.proxy_id)

    def finish(self, tx: Tx, issued: IssuedRow) -> None:
        """The record moves on; certificates of an earlier life of this device end (it was reset, or lost its key)."""
        record = pledges.require(tx, self.record.id)
        moved = records.moved(record, RecordEvent.CERTIFICATE_ISSUED, now=tx.now, code=format(issued.serial, "x"))
        pledges.save(tx, moved, was=record.state)
        for row in ldevids_of(tx, self.proxy_id):
            if row.id != issued.id:
                ca.revoke(
                    tx,
                    row.issuer_aki,
                    int(row.serial, 16),
                    reason="superseded",
                    actor=self.actor,
                    request_id=self.caller.request_id,
                )


@dataclass(frozen=True, slots=True)
class SecretApplicant:
    """Whoever knows a one-time enrolment secret (design D-12, second way; E-49)."""

    secret: SecretRow
    identities: ProxyIdentities
    origin: str
    caller: Caller
    event: str = "ldevid-issued"
    is_authority: bool = False

    @property
    def label(self) -> str:
        return self.secret.label

    @property
    def proxy_id(self) -> str:
        return self.secret.id

    @property
    def identifier(self) -> str:
        return f"{self.origin}/proxy/{self.secret.id}"

    @property
    def pledge_id(self) -> str | None:
        return None

    @property
    def actor(self) -> Actor:
        return self.caller.as_actor("proxy", self.secret.name)

    @property
    def subject(self) -> x509.Name:
        return subject_of(self.proxy_id)

    def is_password(self, offered: bytes) -> bool:
        return hmac.compare_digest(hashlib.sha256(offered).hexdigest(), self.secret.secret_sha256)

    def check_names(self, csr: Csr) -> None:
        """The secret stands for no name but the one that we give."""
        check_uris(csr, self.identifier)

    def is_served(self, tx: Tx) -> bool:
        return True

    def begin(self, tx: Tx, csr: Csr, pending_id: int) -> None:
        """Spend the secret, once, in the transaction that begins the issuance."""
        if est_secrets.spend(tx, self.secret):
            self.identities.make(tx, self.secret.id, method="est", name=self.secret.name, label=self.label)
            audit.append(
                tx,
                AuditEvent(
                    "est-secret-spent",
                    self.actor,
                    object=self.secret.name,
                    request_id=self.caller.request_id,
                    fields={"proxy": self.identifier},
                ),
            )
        elif not self._was_cut_short(tx, csr, pending_id):
            raise EnrollmentSecretInvalid("the name or the secret is wrong, or its time has passed")

    def _was_cut_short(self, tx: Tx, csr: Csr, pending_id: int) -> bool:
        """Whether the secret went into this very request before, and a crash of ours came before the certificate."""
        require_active(tx, self.proxy_id)
        others = [row for row in ldevids_of(tx, self.proxy_id) if row.id != pending_id]
        digest = asked_sha256(csr)
        return bool(others) and all(row.state == certificates.PENDING and row.csr_sha256 == digest for row in others)

    def finish(self, tx: Tx, issued: IssuedRow) -> None:
        """Nothing follows."""


class RenewalApplicant(NamedTuple):
    """A proxy with a live LDevID (RFC 7030, section 4.2.2)."""

    live: LiveLdevid
    est: EstServer
    caller: Caller
    max_ldevids: int
    event: str = "ldevid-renewed"
    is_authority: bool = False

    @property
    def label(self) -> str:
        return self.live.proxy.label

    @property
    def proxy_id(self) -> str:
        return self.live.proxy.id

    @property
    def identifier(self) -> str:
        return self.live.identifier

    @property
    def pledge_id(self) -> str | None:
        return self.live.pledge_id

    @property
    def actor(self) -> Actor:
        return self.caller.as_actor("proxy", self.live.identifier)

    @property
    def subject(self) -> x509.Name:
        """As it was: a common name that was given on request stays (RFC 7030, section 4.2.2)."""
        return self.live.subject

    def is_password(self, offered: bytes) -> bool:
        return False

    def check_names(self, csr: Csr) -> None:
        """Names as in the certificate being renewed, byte for byte (E-117)."""
        self.est.check_reenroll(csr, self.live.certificate)

    def is_served(self, tx: Tx) -> bool:
        require_still_live(self.live, tx)
        return True

    def begin(self, tx: Tx, csr: Csr, pending_id: int) -> None:
        """The old certificate may have been revoked since the connection was opened; only so many live at once."""
        require_still_live(self.live, tx)
        check_room(tx, self.proxy_id, pending_id, self.max_ldevids)

    def finish(self, tx: Tx, issued: IssuedRow) -> None:
        """The old certificate stays good until its end: the reply may get lost."""


def subject_of(proxy_id: str) -> x509.Name:
    """The subject that a proxy's certificate has by default."""
    return profiles.name(f"proxy {proxy_id}")


def check_room(tx: Tx, proxy_id: str, pending_id: int, max_ldevids: int) -> None:
    """Whether one more live certificate is allowed, whose row is there already; raises TooManyLdevids."""
    limit = max_ldevids + 1
    if not max_ldevids or certificates.count_live_of_proxy(tx, proxy_id, LDEVID, limit=limit) < limit:
        return
    others = [row for row in ldevids_of(tx, proxy_id) if row.id != pending_id]
    wait = min(row.not_after for row in others) - tx.now
    raise TooManyLdevids(
        "this proxy holds as many live certificates as it may",
        live=len(others),
        retry_after_seconds=max(1, round(wait.total_seconds())),
    )


def check_uris(csr: Csr, identifier: str) -> None:
    """Names that would say who somebody is are never taken from a request."""
    if csr.san is None:
        return
    for name in csr.san:
        if isinstance(name, x509.UniformResourceIdentifier) and name.value != identifier:
            raise NamesNotJustified("the request's subjectAltName names another identity")


def require_active(tx: Tx, proxy_id: str) -> None:
    proxy = proxies.get(tx, proxy_id)
    if proxy is None or not proxy.is_active:
        raise ProxyRevoked("this identity proxy is revoked or suspended")
