"""HTTP message signatures with an agent's key, the proof beside a WIT that covers the message itself (RFC 9421).

The profile is that of draft-ietf-wimse-http-signature: the signature is the one whose tag says so, it covers method,
target, the WIT and whatever else of tokens and content the message carries, and it lives a few minutes. The key
comes from the WIT, so neither keyid nor alg chooses anything; where alg stands, it must be the key's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest
from types import MappingProxyType
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from appliance.binding import fields, jws
from appliance.binding.errors import (
    AlgorithmNotAllowed,
    ComponentAbsent,
    ComponentNotSigned,
    ContentDigestMismatch,
    ProofExpired,
    ProofNotYetValid,
    ProofWindowTooLong,
    ProofWrongAudience,
    SignatureInvalid,
    SignatureMalformed,
    SignatureMissing,
)
from appliance.binding.facts import seconds
from appliance.binding.fields import InnerList, Item
from appliance.binding.proof import audience_of
from est import jose
from est.keys import is_ec
from est.signer import Signer

TAG = "wimse-workload-to-workload"
WIT_FIELD = "workload-identity-token"
LABEL = "wimse"
LONGEST_SECONDS = 300
MAX_COMPONENTS = 32
_TOKEN_FIELDS = (WIT_FIELD, "authorization", "txn-token")
_DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
_ALGORITHMS = {"ES256": "ecdsa-p256-sha256", "ES384": "ecdsa-p384-sha384", "EdDSA": "ed25519"}
_REQUEST_ONLY = frozenset({"@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"})


@dataclass(frozen=True, slots=True)
class Message:
    """A request (`method`, `url` absolute) or, with `status`, the response to `request`; header fields as received."""

    headers: Sequence[tuple[str, str]]
    body: bytes = b""
    method: str = ""
    url: str = ""
    status: int | None = None
    request: Message | None = None

    def field(self, name: str) -> str | None:
        """The field's value: what its lines say, in order, joined by commas (RFC 9421, section 2.1); None if absent."""
        found = [" ".join(value.split()) if "\n" in value else value.strip() for key, value in self.headers
                 if key.lower() == name]  # fmt: skip
        return ", ".join(found) if found else None

    def count(self, name: str) -> int:
        """On how many lines a field stands."""
        return sum(key.lower() == name for key, _ in self.headers)


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that verified: its label, what it covers, its parameters."""

    label: str
    components: tuple[str, ...]
    params: Mapping[str, fields.Bare]


def verify(
    message: Message,
    key: jws.PublicKey,
    *,
    at: datetime,
    target: str = "",
    required: Collection[str] | None = None,
    tag: str | None = TAG,
    label: str | None = None,
    skew_seconds: int = 60,
    longest_seconds: int = LONGEST_SECONDS,
) -> Signed:
    """Verifies the one signature of this tag (and `label`, if given) with the agent's key.

    `required` are components that must be covered beside those that the message itself demands; None = the profile's.
    `target` is our own address: wimse-aud, where it stands, must be that. Replay of a nonce is the caller's to notice.
    Raises SignatureMissing, SignatureMalformed, ComponentNotSigned, ComponentAbsent, ContentDigestMismatch,
    SignatureInvalid, AlgorithmNotAllowed, ProofExpired, ProofNotYetValid, ProofWindowTooLong, ProofWrongAudience.
    """
    name, covered, signature = _find(message, tag, label)
    params = covered.params
    _check_covered(message, covered, required)
    base = signature_base(message, covered)
    _verify(key, base, signature, params.get("alg"))
    _check_time(params, at, skew_seconds, longest_seconds)
    audience = params.get("wimse-aud")
    _check_audience(audience, target)
    if any(one.value == "content-digest" and not one.params for one in covered.items):
        _check_digest(message)
    return Signed(name, tuple(one.write() for one in covered.items), MappingProxyType(dict(params)))


def sign(
    message: Message,
    signer: Signer,
    *,
    created: int,
    expires: int,
    nonce: str,
    target: str = "",
    label: str = LABEL,
    more: Mapping[str, fields.Bare] | None = None,
) -> list[tuple[str, str]]:
    """The header fields that a signed message has in addition: Content-Digest where there is content, and the two of
    the signature. The WIT must be in the message already.
    """
    added: list[tuple[str, str]] = []
    if message.body and message.field("content-digest") is None:
        added.append(("Content-Digest", fields.write_octets("sha-256", hashlib.sha256(message.body).digest())))
    whole = Message(
        [*message.headers, *added], message.body, message.method, message.url, message.status, message.request
    )
    params: dict[str, fields.Bare] = {"created": created, "expires": expires, "nonce": nonce, "tag": TAG}
    if target:
        params["wimse-aud"] = audience_of(target)
    covered = InnerList(tuple(_demanded(whole)), {**params, **(more or {})})
    algorithm = jws.algorithm_of(signer.public_key())
    half = 48 if algorithm == "ES384" else 32
    signature = jose.write_ecdsa(signer.sign(signature_base(whole, covered)), half)
    added += [("Signature-Input", f"{label}={covered.write()}"), ("Signature", fields.write_octets(label, signature))]
    return added


def signature_base(message: Message, covered: InnerList) -> bytes:
    """What is signed (RFC 9421, section 2.5); raises ComponentAbsent, SignatureMalformed."""
    lines, seen = [], set()
    for one in covered.items:
        written = one.write()
        if written in seen:
            raise SignatureMalformed("a component is named twice")
        seen.add(written)
        lines.append(f"{written}: {_value(message, one)}")
    lines.append(f'"@signature-params": {covered.write()}')
    try:
        return "\n".join(lines).encode("ascii")
    except UnicodeEncodeError as error:
        raise SignatureMalformed("a covered part of the message is not ASCII") from error


def _find(message: Message, tag: str | None, label: str | None) -> tuple[str, InnerList, bytes]:
    inputs, values = message.field("signature-input"), message.field("signature")
    if inputs is None or values is None:
        raise SignatureMissing("the message has no signature")
    every, signatures = fields.read_lists(inputs, "Signature-Input"), fields.read_octets(values, "Signature")
    found = [
        name
        for name, one in every.items()
        if (tag is None or one.params.get("tag") == tag) and (label is None or name == label)
    ]
    if len(found) != 1:
        raise SignatureMissing("not exactly one signature of the message is of the kind that is due")
    name = found[0]
    if name not in signatures:
        raise SignatureMissing("Signature lacks what Signature-Input names")
    if len(every[name].items) > MAX_COMPONENTS:
        raise SignatureMalformed(f"a signature covers at most {MAX_COMPONENTS} components")
    return name, every[name], signatures[name]


def _demanded(message: Message) -> list[Item]:
    """What the profile wants covered of this message."""
    names = ["@status"] if message.status is not None else ["@method", "@request-target"]
    names += [name for name in _TOKEN_FIELDS if message.count(name)]
    if message.body:
        names += ["content-type"] if message.count("content-type") else []
        names += ["content-digest"]
    items = [Item(name, {}) for name in names]
    if message.status is not None and message.request is not None:
        items += [Item(name, {"req": True}) for name in ("@method", "@request-target")]
    return items


def _check_covered(message: Message, covered: InnerList, required: Collection[str] | None) -> None:
    if message.count(WIT_FIELD) != 1:
        raise SignatureMalformed("not exactly one Workload-Identity-Token is there")
    here = {one.write() for one in covered.items}
    wanted = [one.write() for one in _demanded(message)] if required is None else list(required)
    if message.body and required is not None:
        wanted.append('"content-digest"')
    for one in wanted:
        if one not in here:
            raise ComponentNotSigned(f"the signature does not cover {one}", component=one)


def _value(message: Message, item: Item) -> str:
    source = message
    if item.params:
        if dict(item.params) != {"req": True} or message.request is None:
            raise ComponentAbsent("a component has parameters that are not known here", component=item.value)
        source = message.request
    name = item.value
    if not name.startswith("@"):
        value = source.field(name) if name == name.lower() else None
        if value is None or "\n" in value or "\r" in value:
            raise ComponentAbsent(f"the message has no {name}", component=name)
        return value
    if name == "@status" and source.status is not None:
        return str(source.status)
    if name in _REQUEST_ONLY and source.status is None:
        return _request_value(source, name)
    raise ComponentAbsent(f"the message has no {name}", component=name)


def _request_value(message: Message, name: str) -> str:
    try:
        parts = urlsplit(message.url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise SignatureMalformed("the target of the request is not a URL") from error
    authority = f"[{host}]" if ":" in host else host
    if port is not None and (parts.scheme.lower(), port) not in (("https", 443), ("http", 80)):
        authority += f":{port}"
    path = parts.path or "/"
    query = f"?{parts.query}" if parts.query else "?"
    return {
        "@method": message.method,
        "@target-uri": message.url,
        "@authority": authority,
        "@scheme": parts.scheme.lower(),
        "@request-target": path + (f"?{parts.query}" if parts.query else ""),
        "@path": path,
        "@query": query,
    }[name]


def _verify(key: jws.PublicKey, base: bytes, signature: bytes, named: object) -> None:
    algorithm = jws.algorithm_of(key)
    try:
        if is_ec(key):
            half = 48 if algorithm == "ES384" else 32
            if len(signature) != 2 * half:
                raise SignatureInvalid(f"a signature by this key has {2 * half} octets")
            digest = hashes.SHA384() if algorithm == "ES384" else hashes.SHA256()
            key.verify(jose.read_ecdsa(signature, half), base, ec.ECDSA(digest))
        else:
            assert isinstance(key, ed25519.Ed25519PublicKey)  # algorithm_of knows no third kind
            key.verify(signature, base)
    except InvalidSignature as error:
        raise SignatureInvalid("the signature does not verify") from error
    if named is not None and named != _ALGORITHMS[algorithm]:
        raise AlgorithmNotAllowed("alg is not the key's", allowed=[_ALGORITHMS[algorithm]])


def _check_time(params: Mapping[str, fields.Bare], at: datetime, skew_seconds: int, longest_seconds: int) -> None:
    created, expires, now = params.get("created"), params.get("expires"), seconds(at)
    if type(created) is not int or (expires is not None and type(expires) is not int):
        raise SignatureMalformed("created and expires are whole numbers")
    if created > now + skew_seconds:
        raise ProofNotYetValid("the signature was made in the future")
    if now > created + longest_seconds + skew_seconds:
        raise ProofExpired("the signature is too old")
    if isinstance(expires, int):
        if now > expires + skew_seconds:
            raise ProofExpired("the signature has expired")
        if expires - created > longest_seconds + skew_seconds:
            raise ProofWindowTooLong(f"usable for more than {longest_seconds} s", limit=longest_seconds)


def _check_audience(audience: fields.Bare | None, target: str) -> None:
    if audience is None:
        return
    if not isinstance(audience, str) or not target or audience_of(audience) != audience_of(target):
        raise ProofWrongAudience("the signature is addressed to another target")


def _check_digest(message: Message) -> None:
    found = fields.read_octets(message.field("content-digest") or "", "Content-Digest")
    known = {name: octets for name, octets in found.items() if name in _DIGESTS}
    if not known:
        raise ContentDigestMismatch("Content-Digest has no algorithm that is known here")
    for name, octets in known.items():
        if not compare_digest(octets, _DIGESTS[name](message.body).digest()):
            raise ContentDigestMismatch(f"the content has another {name}")
