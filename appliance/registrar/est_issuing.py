"""One LDevID, once: for an applicant whose request has been read, and approved where its EST label wants that.

A request repeated after a lost answer gets the same certificate (E-126); who may have one is in applicants.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from cryptography import x509

from appliance.ca import CertificateAuthority, IssuedRow, PendingRow, Slot
from appliance.errors import KeyInUse
from appliance.registrar import approvals
from appliance.registrar.admission import LDEVID
from appliance.registrar.applicants import Applicant
from appliance.registrar.caller import Caller
from appliance.registrar.est_callers import REPEAT_WINDOW
from appliance.registrar.est_policy import EstPolicy
from appliance.registrar.ldevids import ROLE
from appliance.store import proxies
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


class Wish(NamedTuple):
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
    facts: Mapping[str, Any] = MappingProxyType({})


class Ldevid(NamedTuple):
    """An issued certificate and its DER."""

    certificate: x509.Certificate
    der: bytes


class LdevidIssuer:
    """Issues, or puts on the list of those who wait."""

    def __init__(self, store: Store, ca: CertificateAuthority) -> None:
        self._store = store
        self._ca = ca

    async def issue(self, applicant: Applicant, wish: Wish) -> Ldevid | None:
        """The certificate; None where a person has to say yes first, and then it waits.

        One at a time for each proxy: the caller sees to it. Raises what the applicant and the CA raise, KeyInUse,
        EnrollmentDenied.
        """
        try:
            return await self._issue(applicant, wish)
        except _IssuedBefore as before:
            return Ldevid(read_certificate(before.der), before.der)
        except _NotApproved:
            who = f"{applicant.actor.kind} {applicant.actor.identifier}"
            waiting = partial(
                approvals.wait, applicant, wish.known, wish.policy, wish.operation, who, wish.caller.request_id
            )
            await self._store.write(waiting)
            return None

    async def _issue(self, applicant: Applicant, wish: Wish) -> Ldevid:
        csr, policy, operation, caller = wish.csr, wish.policy, wish.operation, wish.caller
        asked = asked_sha256(csr) if wish.is_repeatable else None
        is_manual = policy.rules.approval == "manual"
        proxy_id, identifier, event = applicant.proxy_id, applicant.identifier, applicant.event

        def shape(slot: Slot) -> profiles.Shape:
            terms, subject = slot.terms(policy.lifetime), wish.subject or applicant.subject
            return profiles.ldevid(terms, subject, csr.public_key, identifier=identifier)

        def begin(tx: Tx, pending: PendingRow) -> None:
            before = proxies.before(
                tx,
                proxy_id=proxy_id,
                csr_sha256=asked,
                since=tx.now - REPEAT_WINDOW,
                spki_sha256=csr.key_sha256,
                identifier=identifier,
            )
            if before.der is not None and applicant.is_served(tx):
                raise _IssuedBefore(before.der)
            applicant.check_names(csr)
            if before.is_key_of_another:  # one key, one subject (E-204)
                raise KeyInUse("the key of this request belongs to another certificate")
            applicant.begin(tx, csr, pending.id)
            # last, so that only what would get a certificate waits; nothing of this transaction stays then
            if is_manual and not approvals.is_approved(tx, applicant, wish.known, policy, operation):
                raise _NotApproved

        def finish(tx: Tx, issued: IssuedRow) -> None:
            applicant.finish(tx, issued)
            if is_manual:
                approvals.used(tx, applicant, wish.known, policy, operation)

        issued = await self._ca.issue(
            ROLE,
            shape,
            row={
                "profile": LDEVID,
                "subject_id": identifier,
                "proxy_id": proxy_id,
                "pledge_id": applicant.pledge_id,
                "csr_sha256": asked,
            },
            actor=applicant.actor,
            event=event,
            request_id=caller.request_id,
            fields={
                "proxy": identifier,
                "label": policy.label,
                "csr_sha256": hashlib.sha256(csr.der).hexdigest(),
                **wish.facts,
            },
            on_pending=begin,
            on_issued=finish,
        )
        log.info("%s proxy=%s serial=%x", event, identifier, issued.serial)
        return Ldevid(issued.certificate, issued.der)
