"""What can be wrong with a dual-identity certificate or a WIT."""

from __future__ import annotations

from appliance.binding.errors.base import BindingError


class CertificateNamesWrong(BindingError):
    """Not exactly one URI in subjectAltName, or names of another type beside it."""

    reason = "certificate-names-wrong"


class CertificateUsageWrong(BindingError):
    """The key usage of the certificate is not exactly digitalSignature."""

    reason = "certificate-usage-wrong"


class DualIdentityMissing(BindingError):
    """The credential has no owner data: it is a single identity, which never counts as any owner's."""

    reason = "dual-identity-missing"


class OwnerIdsDiffer(BindingError):
    """The two extensions name different owners, or only one of them is there."""

    reason = "owner-ids-differ"


class ApprovalNotInside(BindingError):
    """The credential holds only a hash of the approval: ask the issuing server."""

    reason = "approval-not-inside"


class ApprovalDigestMismatch(BindingError):
    """The credential's approval hash is not that of the approval at hand."""

    reason = "approval-digest-mismatch"


class EarDigestMismatch(BindingError):
    """The certificate's hash of the attestation result is not that of the result at hand."""

    reason = "ear-digest-mismatch"


class IssuedOutsideApproval(BindingError):
    """The credential's life begins outside the time in which the approval could be used."""

    reason = "issued-outside-approval"


class LifetimeNotApproved(BindingError):
    """The credential lives longer than the owner approved."""

    reason = "lifetime-not-approved"


class ProfileNotApproved(BindingError):
    """The owner did not approve a credential of this kind."""

    reason = "profile-not-approved"


class PackageEntryMissing(BindingError):
    """The evidence package lacks an audit entry that its certificate needs."""

    reason = "package-entry-missing"


class PackageEntryWrong(BindingError):
    """An audit entry of the evidence package does not have its own hash, or is about something else; field `seq`."""

    reason = "package-entry-wrong"


class WitExpired(BindingError):
    """The WIT is past its `exp`."""

    reason = "wit-expired"


class WitNotYetValid(BindingError):
    """The WIT's `iat` lies in the future."""

    reason = "wit-not-yet-valid"


class WitWrongIssuer(BindingError):
    """The WIT's `iss` is not the expected issuer."""

    reason = "wit-wrong-issuer"


class WitHasAudience(BindingError):
    """A WIT has no `aud`; audience belongs to the proof beside it."""

    reason = "wit-has-audience"


class WitKeyWithoutAlgorithm(BindingError):
    """`cnf.jwk` lacks the mandatory `alg`."""

    reason = "wit-key-without-algorithm"
