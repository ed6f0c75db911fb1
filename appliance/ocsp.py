"""The OCSP responder: one delegated signer per issuing CA, answers kept signed until something changes.

Every generation of a CA has its own signer.

A signer's key is made at every start and never leaves the process, or lies in a token; its certificate lives days and
is renewed here. What a certificate's row says is read for every new answer; an answer that was signed before is given
again until half of its life is over, its certificate is revoked, or the signer is renewed. All of that happens on the
event loop, so no answer can be kept that a revocation has overtaken.

"good" is said of certificates whose issuance is recorded, "unknown" of every other serial number, a pending one too.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from appliance.audit import APPLIANCE
from appliance.ca import TOPIC, CertificateAuthority, Slot
from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.hierarchy import IssuingCa
from appliance.keys import generate
from appliance.store import OutboxRow, Store, Tx, certificates
from appliance.store.certificates import Standing
from est import ocsp, profiles
from est.errors import BodyMalformed, CertificateNotAsShaped, Refusal
from est.ocsp import OcspRequest, Revocation, Single
from est.profiles import Shape
from est.signer import KeySigner, Signer

_log = logging.getLogger(__name__)
PROFILE = "ocsp-signer"
_RETRY_SECONDS = 30.0
_LOOK_SECONDS = 600.0
# An unknown serial number may be issued in the next second.
_UNKNOWN_LIFE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class OcspAnswer:
    """A response; the dates are None, and nothing may be kept of it, for errors and answers to a nonce."""

    der: bytes
    this_update: datetime | None = None
    next_update: datetime | None = None
    tag: str = ""


@dataclass(frozen=True, slots=True)
class _Delegate:
    """A key that answers for one CA, and until when."""

    issuing: IssuingCa
    signer: Signer
    der: bytes
    key_hash: bytes
    not_after: datetime
    renew_at: datetime


class OcspResponder:
    """Answers requests; run() keeps the signers' certificates young."""

    def __init__(
        self,
        ca: CertificateAuthority,
        store: Store,
        clock: Clock,
        *,
        life_minutes: float = 60.0,
        signer_days: float = 14.0,
        max_kept: int = 10_000,
        signers: Mapping[str, Signer] | None = None,
    ) -> None:
        """`signers`: other keys than the CAs' own (PKCS#11), by label; where there is none, one is made.

        `max_kept` answers stay.
        """
        self._ca = ca
        self._store = store
        self._clock = clock
        self._life = timedelta(minutes=life_minutes)
        self._signer_life = timedelta(days=signer_days)
        self._max_kept = max_kept
        self._keys: dict[str, Signer] = dict(signers or {})
        self._issuers = self._names()
        self._delegates: dict[str, _Delegate] = {}
        self._kept: OrderedDict[bytes, OcspAnswer] = OrderedDict()
        self._kept_of: dict[tuple[str, int], set[bytes]] = {}
        self._changes = 0

    # -- the signers

    async def start(self) -> None:
        """Listen for revocations and give every signer its certificate; without one, answers are tryLater."""
        self._store.subscribe(self._on_events)
        await self._renew()

    async def follow(self) -> None:
        """The CAs have changed: answer for those that count now."""
        self._issuers = self._names()
        labels = {one.label for one in self._ca.generations}
        self._delegates = {label: one for label, one in self._delegates.items() if label in labels}
        self._forget_all()
        await self._renew()

    def _names(self) -> ocsp.IssuerNames:
        return ocsp.IssuerNames({one.label: one.certificate for one in self._ca.generations})

    async def run(self) -> None:
        """Renew certificates of signers at half their life, until cancelled."""
        while True:
            done = await self._renew()
            await asyncio.sleep(_LOOK_SECONDS if done else _RETRY_SECONDS)

    async def _renew(self) -> bool:
        try:
            for issuing in self._ca.generations:
                delegate = self._delegates.get(issuing.label)
                if self._clock.now() >= issuing.certificate.not_valid_after_utc:
                    continue  # an old generation that ended before it was retired
                if delegate is None or self._clock.now() >= delegate.renew_at:
                    self._delegates[issuing.label] = await self._delegate(issuing)
                    self._forget_all()
        except Refusal as error:  # disk full, clock behind: the old certificate does until then
            _log.error("event=ocsp-signer-not-renewed reason=%s detail=%r", error.reason, error.detail)
            return False
        return True

    async def _delegate(self, issuing: IssuingCa) -> _Delegate:
        role = issuing.role
        signer = self._keys.get(issuing.label) or issuing.ocsp_signer or KeySigner(generate())
        now, end = self._clock.now(), issuing.certificate.not_valid_after_utc
        life = min(self._signer_life, end - now)

        def shape(slot: Slot) -> Shape:
            subject = profiles.name(f"OCSP {role}", _organization(slot.issuing.certificate))
            return profiles.ocsp_signer(slot.terms(life, addresses=False), subject, signer.public_key())

        issued = await self._ca.issue(
            role,
            shape,
            row={"profile": PROFILE},
            actor=APPLIANCE,
            event="ocsp-signer-issued",
            fields={"role": issuing.label},
            by=issuing,
        )
        not_after = issued.certificate.not_valid_after_utc
        return _Delegate(issuing, signer, issued.der, ocsp.key_hash(signer.public_key()), not_after, now + life / 2)

    # -- requests

    def respond(self, der: bytes) -> OcspAnswer | Awaitable[OcspAnswer]:
        """The response to a request; an awaitable one where the signer is slow. Every failure is a response too."""
        try:
            request = ocsp.read_request(der)
        except BodyMalformed:
            return OcspAnswer(ocsp.MALFORMED)
        single = request.certificates[0].der if len(request.certificates) == 1 and request.nonce is None else None
        if single is not None:
            kept = self._kept.get(single)
            if kept is not None and self._is_young(kept):
                self._kept.move_to_end(single)
                return kept
        roles = {self._issuers.of(one) for one in request.certificates}
        role = roles.pop()
        if role is None or roles:  # a delegate may speak for its own CA only
            return OcspAnswer(ocsp.UNAUTHORIZED)
        delegate = self._delegates.get(role)
        now = self._clock.now()
        if delegate is None or now >= delegate.not_after:
            return OcspAnswer(ocsp.TRY_LATER)
        try:
            answers = self._store.read_sync(lambda tx: self._look_up(tx, request, delegate.issuing))
        except ApplianceError as error:
            _log.error("event=ocsp-without-store reason=%s", error.reason)
            return OcspAnswer(ocsp.TRY_LATER)
        is_known = all(one.status is not None for one in answers)
        next_update = min(now + (self._life if is_known else _UNKNOWN_LIFE), delegate.not_after).replace(microsecond=0)
        this_update = min(now, next_update - timedelta(seconds=1)).replace(microsecond=0)
        data = ocsp.response_data(
            answers,
            responder=delegate.key_hash,
            this_update=this_update,
            next_update=next_update,
            nonce=request.nonce,
        )
        unsigned = _Unsigned(data, delegate, this_update, next_update, request, single if is_known else None)
        if isinstance(delegate.signer, KeySigner):
            return self._finish(unsigned, delegate.signer.sign(data), self._changes)
        return self._sign_slowly(unsigned, delegate.signer)

    def _look_up(self, tx: Tx, request: OcspRequest, issuing: IssuingCa) -> list[Single]:
        aki = issuing.key_identifier
        return [Single(one, _status(certificates.standing(tx, aki, one.serial))) for one in request.certificates]

    async def _sign_slowly(self, unsigned: _Unsigned, signer: Signer) -> OcspAnswer:
        changes = self._changes
        try:
            signature = await asyncio.to_thread(signer.sign, unsigned.data)
        except Refusal as error:  # the token is away
            _log.error("event=ocsp-not-signed reason=%s detail=%r", error.reason, error.detail)
            return OcspAnswer(ocsp.TRY_LATER)
        return self._finish(unsigned, signature, changes)

    def _finish(self, unsigned: _Unsigned, signature: bytes, changes: int) -> OcspAnswer:
        delegate = unsigned.delegate
        try:
            der = ocsp.assemble(unsigned.data, signature, delegate.signer.public_key(), delegate.der)
        except CertificateNotAsShaped as error:
            _log.error("event=ocsp-not-signed reason=%s detail=%r", error.reason, error.detail)
            return OcspAnswer(ocsp.INTERNAL_ERROR)
        if unsigned.request.nonce is not None:
            return OcspAnswer(der)
        tag = hashlib.sha256(der).hexdigest()
        answer = OcspAnswer(der, unsigned.this_update, unsigned.next_update, tag)
        if unsigned.keep_as is not None and changes == self._changes:
            self._keep(unsigned.keep_as, (delegate.issuing.label, unsigned.request.certificates[0].serial), answer)
        return answer

    # -- what is kept

    def _is_young(self, answer: OcspAnswer) -> bool:
        assert answer.this_update is not None
        age = self._clock.now() - answer.this_update
        return timedelta(0) <= age < self._life / 2

    def _keep(self, request: bytes, certificate: tuple[str, int], answer: OcspAnswer) -> None:
        self._kept[request] = answer
        self._kept.move_to_end(request)
        self._kept_of.setdefault(certificate, set()).add(request)
        while len(self._kept) > self._max_kept:
            oldest, _ = self._kept.popitem(last=False)
            self._unlink(oldest)

    def _unlink(self, request: bytes) -> None:
        one = ocsp.read_cert_id(request)
        owner = (self._issuers.of(one) or "", one.serial)
        others = self._kept_of.get(owner, set())
        others.discard(request)
        if not others:
            self._kept_of.pop(owner, None)

    def _forget_all(self) -> None:
        self._changes += 1
        self._kept.clear()
        self._kept_of.clear()

    def _on_events(self, rows: list[OutboxRow]) -> None:
        for row in rows:
            if row.topic == TOPIC and row.body["state"] == certificates.REVOKED:
                self._changes += 1
                issuing = self._ca.of_key(bytes.fromhex(row.body["issuer_aki"]))
                label = "" if issuing is None else issuing.label
                for request in self._kept_of.pop((label, int(row.body["serial"], 16)), ()):
                    self._kept.pop(request, None)


@dataclass(frozen=True, slots=True)
class _Unsigned:
    """A response before its signature; `keep_as` None = not to be kept."""

    data: bytes
    delegate: _Delegate
    this_update: datetime
    next_update: datetime
    request: OcspRequest
    keep_as: bytes | None


def _status(row: Standing | None) -> Revocation | bool | None:
    if row is None or row.state == certificates.PENDING:
        return None
    if row.state == certificates.REVOKED:
        assert row.revoked_at is not None
        return Revocation(row.revoked_at, row.revocation_reason or "unspecified")
    return True


def _organization(certificate: x509.Certificate) -> str | None:
    found = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else None
