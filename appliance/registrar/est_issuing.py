"""One LDevID, once: for an applicant whose request has been read, and approved where its EST label wants that.

A request repeated after a lost answer gets the same certificate (E-126); who may have one is in applicants.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cryptography import x509

from appliance.ca import CertificateAuthority, IssuedRow, PendingRow, Slot
from appliance.registrar import approvals
from appliance.registrar.admission import LDEVID
from appliance.registrar.applicants import Applicant
from appliance.registrar.caller import Caller
from appliance.registrar.errors import KeyInUse
from appliance.registrar.est_callers import REPEAT_WINDOW
from appliance.registrar.est_policy import EstPolicy
from appliance.registrar.ldevids import ROLE
from appliance.store import certificates, proxies
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est import profiles
from est.certificates import read_certificate
from est.csr import Csr
from est.linking import asked_sha256

log = logging.getLogger(__name__)


class _IssuedBefore(Exception):
    """Leaves the transaction that would issue a second certificate for one request; carries the first, DER."""

    def __init__(self, der: bytes) -> None:
        super().__init__()
        self.der = der


class _NotApproved(Exception):
    """Leaves the transaction of a request that has to wait for a person."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: the request, under which rules, by which operation, in which HTTP call.

    `subject` is a new one that ChangeSubjectName asked for. `known` is what a waiting request is known again by: the
    request itself, or the one with the client's placeholder where the key is ours. `is_repeatable` says whether the
    same bytes get the same certificate; `facts` go into the audit log.
    """

    csr: Csr
    policy: EstPolicy
    operation: str
    caller: Caller
    known: Csr
    subject: x509.Name | None = None
    is_repeatable: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


class LdevidIssuer:
    """Issues, or puts on the list of those who wait."""

    def __init__(self, store: Store, ca: CertificateAuthority) -> None:
        self._store = store
        self._ca = ca

    async def issue(self, applicant: Applicant, wish: Wish) -> x509.Certificate | None:
        """The certificate; None where a person has to say yes first, and then it waits.

        One at a time for each proxy: the caller sees to it. Raises what the applicant and the CA raise, KeyInUse,
        EnrollmentDenied.
        """
        try:
            return await self._issue(applicant, wish)
        except _IssuedBefore as before:
            return read_certificate(before.der)
        except _NotApproved:
            who = f"{applicant.actor.kind} {applicant.actor.identifier}"
            waiting = partial(
                approvals.wait, applicant, wish.known, wish.policy, wish.operation, who, wish.caller.request_id
            )
            await self._store.write(waiting)
            return None

    async def _issue(self, applicant: Applicant, wish: Wish) -> x509.Certificate:
        asked = asked_sha256(wish.csr) if wish.is_repeatable else None
        policy, operation, is_manual = wish.policy, wish.operation, wish.policy.rules.approval == "manual"

        def begin(tx: Tx, pending: PendingRow) -> None:
            if asked is not None:
                since = tx.now - REPEAT_WINDOW
                before = proxies.ldevid_for(tx, proxy_id=applicant.proxy_id, csr_sha256=asked, since=since)
                if before is not None and applicant.is_served(tx):
                    raise _IssuedBefore(before)
            applicant.check_names(wish.csr)
            _check_key(tx, wish.csr, applicant)
            applicant.begin(tx, wish.csr, pending.id)
            # last, so that only what would get a certificate waits; nothing of this transaction stays then
            if is_manual and not approvals.is_approved(tx, applicant, wish.known, policy, operation):
                raise _NotApproved

        def finish(tx: Tx, issued: IssuedRow) -> None:
            applicant.finish(tx, issued)
            if is_manual:
                approvals.used(tx, applicant, wish.known, policy, operation)

        issued = await self._ca.issue(
            ROLE,
            partial(_shape, wish, applicant),
            row={
                "profile": LDEVID,
                "subject_id": applicant.identifier,
                "proxy_id": applicant.proxy_id,
                "pledge_id": applicant.pledge_id,
                "csr_sha256": asked,
            },
            actor=applicant.actor,
            event=applicant.event,
            request_id=wish.caller.request_id,
            fields={
                "proxy": applicant.identifier,
                "label": policy.label,
                "csr_sha256": hashlib.sha256(wish.csr.der).hexdigest(),
                **wish.facts,
            },
            on_pending=begin,
            on_issued=finish,
        )
        log.info("%s proxy=%s serial=%x", applicant.event, applicant.identifier, issued.serial)
        return issued.certificate


def _shape(wish: Wish, applicant: Applicant, slot: Slot) -> profiles.Shape:
    terms, subject = slot.terms(wish.policy.lifetime), wish.subject or applicant.subject
    return profiles.ldevid(terms, subject, wish.csr.public_key, identifier=applicant.identifier)


def _check_key(tx: Tx, csr: Csr, applicant: Applicant) -> None:
    """One key, one subject (E-204)."""
    if not certificates.holders(tx, csr.key_sha256) <= {applicant.identifier}:
        raise KeyInUse("the key of this request belongs to another certificate")
