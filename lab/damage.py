"""What the knobs of lab.misbehave do to a voucher, to an audit log and to an answer; nothing here knows a socket."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from asn1crypto import cms as asn1
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from brski import leaves, paths, sealed, voucher, voucher_request
from brski.masa import Grant
from est import jose
from est.exchange import Reply
from est.signer import Signer
from lab.certificates import Identity

Knobs = Mapping[str, str]
MEBI = 1 << 20


@dataclass(frozen=True, slots=True)
class Signing:
    """Who signs: the MASA's own key or the one for lasting vouchers, and somebody whom no device knows."""

    own: tuple[Signer, tuple[x509.Certificate, ...]]
    foreign: Identity

    def of(self, knobs: Knobs) -> tuple[Signer, tuple[x509.Certificate, ...]]:
        return (self.foreign.signer, (self.foreign.certificate,)) if "foreign-signer" in knobs else self.own


def damage_voucher(granted: Grant, media_type: str, knobs: Knobs, signing: Signing, now: datetime) -> bytes:
    """The voucher as these knobs want it; byte for byte the granted one where none of them touches it."""
    content = _damaged_content(granted, knobs, signing.foreign, now)
    if content is None and not knobs.keys() & {"foreign-signer", *_FRAME, *JWS_FRAME, "tampered"}:
        return granted.reply.body
    signer, chain = signing.of(knobs)
    body = sealed.seal(
        content or voucher.write(granted.voucher),
        media_type,
        signer=signer,
        certificate=chain[0],
        certificates=chain[1:],
        now=now,
    )
    is_jws = paths.bare(media_type) == paths.VOUCHER_JWS_JSON
    if is_jws:
        for knob, forge in JWS_FRAME.items():
            body = forge(body, signer) if knob in knobs else body
    else:
        for knob, change in _FRAME.items():
            body = _rebuilt(body, change, signer) if knob in knobs else body
    body = tamper(body) if "tampered" in knobs else body
    return sealed.wrap(body, media_type, in_base64=granted.reply.body != granted.voucher.sealed)


def damage_log(body: bytes, knobs: Knobs, now: datetime) -> bytes:
    """The audit log as these knobs want it."""
    log = json.loads(body)
    for knob, nonce in (("foreign-history", "Zm9yZWlnbi1ub25jZQ=="), ("nonceless-history", None)):
        if knob in knobs:
            stranger = {"domainID": leaves.write_binary(b"\x13" * 20), "nonce": nonce, "assertion": "logged"}
            log["events"].append({"date": leaves.write_date(now), **stranger})
    if "truncated-log" in knobs:
        log["truncation"]["arbitrary"] = int(float(knobs["truncated-log"]))
    if "newer-log" in knobs:
        log |= {"version": 2, "signature": "none yet"}
        log["events"] = [{**event, "registrar": "registrar.example"} for event in log["events"]]
        del log["truncation"]
    if "string-numbers" in knobs:
        log["version"] = str(log["version"])
        log["truncation"] = {name: str(count) for name, count in log.get("truncation", {}).items()}
    return json.dumps(log).encode()


def instead(path: str, media_type: str, knobs: Knobs) -> tuple[str, Reply] | None:
    """The answer that a knob gives in place of any other, and the knob's name."""
    answers: dict[str, Callable[[], Reply]] = {
        "http-500": lambda: Reply(500, "text/plain", body=b"out of order\n"),
        "http-503": lambda: Reply(503, "text/plain", {"retry-after": "60"}, b"come back later\n"),
        "http-401": lambda: Reply(401, "text/plain", {"www-authenticate": "Basic"}, b"who are you\n"),
        "html": lambda: Reply(200, "text/html", body=b"<html><body>Welcome to the factory</body></html>"),
        "redirect-loop": lambda: Reply(307, "", {"location": path}),
        "huge-body": lambda: Reply(200, media_type, body=bytes(int(float(knobs["huge-body"]) * MEBI))),
    }
    return next(((knob, make()) for knob, make in answers.items() if knob in knobs), None)


def tamper(body: bytes) -> bytes:
    """The signed artefact with one bit of a digit in its created-on changed, so that it still reads as one."""
    if sealed.media_type_of(body) == paths.VOUCHER_JWS_JSON:
        document = json.loads(body)
        document["payload"] = jose.base64url(_other_date(jose.unbase64url(document["payload"].encode())))
        return json.dumps(document).encode()
    return _other_date(body)


def _other_date(body: bytes) -> bytes:
    at = body.index(b"Z", body.index(b'"created-on"')) - 1
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def _damaged_content(granted: Grant, knobs: Knobs, foreign: Identity, now: datetime) -> bytes | None:
    members: dict[str, Any] = json.loads(voucher.write(granted.voucher))[voucher.KEY]
    before = dict(members)
    if "wrong-serial" in knobs:
        members["serial-number"] = "somebody-else"
    if "wrong-issuer" in knobs:
        members["idevid-issuer"] = leaves.write_binary(b"\x04\x18\x30\x16\x80\x14" + b"\x13" * 20)
    if "wrong-nonce" in knobs:
        members["nonce"] = leaves.write_binary(bytes(16))
    if "no-nonce" in knobs:
        members.pop("nonce", None)
    if "expired" in knobs:
        members["expires-on"] = leaves.write_date(now - timedelta(hours=1))
    if "wrong-pin" in knobs:
        members["pinned-domain-cert"] = leaves.write_binary(foreign.certificate.public_bytes(Encoding.DER))
    if "no-pin" in knobs:
        del members["pinned-domain-cert"]
    key = voucher_request.KEY if "request-key" in knobs else voucher.KEY
    return None if members == before and key == voucher.KEY else json.dumps({key: members}).encode()


def _without_attributes(signed: Any, signer: Signer) -> None:
    """Valid to a verifier that does not know RFC 5652, section 5.3: the signature is over the content itself."""
    signed["signer_infos"][0]["signed_attrs"] = None
    signed["signer_infos"][0]["signature"] = signer.sign(bytes(signed["encap_content_info"]["content"]))


def _with_second_signer(signed: Any, _: Signer) -> None:
    second = signed["signer_infos"][0].copy()
    second["signature"] = bytes(second["signature"])[:-1] + b"\x00"
    signed["signer_infos"].append(second)


def _with_other_type(signed: Any, signer: Signer) -> None:
    info = signed["signer_infos"][0]
    for attribute in info["signed_attrs"]:
        if attribute["type"].native == "content_type":
            attribute["values"] = ["data"]
    info["signature"] = signer.sign(info["signed_attrs"].untag().dump(force=True))


_FRAME: dict[str, Callable[[Any, Signer], None]] = {
    "no-signed-attributes": _without_attributes,
    "two-signers": _with_second_signer,
    "wrong-content-type": _with_other_type,
}


def _rebuilt(body: bytes, change: Callable[[Any, Signer], None], signer: Signer) -> bytes:
    info = asn1.ContentInfo.load(body)
    change(info["content"], signer)
    return bytes(info.dump(force=True))


def jws_without_signature(body: bytes, _: Signer) -> bytes:
    """alg none (RFC 7518, section 3.6)."""
    return _jws(body, {"alg": "none"}, lambda signed: b"")


def jws_with_mac(body: bytes, signer: Signer) -> bytes:
    """A verifier that lets the header choose takes the public key for the secret of HS256."""
    secret = signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return _jws(body, {"alg": "HS256"}, lambda signed: hmac.digest(secret, signed, "sha256"))


def jws_with_unprotected_alg(body: bytes, signer: Signer) -> bytes:
    """The signature is good, and nobody signed which algorithm it is."""
    return _jws(
        body, {"alg": None}, lambda signed: jose.write_ecdsa(signer.sign(signed), 32), unprotected={"alg": "ES256"}
    )


JWS_FRAME: dict[str, Callable[[bytes, Signer], bytes]] = {
    "jws-none": jws_without_signature,
    "jws-hs256": jws_with_mac,
    "jws-unprotected-alg": jws_with_unprotected_alg,
}


def _jws(
    body: bytes,
    changes: Mapping[str, str | None],
    sign: Callable[[bytes], bytes],
    unprotected: Mapping[str, str] | None = None,
) -> bytes:
    """The JWS with another protected header (None takes a member away), signed anew."""
    document = json.loads(body)
    header = json.loads(jose.unbase64url(document["signatures"][0]["protected"].encode())) | changes
    protected = jose.base64url(json.dumps({name: one for name, one in header.items() if one is not None}).encode())
    signed = sign(f"{protected}.{document['payload']}".encode())
    document["signatures"] = [{"protected": protected, "signature": jose.base64url(signed)}]
    if unprotected is not None:
        document["signatures"][0]["header"] = unprotected
    return json.dumps(document).encode()
