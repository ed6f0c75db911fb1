"""What can be wrong with an agent request, its nonce, its CSR or its renewal proof."""

from __future__ import annotations

from appliance.binding.errors.base import BindingError


class RequestExpired(BindingError):
    """The agent request is past its `exp`."""

    reason = "request-expired"


class RequestNotYetValid(BindingError):
    """The agent request's `iat` lies in the future."""

    reason = "request-not-yet-valid"


class RequestWindowTooLong(BindingError):
    """The agent request wants to be usable for longer than allowed; field `limit` in seconds."""

    reason = "request-window-too-long"


class RequestWrongAudience(BindingError):
    """The agent request is addressed to another server."""

    reason = "request-wrong-audience"


class RequestForOtherAgent(BindingError):
    """The agent request's `sub` is not the identifier reserved with its nonce."""

    reason = "request-for-other-agent"


class NonceUnknown(BindingError):
    """The server never issued this nonce, or has forgotten it."""

    reason = "nonce-unknown"


class NonceExpired(BindingError):
    """The nonce is too old."""

    reason = "nonce-expired"


class NonceSpent(BindingError):
    """The nonce was used before."""

    reason = "nonce-spent"


class NonceForOtherKey(BindingError):
    """The nonce was issued for another agent key."""

    reason = "nonce-for-other-key"


class NonceForOtherPurpose(BindingError):
    """The nonce was issued for another purpose."""

    reason = "nonce-for-other-purpose"


class NonceForOtherProxy(BindingError):
    """The nonce was issued to another submitter."""

    reason = "nonce-for-other-proxy"


class CsrMissing(BindingError):
    """The request asks for a certificate and no CSR came with it."""

    reason = "csr-missing"


class CsrNotExpected(BindingError):
    """A CSR or its hash came although no certificate is asked for."""

    reason = "csr-not-expected"


class CsrMismatch(BindingError):
    """The CSR is not the one whose hash the agent signed."""

    reason = "csr-mismatch"


class CsrKeyMismatch(BindingError):
    """The CSR holds another key than the one that signed the request."""

    reason = "csr-key-mismatch"


class CsrNamesMismatch(BindingError):
    """The CSR's subjectAltName is neither absent nor exactly the agent's identifier."""

    reason = "csr-names-mismatch"


class ModelNotOffered(BindingError):
    """The issuance model of the request is not offered here."""

    reason = "model-not-offered"


class KeyReused(BindingError):
    """The agent's key already belongs to somebody (an owner, a proxy, a CA, another agent)."""

    reason = "key-reuse"


class AgentOwnerMismatch(BindingError):
    """The agent is registered to another owner; an agent's owner never changes."""

    reason = "agent-owner-mismatch"


class RenewalProofMissing(BindingError):
    """purpose `renew` without the proof by the live credential's key."""

    reason = "renewal-proof-missing"


class RenewalProofNotExpected(BindingError):
    """A renewal proof in a request whose purpose is not `renew`."""

    reason = "renewal-proof-not-expected"


class RenewalProofMismatch(BindingError):
    """The renewal proof names another agent, key, nonce or server, or another time; field `claim`."""

    reason = "renewal-proof-mismatch"
