"""Whether a request is linked to the TLS session that brought it (RFC 7030, section 3.5; RFC 7894; RFC 9266).

A request carries the session's channel binding, base64, in challengePassword or in estIdentityLinking. What is there is
checked, each attribute on its own, and all must pass (RFC 7894, section 4): one that is wrong is never made good by
another that is right. A one-time password has an attribute of its own; in challengePassword it is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Callable, Sequence

from est import der as tlv
from est.csr import CHALLENGE_PASSWORD, Csr
from est.csrattrs import IDENTITY_LINKING, OTP_CHALLENGE, REVOCATION_CHALLENGE
from est.errors import BodyMalformed, LinkingFailed

MAX_VALUE = 255
_STRINGS = (tlv.UTF8_STRING, tlv.PRINTABLE_STRING, tlv.IA5_STRING)
_LINKS = {CHALLENGE_PASSWORD: "challengePassword", IDENTITY_LINKING: "estIdentityLinking"}
_EVERY = frozenset((*_LINKS, OTP_CHALLENGE, REVOCATION_CHALLENGE))


def binding_text(channel_binding: bytes) -> bytes:
    """What the attributes carry: base64 of the TLS channel binding (RFC 7030, section 3.5)."""
    return b64encode(channel_binding)


def check(
    csr: Csr,
    bindings: Sequence[bytes],
    *,
    required: bool = False,
    is_password: Callable[[bytes], bool] = lambda _: False,
) -> bool:
    """Whether the request is linked to its session; False where it does not say so and it is not `required`.

    `bindings` are those that the session has: tls-exporter, on TLS 1.2 also tls-unique; empty where none can be relied
    on. `is_password` tells whether a value is the one-time password of this caller. A revocationChallenge must be
    well-formed; it asks for nothing now. Raises LinkingFailed.
    """
    linked = False
    for kind, name in _LINKS.items():
        offered = _value(csr, kind, name)
        if offered is None:
            continue
        if not bindings:
            raise LinkingFailed(f"this TLS session has no channel binding to compare {name} with")
        # all are compared, so that the time says nothing about which one was meant
        if not any([hmac.compare_digest(offered, binding_text(one)) for one in bindings]):
            raise LinkingFailed(f"{name} is not the channel binding of this TLS session")
        linked = True
    password = _value(csr, OTP_CHALLENGE, "otpChallenge")
    if password is not None and not is_password(password):
        raise LinkingFailed("otpChallenge is not the one-time password of this client")
    _value(csr, REVOCATION_CHALLENGE, "revocationChallenge")
    if required and not linked:
        raise LinkingFailed("the request must carry the channel binding of this TLS session in challengePassword")
    return linked


def is_bound(csr: Csr) -> bool:
    """Whether the request carries something that belongs to one session only."""
    return not _EVERY.isdisjoint(csr.attributes)


def asked_sha256(csr: Csr) -> str:
    """What a repeated request is known by, hex (RFC 7030, section 4.2.3).

    Its bytes; but one that is bound to a session is signed anew for the next, and is known by key and names.
    """
    return key_and_names_sha256(csr) if is_bound(csr) else hashlib.sha256(csr.der).hexdigest()


def key_and_names_sha256(csr: Csr) -> str:
    """Digest of the key, the subject and subjectAltName, hex."""
    san = b"" if csr.san_der is None else tlv.tlv(tlv.OCTET_STRING, csr.san_der)
    key = tlv.tlv(tlv.OCTET_STRING, csr.key_sha256)
    return hashlib.sha256(tlv.sequence(key, csr.subject_der, san)).hexdigest()


def _value(csr: Csr, kind: str, name: str) -> bytes | None:
    """The text of an attribute, None without it: one string of at most 255 bytes."""
    values = csr.attributes.get(kind)
    if values is None:
        return None
    try:
        if len(values) == 1:
            tag, start, stop = tlv.read_tlv(values[0], 0, len(values[0]))
            if tag in _STRINGS and stop - start <= MAX_VALUE:
                return values[0][start:stop]
    except BodyMalformed as error:
        raise LinkingFailed(f"{name} cannot be read") from error
    raise LinkingFailed(f"{name} must be one string of at most {MAX_VALUE} bytes")
