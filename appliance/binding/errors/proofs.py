"""What can be wrong with the proof beside a WIT: a workload proof token or an HTTP message signature."""

from __future__ import annotations

from appliance.binding.errors.base import BindingError


class ProofMissing(BindingError):
    """A WIT alone proves nothing: the proof is absent, or not exactly one of it is there."""

    reason = "proof-missing"


class ProofExpired(BindingError):
    """The proof is past its end, or older than is accepted here."""

    reason = "proof-expired"


class ProofNotYetValid(BindingError):
    """The proof was made in the future: one of the clocks is wrong."""

    reason = "proof-not-yet-valid"


class ProofWindowTooLong(BindingError):
    """The proof could be used for longer than is accepted here."""

    reason = "proof-window-too-long"


class ProofWrongAudience(BindingError):
    """The proof is addressed to another target."""

    reason = "proof-wrong-audience"


class ProofForOtherToken(BindingError):
    """The proof names another token than the one beside it, or does not name one that is there; field `token`."""

    reason = "proof-for-other-token"


class ProofReplayed(BindingError):
    """The proof was used before."""

    reason = "proof-replayed"


class SignatureMissing(BindingError):
    """The message has no signature of the kind that is due, or more than one."""

    reason = "http-signature-missing"


class SignatureMalformed(BindingError):
    """The signature fields are not what RFC 9421 describes."""

    reason = "http-signature-malformed"


class ComponentNotSigned(BindingError):
    """A part of the message that must be signed is not; field `component`."""

    reason = "component-not-signed"


class ComponentAbsent(BindingError):
    """The signature covers a part that the message does not have, or has in another form; field `component`."""

    reason = "component-absent"


class ContentDigestMismatch(BindingError):
    """The content is not the one that was signed."""

    reason = "content-digest-mismatch"


class CardNotSigned(BindingError):
    """The agent card has no signature by the agent's key."""

    reason = "card-not-signed"
