"""Offline verification of a dual-identity certificate or WIT, by any relying party, in one fixed order.

What is needed besides the credential: the issuing server's anchors and name, and a registry of owners' keys. What is
not looked at: revocation, and the owner's department; both belong to the moment of use.

One step stands where no verifier can avoid it: whether the owner's key was valid at the approval's `iat` is asked after
the approval's signature was verified, because before that its `iat` is nobody's word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hmac import compare_digest
from types import TracebackType
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import approval as approvals
from appliance.binding import dual_identity, jws, standing, token
from appliance.binding.approval import OwnerApproval
from appliance.binding.dual_identity import DualIdentity
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
    SignatureFormWrong,
    SignatureInvalid,
    WitExpired,
    WitNotYetValid,
    WitWrongIssuer,
)
from appliance.binding.facts import Limits, Model, OwnerKey, OwnerRecord, seconds
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.standing import StandingApproval
from est import chains
from est.chains import EndEntityPolicy, TrustAnchors
from est.errors import CertificateMalformed, EstError, Refusal
from est.keys import is_ec, public_key_of

AnyApproval = OwnerApproval | StandingApproval
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


class Report(NamedTuple):
    """What was verified, step by step, and who the credential is about."""

    found: tuple[tuple[str, str | Callable[[], str]], ...]
    """`steps` before anybody asks for them."""
    agent_id: str
    owner_id: str
    owner_key_jkt: str
    model: Model
    approval: AnyApproval | None
    """None for a WIT in digest form that was verified without the approval beside it."""

    @property
    def steps(self) -> tuple[tuple[str, str], ...]:
        """Name of each step in its order, and what it found."""
        return tuple((name, text if isinstance(text, str) else text()) for name, text in self.found)


class _Steps:
    """The steps so far; inside `with`, a refusal carries the name of the step under way (field `step`)."""

    def __init__(self) -> None:
        self._name = ""
        self.found: list[tuple[str, str | Callable[[], str]]] = []

    def begin(self, name: str) -> None:
        self._name = name

    def end(self, found: str | Callable[[], str] = "") -> None:
        self.found.append((self._name, found))

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Refusal):
            error.fields.setdefault("step", self._name)


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
    approval: str | None = None,
) -> Report:
    """Verifies a dual-identity certificate with nothing but itself, the domain's anchors and the owners' keys.

    `owners` looks an owner up by identifier. `ear`, where at hand, must be the attestation result that the certificate
    names, `approval` the one whose hash it holds. Raises the leaf for the first thing that is wrong
    (field `step`), also est's for the chain.
    """
    limits = limits or Limits()
    steps = _Steps()
    with steps:
        steps.begin("chain")
        path = _check_chain(leaf, intermediates, domain, at)
        _check_usage(leaf)
        steps.end(lambda: " <- ".join(one.subject.rfc4514_string() for one in path))
        steps.begin("name")
        agent_id = agent_id_of(leaf)
        read_kind(agent_id, Kind.AGENT, origin=domain.origin)
        steps.end(agent_id)
        steps.begin("extension")
        dual = dual_identity.of_certificate(leaf, arc)
        if dual is None:
            raise DualIdentityMissing("the certificate names no owner")
        if ear is not None and not compare_digest(hashlib.sha256(ear.encode("ascii")).digest(), dual.ear_digest or b""):
            raise EarDigestMismatch("the certificate names another attestation result")
        steps.end(dual.owner_id)
        steps.begin("owner")
        read_kind(dual.owner_id, Kind.OWNER, origin=domain.origin)  # a campus speaks for its own owners alone
        registered = _registered(owners(dual.owner_id), dual.owner_id, dual.owner_key)
        steps.end(registered.jkt)
        steps.begin("approval")
        if isinstance(dual.approval, bytes) and approval is None:
            raise ApprovalNotInside("ask the issuing server for the approval", sha256=dual.approval.hex())
        if dual.is_by_passkey != (registered.passkey is not None):
            raise SignatureFormWrong("the certificate names another form of approval than the owner's key has")
        opened = _open_approval(dual, approval, registered)
        registered.check(opened.iat, software_allowed=limits.software_owner_keys)
        steps.end(opened.jti)
        steps.begin("binding")
        key = public_key_of(leaf)
        if not is_ec(key):
            raise ApprovalForOtherKey("owners approve elliptic curve keys only")
        start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        lifetime = (end - start).total_seconds()
        _check_approval(
            opened,
            domain,
            limits,
            owner_id=dual.owner_id,
            subject=agent_id,
            jkt=jws.jkt(key),
            model=dual.model,
            profile="x509",
            start=seconds(start),
            lifetime_seconds=lifetime - limits.backdating_seconds,
        )
        steps.end(f"{lifetime:.0f} s of {opened.ttl} s approved")
    return Report(tuple(steps.found), agent_id, dual.owner_id, registered.jkt, dual.model, opened)


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
    with steps:
        steps.begin("signature")
        trust_domain = domain.origin.partition("://")[2]
        wit = token.unseal(text, issuer_keys, owner_claim=owner_claim or token.owner_claim_of(trust_domain))
        steps.end(wit.kid)
        steps.begin("time and issuer")
        now = seconds(at)
        if wit.iss != issuer:
            raise WitWrongIssuer("the WIT names another issuer")
        if wit.iat > now + limits.skew_seconds:
            raise WitNotYetValid("the WIT was issued in the future")
        if now > wit.exp + limits.skew_seconds:
            raise WitExpired("the WIT has expired")
        steps.end(issuer)
        steps.begin("name")
        read_kind(wit.sub, Kind.AGENT, origin=domain.origin)
        steps.end(wit.sub)
        steps.begin("owner")
        if wit.owner is None:
            raise DualIdentityMissing("the WIT names no owner")
        read_kind(wit.owner.sub, Kind.OWNER, origin=domain.origin)
        registered = _registered(owners(wit.owner.sub), wit.owner.sub, wit.owner.key)
        steps.end(wit.owner.sub)
        steps.begin("approval")
        whole = wit.owner.apv if wit.owner.apv is not None else approval
        if wit.owner.apv_s256 is not None and whole is not None and jws.s256(whole) != wit.owner.apv_s256:
            raise ApprovalDigestMismatch("the WIT names another approval")
        opened = None
        if whole is not None:
            opened = _unseal(whole, wit.owner.model, registered)
        # the approval came before the WIT, so where it is not at hand, a key that is revoked is refused all the same
        registered.check(opened.iat if opened else wit.iat, software_allowed=limits.software_owner_keys)
        steps.end(opened.jti if opened else "by digest, not resolved")
        steps.begin("binding")
        if opened is not None:
            if not is_ec(wit.key):
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
        steps.end()
    return Report(tuple(steps.found), wit.sub, wit.owner.sub, registered.jkt, wit.owner.model, opened)


def agent_id_of(certificate: x509.Certificate) -> str:
    """The one URI in subjectAltName, beside which no other name may stand; raises CertificateNamesWrong, Malformed.

    Generic libraries accept two URIs, so this is where the second identity is refused.
    """
    try:
        names = chains.facts_of(certificate).names
    except CertificateMalformed as error:
        raise Malformed(error.detail, object="certificate") from error
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
    if chains.facts_of(leaf).key_usage != _SIGNS_ONLY:
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
    registered = next((one for one in owner.keys if one.public_key == key), None)
    if registered is None:
        raise OwnerKeyUnknown("the owner key in the credential is not one that the registry knows")
    return registered


def _open_approval(dual: DualIdentity, beside: str | None, registered: OwnerKey) -> AnyApproval:
    """The approval in the certificate, or the one beside it whose hash the certificate holds."""
    if isinstance(dual.approval, str):
        return _unseal(dual.approval, dual.model, registered)
    whole = beside or ""
    if not compare_digest(hashlib.sha256(whole.encode()).digest(), dual.approval):
        raise ApprovalDigestMismatch("the certificate names another approval")
    return _unseal(whole, dual.model, registered)


def _unseal(token: str, model: Model, registered: OwnerKey) -> AnyApproval:
    if model is Model.STANDING:
        return standing.unseal(token, registered.public_key, kid=registered.jkt, passkey=registered.passkey)
    return approvals.unseal(token, registered.public_key, kid=registered.jkt, passkey=registered.passkey)


def _check_approval(
    approval: AnyApproval,
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
    if isinstance(approval, OwnerApproval) and approval.jkt != jkt:
        raise ApprovalForOtherKey("the approval binds another agent key")
    if approval.kid == jkt:
        raise SelfApproval("the approval is signed by the agent's own key")
    if approval.aud != domain.server_id:
        raise ApprovalWrongAudience("the approval is addressed to another server")
    if isinstance(approval, OwnerApproval) and approval.model != model:
        raise ApprovalForOtherModel("the approval was given for another issuance model")
    if isinstance(approval, OwnerApproval) and approval.is_denial:
        raise ApprovalDenied("the owner said no")
    if profile not in approval.profiles:
        raise ProfileNotApproved(f"the owner did not approve a credential of the kind {profile}", profile=profile)
    if not approval.iat - limits.skew_seconds <= start <= approval.exp + limits.skew_seconds:
        raise IssuedOutsideApproval("the credential's life begins when the approval could not be used")
    if lifetime_seconds > approval.ttl:
        raise LifetimeNotApproved("the credential lives longer than the owner approved")
    if isinstance(approval, StandingApproval) and start + lifetime_seconds > approval.exp + limits.skew_seconds:
        raise LifetimeNotApproved("the credential outlives the standing approval")
