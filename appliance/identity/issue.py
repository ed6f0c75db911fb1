"""Issuing what was granted: certificate, WIT, or both for one key; shape, sign, check (A-15).

Every credential has a pending record before its signature exists, and is verified as any relying party would verify it
before it is recorded as issued and leaves.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from hashlib import sha256
from math import ceil
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.binding import approval as approvals
from appliance.binding import dual_identity, jws, token
from appliance.binding import verify as verification
from appliance.binding.approval import OwnerApproval
from appliance.binding.bundle import TrustBundle
from appliance.binding.composite import org_hash
from appliance.binding.dual_identity import DualIdentity
from appliance.binding.errors import BindingError
from appliance.binding.facts import Limits, Model, OwnerRecord
from appliance.binding.request import AgentRequest
from appliance.binding.standing import StandingApproval
from appliance.binding.token import WitOwner
from appliance.binding.verify import TrustDomain
from appliance.ca import CertificateAuthority, IssuedRow, RoleSigner, Slot
from appliance.clock import Clock
from appliance.cohort import Way
from appliance.errors import IssuanceFailed
from appliance.store.certificates import serial_text
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est import chains, profiles
from est.certificates import aki_of, read_certificate
from est.errors import EstError
from est.profiles import Terms
from est.signer import Signer

_RENEW_AT = 2 / 3


@dataclass(frozen=True)
class Grant:
    """A decision of yes: what is issued, to whom, and everything that stands behind it."""

    request: AgentRequest
    approvals: tuple[OwnerApproval | StandingApproval, ...]
    owner: OwnerRecord | None
    evidence: str
    ear: str
    profiles: tuple[str, ...]
    ttl_seconds: int
    txn: str
    proxy_id: str
    org: tuple[str, ...] = ()
    """Organisational material of the owner's gateway; kept, and hashed in the audit log."""
    tier: str = ""
    seats: tuple[str, ...] = ()
    """The challenges whose answers the approvals are."""
    key_origin: str = ""
    """Who made the key, where the evidence says that it was not the agent."""

    @cached_property
    def standing(self) -> tuple[StandingApproval, ...]:
        """The standing approvals under which this is a renewal; none where the owner was asked."""
        return tuple(one for one in self.approvals if isinstance(one, StandingApproval))

    @property
    def model(self) -> Model:
        """What stands in the credential: how the owner said yes."""
        return Model.STANDING if self.standing else self.request.model

    @property
    def is_hashed(self) -> bool:
        """Whether the certificate holds the hash of the first approval only."""
        return bool(self.standing) or self.approvals[0].sign_count is not None

    @cached_property
    def approvals_s256(self) -> Sequence[str]:
        """The hash of each approval, in their order."""
        return [jws.s256(one.token) for one in self.approvals]

    @cached_property
    def ear_digest(self) -> bytes:
        """SHA-256 of the attestation result: `earDigest` of the certificate."""
        return sha256(self.ear.encode("ascii")).digest()

    @cached_property
    def hashes(self) -> Mapping[str, Any]:
        """What the audit log tells: who, and digests of everything signed (A-112)."""
        request = self.request
        told = {} if not self.org else {"org_s256": org_hash(self.org)}
        told |= {"key_origin": self.key_origin} if self.key_origin else {}
        return told | {
            "txn": self.txn,
            "agent": request.sub,
            "owner": request.owner,
            "proxy": self.proxy_id,
            "model": str(self.model),
            "rqh": request.rqh,
            "approvals_s256": self.approvals_s256,
            "evidence_s256": jws.s256(self.evidence),
            "ear_s256": jws.base64url(self.ear_digest),
        }


@dataclass(frozen=True, slots=True)
class Issuer:
    """The agents CA and the WIT key, with the names that go into credentials."""

    ca: CertificateAuthority
    store: Store
    clock: Clock
    origin: str
    server_id: str
    arc: str
    wit_signer: Signer
    wit_issuer: str
    wit_seconds: int
    limits: Limits
    verifier_keys: tuple[ec.EllipticCurvePublicKey, ...] = ()
    """Keys of a verifier elsewhere, beside the agents CA's."""

    @property
    def domain(self) -> TrustDomain:
        """Our own domain as a relying party knows it; its anchors are the agents CAs that count now."""
        return TrustDomain(self.origin, self.server_id, self.ca.anchors("agents"))

    @property
    def wit_kid(self) -> str:
        """The name of the key that signs WITs now."""
        return jws.jkt(self.wit_signer.public_key())

    @property
    def wit_keys(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """Every key whose WITs are to be believed, by name: with an agents CA that is rolled over, both."""
        keys: list[ec.EllipticCurvePublicKey] = [self.wit_signer.public_key()]
        if isinstance(self.wit_signer, RoleSigner):
            keys += [one.signer.public_key() for one in self.ca.generations if one.role == "agents"]
        return {jws.jkt(one): one for one in keys}

    def trust_bundle(self, owners: Iterable[OwnerRecord]) -> TrustBundle:
        """What a relying party needs to verify what is issued here, with these owners."""
        return TrustBundle(
            self.domain,
            self.wit_issuer,
            self.wit_keys,
            self.arc,
            self.limits.backdating_seconds,
            {one.owner_id: one for one in owners},
            self.clock.now(),
            self.verifier_keys,
        )

    async def issue(
        self,
        grant: Grant,
        *,
        actor: Actor,
        request_id: str,
        on_pending: Callable[[Tx, int | None], None],
        on_issued: Callable[[Tx, dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Issue what is granted; returns the answer for the agent.

        `on_pending` (with the certificate's row, None for a WIT alone) spends and records inside the first transaction,
        and what it refuses leaves nothing behind;
        `on_issued` is given the result, to be kept, inside the second. Raises what they raise, IssuanceFailed, and the
        CA's and the store's refusals.
        """
        if "x509" in grant.profiles:
            return await self._issue_certificate(grant, actor, request_id, on_pending, on_issued)
        return await self._issue_wit_alone(grant, actor, request_id, on_pending, on_issued)

    async def _issue_certificate(
        self,
        grant: Grant,
        actor: Actor,
        request_id: str,
        on_pending: Callable[[Tx, int | None], None],
        on_issued: Callable[[Tx, dict[str, Any]], None],
    ) -> dict[str, Any]:
        request, is_dual = grant.request, grant.owner is not None
        told = dict(grant.hashes)
        result: dict[str, Any] = {}

        def check(issued: IssuedRow) -> Way[None]:
            self._check_certificate(grant, issued.certificate)
            if "wit" in grant.profiles:
                yield
                result["wit"] = wit = self._seal_wit(grant, self.clock.now())
                told["wit_s256"] = jws.s256(wit)

        def record(tx: Tx, issued: IssuedRow) -> None:
            ends = issued.certificate.not_valid_after_utc
            result.update(self._result(grant, tx.now, ends, issued.log_index, serial_text(issued.serial)))
            on_issued(tx, result)

        issued = await self.ca.issue(
            "agents",
            lambda slot: self._shape(grant, slot),
            row={
                "profile": "agent",
                "subject_id": request.sub,
                "agent_id": request.sub,
                "owner_id": request.owner,
                "proxy_id": grant.proxy_id,
                "txn": grant.txn,
                "model": str(grant.model),
                "tier": grant.tier or None,
                "csr_sha256": None if request.csr_s256 is None else jws.unbase64url(request.csr_s256, "csr").hex(),
            },
            actor=actor,
            event="dual-identity-issued" if is_dual else "single-identity-issued",
            request_id=request_id,
            fields=told,
            on_pending=lambda tx, pending: on_pending(tx, pending.id),
            on_signed=check,
            on_issued=record,
        )
        return _answer(result, issued.der, issued.chain[0])

    def answer(self, result: Mapping[str, Any], der: bytes | None) -> dict[str, Any]:
        """The answer for the agent: the kept result and, where there is a certificate, `certificate`: it and its
        issuing CA's as PEM."""
        if der is None:
            return dict(result)
        # a result that was kept may be of the CA before this one
        issuing = self.ca.of_key(aki_of(read_certificate(der))) or self.ca.issuing("agents")
        return _answer(result, der, issuing.certificate)

    async def _issue_wit_alone(
        self,
        grant: Grant,
        actor: Actor,
        request_id: str,
        on_pending: Callable[[Tx, int | None], None],
        on_issued: Callable[[Tx, dict[str, Any]], None],
    ) -> dict[str, Any]:
        def spend(tx: Tx) -> int:
            event = AuditEvent("wit-pending", actor, grant.request.sub, request_id=request_id, fields=grant.hashes)
            log_index = audit.append(tx, event)
            on_pending(tx, None)
            return log_index

        log_index = await self.store.write(spend)
        now = self.clock.now()
        wit = self._seal_wit(grant, now)

        ends = now + timedelta(seconds=min(grant.ttl_seconds, self.wit_seconds))
        result = {**self._result(grant, now, ends, log_index, None), "wit": wit}

        told = {**grant.hashes, "pending": log_index, "wit_s256": jws.s256(wit)}

        def record(tx: Tx) -> None:
            audit.append(tx, AuditEvent("wit-issued", actor, grant.request.sub, request_id=request_id, fields=told))
            on_issued(tx, result)

        await self.store.write(record)
        return result

    def _shape(self, grant: Grant, slot: Slot) -> profiles.Shape:
        request = grant.request
        terms = slot.terms(timedelta(seconds=grant.ttl_seconds))
        extensions: tuple[tuple[x509.UnrecognizedExtension, bool], ...] = ()
        if grant.owner is None:
            earliest = slot.now - timedelta(seconds=self.limits.backdating_seconds)
        else:
            approval = grant.approvals[0]
            earliest = approvals.not_before(approval, slot.now, self.limits)
            registered = grant.owner.key(approval.kid)
            assert registered is not None  # approval.check found it
            dual = DualIdentity(
                owner_id=grant.owner.owner_id,
                owner_key=registered.public_key,
                model=grant.model,
                approval=_inside(approval, is_hash=grant.is_hashed),
                ear_digest=grant.ear_digest,
                log_index=dual_identity.log_index_of(slot.log_index),
                is_by_passkey=approval.sign_count is not None,
            )
            extensions = dual_identity.extensions(dual, self.arc)
        not_before = ceil(max(terms.not_before, slot.not_before, earliest).timestamp())
        return profiles.agent(
            Terms(
                terms.issuer,
                terms.issuer_key_identifier,
                terms.serial,
                datetime.fromtimestamp(min(not_before, int(slot.now.timestamp())), UTC),
                terms.not_after,
                terms.crl_url,
                terms.issuer_url,
            ),
            profiles.name(request.sub.rpartition("/")[2]),
            request.key,
            identifier=request.sub,
            extra_extensions=extensions,
        )

    def _check_certificate(self, grant: Grant, certificate: x509.Certificate) -> None:
        """Verify as a relying party would; raises IssuanceFailed."""
        now = self.clock.now()
        try:
            if grant.owner is None:
                chains.check(certificate, (), self.domain.anchors, at=now, policy=verification.AGENT)
                found = verification.agent_id_of(certificate)
            else:
                report = verification.verify_certificate(
                    certificate,
                    (),
                    self.domain,
                    lambda owner_id: grant.owner if grant.owner and owner_id == grant.owner.owner_id else None,
                    at=now,
                    arc=self.arc,
                    limits=self.limits,
                    ear=grant.ear,
                    approval=grant.approvals[0].token if grant.is_hashed else None,
                )
                found = report.agent_id
        except (BindingError, EstError) as cause:
            raise IssuanceFailed("the finished certificate does not verify") from cause
        if found != grant.request.sub:
            raise IssuanceFailed("the finished certificate names another agent")

    def _seal_wit(self, grant: Grant, now: datetime) -> str:
        """A WIT in digest form, verified as a relying party would; raises IssuanceFailed."""
        request, owner = grant.request, None
        if grant.owner is not None:
            approval = grant.approvals[0]
            registered = grant.owner.key(approval.kid)
            assert registered is not None  # approval.check found it
            owner = WitOwner(grant.owner.owner_id, registered.public_key, grant.model, apv_s256=grant.approvals_s256[0])
        claim = token.owner_claim_of(self.origin.partition("://")[2])
        keys = {self.wit_kid: self.wit_signer.public_key()}
        issued = int(now.timestamp())
        wit = token.seal(
            self.wit_signer,
            kid=self.wit_kid,
            sub=request.sub,
            iss=self.wit_issuer,
            iat=issued,
            exp=issued + min(grant.ttl_seconds, self.wit_seconds),
            jti=secrets.token_urlsafe(16),
            key=request.key,
            owner=owner,
            owner_claim=claim,
        )
        try:
            if grant.owner is None:
                token.unseal(wit, keys, owner_claim=claim)
            else:
                verification.verify_wit(
                    wit,
                    self.domain,
                    lambda owner_id: grant.owner,
                    issuer=self.wit_issuer,
                    issuer_keys=keys,
                    at=now,
                    owner_claim=claim,
                    limits=self.limits,
                )
        except BindingError as cause:
            raise IssuanceFailed("the finished WIT does not verify") from cause
        return wit

    def _result(
        self, grant: Grant, now: datetime, ends: datetime, log_index: int, serial: str | None
    ) -> dict[str, Any]:
        return {
            "txn": grant.txn,
            "sub": grant.request.sub,
            "owner": grant.request.owner,
            "serial": serial,
            "not_after": timestamp(ends),
            "renew_after": timestamp(now + (ends - now) * _RENEW_AT),
            "log_index": log_index,
        }


def _inside(approval: OwnerApproval | StandingApproval, *, is_hash: bool) -> str | bytes:
    return sha256(approval.token.encode("ascii")).digest() if is_hash else approval.token


def timestamp(at: datetime) -> str:
    """RFC 3339, whole seconds, UTC."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _answer(result: Mapping[str, Any], der: bytes, issuing: x509.Certificate) -> dict[str, Any]:
    return {**result, "certificate": _pem(der) + _pem_of(issuing)}


@lru_cache(maxsize=16)
def _pem_of(issuing: x509.Certificate) -> str:
    return issuing.public_bytes(Encoding.PEM).decode("ascii")


def _pem(der: bytes) -> str:
    """PEM of a certificate that was read and checked already (RFC 7468)."""
    text = b64encode(der).decode("ascii")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))
