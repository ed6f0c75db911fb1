"""Trust bundle: what a relying party needs to verify one campus's credentials offline, as a JSON document.

The issuing CA, the server's names, the keys of its WITs, and the owners with their public keys. It is public, and as
old as its `made_at`: whoever must know of revocations asks where those are published.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import jws
from appliance.binding.errors import Malformed
from appliance.binding.facts import OwnerKey, OwnerRecord
from appliance.binding.verify import TrustDomain, read_certificate
from appliance.binding.webauthn import Passkey
from est.chains import TrustAnchors
from est.errors import EstError
from est.transfer import read_json

VERSION = 1
MAX_BYTES = 64 * 1024 * 1024
_STATES = frozenset({"active", "suspended", "revoked"})
_KEY_STATES = frozenset({"active", "suspended", "retired", "revoked"})


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """`issuer` is what WITs name as iss, `wit_keys` are theirs by kid; `arc` is that of the private extensions."""

    domain: TrustDomain
    issuer: str
    wit_keys: Mapping[str, jws.PublicKey]
    arc: str
    backdating_seconds: int
    owners: Mapping[str, OwnerRecord]
    made_at: datetime
    verifier_keys: tuple[ec.EllipticCurvePublicKey, ...] = ()
    """Keys of a verifier elsewhere that signs attestation results for this campus."""


def write(bundle: TrustBundle) -> str:
    """The document, with a final line feed."""
    document = {
        "version": VERSION,
        "origin": bundle.domain.origin,
        "server_id": bundle.domain.server_id,
        "issuer": bundle.issuer,
        "oid_arc": bundle.arc,
        "backdating_seconds": bundle.backdating_seconds,
        "made_at": int(bundle.made_at.timestamp()),
        "anchors": [b64encode(one.public_bytes(Encoding.DER)).decode() for one in bundle.domain.anchors],
        "wit_keys": [{"kid": kid, "jwk": _jwk(key)} for kid, key in bundle.wit_keys.items()],
        "owners": [_write_owner(one) for one in bundle.owners.values()],
    }
    if bundle.verifier_keys:
        document["verifier_keys"] = [jws.jwk(key) for key in bundle.verifier_keys]
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def read(text: str) -> TrustBundle:
    """The bundle in a document; raises Malformed, which names the first member that is wrong."""
    try:
        value = read_json(text.encode(), max_bytes=MAX_BYTES)
    except (EstError, UnicodeEncodeError) as error:
        raise Malformed("the trust bundle is not JSON", object="bundle") from error
    document = _object(value, "the trust bundle")
    if document.get("version") != VERSION:
        raise Malformed(f"the trust bundle has another version than {VERSION}", object="bundle")
    anchors = [_certificate(one) for one in _list(document, "anchors")]
    if not anchors:
        raise Malformed("the trust bundle has no anchor", object="bundle")
    owners: dict[str, OwnerRecord] = {}
    for one in _list(document, "owners"):
        owner = _read_owner(_object(one, "an owner"))
        if owners.setdefault(owner.owner_id, owner) is not owner:
            raise Malformed("an owner stands in the trust bundle twice", object="bundle")
    try:
        trusted = TrustAnchors(anchors)
    except EstError as error:
        raise Malformed(error.detail, object="bundle") from error
    return TrustBundle(
        TrustDomain(_text(document, "origin"), _text(document, "server_id"), trusted),
        _text(document, "issuer"),
        {_text(key, "kid"): jws.read_jwk(key.get("jwk")) for key in map(_key, _list(document, "wit_keys"))},
        _text(document, "oid_arc"),
        _number(document, "backdating_seconds"),
        owners,
        datetime.fromtimestamp(_number(document, "made_at"), UTC),
        _verifier_keys(document),
    )


def _verifier_keys(document: Mapping[str, Any]) -> tuple[ec.EllipticCurvePublicKey, ...]:
    keys = [jws.read_jwk(one) for one in _list(document, "verifier_keys")] if "verifier_keys" in document else []
    found = tuple(key for key in keys if isinstance(key, ec.EllipticCurvePublicKey))
    if len(found) != len(keys):
        raise Malformed("a verifier's key is no elliptic curve key", object="bundle")
    return found


def _write_owner(owner: OwnerRecord) -> dict[str, Any]:
    return {
        "id": owner.owner_id,
        "state": owner.state,
        "kind": owner.kind,
        "keys": [
            {
                "jwk": jws.jwk(key.public_key),
                "state": key.state,
                "protection": key.protection,
                "not_before": None if key.not_before is None else int(key.not_before.timestamp()),
                "not_after": None if key.not_after is None else int(key.not_after.timestamp()),
                **({} if key.passkey is None else {"rp_id": key.passkey.rp_id, "origin": key.passkey.origin}),
            }
            for key in owner.keys
        ],
    }


def _read_owner(value: Mapping[str, Any]) -> OwnerRecord:
    keys = tuple(_read_owner_key(_object(one, "an owner's key")) for one in _list(value, "keys"))
    state = _text(value, "state")
    if state not in _STATES:
        raise Malformed("an owner has no known state", object="bundle")
    return OwnerRecord(_text(value, "id"), keys, state, _text(value, "kind"))


def _read_owner_key(value: Mapping[str, Any]) -> OwnerKey:
    key = jws.read_ec_jwk(value.get("jwk"))
    state = _text(value, "state")
    if state not in _KEY_STATES:
        raise Malformed("an owner's key has no known state", object="bundle")
    protection = _text(value, "protection")
    passkey = Passkey(_text(value, "rp_id"), _text(value, "origin")) if protection == "passkey" else None
    return OwnerKey(
        jws.jkt(key), key, state, protection, _moment(value, "not_before"), _moment(value, "not_after"), passkey
    )


def _jwk(key: jws.PublicKey) -> dict[str, str]:
    assert isinstance(key, ec.EllipticCurvePublicKey)  # the server signs WITs with ES256 or ES384
    return jws.jwk(key)


def _key(value: object) -> Mapping[str, Any]:
    return _object(value, "a key")


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not a JSON object", object="bundle")
    return value


def _list(value: Mapping[str, Any], name: str) -> list[object]:
    found = value.get(name)
    if not isinstance(found, list):
        raise Malformed(f"{name} in the trust bundle is not a list", object="bundle")
    return found


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found:
        raise Malformed(f"{name} in the trust bundle is not a text", object="bundle")
    return found


def _number(value: Mapping[str, Any], name: str) -> int:
    found = value.get(name)
    if type(found) is not int or not 0 <= found < 1 << 37:
        raise Malformed(f"{name} in the trust bundle is not a number", object="bundle")
    return found


def _moment(value: Mapping[str, Any], name: str) -> datetime | None:
    return None if value.get(name) is None else datetime.fromtimestamp(_number(value, name), UTC)


def _certificate(value: object) -> x509.Certificate:
    try:
        if isinstance(value, str):
            return read_certificate(b64decode(value, validate=True))
    except ValueError as error:  # also what is not ASCII
        raise Malformed("an anchor in the trust bundle is not base64", object="bundle") from error
    raise Malformed("an anchor in the trust bundle is not a text", object="bundle")
