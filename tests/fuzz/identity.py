"""Fuzz targets of agent identity: every reader of JWS, CMW, EAT, CSR, extension, proof and bundle.

As with vouchers, mutated bytes end at the signature; so one target signs what the fuzzer made as each kind of object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import checkpoint
from appliance.binding import (
    agent_card,
    approval,
    bundle,
    challenge,
    composite,
    dual_identity,
    ear,
    evidence,
    fields,
    http_signature,
    identifier,
    jws,
    possession,
    proof,
    request,
    spiffe_bundle,
    token,
)
from appliance.binding.http_signature import Message
from appliance.identity.routes import read_answer_call, read_nonce_call
from est import csr, der, jose
from tests.appliance.binding.example import AT, EXAMPLE, KEYS, signer
from tests.appliance.binding.test_bundle import example
from tests.support import key

Read = Callable[[bytes], object]
_CLAIM = "campus.example/owner"
_WIT = token.unseal(EXAMPLE["wit_min"], {"ids-2026-01": KEYS["issuer"]}, owner_claim=_CLAIM)
_TARGET = "https://orders.example/v1"
_AGENT = KEYS["agent"]
_JWK: dict[str, object] = {"jwk": jws.jwk(_AGENT, algorithm=True)}
_KID: dict[str, object] = {"kid": jws.jkt(_AGENT)}
_KINDS: tuple[tuple[str, dict[str, object], Callable[[str], object]], ...] = (
    (request.TYP, _JWK, request.unseal),
    (possession.TYP, _JWK, possession.unseal),
    (approval.TYP, _KID, lambda text: approval.unseal(text, _AGENT)),
    (challenge.TYP, _KID, lambda text: challenge.unseal(text, _AGENT)),
    (evidence.TYP, _KID, lambda text: evidence.unseal(text, _AGENT)),
    (ear.TYP, _KID, lambda text: ear.unseal(text, _AGENT)),
    (token.TYP, _KID, lambda text: token.unseal(text, {jws.jkt(_AGENT): _AGENT}, owner_claim=_CLAIM)),
    (checkpoint.TYPE, _KID, lambda text: checkpoint.unseal(text, _AGENT)),
    (proof.TYP, {}, lambda text: proof.check(text, _WIT, target=_TARGET, at=AT, spend=lambda name, until: True)),
)
"""Each kind of signed object: its type, how it names its key, its reader."""


def _text(read: Callable[[str], object]) -> Read:
    return lambda data: read(data.decode("latin-1"))


def _signed(typ: str, header: dict[str, object], read: Callable[[str], object]) -> Read:
    """The payload that the fuzzer made, signed by the agent's key as one kind of object."""
    head = jose.base64url(json.dumps({"alg": "ES256", "typ": typ, **header}).encode())

    def seal_and_read(data: bytes) -> None:
        signing = f"{head}.{jose.base64url(data)}"
        signature = jose.write_ecdsa(signer("agent").sign(signing.encode()), 32)
        read(f"{signing}.{jose.base64url(signature)}")

    return seal_and_read


def _signed_csr(data: bytes) -> None:
    """A request whose contents the fuzzer made, with a good signature by the key that was in the seed."""
    algorithm = der.sequence(der.oid("1.2.840.10045.4.3.2"))
    signature = der.tlv(der.BIT_STRING, b"\x00" + key("csr").sign(data, ec.ECDSA(hashes.SHA256())))
    csr.read(der.sequence(data, algorithm, signature))


def _message(data: bytes) -> None:
    text = data.decode("latin-1")
    first, _, second = text.partition("\n")
    headers = [("Workload-Identity-Token", _WIT.token), ("Signature-Input", first), ("Signature", second)]
    http_signature.verify(Message(headers, b"x", "POST", _TARGET), _AGENT, at=AT, target=_TARGET)


def _cmw(data: bytes) -> None:
    evidence.read_cmw(json.loads(data) if len(data) < 4096 and _is_json(data) else data.decode("latin-1"))


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _message_seed() -> bytes:
    message = Message([("Workload-Identity-Token", _WIT.token)], b"x", "POST", _TARGET)
    created = int(AT.timestamp())
    made = dict(http_signature.sign(message, signer("agent"), created=created, expires=created + 60, nonce="n"))
    return f"{made['Signature-Input']}\n{made['Signature']}".encode()


def _tokens() -> tuple[bytes, ...]:
    return tuple(value.encode() for value in EXAMPLE.values() if isinstance(value, str) and value.startswith("eyJ"))


def _payloads() -> tuple[bytes, ...]:
    found = [jose.unbase64url(one.split(b".")[1]) for one in _tokens()]
    wpt = {"aud": _TARGET, "exp": int((AT + timedelta(minutes=1)).timestamp()), "jti": "J" * 22}
    return (*found, json.dumps({**wpt, "wth": jws.s256(_WIT.token)}).encode())


def _csrs() -> tuple[bytes, ...]:
    made = csr.build(
        subject=x509.Name([]),
        key=key("csr"),
        san=x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://campus.example/agent/a")]),
        challenge_password=b"secret",
    )
    return (made,)


def _infos() -> tuple[bytes, ...]:
    found = []
    for one in _csrs():
        at, end = der.expect(one, 0, len(one), der.SEQUENCE)
        _, stop = der.expect(one, at, end, der.SEQUENCE)
        found.append(one[at:stop])
    return tuple(found)


READS: dict[str, tuple[tuple[Read, ...], tuple[bytes, ...]]] = {
    "tokens": (tuple(_text(read) for _, _, read in _KINDS), _tokens()),
    "claims": (tuple(_signed(*kind) for kind in _KINDS), _payloads()),
    "bodies": (
        (composite.read, read_answer_call, read_nonce_call, _cmw, _text(identifier.read)),
        (
            b'{"request":"a.b.c","approvals":["a.b.c"]}',
            b'["application/eat+jwt","YS5iLmM",4]',
            b'{"jkt":"' + b"A" * 43 + b'","purpose":"issue"}',
            EXAMPLE["agent_id"].encode(),
        ),
    ),
    "extension": (
        (dual_identity.read, dual_identity.read_owner_id),
        (bytes.fromhex(EXAMPLE["dual_identity_ext_der_hex"]), dual_identity.write_owner_id(EXAMPLE["owner_id"])),
    ),
    "csr": ((csr.read, csr.read_unproven), _csrs()),
    "csr-info": ((_signed_csr,), _infos()),
    "http-signature": (
        (_message, _text(lambda text: fields.read_lists(text, "x")), _text(lambda text: fields.read_octets(text, "x"))),
        (_message_seed(), b'a=("@method";req "x");created=1;tag="t";flag', b"a=:AAAA:, b=:BBBB:"),
    ),
    "bundle": (
        (_text(bundle.read), _text(spiffe_bundle.read), agent_card.read),
        (
            bundle.write(example()).encode(),
            b'{"keys":[{"use":"wit-svid","kid":"k","kty":"EC","crv":"P-256","x":"","y":""}],"spiffe_sequence":1}',
        ),
    ),
}
"""Readers and seeds by the name of their target."""

WORDS = tuple(
    f'"{word}"'
    for word in (
        "iss", "sub", "aud", "iat", "exp", "jti", "cnf", "jkt", "jwk", "kid", "wth", "ath", "oth", "rqh", "nonce",
        "model", "purpose",
        "profiles", "ttl", "submods", "eat_nonce", "eat_profile", "ueid", "ear_status", "apv", "apv_s256",
        "x5c", "use", "wit-svid", "x509-svid", "keys", "owners", "anchors", "@method", "@request-target", "@status",
    )
)  # fmt: skip
