"""Signed A2A agent cards: a JWS by the agent's key over the canonical card (RFC 7515 detached, RFC 8785).

The card describes an agent; it is no proof of identity. Whose key signed it, the credential says: `kid` is the key's
thumbprint, and a card counts only beside a certificate or WIT with that key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rfc8785

from appliance.binding import jws
from appliance.binding.errors import BindingError, CardNotSigned, Malformed
from est import jose
from est.errors import EstError
from est.signer import Signer
from est.transfer import read_json

TYP = "JOSE"
MAX_BYTES = 262_144
MAX_SIGNATURES = 8
_SIGNATURES = "signatures"


def sign(card: Mapping[str, Any], signer: Signer) -> dict[str, Any]:
    """The card with one signature more, by this key; Malformed for a card that has no canonical form."""
    algorithm = jws.algorithm_of(signer.public_key())
    protected = jws.base64url(_canonical({"alg": algorithm, "typ": TYP, "kid": jws.jkt(signer.public_key())}))
    signed = f"{protected}.{jws.base64url(_payload(card))}".encode("ascii")
    signature = jws.base64url(jose.write_ecdsa(signer.sign(signed), 48 if algorithm == "ES384" else 32))
    others = card.get(_SIGNATURES, [])
    if not isinstance(others, list) or len(others) >= MAX_SIGNATURES:
        raise Malformed(f"a card has a list of at most {MAX_SIGNATURES} signatures", object="agent card")
    return {**card, _SIGNATURES: [*others, {"protected": protected, "signature": signature}]}


def verify(card: Mapping[str, Any], key: jws.PublicKey) -> None:
    """Refuses (CardNotSigned) a card that this key did not sign; others may have signed it too. Raises Malformed."""
    payload = jws.base64url(_payload(card))
    found = card.get(_SIGNATURES)
    if not isinstance(found, list) or len(found) > MAX_SIGNATURES:
        raise CardNotSigned(f"the card has no list of at most {MAX_SIGNATURES} signatures")
    for one in found:
        protected, signature = (one.get("protected"), one.get("signature")) if isinstance(one, dict) else (None, None)
        if not isinstance(protected, str) or not isinstance(signature, str):
            continue
        try:
            jws.read(f"{protected}.{payload}.{signature}", max_bytes=2 * MAX_BYTES).check(
                typ=TYP, key=key, algorithms=jws.FOREIGN_ALGORITHMS
            )
        except BindingError:
            continue
        return
    raise CardNotSigned("no signature of the card was made by the agent's key")


def read(octets: bytes) -> dict[str, Any]:
    """The card in a JSON document; raises Malformed."""
    try:
        value = read_json(octets, max_bytes=MAX_BYTES)
    except EstError as error:
        raise Malformed(f"the agent card is not acceptable JSON: {error.detail}", object="agent card") from error
    if not isinstance(value, dict):
        raise Malformed("an agent card is an object", object="agent card")
    return value


def _payload(card: Mapping[str, Any]) -> bytes:
    return _canonical({name: value for name, value in card.items() if name != _SIGNATURES})


def _canonical(value: Mapping[str, Any]) -> bytes:
    try:
        return bytes(rfc8785.dumps(dict(value)))
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise Malformed("the agent card has no canonical form", object="agent card") from error
