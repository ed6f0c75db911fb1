"""What can be wrong with evidence or an attestation result."""

from __future__ import annotations

from appliance.binding.errors.base import BindingError


class EvidenceMissing(BindingError):
    """The composite request has no evidence."""

    reason = "evidence-missing"


class EvidenceWrongProxy(BindingError):
    """The evidence's `iss` is not the proxy that submitted it."""

    reason = "evidence-wrong-proxy"


class EvidenceProfileUnknown(BindingError):
    """`eat_profile` is not ours."""

    reason = "evidence-profile-unknown"


class EvidenceTooOld(BindingError):
    """The evidence was made too long ago; field `limit` in seconds."""

    reason = "evidence-too-old"


class EvidenceExpired(BindingError):
    """The evidence is past its `exp`."""

    reason = "evidence-expired"


class EvidenceNotYetValid(BindingError):
    """The evidence's `iat` lies in the future."""

    reason = "evidence-not-yet-valid"


class EvidenceWindowTooLong(BindingError):
    """The evidence wants to be valid for longer than allowed; field `limit` in seconds."""

    reason = "evidence-window-too-long"


class EvidenceNonceMismatch(BindingError):
    """The evidence was made for another nonce."""

    reason = "evidence-nonce-mismatch"


class EvidenceForOtherRequest(BindingError):
    """The evidence was made for other request bytes."""

    reason = "evidence-for-other-request"


class EvidenceForOtherKey(BindingError):
    """The evidence describes the holder of another key."""

    reason = "evidence-for-other-key"


class EvidenceForOtherOwner(BindingError):
    """The evidence names another owner than the request."""

    reason = "evidence-for-other-owner"


class TpmQuoteInvalid(BindingError):
    """The TPM's quote in the evidence is not that, or not about this request or these registers."""

    reason = "tpm-quote-invalid"


class EarProfileUnknown(BindingError):
    """The attestation result's profile is not the pinned one."""

    reason = "ear-profile-unknown"


class EarWrongVerifier(BindingError):
    """The attestation result names another verifier than the one that we asked."""

    reason = "ear-wrong-verifier"


class EarExpired(BindingError):
    """The attestation result is past its `exp`."""

    reason = "ear-expired"


class EarNotYetValid(BindingError):
    """The attestation result's `iat` lies in the future."""

    reason = "ear-not-yet-valid"


class EarWindowTooLong(BindingError):
    """The attestation result wants to be valid for longer than allowed; field `limit` in seconds."""

    reason = "ear-window-too-long"


class EarNonceMismatch(BindingError):
    """The attestation result is about another nonce."""

    reason = "ear-nonce-mismatch"


class EarInconsistent(BindingError):
    """A status better than its own trustworthiness vector; field `submodule`."""

    reason = "ear-inconsistent"


class EarTooOld(BindingError):
    """The attestation result is older than the question that it should answer."""

    reason = "ear-too-old"


class EarForOtherEvidence(BindingError):
    """The attestation result is not about the evidence that was sent."""

    reason = "ear-for-other-evidence"
