"""Offline verification of a dual-identity certificate or WIT, by any relying party, in one fixed order.

What is needed besides the credential: the issuing server's anchors and name, and a registry of owners' keys. What is
not looked at: revocation, and the owner's department; both belong to the moment of use.

One step stands where no verifier can avoid it: whether the owner's key was valid at the approval's `iat` is asked after
the approval's signature was verified, because before that its `iat` is nobody's word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hmac import compare_digest

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import approval as approvals
from appliance.binding import dual_identity, jws, token
from appliance.binding.approval import OwnerApproval
from appliance.binding.errors import (
    ApprovalDenied,
    ApprovalDigestMismatch,
    ApprovalForOtherAgent,
    ApprovalForOtherKey,
    ApprovalForOtherModel,
    ApprovalNotInside,
    ApprovalWrongAudience,
    ApprovalWrongOwner,
    CertificateNamesWrong,
    CertificateUsageWrong,
    DualIdentityMissing,
    EarDigestMismatch,
    IssuedOutsideApproval,
    LifetimeNotApproved,
    Malformed,
    OwnerKeyUnknown,
    OwnerUnknown,
    ProfileNotApproved,
    SelfApproval,
    SignatureInvalid,
    WitExpired,
    WitNotYetValid,
    WitWrongIssuer,
)
from appliance.binding.facts import Limits, Model, OwnerKey, OwnerRecord, seconds
from appliance.binding.identifier import Kind, read_kind
from est import chains
from est.chains import EndEntityPolicy, TrustAnchors
from est.errors import CertificateMalformed, EstError, Refusal
from est.keys import public_key_of

Owners = Callable[[str], OwnerRecord | None]

AGENT = EndEntityPolicy(all_eku=frozenset({chains.CLIENT_AUTH, chains.SERVER_AUTH}))
"""An agent's certificate names both purposes, as an X509-SVID with an extended key usage must."""

_SIGNS_ONLY = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """An issuer that a relying party knows: the origin chooses these anchors, nothing in a credential does."""

    origin: str
    server_id: str
    anchors: TrustAnchors = field(repr=False)


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified, step by step, and who the credential is about."""

    steps: tuple[tuple[str, str], ...]
    """Name of each step in its order, and what it found."""
    agent_id: str
    owner_id: str
    owner_key_jkt: str
    model: Model
    approval: OwnerApproval | None
    """None for a WIT in digest form that was verified without the approval beside it."""


class _Steps:
    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """One step: what it finds goes into the report, what it refuses carries its name (field `step`)."""
        found = ""

        def find(text: str) -> None:
            nonlocal found
            found = text

        try:
            yield find
        except Refusal as refusal:
            refusal.fields.setdefault("step", name)
            raise
        self.done.append((name, found))


def read_certificate(der: bytes) -> x509.Certificate:
    """A certificate from DER; raises Malformed."""
    try:
        return chains.read_certificate(der)
    except EstError as error:
        raise Malformed(error.detail, object="certificate") from error


def verify_certificate(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    domain: TrustDomain,
    owners: Owners,
    *,
    at: datetime,
    arc: str = dual_identity.ARC,
    limits: Limits | None = None,
    ear: str | None = None,
) -> Report:
    """Verifies a dual-identity certificate with nothing but itself, the domain's anchors and the owners' keys.

    `owners` looks an owner up by identifier; `ear`, where at hand, must be the attestation result that the certificate
    names. Raises the leaf for the first thing that is wrong (field `step`), also est's for the chain.
    """
    limits = limits or Limits()
    steps = _Steps()
    with steps.step("chain") as find:
        path = _check_chain(leaf, intermediates, domain, at)
        _check_usage(leaf)
        find(" <- ".join(one.subject.rfc4514_string() for one in path))
    with steps.step("name") as find:
        agent_id = agent_id_of(leaf)
        read_kind(agent_id, Kind.AGENT, origin=domain.origin)
        find(agent_id)
    with steps.step("extension") as find:
        dual = dual_identity.of_certificate(leaf, arc)
        if dual is None:
            raise DualIdentityMissing("the certificate names no owner")
        if ear is not None and not compare_digest(hashlib.sha256(ear.encode("ascii")).digest(), dual.ear_digest or b""):
            raise EarDigestMismatch("the certificate names another attestation result")
        find(dual.owner_id)
    with steps.step("owner") as find:
        registered = _registered(owners(dual.owner_id), dual.owner_id, dual.owner_key)
        find(registered.jkt)
    with steps.step("approval") as find:
        if not isinstance(dual.approval, str):
            raise ApprovalNotInside("ask the issuing server for the approval", sha256=dual.approval.hex())
        approval = approvals.unseal(dual.approval, registered.public_key, kid=registered.jkt)
        registered.check(approval.iat, software_allowed=limits.software_owner_keys)
        find(approval.jti)
    with steps.step("binding") as find:
        key = public_key_of(leaf)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ApprovalForOtherKey("owners approve elliptic curve keys only")
        start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        _check_approval(
            approval,
            domain,
            limits,
            owner_id=dual.owner_id,
            subject=agent_id,
            jkt=jws.jkt(key),
            model=dual.model,
            profile="x509",
            start=seconds(start),
            lifetime_seconds=(end - start).total_seconds() - limits.backdating_seconds,
        )
        find(f"{(end - start).total_seconds():.0f} s of {approval.ttl} s approved")
    return Report(tuple(steps.done), agent_id, dual.owner_id, registered.jkt, dual.model, approval)


def verify_wit(
    text: str,
    domain: TrustDomain,
    owners: Owners,
    *,
    issuer: str,
    issuer_keys: Mapping[str, jws.PublicKey],
    at: datetime,
    owner_claim: str | None = None,
    limits: Limits | None = None,
    approval: str | None = None,
) -> Report:
    """Verifies a dual-identity WIT; in digest form `approval` may bring what the digest stands for.

    `issuer_keys` are the domain's WIT keys by kid. Not a proof: the presenter must still prove the key in `cnf`.
    """
    limits = limits or Limits()
    steps = _Steps()
    with steps.step("signature") as find:
        trust_domain = domain.origin.partition("://")[2]
        wit = token.unseal(text, issuer_keys, owner_claim=owner_claim or token.owner_claim_of(trust_domain))
        find(wit.kid)
    with steps.step("time and issuer") as find:
        if wit.iss != issuer:
            raise WitWrongIssuer("the WIT names another issuer")
        if wit.iat > seconds(at) + limits.skew_seconds:
            raise WitNotYetValid("the WIT was issued in the future")
        if seconds(at) > wit.exp + limits.skew_seconds:
            raise WitExpired("the WIT has expired")
        find(issuer)
    with steps.step("name") as find:
        read_kind(wit.sub, Kind.AGENT, origin=domain.origin)
        find(wit.sub)
    with steps.step("owner") as find:
        if wit.owner is None:
            raise DualIdentityMissing("the WIT names no owner")
        registered = _registered(owners(wit.owner.sub), wit.owner.sub, wit.owner.key)
        find(wit.owner.sub)
    with steps.step("approval") as find:
        whole = wit.owner.apv if wit.owner.apv is not None else approval
        if wit.owner.apv_s256 is not None and whole is not None and jws.s256(whole) != wit.owner.apv_s256:
            raise ApprovalDigestMismatch("the WIT names another approval")
        opened = None
        if whole is not None:
            opened = approvals.unseal(whole, registered.public_key, kid=registered.jkt)
            registered.check(opened.iat, software_allowed=limits.software_owner_keys)
        find(opened.jti if opened else "by digest, not resolved")
    with steps.step("binding"):
        if opened is not None:
            if not isinstance(wit.key, ec.EllipticCurvePublicKey):
                raise ApprovalForOtherKey("owners approve elliptic curve keys only")
            _check_approval(
                opened,
                domain,
                limits,
                owner_id=wit.owner.sub,
                subject=wit.sub,
                jkt=jws.jkt(wit.key),
                model=wit.owner.model,
                profile="wit",
                start=wit.iat,
                lifetime_seconds=wit.exp - wit.iat,
            )
    return Report(tuple(steps.done), wit.sub, wit.owner.sub, registered.jkt, wit.owner.model, opened)


def agent_id_of(certificate: x509.Certificate) -> str:
    """The one URI in subjectAltName, beside which no other name may stand; raises CertificateNamesWrong, Malformed.

    Generic libraries accept two URIs, so this is where the second identity is refused.
    """
    try:
        found = [
            one.value for one in chains.extensions_of(certificate) if isinstance(one.value, x509.SubjectAlternativeName)
        ]
    except CertificateMalformed as error:
        raise Malformed(error.detail, object="certificate") from error
    names = list(found[0]) if found else []
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise CertificateNamesWrong("subjectAltName is not exactly one URI")
    return names[0].value


def _check_chain(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], domain: TrustDomain, at: datetime
) -> tuple[x509.Certificate, ...]:
    try:
        return chains.check(leaf, intermediates, domain.anchors, at=at, policy=AGENT)
    except EstError as refusal:
        # tell what nobody signed from what was signed and does not fit
        issuers = (*intermediates, *domain.anchors)
        if not any(_is_signed_by(leaf, issuer) for issuer in issuers):
            raise SignatureInvalid("no CA that counts here signed this certificate") from refusal
        raise


def _check_usage(leaf: x509.Certificate) -> None:
    """digitalSignature and nothing else; an X509-SVID also must not sign CRLs."""
    found = [one.value for one in chains.extensions_of(leaf) if isinstance(one.value, x509.KeyUsage)]
    if found != [_SIGNS_ONLY]:
        raise CertificateUsageWrong("the key usage is not exactly digitalSignature")


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        key, digest = issuer.public_key(), certificate.signature_hash_algorithm
        if not isinstance(key, ec.EllipticCurvePublicKey) or digest is None:
            return False
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(digest))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _registered(owner: OwnerRecord | None, owner_id: str, key: ec.EllipticCurvePublicKey) -> OwnerKey:
    if owner is None or owner.owner_id != owner_id:
        raise OwnerUnknown("this owner is not in the registry")
    owner.check_active()
    registered = owner.key(jws.jkt(key))
    if registered is None or registered.public_key != key:
        raise OwnerKeyUnknown("the owner key in the credential is not one that the registry knows")
    return registered


def _check_approval(
    approval: OwnerApproval,
    domain: TrustDomain,
    limits: Limits,
    *,
    owner_id: str,
    subject: str,
    jkt: str,
    model: Model,
    profile: str,
    start: float,
    lifetime_seconds: float,
) -> None:
    if approval.iss != owner_id:
        raise ApprovalWrongOwner("the approval comes from another owner")
    if approval.sub != subject:
        raise ApprovalForOtherAgent("the approval names another agent")
    if approval.jkt != jkt:
        raise ApprovalForOtherKey("the approval binds another agent key")
    if approval.kid == jkt:
        raise SelfApproval("the approval is signed by the agent's own key")
    if approval.aud != domain.server_id:
        raise ApprovalWrongAudience("the approval is addressed to another server")
    if approval.model != model:
        raise ApprovalForOtherModel("the approval was given for another issuance model")
    if approval.is_denial:
        raise ApprovalDenied("the owner said no")
    if profile not in approval.profiles:
        raise ProfileNotApproved(f"the owner did not approve a credential of the kind {profile}", profile=profile)
    if not approval.iat - limits.skew_seconds <= start <= approval.exp + limits.skew_seconds:
        raise IssuedOutsideApproval("the credential's life begins when the approval could not be used")
    if lifetime_seconds > approval.ttl:
        raise LifetimeNotApproved("the credential lives longer than the owner approved")
