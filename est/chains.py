"""Paths from an end-entity certificate to a trust anchor, and what the end entity must be (RFC 5280, section 6).

Path building and signatures are cryptography's; its web defaults refuse device certificates, so the policy given to it
is permissive and everything about the end entity is checked here: usage, purpose, CA flag, key, serial number. There is
no revocation check: that is the caller's, by (key identifier of the issuer, serial number).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.verification import (
    ClientVerifier,
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from est.certificates import (
    aki_of,
    check_readable,
    extensions_of,
    facts_of,
    is_self_signed,
    parts,
    read_certificate,
    ski_of,
)
from est.errors import (
    CertificateOutsideValidity,
    CertificatePurposeWrong,
    ChainNotTrusted,
    ChainTooLong,
    PinMismatch,
)
from est.kept import kept_by_identity
from est.keys import ISSUER_KEYS, SUBJECT_KEYS, KeyRules, public_key_of, spki, spki_sha256

__all__ = [
    "CLIENT",
    "CMC_RA",
    "IDEVID",
    "PINNED_SERVER",
    "REGISTRAR",
    "SERVER",
    "SIGNER",
    "EndEntityPolicy",
    "TrustAnchors",
    "aki_of",
    "check",
    "check_end_entity",
    "check_pin",
    "extensions_of",
    "facts_of",
    "is_self_signed",
    "read_certificate",
    "ski_of",
    "spki_sha256",
]

MAX_CHAIN = 6
SERVER_AUTH, CLIENT_AUTH, CMC_RA = "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.28"
ANY_PURPOSE = "2.5.29.37.0"

_CA_POLICY = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
_EE_POLICY = ExtensionPolicy.permit_all()


@dataclass(frozen=True, slots=True)
class EndEntityPolicy:
    """What the end entity must be, beyond having a path.

    `any_eku`: dotted OIDs of which its extended key usage must name one at least; None = not looked at.
    `all_eku`: dotted OIDs which it must all name. `eku_optional`: no extended key usage at all is as good.
    `require_digital_signature`: a key usage, where there is one, includes digitalSignature.
    `forbid_ca`: basicConstraints, where there is one, says cA false, and keyCertSign is not set.
    """

    any_eku: frozenset[str] | None = None
    all_eku: frozenset[str] = frozenset()
    eku_optional: bool = False
    require_digital_signature: bool = True
    forbid_ca: bool = True
    keys: KeyRules = SUBJECT_KEYS


IDEVID = EndEntityPolicy(require_digital_signature=False)
"""Manufacturers' device certificates: key usage and purpose vary and are not demanded (RFC 8995, section 2.3)."""

SIGNER = EndEntityPolicy()
"""Signers of vouchers and voucher-requests: no purpose is defined for them."""

CLIENT = EndEntityPolicy(any_eku=frozenset({CLIENT_AUTH}))
"""TLS clients with certificates of our own CA."""

SERVER = EndEntityPolicy(any_eku=frozenset({SERVER_AUTH}))
"""TLS servers with certificates of our own CA."""

REGISTRAR = EndEntityPolicy(any_eku=frozenset({CMC_RA}))
"""Signers that act for the domain: registration authorities (RFC 8995, section 5.5.4)."""

PINNED_SERVER = EndEntityPolicy()
"""The far end of a provisional connection: the pin is its identity, so nothing more is asked by default."""

_ISSUER = EndEntityPolicy(require_digital_signature=False, forbid_ca=False, keys=ISSUER_KEYS)


class TrustAnchors:
    """Certificates whose keys are believed: roots, or the issuing CAs of one role alone.

    Raises CertificateMalformed or KeyNotAccepted when one of them cannot be used.
    """

    def __init__(self, certificates: Iterable[x509.Certificate]) -> None:
        self.certificates: tuple[x509.Certificate, ...] = tuple(certificates)
        for one in self.certificates:
            check_readable(one)
            public_key_of(one, ISSUER_KEYS)
        self.key_identifiers: frozenset[bytes] = frozenset(
            identifier for one in self.certificates if (identifier := ski_of(one)) is not None
        )
        self.names: frozenset[x509.Name] = frozenset(one.subject for one in self.certificates)
        self._names_written = frozenset(parts(one).subject for one in self.certificates)
        self.store: Store | None = Store(list(self.certificates)) if self.certificates else None
        self._verifier: tuple[datetime, ClientVerifier] | None = None

    def __len__(self) -> int:
        return len(self.certificates)

    def __iter__(self) -> Iterator[x509.Certificate]:
        return iter(self.certificates)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate names one of these as its issuer."""
        # hashing and comparing a Name of the library costs ten times as much
        return parts(certificate).issuer in self._names_written or facts_of(certificate).issuer in self.names

    def verifier(self, at: datetime) -> ClientVerifier:
        """The library's verifier for this moment, which to it is a whole second; made once for each."""
        assert self.store is not None  # who has no anchors, has refused already
        at = at.replace(microsecond=0)
        kept = self._verifier
        if kept is None or kept[0] != at:
            self._verifier = kept = at, _verifier(self.store, at)
        return kept[1]


def check(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: TrustAnchors,
    *,
    at: datetime,
    policy: EndEntityPolicy,
    ignore_expiry: bool = False,
) -> tuple[x509.Certificate, ...]:
    """The path from `leaf` to one of the anchors at time `at`, both ends included.

    `ignore_expiry` asks for a path that was good at some time (RFC 8995, section 2.6.2: IDevIDs may outlive their
    dates). Raises ChainTooLong, CertificateMalformed, CertificatePurposeWrong, KeyNotAccepted, ChainNotTrusted,
    CertificateOutsideValidity.
    """
    _check_readable((leaf, *intermediates))
    _check_use(leaf, policy)
    try:
        path = _build(leaf, intermediates, anchors, at)
    except ChainNotTrusted as refusal:
        good_once = _build_at_another_time(leaf, intermediates, anchors, at)
        if good_once is None:
            raise
        if not ignore_expiry:
            raise CertificateOutsideValidity("the certificate or its chain is not valid at this time") from refusal
        path = good_once
    for issuer in path[1:]:
        _check_issuer(issuer)
    return path


def check_end_entity(certificate: x509.Certificate, policy: EndEntityPolicy) -> None:
    """Refuse a certificate that does not fit the policy, whoever signed it.

    Raises CertificatePurposeWrong, KeyNotAccepted, CertificateMalformed.
    """
    _check_use(certificate, policy)


def _check_use(certificate: x509.Certificate, policy: EndEntityPolicy) -> None:
    usage, purposes, basic, *_ = facts_of(certificate)
    if not 0 < certificate.serial_number < 1 << 159:
        raise CertificatePurposeWrong("the serial number is not positive or longer than 20 octets")
    public_key_of(certificate, policy.keys)
    if policy.forbid_ca and ((basic is not None and basic.ca) or (usage is not None and usage.key_cert_sign)):
        raise CertificatePurposeWrong("a CA certificate stands where an end entity's is due")
    if policy.require_digital_signature and usage is not None and not usage.digital_signature:
        raise CertificatePurposeWrong("the key usage does not include digitalSignature")
    if purposes is None:
        if not policy.eku_optional and (policy.any_eku is not None or policy.all_eku):
            raise CertificatePurposeWrong("the extended key usage is missing")
    elif (policy.any_eku is not None and not policy.any_eku & purposes) or not policy.all_eku <= purposes:
        raise CertificatePurposeWrong("the extended key usage does not include this use")


@kept_by_identity
def _check_issuer(certificate: x509.Certificate) -> None:
    """The library, given a permissive policy, looks at basicConstraints and the path length, not at the key usage.

    The same few issuers stand in every path, so what passed is remembered.
    """
    _check_use(certificate, _ISSUER)
    usage = facts_of(certificate).key_usage
    if usage is not None and not usage.key_cert_sign:  # RFC 5280, section 6.1.4 (n)
        raise CertificatePurposeWrong("an issuer in the chain may not sign certificates")


def check_pin(
    chain: Sequence[x509.Certificate],
    pin: x509.Certificate,
    *,
    at: datetime | None,
    policy: EndEntityPolicy = PINNED_SERVER,
) -> None:
    """Hold a TLS chain (end entity first) against the pinned-domain-cert (RFC 8995, section 5.6.2).

    The pin's key is the only anchor. It may be the end entity's own (also self-signed), that of a sub CA, or that of
    the root if the chain between is complete. `at` None = no trusted clock: dates are not looked at. No name is
    checked: the pin is the identity. Raises PinMismatch, ChainTooLong, CertificateOutsideValidity,
    CertificatePurposeWrong, KeyNotAccepted, CertificateMalformed.
    """
    if not chain:
        raise PinMismatch("the server presented no certificate")
    _check_readable((*chain, pin))
    leaf = chain[0]
    if spki(leaf) == spki(pin):
        check_end_entity(leaf, EndEntityPolicy(policy.any_eku, policy.all_eku, policy.eku_optional, forbid_ca=False))
        if at is not None and not leaf.not_valid_before_utc <= at <= leaf.not_valid_after_utc:
            raise CertificateOutsideValidity("the pinned certificate is not valid at this time")
        return
    if not _is_ca(pin):
        raise PinMismatch("the pinned certificate is an end entity's and not the server's")
    moment = at if at is not None else leaf.not_valid_before_utc
    try:
        check(leaf, chain[1:], TrustAnchors((pin,)), at=moment, policy=policy, ignore_expiry=at is None)
    except ChainNotTrusted as refusal:
        raise PinMismatch("the server's chain does not lead to the pinned certificate") from refusal


def _check_readable(certificates: Sequence[x509.Certificate]) -> None:
    if len(certificates) > MAX_CHAIN + 1:
        raise ChainTooLong(f"more than {MAX_CHAIN} certificates", limit=MAX_CHAIN)
    for one in certificates:
        check_readable(one)


def _build(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], anchors: TrustAnchors, at: datetime
) -> tuple[x509.Certificate, ...]:
    if anchors.store is None:
        raise ChainNotTrusted("there are no trust anchors for this certificate")
    # Certificates of one name and key that certify each other make hundreds of paths, all of which the library tries.
    # Where none of them can end at an anchor, there is nothing to try.
    if not any(map(anchors.issued, (leaf, *intermediates))) and leaf not in anchors.certificates:
        raise ChainNotTrusted("no certificate of the chain names a trust anchor as its issuer")
    links = _links(intermediates, anchors, at) if intermediates else {}
    at = at.astimezone(UTC)
    verifier = _verifier(Store([*anchors.certificates, *links]), at) if links else anchors.verifier(at)
    try:
        path = tuple(verifier.verify(leaf, list(intermediates)).chain)
    except (VerificationError, ValueError, UnsupportedAlgorithm) as error:
        raise ChainNotTrusted("no path from the certificate to a trust anchor") from error
    return (*path, links[path[-1]]) if links and path[-1] in links else path


def _verifier(store: Store, at: datetime) -> ClientVerifier:
    return (
        PolicyBuilder()
        .store(store)
        .time(at)
        .max_chain_depth(MAX_CHAIN - 1)
        .extension_policies(ee_policy=_EE_POLICY, ca_policy=_CA_POLICY)
        .build_client_verifier()
    )


def _links(
    intermediates: Sequence[x509.Certificate], anchors: TrustAnchors, at: datetime
) -> dict[x509.Certificate, x509.Certificate]:
    """Certificates by which an anchor vouches for another key of its own name, each with that anchor.

    OldWithNew and NewWithOld (RFC 4210, section 4.4) are self-issued and do not count against a path length (RFC 5280,
    section 4.2.1.9). The library counts them; here they stand beside the anchor that signed them, valid when it is.
    """
    found: dict[x509.Certificate, x509.Certificate] = {}
    for one in intermediates:
        if one.subject != one.issuer or one.subject not in anchors.names or not _is_ca(one):
            continue
        for anchor in anchors:
            if one.issuer != anchor.subject or spki(one) == spki(anchor):
                continue
            moment = max(one.not_valid_before_utc, anchor.not_valid_before_utc)
            if not moment <= at <= min(one.not_valid_after_utc, anchor.not_valid_after_utc):
                continue
            with contextlib.suppress(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
                one.verify_directly_issued_by(anchor)
                found[one] = anchor
    return found


def _build_at_another_time(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], anchors: TrustAnchors, at: datetime
) -> tuple[x509.Certificate, ...] | None:
    """A path at any time: if one exists, it also exists at the latest notBefore in it."""
    issuers = {one.issuer for one in (leaf, *intermediates)}
    related = (leaf, *intermediates, *(one for one in anchors if one.subject in issuers))
    if all(one.not_valid_before_utc <= at <= one.not_valid_after_utc for one in related):
        return None  # dates are not what is wrong: do not pay for the search
    for moment in sorted({one.not_valid_before_utc for one in related}, reverse=True)[: 2 * MAX_CHAIN]:
        try:
            return _build(leaf, intermediates, anchors, moment)
        except ChainNotTrusted:
            continue
    return None


def _is_ca(pin: x509.Certificate) -> bool:
    basic = facts_of(pin).basic_constraints
    return basic is not None and basic.ca
