"""The campus CA while it runs: three issuing CAs under an offline root (design D-4), shape, sign, check.

Every certificate has two transactions: `pending` (hash of the bytes to be signed, the caller's nonces spent) and
`issued` (the certificate). It is answered only after the second. A row left pending by a crash may belong to a
certificate that somebody holds, so it can be revoked like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.authorities import Authorities, KnownAuthorities, check_authorities, load_authorities
from appliance.clock import Clock
from appliance.cohort import Cohort, Way
from appliance.errors import (
    CaExpired,
    CertificateUnknown,
    ClockWentBack,
    IssuanceFailed,
    KeyInUse,
    NotFound,
)
from appliance.failpoint import failpoint
from appliance.hierarchy import IssuingCa, Role, new_serial
from appliance.settings import Settings, SettingsInvalid
from appliance.store import Row, Store, Tx, certificates, rollovers
from appliance.store.columns import to_micros
from est import der as tlv
from est import profiles, weak
from est.certificates import load_own
from est.chains import TrustAnchors, aki_of
from est.errors import CertificateMalformed, CertificateNotAsShaped
from est.keys import spki_sha256
from est.profiles import Shape, Terms
from est.revocation import REASONS
from est.signer import KeySigner
from est.weak import ListedKeys

_log = logging.getLogger(__name__)

TOPIC = "certificate"
_CLOCK_TOLERANCE = timedelta(minutes=5)


class Slot(NamedTuple):
    """The place that a certificate will have, for the function that makes its shape.

    `log_index` is the sequence of the audit entry that this transaction writes (spec A-112).
    """

    issuing: IssuingCa
    serial: int
    now: datetime
    log_index: int
    not_before: datetime

    def terms(self, lifetime: timedelta, *, addresses: bool = True) -> Terms:
        """Terms for a certificate that lives this long from now; CaExpired if the issuing CA does not live as long."""
        not_after = (self.now + lifetime).replace(microsecond=0)
        issuing = self.issuing
        if not_after > issuing.not_after:
            raise CaExpired("the issuing CA expires before this certificate would", retry_after_seconds=3600)
        return Terms(
            issuing.subject,
            issuing.key_identifier,
            self.serial,
            max(self.not_before, issuing.not_before),
            not_after,
            issuing.crl_url if addresses and issuing.crl_url else None,
            issuing.issuer_url if addresses and issuing.issuer_url else None,
            issuing.ocsp_url if addresses and issuing.ocsp_url else None,
        )


class PendingRow(NamedTuple):
    """What on_pending is told: the row, the serial, the shape, and the audit sequence of the pending entry."""

    id: int
    role: Role
    serial: int
    shape: Shape
    tbs_sha256: bytes
    log_index: int


class IssuedRow(NamedTuple):
    """What on_issued is told: the row, the certificate and its DER, and the audit sequence of the pending entry."""

    id: int
    role: Role
    serial: int
    certificate: x509.Certificate
    der: bytes
    log_index: int


class Issued(NamedTuple):
    """A finished certificate; `chain` is its issuing CA and the root, `pending_seq` the log index."""

    certificate: x509.Certificate
    der: bytes
    chain: tuple[x509.Certificate, ...]
    serial: int
    pending_seq: int


class _Prepared(NamedTuple):
    row: PendingRow
    tbs: bytes


class RoleSigner:
    """A Signer that signs with the key of whichever generation of a role's CA signs at that moment."""

    def __init__(self, ca: CertificateAuthority, role: Role) -> None:
        self._ca = ca
        self._role = role

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._ca.issuing(self._role).signer.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._ca.issuing(self._role).signer.sign(data)


class CertificateAuthority:
    """Issues and revokes; holds no state but its keys, which adopt() changes when a CA is rolled over."""

    def __init__(
        self,
        *,
        root: x509.Certificate,
        issuing: Mapping[Role, IssuingCa],
        store: Store,
        clock: Clock,
        backdate_seconds: int = 300,
        weak_keys: ListedKeys | None = None,
    ) -> None:
        """Checks every CA certificate against A-10; raises CaUnsuitable, CaExpired, KeyMismatch.

        `weak_keys` are never certified.
        """
        self._store = store
        self._clock = clock
        self._backdate = timedelta(seconds=backdate_seconds)
        self._weak_keys = weak_keys or ListedKeys()
        self._roles: dict[str, Role] = {}
        self._cohort = Cohort()
        self._now = self._take(Authorities(root, dict(issuing)))

    def adopt(self, authorities: Authorities) -> None:
        """Be these CAs from the next certificate on; call on the event loop. Raises as the constructor does."""
        self._now = self._take(authorities)

    def _take(self, authorities: Authorities) -> KnownAuthorities:
        known = KnownAuthorities.of(authorities)
        check_authorities(authorities, self._clock.now())
        # in place, because decisions hold this mapping
        for gone in self._roles.keys() - known.roles.keys():
            del self._roles[gone]
        self._roles.update(known.roles)
        return known

    @classmethod
    def open(
        cls, home: Path, settings: Settings, passphrase: bytes, store: Store, clock: Clock
    ) -> CertificateAuthority:
        """The CA of a home, every generation that counts; raises what the constructor and load_authorities raise."""
        now = load_authorities(home, settings, passphrase, store.read_sync(rollovers.every))
        ca = cls(
            root=now.root,
            issuing=now.issuing,
            store=store,
            clock=clock,
            backdate_seconds=settings.ca.backdate_seconds,
            weak_keys=read_weak_keys(settings),
        )
        ca.adopt(now)
        return ca

    def check(self) -> None:
        """Hold every CA certificate against A-10 and the clock, and each key against its certificate."""
        check_authorities(self._now.authorities, self._clock.now())

    @property
    def root(self) -> x509.Certificate:
        """The current root."""
        return self._now.authorities.root

    @property
    def authorities(self) -> Authorities:
        """All CAs as they are now."""
        return self._now.authorities

    @property
    def certificates(self) -> dict[str, x509.Certificate]:
        """The CA certificates that are used now: root, and every generation of the issuing CAs by its label."""
        return {"root": self.root, **{label: one.certificate for label, one in self._now.by_label.items()}}

    @property
    def server_links(self) -> tuple[x509.Certificate, ...]:
        """What our servers send behind their issuing CA while the root changes (E-102)."""
        return tuple(self._now.authorities.links)

    def issuing(self, role: Role) -> IssuingCa:
        """The CA of a role that signs."""
        return self._now.authorities.issuing[role]

    def generation(self, label: str) -> IssuingCa:
        """A generation of an issuing CA; raises NotFound for one that does not count (any more)."""
        found = self._now.by_label.get(label)
        if found is None:
            raise NotFound("there is no such CA")
        return found

    @property
    def generations(self) -> tuple[IssuingCa, ...]:
        """Every issuing CA whose certificates count: those that sign, those that will, those that did."""
        return tuple(self._now.by_label.values())

    def chain(self, role: Role) -> tuple[x509.Certificate, ...]:
        """The issuing CA's certificate and the root's: what follows an end entity of this role."""
        return self.issuing(role).certificate, self.root

    def handed_out(self, role: Role) -> tuple[x509.Certificate, ...]:
        """What cacerts carries (E-93, E-94): chain(), other generations of the role, and the links of two roots."""
        own = [*self.chain(role), *(one.certificate for one in self._now.authorities.beside if one.role == role)]
        names = {one.subject for one in own}
        return *own, *(one for one in self._now.authorities.certificates if one.subject in names)

    def anchors(self, role: Role) -> TrustAnchors:
        """The issuing CAs of one role as the only anchors: verifiers of one kind never hold the root (D-4)."""
        return self._now.anchors[role]

    def role_of(self, issuer_key_identifier: bytes | None) -> Role | None:
        """Which of our CAs has this key identifier, or None."""
        found = self._now.by_key.get(issuer_key_identifier or b"")
        return None if found is None else found.role

    def of_key(self, issuer_key_identifier: bytes | None) -> IssuingCa | None:
        """The generation that has this key identifier, or None."""
        return self._now.by_key.get(issuer_key_identifier or b"")

    @property
    def roles(self) -> Mapping[str, Role]:
        """The role of each issuing CA that counts by its key identifier, hex; the mapping follows every change."""
        return self._roles

    def issuer_of(self, certificate: x509.Certificate) -> Role | None:
        """Which of our CAs signed this certificate, or None; the signature is verified, dates and state are not."""
        found = self._issuer(certificate)
        return None if found is None else found.role

    def issuer_label(self, certificate: x509.Certificate) -> str:
        """As issuer_of(), but which generation; empty for none."""
        found = self._issuer(certificate)
        return "" if found is None else found.label

    def _issuer(self, certificate: x509.Certificate) -> IssuingCa | None:
        try:
            found = self.of_key(aki_of(certificate))
            if found is not None:
                certificate.verify_directly_issued_by(found.certificate)
        except (CertificateMalformed, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return None
        return found

    async def issue(
        self,
        role: Role,
        make_shape: Callable[[Slot], Shape],
        *,
        row: Mapping[str, Any],
        actor: Actor,
        event: str,
        request_id: str = "",
        fields: Mapping[str, Any] | None = None,
        on_pending: Callable[[Tx, PendingRow], None] | None = None,
        on_signed: Callable[[IssuedRow], Way[None]] | None = None,
        on_issued: Callable[[Tx, IssuedRow], None] | None = None,
        by: IssuingCa | None = None,
    ) -> Issued:
        """Issue one certificate; it is in the store and in the audit log when this returns.

        `make_shape`, `on_pending` and `on_issued` run inside their transaction, must be quick, and may be run twice
        (`Store.write`); a Refusal from the first two leaves nothing behind. `on_signed` runs between the transactions,
        where the caller checks the certificate as its receiver will, in steps; a Refusal from it leaves the row
        pending. `row` are columns of the certificates table: `profile` is required, subject_id, agent_id, owner_id,
        proxy_id, pledge_id, txn, model, csr_sha256, tier may be given. `event` names the final audit entry, `fields`
        are added to it. `by` is another generation of the role than the one that signs (for the OCSP signer of an old
        one). Raises what they raise, KeyWeak, CaExpired, ClockWentBack, IssuanceFailed, ShapeNotPossible, and the
        store's refusals.
        """
        issuing = by or self.issuing(role)
        with self._cohort:
            prepared = await self._store.write_in_steps(
                lambda tx: self._prepare(tx, issuing, make_shape, row, actor, request_id, on_pending)
            )
            failpoint("issue-pending")
            signature = None
            if not isinstance(issuing.signer, KeySigner):  # a token or a TPM takes its time
                signature = await asyncio.to_thread(issuing.signer.sign, prepared.tbs)
            issued = await self._cohort.run(_complete(prepared, issuing, signature, on_signed))
            await self._store.write(
                lambda tx: self._record(
                    tx, issuing, prepared, issued, row, actor, event, request_id, fields, on_issued
                ),
                quick=True,
            )
        failpoint("issue-issued")
        chain = issuing.certificate, self.root
        return Issued(issued.certificate, issued.der, chain, issued.serial, issued.log_index)

    def _prepare(
        self,
        tx: Tx,
        issuing: IssuingCa,
        make_shape: Callable[[Slot], Shape],
        row: Mapping[str, Any],
        actor: Actor,
        request_id: str,
        on_pending: Callable[[Tx, PendingRow], None] | None,
    ) -> Way[_Prepared]:
        log_index = audit.next_seq(tx)
        last = tx.chain.time if tx.chain else None
        if last is not None and tx.now < last - _CLOCK_TOLERANCE:
            raise ClockWentBack("the clock is behind the audit log; nothing is issued", retry_after_seconds=60)
        slot = Slot(issuing, new_serial(), tx.now, log_index, (tx.now - self._backdate).replace(microsecond=0))
        shape = make_shape(slot)
        _check_shape(shape, slot)
        weak.check(shape.public_key)
        self._weak_keys.check(shape.public_key)
        tbs = profiles.to_be_signed(shape, issuer_key=issuing.signer.public_key())
        digest = hashlib.sha256(tbs).digest()
        audit.append(
            tx,
            AuditEvent(
                "certificate-pending",
                actor,
                object=certificates.serial_text(shape.serial),
                request_id=request_id,
                fields={"issuer": issuing.role, "profile": row["profile"], "tbs_sha256": digest.hex()},
            ),
        )
        yield
        row_id = certificates.add(
            tx,
            certificates.Pending(
                issuing.role,
                issuing.key_identifier,
                shape.serial,
                digest,
                spki_sha256(shape.public_key),
                shape.not_before,
                shape.not_after,
                row,
            ),
        )
        pending = PendingRow(row_id, issuing.role, shape.serial, shape, digest, log_index)
        if on_pending is not None:
            on_pending(tx, pending)
        return _Prepared(pending, tbs)

    def _record(
        self,
        tx: Tx,
        issuing: IssuingCa,
        prepared: _Prepared,
        issued: IssuedRow,
        row: Mapping[str, Any],
        actor: Actor,
        event: str,
        request_id: str,
        fields: Mapping[str, Any] | None,
        on_issued: Callable[[Tx, IssuedRow], None] | None,
    ) -> None:
        digest = hashlib.sha256(issued.der).digest()
        certificates.issue(tx, issued.id, issued.der, digest)
        serial = certificates.serial_text(issued.serial)
        told = {
            "issuer": issuing.role,
            "profile": row["profile"],
            "cert_sha256": digest.hex(),
            "pending": issued.log_index,
        }
        audit.append(
            tx, AuditEvent(event, actor, object=serial, request_id=request_id, fields={**told, **(fields or {})})
        )
        shape = prepared.row.shape
        body = {
            "issuer_role": issuing.role,
            "issuer_aki": issuing.aki,
            "serial": serial,
            "state": certificates.ISSUED,
            "not_before": to_micros(shape.not_before),
            "not_after": to_micros(shape.not_after),
            **{name: row.get(name) for name in _EVENT_COLUMNS},
        }
        tx.emit(TOPIC, f"{issuing.aki}:{serial}", body)
        if on_issued is not None:
            on_issued(tx, issued)

    async def revoke(
        self,
        issuer: str | bytes,
        serial: int,
        *,
        reason: str = "unspecified",
        actor: Actor,
        request_id: str = "",
    ) -> Row:
        """Revoke one certificate by its issuer (key identifier, or a role whose CA signs) and serial.

        Works on a full disk too.

        Returns its row. Raises CertificateUnknown, Conflict if it was revoked already. CRLs follow within seconds.
        """
        found = self._now.authorities.issuing.get(issuer)  # type: ignore[call-overload]
        aki = issuer if found is None else found.key_identifier
        if isinstance(aki, str):
            raise CertificateUnknown(f"{aki} is not an issuing CA here")
        return await self._store.write(
            lambda tx: revoke(tx, aki, serial, reason=reason, actor=actor, request_id=request_id), essential=True
        )


def read_weak_keys(settings: Settings) -> ListedKeys:
    """The lists of `ca.weak_keys`; raises SettingsInvalid for a file that cannot be read."""
    texts = []
    for file in settings.ca.weak_keys:
        try:
            texts.append(file.read_text("ascii"))
            ListedKeys.read(texts[-1])
        except (OSError, ValueError) as cause:
            raise SettingsInvalid(f"ca.weak_keys: {file}: {cause}") from cause
    return ListedKeys.read(*texts)


def require_own_key(tx: Tx, pending: PendingRow, subject_id: str) -> None:
    """Refuse (KeyInUse) a key for which a certificate of another subject was ever begun: one key, one subject (E-204).

    For `on_pending` of certificates that are few; enrolment and issuance ask the same together with other things.
    """
    digest = spki_sha256(pending.shape.public_key)
    if certificates.is_key_of_another(tx, digest, subject_id):
        raise KeyInUse("the key of this request belongs to another certificate")


_EVENT_COLUMNS = ("profile", "subject_id", "agent_id", "owner_id", "proxy_id", "pledge_id", "txn", "model", "tier")


def revoke(
    tx: Tx, issuer_aki: bytes | str, serial: int, *, reason: str = "unspecified", actor: Actor, request_id: str = ""
) -> Row:
    """Revoke a pending or issued certificate inside the caller's transaction: row, audit entry, outbox event.

    `reason` is a CRLReason name. Raises CertificateUnknown, Conflict.
    """
    if reason not in REASONS:
        raise ValueError(f"{reason!r} is not a CRL reason")
    row = certificates.revoke(tx, issuer_aki, serial, reason)
    audit.append(
        tx,
        AuditEvent(
            "credential-revoked",
            actor,
            object=row.serial,
            reason=reason,
            request_id=request_id,
            fields={"issuer": row.issuer_role, "profile": row.profile, "cert_sha256": row.cert_sha256},
        ),
    )
    body = {
        "issuer_role": row.issuer_role,
        "issuer_aki": row.issuer_aki,
        "serial": row.serial,
        "state": certificates.REVOKED,
        "not_before": to_micros(row.not_before),
        "not_after": to_micros(row.not_after),
        **{name: getattr(row, name) for name in _EVENT_COLUMNS},
    }
    tx.emit(TOPIC, f"{row.issuer_aki}:{row.serial}", body)
    return row


def _check_shape(shape: Shape, slot: Slot) -> None:
    """Our own mistakes: a shape that is not for this slot is an error, not a refusal."""
    issuing = slot.issuing
    if shape.serial != slot.serial or shape.issuer != issuing.subject:
        raise ValueError("the shape is for another slot")
    if shape.not_after > issuing.not_after or shape.not_before < issuing.not_before:
        raise CaExpired("the certificate would be valid when its issuer is not", retry_after_seconds=3600)


def _complete(
    prepared: _Prepared,
    issuing: IssuingCa,
    signature: bytes | None,
    on_signed: Callable[[IssuedRow], Way[None]] | None,
) -> Way[IssuedRow]:
    """The certificate, signed where that is not done yet, and checked."""
    if signature is None:
        signature = issuing.signer.sign(prepared.tbs)
        yield
    failpoint("issue-signed")
    certificate, der = _finish(prepared, signature, issuing)
    row = prepared.row
    issued = IssuedRow(row.id, issuing.role, row.serial, certificate, der, row.log_index)
    if on_signed is not None:
        yield
        yield from on_signed(issued)
    return issued


def _finish(prepared: _Prepared, signature: bytes, issuing: IssuingCa) -> tuple[x509.Certificate, bytes]:
    """Put the signature on, verify it, and have the library parse the whole.

    The signed part is byte for byte the one that `to_be_signed` had read back and compared with the shape, field by
    field, so comparing it again is enough.
    """
    try:
        der = profiles.assemble(prepared.tbs, signature, issuing.signer.public_key())
        certificate = load_own(der)
        if not der.startswith(prepared.tbs, tlv.expect(der, 0, len(der), tlv.SEQUENCE)[0]):
            raise IssuanceFailed("the finished certificate is not what was checked")
    except (CertificateNotAsShaped, CertificateMalformed) as error:
        raise IssuanceFailed("the finished certificate failed its own check") from error
    return certificate, der
