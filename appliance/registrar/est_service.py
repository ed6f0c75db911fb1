"""EST for proxies: CA certificates, first enrolment, renewal (RFC 7030 section 4; RFC 8995 section 5.9).

`simpleenroll` reads: who asks, what is asked, may these names be asked for, issue once, answer. A request repeated
after a lost answer gets the same certificate (E-126); everything else about who may have one is in applicants.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial

from cryptography import x509

from appliance import audit
from appliance.audit import AuditEvent
from appliance.ca import CertificateAuthority, IssuedRow, PendingRow, Slot
from appliance.clock import Clock
from appliance.errors import CertificateRequired, NotPermitted
from appliance.registrar import approvals, records
from appliance.registrar.admission import LDEVID
from appliance.registrar.applicants import Applicant, RenewalApplicant
from appliance.registrar.caller import Caller, caller_of
from appliance.registrar.errors import (
    EnrollmentSecretInvalid,
    KeyInUse,
)
from appliance.registrar.est_callers import REPEAT_WINDOW, EstCallers
from appliance.registrar.est_policy import EstPolicy
from appliance.registrar.hints import hint
from appliance.registrar.ldevids import ROLE, Ldevids, LiveLdevid
from appliance.registrar.turns import Turns
from appliance.store import certificates, pledges, proxies
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.limits import Bucket, Gcra
from appliance.web.peer import Peer
from est import profiles
from est.certificates import read_certificate
from est.csr import Csr
from est.errors import Refusal
from est.exchange import Call, Reply
from est.linking import asked_sha256
from est.server import EnrollAsk, EstServer

log = logging.getLogger(__name__)

_NOTED_BUCKET = Bucket(per_second=0.1, burst=20)


class _IssuedBefore(Exception):
    """Leaves the transaction that would issue a second certificate for one request; carries the first, DER."""

    def __init__(self, der: bytes) -> None:
        super().__init__()
        self.der = der


class _NotApproved(Exception):
    """Leaves the transaction of a request that has to wait for a person."""


class EstService:
    """The EST endpoints, with their collaborators."""

    def __init__(
        self,
        *,
        policies: Mapping[str, EstPolicy],
        max_ldevids: int,
        store: Store,
        clock: Clock,
        ca: CertificateAuthority,
        ldevids: Ldevids,
        callers: EstCallers,
        turns: Turns,
    ) -> None:
        self._policies = policies
        self._max_ldevids = max_ldevids
        self._store = store
        self._clock = clock
        self._ca = ca
        self._ldevids = ldevids
        self._callers = callers
        self._turns = turns
        self._est = EstServer(labels=[label for label in policies if label])
        self._noted_refusals = Gcra(_NOTED_BUCKET)

    async def cacerts(self, call: Call, peer: Peer) -> Reply:
        """The root and the CA that issues LDevIDs (RFC 7030, section 4.1); nobody has to authenticate."""
        self._est.operation(call)
        return self._est.cacerts_reply(self._ca.chain(ROLE), call)

    async def csrattrs(self, call: Call, peer: Peer) -> Reply:
        """What the caller's CSR must have (RFC 7030, section 4.5); nobody has to authenticate.

        Raises EnrollmentSecretInvalid (401) for credentials that are wrong.
        """
        policy = self._policies[self._est.operation(call).label or ""]
        caller = caller_of(call, peer)
        try:
            wanted = await self._callers.attributes(call.headers.get("authorization", ""), peer, caller, policy)
        except Refusal as refusal:
            await self._note_refusal(refusal, call, caller, is_known=False)
            raise
        return self._est.csrattrs_reply(wanted)

    async def simpleenroll(self, call: Call, peer: Peer) -> Reply:
        """The first certificate: for a pledge after BRSKI, or against a one-time secret (RFC 7030, section 4.2.1).

        Raises EnrollmentCredentialsMissing and EnrollmentSecretInvalid (401), EnrollmentNotOpen, EnrolledAlready,
        ProxyRevoked, NamesNotJustified, CsrAttributeMissing, KeyInUse, HistoryUnjudged, and what the label's policy,
        EstServer.read_enroll and the CA raise.
        """
        operation = self._est.operation(call)
        policy = self._policies[operation.label or ""]
        caller = caller_of(call, peer)
        applicant: Applicant | None = None
        try:
            authorization = call.headers.get("authorization", "")
            if authorization:
                applicant = await self._callers.secret_holder(authorization, caller, policy)
            else:
                applicant = await self._callers.pledge(peer, caller, policy)
            return await self._enroll(applicant, call, peer, caller, policy, operation.name)
        except Refusal as refusal:
            await self._note_refusal(refusal, call, caller, is_known=applicant is not None)
            raise

    async def simplereenroll(self, call: Call, peer: Peer) -> Reply:
        """A new certificate for a proxy that shows a live one (RFC 7030, section 4.2.2; E-117, E-118).

        Raises CertificateRequired, LdevidNotAccepted, ProxyRevoked, NamesChanged, KeyInUse, TooManyLdevids, and what
        EstServer.read_enroll and the CA raise.
        """
        operation = self._est.operation(call)
        policy = self._policies[operation.label or ""]
        caller = caller_of(call, peer)
        live: LiveLdevid | None = None
        try:
            if peer.certificate is None:
                raise CertificateRequired("renewal needs the certificate to be renewed as TLS client certificate")
            live = await self._ldevids.seen(peer)
            if live is None:
                raise NotPermitted("renewal needs a certificate that this domain issued to an identity proxy")
            applicant = RenewalApplicant(live, self._est, caller, self._max_ldevids)
            return await self._enroll(applicant, call, peer, caller, policy, operation.name)
        except Refusal as refusal:
            await self._note_refusal(refusal, call, caller, is_known=live is not None)
            raise

    async def _enroll(
        self, applicant: Applicant, call: Call, peer: Peer, caller: Caller, policy: EstPolicy, operation: str
    ) -> Reply:
        ask = self._est.read_enroll(call)
        linked = policy.check(applicant, ask.csr, peer)
        async with self._turns.of(applicant.proxy_id):
            try:
                certificate = await self._issue(applicant, ask, caller, policy, operation, linked=linked)
            except _NotApproved:
                who = f"{applicant.actor.kind} {applicant.actor.identifier}"
                waiting = partial(approvals.wait, applicant, ask.csr, policy, operation, who, caller.request_id)
                await self._store.write(waiting)
                return self._est.pending_reply(policy.rules.approval_retry_seconds)
        return self._est.enroll_reply(certificate, ask)

    async def _issue(
        self, applicant: Applicant, ask: EnrollAsk, caller: Caller, policy: EstPolicy, operation: str, *, linked: bool
    ) -> x509.Certificate:
        """The new certificate, or the one that this very request got a moment ago (E-126)."""
        asked = asked_sha256(ask.csr)
        is_manual = policy.rules.approval == "manual"

        def begin(tx: Tx, pending: PendingRow) -> None:
            before = proxies.ldevid_for(tx, proxy_id=applicant.proxy_id, csr_sha256=asked, since=tx.now - REPEAT_WINDOW)
            if before is not None and applicant.is_served(tx):
                raise _IssuedBefore(before)
            applicant.check_names(ask.csr)
            _check_key(tx, ask.csr, applicant)
            applicant.begin(tx, ask.csr, pending.id)
            # last, so that only what would get a certificate waits; nothing of this transaction stays then
            if is_manual and not approvals.is_approved(tx, applicant, ask.csr, policy, operation):
                raise _NotApproved

        def finish(tx: Tx, issued: IssuedRow) -> None:
            applicant.finish(tx, issued)
            if is_manual:
                approvals.used(tx, applicant, ask.csr, policy, operation)

        try:
            issued = await self._ca.issue(
                ROLE,
                partial(_shape, ask.csr, applicant, policy),
                row={
                    "profile": LDEVID,
                    "subject_id": applicant.identifier,
                    "proxy_id": applicant.proxy_id,
                    "pledge_id": applicant.pledge_id,
                    "csr_sha256": asked,
                },
                actor=applicant.actor,
                event=applicant.event,
                request_id=caller.request_id,
                fields={
                    "proxy": applicant.identifier,
                    "label": policy.label,
                    "csr_sha256": hashlib.sha256(ask.csr.der).hexdigest(),
                    "linked": linked,
                },
                on_pending=begin,
                on_issued=finish,
            )
        except _IssuedBefore as before:
            return read_certificate(before.der)
        log.info("%s proxy=%s serial=%x", applicant.event, applicant.identifier, issued.serial)
        return issued.certificate

    async def _note_refusal(self, refusal: Refusal, call: Call, caller: Caller, *, is_known: bool) -> None:
        """In the audit log, so many per caller; a stranger counts by address, because certificates cost it nothing."""
        log.info("enrolment-refused reason=%s address=%s hint=%r", refusal.reason, caller.address, hint(refusal.reason))
        if not caller.fingerprint and not isinstance(refusal, EnrollmentSecretInvalid):
            return
        who = caller.fingerprint if is_known and caller.fingerprint else caller.address
        if self._noted_refusals.take(who, self._clock.monotonic()):
            return
        event = AuditEvent(
            "enrolment-refused",
            caller.as_actor("pledge", ""),
            outcome="refused",
            reason=refusal.reason,
            request_id=caller.request_id,
            fields={"body_sha256": hashlib.sha256(call.body).hexdigest()},
        )
        await self._store.write(partial(_keep_refusal, event, refusal, caller))


def _shape(csr: Csr, applicant: Applicant, policy: EstPolicy, slot: Slot) -> profiles.Shape:
    subject = profiles.name(f"proxy {applicant.proxy_id}")
    return profiles.ldevid(slot.terms(policy.lifetime), subject, csr.public_key, identifier=applicant.identifier)


def _keep_refusal(event: AuditEvent, refusal: Refusal, caller: Caller, tx: Tx) -> None:
    """Audit it, and show it on the timeline of the device whose IDevID this is."""
    audit.append(tx, event)
    for record in pledges.by_idevid(tx, caller.fingerprint)[-1:] if caller.fingerprint else ():
        noted = records.noted(record, "enrolment-refused", now=tx.now, code=refusal.reason)
        pledges.save(tx, noted, was=record.state)


def _check_key(tx: Tx, csr: Csr, applicant: Applicant) -> None:
    """One key, one subject (E-204)."""
    if not certificates.holders(tx, csr.key_sha256) <= {applicant.identifier}:
        raise KeyInUse("the key of this request belongs to another certificate")
