"""What can be wrong with any signed object, claim or identifier."""

from __future__ import annotations

from est.errors import Refusal


class BindingError(Refusal):
    """Base of binding's refusals; abstract."""


class Malformed(BindingError):
    """The bytes are not the object that they should be; field `object`."""

    reason = "malformed"


class SignatureInvalid(BindingError):
    """No key that counts here made this signature."""

    reason = "signature-invalid"


class SignatureFormWrong(BindingError):
    """A passkey's signature by a key that is none, or a plain one by a key that is registered as a passkey."""

    reason = "signature-form-wrong"


class AlgorithmNotAllowed(BindingError):
    """The header names no algorithm, one that is not allowed here, or another one than its key's."""

    reason = "algorithm-not-allowed"


class TokenTypeWrong(BindingError):
    """Signed, but as another type of object; fields `expected`, `found`."""

    reason = "token-type-wrong"


class CriticalHeaderUnknown(BindingError):
    """The header demands an extension that we do not know (RFC 7515, section 4.1.11)."""

    reason = "critical-header-unknown"


class KeyIdMismatch(BindingError):
    """`kid` names another key than the one that signed."""

    reason = "key-id-mismatch"


class PrivateKeyExposed(BindingError):
    """A public key field carries private members: the key is lost, make a new one."""

    reason = "private-key-exposed"


class ClaimMissing(BindingError):
    """A required claim is absent; fields `object`, `claim`."""

    reason = "claim-missing"


class ClaimMalformed(BindingError):
    """A claim has the wrong type or shape; fields `object`, `claim`."""

    reason = "claim-malformed"


class ClaimUnknown(BindingError):
    """A claim that this object does not have, so that no reader could have shown it; fields `object`, `claim`."""

    reason = "claim-unknown"


class TokenIdTooShort(BindingError):
    """`jti` has fewer than 128 bits."""

    reason = "token-id-too-short"


class IdentifierMalformed(BindingError):
    """Not an identifier in canonical form."""

    reason = "identifier-malformed"


class IdentifierKindWrong(BindingError):
    """An identifier of another kind than is due here; fields `expected`, `found`."""

    reason = "identifier-kind-wrong"


class OriginMismatch(BindingError):
    """Scheme and trust domain are not those that the issuer answers for; fields `expected`, `found`."""

    reason = "origin-mismatch"
