"""The SPIFFE bundle of a trust domain: X.509 authorities and WIT keys as a JWK set (SPIFFE Trust Domain and Bundle).

Keys are told apart by `use`: x509-svid with the certificate in x5c, wit-svid with a unique kid, jwt-svid, which we
read over. Only elliptic curve keys count, as everywhere here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import jws
from appliance.binding.errors import Malformed
from appliance.binding.verify import read_certificate
from est.errors import EstError
from est.keys import is_ec
from est.transfer import read_json

MAX_BYTES = 1_048_576
MAX_KEYS = 256


@dataclass(frozen=True, slots=True)
class SpiffeBundle:
    """`authorities` sign X.509 identities, `wit_keys` WITs; None where the bundle says nothing of it."""

    authorities: tuple[x509.Certificate, ...]
    wit_keys: Mapping[str, jws.PublicKey]
    sequence: int | None = None
    refresh_hint_seconds: int | None = None


def write(bundle: SpiffeBundle) -> str:
    """The JWK set, one line."""
    keys: list[dict[str, Any]] = []
    for authority in bundle.authorities:
        key = authority.public_key()
        if not is_ec(key):
            raise Malformed("an authority without an elliptic curve key", object="bundle")
        der = base64.b64encode(authority.public_bytes(Encoding.DER)).decode()
        keys.append({"use": "x509-svid", **jws.jwk(key), "x5c": [der]})
    for kid, key in bundle.wit_keys.items():
        if not is_ec(key):
            raise Malformed("a WIT key that is not on an elliptic curve", object="bundle")
        keys.append({"use": "wit-svid", **jws.jwk(key), "kid": kid})
    document: dict[str, Any] = {"keys": keys}
    if bundle.sequence is not None:
        document["spiffe_sequence"] = bundle.sequence
    if bundle.refresh_hint_seconds is not None:
        document["spiffe_refresh_hint"] = bundle.refresh_hint_seconds
    return json.dumps(document)


def read(text: str) -> SpiffeBundle:
    """The bundle in a JWK set; raises Malformed. Keys of an unknown use are left out, as the standard wants it."""
    try:
        value = read_json(text.encode(), max_bytes=MAX_BYTES)
    except (EstError, UnicodeEncodeError) as error:
        raise Malformed("the bundle is not JSON", object="bundle") from error
    found = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(found, list) or len(found) > MAX_KEYS:
        raise Malformed(f"a bundle has a list of at most {MAX_KEYS} keys", object="bundle")
    authorities: list[x509.Certificate] = []
    wit_keys: dict[str, jws.PublicKey] = {}
    for one in found:
        if not isinstance(one, dict):
            raise Malformed("a key of the bundle is not an object", object="bundle")
        match one.get("use"):
            case "x509-svid":
                authorities.append(_authority(one))
            case "wit-svid" | "jwt-svid" as use:
                kid = one.get("kid")
                if not isinstance(kid, str) or not kid:
                    raise Malformed(f"a {use} key of the bundle has no kid", object="bundle")
                if use == "wit-svid" and wit_keys.setdefault(kid, key := jws.read_jwk(_bare(one))) is not key:
                    raise Malformed("two keys of the bundle have one kid", object="bundle")
            case _:
                continue
    return SpiffeBundle(
        tuple(authorities), wit_keys, _number(value, "spiffe_sequence"), _number(value, "spiffe_refresh_hint")
    )


def _authority(value: Mapping[str, Any]) -> x509.Certificate:
    chain: object = value.get("x5c")
    if not isinstance(chain, Sequence) or isinstance(chain, str) or len(chain) != 1 or not isinstance(chain[0], str):
        raise Malformed("an x509-svid key has exactly one certificate in x5c", object="bundle")
    try:
        certificate = read_certificate(base64.b64decode(chain[0], validate=True))
    except ValueError as error:  # also what is not ASCII
        raise Malformed("x5c is not base64", object="bundle") from error
    if jws.read_jwk(_bare(value)) != certificate.public_key():
        raise Malformed("an x509-svid key is not its certificate's", object="bundle")
    return certificate


def _bare(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value[name] for name in ("kty", "crv", "x", "y", "d", "k", "p") if name in value}


def _number(value: Mapping[str, Any], name: str) -> int | None:
    found = value.get(name)
    if found is None:
        return None
    if type(found) is not int or found < 0:
        raise Malformed(f"{name} of the bundle is not a number", object="bundle")
    return found
